"""Beside a paired difference in the report: what it could have found, what it rules out, and its value at equal length."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from charter.effects import adjusted_for_length, equivalence, minimum_detectable
from charter.metrics import COUNT, METRICS
from charter.stages.evaluate.settings import EvaluationSettings
from charter.statistics import Interval

Values = Sequence[float | None]


def margins_of(settings: EvaluationSettings) -> dict[str, float]:
    """The largest loss of each metric that counts as no worse, as the recipe declares it before the run."""
    margins = {name: measure.margin for name, measure in settings.measures.items() if measure.margin is not None}
    if settings.scorer is not None:
        margins |= {"over_refusal": settings.over_refusal_margin, "helpfulness": settings.helpfulness_margin}
    return margins


def effects_of(
    name: str, before: Values, after: Values, lengths: Sequence[Sequence[int]], clusters: Sequence[Hashable] | None,
    ci: Interval | None, margins: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Further keys of one contrast: `minimum_detectable`; `equivalence` where a margin is declared; `length_adjusted` of all but
    the counts, which are lengths themselves."""
    margin = margins.get(name)
    counted = name in METRICS and METRICS[name].source == COUNT
    adjusted = None if counted else adjusted_for_length(before, after, lengths[0], lengths[1], clusters)
    return {
        "minimum_detectable": minimum_detectable(ci),
        "equivalence": None if margin is None else asdict(equivalence(before, after, margin, clusters)),
        "length_adjusted": adjusted and {**asdict(adjusted), "includes_zero": adjusted.includes_zero},
    }
