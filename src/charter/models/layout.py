"""Rows of different lengths side by side, filled up with the id 0, which nothing ever looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def left_pad(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """ids and attention (B, T) with the padding on the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    attention = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, attention


def right_pad(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """ids and attention (B, T) with the padding on the right."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    attention = torch.arange(width, device=device) < torch.tensor([[len(row)] for row in rows], device=device)
    return ids, attention.long()


def positions(attention: Tensor) -> Tensor:
    """Position of each token counted from the first real one: (B, T)."""
    return (attention.cumsum(dim=1) - 1).clamp(min=0)
