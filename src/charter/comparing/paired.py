"""One metric of two models on the same items: difference, interval, test, flips, and what such a comparison could have found."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from charter.statistics import Interval, design_effect, holm, is_scored, mcnemar, paired_difference

Correction = Literal["holm", "bh", "none"]
CORRECTIONS: tuple[Correction, ...] = ("holm", "bh", "none")
ALPHA, LEVEL, POWER = 0.05, 0.95, 0.8


def benjamini_hochberg(ps: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values that control the share of false discoveries (Benjamini and Hochberg 1995), in the order given; None stays
    None."""
    order = sorted(((p, i) for i, p in enumerate(ps) if p is not None and is_scored(p)), reverse=True)
    adjusted: list[float | None] = [None] * len(ps)
    smallest = 1.0
    for rank, (p, i) in zip(range(len(order), 0, -1), order, strict=True):
        smallest = min(smallest, p * len(order) / rank)
        adjusted[i] = smallest
    return adjusted


def corrected(ps: Sequence[float | None], how: Correction) -> list[float | None]:
    """The p-values of one family, corrected for their number."""
    return list(ps) if how == "none" else holm(ps) if how == "holm" else benjamini_hochberg(ps)


def equivalence_level(family: int, how: Correction) -> float:
    """The level of the interval that shows equivalence: 90%, and with Holm's correction wider by Bonferroni's, so that a
    family of so many comparisons with a margin has a false equivalence with a probability of at most 5%."""
    return 1 - 2 * ALPHA / (max(family, 1) if how == "holm" else 1)


@dataclass(frozen=True)
class Paired:
    """From a to b on the items that both have scored. ``only_a``, ``only_b``: positions (of the N given rows) at which the
    score is 1 only there, None unless all scores are 0 or 1; ``mean_a``, ``mean_b`` over the same ``n`` rows."""

    binary: bool
    n: int
    n_unscored: int
    n_clusters: int
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    ci: Interval | None
    equivalence_ci: Interval | None
    p: float | None
    mcnemar_p: float | None
    design_effect: float
    only_a: list[int] | None
    only_b: list[int] | None
    method: str


def pair(
    a: Sequence[float | None], b: Sequence[float | None], clusters: Sequence[Hashable] | None, equivalence_at: float | None = None
) -> Paired:
    """Compare two columns over the same rows. ``clusters``: a label per row where rows belong together, else None;
    ``equivalence_at``: the level of ``equivalence_ci``, None to leave it out.

    Scores of which each is 0 or 1 get Newcombe's interval and McNemar's exact test, all others the t interval; with clusters the
    effective sample size and the cluster-robust t test (``charter.statistics.paired_difference``).
    """
    rows = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x is not None and y is not None]
    first, second = np.array([a[i] for i in rows], dtype=float), np.array([b[i] for i in rows], dtype=float)
    labels = None if clusters is None else [clusters[i] for i in rows]
    if labels is not None and len(set(labels)) == len(labels):
        labels = None
    binary = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
    sides: tuple[list[float], list[float]] = (first.tolist(), second.tolist())
    if binary:
        sides = (first.astype(bool).tolist(), second.astype(bool).tolist())
    result = paired_difference(*sides, labels, LEVEL)
    narrow = None if equivalence_at is None else paired_difference(*sides, labels, equivalence_at)
    changes = second - first
    only_a, only_b = ([rows[i] for i in np.flatnonzero(changes * sign > 0)] for sign in (-1, 1))
    return Paired(
        binary=binary,
        n=len(rows),
        n_unscored=len(a) - len(rows),
        n_clusters=len(set(labels)) if labels is not None else len(rows),
        mean_a=float(first.mean()) if rows else None,
        mean_b=float(second.mean()) if rows else None,
        difference=result.difference,
        ci=result.ci,
        equivalence_ci=narrow.ci if narrow else None,
        p=result.p,
        mcnemar_p=mcnemar(len(only_a), len(only_b)) if binary and rows else None,
        design_effect=design_effect(changes.tolist(), labels) if rows else 1.0,
        only_a=only_a if binary else None,
        only_b=only_b if binary else None,
        method=result.method,
    )
