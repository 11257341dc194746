"""Ratings equal other libraries' on dense data and stay finite where those do not."""

from dataclasses import replace

import choix
import evalica
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charter.raters.bradley_terry import Fit, cells_of, fit, fit_near, rater_effects, without
from charter.raters.comparisons import Comparisons
from charter.raters.leaderboard import leaderboard


def compared(rows, n: int | None = None, **fields) -> Comparisons:
    """Comparisons of rows (x, y, outcome), each a ballot on a prompt of its own unless ``fields`` say otherwise."""
    x, y, outcome = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    n, every = n or int(max(x.max(), y.max())) + 1, np.arange(len(x))
    given = {"raters": ("r",), "shown": np.zeros(len(x), dtype=np.int64), "rater": np.zeros(len(x), dtype=np.int64),
             "prompt": every, "ballot": every, "count": np.ones(len(x))}  # fmt: skip
    return Comparisons(items=tuple(f"m{i}" for i in range(n)), x=x, y=y, outcome=outcome, **(given | fields))


def drawn(n: int, size: int, *, log_tie: float = -np.inf, raters: int = 1, beta=None, gamma=None, seed: int = 0):
    """Strengths and votes drawn from the model itself."""
    rng = np.random.default_rng(seed)
    s = rng.normal(size=n)
    s -= s.mean()
    x = rng.integers(0, n, size)
    y = (x + rng.integers(1, n, size)) % n
    x, y = np.minimum(x, y), np.maximum(x, y)
    rater, shown = rng.integers(0, raters, size), rng.choice([-1, 1], size)
    d = s[x] - s[y]
    d = d if beta is None else np.array(beta)[rater] * d + np.array(gamma)[rater] * shown
    p = np.exp(np.stack([d / 2, np.full(size, log_tie), -d / 2]))
    p = np.cumsum(p / p.sum(axis=0), axis=0)
    u = rng.random(size)
    rows = list(zip(x.tolist(), y.tolist(), np.where(u < p[0], 1, np.where(u < p[1], 0, -1)).tolist(), strict=True))
    return s, compared(rows, n, raters=tuple(map(str, range(raters))), rater=rater, shown=shown)


def test_two_models_have_the_log_odds_of_their_votes():
    found = fit(cells_of(compared([(0, 1, 1)] * 3000 + [(0, 1, -1)] * 1000)))
    assert found.strengths[0] - found.strengths[1] == pytest.approx(np.log(3), abs=2e-3)
    assert found.log_tie == -np.inf


def test_without_ties_it_is_choix():
    s, votes = drawn(8, 20_000)
    winners = [(x, y) if o == 1 else (y, x) for x, y, o in zip(votes.x, votes.y, votes.outcome, strict=True)]
    peer = choix.ilsr_pairwise(8, winners, alpha=0.0)
    mine = fit(cells_of(votes)).strengths
    assert mine == pytest.approx(peer - peer.mean(), abs=5e-3)
    assert mine == pytest.approx(s, abs=0.15)


