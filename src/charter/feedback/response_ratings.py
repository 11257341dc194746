"""Ratings of single responses: what the raters together say of one prompt's responses, and how sure that is.

A prompt has few votes, so there is nothing to cluster: the interval is the posterior's, given the rater effects. The pairs of one ranking of K
responses count 2/K each, K − 1 in all, because a ranking is K − 1 choices (Plackett 1975) and not K (K − 1)/2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse, stats

from charter.feedback.bradley_terry import Fit, cells_of, factorised, fit, rater_effects
from charter.feedback.comparisons import Comparisons, Floats, Ints
from charter.feedback.leaderboard import rank_sets

CONTESTED = 0.75  # of the best against the next: below this nobody should call it settled


@dataclass(frozen=True)
class PromptRatings:
    """The responses of one prompt from the best to the worst: ``ratings`` in log-odds of an average vote (mean 0 over the prompt), half
    an interval of 95 % for each, the ranks compatible with the intervals of the differences, ``p_best`` the posterior probability that
    the first is better than the second (None with one response); ``contested`` where that is below 0.75. ``votes``: ballots."""

    prompt: str
    responses: tuple[str, ...]
    ratings: Floats
    reach: Floats
    ranks: list[tuple[int, int]]
    p_best: float | None
    votes: int

    @property
    def contested(self) -> bool:
        return self.p_best is not None and self.p_best < CONTESTED


def per_choice(comparisons: Comparisons) -> Comparisons:
    """The comparisons with each counted 2/K, K the responses that its ballot compares."""
    ends = np.unique(np.concatenate([comparisons.ballot, comparisons.ballot]) * (len(comparisons.items) + 1)
                     + np.concatenate([comparisons.x, comparisons.y]))  # fmt: skip
    size = np.bincount(ends // (len(comparisons.items) + 1))
    return replace(comparisons, count=comparisons.count * 2 / size[comparisons.ballot])


def rate_responses(comparisons: Comparisons, prompts: tuple[str, ...], *, equal_raters: bool = False) -> list[PromptRatings]:
    """Ratings of the responses of every prompt with a comparison, in the order of ``prompts``."""
    weighed = per_choice(comparisons)
    found = fit(cells_of(weighed, None if equal_raters else rater_effects(comparisons)))
    owner = np.full(len(comparisons.items), -1)
    owner[comparisons.x] = owner[comparisons.y] = comparisons.prompt
    votes = np.bincount(np.unique(np.stack([comparisons.prompt, comparisons.ballot]), axis=1)[0], minlength=len(prompts))
    members = np.argsort(owner, kind="stable")
    members = members[owner[members] >= 0]
    within, covariances = _blocks(found, owner, members)
    rated = []
    for prompt, group, covariance in zip(np.unique(owner[members]).tolist(), within, covariances, strict=True):
        ratings = found.strengths[group] - found.strengths[group].mean()
        order = np.argsort(-ratings, kind="stable")
        k = len(order)
        centre = np.eye(k) - 1 / k
        own = np.diag(covariance)
        between = own[:, None] + own[None, :] - 2 * covariance
        reach = stats.norm.ppf((1 + 0.95 ** (1 / max(k - 1, 1))) / 2) * np.sqrt(np.maximum(between, 0))  # Šidák 1967
        first, second = order[0], order[min(1, k - 1)]
        p_best = float(stats.norm.cdf((ratings[first] - ratings[second]) / np.sqrt(between[first, second]))) if k > 1 else None
        rated.append(PromptRatings(
            prompts[prompt], tuple(comparisons.items[i] for i in group[order]), ratings[order],
            stats.norm.ppf(0.975) * np.sqrt(np.diag(centre @ covariance @ centre))[order],
            rank_sets(ratings[order], reach[np.ix_(order, order)]), p_best, int(votes[prompt]),
        ))  # fmt: skip
    return rated


def _blocks(found: Fit, owner: Ints, members: Ints) -> tuple[list[Ints], list[Floats]]:
    """The items of each prompt and the posterior covariance of their ratings. Strengths of different prompts do not touch, so one
    solve for the k-th item of all prompts gives the k-th column of every block."""
    n = found.cells.n_items
    solver = factorised(sparse.csc_array(found.information(expected=True)[:n, :n]))
    starts = np.flatnonzero(np.diff(owner[members], prepend=-1))
    within = np.split(members, starts[1:])
    sizes = np.array([len(group) for group in within])
    place = np.zeros(n, dtype=np.int64)
    for k in range(int(sizes.max())):
        place[members[(starts + k)[sizes > k]]] = k
    columns: list[Any] = []
    for k in range(int(sizes.max())):
        unit = np.zeros(n)
        unit[members[place[members] == k]] = 1
        columns.append(solver.solve(unit))
    table = np.stack(columns, axis=1)
    return within, [table[group][:, : len(group)] for group in within]
