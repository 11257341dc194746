"""How reliable each rater is when the right answers are unknown: every rater is compared with the others.

The model is that of :mod:`charter.raters.bradley_terry` with responses as items. A response has few votes, so its strength
s ~ N(0, σ²) is not fitted along with the raters: fitted along, the votes of one rater can explain themselves, and that rater
looks perfect or reversed (docs/LOG.md). Instead, for each ballot, the posterior of s from the ballots of the *other* raters
on the same prompt predicts it, and β_r, γ_r are the slope and the offset of a rater's votes on those predictions; with them
the posteriors are computed anew, until nothing changes. σ is the spread at which an average vote follows the predictions with
slope 1, so that strengths are log-odds of an average vote. The pairs of one ranking of K responses count 2/K each, K − 1 in
all: a ranking is K − 1 choices (Plackett 1975).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, special

from charter.errors import InputError
from charter.raters.bradley_terry import BETA_SD, GAMMA_SD, TIE_SD, added_up, factorised
from charter.raters.comparisons import Comparisons, Floats, Ints

ROUNDS = 30
TOLERANCE = 0.005  # the largest change of β, γ, η in a round that ends the fit
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
SD_RANGE = (0.1, 10.0)
MANY = 30  # prompts of a rater, from which on the sandwich stands alone
OTHERS = 12  # ballots of others that a ballot is held against; more would hardly sharpen the prediction


def per_choice(comparisons: Comparisons) -> Comparisons:
    """The comparisons with each counted 2/K, K the responses that its ballot compares."""
    n = len(comparisons.items)
    ends = np.concatenate([comparisons.ballot * n + comparisons.x, comparisons.ballot * n + comparisons.y])
    size = np.bincount(np.unique(ends) // n)
    return replace(comparisons, count=comparisons.count * 2 / size[comparisons.ballot])


@dataclass(frozen=True)
class Blocks:
    """Items by prompt. ``members``: the compared items, those of a prompt together; ``start`` of each prompt among them;
    ``place`` (items,) the number of an item within its prompt; ``prompts``: the prompt of each block."""

    members: Ints
    start: Ints
    place: Ints
    prompts: Ints

    @classmethod
    def of(cls, comparisons: Comparisons) -> Blocks:
        """InputError if an item was compared under several prompts."""
        owner = np.full(len(comparisons.items), -1)
        owner[comparisons.x] = owner[comparisons.y] = comparisons.prompt
        if (owner[comparisons.x] != comparisons.prompt).any() or (owner[comparisons.y] != comparisons.prompt).any():
            raise InputError("the votes name no prompts, so their responses are unknown; add a column prompt_id, or rate models")
        members = np.argsort(owner, kind="stable")
        members = members[owner[members] >= 0]
        prompts, start, size = np.unique(owner[members], return_index=True, return_counts=True)
        place = np.zeros(len(owner), dtype=np.int64)
        place[members] = np.arange(len(members)) - np.repeat(start, size)
        return cls(members, start, place, prompts)

    def groups(self) -> list[Ints]:
        """The items of each prompt."""
        return np.split(self.members, self.start[1:])


@dataclass(frozen=True)
class RaterModel:
    """What was estimated: ``strengths`` (n,) posterior means in log-odds of an average vote, ``columns`` (n, K) their
    covariance with the k-th response of the same prompt, ``sd`` σ, ``log_tie`` η (−∞ without ties). Per rater (raters,):
    ``beta``, ``gamma``, their standard errors, clustered by prompt, ``beta_se``, ``gamma_se``, and ``overlap``, the prompts
    that others judged too."""

    strengths: Floats
    columns: Floats
    blocks: Blocks
    sd: float
    log_tie: float
    beta: Floats
    gamma: Floats
    beta_se: Floats
    gamma_se: Floats
    overlap: Ints
    rounds: int


def moments(d: Floats, log_tie: float, tally: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Of log-likelihoods with difference ``d`` (…, C) and counts (C, 3): derivative by d, minus the second derivative,
    derivative by η, minus the second derivative by η."""
    win, lose = np.exp(d / 2), np.exp(-d / 2)
    tie = np.exp(log_tie)
    total = win + tie + lose
    win, lose, tie = win / total, lose / total, tie / total
    lead, n = win - lose, tally.sum(axis=1)
    by_d = 0.5 * (tally[:, 0] - tally[:, 2] - n * lead)
    return by_d, 0.25 * n * (win + lose - lead**2), tally[:, 1] - n * tie, n * tie * (1 - tie)


