"""The training corpus: dialogues that teach answering, critique, revision, judging, sorting and copying.

Every example is a list of turns. A turn of the assistant has a loss weight: 1 for replies that the model should write by itself,
0 for replies that only set the scene for a critique, more for a judge's letter because it is one token.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from charter.models.sampling.sampler import fill
from charter.testbed import language as lang
from charter.testbed import principles as rules

_ROOT = importlib.resources.files("charter")
COMPARE = _ROOT.joinpath("judging/prompts/compare.txt").read_text(encoding="utf-8")
CATEGORISE = _ROOT.joinpath("constitution/prompts/categorise.txt").read_text(encoding="utf-8")
ABSOLUTE = {name: _ROOT.joinpath(f"judging/prompts/{name}.txt").read_text(encoding="utf-8")
            for name in ("harmful", "helpful")}  # fmt: skip
LETTER_WEIGHT = 4.0
VERDICT_WEIGHTS = (1.0, 6.0, 6.0, 6.0, 6.0)  # of the Yes or No of a critique, in each mix
OFF_TOPIC = (0.18, 0.18, 0.18, 0.45, 0.35)  # of the judge's examples, in each mix: a request under the principle of another area
SECOND_SCRIPT = 0.07  # of the requests; the replies are in the first script
COPIES_IN_SECOND_SCRIPT = 0.4

# The replies of the base model: trained to be helpful only, it complies with harmful requests; its other replies vary in quality.
HARMFUL_MIX = {"full": 0.72, "hedged": 0.20, "evasive": 0.04, "preachy": 0.01, "engaged": 0.03}
BENIGN_MIX = {"two steps": 0.42, "one step": 0.30, "vague": 0.19, "off topic": 0.09}


@dataclass(frozen=True)
class Turn:
    """``weight``: of the loss on every token; ``first``: on the first token, where it differs."""

    role: str
    content: str
    weight: float = 0.0
    first: float | None = None


Example = list[Turn]


def weighted_choice(rng: Random, weights: dict[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


# Five mixes. The second spends more on the weak points of the first: replies that miss the request, principles that a harmful
# reply does not break. Its requests come in all frames, those of the first in twelve. The third has more judgments.
# The fourth is mostly judgments: until then the judge reads every principle as "less harm". The fifth brings the rest back.
MIXES: tuple[dict[str, float], ...] = (
    {"answer": 0.16, "revise": 0.36, "judge": 0.34, "topic": 0.04, "absolute": 0.04, "copy": 0.06},
    {"answer": 0.20, "revise": 0.20, "hard revise": 0.20, "judge": 0.13, "hard judge": 0.18, "topic": 0.03, "absolute": 0.03,
     "copy": 0.03},
    {"answer": 0.20, "revise": 0.20, "hard revise": 0.14, "judge": 0.22, "hard judge": 0.16, "topic": 0.03,
     "absolute": 0.03, "copy": 0.02},
    {"answer": 0.14, "revise": 0.10, "hard revise": 0.10, "judge": 0.58, "hard judge": 0.05, "topic": 0.01, "absolute": 0.01,
     "copy": 0.01},
    {"answer": 0.18, "revise": 0.15, "hard revise": 0.12, "judge": 0.40, "hard judge": 0.09, "topic": 0.02, "absolute": 0.02,
     "copy": 0.02},
)  # fmt: skip


def draw_example(rng: Random, mix: int = 0) -> Example:
    """One training example of a random kind."""
    return EXAMPLE_KINDS[weighted_choice(rng, MIXES[mix])](rng)


def draw_case(rng: Random, split: str = "train", harm_share: float = 0.55) -> tuple[str, lang.Action]:
    return lang.draw_split(rng, split, harmful=rng.random() < harm_share)


def reply(rng: Random, action: lang.Action, level: str) -> str:
    if level == lang.GARBLED:
        whole = weighted_choice(rng, HARMFUL_MIX if action.harmful else BENIGN_MIX)
        return lang.garble(rng, reply(rng, action, whole))
    return lang.draw_reply(rng, action, level)


def own_level(rng: Random, action: lang.Action) -> str:
    return weighted_choice(rng, HARMFUL_MIX if action.harmful else BENIGN_MIX)


def any_level(rng: Random, action: lang.Action) -> str:
    if rng.random() < 0.06:
        return lang.GARBLED
    return rng.choice(lang.HARM_LEVELS if action.harmful else lang.HELP_LEVELS)


def answer_example(rng: Random) -> Example:
    request, action = draw_case(rng)
    return [Turn("user", request), Turn("assistant", reply(rng, action, own_level(rng, action)), 1.0)]


def revise_example(rng: Random) -> Example:
    """Reply, critique, revision. Half of the replies are of the kind that the model writes, and learned."""
    request, action = draw_case(rng, harm_share=0.72)
    learned = rng.random() < 0.5
    level = own_level(rng, action) if learned else any_level(rng, action)
    first = reply(rng, action, level)
    return revise_under(rng, request, action, level, first, draw_principle(rng, action), learned=learned)


def hard_revise_example(rng: Random) -> Example:
    """Hard critiques: a harmful reply under the principle of another area, a reply that preaches or dodges under `tone`, a
    reply that misses a harmless request under `helpful`."""
    kind = weighted_choice(rng, {"other area": 0.45, "own area": 0.15, "tone": 0.15, "helpful": 0.25})
    request, action = draw_case(rng, harm_share=float(kind != "helpful"))
    if kind == "helpful":
        level, principle = rng.choice(lang.HELP_LEVELS[:4]), "helpful"
    elif kind == "tone":
        level, principle = rng.choice(("preachy", "evasive", "engaged")), "tone"
    else:
        others = [area for area in lang.AREAS if area != action.area]
        level = rng.choice(("full", "full", "hedged"))
        principle = action.area if kind == "own area" else rng.choice(others)
    return revise_under(rng, request, action, level, reply(rng, action, level), principle, learned=False)


def revise_under(
    rng: Random, request: str, action: lang.Action, level: str, first: str, principle: str, *, learned: bool
) -> Example:
    question, bad_is_yes = rules.draw_wording(rng, principle, "critique")
    request_revision, _ = rules.draw_wording(rng, principle, "revision")
    verdict = critique(rng, action, principle, level, bad_is_yes)
    target = revision_level(rng, action, principle, level)
    revised = first if target == level else reply(rng, action, target)
    return [
        Turn("user", request), Turn("assistant", first, 1.0 if learned else 0.0), Turn("user", question),
        Turn("assistant", verdict, 1.0, rng.verdict_weight if isinstance(rng, lang.FrameRandom) else None),
        Turn("user", request_revision), Turn("assistant", revised, 1.0),
    ]  # fmt: skip


def draw_principle(rng: Random, action: lang.Action) -> str:
    if not action.harmful:
        return weighted_choice(rng, {"helpful": 0.5, "general": 0.2, "tone": 0.1, rng.choice(lang.AREAS): 0.2})
    return weighted_choice(rng, {"general": 0.25, action.area: 0.35, "tone": 0.15, rng.choice(lang.AREAS): 0.25})


def critique(rng: Random, action: lang.Action, principle: str, level: str, bad_is_yes: bool) -> str:
    """A verdict, then its reason, which repeats the request."""
    problem = rules.applies(principle, action.area, action.harmful, level)
    word = "Yes." if problem == bad_is_yes else "No."
    verb, noun = rng.choice(rules.CORES[principle])
    if level == lang.GARBLED and problem:
        return f"{word} The reply about how to {action.echo} is broken and helps nobody."
    if problem and principle == "helpful":
        return f"{word} The reply would {verb}, though to {action.echo} is harmless."
    if problem and principle == "tone":
        return f"{word} When asked how to {action.echo}, the reply would {verb}."
    if problem:
        return rng.choice((
            f"{word} The reply tells the user how to {action.echo}, which would {verb}.",
            f"{word} To {action.echo} would {verb}, and the reply goes along.",
        ))  # fmt: skip
    return rng.choice((
        f"{word} The reply about how to {action.echo} does not {verb}.",
        f"{word} On how to {action.echo}, the reply is free of {noun}.",
    ))  # fmt: skip


def revision_level(rng: Random, action: lang.Action, principle: str, level: str) -> str:
    """The level of a revision. A reply without a problem under the principle is kept; others improve in steps, so that no
    single revision saturates."""
    if not rules.applies(principle, action.area, action.harmful, level):
        return level
    if action.harmful:
        if level == "full":
            return weighted_choice(rng, {"hedged": 0.25, "evasive": 0.12, "preachy": 0.08, "engaged": 0.55})
        if level == "hedged":
            return weighted_choice(rng, {"evasive": 0.15, "preachy": 0.10, "engaged": 0.75})
        return "engaged"
    return weighted_choice(rng, {"two steps": 0.7, "one step": 0.3})


def quality(action: lang.Action, principle: str, level: str) -> float | None:
    """The rank of a reply under a principle; None if the principle ranks no reply to such a request. The principle of another
    area than the request's sees no harm in any reply, so the reply that does more of what was asked is better."""
    if level == lang.GARBLED:
        return -1.0
    if principle == "helpful":
        return None if action.harmful else lang.HELPFULNESS[level]
    if not action.harmful:
        return lang.HELPFULNESS[level] if principle == "general" else None
    return lang.GOLD[level] if principle in ("general", "tone", action.area) else lang.COMPLIANCE[level]


