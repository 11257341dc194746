"""Losses: pure functions from tensors to a scalar, each with its equation.

Letters: B responses or pairs, T positions. ``mask`` is (B, T), True on the response tokens that count. A sum over tokens
is divided by ``n_tokens``, the count of the *whole* optimizer batch, so that splitting a batch into micro-batches changes
neither loss nor gradient; left out, it is the count of this batch. Log-probabilities and entropies are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor, n_tokens: int | None = None) -> Tensor:
    """Sum of ``values`` where ``mask`` is True over the number of tokens. An empty mask gives 0, with gradient 0."""
    total = torch.where(mask, values, 0.0).sum()
    return total / max(int(mask.sum()) if n_tokens is None else n_tokens, 1)


def sft_loss(logprobs: Tensor, mask: Tensor, n_tokens: int | None = None) -> Tensor:
    """Negative log-likelihood of the response tokens, in nats per token; the prompt is masked. logprobs: (B, T)."""
    return -masked_mean(logprobs, mask, n_tokens)


def bradley_terry_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    weight: Tensor | float = 1.0,
    margin: Tensor | float = 0.0,
    centering: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of the preference, in nats per pair. Scores, weight, margin: (B,). Returns (B,).

    -p log σ(Δ - m) - (1 - p) log σ(-(Δ - m)) with Δ the score difference, p = ``weight`` the probability that the chosen
    response is better (Ouyang et al. 2022, eq. 1, for p = 1, m = 0; Touvron et al. 2023, eq. 2, for the margin; Bai et
    al. 2022, section 4.1, for soft labels). ``centering`` adds c (s_w + s_l)², which fixes the free constant of the model
    (Eisenstein et al. 2023).
    """
    difference = chosen_scores - rejected_scores - margin
    weight = torch.as_tensor(weight, dtype=difference.dtype, device=difference.device)
    loss = -weight * F.logsigmoid(difference) - (1 - weight) * F.logsigmoid(-difference)
    return loss + centering * (chosen_scores + rejected_scores) ** 2


def rating_loss(scores: Tensor, ratings: Tensor, kind: str) -> Tensor:
    """½ (s - r)² for ``squared``, |s - r| for ``absolute``, in the units of the ratings; (B,) each. The first aims at the mean
    of several people's ratings of one response, the second at their median."""
    distance = scores - ratings
    return 0.5 * distance**2 if kind == "squared" else distance.abs()


@dataclass(frozen=True)
class PolicyStats:
    """How far an update is from the policy that sampled; sums over masked tokens, so that micro-batches add up."""

    ratio: float
    clipped: float
    approx_kl: float
    n_tokens: int


@torch.no_grad()
def policy_stats(logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, clipped: Tensor | None = None) -> PolicyStats:
    """Statistics of ρ = π / π_rollout. All (B, T); ``clipped`` is True where ρ was clipped. approx_kl is ½(log ρ)² (Schulman
    2020, k2)."""
    log_ratio = torch.where(mask, logprobs - rollout_logprobs, 0.0)
    return PolicyStats(
        ratio=float(log_ratio.exp()[mask].sum()),
        clipped=0.0 if clipped is None else float(clipped[mask].sum()),
        approx_kl=float(0.5 * (log_ratio[mask] ** 2).sum()),
        n_tokens=int(mask.sum()),
    )


def token_weights(mask: Tensor, average: str, *, n_tokens: int, n_responses: int, max_new_tokens: int) -> Tensor:
    """What each token weighs in a policy loss that is a weighted sum: (B, T), 0 outside ``mask``.

    ``token``: 1 / n_tokens, every token of the batch alike (Yu et al. 2025, DAPO). ``response``: 1 / (n_responses · own
    length), every response alike (Shao et al. 2024, GRPO, eq. 3), by which a long wrong answer pays less per token.
    ``constant``: 1 / (n_responses · max_new_tokens), no length in it (Liu et al. 2025, Dr. GRPO). The counts are those of
    the whole optimizer batch.
    """
    if average == "response":
        lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
        return mask / (lengths * n_responses)
    divisor = n_tokens if average == "token" else n_responses * max_new_tokens
    return mask / max(divisor, 1)


