"""Online DPO (Guo et al. 2024): preferences between responses that the policy has just given.

Of the K responses to a prompt the one that the reward scores highest is chosen and the lowest rejected; with ``judge:base`` for
a reward that is direct AI feedback. What DPO learns from a fixed set of pairs goes stale as the policy leaves the model that
wrote them; here it does not. One update per batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from charter.models.trunk import Trunk
from charter.records import Prompt
from charter.run.run import Stage
from charter.stages.rl.settings import OnlineDPOSettings
from charter.training.advantages import extremes
from charter.training.loop import steps
from charter.training.losses import policy_stats
from charter.training.preference_losses import LOSSES, PairLogprobs
from charter.training.rewards import RewardSum


def train_online_dpo(
    trunk: Trunk, prompts: Sequence[Prompt], reward: RewardSum, settings: OnlineDPOSettings, stage: Stage
) -> None:
    """Train role ``policy``, which must be on the trunk; the trunk's base is the reference."""
    for step in steps(trunk, prompts, reward, settings, stage, {"policy": settings.learning_rate}):
        # Credit: the loss sees a response through its log-probability alone, so its slope there is all of the gradient.
        chosen, rejected = best_and_worst(
            *(x.view(-1, settings.samples_per_prompt) for x in (step.scores, step.kept))
        )  # (pairs,) rows of the rollout
        slopes, pair_loss = pair_slopes(
            step.logprobs.sum(dim=1),
            step.reference_logprobs.sum(dim=1),
            step.rollout.mask.sum(dim=1).float(),
            chosen,
            rejected,
            settings,
        )

        # Learn.
        for cut, policy in step.updates:
            loss = (slopes[cut.rows] * policy.logprobs.sum(dim=1)).sum()
            stats = policy_stats(policy.logprobs, cut.of(step.logprobs), cut.packed.mask)
            step.updates.learn(loss, stats, entropy=float(policy.entropies.detach().sum()))

        # Record.
        step.record(
            **step.updates.per_token("entropy"),
            loss=pair_loss,
            pairs=len(chosen),
            score_gap=float((step.scores[chosen] - step.scores[rejected]).mean()) if len(chosen) else 0.0,
        )


def best_and_worst(groups: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the best and of the worst of each group of scores (P, K), of which ``kept`` (P, K) count, rows counted through;
    (pairs,) each. A group whose scores are all equal gives neither a preference nor a pair."""
    start = torch.arange(len(groups), device=groups.device) * groups.shape[1]
    highest, lowest = extremes(groups, kept)
    best = start + (kept & (groups == highest[:, None])).float().argmax(dim=1)
    worst = start + (kept & (groups == lowest[:, None])).float().argmax(dim=1)
    return best[highest > lowest], worst[highest > lowest]


def pair_slopes(
    sequences: Tensor, reference: Tensor, lengths: Tensor, chosen: Tensor, rejected: Tensor, settings: OnlineDPOSettings
) -> tuple[Tensor, float]:
    """d loss / d log π of every response (B,), and the loss: a mean over pairs, nats. sequences, reference: log-probabilities of
    whole responses (B,), nats; lengths: (B,) tokens."""
    sequences = sequences.detach().requires_grad_()
    if not len(chosen):
        return torch.zeros_like(sequences), 0.0
    pairs = PairLogprobs(sequences[chosen], sequences[rejected], reference[chosen], reference[rejected], lengths[chosen],
                         lengths[rejected])  # fmt: skip
    loss = LOSSES[settings.loss](pairs, torch.ones_like(pairs.chosen), settings.beta).mean()
    (slopes,) = torch.autograd.grad(loss, sequences)
    return slopes, loss.item()
