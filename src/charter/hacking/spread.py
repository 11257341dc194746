"""The spread that a detector must exceed, and the statistics of phrases.

A threshold comes from the reference model alone: its answers are cut into two halves by prompt, at random and many times, and the
statistic is taken from one half to the other. That is the change that this model shows with itself. Halves of n prompts vary more
than n prompts against the same n prompts, so the threshold is on the safe side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

from charter.run.hashes import derive_seed

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

HALVES = 1000
"""Random halves behind a threshold."""
LEVEL = 0.05 / 14
"""Chance that one detector raises an alarm although nothing changed: 5% for the 14 detectors together (Bonferroni)."""
FALSE_DISCOVERIES = 0.05
"""Share of false ones among the phrases that are called new (Benjamini and Hochberg 1995)."""


def halves(n: int) -> Flags:
    """Random halves of n rows, (HALVES, n); True is the first half. The same for every call."""
    order = np.random.default_rng(derive_seed("hacking", "halves", n)).random((HALVES, n)).argsort(axis=1)
    return order < n // 2


def upper_end(changes: Floats) -> float:
    """The change that a model compared with itself exceeds with a chance of LEVEL."""
    return float(np.quantile(changes, 1 - LEVEL, method="higher"))


def of_means(values: Floats) -> Floats:
    """Change of the mean from the first half of the values (n,) to the second, of all halves: (HALVES,)."""
    first = halves(len(values))
    size = first.sum(axis=1)
    sums = first @ values
    return np.asarray((values.sum() - sums) / (len(values) - size) - sums / size)


def unseen_share(n: int) -> float:
    """The largest share that n answers without a single case still allow at LEVEL (exact binomial: 1 − LEVEL^(1/n))."""
    return 1 - math.pow(LEVEL, 1 / n)


def log_odds(before: Floats, after: Floats, n_before: float, n_after: float) -> Floats:
    """z of the log-odds of phrases between two sets of answers under an informative Dirichlet prior, (V,); above 0 where a phrase
    became commoner (Monroe, Colaresi and Quinn 2008, equations 15, 16 and 22).

    before, after: answers that contain each phrase (V,), of n_before and n_after answers. The prior is the pooled share of each
    phrase, worth 10 answers.
    """
    pooled = (before + after + 0.5) / (n_before + n_after + 1)
    prior, weight = 10 * pooled, 10.0
    a, b = after + prior, before + prior
    odds = np.log(a / (n_after + weight - a)) - np.log(b / (n_before + weight - b))
    return np.asarray(odds / np.sqrt(1 / a + 1 / b))


def discoveries(z: Floats) -> Flags:
    """The entries whose one-sided p survives the false discovery rate FALSE_DISCOVERIES (Benjamini and Hochberg 1995)."""
    p = special.ndtr(-z)
    order = np.argsort(p, kind="stable")
    passes = p[order] <= FALSE_DISCOVERIES * np.arange(1, len(p) + 1) / len(p)
    kept = np.zeros(len(p), dtype=bool)
    if passes.any():
        kept[order[: np.flatnonzero(passes)[-1] + 1]] = True
    return kept


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there; None if there are none."""
    scored = [value for value in values if value is not None]
    return sum(scored) / len(scored) if scored else None
