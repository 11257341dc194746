"""Who won a comparison of two models, in the words and columns of published tables of votes."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from charter.reading.rows import Row, is_nan
from charter.records import Rank

FIRST, SECOND, TIE, BOTH_BAD = 1, -1, 0, 2
RANKS: dict[int, tuple[Rank, Rank]] = {FIRST: (1, 2), SECOND: (2, 1), TIE: (1, 1), BOTH_BAD: ("F", "F")}
MODELS_A, MODELS_B = ("model_a", "model_1", "generator_1"), ("model_b", "model_2", "generator_2")
RATER = ("rater_id", "rater", "labeler", "annotator", "judge")  # columns that name who judged
WORDS = {
    "a": FIRST, "modela": FIRST, "left": FIRST, "leftvote": FIRST, "first": FIRST, "1": FIRST, "model1": FIRST,
    "b": SECOND, "modelb": SECOND, "right": SECOND, "rightvote": SECOND, "second": SECOND, "2": SECOND, "model2": SECOND,
    "tie": TIE, "tievote": TIE, "draw": TIE, "equal": TIE, "same": TIE, "bothgood": TIE,
    "equallygood": TIE, "bothequallygood": TIE, "neitherisbetter": TIE, "neitherbetter": TIE,
    "bothbad": BOTH_BAD, "tiebothbad": BOTH_BAD, "bothbadvote": BOTH_BAD, "neither": BOTH_BAD,
}  # fmt: skip
FLAGS = {"winner_model_a": FIRST, "winner_model_b": SECOND, "winner_tie": TIE}
GAMES = ("g1_winner", "g2_winner")  # MT-bench: the judge reads the answers in both orders
VERDICTS = ("winner", "winner_model_a", "g1_winner", "preference")
NO_VERDICT = "no verdict"
NOT_BLIND = "the rater saw the models' names (anony is false)"
SAMPLED_OUT = "left out by the publisher as a frequent prompt (dedup_tag.sampled is false)"


def outcome_of(row: Row) -> int | None:
    """FIRST, SECOND, TIE or BOTH_BAD of a row, None where there is no verdict: by ``winner``; by ``winner_model_a``,
    ``winner_model_b``, ``winner_tie``; by ``g1_winner`` and ``g2_winner``, a tie where the two orders differ; or by AlpacaEval's
    ``preference``, 1 for the first and 2 for the second. InputError where the value is unknown."""
    values = row.values
    if "winner" in values:
        return _named(row, "winner")
    if GAMES[0] in values:
        games = [None if values.get(field) == "error" else _named(row, field) for field in GAMES]
        return None if None in games else games[0] if games[0] == games[1] else TIE
    if "preference" in values:
        share = first_share(row)
        return None if share is None else (share > 0.5) - (share < 0.5)
    if not FLAGS.keys() <= values.keys():
        raise row.bad("missing; write a, b, tie or both bad (or give wins_a, wins_b and ties)", "winner")
    flags = {name: str(values[name]).removesuffix(".0") for name in FLAGS}
    if wrong := next((name for name, flag in flags.items() if flag not in ("0", "1")), None):
        raise row.bad(f"is {values[wrong]!r}; write 0 or 1", wrong)
    winners = [FLAGS[name] for name, flag in flags.items() if flag == "1"]
    if len(winners) != 1:
        raise row.bad(f"{len(winners)} of {', '.join(FLAGS)} are 1; exactly one has to be", "winner_model_a")
    return winners[0]


def first_share(row: Row) -> float | None:
    """P(the first is better) of AlpacaEval's ``preference``: 2 less the value, with 0 for a tie; None where it is empty."""
    value = row.values["preference"]
    if value in (None, ""):
        return None
    try:
        preference = float(value)
    except (TypeError, ValueError, OverflowError):
        preference = -1.0
    if preference and not 1 <= preference <= 2:
        raise row.bad(f"is {value!r}; AlpacaEval's preferences are 1 for the first, 2 for the second, or between", "preference")
    return 2 - preference if preference else 0.5


def worded(text: str, first: Collection[Any], second: Collection[Any]) -> int | None:
    """The outcome that a text names by a word or by the name of one of the two, None where it is neither. ValueError where name
    and word disagree. A negative number is unknown: files that write -1 mean the second or nobody, and never the first."""
    word = None if re.match(r"\s*[-\u2212]\s*\d", text) else WORDS.get(re.sub(r"[^a-z0-9]", "", text.casefold()))
    name = FIRST if text in first else SECOND if text in second else None
    if word in (FIRST, SECOND) and name is not None and word != name:
        raise ValueError(f"is {text!r}, which is the name of one model and the word for the other; write model_a or model_b")
    return word if name is None else name


def set_aside(row: Row) -> str | None:
    """Why the publisher of an arena's votes does not count a row, None where it counts."""
    if str(row.values.get("anony")).casefold() == "false":
        return NOT_BLIND
    return SAMPLED_OUT if re.search(r"sampled['\"]*: *false", str(row.values.get("dedup_tag")), re.IGNORECASE) else None


def _named(row: Row, field: str) -> int | None:
    value = row.values.get(field)
    if value is None or value == "" or is_nan(value):
        return None
    # A model may be a number; its name is the text of that number.
    first, second = ([str(row.values[name]) for name in names if name in row.values] for names in (MODELS_A, MODELS_B))
    try:
        outcome = worded(str(value), first, second)
    except ValueError as error:
        raise row.bad(str(error), field) from None
    if outcome is None and str(value) in ("1.0", "2.0"):  # a column of whole numbers with a missing one, as pandas writes it
        outcome = FIRST if str(value) == "1.0" else SECOND
    if outcome is None:
        raise row.bad(f"is {value!r}; write a, b, tie, both bad or the name of one of the two models", field)
    return outcome