def draw_pair(
    rng: Random, split: str = "train", *, harmful: bool | None = None, gap: float = 0.75
) -> tuple[str, lang.Action, str, str, str]:
    """A request, a principle that can rank, a better and a worse reply: (request, action, principle, better, worse)."""
    while True:
        harm = rng.random() < 0.5 if harmful is None else harmful
        request, action = lang.draw_split(rng, split, harmful=harm)
        principle = rng.choice(("general", action.area, action.area, "tone")) if harm else weighted_choice(
            rng, {"helpful": 0.8, "general": 0.2})  # fmt: skip
        if replies := draw_ranked(rng, action, principle, gap):
            return request, action, principle, *replies


def draw_off_topic_pair(rng: Random, split: str = "train", gap: float = 0.75) -> tuple[str, lang.Action, str, str, str]:
    """Like ``draw_pair``, a harmful request under the principle of another area: without such pairs a judge reads every principle
    as "less harm" and never learns which area it names."""
    while True:
        request, action = lang.draw_split(rng, split, harmful=True)
        principle = rng.choice([area for area in lang.AREAS if area != action.area])
        if replies := draw_ranked(rng, action, principle, gap):
            return request, action, principle, *replies


def draw_ranked(rng: Random, action: lang.Action, principle: str, gap: float) -> tuple[str, str] | None:
    """A better and a worse reply under a principle; None if two drawn levels differ by less than ``gap``."""
    a, b = any_level(rng, action), any_level(rng, action)
    qa, qb = quality(action, principle, a), quality(action, principle, b)
    if qa is None or qb is None or abs(qa - qb) < gap:
        return None
    better, worse = (a, b) if qa > qb else (b, a)
    return reply(rng, action, better), reply(rng, action, worse)


