"""Statistics: known values, coverage by simulation, and what must hold for any input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from charter.statistics import (
    average,
    clustered_proportion,
    clustered_share,
    expected_calibration_error,
    fit_temperature,
    holm,
    mcnemar,
    mean_interval,
    over_optimisation_fit,
    paired_difference,
    rate,
    spearman,
    trend,
    wilson,
)

outcomes = st.lists(st.sampled_from([True, False, None]), max_size=40)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 30, 0.0, 0.114), (0, 250, 0.0, 0.015), (15, 148, 0.062, 0.161), (30, 30, 0.886, 1.0)],  # third: Newcombe 1998
)
def test_wilson_known_values(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=6e-4)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_proportion(k, n):
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(k, n)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(kn):
    k, n = kn
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_mean_interval_is_the_t_interval():
    estimate = mean_interval([1.0, 2.0, 3.0, 4.0, None, math.nan])
    assert (estimate.value, estimate.n, estimate.n_unscored) == (2.5, 4, 2)
    half = 3.182446 * math.sqrt(5 / 3) / 2  # t(.975, 3) · sd / √n
    assert estimate.ci == pytest.approx((2.5 - half, 2.5 + half), abs=1e-5)


def test_copies_of_a_cluster_add_no_certainty():
    once = mean_interval([1.0, 2.0, 4.0, 8.0])
    copied = mean_interval([1.0, 2.0, 4.0, 8.0] * 5, clusters=["a", "b", "c", "d"] * 5)
    assert copied.ci == pytest.approx(once.ci)
    assert copied.n_clusters == 4


@pytest.mark.parametrize("sizes", [[1, 2, 5, 3], [2, 2, 2], [9, 3]])
def test_clusters_of_unequal_sizes_have_the_degrees_of_freedom_of_their_covariance(sizes):
    values = list(np.random.default_rng(0).normal(size=sum(sizes)))
    clusters = [g for g, size in enumerate(sizes) for _ in range(size)]
    n = np.array(sizes, dtype=float)
    shares = n / n.sum()
    away = np.diag(1 / np.sqrt(1 - shares)) @ (np.eye(len(n)) - np.outer(shares, np.ones(len(n))))  # sums to CR2 residuals
    covariance = away @ np.diag(n * (1 + (n - 1) / 2)) @ away.T
    freedom = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    error = np.linalg.norm(away @ np.bincount(clusters, weights=values)) / n.sum()
    low, high = mean_interval(values, clusters).ci
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, freedom) * error)


def test_one_cluster_has_no_interval():
    assert mean_interval([1.0, 2.0], clusters=["a", "a"]).ci is None
    assert mean_interval([]).value is None


def test_infinite_values_and_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="infinite"):
        mean_interval([1.0, math.inf])
    with pytest.raises(ValueError, match="length"):
        paired_difference([True], [True, False])


def test_clustered_interval_covers():
    rng = np.random.default_rng(0)
    clusters = list(np.repeat(np.arange(10), 4))
    covered = 0
    for _ in range(300):
        values = list(np.repeat(rng.normal(size=10), 4) + rng.normal(0, 0.5, 40))
        low, high = mean_interval(values, clusters).ci or (0, 0)
        covered += low <= 0 <= high
    assert 0.925 <= covered / 300 <= 0.98


def test_clustered_proportion_covers_a_rare_event():
    rng = np.random.default_rng(0)
    clusters = list(np.repeat(np.arange(30), 4))
    covered = 0
    for _ in range(400):
        share = np.repeat(rng.beta(0.5, 4.5, 30), 4)
        low, high = clustered_proportion([bool(x) for x in rng.random(120) < share], clusters).ci or (0, 0)
        covered += low <= 0.1 <= high
    assert covered / 400 >= 0.93


def test_no_event_in_clusters_is_worth_the_number_of_clusters():
    estimate = clustered_proportion([False] * 120, clusters=list(range(30)) * 4)
    assert estimate.ci == pytest.approx((0, 0.1135), abs=1e-4)


def test_paired_difference_covers():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        risk = rng.random(40)
        a, b = rng.random(40) < risk, rng.random(40) < 0.6 * risk
        low, high = paired_difference([bool(x) for x in a], [bool(x) for x in b]).ci or (0, 0)
        covered += low <= -0.2 <= high
    assert covered / 400 >= 0.93


def test_paired_booleans_count_the_discordant():
    a = [True] * 12 + [False] * 2 + [True] * 20 + [False] * 16 + [None, True]
    b = [False] * 12 + [True] * 2 + [True] * 20 + [False] * 16 + [True, None]
    result = paired_difference(a, b)
    assert (result.n, result.n_unscored, result.discordant) == (50, 2, (12, 2))
    assert result.difference == pytest.approx(-0.2)
    assert result.p == result.mcnemar_p == pytest.approx(0.0129, abs=1e-4)
    assert result.ci == pytest.approx((-0.3292, -0.0562), abs=1e-3)  # Newcombe 1998, table III, method 10
    assert not result.includes_zero


def test_no_discordant_pair_is_not_certainty():
    result = paired_difference([False] * 30, [False] * 30)
    assert result.ci == pytest.approx((-0.1135, 0.1135), abs=1e-4)
    assert result.p == 1.0


def test_paired_numbers_use_t():
    result = paired_difference([1.0, 2.0, 3.0, None], [2.0, 4.0, 6.0, 1.0])
    assert result.difference == 2.0
    assert result.p == pytest.approx(0.0742, abs=1e-4)  # t = 2 / (1/√3), 2 degrees of freedom
    assert result.discordant is None
    assert result.includes_zero


def test_nothing_paired_excludes_nothing():
    result = paired_difference([None, True], [True, None])
    assert result.difference is None
    assert result.includes_zero


@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.booleans(), st.integers(0, 4)), max_size=40))
def test_swapping_the_arms_flips_the_sign(rows):
    a, b, clusters = [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]
    there, back = paired_difference(a, b, clusters), paired_difference(b, a, clusters)
    assert there.n + there.n_unscored == len(rows)
    if there.ci is not None and back.ci is not None:
        assert there.ci == pytest.approx((-back.ci[1], -back.ci[0]), abs=1e-9)
        assert there.ci[0] <= there.difference <= there.ci[1]
        assert there.p == back.p


def test_mcnemar_is_a_fair_coin():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 32)


def test_calibrated_probabilities_are_at_their_floor():
    rng = np.random.default_rng(0)
    p = rng.random(2000)
    result = expected_calibration_error(p, rng.random(2000) < p)
    assert result.ece == pytest.approx(result.floor, abs=0.015)
    assert sum(row["n"] for row in result.rows) == 2000
    assert len(result.rows) == 10


def test_calibration_error_known_value():
    result = expected_calibration_error([0.9] * 10 + [0.2] * 10, [1] * 5 + [0] * 5 + [0] * 10, bins=2)
    assert result.ece == pytest.approx((0.4 + 0.2) / 2)
    assert result.rows[1] == pytest.approx({"p": 0.9, "observed": 0.5, "n": 10})


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.8]), st.booleans()), min_size=1, max_size=30), st.randoms())
def test_calibration_does_not_depend_on_order(rows, random):
    shuffled = random.sample(rows, len(rows))
    first, second = (expected_calibration_error([r[0] for r in x], [r[1] for r in x]) for x in (rows, shuffled))
    assert first.ece == pytest.approx(second.ece)


def test_calibration_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match="outside"):
        expected_calibration_error([1.2], [1])
    with pytest.raises(ValueError, match="as many"):
        expected_calibration_error([], [])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2 * temperature, 4000)
    labels = rng.random(4000) < 1 / (1 + np.exp(-logits / temperature))
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.08)


def test_temperature_at_its_ends():
    assert fit_temperature([1.0, -1.0], [1, 0]) == pytest.approx(0.01)  # separates perfectly
    assert fit_temperature([1.0, -1.0], [0, 1]) == pytest.approx(100)  # says the opposite


def test_spearman_known_values():
    assert spearman([1, 2, 3, 4], [1, 4, 9, 16]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [3, 1, 2]) == pytest.approx(-0.5)
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_holm_known_values():
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12))
def test_holm_never_lowers_a_p(ps):
    for p, adjusted in zip(ps, holm(ps), strict=True):
        assert (p is None) == (adjusted is None)
        assert p is None or p <= adjusted <= 1


@given(st.floats(-2, 2), st.floats(-5, 5))
def test_the_trend_is_the_slope_in_standard_errors(slope, start):
    fit = trend([start + slope * i + 0.1 * (-1) ** i for i in range(31)])
    assert fit.rises == (slope > 0.004) or 0.002 < slope < 0.006
    assert fit.slope == pytest.approx(slope / 0.0020, rel=0.1, abs=1)


def test_a_trend_known_value():
    # y = 0, 1, 0, 1, … on x = 0 … 19: Sxx = 665, Sxy = 5, Syy = 5, so slope 1/133 and residual 5 − 25/665 at 18 degrees
    fit = trend([float(i % 2) for i in range(20)])
    assert fit.slope == pytest.approx((1 / 133) / math.sqrt((5 - 25 / 665) / 18 / 665))
    assert fit.threshold == pytest.approx(2.100922, abs=1e-6)  # t(.975, 18)
    assert not fit.rises


def test_a_trend_needs_twenty_steps_and_is_flat_where_nothing_moves():
    assert trend([float(i) for i in range(19)]) is None
    assert trend([1.0] * 19 + [None, math.nan]) is None
    assert trend([float(i) for i in range(20)]).rises
    assert not trend([2.0] * 30).rises


def test_noise_rises_as_rarely_as_said_and_a_rise_is_seen_as_often():
    rng = np.random.default_rng(0)
    rises = [trend(list(rng.normal(size=20))).rises for _ in range(1000)]
    assert np.mean(rises) < 0.04
    seen = [trend(list(np.linspace(0, 2.2, 20) + rng.normal(size=20))).rises for _ in range(1000)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.05)


def test_over_optimisation_curve_is_recovered():
    kl = np.linspace(0, 60, 40)
    d = np.sqrt(kl)
    gold = np.concatenate([[0.0], d[1:] * (1 - 0.25 * np.log(d[1:]))])
    fit = over_optimisation_fit(kl, gold)
    assert (fit.a, fit.b) == pytest.approx((1, 0.25))
    assert fit.peak_d == pytest.approx(math.exp(3))
    assert over_optimisation_fit([1, 4, 9, 16], [1.0, 2.0, 3.0, 4.0]).peak_d is None
    with pytest.raises(ValueError, match="at least three"):
        over_optimisation_fit([0, 1, 2], [0, 1, 2])


@given(outcomes)
def test_unscored_never_counts(values):
    result = rate("harmful_compliance", "base", values, scorer="oracle")
    scored = [v for v in values if v is not None]
    assert (result.n, result.n_unscored) == (len(scored), len(values) - len(scored))
    assert result.value == (pytest.approx(sum(scored) / len(scored)) if scored else None)
    assert (result.ci is None) == (not scored)


def test_rate_refuses_graded_scores():
    with pytest.raises(ValueError, match="average"):
        rate("harmful_compliance", "base", [0.5], scorer="oracle")


def test_an_interval_of_a_mean_share_ends_at_0_and_1():
    high = average("adherence", "policy", [1.0, 1.0, 0.6], scorer="judge", unit="share")
    assert high.ci[0] < high.value < high.ci[1] == 1.0
    beyond = average("mine", "policy", [2.0, 1.0, 0.6], scorer="mine", unit="share")  # a user's unit by the same name
    assert beyond.ci[1] > 2


def test_average_carries_its_unit():
    result = average("kl", "policy", [1.0, None, 3.0], scorer="k1", unit="nats per response", group="honesty")
    assert (result.value, result.unit, result.group, result.n_unscored) == (2.0, "nats per response", "honesty", 1)
    assert result.model_validate_json(result.model_dump_json()) == result


def test_a_share_that_is_certain_still_has_an_interval_and_none_leaves_0_to_1():
    low, high = clustered_share([1.0] * 10).ci
    assert (low, high) == pytest.approx((0.7225, 1.0), abs=1e-4)
    estimate = clustered_share([1.0, 0.5, 1.0, 0.0], clusters=["a", "a", "b", "b"])
    assert estimate.value == 0.625
    assert 0 <= estimate.ci[0] < 0.625 < estimate.ci[1] <= 1
    assert clustered_share([True, False, None]).ci == clustered_proportion([True, False, None]).ci
    with pytest.raises(ValueError, match="not between 0 and 1"):
        clustered_share([1.5])


def test_a_share_with_ties_is_covered_at_least_as_often_as_said():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        low, high = clustered_share(rng.choice([0.0, 0.5, 1.0], 60, p=[0.05, 0.1, 0.85]).tolist()).ci
        hits += low <= 0.9 <= high
    assert hits / 400 > 0.94
