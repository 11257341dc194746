"""Judgments as arrays: who saw which two responses, in which order, and which one was better.

One rule turns ranks into pairs, the same for ratings, agreement and exports: the lower number wins, equal numbers tie, every
ranked response beats an "F", and two "F" make no pair. A response that a partial ranking leaves out loses to the ranked ones and
makes no other pair. Pairs are oriented by the order of the names, never by the side of the screen: a rater who always takes
the left one must look inconsistent and not agreeable.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charter.errors import InputError
from charter.records import Judgment
from charter.votes.judgments import current, repeated, why_forgotten

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FAILED = 0  # the rank of a response marked "F"


@dataclass(frozen=True)
class Votes:
    """The votes of raters, J ballots (one judgment each), E ranked responses, N pairs.

    Names: ``raters`` with their ``kinds``, ``prompts``, ``responses``, ``models``. model_of: (responses,) the model that
    wrote each, −1 where it is unknown. Per ballot (J,): ``rater``, ``prompt``, ``question`` (0 better, 1 more_harmless, 2
    more_harmful), ``seconds`` (NaN where not measured), ``strength`` (for the first name over the second, 0 where not asked),
    ``size`` (responses shown). Per ranked response (E,): ``ranked_in`` (ballot), ``ranked`` (response), ``rank`` (0 is "F").
    Per pair (N,): ``x`` < ``y`` (responses), ``outcome`` 1 where x was preferred under the question, −1 where y, 0 for a tie;
    ``shown`` 1 where x stood first, −1 where y, 0 where both orders were asked or the order is unknown; ``ballot``. ``totals``
    counts what was read and what was left out. ``flags``: name to (E,), whether the ranked response was flagged so. ``single``:
    columns x, y, outcome, shown, ballot of what judges read in each single order. ``in_order``: whether the votes stand in the
    order in which they were given, as counts do not.
    """

    raters: tuple[str, ...]
    kinds: tuple[str, ...]
    prompts: tuple[str, ...]
    responses: tuple[str, ...]
    models: tuple[str, ...]
    model_of: Ints
    rater: Ints
    prompt: Ints
    question: Ints
    seconds: Floats
    strength: Ints
    size: Ints
    ranked_in: Ints
    ranked: Ints
    rank: Ints
    x: Ints
    y: Ints
    outcome: Ints
    shown: Ints
    ballot: Ints
    totals: dict[str, int]
    flags: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    single: Ints | None = None
    in_order: bool = True


@dataclass(frozen=True)
class Comparisons:
    """N comparisons of n items (models or responses) as a rating model takes them; see :class:`Votes` for x, y, outcome, shown.

    ``outcome`` is 1 where x is the better one, whatever was asked for. Per comparison also ``rater``, ``prompt``, ``ballot`` and
    ``count``, its weight: 1, or a half for one of two orders.
    """

    items: tuple[str, ...]
    raters: tuple[str, ...]
    x: Ints
    y: Ints
    outcome: Ints
    shown: Ints
    rater: Ints
    prompt: Ints
    ballot: Ints
    count: Floats
    same_model: int = 0

    def __len__(self) -> int:
        return len(self.x)

    def take(self, keep: NDArray[Any]) -> Comparisons:
        """The comparisons that a mask or an index chooses."""
        names = ("x", "y", "outcome", "shown", "rater", "prompt", "ballot", "count")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})


QUESTIONS = {"better": 0, "more_harmless": 1, "more_harmful": 2}


class Numbers:
    """Numbers names in the order in which they come."""

    def __init__(self) -> None:
        self.of: dict[Any, int] = {}

    def __call__(self, name: Any) -> int:
        return self.of.setdefault(name, len(self.of))

    @property
    def names(self) -> tuple[Any, ...]:
        return tuple(self.of)


def rater_names(raters: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The names of raters (id, kind): their ids. A person and a judge with one id are two raters, told apart by their kinds."""
    shared = Counter(name for name, _ in raters)
    return tuple(f"{name} ({kind})" if shared[name] > 1 else name for name, kind in raters)


