"""Groups of raters: how far they agree with each other and with those of other groups, and each rater beside its group.

Among camps with different tastes, whoever belongs to a small one contradicts most votes. So raters are compared with their
group, and the difference between agreement within and between groups says how much of a disagreement is one of camps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from charter.errors import InputError
from charter.raters.agreement import Figure, jackknife, question_units, share
from charter.raters.comparisons import Comparisons, Floats, Ints, Votes, as_comparisons
from charter.raters.lines import RaterLine, rater_lines

WITHIN, BETWEEN, GAP = "within groups", "between groups", "within less between"


def numbered(raters: tuple[str, ...], groups: Mapping[str, str]) -> tuple[tuple[str, ...], Ints]:
    """The groups that these raters are in, sorted, and (raters,) the number of each rater's, -1 without one. InputError if
    fewer than two groups have a rater."""
    names = tuple(sorted({groups[rater] for rater in raters if rater in groups}))
    if len(names) < 2:
        raise InputError(f"the raters of these votes are in {len(names)} groups; the table needs a row (rater, group) for each "
                         f"rater, and two groups (first rater here: {raters[0]!r})" if raters else "no rater")  # fmt: skip
    return names, np.array([names.index(groups[rater]) if rater in groups else -1 for rater in raters], dtype=np.int64)


def without_group(raters: tuple[str, ...], groups: Mapping[str, str]) -> list[str]:
    """The raters that the table does not name."""
    return [rater for rater in raters if rater not in groups]


def by_group(comparisons: Comparisons, groups: Mapping[str, str]) -> Comparisons:
    """The comparisons with each group as one rater; those of raters without a group are left out."""
    names, group = numbered(comparisons.raters, groups)
    kept = comparisons.take(group[comparisons.rater] >= 0)
    return replace(kept, raters=names, rater=group[kept.rater])


def group_figures(votes: Votes, groups: Mapping[str, str]) -> list[Figure]:
    """Shares of agreeing pairs of votes: within each group, between each two, within and between all of them, and the difference
    of these two; intervals by prompt. A tie is an answer too. InputError if fewer than two groups have a rater."""
    names, group = numbered(votes.raters, groups)
    raw = as_comparisons(votes, raw=True)
    unit = question_units(votes, raw)
    _, first = np.unique(np.stack([unit, raw.rater]), axis=1, return_index=True)
    first = first[group[raw.rater[first]] >= 0]
    units, place, number = np.unique(unit[first], return_index=True, return_inverse=True)
    counts = np.zeros((len(units), len(names), 3))  # raters of a group that gave an outcome
    np.add.at(counts, (number, group[raw.rater[first]], raw.outcome[first] + 1), 1)
    prompt = np.unique(raw.prompt[first][place], return_inverse=True)[1]
    within = [_same_and_all(counts[:, g]) for g in range(len(names))]
    between = {(a, b): _same_and_all(counts[:, a], counts[:, b]) for a, b in combinations(range(len(names)), 2)}
    both = np.concatenate([sum(within), sum(between.values())], axis=1)

    def figure(name: str, per_unit: Floats, *, gap: bool = False) -> Figure:
        sums = np.zeros((int(prompt.max(initial=-1)) + 1, per_unit.shape[1]))
        np.add.at(sums, prompt, per_unit)
        n = int(sums[:, 1::2].sum())
        return jackknife(name, sums, _gap if gap else share, n, "pairs of votes", (-1, 1) if gap else (0, 1))

    return [
        *(figure(f"within {names[g]}", sums) for g, sums in enumerate(within)),
        *(figure(f"between {names[a]} and {names[b]}", sums) for (a, b), sums in between.items()),
        figure(WITHIN, both[:, :2]), figure(BETWEEN, both[:, 2:]), figure(GAP, both, gap=True),
    ]  # fmt: skip


def _same_and_all(a: Floats, b: Floats | None = None) -> Floats:
    """(U, 2) pairs of votes of one unit that say the same, and all of them, of counts (U, outcomes) of one group, or of two."""
    n = a.sum(axis=1)
    if b is None:
        return np.stack([(a * (a - 1)).sum(axis=1) / 2, n * (n - 1) / 2], axis=1)
    return np.stack([(a * b).sum(axis=1), n * b.sum(axis=1)], axis=1)


def _gap(totals: Floats) -> Floats:
    return np.asarray(share(totals[..., :2]) - share(totals[..., 2:]))


def of_raters(votes: Votes, keep: np.ndarray) -> Votes:
    """The votes of the raters (mask) alone, as if nobody else had voted."""
    ballot = keep[votes.rater]
    number = np.cumsum(ballot) - 1
    entry, pair = ballot[votes.ranked_in], ballot[votes.ballot]
    of_ballots = {name: getattr(votes, name)[ballot] for name in ("prompt", "question", "seconds", "strength", "size")}
    of_pairs = {name: getattr(votes, name)[pair] for name in ("x", "y", "outcome", "shown")}
    of_entries = {name: getattr(votes, name)[entry] for name in ("ranked", "rank")}
    single = votes.single
    if single is not None:
        single = single[ballot[single[:, 4]]]
        single[:, 4] = number[single[:, 4]]
    changes: dict[str, Any] = {
        "raters": tuple(np.array(votes.raters, dtype=object)[keep]), "kinds": tuple(np.array(votes.kinds, dtype=object)[keep]),
        "rater": (np.cumsum(keep) - 1)[votes.rater[ballot]], "ranked_in": number[votes.ranked_in[entry]],
        "ballot": number[votes.ballot[pair]], "single": single,
        "flags": {name: marked[entry] for name, marked in votes.flags.items()},
    }  # fmt: skip
    return replace(votes, **of_ballots, **of_pairs, **of_entries, **changes)


def lines_by_group(votes: Votes, groups: Mapping[str, str]) -> dict[str, list[RaterLine]]:
    """The table of raters of each group, each rater beside the others of its group."""
    names, group = numbered(votes.raters, groups)
    each = {name: of_raters(votes, group == g) for g, name in enumerate(names)}
    return {name: rater_lines(alone) for name, alone in each.items() if len(alone.x)}
