"""Bradley-Terry ratings with ties and rater effects, by one regularised maximum-likelihood fit.

For rater r comparing x with y, d = β_r (s_x − s_y) + γ_r z with z = 1 where x was shown first and −1 where y was, and the
logits of (x wins, tie, y wins) are (d/2, η, −d/2) (Davidson 1970, J. Am. Stat. Assoc. 65:317, with η = ln ν; β_r is the
judge-aware discrimination of arXiv:2601.21817, γ_r the advantage of the first place of Davidson and Beaver 1977). Priors: s ~
N(0, 1), β_r ~ N(1, 0.5²), γ_r ~ N(0, 0.5²), η ~ N(0, 2²): they keep the undefeated, the disconnected and the all-tied finite
and fade as votes come in. Where nothing is tied η is left out (−∞), and where no rater has effects β = 1 and γ = 0: then this
is Bradley-Terry with a ridge.

Comparisons that agree in x, y, rater and order are one cell, so a million votes cost what a few thousand do. s, η, β, γ stand
in this order in one parameter vector θ of p numbers. C cells, N comparisons, n items, R raters with effects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

from charter.raters.comparisons import Comparisons, Floats, Ints

AVERAGE = 1e6  # precision with which the mean β of the comparisons is 1
STRENGTH_SD, BETA_SD, GAMMA_SD, TIE_SD = 1.0, 0.5, 0.5, 2.0
MIN_VOTES = 20  # a rater with fewer comparisons shares β and γ with all others of that kind
STEPS = 200
DENSE = 1000  # parameters up to which a matrix is added up in full


@dataclass(frozen=True)
class Cells:
    """Comparisons added up. ``x``, ``y``, ``rater`` (effect, −1 for none), ``shown``: (C,). ``tally``: (C, 3) counts of x
    wins, ties, y wins. ``of``: (N,) the cell of each comparison."""

    n_items: int
    n_raters: int
    x: Ints
    y: Ints
    rater: Ints
    shown: Floats
    tally: Floats
    of: Ints


def cells_of(comparisons: Comparisons, effect: Ints | None = None) -> Cells:
    """Add up comparisons. ``effect``: (raters,) the number of each rater's own β and γ, None if nobody has any."""
    c, n = comparisons, len(comparisons.items)
    rater = np.full(len(c), -1) if effect is None else effect[c.rater]
    shown = np.zeros(len(c), dtype=np.int64) if effect is None else c.shown
    key = ((rater + 1) * 3 + shown + 1) * n * n + c.x * n + c.y
    keys, of = np.unique(key, return_inverse=True)
    rest, pair = np.divmod(keys, n * n)
    tally: Floats = (
        np.bincount(of * 3 + 1 - c.outcome, weights=c.count, minlength=3 * len(keys)).reshape(-1, 3).astype(np.float64)
    )
    return Cells(n, 0 if effect is None else int(effect.max()) + 1, pair // n, pair % n, rest // 3 - 1,
                 (rest % 3 - 1).astype(np.float64), tally, of)  # fmt: skip


def rater_effects(comparisons: Comparisons) -> Ints | None:
    """(raters,) the effect of each rater: an own one from ``MIN_VOTES`` comparisons on, one for all the others together. None
    where fewer than two raters would have an own one: with one rater there is nothing to compare them with."""
    votes = np.bincount(comparisons.rater, minlength=len(comparisons.raters))
    frequent = votes >= MIN_VOTES
    if frequent.sum() < 2:
        return None
    return np.where(frequent, np.cumsum(frequent) - 1, frequent.sum())