def pair_outcomes(ranks: Mapping[str, int | str], shown: Iterable[str]) -> list[tuple[str, str, int]]:
    """(first, second, outcome) of every pair that ranks decide: 1 the first is better, −1 the second, 0 a tie.

    ``ranks`` may leave out responses of ``shown``. Ranks 2, 1, 3 of a, b, c: b over a, a over c, b over c.
    """
    height = {response: -rank if isinstance(rank := ranks.get(response), int) else -math.inf for response in shown}
    return [
        (first, second, (a > b) - (a < b))
        for (first, a), (second, b) in combinations(height.items(), 2)
        if a > -math.inf or b > -math.inf
    ]


def seconds_of_votes(timings: Mapping[str, float]) -> float:
    """Seconds that a judgment took: ``active_s`` or ``seconds``, or ``active_ms``, or ``t_submit`` less ``t_shown`` (ms); NaN
    where none is there."""
    for name in ("active_s", "seconds"):
        if name in timings:
            return timings[name]
    if "active_ms" in timings:
        return timings["active_ms"] / 1000
    if "t_submit" in timings and "t_shown" in timings:
        return (timings["t_submit"] - timings["t_shown"]) / 1000
    return math.nan


def votes_of(judgments: Sequence[Judgment], models: Mapping[str, str] | None = None) -> Votes:
    """The arrays of judgments. Superseded ones, repeats of a vote in another chain, forgotten ones and those without verdict are
    counted in ``totals`` and left out.

    ``models``: response id to model. InputError if a judgment ranks a response that was not shown.
    """
    raters, prompts = Numbers(), Numbers()
    names = sorted({response for judgment in judgments for response in judgment.order})
    number = {name: i for i, name in enumerate(names)}
    ballots: list[tuple[int, int, int, int, int]] = []
    times: list[float] = []
    entries: list[tuple[int, int, int]] = []
    pairs: list[tuple[int, int, int, int, int]] = []
    single: list[tuple[int, int, int, int, int]] = []
    flagged: set[tuple[int, int, str]] = set()
    standing = current(judgments)
    counts = Counter(superseded=len(judgments) - len(standing))
    chains = sum(bool(judgment.hash) and not judgment.prev_hash for judgment in judgments)
    repeats = repeated(judgments) if chains > 1 else set()
    for judgment in standing:
        if judgment.id in repeats:
            counts["repeated"] += 1
            continue
        if why_forgotten(judgment):
            counts["forgotten"] += 1
            continue
        if not judgment.has_verdict:
            counts["no verdict"] += 1
            continue
        if unknown := set(judgment.ranks) - set(judgment.order):
            raise InputError(f"ranks {min(unknown)!r}, which is not in order", file=f"judgment {judgment.id}", field="ranks")
        ballot, who = len(ballots), raters((judgment.rater_id, judgment.rater_kind))
        place = {response: i for i, response in enumerate(judgment.order)}
        shown = sorted(place, key=number.__getitem__)
        strength = judgment.strength or 0
        if len(shown) == 2 and place[shown[0]] == 1:
            strength = -strength
        ballots.append((who, prompts(judgment.prompt_id), QUESTIONS[judgment.direction], strength, len(shown)))
        times.append(seconds_of_votes(judgment.timings))
        flagged |= {
            (ballot, number[response], flag) for response, flags in judgment.flags.items() for flag in flags if response in number
        }
        entries += [
            (ballot, number[response], rank if isinstance(rank, int) else FAILED) for response, rank in judgment.ranks.items()
        ]
        if len(shown) > 1 and all(judgment.ranks.get(response) == "F" for response in shown):
            counts["both bad"] += 1
        read = judgment.margins_by_order
        for a, b, outcome in pair_outcomes(judgment.ranks, shown):
            left = 1 if place[a] < place[b] else -1
            pairs.append((number[a], number[b], outcome, 0 if read else left, ballot))
            if read:
                # Logits for the first of ``order``: asked as A, then as B.
                single += [(number[a], number[b], left * sign(margin), left * side, ballot)
                           for margin, side in zip(read, (1, -1), strict=True)]  # fmt: skip
    counts["judgments"] = len(ballots)
    seconds = np.array(times, dtype=np.float64)
    who, prompt, question, strengths, size = _rows(ballots, 5).T
    inside, ranked, rank = _rows(entries, 3).T
    x, y, outcome, side, ballot_of = _rows(pairs, 5).T
    written = Numbers()
    model_of = np.array(
        [written(models[response]) if models and response in models else -1 for response in names], dtype=np.int64
    )
    flags = {
        name: np.array([(ballot, response, name) in flagged for ballot, response, _ in entries], dtype=bool)
        for name in sorted({name for _, _, name in flagged})
    }
    return Votes(
        rater_names(raters.names), tuple(kind for _, kind in raters.names), prompts.names, tuple(names), written.names, model_of,
        who, prompt, question, seconds, strengths, size, inside, ranked, rank, x, y, outcome, side, ballot_of,
        dict(counts), flags, _rows(single, 5) if single else None,
    )  # fmt: skip


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _rows(rows: list[Any], width: int) -> Ints:
    return np.array(rows, dtype=np.int64).reshape(-1, width)


