"""Heads on the hidden states of a trunk: the value head of a policy, and what turns raw reward scores into scores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VALUE_HEAD = "value_head."
"""How the names of the parameters of a value head begin."""
Q_START = 1e-3  # standard deviation of the weights of new Q heads: the twins differ, and the policy is at first the reference


class ValueHead(nn.Module):
    """Two layers on a policy's hidden states: the value of the state, reward units. It starts at 0 everywhere."""

    def __init__(self, hidden: int, gradient: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
        self.gradient = gradient
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def states(self, hidden: Tensor) -> Tensor:
        """The hidden states (n, H), with the gradient that the layers below get."""
        states = hidden.detach()
        return states + self.gradient * (hidden - states) if self.gradient else states

    def forward(self, hidden: Tensor) -> Tensor:
        """Values (n,) of states (n, H)."""
        values: Tensor = self.outer(torch.tanh(self.inner(self.states(hidden)))).squeeze(-1)
        return values


class QHeads(ValueHead):
    """A value head with twin Q heads, each a number for every next token, and their slow copies (Snell et al. 2022, section 4).

    A Q head is one matrix (V, H) and no more, so that it can be added to the vocabulary projection of the model: the sum is a
    plain language model whose next token is drawn from π · exp(β Q) (``perturbed``).
    """

    def __init__(self, vocabulary: int, hidden: int, gradient: float) -> None:
        super().__init__(hidden, gradient)
        self.q = nn.Parameter(Q_START * torch.randn(2, vocabulary, hidden))
        self.slow = nn.Parameter(self.q.detach().clone(), requires_grad=False)

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Move the slow heads so much of the way to the Q heads (Polyak averaging)."""
        self.slow.lerp_(self.q, share)

    def perturbed(self, projection: Tensor, beta: float) -> Tensor:
        """From the projection (V, H) of a language model π that of log π + β (Q - V), with Q the mean of the slow heads, up to a
        number that is the same for all tokens of a state: a softmax knows neither V nor the normaliser of π."""
        return projection.detach() + beta * self.slow.detach().mean(dim=0)


@contextlib.contextmanager
def writing_with(model: Any, projection: nn.Linear | None) -> Iterator[Any]:
    """Inside, the model writes with another vocabulary projection, where there is one."""
    if projection is None:
        yield model
        return
    output = model.get_output_embeddings()
    model.set_output_embeddings(projection)
    try:
        yield model
    finally:
        model.set_output_embeddings(output)


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

    def disagreement(self, raw: Tensor) -> Tensor:
        """Standard deviation of the members' standardised scores (N,) of raw scores (members, N)."""
        return torch.stack([scale(row) for scale, row in zip(self.scales, raw, strict=True)]).std(dim=0, correction=0)

    def together(self, scores: Tensor) -> Tensor:
        """The scores of the members (members, N) combined: (N,)."""
        return scores.mean(dim=0) if self.combine == "mean" else scores.amin(dim=0)
