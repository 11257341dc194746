"""Collections that a judge rated: UltraFeedback's completions and the annotations of AlpacaEval."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from charter.reading.rows import Row
from charter.votes.imports.formats import Rater
from charter.votes.imports.votes import (
    NO_TEXT,
    UNKNOWN,
    Answer,
    LeftOut,
    Unique,
    Vote,
    list_in,
    object_in,
    optional_text_in,
    prompt_in,
    ranks_of_scores,
    text_in,
)
from charter.votes.rankings import margin_of
from charter.votes.winners import NO_VERDICT, RANKS, first_share, outcome_of

UNRATED = "fewer than two completions with a rating on one scale"
OTHER_SCALE = "a completion without a rating on the scale of the others"
OVERALL = ("fine-grained_score", "overall_score")


def read_ultrafeedback(row: Row, rater: Rater, _: Unique) -> Iterator[Vote | LeftOut]:
    """``instruction`` and ``completions``, each with ``annotations`` by aspect (Cui et al. 2023). Completions are ranked by the
    mean of their aspects' ratings (1 to 5), which is what the authors advise since an error in overall_score was found; where
    fewer than two have one, by fine-grained_score, else by overall_score (1 to 10). Two scales are never compared."""
    prompt = prompt_in(row, row.values.get("instruction"), "instruction", source="ultrafeedback")
    answers: list[Answer] = []
    rated: list[tuple[float | None, ...]] = []
    for place, item in enumerate(list_in(row, row.values.get("completions"), "completions")):
        field = f"completions.{place}"
        completion = object_in(row, item, field)
        if completion.get("response") is None:
            yield LeftOut(row, NO_TEXT, f"{field}.response")
            continue
        model = optional_text_in(row, completion.get("model"), f"{field}.model") or UNKNOWN
        answers.append(Answer(text_in(row, completion["response"], f"{field}.response"), model))
        rated.append((_mean_rating(row, completion, field), *(_rating(completion.get(name)) for name in OVERALL)))
    scores = next((scale for scale in zip(*rated, strict=True) if sum(score is not None for score in scale) > 1), None)
    if scores is None:
        raise LeftOut(row, UNRATED, "completions")
    compared = [(answer, score) for answer, score in zip(answers, scores, strict=True) if score is not None]
    for scale in rated:
        if len(compared) < len(rated) and scale[0] is None and any(score is not None for score in scale):
            yield LeftOut(row, OTHER_SCALE, "completions")
    ranks = ranks_of_scores([score for _, score in compared])
    yield Vote(row=row, prompt=prompt, answers=tuple(answer for answer, _ in compared), ranks=ranks, rater=rater)


def read_alpaca_eval(row: Row, rater: Rater, _: Unique) -> Iterator[Vote | LeftOut]:
    """``instruction``, ``output_1`` and ``output_2`` with ``generator_1`` and ``generator_2``, and ``preference``: 1 for the
    first, 2 for the second, 1.5 or 0 for a tie; a number between is the soft label of an annotator that reads probabilities."""
    outcome = outcome_of(row)
    if outcome is None:
        raise LeftOut(row, NO_VERDICT, "preference")
    share = first_share(row)
    answers = []
    for n in (1, 2):
        model = optional_text_in(row, row.values.get(f"generator_{n}"), f"generator_{n}") or UNKNOWN
        answers.append(Answer(text_in(row, row.values.get(f"output_{n}"), f"output_{n}"), model))
    annotator = optional_text_in(row, row.values.get("annotator"), "annotator")
    yield Vote(
        row=row,
        prompt=prompt_in(row, row.values.get("instruction"), "instruction", source="alpaca-eval"),
        answers=tuple(answers),
        ranks=RANKS[outcome],
        rater=Rater(annotator, rater.kind) if annotator else rater,
        kind="pair",
        margin=margin_of(share) if share and outcome else None,
    )


def _mean_rating(row: Row, completion: dict[str, Any], field: str) -> float | None:
    aspects = object_in(row, completion.get("annotations") or {}, f"{field}.annotations")
    ratings = [_rating(aspect.get("Rating")) for aspect in aspects.values() if isinstance(aspect, dict)]
    known = [rating for rating in ratings if rating is not None]
    return sum(known) / len(known) if known else None


def _rating(value: Any) -> float | None:
    """A finite number, or a text that is one; None for N/A."""
    try:
        rating = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        return None
    return rating if math.isfinite(rating) else None
