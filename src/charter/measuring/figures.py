"""Figures of models on test sets: the value of every metric with its interval, overall and by the set's own classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from charter.measuring.asking import Measured
from charter.measuring.values import BETTER, rules_of, section_weights, ties_score
from charter.reading.sets.rankings import SECTIONS
from charter.records import EvalResult
from charter.statistics import average, clustered_share, wilson

COUNTED, RULE = "counted", "rule: "
SHARES = frozenset({"harmful_compliance", "red_team_refusal", "over_refusal", "helpfulness", "honesty",
                    "engaged_refusal", "partial_refusal", "accuracy", "accuracy_ambiguous", "accuracy_disambiguated", "mc1",
                    "strongreject_score", "cut_off", "beyond_context"})  # fmt: skip
BIASES = frozenset({"bias_ambiguous", "bias_disambiguated"})


def measure_of(metric: str) -> str:
    """The measure that a metric is made of: ``toxicity`` of ``set/expected_max_toxicity``."""
    return metric.rpartition("/")[2].removeprefix("expected_max_").removeprefix("any_")


def figures_of(measured: Measured, scorers: Mapping[str, str], shares: Collection[str]) -> list[EvalResult]:
    """Every figure of a model on a set: overall, then by group. ``scorers``: who says what an answer is, by measure, "" for the
    scorer; ``shares``: the metrics of which every model's values are 0 or 1."""
    given = {"options": "log-probabilities", "rewards": "reward model"}.get(measured.protocol)
    names = list(dict.fromkeys(name for row in measured.rows for name in row.values))
    groups = sorted({row.group for row in measured.rows if row.group})
    weighted = (
        {f"{measured.test_set.name}/{name}" for name in ("score", *SECTIONS)}
        if measured.test_set.kind == "rewardbench"
        else set()
    )
    figures = []
    for name in names:
        if name in weighted:
            figures.append(weighted_figure(measured, name, given or ""))
            continue
        source = given or scorers.get(measure_of(name), scorers[""])
        for group in (None, *groups) if len(groups) > 1 else (None,):
            if rows := [row for row in measured.rows if name in row.values and group in (None, row.group)]:
                values, clusters = [row.values[name] for row in rows], [row.cluster for row in rows]
                figures.append(figure(name, measured.model, values, clusters, source, group, share=name in shares))
    for name in measured.rows[0].counts:
        counts, clusters = [row.counts[name] for row in measured.rows], [row.cluster for row in measured.rows]
        figures.append(figure(f"{measured.test_set.name}/{name}", measured.model, counts, clusters, COUNTED, None))
    return figures + tie_figures(measured, given or "")


def shares_of(measured: Sequence[Measured]) -> set[str]:
    """The metrics of users of which all values of all models are 0 or 1."""
    columns: dict[str, list[float]] = {}
    for row in (row for part in measured for row in part.rows):
        for name, value in row.values.items():
            columns.setdefault(name, []).extend([] if value is None else [value])
    return {name for name, values in columns.items() if name.rpartition("/")[2] not in BETTER and set(values) <= {0.0, 1.0}}


def figure(
    name: str, model: str, values: Sequence[float | None], clusters: Sequence[str | None], scorer: str, group: str | None, *,
    share: bool = False,
) -> EvalResult:  # fmt: skip
    """Shares with Wilson's interval, other means with Student's t, both by clusters where these repeat. A bias is 2 share − 1."""
    short = name.rpartition("/")[2]
    labels: dict[str, Any] = {"name": name, "arm": model, "scorer": scorer, "group": group}
    known = clusters if len(set(clusters)) < len(clusters) else None
    if not share and short not in SHARES | BIASES:
        return average(values=values, unit="mean", clusters=known, **labels)
    scale, shift = (2, -1) if short in BIASES else (1, 0)
    estimate = clustered_share([None if value is None else (value - shift) / scale for value in values], known)
    return EvalResult(
        n=estimate.n, n_unscored=estimate.n_unscored, method=estimate.method, unit="mean" if short in BIASES else "share",
        value=None if estimate.value is None else scale * estimate.value + shift,
        ci=None if estimate.ci is None else (scale * estimate.ci[0] + shift, scale * estimate.ci[1] + shift), **labels,
    )  # fmt: skip


def weighted_figure(measured: Measured, name: str, scorer: str) -> EvalResult:
    """A section of RewardBench, or the mean of its sections, with the published weights: Wilson's interval at the effective size
    of the weights (Kish 1965)."""
    weights = section_weights(measured.items)[name.rpartition("/")[2]]
    right = [row.values[f"{measured.test_set.name}/accuracy"] for row in measured.rows]
    kept = [(weight, value) for weight, value in zip(weights, right, strict=True) if weight and value is not None]
    total, n_unscored = sum(weight for weight, _ in kept), sum(bool(weight) for weight in weights) - len(kept)
    labels: dict[str, Any] = {
        "name": name,
        "arm": measured.model,
        "scorer": scorer,
        "unit": "share",
        "n": len(kept),
        "n_unscored": n_unscored,
    }
    if not kept:
        return EvalResult(**labels, value=None, ci=None, method="nothing scored")
    value = sum(weight * value for weight, value in kept) / total
    effective = total**2 / sum(weight**2 for weight, _ in kept)
    return EvalResult(**labels, value=value, ci=wilson(min(value * effective, effective), effective),
                      method="published weights, Wilson at their effective sample size")  # fmt: skip


def tie_figures(measured: Measured, scorer: str) -> list[EvalResult]:
    """Ties of RewardBench 2, and the mean of its six subsets, where the set has them."""
    if measured.test_set.kind != "rewardbench_2":
        return []
    prefix = measured.test_set.name
    ties = ties_score(measured.items, [row.numbers for row in measured.rows])
    subsets: dict[str, list[float]] = {}
    for row in measured.rows:
        value = row.values.get(f"{prefix}/accuracy")
        if value is not None:
            subsets.setdefault(str(row.group), []).append(value)
    labels: dict[str, Any] = {"arm": measured.model, "scorer": scorer, "unit": "share", "ci": None}
    n_ties = sum(f"{prefix}/accuracy" not in row.values for row in measured.rows)
    unread = [f"{prefix}/accuracy" not in row.values for row in measured.rows if None in row.numbers]  # True: of Ties
    figures = [EvalResult(**labels, name=f"{prefix}/ties", n=n_ties - sum(unread), n_unscored=sum(unread), value=ties,
                          method="published formula, no interval")]  # fmt: skip
    means = [sum(values) / len(values) for values in subsets.values()]
    if ties is not None and len(means) == 5:
        figures.append(EvalResult(**labels, name=f"{prefix}/score", n=len(measured.rows) - len(unread), n_unscored=len(unread),
                                  value=(sum(means) + ties) / 6,
                                  method="mean of the six subsets, no interval"))  # fmt: skip
    return figures if n_ties else []


def rule_figures(measured: Measured) -> list[EvalResult]:
    """What rules that read nothing but lengths or refusal words reach on a set of pairs; those that decide no pair are left
    out."""
    clusters = [row.cluster for row in measured.rows]
    return [
        figure(f"{measured.test_set.name}/accuracy", f"{RULE}{name}", hits, clusters, "lengths or refusal words", None)
        for name, hits in rules_of(measured.items).items()
        if set(hits) - {0.5, None}
    ]
