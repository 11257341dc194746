"""Effects: what a paired comparison could have found, what it rules out, and how much of it goes with length.

Pure functions beside the intervals of :mod:`charter.statistics`, which says how unscored outcomes and clusters count.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from charter.statistics import Floats, Interval, cluster_sums, keep_scored, paired_difference

POWER = 0.8


def minimum_detectable(ci: Interval | None) -> float | None:
    """The smallest true difference that a comparison of this size and spread finds with probability ``POWER``: its interval then
    excludes 0. In the unit of ``ci``, a 95 % interval; None without an interval.

    (z of the level + z of the power) standard errors (Miller 2024, arXiv:2411.00640, section 5), the standard error read from the
    width of the interval, so that for shares it is above 0 where no row differs.
    """
    if ci is None:
        return None
    of_level, of_power = float(special.ndtri(0.975)), float(special.ndtri(POWER))
    return (of_level + of_power) / of_level * (ci[1] - ci[0]) / 2


def equivalent(ci: Interval | None, margin: float) -> bool:
    """Two one-sided tests (TOST; Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657): whether the interval lies inside
    −margin to +margin. The 90% interval tests at 5%. ``margin`` in the unit of ``ci``."""
    return ci is not None and bool(-margin < ci[0] and ci[1] < margin)


@dataclass(frozen=True)
class Equivalence:
    """Whether two sides differ by less than ``margin`` either way; ``ci`` is the 90% interval that decides, None if there is
    none."""

    margin: float
    ci: Interval | None
    equivalent: bool


def equivalence(
    a: Sequence[float | bool | None], b: Sequence[float | bool | None], margin: float, clusters: Sequence[Hashable] | None = None
) -> Equivalence:
    """The 90% interval of the paired difference, and whether the two are equivalent by it. An interval that includes 0 alone
    shows no equivalence."""
    ci = paired_difference(a, b, clusters, level=0.90).ci
    return Equivalence(margin, ci, equivalent(ci, margin))


@dataclass(frozen=True)
class Adjusted:
    """A paired difference at equal length. ``per_doubling``: its change where b's response is twice as long as a's."""

    difference: float | None
    ci: Interval | None
    per_doubling: float | None
    n: int
    method: str

    @property
    def includes_zero(self) -> bool:
        """True where 0 is inside the interval, and where there is no interval."""
        return self.ci is None or self.ci[0] <= 0 <= self.ci[1]


def adjusted_for_length(
    a: Sequence[float | bool | None], b: Sequence[float | bool | None], length_a: Sequence[float], length_b: Sequence[float],
    clusters: Sequence[Hashable] | None = None, level: float = 0.95,
) -> Adjusted:  # fmt: skip
    """mean(b) − mean(a) at equal length: least squares of the paired difference on log(length_b / length_a), its value at 0.

    The idea is that of length-controlled AlpacaEval (Dubois et al. 2024, arXiv:2404.04475), on paired outcomes and without a link
    function, so that raw and adjusted figures have one unit. The interval is that of the cluster jackknife (CR3; MacKinnon and
    White 1985, J. Econometrics 29:305) with Student's t at G − 2 degrees of freedom, never narrower than the unadjusted one: a
    jackknife of few rows without a differing pair has no width. Without an interval where all pairs differ in length by the same
    factor. Lengths count from 1.
    """
    raw = paired_difference(a, b, clusters, level)
    ratios = [math.log(max(y, 1) / max(x, 1)) for x, y in zip(length_a, length_b, strict=True)]
    (first, second, x), labels, _ = keep_scored([a, b, ratios], clusters)
    n = len(x)
    if n == 0 or raw.difference is None:
        return Adjusted(None, None, None, 0, "no pair scored on both sides")
    if not x.any():
        return Adjusted(raw.difference, raw.ci, None, n, "all pairs have equal lengths")
    y = second - first
    sums = np.array([cluster_sums(values, labels)[0] for values in (np.ones_like(x), x, x * x, y, x * y)])  # (5, G)
    total = sums.sum(axis=1)
    at_zero, slope = (float(value) for value in line_through(total))
    if math.isnan(at_zero):
        return Adjusted(None, None, None, n, "all pairs differ in length by the same factor")
    without = line_through(total[:, None] - sums)[0]  # (G,): without each cluster
    count = sums.shape[1]
    ci = None
    if count > 2 and raw.ci is not None and not np.isnan(without).any():
        error = math.sqrt((count - 1) / count * float(((without - at_zero) ** 2).sum()))
        half = float(special.stdtrit(count - 2, (1 + level) / 2)) * error
        low, high = raw.difference - raw.ci[0], raw.ci[1] - raw.difference
        ci = (at_zero - max(half, low), at_zero + max(half, high))
    method = "least squares on the log ratio of lengths, cluster jackknife"
    return Adjusted(at_zero, ci, slope * math.log(2), n, method if ci else f"{method}; too few pairs for an interval")


def line_through(sums: Floats) -> tuple[Floats, Floats]:
    """Value at 0 and slope of the least-squares line, from the sums of 1, x, x², y and xy: (5, …) to two of (…). A flat line
    where all x are 0, NaN where they are equal and not 0."""
    n, x, xx, y, xy = sums
    spread = n * xx - x * x
    with np.errstate(divide="ignore", invalid="ignore"):
        known = spread > 1e-9 * np.maximum(n * xx, 1e-300)
        slope = np.where(known, (n * xy - x * y) / spread, np.where(np.abs(xx) < 1e-12, 0.0, np.nan))
        return (y - slope * x) / n, slope
