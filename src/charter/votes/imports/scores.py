"""Collections that a judge rated: UltraFeedback's completions and the annotations of AlpacaEval."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from charter.reading.forms import LeftOut
from charter.votes.imports.formats import Rater
from charter.votes.imports.votes import NO_TEXT, UNKNOWN, Answer, Part, Unique, Vote, ranks_of_scores
from charter.votes.rankings import margin_of
from charter.votes.winners import NO_VERDICT, RANKS, first_share, outcome_of

UNRATED = "fewer than two completions with a rating on one scale"
OTHER_SCALE = "a completion without a rating on the scale of the others"
OVERALL = ("fine-grained_score", "overall_score")


def read_ultrafeedback(row: Part, rater: Rater, _: Unique) -> Iterator[Vote | LeftOut]:
    """``instruction`` and ``completions``, each with ``annotations`` by aspect (Cui et al. 2023). Completions are ranked by the
    mean of their aspects' ratings (1 to 5), which is what the authors advise since an error in overall_score was found; where
    fewer than two have one, by fine-grained_score, else by overall_score (1 to 10). Two scales are never compared."""
    prompt = row["instruction"].prompt("ultrafeedback")
    answers: list[Answer] = []
    rated: list[tuple[float | None, ...]] = []
    for completion in row["completions"]:
        if completion["response"].value is None:
            yield completion["response"].left_out(NO_TEXT)
            continue
        answers.append(Answer(completion["response"].text(), completion["model"].name() or UNKNOWN))
        rated.append((_mean_rating(completion["annotations"]), *(_rating(completion[name].value) for name in OVERALL)))
    scores = next((scale for scale in zip(*rated, strict=True) if sum(score is not None for score in scale) > 1), None)
    if scores is None:
        raise row["completions"].left_out(UNRATED)
    compared = [(answer, score) for answer, score in zip(answers, scores, strict=True) if score is not None]
    for scale in rated:
        if len(compared) < len(rated) and scale[0] is None and any(score is not None for score in scale):
            yield row["completions"].left_out(OTHER_SCALE)
    ranks = ranks_of_scores([score for _, score in compared])
    yield Vote(row=row.row, prompt=prompt, answers=tuple(answer for answer, _ in compared), ranks=ranks, rater=rater)


def read_alpaca_eval(row: Part, rater: Rater, _: Unique) -> Iterator[Vote | LeftOut]:
    """``instruction``, ``output_1`` and ``output_2`` with ``generator_1`` and ``generator_2``, and ``preference``: 1 for the
    first, 2 for the second, 1.5 or 0 for a tie; a number between is the soft label of an annotator that reads probabilities."""
    outcome = outcome_of(row.row)
    if outcome is None:
        raise row["preference"].left_out(NO_VERDICT)
    share = first_share(row.row)
    annotator = row["annotator"].name()
    yield Vote(
        row=row.row,
        prompt=row["instruction"].prompt("alpaca-eval"),
        answers=tuple(Answer(row[f"output_{n}"].text(), row[f"generator_{n}"].name() or UNKNOWN) for n in (1, 2)),
        ranks=RANKS[outcome],
        rater=Rater(annotator, rater.kind) if annotator else rater,
        kind="pair",
        margin=margin_of(share) if share and outcome else None,
    )


def _mean_rating(aspects: Part) -> float | None:
    ratings = [_rating(aspect.get("Rating")) for aspect in (aspects.fields() if aspects.value else {}).values()
               if isinstance(aspect, dict)]  # fmt: skip
    known = [rating for rating in ratings if rating is not None]
    return sum(known) / len(known) if known else None


def _rating(value: Any) -> float | None:
    """A finite number, or a text that is one; None for N/A."""
    try:
        rating = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        return None
    return rating if math.isfinite(rating) else None