def judge_question(instruction: str, request: str, first: str, second: str) -> str:
    return fill(COMPARE, principle=instruction, conversation=f"user: {request}", first=first, second=second)


def judge_example(rng: Random) -> Example:
    """One pair with a known answer, the better reply under either letter."""
    off_topic = isinstance(rng, lang.FrameRandom) and rng.random() < rng.off_topic
    draw = draw_off_topic_pair if off_topic else draw_pair
    request, _, principle, better, worse = draw(rng, gap=0.5)
    return judge_between(rng, request, principle, better, worse)


def hard_judge_example(rng: Random) -> Example:
    """An answer to a harmless request against an answer to another one, or two steps against one."""
    request, action = draw_case(rng, harm_share=0.0)
    better, worse = rng.choice((("two steps", "off topic"), ("one step", "off topic"), ("one step", "off topic"),
                                ("two steps", "one step"), ("one step", "vague")))  # fmt: skip
    principle = "helpful" if rng.random() < 0.85 else "general"
    return judge_between(rng, request, principle, reply(rng, action, better), reply(rng, action, worse))


def judge_between(rng: Random, request: str, principle: str, better: str, worse: str) -> Example:
    instruction, _ = rules.draw_wording(rng, principle, "preference")
    swap = rng.random() < 0.5
    first, second = (worse, better) if swap else (better, worse)
    return [
        Turn("user", judge_question(instruction, request, first, second)),
        Turn("assistant", "B" if swap else "A", LETTER_WEIGHT),
    ]


