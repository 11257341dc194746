"""Batches: which rows go through the model together."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from charter.models.cut import Cut
from charter.models.trunk import Trunk
from charter.run.hashes import derive_seed
from charter.run.run import Stage
from charter.run.team import team


def by_tokens(lengths: Sequence[int], tokens: int, siblings: Sequence[Hashable] | None = None) -> list[list[int]]:
    """Indices grouped so that rows times the longest row stay within ``tokens``; rows of like length go together.

    With ``siblings`` rows of one name stay next to each other as far as the budget allows, so that they share their prompt.
    A row longer than the budget is a group of its own.
    """
    names = list(siblings) if siblings is not None else list(range(len(lengths)))
    longest: dict[Hashable, tuple[int, int]] = {}
    for i, name in enumerate(names):
        longest[name] = max(longest.get(name, (0, -i)), (lengths[i], -i))
    groups: list[list[int]] = []
    widest = 0
    for i in sorted(range(len(lengths)), key=lambda i: (longest[names[i]], lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * max(widest, lengths[i]) <= tokens:
            groups[-1].append(i)
            widest = max(widest, lengths[i])
        else:
            groups.append([i])
            widest = lengths[i]
    return groups


def even_by_tokens(lengths: Sequence[int], tokens: int, siblings: Sequence[Hashable] | None = None) -> list[list[int]]:
    """The groups of ``by_tokens``; with several processes cut finer where that gives each of them as many, of like size."""
    size = team().size
    groups = by_tokens(lengths, tokens, siblings)
    if size == 1 or not groups:
        return groups
    wanted = -(-len(groups) // size) * size
    low, high = max(lengths), tokens  # the smallest budget that makes no more than that
    while low < high:
        middle = (low + high) // 2
        if len(by_tokens(lengths, middle, siblings)) <= wanted:
            high = middle
        else:
            low = middle + 1
    return by_tokens(lengths, high, siblings)


def own_by_tokens(
    trunk: Trunk, role: str, lengths: Sequence[int], tokens: int, siblings: Sequence[Hashable] | None = None
) -> Iterator[list[int]]:
    """Those of ``even_by_tokens`` that fall to this process, each for a pass of the named role (see ``Trunk.turns``)."""
    groups = even_by_tokens(lengths, tokens, siblings)
    return trunk.turns(groups, [sum(lengths[i] for i in group) for group in groups], role)


def epoch_batches(n: int, per_step: int, epochs: int, seed: int) -> list[list[int]]:
    """The index lists of all optimizer steps of a training: each epoch a new order that depends on the seed alone."""
    steps = []
    for epoch in range(epochs):
        order = np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(n).tolist()
        steps += [order[i : i + per_step] for i in range(0, n, per_step)]
    return steps


def report_cut(stage: Stage, cut: Cut, limit: int | None) -> None:
    """Tell at the beginning of a training what cutting its rows to ``limit`` tokens cost."""
    if cut.figures and not stage.metrics():
        stage.run.say(f"  {cut.words(limit)}")
