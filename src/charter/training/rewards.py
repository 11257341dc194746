"""Rewards: where the score of a response goes, what it costs to move, and who sets the price."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from charter.config import RLSettings


def last_token(mask: Tensor) -> Tensor:
    """Index of the last response token of each row: (B,). Found by position, never by comparing ids with the pad id."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)


def at_last_token(scores: Tensor, mask: Tensor) -> Tensor:
    """scores (B,) placed at the last response token of each row, 0 elsewhere: (B, T). A row without tokens gets nothing."""
    rewards = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device)
    rewards[torch.arange(len(scores)), last_token(mask)] = scores
    return torch.where(mask, rewards, 0.0)


def apply_missing_eos_penalty(scores: Tensor, finished: Tensor, penalty: float) -> Tensor:
    """scores - penalty where the response was cut off before it ended (B,). Without it a policy learns to ramble on."""
    return torch.where(finished, scores, scores - penalty)


@dataclass
class FixedKL:
    """A constant price of KL, in reward units per nat."""

    coef: float

    def update(self, kl: float, n: int) -> None:
        """Nothing to do: the price is fixed."""


@dataclass
class AdaptiveKL:
    """Steers the KL of a response (nats) towards ``target`` (Ziegler et al. 2019, section 2.2).

    e = clip(KL / target - 1, ±0.2);  coef ← coef (1 + e n / horizon), n being the responses of the step.
    """

    coef: float
    target: float
    horizon: float

    def update(self, kl: float, n: int) -> None:
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * n / self.horizon


def make_kl_controller(settings: RLSettings, coef: float) -> FixedKL | AdaptiveKL:
    """The controller a recipe asks for, at the price ``coef`` where it stood."""
    if settings.kl_target is None:
        return FixedKL(coef)
    return AdaptiveKL(coef, settings.kl_target, settings.kl_horizon)
