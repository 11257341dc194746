"""Heads on the hidden states of a trunk: the value head of a policy, and what turns raw reward scores into scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

VALUE_HEAD = "value_head."
"""How the names of the parameters of a value head begin."""


class ValueHead(nn.Module):
    """Two layers on a policy's hidden states: the value of the state, reward units. It starts at 0 everywhere."""

    def __init__(self, hidden: int, gradient: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
        self.gradient = gradient
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values (n,) of states (n, H)."""
        states = hidden.detach()
        if self.gradient:
            states = states + self.gradient * (hidden - states)
        values: Tensor = self.outer(torch.tanh(self.inner(states))).squeeze(-1)
        return values


@dataclass(frozen=True)
class ScoreScale:
    """Scales raw reward scores to mean 0 and standard deviation 1 on the training data of the reward model."""

    mean: float
    std: float

    def __call__(self, scores: Tensor) -> Tensor:
        return (scores - self.mean) / self.std


@dataclass(frozen=True)
class Scorers:
    """The roles of a reward model: one, or the members of an ensemble, whose scores are combined by their ``mean`` or the
    ``worst`` of them (Coste et al. 2023): a response that fools one member may not fool another."""

    roles: tuple[str, ...]
    scales: tuple[ScoreScale, ...]
    combine: str = "mean"

    def __call__(self, raw: Tensor, *, standardise: bool = True) -> Tensor:
        """Scores (N,) of raw scores (members, N). Without ``standardise`` they keep their spread: a difference of two is then
        the log odds of a Bradley-Terry model."""
        with_scaled_gradient = torch.stack([
            scale(row) if standardise else row - scale.mean for scale, row in zip(self.scales, raw, strict=True)
        ])  # fmt: skip
        return self.together(with_scaled_gradient)

    def together(self, scores: Tensor) -> Tensor:
        """The scores of the members (members, N) combined: (N,)."""
        return scores.mean(dim=0) if self.combine == "mean" else scores.amin(dim=0)
