"""Noise or taste: a head of its own for every rater on frozen features of the responses.

The pooled head w predicts everybody's votes, P(x wins) = σ(wᵀ(φ_x − φ_y)); a rater's own is b_r w + v_r with a ridge on v_r,
so that few votes stay near the pooled taste (after Poddar et al. 2024 and Bose et al. 2025: a shared basis, a small vector a
person). Every vote is predicted by heads that have not seen its prompt. A rater whose own head predicts better than the
pooled one has another taste; one whom no head predicts better than a coin has none, or is careless. Filtering by agreement
alone would remove both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from charter.errors import InputError
from charter.raters.comparisons import Comparisons, Floats, Ints
from charter.records import content_id
from charter.statistics import Interval, PairedDifference, clustered_proportion, paired_difference

FOLDS = 5
DIRECTIONS = 32  # principal directions of the features that heads are fitted on
RIDGE = 1.0  # of the pooled head, in units of the mean square of a direction
RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)  # of the own heads; which one is told by votes left out of the fit
MIN_VOTES = 10  # decided votes below which a rater gets no verdict

FAR = 2 / 3  # of the way from a coin to the middle rater: a head that surely stays below that has found nothing

SHARED, OWN, NONE, UNKNOWN = "shared taste", "own taste", "no taste found", "too few votes"


@dataclass(frozen=True)
class Taste:
    """One rater, on ``votes`` decided votes none of which its head has seen. ``own``, ``pooled``: share that the head
    predicts, with 95 % intervals clustered by prompt; ``gain``: nats a vote by which the own head predicts better than the
    pooled one at the rater's scale, paired. ``word``: shared taste, own taste (the gain is above 0), no taste found (the own
    head no better than a coin and surely far from the middle rater's), too few votes; the intervals behind it hold for all
    raters at once."""

    rater: str
    votes: int
    own: float | None
    own_ci: Interval | None
    pooled: float | None
    pooled_ci: Interval | None
    gain: float | None
    gain_ci: Interval | None
    word: str


@dataclass(frozen=True)
class HeldOut:
    """N decided votes and their logits (N,) by heads that have not seen their prompts: of the rater's own head, of the pooled
    one at the rater's scale, and of the pooled one itself. ``ridges``: of the own heads, by fold."""

    votes: Comparisons
    own: Floats
    scaled: Floats
    pooled: Floats
    ridges: tuple[float, ...]

    @property
    def win(self) -> Floats:
        """(N,) 1 where x was preferred, else 0."""
        return np.asarray((self.votes.outcome == 1).astype(float))

    @property
    def gain(self) -> PairedDifference:
        """The share of all votes that own heads predict, less the share that the pooled head does; clustered by prompt."""
        right = [((logits > 0) == (self.win == 1)).astype(float).tolist() for logits in (self.own, self.pooled)]
        return paired_difference(right[1], right[0], self.votes.prompt.tolist())


def held_out(comparisons: Comparisons, features: Floats, *, seed: int = 0, common: Floats | None = None) -> HeldOut:
    """Predictions of every vote. ``features``: (n, d), a row an item of ``comparisons``. ``common``: weights (d,) of a head that
    stands in place of the pooled one and is not fitted. Ties are left out. InputError if features are not finite, ValueError
    if rows are missing."""
    if features.shape[0] != len(comparisons.items):
        raise ValueError(f"{features.shape[0]} rows of features for {len(comparisons.items)} items")
    if not np.isfinite(features).all():
        raise InputError("a feature is not finite; the reward model overflows on these responses")
    c = comparisons.take(comparisons.outcome != 0)
    if len(c) == 0:
        raise InputError("every vote is a tie, so no taste can be learned; give votes that decide")
    z, _ = _directions(features, c)
    known = None if common is None else (features @ common)[c.x] - (features @ common)[c.y]
    win = (c.outcome == 1).astype(float)
    fold = _folds(c.prompt, seed)
    ridges = []
    own_logits, scaled, pooled = np.zeros(len(c)), np.zeros(len(c)), np.zeros(len(c))
    for k in range(FOLDS):
        test, check = fold == k, fold == (k + 1) % FOLDS
        fit = ~(test | check)
        ridge = min(RIDGES, key=lambda value: _loss(_heads(z, win, c.rater, fit, check, value, known)[0], win[check]))
        ridges.append(ridge)
        own_logits[test], scaled[test], pooled[test] = _heads(z, win, c.rater, ~test, test, ridge, known)
    return HeldOut(c, own_logits, scaled, pooled, tuple(ridges))


def tastes(predicted: HeldOut) -> list[Taste]:
    """Every rater's taste, from the predictions of its votes."""
    c, win = predicted.votes, predicted.win
    right = [(prediction > 0) == (win == 1) for prediction in (predicted.own, predicted.pooled)]
    losses = [np.logaddexp(0, np.where(win == 1, -prediction, prediction)) for prediction in (predicted.own, predicted.scaled)]
    by_rater = [
        _taste(c, i, [r[c.rater == i] for r in right], [loss[c.rater == i] for loss in losses]) for i in range(len(c.raters))
    ]
    known = [pair[0].own for pair in by_rater if pair[0].own is not None]
    middle = float(np.median(known)) if known else 1.0
    return [_with_word(taste, strict, middle) for taste, strict in by_rater]


