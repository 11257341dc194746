"""The instructions that ship: Markdown that fits the kind, the direction and the ties of a project."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

from charter.records import Direction, SetKind

if TYPE_CHECKING:
    from charter.web.project import LabelSettings

TASKS: dict[SetKind, str] = {
    "rank": "People ask an assistant for something, and a language model has written several answers. You say which answers are "
    "{adjective}.",
    "pair": "People ask an assistant for something, and a language model has written two answers. You say which answer is "
    "{adjective}.",
    "edit": "People ask an assistant for something, and a language model has written an answer. You rewrite "
    "the answer, or you say "
    "that it is good as it is.",
    "thumbs": "People ask an assistant for something, and a language model has written an answer. You say whether the answer is "
    "good.",
    "redteam": "You talk with a language model and try to get it to say something that it should not. Each "
    "turn shows two answers. "
    "You say which answer is {adjective}, and the dialogue continues from your choice.",
}
READING: dict[SetKind, str] = {
    "rank": "Read the request first, then **all** the answers to the end, then decide.",
    "pair": "Read the request first, then **both** answers to the end, then decide.",
    "edit": "Read the request first, then the answer to the end, then write.",
    "thumbs": "Read the request first, then the answer to the end, then decide.",
    "redteam": "Read **both** answers to the end, then decide. Write nothing private, about yourself or about others.",
}
LEARNING: dict[Direction, str] = {
    "better": "A model will learn from what you say, so it will answer the way you prefer.",
    "more_harmless": "A model will learn from what you say, so it will answer the way you prefer.",
    "more_harmful": "A model may learn from what you say to avoid such answers.",
}
GOOD = """Judge by these three, and weigh them as the case asks for.

1. **Helpful.** Does the answer do what the person wants, and what they would want if they knew more? It should be to the point,
   complete, and easy to follow. Long is not better than short. A good question back is better than a wrong guess.
2. **Harmless.** Would the answer help someone to hurt themselves or others, to break the law, or to treat people with contempt?
   An answer that declines such a request and says why in a friendly way is better than one that goes along. An answer that
   refuses a harmless request is *not* harmless: it does not help.
3. **Honest.** Is it true, as far as you can tell? Does it say so when it is not sure? An answer that admits not to \
know is worse than
   a correct one and better than a wrong one. Made-up facts, names and links count heavily.

Where they pull in different directions: real harm weighs most, then being wrong, then being of little help."""
HARM = """Judge by harm alone. Would the answer help someone to hurt themselves or others, to break the law, or to \
treat people with
contempt? The more it would help them, and the worse the result, the more harmful it is. How useful, correct or well written an
answer is otherwise does not count."""
FACTS = """## You may look things up

Check facts that decide your choice. A few minutes are fine. If you still cannot tell, skip the set and say that you \
cannot judge the facts."""
TIES = """## Ties

If two answers are about equally {adjective}, you may {tie}. Do this sparingly: when you see a difference at all, even a
small one, let it decide."""
NO_TIES = """## No ties

{always}: when you see a difference at all, even a small one, let it decide."""
NONE = "random characters, the wrong language, a text about something else, an\nanswer that breaks off before it says anything"
MARKS: dict[SetKind, str] = {
    "rank": f"""## When to use F

Give **F** instead of a rank to a response that does not answer at all: {NONE}. A bad answer is not F: it gets \
{{place}}. Several answers may be F, and all of
them may be.""",
    "pair": f"""## When to use F

Mark **F** on an answer that does not answer at all: {NONE}. A bad answer is not F. Both answers may be F; then no
choice is needed.""",
    "edit": f"""## How to rewrite

Change what is wrong or missing, and keep what is good. Write what the assistant should have said, not what you think \
of it. If you
would change nothing, mark the answer as good as it is.

Mark **F** on an answer that does not answer at all: {NONE}. You may rewrite it as well.""",
    "thumbs": """## Good or not

Give a thumbs up to an answer that you would be glad to get. Give a thumbs down to every other answer.""",
}  # fmt: skip
PAUSES = {
    False: """\
Some requests are unpleasant; that is why somebody has to look at them. Skip whatever you do not want to read, with "I do not
want to read this". Nobody is marked down for it. Take breaks.""",
    True: "Some answers are unpleasant; that is why somebody has to look at them. You may end a dialogue after any turn. "
    "Take breaks.",
}


def default_instructions(settings: LabelSettings) -> str:
    """The Markdown for a project without instructions of its own."""
    kind, direction = settings.kind, settings.asked_direction
    adjective = "good" if direction == "better" else direction.removeprefix("more_")
    more = "better" if direction == "better" else f"more {adjective}"
    task = TASKS[kind].format(adjective=more)
    learning = LEARNING[direction].replace("say", "write") if kind == "edit" else LEARNING[direction]
    parts = [
        "# How to judge the answers",
        "## What this is for",
        fill(f"{task} {learning} There is no hidden right answer: we want your careful judgment.", 125),
        READING[kind],
        "## What to judge by",
        GOOD if direction == "better" else HARM,
        "" if kind == "redteam" else FACTS,
        ties_of(settings, adjective),
        MARKS["pair" if kind == "redteam" else kind].format(place="the last rank" if direction == "better" else "a rank"),
        "## If you do not want to read something",
        PAUSES[kind == "redteam"],
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def ties_of(settings: LabelSettings, adjective: str) -> str:
    """What is said of ties; nothing for single answers."""
    if settings.kind in ("edit", "thumbs"):
        return ""
    if settings.kind != "rank" and settings.strength:
        return NO_TIES.format(always='Choose how much more, from "slightly" to "much". There is no button for a tie')
    if settings.ties == "forbid":
        return NO_TIES.format(always="This project has no ties")
    return TIES.format(adjective=adjective, tie="give them the same rank" if settings.kind == "rank" else "choose a tie")
