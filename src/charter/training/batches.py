"""Batches: which rows go through the model together, and how they are padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from charter.run import derive_seed


@dataclass(frozen=True)
class Tokens:
    """One row: prompt ids followed by response ids."""

    prompt: Sequence[int]
    response: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class Padded:
    """Rows side by side, padding on the right. ids, attention, mask: (B, T); the mask is True on response tokens. It is
    built from lengths: ids are never compared with the pad id, so pad = eos and pads inside a response are harmless."""

    ids: Tensor
    attention: Tensor
    mask: Tensor


def pad(rows: Sequence[Tokens], device: Any = "cpu") -> Padded:
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor([*row.prompt, *row.response])
    place = torch.arange(width).unsqueeze(0)
    prompt = torch.tensor([len(row.prompt) for row in rows]).unsqueeze(1)
    whole = torch.tensor([len(row) for row in rows]).unsqueeze(1)
    attention = place < whole
    return Padded(ids.to(device), attention.to(device), (attention & (place >= prompt)).to(device))


def by_tokens(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices grouped so that rows times the longest row stay within ``tokens``; rows of like length go together.

    A row longer than the budget is a group of its own.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[i] <= tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def epoch_batches(n: int, per_step: int, epochs: int, seed: int) -> list[list[int]]:
    """The index lists of all optimizer steps of a training: each epoch a new order that depends on the seed alone."""
    steps = []
    for epoch in range(epochs):
        order = np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(n).tolist()
        steps += [order[i : i + per_step] for i in range(0, n, per_step)]
    return steps