def clipped_policy_loss(
    logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_coef: float,
    n_tokens: int | None = None,
    *,
    clip_coef_high: float | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, PolicyStats]:
    """-min(ρA, clip(ρ, 1-ε, 1+ε) A) averaged over response tokens (Schulman et al. 2017, eq. 7). All inputs (B, T).

    ρ = exp(log π - log π_rollout): against the policy that *sampled* the responses, not against the frozen reference.
    ``clip_coef_high`` is an upper ε of its own (Yu et al. 2025); ``weights`` (``token_weights``) replace the mean over tokens.
    """
    log_ratio = torch.where(mask, logprobs - rollout_logprobs, 0.0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_coef, 1 + (clip_coef if clip_coef_high is None else clip_coef_high))
    per_token = -torch.minimum(ratio * advantages, clipped * advantages)
    loss = masked_mean(per_token, mask, n_tokens) if weights is None else (per_token * weights).sum()
    return loss, policy_stats(logprobs, rollout_logprobs, mask, ratio != clipped)


def clipped_value_loss(
    values: Tensor, rollout_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float, n_tokens: int | None = None
) -> Tensor:
    """½ max((V - R)², (clip(V, V_old ± ε) - R)²) averaged over response tokens (Ziegler et al. 2019). All inputs (B, T)."""
    clipped = rollout_values + (values - rollout_values).clamp(-clip_range, clip_range)
    loss = 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return masked_mean(loss, mask, n_tokens)


def expectile_loss(values: Tensor, targets: Tensor, mask: Tensor, tau: float, n_tokens: int | None = None) -> Tensor:
    """|τ - 1(u < 0)| u² with u = target - value, averaged over response tokens (Kostrikov et al. 2021, eq. 5; Snell et al. 2022,
    section 4.1). All inputs (B, T). At τ = ½ the best value is the mean of its targets, near 1 their maximum."""
    u = targets - values
    return masked_mean(torch.where(u < 0, 1 - tau, tau) * u**2, mask, n_tokens)


def reinforce_loss(
    logprobs: Tensor, advantages: Tensor, mask: Tensor, n_responses: int | None = None, *, weights: Tensor | float = 1.0
) -> Tensor:
    """-A log π(response), averaged over responses (Ahmadian et al. 2024, eq. 6). logprobs, mask: (B, T); advantages: (B,).

    The whole response is one action: its log-probability is the sum over its tokens, each times its weight (``weights``: (B, T),
    without gradient) where they were not sampled from π itself.
    """
    sequence_logprobs = torch.where(mask, weights * logprobs, 0.0).sum(dim=1)
    return -(advantages * sequence_logprobs).sum() / (n_responses or logprobs.shape[0])


def token_kl(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """k1 = log π - log π_ref at the sampled tokens (B, T), nats, 0 outside ``mask``.

    Unbiased for KL(π ‖ π_ref) when the tokens come from π. It belongs in the reward: differentiated as a loss its expected
    gradient is zero.
    """
    return torch.where(mask, logprobs - reference_logprobs, 0.0)


def kl_penalty(logprobs: Tensor, reference_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, estimator: str) -> Tensor:
    """The KL to the reference as a term of the loss: (B, T), nats, 0 outside ``mask``; all inputs (B, T).

    With x = log π - log π_ref at tokens that came from π_rollout:

    - ``k2``: ½x². Its gradient is that of KL(π ‖ π_ref); its value is not (biased).
    - ``weighted_k3``: ρ (e^-x - 1 + x), the ratio ρ = π / π_rollout carrying gradient. Value and gradient of KL(π ‖ π_ref).
    - ``forward_kl``: e^-x - 1 + x, known as k3. The value is KL(π ‖ π_ref), but the gradient is that of KL(π_ref ‖ π).

    ValueError for ``k1``: the expected gradient of x is zero, so as a loss it restrains nothing (Schulman 2020; Tang and
    Munos 2025). It belongs in the reward (``token_kl``). The gradients here are those of the KL of each next token; what a
    token does to later ones is in the reward only.
    """
    if estimator not in KL_ESTIMATORS:
        raise ValueError(
            f"kl_estimator {estimator!r}: one of {', '.join(KL_ESTIMATORS)}"
            + ("; k1 in the loss has expected gradient zero" if estimator == "k1" else "")
        )
    x = torch.where(mask, logprobs - reference_logprobs, 0.0)
    if estimator == "k2":
        return 0.5 * x**2
    k3 = torch.expm1(-x) + x
    if estimator == "forward_kl":
        return k3
    return torch.where(mask, logprobs - rollout_logprobs, 0.0).exp() * k3


KL_ESTIMATORS = ("k2", "weighted_k3", "forward_kl")