@dataclass(frozen=True)
class Task:
    """Rows of votes about blocks of items: ``x``, ``y`` items, ``rater``, ``shown``, ``tally`` (rows, 3)."""

    n_items: int
    x: Ints
    y: Ints
    rater: Ints
    shown: Floats
    tally: Floats
    members: Ints
    place: Ints


def tally_of(comparisons: Comparisons) -> Floats:
    """(N, 3) counts of x wins, ties, y wins."""
    return np.asarray((comparisons.outcome[:, None] == np.array([1, 0, -1])) * comparisons.count[:, None])


def against_others(comparisons: Comparisons, blocks: Blocks) -> tuple[Task, Ints, Ints]:
    """For every ballot a block of its own with the votes that other raters cast on the same prompt; and the items (N,) of x
    and y in the block of each comparison's own ballot."""
    c = comparisons
    order = np.argsort(c.ballot, kind="stable")
    ballots, first, size = np.unique(c.ballot[order], return_index=True, return_counts=True)
    prompt, rater = c.prompt[order][first], c.rater[order][first]
    by_prompt = np.argsort(prompt, kind="stable")
    _, start, many = np.unique(prompt[by_prompt], return_index=True, return_counts=True)
    begin, length = np.repeat(start, many), np.repeat(many, many)
    number = np.arange(len(ballots)) - begin
    own_votes, other_votes = [], []
    for ahead in range(1, min(int(many.max()), OTHERS + 1)):
        near = ahead < length
        own_votes.append(by_prompt[near])
        other_votes.append(by_prompt[(begin + (number + ahead) % length)[near]])
    a, b = (np.concatenate(part) if part else np.zeros(0, dtype=np.int64) for part in (own_votes, other_votes))
    a, b = a[rater[a] != rater[b]], b[rater[a] != rater[b]]
    rows = order[np.repeat(first[b] - np.cumsum(size[b]) + size[b], size[b]) + np.arange(size[b].sum())]
    width = int(blocks.place.max()) + 1
    base = np.repeat(a, size[b]) * width
    place = np.searchsorted(ballots, c.ballot) * width
    n = len(ballots) * width
    task = Task(
        n,
        base + blocks.place[c.x[rows]],
        base + blocks.place[c.y[rows]],
        c.rater[rows],
        c.shown[rows].astype(np.float64),
        tally_of(c)[rows],
        np.arange(n),
        np.tile(np.arange(width), len(ballots)),
    )
    return task, place + blocks.place[c.x], place + blocks.place[c.y]


def _spread(comparisons: Comparisons, ties: bool) -> tuple[float, float]:
    """σ and η at which two raters agree, and tie, as often as they do: with d ~ N(0, 2σ²) and p the probabilities of one
    vote, the mean of (p_x − p_y)² is that of the product of two raters' outcomes. (1, η) where no two raters judged the
    same."""
    c = comparisons
    key = (c.prompt * len(c.items) + c.x) * len(c.items) + c.y
    _, unit = np.unique(key, return_inverse=True)
    _, first = np.unique(unit * len(c.raters) + c.rater, return_index=True)  # one vote of each
    unit, outcome = unit[first], c.outcome[first]
    n, total, square = np.bincount(unit), np.bincount(unit, weights=outcome), np.bincount(unit, weights=outcome**2)
    pairs = float((n * (n - 1)).sum())
    agreed = float((total**2 - square).sum()) / pairs if pairs else np.nan
    tied = float(np.average(c.outcome == 0, weights=c.count))

    def means(sd: float, log_tie: float) -> tuple[float, float]:
        d = np.sqrt(2) * sd * NODES
        logits = np.stack([d / 2, np.full(len(d), log_tie), -d / 2])
        p = special.softmax(logits, axis=0)
        return float(WEIGHTS @ (p[0] - p[2]) ** 2), float(WEIGHTS @ p[1])

    sd, log_tie = 1.0, 0.0 if ties else -np.inf
    for _ in range(10):
        if pairs:
            least, most = (means(end, log_tie)[0] for end in SD_RANGE)
            # Agreement below chance: no spread explains it, one reversed rater of three does. The strengths keep their prior.
            sd = 1.0 if agreed <= least else SD_RANGE[1]
            if least < agreed < most:
                sd = _root(lambda value, eta: means(value, eta)[0] - agreed, SD_RANGE, log_tie)
        if not ties:
            break
        log_tie = _root(lambda eta, value: means(value, eta)[1] - min(max(tied, 1e-4), 0.98), (-15.0, 15.0), sd)
    return sd, log_tie


