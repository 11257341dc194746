"""The judge gate: what a judge is worth on pairs whose answer is known, before it labels anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from charter.constitution.constitution import Constitution
from charter.judging.judge import Judge, labelled_comparisons
from charter.records import Pair
from charter.statistics import clustered_share, expected_calibration_error, fit_temperature


def judge_gate(
    judge: Judge, pairs: Sequence[Pair], constitution: Constitution, *, seed: int, batch_size: int
) -> dict[str, Any] | None:
    """Accuracy with an interval clustered by prompt, swap consistency, calibration and position bias (nats) of a judge.

    None where there is no pair to ask about. "No verdict" is counted apart and is never right or wrong.
    """
    comparisons = labelled_comparisons(pairs, constitution, seed)
    if not comparisons:
        return None
    preferences = [p for i in range(0, len(comparisons), batch_size) for p in judge(comparisons[i : i + batch_size])]
    signed: list[float | None] = [
        None if p.margin is None else p.margin if c.first.model == "chosen" else -p.margin
        for c, p in zip(comparisons, preferences, strict=True)
    ]
    clusters = [c.prompt.id for c in comparisons]
    right = [None if m is None else 0.5 if m == 0 else float(m > 0) for m in signed]
    estimate = clustered_share(right, clusters)
    with_verdict = [(c, p) for c, p in zip(comparisons, preferences, strict=True) if p.margin is not None]
    # The displayed first response is the chosen one by the draw of a coin, so the outcome is not always "yes".
    probability = [1 / (1 + math.exp(-max(min(p.margin or 0.0, 500.0), -500.0))) for _, p in with_verdict]
    outcome = [float(c.first.model == "chosen") for c, _ in with_verdict]
    calibration = expected_calibration_error(probability, outcome)
    consistent = [float((p.first_as_a > 0) == (p.first_as_b > 0)) for _, p in with_verdict]
    biases = [p.position_bias for _, p in with_verdict]
    groups = {}
    for principle in sorted({c.principle for c in comparisons}):
        own = [(r, k) for r, k, c in zip(right, clusters, comparisons, strict=True) if c.principle == principle]
        part = clustered_share([r for r, _ in own], [k for _, k in own])
        groups[principle] = {"accuracy": part.value, "ci": part.ci, "n": part.n}
    single = [float(p.first_as_a > 0) == y for (_, p), y in zip(with_verdict, outcome, strict=True)]
    n = len(with_verdict)
    return {
        "id": getattr(judge, "name", "judge"),
        "role": "feedback",
        "n": estimate.n,
        "n_unscored": estimate.n_unscored,
        "verdict_rate": n / len(comparisons),
        "accuracy": estimate.value,
        "ci": estimate.ci,
        "single_order_accuracy": sum(single) / n if n else None,
        "swap_consistency": sum(consistent) / n if n else None,
        "position_bias_nats": sum(biases) / n if n else None,
        "same_position_share": 1 - sum(consistent) / n if n else None,
        "ece": calibration.ece,
        "reliability": [dict(row) for row in calibration.rows],
        "fitted_temperature": fit_temperature([p.margin or 0.0 for _, p in with_verdict], outcome) if n else None,
        "groups": groups,
    }
