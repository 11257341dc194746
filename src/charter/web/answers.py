"""A person's form read as an answer: ranks, strength, rewrite. A contradiction is asked back and never resolved here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from charter.constitution.constitution import Principle
from charter.records import Rank, clean_text
from charter.votes.judgments import DECIDED
from charter.web.project import LabelSettings
from charter.web.store import Handout, RaterAnswer, pairs_and_ties
from charter.web.texts import with_codes, without_codes
from charter.web.words import PROBLEMS

MAX_COMMENT, MAX_EDIT = 2000, 100_000
NOTCHES = (4, 3, 2, 1, -1, -2, -3, -4)  # from the far left to the far right; positive is for the first shown


class BadAnswer(Exception):
    """The form cannot be stored as it is; the words (``PROBLEMS``) say what to change."""

    def __init__(self, problem: str, **values: object) -> None:
        super().__init__(PROBLEMS[problem].format(**values))


def read_answer(
    form: Mapping[str, str], handout: Handout, settings: LabelSettings, principles: Iterable[Principle] = ()
) -> RaterAnswer:
    """The answer of a form, with those of ``principles`` that it names. BadAnswer where it is incomplete or not allowed by the
    settings."""
    answer = read_verdict(form, handout, settings)
    marks = [DECIDED + principle.id for principle in principles if form.get(DECIDED + principle.id)]
    return replace(answer, flags={handout.set.id: marks}) if marks else answer


def read_verdict(form: Mapping[str, str], handout: Handout, settings: LabelSettings) -> RaterAnswer:
    """Ranks, strength, rewrite, comment and times of a form. BadAnswer as in :func:`read_answer`."""
    label_set, order = handout.set, handout.order
    comment = text_of(form, "comment", MAX_COMMENT).strip()
    timings = timings_of(form)
    if label_set.kind == "rank":
        return RaterAnswer(ranking(form, order, settings), comment=comment, timings=timings)
    if label_set.kind in ("pair", "redteam"):
        ranks, strength = comparison(form, order, settings)
        return RaterAnswer(ranks, strength, comment=comment, timings=timings)
    (response,) = order
    mark = form.get(f"rank:{response}", "")
    if label_set.kind == "thumbs":
        if mark not in ("1", "F"):
            raise BadAnswer("thumb")
        return RaterAnswer({response: 1 if mark == "1" else "F"}, comment=comment, timings=timings)
    original = handout.responses[0].text
    edit = text_of(form, f"edit:{response}", MAX_EDIT)
    rewritten = bool(edit.strip()) and edit != with_codes(original)  # as the page showed it
    if mark == "1":
        if rewritten:
            raise BadAnswer("rewrite")
        return RaterAnswer({response: 1}, comment=comment, timings=timings)
    if not rewritten and mark != "F":
        raise BadAnswer("no rewrite")
    rewrite = {response: without_codes(edit, original)} if rewritten else {}
    return RaterAnswer({response: "F" if mark == "F" else 2}, edit=rewrite, comment=comment, timings=timings)


def ranking(form: Mapping[str, str], order: tuple[str, ...], settings: LabelSettings) -> dict[str, Rank]:
    ranks: dict[str, Rank] = {}
    for place, response in enumerate(order):
        mark = form.get(f"rank:{response}", "")
        if mark == "F":
            ranks[response] = "F"
        elif mark in map(str, range(1, len(order) + 1)):
            ranks[response] = int(mark)
        elif mark:
            raise BadAnswer("rank", rank=mark[:20], most=len(order))
        elif not settings.partial:
            raise BadAnswer("unranked", letter=letter(place))
    if not ranks:
        raise BadAnswer("no ranks")
    if settings.ties == "forbid" and pairs_and_ties(ranks)[1]:
        raise BadAnswer("tie")
    return ranks


def comparison(form: Mapping[str, str], order: tuple[str, ...], settings: LabelSettings) -> tuple[dict[str, Rank], int | None]:
    """Ranks and strength of a pair. BadAnswer where nothing is chosen, or where the choice and an F contradict each other."""
    first, second = order
    marks = [form.get(f"rank:{response}") == "F" for response in order]
    choice = form.get("strength", "")
    if choice == "tie" and not settings.strength and settings.ties != "forbid":
        if any(marks) and not all(marks):
            raise BadAnswer("tie and F", letter=letter(marks.index(True)))
        return ({first: "F", second: "F"} if all(marks) else {first: 1, second: 1}), None
    chosen = choice in map(str, range(1, len(NOTCHES) + 1))
    if not chosen and (choice or not any(marks)):
        raise BadAnswer("choice")
    notch = NOTCHES[int(choice) - 1] if chosen else 0
    better = 0 if notch > 0 else 1
    if chosen and all(marks):
        raise BadAnswer("choice and both F", letter=letter(better))
    if chosen and marks[better]:
        raise BadAnswer("choice and F", letter=letter(better))
    ranks: dict[str, Rank] = {response: "F" if mark else 1 for response, mark in zip(order, marks, strict=True)}
    if not any(marks):
        ranks[order[1 - better]] = 2
    return ranks, notch if chosen and settings.strength else None


def letter(place: int) -> str:
    return chr(ord("A") + place)


def text_of(form: Mapping[str, str], name: str, limit: int) -> str:
    text = form.get(name, "").replace("\r\n", "\n")
    try:
        clean_text(text)
    except ValueError as error:
        raise BadAnswer("text", words=error) from None
    if len(text) > limit:
        raise BadAnswer("length", size=len(text), limit=limit)
    return text


def timings_of(form: Mapping[str, str]) -> dict[str, float]:
    """Seconds of active work and until the first key, as the page measured them; other values are left out."""
    timings = {}
    for name in ("active_s", "first_input_s"):
        try:
            seconds = float(form.get(name, ""))
        except ValueError:
            continue
        if math.isfinite(seconds) and 0 <= seconds <= 86400:
            timings[name] = round(seconds, 1)
    return timings


def agreement_with(ranks: Mapping[str, Rank], gold: Mapping[str, Rank | None]) -> float:
    """Share of the pairs of responses that are ordered as in the known answer, pairs that neither orders left out; for a single
    response, and where no pair is left, the share of responses with the same mark. ``gold`` names every response, None for one
    without a rank."""
    keys = sorted(gold)
    pairs = [(relation(ranks, a, b), relation(gold, a, b)) for i, a in enumerate(keys) for b in keys[i + 1 :]]
    ordered = [(x, y) for x, y in pairs if x is not None or y is not None]
    if not ordered:
        return sum(ranks.get(key) == gold[key] for key in keys) / len(keys)
    return sum(x == y for x, y in ordered) / len(ordered)


def relation(ranks: Mapping[str, Rank | None], a: str, b: str) -> int | None:
    """1 where ``a`` is ranked better than ``b``, -1 where worse, 0 for a tie. None where neither has a rank
    (two F among them). F and no rank are both below every rank."""
    places = [float(r) if isinstance(r, int) else math.inf for r in (ranks.get(a), ranks.get(b))]
    return None if places == [math.inf, math.inf] else (places[0] < places[1]) - (places[0] > places[1])