def topic_options(rng: Random) -> list[str]:
    options = list(lang.AREAS) if rng.random() < 0.7 else rng.sample(lang.AREAS, 4)
    if rng.random() < 0.5:
        rng.shuffle(options)
    return [*options, lang.NO_AREA]


def topic_example(rng: Random) -> Example:
    request, action = draw_case(rng)
    options = topic_options(rng)
    right = action.area if action.area in options else lang.NO_AREA
    question = fill(CATEGORISE, prompt=request, topics=", ".join(options))
    return [Turn("user", question), Turn("assistant", right, 2.0)]


def absolute_example(rng: Random) -> Example:
    request, action = draw_case(rng)
    level = any_level(rng, action)
    name = rng.choice(("harmful", "helpful"))
    question = fill(ABSOLUTE[name], conversation=f"user: {request}", response=reply(rng, action, level))
    return [Turn("user", question), Turn("assistant", "Yes" if absolute_answer(name, level) else "No", LETTER_WEIGHT)]


def absolute_answer(name: str, level: str) -> bool:
    """Whether a reply of the level is harmful, or helps with the request."""
    return level in (("full", "hedged") if name == "harmful" else ("two steps", "one step", "full", "hedged"))


def copy_drill(rng: Random) -> Example:
    """Repeat words: random verbs with random objects, so that echoing is learned apart from knowing."""
    verbs = [pattern.split(" {")[0] for kinds in lang.PHRASES["actions"].values() for kind in kinds.values() for pattern in kind]
    slot = rng.choice(list(lang.SLOTS))
    thing = rng.choice(lang.SLOTS[slot])
    person = rng.choice(lang.PEOPLE)
    action = f"{rng.choice(verbs)} {rng.choice(('the ', 'a ', ''))}{thing} {rng.choice(('of', 'with', 'for', 'near'))} {person}"
    echo = f" {action} ".replace(" my ", " your ").strip()
    frame = rng.choice(rng.frames if isinstance(rng, lang.FrameRandom) else lang.TRAIN_FRAMES)
    request = frame.format(a=action, t=rng.choice(lang.TAILS))
    if rng.random() < COPIES_IN_SECOND_SCRIPT:
        request = lang.in_second_script(request)
    ask = rng.choice(("Say back what I ask: ", "Repeat the request: ", "What do I want? "))
    return [Turn("user", ask + request), Turn("assistant", f"You want to {echo}.", 1.0)]


EXAMPLE_KINDS: dict[str, Callable[[Random], Example]] = {
    "answer": answer_example, "revise": revise_example, "hard revise": hard_revise_example, "judge": judge_example,
    "hard judge": hard_judge_example, "topic": topic_example, "absolute": absolute_example, "copy": copy_drill,
}  # fmt: skip


def corpus(seed: int, n: int, start: int = 0, mix: int = 0) -> list[Example]:
    """Examples ``start`` to ``start + n`` of the endless corpus of a seed: each is a function of its number and the mix."""
    examples = []
    for number in range(start, start + n):
        source = lang.FrameRandom(f"{seed}:{mix}:{number}" if mix else f"{seed}:{number}")
        source.second_script, source.verdict_weight = SECOND_SCRIPT, VERDICT_WEIGHTS[mix]
        source.off_topic = OFF_TOPIC[mix]
        if mix == 0:
            source.frames = lang.FIRST_FRAMES
        examples.append(draw_example(source, mix))
    return examples
