"""Intervals cover as often as they say, ranks are those they leave open, and a flip is checked by a fit."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from charter.raters.bradley_terry import cells_of, fit, rater_effects
from charter.raters.comparisons import Comparisons
from charter.raters.leaderboard import covariance, leaderboard, rank_sets
from charter.raters.responses import rate_responses
from test_bradley_terry import compared, drawn

TRUTH = np.array([1.0, 0.6, 0.2, -0.2, -0.6, -1.0])


def rankings(rng, prompts: int, spread: float, *, labelers: int = 3, pool: int = 3, taste: float = 0.0, k: int = 4):
    """Rankings of k of 6 models by some of a pool of labelers; models are better or worse at single prompts (``spread``) and
    labelers have tastes. Gumbel noise: a pair of a ranking follows Bradley-Terry."""
    quality = TRUTH + spread * rng.normal(size=(prompts, 6))
    liking = taste * rng.normal(size=(pool, 6))
    chosen = np.argsort(rng.random((prompts, 6)), axis=1)[:, :k]
    columns = []
    for labeler in range(labelers):
        who = rng.integers(0, pool, prompts) if pool > labelers else np.full(prompts, labeler)
        seen = np.take_along_axis(quality + liking[who], chosen, axis=1) + rng.gumbel(size=(prompts, k))
        for i, j in combinations(range(k), 2):
            a, b, better = chosen[:, i], chosen[:, j], np.where(seen[:, i] > seen[:, j], 1, -1)
            columns.append((np.minimum(a, b), np.maximum(a, b), np.where(a < b, better, -better), who, np.arange(prompts),
                            np.arange(prompts) + prompts * labeler))  # fmt: skip
    x, y, outcome, rater, prompt, ballot = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return Comparisons(
        tuple("abcdef"),
        tuple(map(str, range(pool))),
        x,
        y,
        outcome,
        np.zeros(len(x), dtype=np.int64),
        rater,
        prompt,
        ballot,
        np.ones(len(x)),
    )


def coverage(repeats: int, effects: bool = False, **how) -> tuple[float, float]:
    """How often 95 % intervals hold the ratings of very many votes: ours, and those that take pairs for independent."""
    target = fit(cells_of(rankings(np.random.default_rng(99), 100_000, how["spread"], labelers=1))).strengths
    rng = np.random.default_rng(1)
    ours, naive = [], []
    for _ in range(repeats):
        votes = rankings(rng, 300, **how)
        found = fit(cells_of(votes, rater_effects(votes) if effects else None))
        spread = covariance(found, votes, found.ratings_by_theta)
        away = np.abs(found.strengths - target)
        ours.append(away <= spread.reach())
        naive.append(away <= stats.norm.ppf(0.975) * np.sqrt(np.diag(spread.posterior)))
    return float(np.mean(ours)), float(np.mean(naive))


@pytest.mark.parametrize(
    ("how", "naive_covers"),
    [
        ({"spread": 0.0}, (0.82, 0.92)),  # 0.89 in the study that set the target
        ({"spread": 0.8}, (0.72, 0.82)),  # 0.77
        ({"spread": 0.8, "effects": True}, (0.72, 0.82)),
        ({"spread": 0.8, "pool": 12, "taste": 0.3}, (0.5, 0.75)),  # two-way: raters have tastes
    ],
    ids=["votes alone", "prompts differ", "rater effects", "raters differ"],
)
def test_intervals_cover_the_truth_95_times_of_100(how, naive_covers):
    ours, naive = coverage(300, **how)
    assert 0.93 <= ours <= 0.97
    assert naive_covers[0] <= naive <= naive_covers[1]


def test_rank_sets_hold_what_the_intervals_leave_open():
    reach = np.full((4, 4), 1.0)
    assert rank_sets(np.array([5.0, 3.5, 3.0, 0.0]), reach) == [(1, 1), (2, 3), (2, 3), (4, 4)]
    assert rank_sets(np.array([2.0, 1.5]), reach[:2, :2]) == [(1, 2), (1, 2)]


def test_a_majority_of_three_flips_when_three_are_dropped():
    """6 to 4: without two it is 4 to 4, and only the third puts the other ahead."""
    board = leaderboard(compared([(0, 1, 1)] * 6 + [(0, 1, -1)] * 4), live=False)
    assert board.models == ("m0", "m1")
    assert board.flip == ("m1", 3)


def test_a_sweep_is_not_flipped_by_half_the_votes():
    assert leaderboard(compared([(0, 1, 1)] * 30), live=False).flip is None


def test_a_ballot_goes_as_a_whole():
    """Three rankings m0 m1 m2 and two m1 m0 m2: without two of the three, six pairs, m1 is ahead."""
    first, second = [(0, 1, 1), (0, 2, 1), (1, 2, 1)], [(0, 1, -1), (1, 2, 1), (0, 2, 1)]
    ballot = np.repeat(np.arange(5), 3)
    board = leaderboard(compared(first * 3 + second * 2, prompt=ballot, ballot=ballot), live=False)
    assert board.models == ("m0", "m1", "m2")
    assert board.flip == ("m1", 2)


def test_elo_depends_on_the_order_and_the_rating_does_not():
    _, votes = drawn(5, 500)
    backwards = votes.take(np.arange(500)[::-1])
    first, second = leaderboard(votes), leaderboard(backwards)
    assert dict(zip(first.models, first.ratings, strict=True)) == pytest.approx(
        dict(zip(second.models, second.ratings, strict=True)))  # fmt: skip
    elo = [dict(zip(board.models, board.elo, strict=True)) for board in (first, second)]
    assert elo[0] != pytest.approx(elo[1], abs=1)
    assert np.mean(first.elo) == pytest.approx(1000)


def test_one_win_moves_elo_by_half_of_k():
    board = leaderboard(compared([(0, 1, 1)]))
    assert dict(zip(board.models, board.elo, strict=True)) == pytest.approx({"m0": 1002, "m1": 998})


def test_a_gap_that_is_open_says_how_many_votes_would_close_it():
    _, votes = drawn(4, 200, seed=3)
    board = leaderboard(votes, live=False)
    gap, reach = board.gap
    assert board.separate == pytest.approx(max(1, (reach / gap) ** 2))


@pytest.mark.parametrize("sd", [0.5, 1.0, 2.0])
def test_posterior_intervals_of_responses_cover(sd):
    """4 responses to each of 500 prompts, ranked by 3 of 20 raters; how far responses lie apart is not told."""
    rng = np.random.default_rng(5)
    prompts, k = 500, 4
    s = sd * rng.normal(size=(prompts, k))
    columns = []
    for number in range(3):
        who = rng.integers(0, 20, prompts)
        seen = s + rng.gumbel(size=(prompts, k))
        for i, j in combinations(range(k), 2):
            every = np.arange(prompts)
            columns.append(
                (every * k + i, every * k + j, np.where(seen[:, i] > seen[:, j], 1, -1), who, every, every + number * prompts)
            )
    x, y, outcome, rater, prompt, ballot = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    votes = Comparisons(tuple(f"{i:05}" for i in range(prompts * k)), tuple(map(str, range(20))), x, y, outcome,
                        np.zeros(len(x), dtype=np.int64), rater, prompt, ballot, np.ones(len(x)))  # fmt: skip
    rated = rate_responses(votes, tuple(map(str, range(prompts))))
    held, sure, right = [], [], []
    for one in rated:
        index = np.array([int(name) % k for name in one.responses])
        truth = s[int(one.prompt)] - s[int(one.prompt)].mean()
        held.append(np.abs(truth[index] - one.ratings) <= one.reach)
        sure.append(one.p_best)
        right.append(truth[index[0]] > truth[index[1]])
    assert 0.91 <= np.mean(held) <= 0.98
    assert np.mean(sure) == pytest.approx(np.mean(right), abs=0.08)
