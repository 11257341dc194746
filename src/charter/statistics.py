"""Intervals, paired differences and calibration: pure functions from numbers to numbers with their doubt.

Every interval is at 95 % unless ``level`` says otherwise. An outcome that nobody could score is ``None`` or NaN: it
never counts as a success, nor as a failure; functions leave it out and say how many they left out. Samples of one
prompt are not independent, so callers pass ``clusters``, one label per value (usually the prompt id), and the interval
is that of the clusters (Miller 2024, arXiv:2411.00640).

Means use cluster-robust standard errors with Student's t at G − 1 degrees of freedom (G clusters; fewer where their sizes
differ), not the percentile bootstrap: with few prompts the bootstrap is too narrow (10 clusters of normal data: it covers 89 %,
the t interval 95 %), and t needs no seed. Proportions use score intervals (Wilson; Newcombe for paired differences), because
the others collapse to zero width exactly where it matters: when no harm was seen in n answers.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special  # scipy.stats takes a second to import: only where it is needed

from charter.records import EvalResult

Floats = NDArray[np.float64]
Interval = tuple[float, float]


def is_scored(value: float | None) -> bool:
    """False for None and NaN, which mean unscored."""
    return value is not None and not math.isnan(value)


def wilson(k: float, n: float, level: float = 0.95) -> Interval:
    """Score interval of a proportion, k successes in n trials (Wilson 1927).

    Zero events still have an upper bound: 0 of 30 gives 11.4 %, 0 of 250 gives 1.5 %. ``n`` may be an effective sample
    size. ValueError unless 0 <= k <= n and n > 0.
    """
    if not (n > 0 and 0 <= k <= n):
        raise ValueError(f"k={k} of n={n} is not a proportion; needs 0 <= k <= n and n > 0")
    z = float(special.ndtri((1 + level) / 2))
    p = k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (0.0 if k == 0 else max(0.0, middle - half)), (1.0 if k == n else min(1.0, middle + half))


@dataclass(frozen=True)
class Estimate:
    """A mean or a proportion over the ``n`` scored values; ``value`` is None if there are none, ``ci`` is None if
    fewer than two clusters leave nothing to estimate a spread from."""

    value: float | None
    ci: Interval | None
    n: int
    n_unscored: int
    n_clusters: int
    method: str


@dataclass(frozen=True)
class PairedDifference:
    """Mean of b minus mean of a over the ``n`` pairs in which both are scored.

    ``discordant`` (booleans only) counts the pairs that are true only in a and only in b; ``mcnemar_p`` is the exact
    two-sided McNemar test on them, which knows nothing of clusters. ``p`` is that test without clusters and the
    cluster-robust t test otherwise. Where interval and p disagree at the edge, the interval decides.
    """

    difference: float | None
    ci: Interval | None
    n: int
    n_unscored: int
    p: float | None
    method: str
    discordant: tuple[int, int] | None = None
    mcnemar_p: float | None = None

    @property
    def includes_zero(self) -> bool:
        """True where 0 is inside the interval, and where there is no interval: then nothing rules it out."""
        return self.ci is None or self.ci[0] <= 0 <= self.ci[1]


def cluster_sums(values: Floats, clusters: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """Sum and size of each cluster, (G,) each; without clusters every value is its own."""
    if clusters is None:
        return values, np.ones_like(values)
    number: dict[Hashable, int] = {}
    index = np.array([number.setdefault(label, len(number)) for label in clusters], dtype=np.intp)
    return np.bincount(index, weights=values).astype(np.float64), np.bincount(index).astype(np.float64)


def _cluster_error(sums: Floats, sizes: Floats) -> tuple[float, float]:
    """Cluster-robust standard error of the mean and its degrees of freedom; needs two clusters.

    CR2 with the degrees of freedom of Bell and McCaffrey (2002, Survey Methodology 28:169). Clusters of equal size have the
    G/(G − 1) correction and G − 1 degrees of freedom; the more sizes differ, the fewer. They depend on a guess of how alike
    the values of a cluster are: correlated by one half, since with Bell and McCaffrey's 0 the interval of 25 unequal clusters
    covers 94.0 %.
    """
    total = sizes.sum()
    shares = sizes / total
    residuals = sums - sums.sum() * shares
    weights = 1 / (1 - shares)
    spread = sizes * (1 + (sizes - 1) / 2)  # variances of the sums
    whole = spread.sum()
    # the covariance of residuals g and k is v_g [g = k] − f_g v_k − f_k v_g + f_g f_k V: its trace and its sum of squares
    diagonal = weights * (spread * (1 - 2 * shares) + shares**2 * whole)
    vv, ff, fv = (float((weights * product).sum()) for product in (spread**2, shares**2, shares * spread))
    products = 2 * vv * ff + (whole * ff) ** 2 + 2 * fv**2 - 4 * whole * ff * fv
    products -= float(((weights * (2 * shares * spread - shares**2 * whole)) ** 2).sum())
    freedom = float(diagonal.sum() ** 2 / (products + (diagonal**2).sum()))
    return float(math.sqrt(np.sum(weights * residuals**2)) / total), max(1.0, freedom)


def keep_scored(
    columns: Sequence[Sequence[float | None]], clusters: Sequence[Hashable] | None
) -> tuple[list[Floats], list[Hashable] | None, int]:
    """The rows in which every column is scored, their clusters, and how many rows were left out."""
    length = len(columns[0])
    if any(len(column) != length for column in columns) or (clusters is not None and len(clusters) != length):
        raise ValueError("values and clusters differ in length; give one cluster label per value")
    table = np.array([np.array(column, dtype=np.float64) for column in columns])  # None becomes NaN
    scored = ~np.isnan(table).any(axis=0)
    kept = list(table[:, scored])
    if not all(np.isfinite(column).all() for column in kept):
        raise ValueError("a value is infinite; find out why before averaging it, or pass None for unscored")
    labels = None if clusters is None else [label for label, keep in zip(clusters, scored.tolist(), strict=True) if keep]
    return kept, labels, length - int(scored.sum())


def mean_interval(values: Sequence[float | None], clusters: Sequence[Hashable] | None = None, level: float = 0.95) -> Estimate:
    """Mean with a cluster-robust t interval (Miller 2024, clustered standard errors)."""
    (scored,), labels, n_unscored = keep_scored([values], clusters)
    n = len(scored)
    if n == 0:
        return Estimate(None, None, 0, n_unscored, 0, "nothing scored")
    sums, sizes = cluster_sums(scored, labels)
    method = "t" if len(sums) == n else "cluster-robust t"
    mean = float(scored.mean())
    if len(sums) < 2:
        return Estimate(mean, None, n, n_unscored, len(sums), "one cluster, no interval")
    error, freedom = _cluster_error(sums, sizes)
    half = float(special.stdtrit(freedom, (1 + level) / 2)) * error
    return Estimate(mean, (mean - half, mean + half), n, n_unscored, len(sums), method)


def _effective_size(values: Floats, sums: Floats, sizes: Floats, level: float | None) -> float:
    """How many independent values these clustered ones are worth (Korn and Graubard 1998, with their t adjustment for ``level``).

    Never more than n. Without ``level`` there is no t adjustment: Newcombe's interval of a difference is wide enough without it,
    and with it covers 99.6 % at 12 pairs in 6 clusters. With 0 events nothing spreads, so no design effect can be estimated: then
    the number of clusters.
    """
    n, count = len(values), len(sums)
    if count == n:
        return float(n)
    independent = float(values.var(ddof=1)) / n
    size = float(count)
    if count > 1 and independent > 0:
        clustered, freedom = _cluster_error(sums, sizes)
        size = n if clustered == 0 else n * min(1.0, independent / clustered**2)
        if level is not None:
            quantile = (1 + level) / 2
            size *= float(special.ndtri(quantile) / special.stdtrit(freedom, quantile)) ** 2
    return size


def design_effect(values: Sequence[float], clusters: Sequence[Hashable] | None) -> float:
    """How much larger the clusters make the variance of a mean (Kish 1965): 1 for independent values, the cluster's size for
    copies. 1 where fewer than two clusters or no spread leave nothing to estimate it from. ValueError if an outcome is
    infinite."""
    (scored,), labels, _ = keep_scored([values], clusters)
    sums, sizes = cluster_sums(scored, labels)
    if len(sums) < 2 or len(sums) == len(scored) or np.ptp(scored) == 0:
        return 1.0
    return float(_cluster_error(sums, sizes)[0] ** 2 / (scored.var(ddof=1) / len(scored)))


def clustered_proportion(
    successes: Sequence[bool | None], clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Estimate:
    """Share of successes with Wilson's interval, at the effective sample size where clusters repeat.

    ValueError if an outcome is neither true, false nor unscored.
    """
    if not all(outcome in (0, 1) for outcome in successes if is_scored(outcome)):
        raise ValueError("an outcome is neither true, false nor None; use average() for graded scores")
    return clustered_share(successes, clusters, level)


def clustered_share(values: Sequence[float | None], clusters: Sequence[Hashable] | None = None, level: float = 0.95) -> Estimate:
    """Mean of values from 0 to 1, such as a tie's half among hits and misses, with Wilson's interval as above: it stays between
    0 and 1, has a width where all values are equal, and is too wide rather than too narrow, since no such values vary more than
    p(1 − p). ValueError if a value is outside."""
    (scored,), labels, n_unscored = keep_scored([values], clusters)
    if not ((scored >= 0) & (scored <= 1)).all():
        raise ValueError("a value is not between 0 and 1; use mean_interval() for it")
    n = len(scored)
    if n == 0:
        return Estimate(None, None, 0, n_unscored, 0, "nothing scored")
    sums, sizes = cluster_sums(scored, labels)
    value = float(scored.mean())
    effective = _effective_size(scored, sums, sizes, level)
    # value * effective may miss 0 and effective by a rounding error only where value is neither 0 nor 1
    interval = wilson(min(value * effective, effective), effective, level)
    method = "Wilson" if len(sums) == n else "Wilson at the effective sample size of the clusters"
    return Estimate(value, interval, n, n_unscored, len(sums), method)


def quantile(
    values: Sequence[float | None], q: float, clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Estimate:
    """The q-quantile of the scored values, the smallest one that a share q of them does not exceed, with the interval of Woodruff
    (1952, JASA 47:635): the values at the ends of Wilson's interval of that share, at the effective size of the clusters."""
    (scored,), labels, n_unscored = keep_scored([values], clusters)
    n = len(scored)
    if n == 0:
        return Estimate(None, None, 0, n_unscored, 0, "nothing scored")
    ordered = np.sort(scored)

    def at(share: float) -> float:
        return float(ordered[min(max(math.ceil(share * n - 1e-9) - 1, 0), n - 1)])

    below = (scored <= at(q)).astype(np.float64)
    sums, sizes = cluster_sums(below, labels)
    effective = _effective_size(below, sums, sizes, level)
    low, high = wilson(q * effective, effective, level)
    return Estimate(at(q), (at(low), at(high)), n, n_unscored, len(sums), "order statistics at Wilson's interval of the share")


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar p for the two discordant counts: a fair coin tossed only_a + only_b times."""
    return min(1.0, 2 * float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def _newcombe(a: Floats, b: Floats, effective: float, level: float) -> Interval:
    """Interval for mean(b) − mean(a) of paired booleans (Newcombe 1998, Stat. Med. 17:2635, method 10)."""
    scale = effective / len(a)
    both, neither = float((a * b).sum()) * scale, float(((1 - a) * (1 - b)).sum()) * scale
    only_b, only_a = float(((1 - a) * b).sum()) * scale, float((a * (1 - b)).sum()) * scale
    margins = (both + only_b) * (only_a + neither) * (both + only_a) * (only_b + neither)
    phi = 0.0
    if margins > 0:
        product = both * neither - only_b * only_a
        phi = (max(product - effective / 2, 0.0) if product > 0 else product) / math.sqrt(margins)
    share_a, share_b = float(a.mean()), float(b.mean())
    low_a, high_a = wilson(min(share_a * effective, effective), effective, level)
    low_b, high_b = wilson(min(share_b * effective, effective), effective, level)

    def reach(first: float, second: float) -> float:
        return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))

    difference = share_b - share_a
    return (
        max(-1.0, difference - reach(share_b - low_b, high_a - share_a)),
        min(1.0, difference + reach(high_b - share_b, share_a - low_a)),
    )


def paired_difference(
    a: Sequence[float | bool | None],
    b: Sequence[float | bool | None],
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> PairedDifference:
    """From a to b on the same rows: mean(b) − mean(a), so a fall is negative. A pair with a side unscored is left out.

    Booleans get Newcombe's interval (at the effective sample size where clusters repeat) and McNemar's test; numbers
    get the cluster-robust t interval and test. 0/1 given as int or float count as numbers.
    """
    binary = all(isinstance(v, bool | np.bool_) for column in (a, b) for v in column if is_scored(v))
    (first, second), labels, n_unscored = keep_scored([a, b], clusters)
    n = len(first)
    if n == 0:
        return PairedDifference(None, None, 0, n_unscored, None, "no pair scored on both sides")
    differences = second - first
    difference = float(differences.mean())
    sums, sizes = cluster_sums(differences, labels)
    count = len(sums)
    p = None if count < 2 else _paired_p(difference, sums, sizes)
    if not binary:
        estimate = mean_interval(list(differences), labels, level)
        return PairedDifference(difference, estimate.ci, n, n_unscored, p, f"paired {estimate.method}")
    only_a, only_b = int((differences < 0).sum()), int((differences > 0).sum())
    exact = mcnemar(only_a, only_b)
    interval = _newcombe(first, second, _effective_size(differences, sums, sizes, None), level)
    if count == n:
        return PairedDifference(difference, interval, n, n_unscored, exact, "Newcombe, exact McNemar", (only_a, only_b), exact)
    method = "Newcombe at the effective sample size of the clusters, cluster-robust t test"
    return PairedDifference(difference, interval, n, n_unscored, p, method, (only_a, only_b), exact)


def fall_from_peak(peak: Sequence[float | None], now: Sequence[float | None], n_points: int) -> PairedDifference:
    """From the peak of a curve of ``n_points`` points to another one, prompt by prompt. The highest of many noisy points is
    too high, so the interval has the level at which none of ``n_points`` - 1 comparisons errs in 95% of curves (Bonferroni)."""
    return paired_difference(peak, now, level=1 - 0.05 / max(n_points - 1, 1))


def _paired_p(difference: float, sums: Floats, sizes: Floats) -> float:
    """Two-sided p of the cluster-robust t test; where all clusters agree exactly, of the sign test over them."""
    error, freedom = _cluster_error(sums, sizes)
    if error < 1e-12 * max(1.0, abs(difference)):
        return 1.0 if difference == 0 else float(2 * 0.5 ** len(sums))
    return float(2 * special.stdtr(freedom, -abs(difference) / error))


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error, the table behind it, and ``floor``: the error that a perfectly calibrated judge with
    the same probabilities would show at this n, on average. An error near the floor does not show miscalibration.
    """

    ece: float
    floor: float
    rows: tuple[dict[str, float], ...]  # p: mean probability, observed: share that came true, n