def test_with_ties_it_is_newman():
    s, votes = drawn(8, 40_000, log_tie=-0.5)
    words = {1: evalica.Winner.X, 0: evalica.Winner.Draw, -1: evalica.Winner.Y}
    peer = evalica.newman(
        votes.x.tolist(), votes.y.tolist(), [words[o] for o in votes.outcome.tolist()], tolerance=1e-10, limit=1000
    )
    peer_s = np.log(peer.scores.sort_index().to_numpy())
    found = fit(cells_of(votes))
    assert found.strengths == pytest.approx(peer_s - peer_s.mean(), abs=0.02)
    assert found.strengths == pytest.approx(s, abs=0.15)
    assert found.log_tie == pytest.approx(-0.5, abs=0.05)


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 1, 1)] * 50 + [(0, 2, 1), (1, 2, 1), (1, 2, -1)],  # 0 is undefeated
        [(0, 1, 1), (0, 1, -1), (2, 3, 1)],  # two groups
        [(0, 1, 1), (0, 2, 1), (1, 2, 1)],  # one ranking
        [(0, 1, 0), (1, 2, 0), (0, 2, 0)],  # nothing but ties
    ],
    ids=["undefeated", "disconnected", "one ranking", "all ties"],
)
def test_awkward_votes_give_finite_sensible_ratings(rows):
    board = leaderboard(compared(rows), live=False)
    assert np.isfinite(board.ratings).all()
    assert np.isfinite(board.reach).all()
    assert (board.reach > 0).all()
    won = {model: won - lost for model, (won, _, lost, _) in zip(board.models, board.played, strict=True)}
    if all(outcome == 0 for _, _, outcome in rows):
        assert board.ratings == pytest.approx(1000)
        assert board.tie_odds > 1
    else:
        assert list(board.models) == sorted(board.models, key=lambda model: -won[model])
    assert board.parts == (2 if len(board.models) == 4 else 1)
    assert board.ranks[0][1] > 1 or len(rows) > 50  # so few votes settle nothing


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(4, 6), st.sampled_from([1, 0, -1])), min_size=1, max_size=30))
def test_names_do_not_matter(rows):
    """Items numbered backwards, x and y changed over: the same ratings."""
    votes = compared(rows, 7)
    turned = replace(votes, x=6 - votes.y, y=6 - votes.x, outcome=-votes.outcome)
    assert fit(cells_of(turned)).strengths[::-1] == pytest.approx(fit(cells_of(votes)).strengths, abs=1e-4)


def test_derivatives_are_those_of_the_objective():
    _, votes = drawn(4, 300, log_tie=0.0, raters=3, beta=[1, 1, 0], gamma=[0, 0.5, 0], seed=1)
    cells = cells_of(votes, np.arange(3))
    theta = np.random.default_rng(0).normal(size=4 + 1 + 6)
    here = Fit(cells, theta, True, 0)
    steps = 1e-5 * np.eye(len(theta))
    slopes = [(Fit(cells, theta + h, True, 0).objective - Fit(cells, theta - h, True, 0).objective) / 2e-5 for h in steps]
    assert here.gradient == pytest.approx(np.array(slopes), rel=1e-4, abs=1e-2)
    curves = [(Fit(cells, theta + h, True, 0).gradient - Fit(cells, theta - h, True, 0).gradient) / 2e-5 for h in steps]
    assert -here.information().toarray() == pytest.approx(np.array(curves), rel=1e-4, abs=1e-2)


def test_rater_effects_are_recovered():
    beta, gamma = [1.5, 1.5, 0.0, -1.0, 1.5], [0.0, 1.0, 0.0, 0.0, -0.5]
    s, votes = drawn(10, 20_000, log_tie=-1.0, raters=5, beta=beta, gamma=gamma)
    found = fit(cells_of(votes, rater_effects(votes)))
    scale = np.mean(beta)
    assert found.beta == pytest.approx(np.array(beta) / scale, abs=0.2)
    assert found.gamma == pytest.approx(np.array(gamma), abs=0.12)
    assert found.strengths == pytest.approx(s * scale, abs=0.15)
    assert found.share @ found.beta == pytest.approx(1, abs=1e-4)


def test_raters_with_few_votes_share_an_effect():
    rows = [(0, 1, 1)] * 60
    rater = np.repeat([0, 1, 2, 3], [25, 25, 5, 5])
    votes = compared(rows, raters=tuple("abcd"), rater=rater)
    assert rater_effects(votes).tolist() == [0, 1, 2, 2]
    assert rater_effects(replace(votes, rater=np.zeros(60, dtype=np.int64))) is None


def test_a_fit_near_another_is_the_fit():
    _, votes = drawn(6, 2000, log_tie=-1.0, raters=3, beta=[1, 1, 0], gamma=[0, 0.5, 0], seed=2)
    whole = fit(cells_of(votes, rater_effects(votes)))
    fewer = without(whole.cells, votes, np.arange(0, 2000, 10))
    assert fit_near(whole, fewer).strengths == pytest.approx(fit(fewer).strengths, abs=1e-3)
    again = cells_of(votes.take(np.arange(2000) % 10 != 0), rater_effects(votes))
    assert fit(again).strengths == pytest.approx(fit(fewer).strengths, abs=1e-3)