def final_heads(predicted: HeldOut, features: Floats, common: Floats | None = None) -> dict[str, Floats]:
    """Rater to the weights (d,) of its own head on ``features``, fitted on all its votes: a difference of two scores is the log
    odds of its preference. A rater with fewer than ``MIN_VOTES`` votes gets none. ``common`` as in :func:`held_out`."""
    c = predicted.votes
    z, onto = _directions(features, c)
    ridge = float(np.median(predicted.ridges))
    pooled = onto @ _logistic(z, predicted.win, np.zeros(len(c)), RIDGE) if common is None else common
    logits = (features @ pooled)[c.x] - (features @ pooled)[c.y]
    heads = {}
    for i, rater in enumerate(c.raters):
        mine = c.rater == i
        if mine.sum() >= MIN_VOTES:
            scale = _scale(logits[mine], predicted.win[mine])
            heads[rater] = scale * pooled + onto @ _logistic(z[mine], predicted.win[mine], scale * logits[mine], ridge)
    return heads


def _scale(logits: Floats, win: Floats) -> float:
    """How decided votes are beside the pooled head's logits (n,) of them; at least 0."""
    return max(1 + float(_logistic(logits[:, None], win, logits, RIDGE)[0]), 0.0)


def _directions(features: Floats, c: Comparisons) -> tuple[Floats, Floats]:
    """(N, k) differences of the features along their first principal directions, the mean square of the first one being 1, and
    (d, k) what turns features into them."""
    used = np.unique(np.concatenate([c.x, c.y]))
    centred = features - features[used].mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred[used], full_matrices=False)
    kept = (sizes > 1e-6 * max(float(sizes[0]), 1e-12)) & (np.arange(len(sizes)) < DIRECTIONS)
    projected = centred @ axes[kept].T
    difference = projected[c.x] - projected[c.y]
    size = max(float(np.sqrt((difference**2).mean(axis=0).max(initial=0))), 1e-12)
    return difference / size, axes[kept].T / size


def _folds(prompt: Ints, seed: int) -> Ints:
    """(N,) the fold of each comparison; a prompt is in one."""
    names = np.unique(prompt)
    order = sorted(names.tolist(), key=lambda name: content_id(seed, name))
    place = np.zeros(int(names.max()) + 1, dtype=np.int64)
    place[order] = np.arange(len(order)) % FOLDS
    return np.asarray(place[prompt])


def _logistic(z: Floats, win: Floats, offset: Floats, ridge: float) -> Floats:
    """w (k,) that maximises the log-likelihood of ``win`` at logits z w + offset less ridge/2 |w|², by Newton's method."""
    w = np.zeros(z.shape[1])
    for _ in range(30):
        p = special.expit(z @ w + offset)
        gradient = z.T @ (win - p) - ridge * w
        step = np.linalg.solve((z * (p * (1 - p))[:, None]).T @ z + ridge * np.eye(len(w)), gradient)
        w = w + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max(initial=0) < 1e-6:
            break
    return w


def _heads(
    z: Floats, win: Floats, rater: Ints, fit: Ints, test: Ints, ridge: float, known: Floats | None
) -> tuple[Floats, Floats, Floats]:
    """Logits for the rows ``test`` of the own heads, of the pooled head at the scale of each rater (or else a rater who is
    only more decided than others would look like one of another taste), and of the pooled head itself; fitted on the rows
    ``fit`` (masks). ``known``: logits (N,) of a pooled head that needs no fit."""
    pooled = z @ _logistic(z[fit], win[fit], np.zeros(int(fit.sum())), RIDGE) if known is None else known
    scaled, own_logits = pooled.copy(), pooled.copy()
    for i in np.unique(rater[test]):
        mine, all_of = fit & (rater == i), rater == i
        if mine.any():
            scale = _scale(pooled[mine], win[mine])
            scaled[all_of] *= scale
            own_logits[all_of] = scaled[all_of] + z[all_of] @ _logistic(z[mine], win[mine], scaled[mine], ridge)
    return own_logits[test], scaled[test], pooled[test]


def _loss(logits: Floats, win: Floats) -> float:
    """Nats of the own heads."""
    return float(np.logaddexp(0, np.where(win == 1, -logits, logits)).sum())


Strict = tuple[Interval | None, Interval | None]


def _taste(c: Comparisons, i: int, right: list[Floats], losses: list[Floats]) -> tuple[Taste, Strict]:
    """The figures of a rater, and the intervals of own share and gain that hold for all raters at once."""
    clusters = c.prompt[c.rater == i].tolist()
    n = len(clusters)
    if n < MIN_VOTES or len(set(clusters)) < 2:
        return Taste(c.raters[i], n, None, None, None, None, None, None, UNKNOWN), (None, None)
    at_once = 0.95 ** (1 / len(c.raters))
    own_share, pooled_share = (clustered_proportion([bool(v) for v in values], clusters) for values in right)
    gain = paired_difference(losses[0].tolist(), losses[1].tolist(), clusters)
    strict = (clustered_proportion([bool(v) for v in right[0]], clusters, at_once).ci,
              paired_difference(losses[0].tolist(), losses[1].tolist(), clusters, at_once).ci)  # fmt: skip
    return Taste(
        c.raters[i], n, own_share.value, own_share.ci, pooled_share.value, pooled_share.ci, gain.difference, gain.ci, UNKNOWN
    ), strict


def _with_word(taste: Taste, strict: Strict, middle: float) -> Taste:
    own_ci, gain_ci = strict
    if own_ci is None or gain_ci is None:
        return taste
    word = UNKNOWN
    if own_ci[0] > 0.5:
        word = OWN if gain_ci[0] > 0 else SHARED
    elif own_ci[1] < 0.5 + FAR * (middle - 0.5):
        word = NONE
    return Taste(**{**vars(taste), "word": word})