def as_comparisons(votes: Votes, of: str = "responses", *, raw: bool = False) -> Comparisons:
    """The votes as comparisons of ``responses`` or of the ``models`` that wrote them, where two responses of one model say
    nothing.

    Votes under ``more_harmful`` are turned round, so that outcome 1 is the better response, and their pairs with an "F" are left
    out; with ``raw`` they stay as they are.
    """
    x, y, outcome, shown = votes.x, votes.y, votes.outcome, votes.shown
    if not raw:
        outcome = np.where(votes.question[votes.ballot] == QUESTIONS["more_harmful"], -outcome, outcome)
    items, same = votes.responses, 0
    keep = np.ones(len(x), dtype=bool) if raw else ~_failed_under_harm(votes)
    if of == "models":
        order = sorted(range(len(votes.models)), key=votes.models.__getitem__)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        items = tuple(votes.models[i] for i in order)
        x, y = place[votes.model_of[x]], place[votes.model_of[y]]
        same = int((x == y).sum())
        keep &= x != y
        turned = x > y
        x, y = np.where(turned, y, x), np.where(turned, x, y)
        outcome, shown = np.where(turned, -outcome, outcome), np.where(turned, -shown, shown)
    comparisons = Comparisons(items, votes.raters, x, y, outcome, shown, votes.rater[votes.ballot], votes.prompt[votes.ballot],
                        votes.ballot, np.ones(len(x)), same)  # fmt: skip
    return comparisons if keep.all() else comparisons.take(keep)


def _failed_under_harm(votes: Votes) -> NDArray[np.bool_]:
    """(N,) pairs with an "F" under more_harmful: that an answer is none does not measure harm (:mod:`charter.votes.rankings`)."""
    asked = votes.question[votes.ranked_in] == QUESTIONS["more_harmful"]
    entries, n = np.flatnonzero(asked & (votes.rank == FAILED)), len(votes.responses)
    failed = votes.ranked_in[entries] * n + votes.ranked[entries]
    return np.isin(votes.ballot * n + votes.x, failed) | np.isin(votes.ballot * n + votes.y, failed)


def single_orders(votes: Votes) -> Comparisons:
    """Comparisons of responses in which a judgment that was asked in both orders is two of half a count, each in its own order:
    what a preference for a position can be read from."""
    whole = as_comparisons(votes)
    if votes.single is None:
        return whole
    x, y, outcome, shown, ballot = votes.single.T
    outcome = np.where(votes.question[ballot] == QUESTIONS["more_harmful"], -outcome, outcome)
    split = np.isin(whole.ballot, ballot)
    rest = whole.take(~split)
    halves = (x, y, outcome, shown, votes.rater[ballot], votes.prompt[ballot], ballot, np.full(len(x), 0.5))
    names = ("x", "y", "outcome", "shown", "rater", "prompt", "ballot", "count")
    joined: dict[str, Any] = {n: np.concatenate([getattr(rest, n), new]) for n, new in zip(names, halves, strict=True)}
    return replace(rest, **joined)
