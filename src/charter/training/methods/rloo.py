"""REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024).

The whole response is one action, without value model or clipping, and with one update per batch, so every gradient is
on-policy and the ratio is 1 by construction.
"""

from __future__ import annotations

from collections.abc import Sequence

from charter.models.trunk import Trunk
from charter.records import Prompt
from charter.run.run import Stage
from charter.stages.rl.settings import RLOOSettings
from charter.training.advantages import among_kept, rloo_advantages, share_without_spread
from charter.training.loop import steps
from charter.training.losses import policy_stats, reinforce_loss
from charter.training.rewards import RewardSum
from charter.training.vllm_rollouts import describe_weights, sampler_weights


def train_rloo(trunk: Trunk, prompts: Sequence[Prompt], reward: RewardSum, settings: RLOOSettings, stage: Stage) -> None:
    """Train role ``policy``, which must be on the trunk; the trunk's base is the reference."""
    for step in steps(trunk, prompts, reward, settings, stage, {"policy": settings.learning_rate}):
        # Credit.
        groups = (step.scores - step.kl_coef * step.kl.sum(dim=1)).view(-1, settings.samples_per_prompt)
        kept = step.kept.view_as(groups)
        advantages = among_kept(rloo_advantages, groups, kept).view(-1)  # (B,)
        weights = sampler_weights(settings, step.rollout, step.logprobs)  # (B, T)

        # Learn.
        for cut, policy in step.updates:
            mask = cut.packed.mask
            loss = reinforce_loss(policy.logprobs, advantages[cut.rows], mask, step.updates.n_responses, weights=cut.of(weights))
            stats = policy_stats(policy.logprobs, cut.of(step.logprobs), mask)
            step.updates.learn(loss, stats, entropy=float(policy.entropies.detach().sum()))

        # Record.
        step.record(
            **step.updates.per_token("entropy"),
            **describe_weights(settings, step.rollout, weights),
            loss=step.updates.loss,
            groups_without_spread=share_without_spread(groups, kept),
        )
