"""Ratings of models: intervals clustered by prompt, the ranks that are compatible with them, and what would flip the top.

Pairs from one ranking are not independent, nor are rankings of one prompt: the covariance is the sandwich H⁻¹JH⁻¹ with J
summed over prompts (Liang and Zeger 1986, Biometrika 73:13), from ten raters on two-way over prompts and raters (Cameron,
Gelbach and Miller 2011, J. Bus. Econ. Stat. 29:238). Where a model has too few votes for that, its interval is no narrower
than the posterior's, H⁻¹.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse, stats
from scipy.sparse import csgraph

from charter.raters.bradley_terry import Fit, cells_of, fit, fit_near, rater_effects, without
from charter.raters.comparisons import Comparisons, Floats, Ints

ELO = 400 / np.log(10)  # points for one unit of log-odds
MIDDLE = 1000.0  # points of the mean of all models
TWO_WAY_FROM = 10  # raters
RIVALS = 3  # the models next to the top that may overtake it


@dataclass(frozen=True)
class Covariance:
    """Of k numbers: ``robust`` (k, k) over clusters, None if there is one cluster only, and ``posterior`` (k, k)."""

    robust: Floats | None
    posterior: Floats
    degrees: int
    method: str

    def reach(self, level: float = 0.95) -> Floats:
        """Half the width of the interval of each number (k,)."""
        return self._reach(np.diag(self.posterior), None if self.robust is None else np.diag(self.robust), level)

    def reach_of_differences(self, level: float = 0.95) -> Floats:
        """Half the width of the interval of each difference (k, k)."""
        return self._reach(_of_differences(self.posterior), None if self.robust is None else _of_differences(self.robust), level)

    def _reach(self, posterior: Floats, robust: Floats | None, level: float) -> Floats:
        tail = (1 + level) / 2
        reach = stats.norm.ppf(tail) * np.sqrt(np.maximum(posterior, 0))
        if robust is not None:
            reach = np.maximum(reach, stats.t.ppf(tail, self.degrees) * np.sqrt(np.maximum(robust, 0)))
        return np.asarray(reach)


def _of_differences(covariance: Floats) -> Floats:
    variance = np.diag(covariance)
    return np.asarray(variance[:, None] + variance[None, :] - 2 * covariance)


def covariance(fitted: Fit, comparisons: Comparisons, by_theta: Any) -> Covariance:
    """Covariance of k functions of θ with the derivatives ``by_theta`` (k, p)."""
    u = fitted.solver.solve(np.ascontiguousarray(by_theta.T))
    posterior = by_theta @ u
    _, prompt = np.unique(comparisons.prompt, return_inverse=True)
    _, rater = np.unique(comparisons.rater, return_inverse=True)
    n_prompts, n_raters = int(prompt.max()) + 1, int(rater.max()) + 1
    if n_prompts < 2:
        return Covariance(None, posterior, 0, "posterior")
    if n_raters < TWO_WAY_FROM:
        return Covariance(_meat(fitted, comparisons, prompt, u), posterior, n_prompts - 1, "clustered by prompt")
    _, both = np.unique(prompt * n_raters + rater, return_inverse=True)
    robust = _meat(fitted, comparisons, rater, u)
    if both.max() + 1 > n_prompts:  # otherwise every prompt had one rater, and its clusters add what they take away
        robust = robust + _meat(fitted, comparisons, prompt, u) - _meat(fitted, comparisons, both, u)
    values, vectors = np.linalg.eigh(robust)  # the difference of covariances need not be one
    robust = (vectors * np.maximum(values, 0)) @ vectors.T
    return Covariance(robust, posterior, min(n_prompts, n_raters) - 1, "clustered by prompt and by rater")


def _meat(fitted: Fit, comparisons: Comparisons, clusters: Ints, u: Floats) -> Floats:
    scores = fitted.cluster_scores(comparisons, clusters)
    n = scores.shape[0]
    return np.asarray(n / (n - 1) * (u.T @ ((scores.T @ scores) @ u)))


def rank_sets(ratings: Floats, reach: Floats) -> list[tuple[int, int]]:
    """(best, worst) rank of each item, 1 the best, that no interval of a difference excludes. ``reach``: (k, k)."""
    above = ratings[:, None] - ratings[None, :] > reach
    return [(1 + int(above[:, i].sum()), len(ratings) - int(above[i].sum())) for i in range(len(ratings))]


@dataclass(frozen=True)
class Flip:
    """What it takes for ``rival`` to be first: ``drop`` ballots taken out, the most telling first, checked by a new fit."""

    rival: int
    drop: int


def votes_to_flip(fitted: Fit, comparisons: Comparisons) -> Flip | None:
    """How few ballots decide who is first: those with the largest influence are dropped (the approximation of Broderick et
    al. 2020, arXiv:2011.14999; for arenas Huang et al. 2025) and the fit is made anew, until another is first. An upper
    bound. None if half the ballots would not do."""
    ratings = fitted.strengths
    order = np.argsort(-ratings, kind="stable")
    c, cells = comparisons, fitted.cells
    n_ballots = len(np.unique(c.ballot))
    lead = fitted.probabilities[:, 0] - fitted.probabilities[:, 2]
    by_d = 0.5 * c.count * (c.outcome - lead[cells.of])
    best: Flip | None = None
    for rival in order[1 : 1 + RIVALS]:
        contrast = fitted.ratings_by_theta[order[0]] - fitted.ratings_by_theta[rival]
        u = fitted.solver.solve(contrast)
        influence = by_d * (fitted.gradient_of_d @ u)[cells.of]
        if fitted.ties:
            influence = influence + c.count * ((c.outcome == 0) - fitted.probabilities[cells.of, 1]) * u[cells.n_items]
        by_ballot = np.bincount(c.ballot, weights=influence)
        telling = np.argsort(-by_ballot, kind="stable")
        total = np.cumsum(by_ballot[telling])
        gap = ratings[order[0]] - ratings[rival]
        guess = int(np.searchsorted(np.maximum.accumulate(total), gap)) + 1
        most = min(n_ballots // 2, int((by_ballot > 0).sum()), best.drop - 1 if best else n_ballots)
        place = np.full(len(by_ballot), len(by_ballot))
        place[telling] = np.arange(len(telling))
        drop = _fewest(fitted, comparisons, place[c.ballot], min(guess, most), most, int(order[0]), int(rival))
        if drop is not None:
            best = Flip(int(rival), drop)
    return best


def _fewest(fitted: Fit, comparisons: Comparisons, place: Ints, guess: int, most: int, top: int, rival: int) -> int | None:
    """The smallest number of first places to drop after which the rival is ahead (to 2 %), searched outwards from ``guess``."""

    def flipped(drop: int) -> bool:
        again = fit_near(fitted, without(fitted.cells, comparisons, np.flatnonzero(place < drop)))
        return bool(again.strengths[rival] > again.strengths[top])

    if most < 1:
        return None
    low, high = 0, max(guess, 1)
    while not flipped(high):
        if high >= most:
            return None
        low, high = high, min(most, high + max(1, high // 4))
    while high - low > max(1, high // 50):
        middle = max((low + high) // 2, high - max(1, high // 8))
        if flipped(middle):
            high = middle
        else:
            low = middle
    return high


@dataclass(frozen=True)
class Leaderboard:
    """Models from the best to the worst, in points (mean 1000, 400 for odds of ten to one in an average vote).

    ``ratings``, ``reach`` (half an interval of 95 %): (n,); ``ranks``: the set of ranks of each as (best, worst), all at once
    at 95 % for each model. ``played``: (n, 4) comparisons won, tied, lost, and all. ``separate``: how many times the votes so
    far would tell the first two apart, 1 where they are. ``parts``: groups of models that no comparison joins.
    """

    models: tuple[str, ...]
    ratings: Floats
    reach: Floats
    ranks: list[tuple[int, int]]
    played: Floats
    elo: Floats | None
    flip: tuple[str, int] | None
    gap: tuple[float, float] | None
    separate: float | None
    parts: int
    tie_odds: float
    effects: int
    method: str


def leaderboard(comparisons: Comparisons, *, equal_raters: bool = False, live: bool = True) -> Leaderboard:
    """Rate the items of ``comparisons``. With ``equal_raters`` nobody's votes count more than another's; without ``live`` no
    Elo."""
    effect = None if equal_raters else rater_effects(comparisons)
    fitted = fit(cells_of(comparisons, effect))
    spread = covariance(fitted, comparisons, fitted.ratings_by_theta)
    order = np.argsort(-fitted.strengths, kind="stable")
    ratings = fitted.strengths[order]
    n = len(order)
    between = np.ix_(order, order)
    # Šidák 1967: intervals at this level hold all n − 1 differences of a model at once, however they depend on each other.
    together = 0.95 ** (1 / max(n - 1, 1))
    flip = votes_to_flip(fitted, comparisons) if n > 1 else None
    gap = separate = None
    if n > 1:
        reach = float(spread.reach_of_differences()[between][0, 1])
        gap = (float(ratings[0] - ratings[1]) * ELO, reach * ELO)
        separate = max(1.0, (gap[1] / gap[0]) ** 2) if gap[0] > 0 else None
    return Leaderboard(
        tuple(comparisons.items[i] for i in order), MIDDLE + ELO * ratings, ELO * spread.reach()[order],
        rank_sets(ratings, spread.reach_of_differences(together)[between]), played(comparisons)[order],
        elo(comparisons)[order] if live else None,
        (comparisons.items[flip.rival], flip.drop) if flip else None, gap, separate, components(comparisons),
        float(np.exp(fitted.log_tie)), fitted.cells.n_raters, spread.method,
    )  # fmt: skip


def played(comparisons: Comparisons) -> Floats:
    """(n, 4): comparisons won, tied, lost, and all of each item."""
    n, c = len(comparisons.items), comparisons
    won = [np.bincount(side, weights=c.count * (sign * c.outcome == kind), minlength=n)
           for kind in (1, 0, -1) for side, sign in ((c.x, 1), (c.y, -1))]  # fmt: skip
    columns = [won[0] + won[1], won[2] + won[3], won[4] + won[5]]
    return np.stack([*columns, sum(columns)], axis=1)


def components(comparisons: Comparisons) -> int:
    """Into how many groups the items fall that no comparison joins."""
    n, c = len(comparisons.items), comparisons
    graph = sparse.coo_array((np.ones(len(c)), (c.x, c.y)), shape=(n, n))
    count, _ = csgraph.connected_components(graph, directed=False)
    return int(count)


def elo(comparisons: Comparisons) -> Floats:
    """Elo (n,) in the order of the file, K 4 from 1000, as Chatbot Arena kept it: a ticker for the eye. Another order of the
    same votes gives other numbers, so nothing is concluded from it."""
    import evalica

    c = comparisons
    words = {1: evalica.Winner.X, 0: evalica.Winner.Draw, -1: evalica.Winner.Y}
    scores = evalica.elo(c.x.tolist(), c.y.tolist(), [words[o] for o in c.outcome.tolist()], k=4.0).scores
    points = np.full(len(c.items), MIDDLE)
    points[scores.index.to_numpy(dtype=np.int64)] = scores.to_numpy()
    return points