def expected_calibration_error(p: Sequence[float], y: Sequence[float], bins: int = 10, seed: int = 0) -> Calibration:
    """Mean |observed − predicted| over equal-mass bins (Nixon et al. 2019, arXiv:1904.01685), weighted by bin size.

    p: probabilities, y: outcomes in [0, 1], same length. Equal probabilities share a bin, so that the order of rows
    does not matter. ECE is biased upwards at small n; ``floor`` (200 simulated outcomes) says by how much, which a
    bootstrap interval of a biased number would not. ValueError on empty or unequal input or p outside [0, 1].
    """
    predicted, outcomes = np.asarray(p, dtype=float), np.asarray(y, dtype=float)
    n = len(predicted)
    if n == 0 or predicted.shape != outcomes.shape or bins < 1:
        raise ValueError(f"{n} probabilities, {len(outcomes)} outcomes, {bins} bins: needs as many of both and a bin")
    if not ((predicted >= 0) & (predicted <= 1)).all() or not ((outcomes >= 0) & (outcomes <= 1)).all():
        raise ValueError("a probability or an outcome is outside [0, 1]")
    rank = np.searchsorted(np.sort(predicted), predicted, side="left")
    _, member = np.unique(rank * bins // n, return_inverse=True)
    size = np.bincount(member).astype(float)
    mean_p = np.bincount(member, weights=predicted) / size

    def error(result: Floats) -> float:
        return float(np.sum(np.abs(np.bincount(member, weights=result) / size - mean_p) * size) / n)

    rng = np.random.default_rng(seed)
    floor = float(np.mean([error((rng.random(n) < predicted).astype(float)) for _ in range(200)]))
    observed = np.bincount(member, weights=outcomes) / size
    rows = tuple(
        {"p": float(mp), "observed": float(seen), "n": int(count)} for mp, seen, count in zip(mean_p, observed, size, strict=True)
    )
    return Calibration(error(outcomes), floor, rows)


def fit_temperature(logits: Sequence[float], labels: Sequence[float]) -> float:
    """The T > 0 that minimises the negative log-likelihood of sigmoid(logit / T) (Guo et al. 2017, arXiv:1706.04599).

    logits in nats, labels in [0, 1], same length. Kept within [0.01, 100]: the lower end means the logits separate the
    labels perfectly, the upper end that they say nothing or the opposite.
    """
    x, target = np.asarray(logits, dtype=float), np.asarray(labels, dtype=float)
    if len(x) == 0 or x.shape != target.shape:
        raise ValueError(f"{len(x)} logits and {len(target)} labels: needs as many of both, at least one")

    def slope(beta: float) -> float:  # derivative of the loss in beta = 1/T; it only rises, because the loss is convex
        return float(np.sum(x * (special.expit(beta * x) - target)))

    coldest, hottest = 100.0, 0.01
    if slope(hottest) >= 0:
        return 1 / hottest
    if slope(coldest) <= 0:
        return 1 / coldest
    from scipy import optimize

    return float(1 / optimize.brentq(slope, hottest, coldest))


def spearman(x: Sequence[float | None], y: Sequence[float | None]) -> float | None:
    """Rank correlation over the rows scored in both, in [−1, 1]; None if a side is constant or rows are too few."""
    (first, second), _, _ = keep_scored([x, y], None)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    from scipy import stats

    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])


