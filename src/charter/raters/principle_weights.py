"""Which principles explain votes: a logistic model of votes on what each principle says.

A principle says s in (−1, 1) about a vote: 1 where it surely prefers what the rater chose, −1 where it surely prefers the other
response, 0 where it says nothing. P(the vote) = σ(Σ w s) with weights w ≥ 0: w is the log odds (nats) with which the raters
follow the principle where it alone speaks. Of C candidates those are chosen that each gain more than log C nats (the risk
inflation criterion, Foster and George 1994, doi:10.1214/aos/1176325766), by steps forward from none and by steps back from the
strongest; the better of the two sets counts. Votes that chose nothing then confirm each: a one-sided score test of its weight
beside the others, robust to clusters of votes, corrected for the number of chosen principles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from charter.statistics import paired_difference

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RIDGE = 1 / 9  # a normal prior of standard deviation 3: a principle that is never contradicted gets a finite weight
MOST = 12  # principles in one model
STRONGEST = 24  # with which the steps back begin
NEWTON = 12  # steps of the search along one weight
FAMILY_ERROR = 0.05
LEAST_VOTES = 10  # held-out votes about which a principle must say something


def fit_weights(says: Floats) -> Floats:
    """The weights (S,), at least 0, that make votes (V, S) likeliest under the prior."""
    if not says.shape[1] or not len(says):
        return np.zeros(says.shape[1])

    def loss(weights: Floats) -> tuple[float, Floats]:
        z = says @ weights
        value = -special.log_expit(z).sum() + RIDGE / 2 * (weights @ weights)
        return float(value), RIDGE * weights - says.T @ special.expit(-z)

    bounds = [(0.0, None)] * says.shape[1]
    solution = optimize.minimize(loss, np.full(says.shape[1], 0.1), jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(solution.x, dtype=np.float64)


def log_likelihood(says: Floats, weights: Floats) -> Floats:
    """log P of each vote (V,), nats."""
    return np.asarray(special.log_expit(says @ weights), dtype=np.float64)


def fitted_likelihood(says: Floats) -> float:
    return float(log_likelihood(says, fit_weights(says)).sum())


def best_addition(says: Floats, offset: Floats) -> int:
    """The candidate (of C) with the largest gain beside the ``offset`` (V,) of the others."""
    weight = np.zeros(says.shape[1])
    for _ in range(NEWTON):
        p = special.expit(-(offset[:, None] + says * weight))
        slope = (says * p).sum(axis=0) - RIDGE * weight
        curve = (says**2 * p * (1 - p)).sum(axis=0) + RIDGE
        weight = np.maximum(weight + np.clip(slope / curve, -2.0, 2.0), 0.0)
    gain = special.log_expit(offset[:, None] + says * weight).sum(axis=0) - special.log_expit(offset).sum()
    return int(np.argmax(gain))


def choose(says: Floats) -> list[int]:
    """The candidates that explain votes (V, C), the most needed first."""
    count = says.shape[1]
    price = math.log(max(count, 2))  # nats for each principle
    forward = step_back(says, step_forward(says, price), price)
    weights = fit_weights(says)
    strength = weights * np.abs(says).mean(axis=0) if len(says) else weights
    strongest = [c for c in np.argsort(-strength, kind="stable").tolist()[:STRONGEST] if weights[c] > 0]
    backward = step_back(says, strongest, price)
    best = max((forward, backward), key=lambda chosen: fitted_likelihood(says[:, chosen]) - price * len(chosen))
    return best[:MOST]


def step_forward(says: Floats, price: float) -> list[int]:
    """Candidates added one by one, the largest gain first, while a gain exceeds the price."""
    chosen: list[int] = []
    current = fitted_likelihood(says[:, chosen])
    while len(chosen) < min(MOST, says.shape[1]):
        offset = says[:, chosen] @ fit_weights(says[:, chosen])
        others = [c for c in range(says.shape[1]) if c not in chosen]
        added = others[best_addition(says[:, others], offset)]
        gained = fitted_likelihood(says[:, [*chosen, added]])
        if gained - current <= price:
            break
        chosen, current = [*chosen, added], gained
    return chosen


def step_back(says: Floats, chosen: list[int], price: float) -> list[int]:
    """Candidates taken out one by one, the smallest loss first, while a loss is below the price."""
    current = fitted_likelihood(says[:, chosen])
    while chosen:
        without = [fitted_likelihood(says[:, [c for c in chosen if c != gone]]) for gone in chosen]
        best = int(np.argmax(without))
        if current - without[best] > price:
            break
        chosen, current = [c for c in chosen if c != chosen[best]], without[best]
    return chosen


@dataclass(frozen=True)
class Chosen:
    """The principles that held-out votes confirm. ``weights`` (S,) come from the other votes; ``p`` is the corrected p of each;
    ``refused``: those that were chosen and not confirmed, with theirs."""

    principles: list[int]
    weights: Floats
    p: list[float]
    refused: dict[int, float]


def choose_and_confirm(says: Floats, held_out: NDArray[np.bool_], clusters: Sequence[str]) -> Chosen:
    """Choose on the votes that are not ``held_out`` (V,), confirm on those that are; ``clusters`` (V,): the prompt of each."""
    fit, test = says[~held_out], says[held_out]
    labels = [cluster for cluster, out in zip(clusters, held_out, strict=True) if out]
    chosen = choose(fit)
    n_tests = len(chosen)
    refused: dict[int, float] = {}
    while True:
        p = [min(1.0, n_tests * score_test(test[:, k], test[:, [c for c in chosen if c != k]], labels)) for k in chosen]
        if not p or max(p) <= FAMILY_ERROR:
            return Chosen(chosen, fit_weights(fit[:, chosen]), p, refused)
        worst = int(np.argmax(p))
        refused[chosen[worst]] = p[worst]
        chosen = [c for c in chosen if c != chosen[worst]]


def score_test(says: Floats, others: Floats, clusters: Sequence[str]) -> float:
    """One-sided p of a weight above 0 for what a principle says about votes (V,), beside the ``others`` (V, S): the efficient
    score with a cluster-robust variance (t at the clusters' degrees of freedom). 1 where it speaks of too few votes."""
    if int((says != 0).sum()) < LEAST_VOTES:
        return 1.0
    weights = fit_weights(others)
    active = others[:, weights > 0]
    p = special.expit(others @ weights)
    spread = p * (1 - p)
    residual = says
    if active.shape[1]:
        root = np.sqrt(spread)
        residual = says - active @ np.linalg.lstsq(root[:, None] * active, root * says, rcond=None)[0]
    score = paired_difference([0.0] * len(says), (residual * (1 - p)).tolist(), clusters)
    if score.difference is None or score.p is None or score.difference <= 0:
        return 1.0
    return score.p / 2