def _root(function: Callable[[float, float], float], between: tuple[float, float], fixed: float) -> float:
    return float(optimize.brentq(function, *between, args=(fixed,)))


def fit_raters(comparisons: Comparisons, *, equal_raters: bool = False) -> RaterModel:
    """Estimate responses and raters. With ``equal_raters``, β = 1 and γ = 0."""
    c = per_choice(comparisons)
    blocks = Blocks.of(c)
    others, x, y = against_others(c, blocks)
    task = Task(len(c.items), c.x, c.y, c.rater, c.shown.astype(np.float64), tally_of(c), blocks.members, blocks.place)
    ties = bool(task.tally[:, 1].any())
    n = len(c.raters)
    share = np.bincount(c.rater, weights=c.count, minlength=n) / c.count.sum()
    sd, log_tie = _spread(comparisons, ties)
    beta, gamma = np.ones(n), np.zeros(n)
    s, columns = np.zeros(others.n_items), np.zeros((0, 0))
    told = np.isin(np.arange(others.n_items), np.concatenate([others.x, others.y]))
    told = told[x] | told[y]  # the comparisons of which others have said something
    predicted, rounds = np.zeros(len(c)), 0
    for rounds in range(1, ROUNDS + 1):  # noqa: B007 - said below
        if told.any():
            s, columns = _strengths(others, s, sd, log_tie, beta, gamma)
            variance = _variance(columns, others.place, x, y)
            predicted = np.where(told, (s[x] - s[y]) / np.sqrt(1 + np.pi / 8 * variance), 0)  # MacKay 1992: the mean over s
        before = np.concatenate([beta, gamma, [log_tie if ties else 0.0]])
        log_tie = _tie_step(task, beta[c.rater] * predicted + gamma[c.rater] * task.shown, log_tie) if ties else log_tie
        slope, offset = _slopes(task, predicted, log_tie, beta, gamma)
        if not equal_raters:
            beta, gamma = slope / float(np.clip(share @ slope, 0.5, 2)), offset
        after = np.concatenate([beta, gamma, [log_tie if ties else 0.0]])
        if np.abs(after - before).max() < TOLERANCE:
            break
    errors = _standard_errors(task, c.prompt, predicted, log_tie, beta, gamma)
    s, columns = _strengths(task, np.zeros(task.n_items), sd, log_tie, beta, gamma)
    seen = np.unique(np.stack([c.rater, c.prompt])[:, told], axis=1)[0]
    return RaterModel(s, columns, blocks, sd, log_tie, beta, gamma, *errors, np.bincount(seen, minlength=n), rounds)


def _variance(columns: Floats, place: Ints, x: Ints, y: Ints) -> Floats:
    """Posterior variance of s_x − s_y, x and y of one block."""
    return np.maximum(columns[x, place[x]] + columns[y, place[y]] - 2 * columns[x, place[y]], 0)