@dataclass(frozen=True)
class Fit:
    """The most probable parameters ``theta`` (p,) given cells: ``strengths`` s (n,), ``log_tie`` η, ``beta`` (R,), ``gamma``
    (R,)."""

    cells: Cells
    theta: Floats
    ties: bool
    steps: int

    @property
    def strengths(self) -> Floats:
        return self.theta[: self.cells.n_items]

    @property
    def log_tie(self) -> float:
        return float(self.theta[self.cells.n_items]) if self.ties else -np.inf

    @cached_property
    def share(self) -> Floats:
        """(R,) part of the comparisons that each effect answers for."""
        votes = np.bincount(self.cells.rater, weights=self.cells.tally.sum(axis=1), minlength=self.cells.n_raters)
        return np.asarray(votes / votes.sum())

    @property
    def first_effect(self) -> int:
        """Where β begins in θ."""
        return self.cells.n_items + self.ties

    @property
    def beta(self) -> Floats:
        return self.theta[self.first_effect : self.first_effect + self.cells.n_raters]

    @property
    def gamma(self) -> Floats:
        return self.theta[self.first_effect + self.cells.n_raters :]

    # -- the likelihood --------------------------------------------------------------------------------------------------

    @cached_property
    def differences(self) -> Floats:
        """d (C,) of each cell."""
        c = self.cells
        d = self.strengths[c.x] - self.strengths[c.y]
        return d if not c.n_raters else self.beta[c.rater] * d + self.gamma[c.rater] * c.shown

    @cached_property
    def probabilities(self) -> Floats:
        """(C, 3): x wins, tie, y wins."""
        logits = np.stack([self.differences / 2, np.full(len(self.cells.x), self.log_tie), -self.differences / 2], axis=1)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    @cached_property
    def terms_of_d(self) -> list[tuple[Ints, Floats]]:
        """∂d/∂θ of each cell as (column, value) terms, (C,) each."""
        c = self.cells
        if not c.n_raters:
            ones = np.ones(len(c.x))
            return [(c.x, ones), (c.y, -ones)]
        scale, effect = self.beta[c.rater], self.first_effect + c.rater
        return [(c.x, scale), (c.y, -scale), (effect, self.strengths[c.x] - self.strengths[c.y]), (effect + c.n_raters, c.shown)]

    @cached_property
    def gradient_of_d(self) -> Any:
        """∂d/∂θ as a sparse (C, p)."""
        n, terms = len(self.cells.x), self.terms_of_d
        rows = np.tile(np.arange(n), len(terms))
        columns, values = (np.concatenate(part) for part in zip(*terms, strict=True))
        return sparse.csr_array((values, (rows, columns)), shape=(n, len(self.theta)))

    @cached_property
    def prior(self) -> tuple[Floats, Floats]:
        """Mean and precision (p,) of the prior."""
        c = self.cells
        mean = np.zeros(len(self.theta))
        mean[self.first_effect : self.first_effect + c.n_raters] = 1
        sd = [STRENGTH_SD] * c.n_items + [TIE_SD] * self.ties + [BETA_SD] * c.n_raters + [GAMMA_SD] * c.n_raters
        return mean, np.array(sd) ** -2.0

    @cached_property
    def excess(self) -> float:
        """How much the mean β of the comparisons is above 1."""
        return float(self.share @ self.beta) - 1 if self.cells.n_raters else 0.0

    @cached_property
    def objective(self) -> float:
        """Log-likelihood plus log prior, nats, up to a constant."""
        mean, precision = self.prior
        logs = np.log(np.where(self.cells.tally > 0, np.maximum(self.probabilities, 1e-300), 1.0))
        likelihood = float((self.cells.tally * logs).sum()) - 0.5 * AVERAGE * self.excess**2
        return likelihood - 0.5 * float(precision @ (self.theta - mean) ** 2)

    @cached_property
    def scores(self) -> tuple[Floats, Floats]:
        """Derivatives of each cell's log-likelihood by d and by η: (C,) each."""
        p, tally = self.probabilities, self.cells.tally
        total = tally.sum(axis=1)
        by_d = 0.5 * (tally[:, 0] - tally[:, 2] - total * (p[:, 0] - p[:, 2]))
        return by_d, tally[:, 1] - total * p[:, 1]

    @cached_property
    def gradient(self) -> Floats:
        mean, precision = self.prior
        by_d, by_tie = self.scores
        total = -precision * (self.theta - mean)
        for column, value in self.terms_of_d:
            total += np.bincount(column, weights=value * by_d, minlength=len(total))
        if self.ties:
            total[self.cells.n_items] += by_tie.sum()
        if self.cells.n_raters:
            total[self.first_effect : self.first_effect + self.cells.n_raters] -= AVERAGE * self.excess * self.share
        return total

    def information(self, *, expected: bool = False) -> Any:
        """Minus the second derivatives of ``objective``, sparse (p, p); ``expected``: without the term that vanishes on
        average."""
        c, p, terms = self.cells, self.probabilities, self.terms_of_d
        total = c.tally.sum(axis=1)
        lead = p[:, 0] - p[:, 2]
        weight = total * 0.25 * (p[:, 0] + p[:, 2] - lead**2)
        every = np.arange(len(self.theta))
        entries = [(every, every, self.prior[1])]
        entries += [(i, j, weight * u * v) for i, u in terms for j, v in terms]
        if self.ties:
            at = np.full(len(c.x), c.n_items)
            both = -0.5 * total * lead * p[:, 1]
            entries += [entry for i, u in terms for entry in ((i, at, both * u), (at, i, both * u))]
            entries.append((at, at, total * p[:, 1] * (1 - p[:, 1])))
        if c.n_raters:
            effect = self.first_effect + np.arange(c.n_raters)
            rows, columns = (part.ravel() for part in np.meshgrid(effect, effect))
            entries.append((rows, columns, AVERAGE * np.outer(self.share, self.share).ravel()))
        if c.n_raters and not expected:
            effect, by_d = self.first_effect + c.rater, self.scores[0]
            entries += [(c.x, effect, -by_d), (effect, c.x, -by_d), (c.y, effect, by_d), (effect, c.y, by_d)]
        return added_up(entries, len(self.theta))

    @cached_property
    def solver(self) -> Any:
        """The factorised information at the optimum; ``solve`` takes (p,) or (p, k)."""
        return factorised(self.information())

    # -- what follows from it --------------------------------------------------------------------------------------------

    @cached_property
    def ratings_by_theta(self) -> Floats:
        """∂s/∂θ: (n, p), the mean of s held at 0."""
        n = self.cells.n_items
        return np.pad(np.eye(n) - 1 / n, ((0, 0), (0, len(self.theta) - n)))

    def cluster_scores(self, comparisons: Comparisons, clusters: Ints) -> Any:
        """Sum of the scores of the comparisons of each cluster, sparse (G, p); ``clusters``: (N,) numbers from 0."""
        of = self.cells.of
        lead = self.probabilities[:, 0] - self.probabilities[:, 2]
        values = 0.5 * comparisons.count * (comparisons.outcome - lead[of])
        shape = (int(clusters.max()) + 1, len(self.cells.x))
        scores = sparse.csr_array((values, (clusters, of)), shape=shape) @ self.gradient_of_d
        if self.ties:
            by_tie = comparisons.count * ((comparisons.outcome == 0) - self.probabilities[of, 1])
            summed = np.bincount(clusters, weights=by_tie, minlength=shape[0])
            at = np.full(shape[0], self.cells.n_items)
            scores = scores + sparse.coo_array((summed, (np.arange(shape[0]), at)), shape=scores.shape)
        return sparse.csr_array(scores)


