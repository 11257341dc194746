"""Group relative policy optimisation (Shao et al. 2024), Dr. GRPO (Liu et al. 2025) and DAPO's loss (Yu et al. 2025).

A response is measured against the group of its siblings, so no value model is needed. The KL to the frozen reference is a
term of the loss and not of the reward; the clipped ratio is against the policy that sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from charter.models.trunk import Trunk
from charter.records import Prompt
from charter.run.run import Stage
from charter.stages.rl.settings import GRPOSettings
from charter.training.advantages import among_kept, group_advantages, share_without_spread
from charter.training.loop import steps
from charter.training.losses import clipped_policy_loss, kl_penalty, token_weights
from charter.training.rewards import RewardSum
from charter.training.vllm_rollouts import describe_weights, sampler_weights


def train_grpo(trunk: Trunk, prompts: Sequence[Prompt], reward: RewardSum, settings: GRPOSettings, stage: Stage) -> None:
    """Train role ``policy``, which must be on the trunk; the trunk's base is the reference."""
    rule = partial(group_advantages, scale_by_std=settings.scale_by_std)
    for step in steps(trunk, prompts, reward, settings, stage, {"policy": settings.learning_rate}):
        # Credit.
        groups = step.scores.view(-1, settings.samples_per_prompt)
        kept = step.kept.view_as(groups)
        advantages = among_kept(rule, groups, kept).view(-1, 1)  # (B, 1)
        weights = sampler_weights(settings, step.rollout, step.logprobs)  # (B, T)
        advantages = advantages * weights

        # Learn.
        updates = step.updates
        for cut, policy in updates:
            mask, old = cut.packed.mask, cut.of(step.logprobs)
            shares = token_weights(
                mask,
                settings.average,
                n_tokens=updates.n_tokens,
                n_responses=updates.n_responses,
                max_new_tokens=settings.max_new_tokens,
            )
            loss, stats = clipped_policy_loss(
                policy.logprobs,
                old,
                cut.of(advantages),
                mask,
                settings.clip_coef,
                clip_coef_high=settings.clip_coef_high,
                weights=shares,
            )
            penalty = kl_penalty(policy.logprobs, cut.of(step.reference_logprobs), old, mask, settings.kl_estimator)
            loss = loss + step.kl_coef * (penalty * shares).sum()
            updates.learn(loss, stats, entropy=float(policy.entropies.detach().sum()))

        # Record.
        step.record(
            **updates.per_token("ratio", "clip_fraction", "approx_kl", "entropy"),
            **describe_weights(settings, step.rollout, weights),
            loss=updates.loss,
            groups_without_spread=share_without_spread(groups, kept),
        )
