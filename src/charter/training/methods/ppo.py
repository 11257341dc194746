"""Proximal policy optimisation on responses (Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020).

Two old policies are at work and are easily confused. The *rollout* policy sampled this step's responses: the clipped ratio is
against it. The *reference* is the frozen model before RL: the KL in the reward is to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from charter.models.trunk import Trunk
from charter.records import Prompt
from charter.run.run import Stage
from charter.stages.rl.settings import PPOSettings
from charter.training.advantages import explained_variance, gae, whiten
from charter.training.loop import steps
from charter.training.losses import clipped_policy_loss, clipped_value_loss, masked_mean
from charter.training.rewards import RewardSum, at_last_token
from charter.training.rollouts import value_pass
from charter.training.vllm_rollouts import describe_weights, sampler_weights


def train_ppo(trunk: Trunk, prompts: Sequence[Prompt], reward: RewardSum, settings: PPOSettings, stage: Stage) -> None:
    """Train role ``policy``, which must be on the trunk with its value head or with role ``value`` as critic; the trunk's base is
    the reference."""
    learning_rates = {"policy": settings.learning_rate}
    if settings.value == "own":
        learning_rates["value"] = settings.value_learning_rate
    for step in steps(trunk, prompts, reward, settings, stage, learning_rates):
        # Credit.
        scored = step.rollout.mask & step.kept[:, None]  # (B, T)
        rewards = at_last_token(step.scores, step.rollout.mask) - step.kl_coef * step.kl
        critic = value_pass(trunk, step.rollout, step.updates.cuts) if settings.value == "own" else None
        values = step.updates.policy.of_head if critic is None else critic.values  # (B, T)
        advantages, returns = gae(rewards, values, step.rollout.mask, settings.gamma, settings.gae_lambda)
        if settings.whiten_advantages != "none":
            advantages = whiten(advantages, scored, unbiased=settings.whiten_advantages == "unbiased")
        weights = sampler_weights(settings, step.rollout, step.logprobs)  # (B, T)
        advantages = advantages * weights

        # Learn.
        updates = step.updates
        for cut, policy in updates:
            mask, n = cut.packed.mask, updates.n_tokens
            loss, stats = clipped_policy_loss(
                policy.logprobs, cut.of(step.logprobs), cut.of(advantages), mask, settings.clip_coef, n
            )
            new_values = policy.values if critic is None else critic.of(cut)
            value_loss = clipped_value_loss(new_values, cut.of(values), cut.of(returns), mask, settings.value_clip, n)
            entropy = masked_mean(policy.entropies, mask, n)
            loss = loss + settings.value_coef * value_loss - settings.entropy_coef * entropy
            updates.learn(loss, stats, entropy=entropy.item() * n, value_loss=value_loss.item() * n)

        # Record.
        step.record(
            **updates.per_token("ratio", "clip_fraction", "approx_kl", "entropy", "value_loss"),
            **describe_weights(settings, step.rollout, weights),
            explained_variance=explained_variance(values[scored], returns[scored]),
        )