def factorised(matrix: Any) -> Any:
    """LU factors of a positive definite sparse matrix in its own order: items of different prompts do not touch, and the few
    parameters that touch everything stand last, so that elimination fills next to nothing."""
    return splu(matrix, permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"SymmetricMode": True})


def added_up(entries: list[tuple[Ints, Ints, Floats]], size: int) -> Any:
    """The (size, size) sparse matrix with these (row, column, value) entries, those of one place summed."""
    if size > DENSE:
        rows, columns, values = (np.concatenate(part) for part in zip(*entries, strict=True))
        return sparse.csc_array((values, (rows, columns)), shape=(size, size))
    dense = np.zeros(size * size)
    for rows, columns, values in entries:
        dense += np.bincount(rows * size + columns, weights=values, minlength=size * size)
    return sparse.csc_array(dense.reshape(size, size))


def fit(cells: Cells, start: Floats | None = None) -> Fit:
    """The most probable parameters, by Fisher scoring with step halving from ``start`` (θ of a fit of the same items).

    Without rater effects the objective is concave and the optimum the only one.
    """
    ties = bool(cells.tally[:, 1].any())
    if start is None:
        start = np.concatenate([np.zeros(cells.n_items + ties), np.ones(cells.n_raters), np.zeros(cells.n_raters)])
    now = Fit(cells, start, ties, 0)
    for number in range(1, STEPS + 1):
        # The expected information is positive definite everywhere; with the observed one the steps may end in a saddle.
        step = factorised(now.information(expected=True)).solve(now.gradient)
        gain = float(now.gradient @ step)  # twice what a quadratic objective would gain
        if gain < 1e-8:  # the square of the distance to the optimum in standard errors
            break
        length = 1.0
        while (tried := Fit(cells, now.theta + length * step, ties, number)).objective < now.objective + 1e-4 * length * gain:
            length /= 2
            if length < 1e-8:
                return now
        now = tried
    return now


def fit_near(near: Fit, cells: Cells) -> Fit:
    """The fit of cells that differ a little from those of ``near``, by steps that reuse its factorised information."""
    if bool(cells.tally[:, 1].any()) != near.ties:
        return fit(cells)
    now = Fit(cells, near.theta, near.ties, 0)
    before = np.inf
    while True:
        step = near.solver.solve(now.gradient)
        gain = float(now.gradient @ step)
        if 0 <= gain < 1e-8:
            return now
        if not 0 <= gain < before / 4:  # too far away for that
            return fit(cells, now.theta if now.steps else near.theta)
        before, now = gain, Fit(cells, now.theta + step, near.ties, now.steps + 1)


def without(cells: Cells, comparisons: Comparisons, dropped: Any) -> Cells:
    """The cells without some comparisons, chosen by a mask or an index."""
    key = cells.of[dropped] * 3 + 1 - comparisons.outcome[dropped]
    gone = np.bincount(key, weights=comparisons.count[dropped], minlength=cells.tally.size)
    return replace(cells, tally=np.maximum(cells.tally - gone.reshape(cells.tally.shape), 0))
