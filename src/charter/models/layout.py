"""Where prompts of different lengths stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def left_pad(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """ids and attention (B, T) with the padding on the left. The pad id is 0 and never looked at."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    attention = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, attention


def positions(attention: Tensor) -> Tensor:
    """Position of each token counted from the first real one: (B, T)."""
    return (attention.cumsum(dim=1) - 1).clamp(min=0)