def _strengths(task: Task, start: Floats, sd: float, log_tie: float, beta: Floats, gamma: Floats) -> tuple[Floats, Floats]:
    """Mode (n,) of s given the raters, by Newton's method (the problem is concave), and the columns (n, K) of its covariance."""
    n, s, b, g = task.n_items, start, beta[task.rater], gamma[task.rater] * task.shown
    every = np.arange(n)
    for _ in range(50):
        by_d, curve, _, _ = moments(b * (s[task.x] - s[task.y]) + g, log_tie, task.tally)
        weight, pull = b**2 * curve, b * by_d
        gradient = np.bincount(task.x, weights=pull, minlength=n) - np.bincount(task.y, weights=pull, minlength=n) - s / sd**2
        solver = factorised(added_up([
            (every, every, np.full(n, sd**-2.0)), (task.x, task.x, weight), (task.y, task.y, weight),
            (task.x, task.y, -weight), (task.y, task.x, -weight),
        ], n))  # fmt: skip
        step = solver.solve(gradient)
        s = s + step / max(1.0, np.abs(step).max() / 2)
        if np.abs(step).max() < 1e-3:
            break
    # Responses of different blocks do not touch: one solve for the k-th of all blocks gives the k-th column of each.
    units = np.zeros((n, int(task.place.max()) + 1))
    units[task.members, task.place[task.members]] = 1
    return s, solver.solve(units)


def _tie_step(task: Task, d: Floats, log_tie: float) -> float:
    """η after a scoring step, with its prior."""
    _, _, by_tie, curve = moments(d, log_tie, task.tally)
    return log_tie + float((by_tie.sum() - log_tie / TIE_SD**2) / (curve.sum() + TIE_SD**-2))


def _curves(task: Task, predicted: Floats, log_tie: float, beta: Floats, gamma: Floats) -> tuple[Floats, Floats, Floats]:
    """Derivatives (N,) of each vote by d, and of each rater the gradient (R, 2) by β, γ and the information (R, 2, 2), with
    the prior."""
    r, z = task.rater, task.shown
    by_d, curve, _, _ = moments(beta[r] * predicted + gamma[r] * z, log_tie, task.tally)

    def summed(values: Floats) -> Floats:
        return np.bincount(r, weights=values, minlength=len(beta)).astype(np.float64)

    gradient = [summed(by_d * predicted) - (beta - 1) / BETA_SD**2, summed(by_d * z) - gamma / GAMMA_SD**2]
    cross = summed(curve * predicted * z)
    curvatures = summed(curve * predicted**2) + BETA_SD**-2, summed(curve * z**2) + GAMMA_SD**-2
    information = np.stack([curvatures[0], cross, cross, curvatures[1]], axis=1).reshape(-1, 2, 2)
    return by_d, np.stack(gradient, axis=1), information


def _slopes(task: Task, predicted: Floats, log_tie: float, beta: Floats, gamma: Floats) -> tuple[Floats, Floats]:
    """β and γ (R,) of every rater's votes on what was predicted: a logistic regression each, by Newton's method."""
    for _ in range(25):
        _, gradient, information = _curves(task, predicted, log_tie, beta, gamma)
        step = np.clip(np.linalg.solve(information, gradient[:, :, None])[:, :, 0], -1, 1)
        beta, gamma = beta + step[:, 0], gamma + step[:, 1]
        if np.abs(step).max() < 1e-4:
            break
    return beta, gamma


def _standard_errors(
    task: Task, prompt: Ints, predicted: Floats, log_tie: float, beta: Floats, gamma: Floats
) -> tuple[Floats, Floats]:
    """Of β and γ (R,): the sandwich over the prompts of each rater; with few prompts no narrower than the posterior."""
    by_d, _, information = _curves(task, predicted, log_tie, beta, gamma)
    cluster, of = np.unique(task.rater * (prompt.max() + 1) + prompt, return_inverse=True)
    rater = cluster // (prompt.max() + 1)
    scores = np.stack([np.bincount(of, weights=by_d * part) for part in (predicted, task.shown)], axis=1)
    meat = np.zeros((len(beta), 2, 2))
    np.add.at(meat, rater, scores[:, :, None] * scores[:, None, :])
    n = np.bincount(rater, minlength=len(beta)).astype(float)
    inverse = np.linalg.inv(information)
    robust = inverse @ meat @ inverse * (n / np.maximum(n - 1, 1))[:, None, None]
    robust, posterior = (np.diagonal(part, axis1=1, axis2=2) for part in (robust, inverse))
    # Where the votes know next to nothing of a slope, the sandwich is next to nothing and would look certain: the prior speaks.
    unsure = (n < MANY) | (information[:, 0, 0] < 1.25 * BETA_SD**-2)
    errors = np.sqrt(np.where(unsure[:, None], np.maximum(robust, posterior), robust))
    return errors[:, 0], errors[:, 1]
