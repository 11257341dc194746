"""Annotated pairs of ICAI and Feedback Forensics (see :mod:`charter.votes.annotated_pairs`), versions 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from charter.reading.forms import LeftOut
from charter.records import Rank, RaterKind
from charter.votes.annotated_pairs import MAJORITY, PRINCIPLE_TYPE
from charter.votes.imports.formats import Rater
from charter.votes.imports.votes import UNKNOWN, Answer, Part, Unique, Vote
from charter.votes.winners import NO_VERDICT

RANKS: dict[str, tuple[Rank, Rank]] = {
    "a": (1, 2), "text_a": (1, 2), "b": (2, 1), "text_b": (2, 1), "tie": (1, 1), "both": (1, 1), "neither": (1, 1),
}  # fmt: skip
NO_RATER = "the majority of the raters, who are in the file themselves"
UNKNOWN_ANNOTATOR = "an annotation by an annotator that the file does not name"


def read_file(part: Part, rater: Rater, _: Unique) -> Iterator[Vote | LeftOut]:
    """A vote for each annotation with a preference. A principle is a judge, and the vote names it; the other annotators are
    raters of the kind that their type names, else of ``rater``'s kind. ``pref`` null with the reason both or neither is a tie."""
    annotators = {key: rater_of(part["annotators"][key], key, rater) for key in part["annotators"].fields()}
    for comparison in part["comparisons"]:
        try:
            prompt = comparison["prompt"].prompt("annotated-pairs")
            answers = answer_of(comparison, "a"), answer_of(comparison, "b")
        except LeftOut as reason:
            yield reason
            continue
        for key in comparison["annotations"].fields():
            annotation = comparison["annotations"][key]
            who = annotators.get(key)
            value = annotation["pref"].value or annotation["no_pref_reason"].value
            ranks = RANKS.get(value) if isinstance(value, str) else None
            if key not in annotators:
                yield annotation.left_out(UNKNOWN_ANNOTATOR)
            elif who is None:
                yield annotation.left_out(NO_RATER)
            elif ranks is None:
                yield annotation.left_out(NO_VERDICT)
            else:
                principle = who.id if part["annotators"][key]["type"].value == PRINCIPLE_TYPE else None
                yield Vote(row=part.row, prompt=prompt, answers=answers, ranks=ranks, rater=who, kind="pair", principle=principle)


def rater_of(annotator: Part, key: str, default: Rater) -> Rater | None:
    """Who an annotator is; None for the majority of the others."""
    kind = annotator["type"].value
    if kind == MAJORITY:
        return None
    known = "judge" if kind == PRINCIPLE_TYPE else kind if kind in get_args(RaterKind) else default.kind
    return Rater(annotator["name"].name() or key, known)


def answer_of(comparison: Part, side: str) -> Answer:
    """The response ``a`` or ``b``, of version 1 a text."""
    response = comparison[f"response_{side}"]
    if response.value is None:
        return Answer(comparison[f"text_{side}"].text())
    return Answer(response["text"].text(), response["model"].name() or UNKNOWN)