def distinct_pairs(texts: Sequence[str]) -> float | None:
    """distinct-2 of a set of texts: different pairs of neighbouring words over all of them (Li et al. 2016, arXiv:1510.03055,
    section 5); None below one pair. Low where texts repeat themselves or each other. It falls as the set grows, so it compares
    sets of one size only."""
    pairs = [pair for text in texts for pair in pairwise(text.split())]
    return len(set(pairs)) / len(pairs) if pairs else None


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values that control the family-wise error (Holm 1979), in the order given; None stays None."""
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None and is_scored(p))
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = largest
    return adjusted


TREND_STEPS = 20


@dataclass(frozen=True)
class Trend:
    """Slope of a curve in standard errors, and how many of them it takes to call the curve rising."""

    slope: float
    threshold: float

    @property
    def rises(self) -> bool:
        return self.slope > self.threshold


def trend(values: Sequence[float | None]) -> Trend | None:
    """Whether a training curve rose: the one rule of the warning while training, of the alarm and of the verdict.

    A curve rises where the 95 % interval of its least-squares slope over the steps lies above 0 (Student's t, n − 2 degrees of
    freedom), as every other comparison of the report asks. The slope uses all steps, since two noisy ends say little, and its
    error comes from the noise between steps: the spread within one batch of responses knows nothing of the next batch. A curve
    that ends where it began does not rise, however high it was between. None below ``TREND_STEPS`` scored steps: 20 steps show a
    rise of 2.2 standard deviations of the noise four times out of five, 10 steps would need 3.2. Neighbouring steps of a policy
    are alike, so the error is somewhat too small: a rise is evidence, not proof.
    """
    points = [(float(step), value) for step, value in enumerate(values) if value is not None and math.isfinite(value)]
    if len(points) < TREND_STEPS:
        return None
    from scipy import stats

    fit = stats.linregress([step for step, _ in points], [value for _, value in points])
    slope = fit.slope / fit.stderr if fit.stderr > 0 else math.copysign(math.inf, fit.slope) if fit.slope else 0.0
    return Trend(float(slope), float(stats.t.ppf(0.975, len(points) - 2)))


@dataclass(frozen=True)
class OverOptimisation:
    """gold = d (a − b ln d) at d = sqrt(KL) (nats^0.5). The peak is None if b <= 0: the gold score still rises."""

    a: float
    b: float
    peak_d: float | None
    peak_gold: float | None


def over_optimisation_fit(kl: Sequence[float], gold: Sequence[float]) -> OverOptimisation:
    """Least-squares fit of the RL form of Gao, Schulman and Hilton 2022 (arXiv:2210.10760, section 3.1).

    kl: nats per response from the initial policy; gold: held-out score minus that of the initial policy. Points at
    KL <= 0 are left out (the form has infinite slope there). The peak, d* = exp(a/b − 1) with gold b·d*, follows from
    the fitted form. ValueError with fewer than three usable points.
    """
    points = [(math.sqrt(k), g) for k, g in zip(kl, gold, strict=True) if k > 0 and math.isfinite(k) and is_scored(g)]
    if len(points) < 3:
        raise ValueError(f"{len(points)} points at KL > 0; the curve has two parameters and needs at least three")
    d, score = np.array(points).T
    (a, b), *_ = np.linalg.lstsq(np.column_stack([d, -d * np.log(d)]), score, rcond=None)
    exponent = a / b - 1 if b > 0 else math.inf
    if exponent > 50:  # a peak at e^50 is out of reach
        return OverOptimisation(float(a), float(b), None, None)
    peak = math.exp(exponent)
    return OverOptimisation(float(a), float(b), peak, float(b) * peak)


def _result(estimate: Estimate, **fields: Any) -> EvalResult:
    return EvalResult(
        n=estimate.n, n_unscored=estimate.n_unscored, value=estimate.value, ci=estimate.ci, method=estimate.method, **fields
    )


def rate(
    name: str, arm: str, outcomes: Sequence[bool | None], *, clusters: Sequence[Hashable] | None = None, **labels: Any
) -> EvalResult:
    """Share of true among the scored outcomes, with Wilson's interval; unit "share", in [0, 1]. ``labels``: scorer and group of
    the result."""
    return _result(clustered_proportion(outcomes, clusters), name=name, arm=arm, unit="share", **labels)


def average(
    name: str, arm: str, values: Sequence[float | None], *, unit: str, clusters: Sequence[Hashable] | None = None, **labels: Any
) -> EvalResult:
    """Mean of the scored values in ``unit``, with the cluster-robust t interval, and with Wilson's where all are truth values;
    where all are shares from 0 to 1, no further than these. ``labels`` as in :func:`rate`."""
    scored = [value for value in values if value is not None and is_scored(value)]
    interval = clustered_share if scored and all(isinstance(value, bool) for value in scored) else mean_interval
    mean = interval(values, clusters)
    if unit == "share" and mean.ci is not None and 0 <= min(scored) <= max(scored) <= 1:
        mean = replace(mean, ci=(max(mean.ci[0], 0.0), min(mean.ci[1], 1.0)))
    return _result(mean, name=name, arm=arm, unit=unit, **labels)
