"""A line for each rater, whoever it is: how far its votes follow the others', a liking for the first place, ties, F, time.

Words come from intervals that hold for all raters at once (Šidák 1967), so that among many good raters none is called bad by
chance. They are a reason to look, not to remove: a filter in an export removes, and a rater of another taste is another thing
than a bad one (:mod:`charter.raters.personal`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from charter.raters.agreement import question_units
from charter.raters.comparisons import FAILED, Comparisons, Votes, as_comparisons, single_orders
from charter.raters.reliability import RaterModel, fit_raters
from charter.statistics import Interval, wilson

FOLLOWS = 0.5  # a rater whose β is below half of the middle rater's is called random
LEANS = 0.1  # nats that γ has to exceed for sure: the first place wins 52 % of equal pairs


@dataclass(frozen=True)
class RaterLine:
    """One rater. ``beta``: slope of its votes on what the others say, 1 for an average vote, 0 for a coin, negative for
    reversed. ``gamma``: nats for what is shown first. ``agrees``: share of its decided pairs that go with the majority of the
    others, ``n_agrees`` of them. ``tie_rate`` of its pairs, ``failed_rate`` of its responses, ``seconds`` per vote (median).
    ``repeats``: share of pairs judged twice that got the same answer, of ``n_repeats``. ``overlap``: prompts others judged
    too. Intervals at 95 %."""

    rater: str
    kind: str
    votes: int
    overlap: int
    beta: float
    beta_ci: Interval
    gamma: float
    gamma_ci: Interval
    agrees: float | None
    n_agrees: int
    tie_rate: float | None
    tie_ci: Interval | None
    failed_rate: float | None
    failed_ci: Interval | None
    seconds: float | None
    repeats: float | None
    n_repeats: int
    words: tuple[str, ...]


def rater_lines(votes: Votes, model: RaterModel | None = None) -> list[RaterLine]:
    """The table of raters, the least reliable first."""
    model = model or fit_raters(single_orders(votes))
    n = len(votes.raters)
    ballots = np.bincount(votes.rater, minlength=n)
    raw = as_comparisons(votes, raw=True)
    agrees, n_agrees = _with_majority(votes, raw)
    repeats, n_repeats = _repeats(votes, raw)
    pairs, ties = (
        np.bincount(raw.rater, weights=raw.count * marked, minlength=n) for marked in (np.ones(len(raw)), raw.outcome == 0)
    )
    who = votes.rater[votes.ranked_in]
    ranked, failed = (np.bincount(who, weights=marked, minlength=n) for marked in (np.ones(len(who)), votes.rank == FAILED))
    lines = []
    floor = FOLLOWS * float(np.median(model.beta))
    for i, rater in enumerate(votes.raters):
        degrees = max(int(model.overlap[i]) - 1, 1)
        at_once = 0.95 ** (1 / n)

        def interval(value: float, error: float, level: float = 0.95, degrees: int = degrees) -> Interval:
            half = float(stats.t.ppf((1 + level) / 2, degrees)) * error
            return value - half, value + half

        beta, gamma = float(model.beta[i]), float(model.gamma[i])
        errors = float(model.beta_se[i]), float(model.gamma_se[i])
        words = _words(interval(beta, errors[0], at_once), interval(gamma, errors[1], at_once), int(model.overlap[i]), floor)
        times = votes.seconds[(votes.rater == i) & np.isfinite(votes.seconds)]
        lines.append(RaterLine(
            rater, votes.kinds[i], int(ballots[i]), int(model.overlap[i]), beta, interval(beta, errors[0]), gamma,
            interval(gamma, errors[1]), _share(agrees[i], n_agrees[i]), int(n_agrees[i]), _share(ties[i], pairs[i]),
            wilson(ties[i], pairs[i]) if pairs[i] else None, _share(failed[i], ranked[i]),
            wilson(failed[i], ranked[i]) if ranked[i] else None, float(np.median(times)) if len(times) else None,
            _share(repeats[i], n_repeats[i]), int(n_repeats[i]), words,
        ))  # fmt: skip
    return sorted(lines, key=lambda line: line.beta)


def _words(beta_ci: Interval, gamma_ci: Interval, overlap: int, floor: float) -> tuple[str, ...]:
    if overlap < 2:  # one prompt has no variance, so there is no interval to speak of
        return ("overlaps with others on one prompt only",) if overlap else ("no overlap with others",)
    words = ["reversed"] if beta_ci[1] < 0 else ["random"] if beta_ci[1] < floor else []
    if gamma_ci[0] > LEANS:
        words.append("likes the first")
    elif gamma_ci[1] < -LEANS:
        words.append("likes the last")
    return tuple(words)


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _with_majority(votes: Votes, raw: Comparisons) -> tuple[np.ndarray, np.ndarray]:
    """Per rater the decided pairs that go with the majority of the others, and the pairs with a majority (not an even split)."""
    n = len(votes.raters)
    unit = question_units(votes, raw)
    _, first = np.unique(np.stack([unit, raw.rater]), axis=1, return_index=True)
    unit, rater, outcome = unit[first], raw.rater[first], raw.outcome[first]
    others = np.bincount(unit, weights=outcome)[unit] - outcome
    told = (others != 0) & (outcome != 0)
    return (np.bincount(rater, weights=told & (np.sign(others) == outcome), minlength=n),
            np.bincount(rater, weights=told, minlength=n))  # fmt: skip


def _repeats(votes: Votes, raw: Comparisons) -> tuple[np.ndarray, np.ndarray]:
    """Per rater the pairs it judged again with the same answer as at first, and all it judged again."""
    key = np.stack([question_units(votes, raw), raw.rater])
    _, first, number = np.unique(key, axis=1, return_index=True, return_inverse=True)
    again = first[number] != np.arange(len(raw))
    same = again & (raw.outcome == raw.outcome[first[number]])
    n = len(votes.raters)
    return np.bincount(raw.rater, weights=same, minlength=n), np.bincount(raw.rater, weights=again, minlength=n)
