"""Losses that learn from preferences without a reward model: the DPO family, each a pure function with its equation.

h = [log π/π_ref](chosen) - [log π/π_ref](rejected), log-probabilities of whole responses in nats. β is the price of KL as in RL:
the optimum of the sigmoid loss is π*(y) ∝ π_ref(y) exp(r(y)/β).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairLogprobs:
    """Log-probabilities (nats) of whole responses under policy and reference, and their lengths in tokens. All (B,)."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def h(self) -> Tensor:
        return (self.chosen - self.reference_chosen) - (self.rejected - self.reference_rejected)


PreferenceLoss = Callable[[PairLogprobs, Tensor, float], Tensor]
"""(pairs, weight, β) to losses (B,), nats per pair. weight (B,) is the probability that the chosen response is better; label
smoothing ε (cDPO) makes p(1-ε) + (1-p)ε of it before it comes here, but for ``robust_loss``."""


def dpo_loss(pairs: PairLogprobs, weight: Tensor, beta: float) -> Tensor:
    """-p log σ(βh) - (1-p) log σ(-βh) (Rafailov et al. 2023, eq. 7; soft labels: Mitchell 2023, cDPO, eq. 3)."""
    return -weight * F.logsigmoid(beta * pairs.h) - (1 - weight) * F.logsigmoid(-beta * pairs.h)


def robust_loss(pairs: PairLogprobs, weight: Tensor, beta: float, flipped: float = 0.1) -> Tensor:
    """[-(p - ε) log σ(βh) - (1-p - ε) log σ(-βh)] / (1 - 2ε): unbiased where a share ε of the labels is ``flipped`` (Chowdhury et
    al. 2024, eq. 12, for p = 1; its mean over both labels for a soft p, which is not smoothed here)."""
    losses = (weight - flipped) * F.logsigmoid(beta * pairs.h) + (1 - weight - flipped) * F.logsigmoid(-beta * pairs.h)
    return -losses / (1 - 2 * flipped)


def ipo_loss(pairs: PairLogprobs, weight: Tensor, beta: float) -> Tensor:
    """p (h - 1/2β)² + (1-p) (h + 1/2β)², log-probabilities summed over tokens (Azar et al. 2023, eq. 17)."""
    target = 1 / (2 * beta)
    return weight * (pairs.h - target) ** 2 + (1 - weight) * (pairs.h + target) ** 2


def ipo_per_token_loss(pairs: PairLogprobs, weight: Tensor, beta: float) -> Tensor:
    """IPO with log-probabilities averaged over tokens, as its authors confirmed for long responses."""
    chosen = (pairs.chosen - pairs.reference_chosen) / pairs.chosen_tokens
    rejected = (pairs.rejected - pairs.reference_rejected) / pairs.rejected_tokens
    h, target = chosen - rejected, 1 / (2 * beta)
    return weight * (h - target) ** 2 + (1 - weight) * (h + target) ** 2


def hinge_loss(pairs: PairLogprobs, weight: Tensor, beta: float) -> Tensor:
    """p max(0, 1 - βh) + (1-p) max(0, 1 + βh) (Zhao et al. 2023, SLiC)."""
    return weight * F.relu(1 - beta * pairs.h) + (1 - weight) * F.relu(1 + beta * pairs.h)


def simpo_loss(pairs: PairLogprobs, weight: Tensor, beta: float, gamma: float = 0.5) -> Tensor:
    """-p log σ(β(c/|c| - r/|r|) - γ) - (1-p) log σ(-β(c/|c| - r/|r|) - γ), no reference (Meng et al. 2024, eq. 6)."""
    difference = beta * (pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens)
    return -weight * F.logsigmoid(difference - gamma) - (1 - weight) * F.logsigmoid(-difference - gamma)


LOSSES: dict[str, PreferenceLoss] = {
    "dpo": dpo_loss,
    "robust": robust_loss,
    "ipo": ipo_loss,
    "ipo_per_token": ipo_per_token_loss,
    "hinge": hinge_loss,
    "simpo": simpo_loss,
}
REFERENCE_FREE = frozenset({"simpo"})
PER_TOKEN = frozenset({"ipo_per_token", "simpo"})
"""Losses that compare means over tokens: a longer response is not the worse one for its length."""


def kto_loss(log_ratios: Tensor, desirable: Tensor, kl: Tensor, beta: float) -> Tensor:
    """p (1 - σ(βx)) + (1-p) (1 - σ(-βx)) with x = log π/π_ref - z, for single responses that are good with probability p
    (Ethayarajh et al. 2024, eq. 8, λ = 1, for p = 1 and p = 0). (N,).

    log_ratios: (N,), nats; desirable: (N,), p; kl: the reference point z, a scalar estimate of KL(π ‖ π_ref) from mismatched
    prompts and responses (``kto_reference_point``), through which no gradient flows.
    """
    x = beta * (log_ratios - kl.detach())
    return desirable * torch.sigmoid(-x) + (1 - desirable) * torch.sigmoid(x)


def kto_reference_point(mismatched_log_ratios: Tensor) -> Tensor:
    """max(0, mean of log π/π_ref over prompts paired with the response to another prompt): a scalar, without gradient."""
    return mismatched_log_ratios.detach().mean().clamp(min=0)
