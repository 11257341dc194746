"""The judge gate: how good a judge is on pairs with known answers, measured before it labels anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from charter.constitution.constitution import Constitution
from charter.judging.judge import Comparison, Judge, correctness, labelled_comparisons
from charter.judging.priorities import margin_noise
from charter.records import Pair
from charter.run.hashes import derive_seed
from charter.statistics import clustered_share, expected_calibration_error

J = TypeVar("J", bound=Judge)


def better_judge(
    judges: Mapping[str, J], pairs: Sequence[Pair], constitution: Constitution, *, seed: int, batch_size: int
) -> tuple[J, dict[str, Any] | None]:
    """The judge that is right more often on one half of the pairs, the first of equals, and its card on the other half, which
    also has the accuracy of every judge by ``protocols``. A missing verdict counts one half here: a judge that is right on the
    few pairs that it reads is not the better one. The halves share no prompt. With one judge its card on all pairs."""
    first, *others = judges.values()
    if not others:
        return first, judge_gate(first, pairs, constitution, seed=seed, batch_size=batch_size)
    halves: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        halves[derive_seed(seed, "half", pair.prompt.id) % 2].append(pair)
    cards = [
        {name: judge_gate(judge, half, constitution, seed=seed, batch_size=batch_size) for name, judge in judges.items()}
        for half in halves
    ]
    tried, measured = ({name: card for name, card in by_name.items() if card is not None} for by_name in cards)
    if not tried or not measured:
        return first, judge_gate(first, pairs, constitution, seed=seed, batch_size=batch_size)
    best = max(tried, key=lambda name: above_chance(tried[name]))
    protocols = [
        {"protocol": name, "chosen": name == best, "accuracy_where_chosen": tried[name]["accuracy"],
         **{key: measured[name][key] for key in ("accuracy", "ci", "n")}}
        for name in tried
    ]  # fmt: skip
    return judges[best], {**measured[best], "protocols": protocols}


def above_chance(card: Mapping[str, Any]) -> float:
    """How far a judge is above one half, a missing verdict being one half."""
    return 0.0 if card["accuracy"] is None else (card["accuracy"] - 0.5) * card["verdict_rate"]


def judge_gate(
    judge: Judge, pairs: Sequence[Pair], constitution: Constitution, *, seed: int, batch_size: int
) -> dict[str, Any] | None:
    """Accuracy with an interval clustered by prompt, swap consistency, calibration and position bias (nats) of a judge.

    None if there are no pairs. A missing verdict is counted apart and is neither right nor wrong; so are a pair to which no
    principle applies, and a tie.
    """
    comparisons = labelled_comparisons(pairs, constitution, seed)
    if not comparisons:
        return None
    preferences = [p for i in range(0, len(comparisons), batch_size) for p in judge(comparisons[i : i + batch_size])]
    right = [correctness(c, p) for c, p in zip(comparisons, preferences, strict=True)]
    estimate = clustered_share(right, [c.prompt.id for c in comparisons])
    with_verdict = [(c, p) for c, p in zip(comparisons, preferences, strict=True) if p.margin is not None]
    # A coin decides whether the chosen response is shown first, so the outcome is not always "yes".
    probability = [1 / (1 + math.exp(-max(min(p.margin or 0.0, 500.0), -500.0))) for _, p in with_verdict]
    outcome = [float(c.first.model == "chosen") for c, _ in with_verdict]
    calibration = expected_calibration_error(probability, outcome) if with_verdict else None
    consistent = [float((p.first_as_a > 0) == (p.first_as_b > 0)) for _, p in with_verdict]
    single = [float(p.first_as_a > 0) == y for (_, p), y in zip(with_verdict, outcome, strict=True)]
    n, ties = len(with_verdict), sum(pair.weight == 0.5 for pair in pairs)
    return {
        "id": getattr(judge, "name", "judge"),
        "protocol": getattr(judge, "protocol", ""),
        "role": "feedback",
        "n": estimate.n,
        "n_unscored": estimate.n_unscored,
        "n_ties": ties,
        "n_without_principle": len(pairs) - ties - len(comparisons),
        "verdict_rate": n / len(comparisons),
        "accuracy": estimate.value,
        "ci": estimate.ci,
        "single_order_accuracy": mean_or_none(single),
        "swap_consistency": mean_or_none(consistent),
        "position_bias_nats": mean_or_none([p.position_bias for _, p in with_verdict]),
        "same_position_share": 1 - sum(consistent) / n if n else None,
        "ece": calibration and calibration.ece,
        "reliability": [dict(row) for row in calibration.rows] if calibration else [],
        "fitted_temperature": margin_noise(comparisons, preferences),
        "groups": accuracy_by_principle(comparisons, right),
    }


def mean_or_none(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def accuracy_by_principle(comparisons: Sequence[Comparison], right: Sequence[float | None]) -> dict[str, Any]:
    """Accuracy, interval and number of pairs for each principle."""
    groups = {}
    for principle in sorted({c.principle.id for c in comparisons}):
        rows = [(r, c.prompt.id) for r, c in zip(right, comparisons, strict=True) if c.principle.id == principle]
        share = clustered_share([r for r, _ in rows], [prompt for _, prompt in rows])
        groups[principle] = {"accuracy": share.value, "ci": share.ci, "n": share.n}
    return groups
