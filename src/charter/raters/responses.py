"""Ratings of single responses: the raters' joint judgment of the responses to a prompt, and its uncertainty.

A prompt has few votes, so there is nothing to cluster: the interval is that of the posterior given the raters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from charter.raters.comparisons import Comparisons, Floats
from charter.raters.leaderboard import rank_sets
from charter.raters.reliability import RaterModel, fit_raters

CONTESTED = 0.75  # of the best against the next: below this nobody should call it settled


@dataclass(frozen=True)
class PromptRatings:
    """The responses of one prompt from the best to the worst: ``ratings`` in log-odds of an average vote (mean 0 over the
    prompt), half an interval of 95 % for each, the ranks compatible with the intervals of the differences, ``p_best`` the
    posterior probability that the first is better than the second (None with one response); ``contested`` where that is below
    0.75. ``votes``: ballots."""

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


def rate_responses(comparisons: Comparisons, prompts: tuple[str, ...], model: RaterModel | None = None) -> list[PromptRatings]:
    """Ratings of the responses of every prompt with a comparison, in the order of ``prompts``; ``model`` where it is known
    already."""
    model = model or fit_raters(comparisons)
    ballots = np.unique(np.stack([comparisons.prompt, comparisons.ballot]), axis=1)[0]
    votes = np.bincount(ballots, minlength=len(prompts))
    rated = []
    for prompt, group in zip(model.blocks.prompts.tolist(), model.blocks.groups(), strict=True):
        ratings, covariance = model.strengths[group], model.columns[group][:, : len(group)]
        order = np.argsort(-ratings, kind="stable")
        k = len(order)
        variance = np.diag(covariance)
        between = np.sqrt(np.maximum(variance[:, None] + variance[None, :] - 2 * covariance, 0))
        reach = stats.norm.ppf((1 + 0.95 ** (1 / max(k - 1, 1))) / 2) * between  # Šidák 1967
        centre = np.eye(k) - 1 / k
        first, second = order[0], order[min(1, k - 1)]
        rated.append(PromptRatings(
            prompts[prompt], tuple(comparisons.items[i] for i in group[order]), (ratings - ratings.mean())[order],
            stats.norm.ppf(0.975) * np.sqrt(np.diag(centre @ covariance @ centre))[order],
            rank_sets(ratings[order], reach[np.ix_(order, order)]),
            float(stats.norm.cdf((ratings[first] - ratings[second]) / between[first, second])) if k > 1 else None,
            int(votes[prompt]),
        ))  # fmt: skip
    return rated
