"""What a person's form says of a set: ranks, strength, rewrite. What cannot be meant is refused in words, not guessed at."""

from __future__ import annotations

import math
from collections.abc import Mapping

from charter.records import Rank, clean_text
from charter.web.project import LabelSettings
from charter.web.store import Answer, Handout, pairs_and_ties
from charter.web.texts import visible

MAX_COMMENT, MAX_EDIT = 2000, 100_000
NOTCHES = (4, 3, 2, 1, -1, -2, -3, -4)  # from the far left to the far right; positive is for the first shown
SKIP_REASONS = {
    "unclear": "the question is unclear",
    "knowledge": "I cannot judge the facts",
    "language": "not in a language I read well",
    "upsetting": "I do not want to read this",
    "technical": "something is wrong with the page",
    "other": "another reason",
}


class BadAnswer(Exception):
    """The form cannot be stored as it is; the words say what to change."""


def read_answer(form: Mapping[str, str], handout: Handout, settings: LabelSettings) -> Answer:
    """The answer of a form. BadAnswer where it is incomplete or says what the settings do not allow."""
    one, order = handout.set, handout.order
    comment = text_of(form, "comment", MAX_COMMENT).strip()
    timings = timings_of(form)
    if one.kind == "rank":
        return Answer(ranking(form, order, settings), comment=comment, timings=timings)
    if one.kind in ("pair", "redteam"):
        ranks, strength = comparison(form, order, settings)
        return Answer(ranks, strength, comment=comment, timings=timings)
    (response,) = order
    given = form.get(f"rank:{response}", "")
    if one.kind == "thumbs":
        if given not in ("1", "F"):
            raise BadAnswer("Choose thumbs up or thumbs down.")
        return Answer({response: 1 if given == "1" else "F"}, comment=comment, timings=timings)
    edit = text_of(form, f"edit:{response}", MAX_EDIT)
    rewritten = bool(edit.strip()) and edit != visible(handout.responses[0].text)  # as the page showed it
    if given == "1":
        return Answer({response: 1}, comment=comment, timings=timings)
    if not rewritten and given != "F":
        raise BadAnswer("There is no rewrite yet. Change the text, or say that the answer is good as it is, or nonsense.")
    return Answer({response: "F" if given == "F" else 2}, edit={response: edit} if rewritten else {}, comment=comment,
                  timings=timings)  # fmt: skip


def ranking(form: Mapping[str, str], order: tuple[str, ...], settings: LabelSettings) -> dict[str, Rank]:
    ranks: dict[str, Rank] = {}
    for place, response in enumerate(order):
        given = form.get(f"rank:{response}", "")
        if given == "F":
            ranks[response] = "F"
        elif given in map(str, range(1, len(order) + 1)):
            ranks[response] = int(given)
        elif given:
            raise BadAnswer(f"{given[:20]!r} is no rank; give 1 to {len(order)}, or F.")
        elif not settings.partial:
            raise BadAnswer(f"Answer {letter(place)} has no rank yet. Give every answer a rank, or F.")
    if not ranks:
        raise BadAnswer("No answer has a rank yet.")
    if settings.ties == "forbid" and pairs_and_ties(ranks)[1]:
        raise BadAnswer("Two answers have the same rank. Ties are not allowed in this project; say which one is better.")
    return ranks


def comparison(form: Mapping[str, str], order: tuple[str, ...], settings: LabelSettings) -> tuple[dict[str, Rank], int | None]:
    first, second = order
    nonsense = [form.get(f"rank:{response}") == "F" for response in order]
    choice = form.get("strength", "")
    if all(nonsense):
        return {first: "F", second: "F"}, None
    if any(nonsense):
        return {first: "F" if nonsense[0] else 1, second: "F" if nonsense[1] else 1}, None
    if choice == "tie" and not settings.strength and settings.ties != "forbid":
        return {first: 1, second: 1}, None
    if choice not in map(str, range(1, len(NOTCHES) + 1)):
        raise BadAnswer("Choose the better answer; how much better is the distance from the middle.")
    notch = NOTCHES[int(choice) - 1]
    ranks: dict[str, Rank] = {first: 1 if notch > 0 else 2, second: 2 if notch > 0 else 1}
    return ranks, notch if settings.strength else None


def letter(place: int) -> str:
    return chr(ord("A") + place)


def text_of(form: Mapping[str, str], name: str, limit: int) -> str:
    text = form.get(name, "").replace("\r\n", "\n")
    try:
        clean_text(text)
    except ValueError as error:
        raise BadAnswer(f"The text {error}.") from None
    if len(text) > limit:
        raise BadAnswer(f"The text has {len(text):,} characters; at most {limit:,} are kept.")
    return text


def timings_of(form: Mapping[str, str]) -> dict[str, float]:
    """Seconds of active work and until the first key, as the page measured them; what is no such number is left out."""
    found = {}
    for name in ("active_s", "first_input_s"):
        try:
            seconds = float(form.get(name, ""))
        except ValueError:
            continue
        if math.isfinite(seconds) and 0 <= seconds <= 86400:
            found[name] = round(seconds, 1)
    return found


def agreement_with(ranks: Mapping[str, Rank], gold: Mapping[str, Rank]) -> float:
    """Share of the pairs of responses that are ordered as in the known answer, pairs that neither orders left out; for a single
    response, and where no pair is left, the share of responses with the same mark."""
    keys = sorted(gold)
    pairs = [(relation(ranks, a, b), relation(gold, a, b)) for i, a in enumerate(keys) for b in keys[i + 1 :]]
    asked = [(x, y) for x, y in pairs if x is not None or y is not None]
    if not asked:
        return sum((ranks.get(key) == "F") == (gold[key] == "F") for key in keys) / len(keys)
    return sum(x == y for x, y in asked) / len(asked)


def relation(ranks: Mapping[str, Rank], a: str, b: str) -> int | None:
    """1 where ``a`` is ranked better than ``b``, -1 where worse, 0 for a tie. None where nothing is said of the two: neither has
    a rank (two F among them). F and no rank are both below every rank."""
    places = [float(r) if isinstance(r, int) else math.inf for r in (ranks.get(a), ranks.get(b))]
    return None if places == [math.inf, math.inf] else (places[0] < places[1]) - (places[0] > places[1])
