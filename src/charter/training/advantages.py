"""Credit: from rewards to advantages. Pure functions on tensors; letters as in ``losses``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2015, eq. 16): advantages and returns, both (B, T).

    δ_t = r_t + γ V_{t+1} - V_t;  A_t = δ_t + γλ A_{t+1};  R_t = A_t + V_t. Positions outside ``mask`` are stepped over as if
    they were not there, wherever they are, and come back as 0. The value after the last token is 0: the episode has ended.
    """
    advantages = torch.zeros_like(rewards)
    next_value = torch.zeros_like(rewards[:, 0])
    next_advantage = torch.zeros_like(next_value)
    for t in range(rewards.shape[1] - 1, -1, -1):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * gae_lambda * next_advantage
        advantages[:, t] = torch.where(here, advantage, 0.0)
        next_advantage = torch.where(here, advantage, next_advantage)
        next_value = torch.where(here, values[:, t], next_value)
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(values: Tensor, mask: Tensor, *, unbiased: bool = True) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over the masked entries of the whole batch, 0 elsewhere; same shape.

    A batch of one entry has no variance and is only centred.
    """
    kept = values[mask]
    if kept.numel() == 0:
        return torch.zeros_like(values)
    mean = kept.mean()
    variance = kept.var(unbiased=unbiased) if kept.numel() > 1 else torch.ones_like(mean)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, whitened, 0.0)


def rloo_advantages(scores: Tensor) -> Tensor:
    """Each response against the mean of its siblings: A_i = r_i - mean_{j≠i} r_j (Ahmadian et al. 2024, eq. 8).

    scores: (P, K), K ≥ 2 responses for each of P prompts; same shape back. A group whose scores are all equal gets exactly
    0, whatever the constant: rounding in the mean must not become a gradient.
    """
    k = scores.shape[1]
    if k < 2:
        raise ValueError(f"RLOO needs at least 2 responses per prompt, got {k}")
    advantages = (scores - scores.mean(dim=1, keepdim=True)) * (k / (k - 1))
    equal = scores.amax(dim=1, keepdim=True) == scores.amin(dim=1, keepdim=True)
    return torch.where(equal, 0.0, advantages)


def among_kept(rule: Callable[[Tensor], Tensor], scores: Tensor, kept: Tensor) -> Tensor:
    """``rule``, which turns groups of scores (P, K) into advantages, on the responses that are ``kept`` (P, K), as if there were
    no others; 0 for the others, and for one without a kept sibling."""
    if bool(kept.all()):
        return rule(scores)
    advantages = torch.zeros_like(scores)
    for group, members in enumerate(kept):
        if int(members.sum()) > 1:
            advantages[group, members] = rule(scores[group, members][None])[0]
    return advantages


def importance_weights(logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(π / π_sampler, cap) of every token, 1 outside ``mask``: what a token's credit is multiplied by where another program
    sampled it, whose probabilities are not quite the trainer's (truncated importance sampling, Ionides 2008; per token as in Yao
    et al. 2025). All (B, T), log-probabilities in nats, without gradient; ``cap`` ≥ 1 bounds the variance."""
    ratio = torch.where(mask, logprobs - sampler_logprobs, 0.0).exp()
    return ratio.clamp(max=cap)


def group_advantages(scores: Tensor, *, scale_by_std: bool) -> Tensor:
    """Each response against its group, itself included: A_i = r_i - mean(r), over std(r) + 1e-4 with ``scale_by_std``.

    With the scale GRPO (Shao et al. 2024, section 4.1.2; unbiased std), without it Dr. GRPO (Liu et al. 2025), which is
    (K-1)/K of ``rloo_advantages``. scores: (P, K), K ≥ 2; same shape back. A group whose scores are all equal gets exactly 0:
    divided by a std that is nothing but rounding, it would get an advantage of any size.
    """
    k = scores.shape[1]
    if k < 2:
        raise ValueError(f"a group needs at least 2 responses per prompt, got {k}")
    advantages = scores - scores.mean(dim=1, keepdim=True)
    if scale_by_std:
        advantages = advantages / (scores.std(dim=1, keepdim=True) + 1e-4)
    equal = scores.amax(dim=1, keepdim=True) == scores.amin(dim=1, keepdim=True)
    return torch.where(equal, 0.0, advantages)


def share_without_spread(groups: Tensor, kept: Tensor) -> float:
    """Share of the P groups of scores (P, K), of which ``kept`` (P, K) count, that are all equal within, and so tell no response
    from its siblings."""
    highest, lowest = extremes(groups, kept)
    return float((highest <= lowest).float().mean())


def extremes(groups: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The highest and the lowest of the kept scores of each group: (P,) each, minus and plus infinity where none is kept."""
    inf = float("inf")
    return groups.masked_fill(~kept, -inf).amax(dim=1), groups.masked_fill(~kept, inf).amin(dim=1)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(R - V) / Var(R) of the response tokens (N,): 1 where the critic knows, 0 where it knows no more than the mean. 0
    without variance."""
    variance = float(returns.var()) if returns.numel() > 1 else 0.0
    return 1 - float((returns - values).var()) / variance if variance > 0 else 0.0
