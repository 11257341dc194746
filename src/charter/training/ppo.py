"""Proximal policy optimisation on responses (Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020).

Two old policies are at work and are easily confused. The *rollout* policy sampled this step's responses: the clipped ratio is
against it. The *reference* is the frozen model before RL: the KL in the reward is to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from charter.models.trunk import REFERENCE, Trunk
from charter.records import Prompt
from charter.run.hashes import derive_seed
from charter.run.run import Stage
from charter.run.team import team
from charter.stages.rl.settings import PPOSettings
from charter.training.advantages import gae, whiten
from charter.training.losses import clipped_policy_loss, clipped_value_loss, masked_mean, token_kl
from charter.training.optimizer import Optimizer, load_checkpoint, save_checkpoint, scaling_of
from charter.training.rewards import RewardSum, apply_missing_eos_penalty, at_last_token, make_kl_controller
from charter.training.rollouts import (
    collect,
    cut_minibatches,
    describe_rollout,
    log_rollout,
    over_rollout,
    own_cuts,
    policy_pass,
    prompt_batch,
    value_pass,
)
from charter.training.vllm_rollouts import describe_weights, sampler_weights
from charter.training.watch import Watch


def train_ppo(trunk: Trunk, prompts: Sequence[Prompt], reward: RewardSum, settings: PPOSettings, stage: Stage) -> None:
    """Train role ``policy``, with role ``value`` as its critic. Both must be on the trunk; its base is the reference.

    Each step: sample, score, credit, learn, record. Rollouts are B = prompts_per_step x samples_per_prompt rows.
    """
    seed = derive_seed(stage.run.seed, stage.name)
    n_updates = settings.steps * settings.epochs * settings.minibatches
    shared = {"steps": n_updates, "decay": False, "max_grad_norm": settings.max_grad_norm}
    policy_optimizer = Optimizer(trunk.parameters("policy"), settings.learning_rate, **shared)  # type: ignore[arg-type]
    value_optimizer = Optimizer(trunk.parameters("value"), settings.value_learning_rate, **shared)  # type: ignore[arg-type]
    optimizers = {"policy": policy_optimizer, "value": value_optimizer}
    checkpoint = stage.path("checkpoint.safetensors")
    first, extra = load_checkpoint(checkpoint, optimizers)
    kl_controller = make_kl_controller(settings, extra.get("kl_coef", settings.kl_coef))
    reward.restore(extra)
    for log in ("metrics.jsonl", "rollouts.jsonl"):
        stage.rewind(log, first)
    watch = Watch(stage, trunk, settings, updates=settings.epochs * settings.minibatches, first=first)

    for step in stage.progress(range(settings.steps), done=first):
        # Sample.
        batch = prompt_batch(prompts, step, settings.prompts_per_step, seed)
        rollout = collect(trunk, batch, settings, derive_seed(seed, "rollout", step))
        minibatches = cut_minibatches(
            trunk,
            rollout,
            settings.minibatches,
            settings.tokens_per_micro_batch,
            derive_seed(seed, "minibatches", step),
        )
        cuts = [cut for minibatch in minibatches for cut in minibatch]

        # Score.
        parts = reward(rollout)
        scores = apply_missing_eos_penalty(parts.total, rollout.finished, settings.missing_eos_penalty)  # (B,)
        policy = policy_pass(trunk, rollout, cuts, settings.temperature)
        logprobs = policy.logprobs  # (B, T)
        reference_logprobs = over_rollout(
            trunk,
            REFERENCE,
            rollout,
            cuts,
            lambda packed: trunk.logprobs(REFERENCE, packed, temperature=settings.temperature)[0],
        )
        kl = token_kl(logprobs, reference_logprobs, rollout.mask)  # (B, T)
        watch.rollout(step, rollout, logprobs, kl)

        # Credit.
        rewards = at_last_token(scores, rollout.mask) - kl_controller.coef * kl
        critic = value_pass(trunk, rollout, cuts)
        values = critic.values  # (B, T)
        advantages, returns = gae(rewards, values, rollout.mask, settings.gamma, settings.gae_lambda)
        if settings.whiten_advantages != "none":
            advantages = whiten(advantages, rollout.mask, unbiased=settings.whiten_advantages == "unbiased")
        weights = sampler_weights(settings, rollout, logprobs)  # (B, T)
        advantages = advantages * weights

        # Learn.
        totals = dict.fromkeys(("ratio", "clipped", "approx_kl", "n_tokens", "entropy", "value"), 0.0)
        policy_norms: list[float] = []
        moved = 0.0  # from the rollout policy, in the last update: nats a token
        for _ in range(settings.epochs):
            for minibatch in minibatches:
                if settings.stop_kl is not None and moved > settings.stop_kl:
                    break
                moved = 0.0
                n_tokens = sum(cut.packed.n_tokens for cut in minibatch)
                for cut in own_cuts(trunk, minibatch, "policy", "value"):
                    mask = cut.packed.mask
                    new_logprobs, entropies = policy.of(trunk, cut, settings.temperature)
                    new_values = critic.of(trunk, cut)
                    policy_loss, stats = clipped_policy_loss(
                        new_logprobs,
                        cut.of(logprobs),
                        cut.of(advantages),
                        mask,
                        settings.clip_coef,
                        n_tokens,
                    )
                    value_loss = clipped_value_loss(
                        new_values, cut.of(values), cut.of(returns), mask, settings.value_clip, n_tokens
                    )
                    entropy = masked_mean(entropies, mask, n_tokens)
                    loss = policy_loss + settings.value_coef * value_loss - settings.entropy_coef * entropy
                    torch.autograd.backward(loss)
                    totals["ratio"] += stats.ratio
                    totals["clipped"] += stats.clipped
                    totals["approx_kl"] += stats.approx_kl
                    moved += stats.approx_kl / n_tokens
                    totals["n_tokens"] += stats.n_tokens
                    totals["entropy"] += entropy.item() * n_tokens
                    totals["value"] += value_loss.item() * n_tokens
                moved, ratio, n_seen = team().add_up(moved, totals["ratio"], totals["n_tokens"])
                if not policy_norms:
                    watch.first_minibatch(step, ratio / max(n_seen, 1))
                policy_norms.append(policy_optimizer.step())
                value_optimizer.step()

        totals = dict(zip(totals, team().add_up(*totals.values()), strict=True))

        # Record.
        described = describe_rollout(rollout, scores, kl)
        seen = max(totals["n_tokens"], 1)
        row = stage.record(
            step,
            **described,
            **parts.means(),
            **describe_weights(settings, rollout, weights),
            **reward.state(),
            kl_coef=kl_controller.coef,
            first_ratio=watch.first_ratio,
            ratio=totals["ratio"] / seen,
            clip_fraction=totals["clipped"] / seen,
            approx_kl=totals["approx_kl"] / seen,
            entropy=totals["entropy"] / seen,
            value_loss=totals["value"] / seen,
            explained_variance=explained_variance(values[rollout.mask], returns[rollout.mask]),
            grad_norm=sum(policy_norms) / len(policy_norms),
            updates=len(policy_norms),
            sampler_gap=watch.sampler_gap,
            **scaling_of(policy_optimizer, value_optimizer),
        )
        log_rollout(stage, step, rollout, scores, kl)
        watch.step_done(step, row)
        kl_controller.update(described["kl"], len(scores))
        reward.update(parts)
        if (step + 1) % settings.checkpoint_every == 0:
            save_checkpoint(checkpoint, step + 1, optimizers, {"kl_coef": kl_controller.coef, **reward.state()})


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    """1 - Var(R - V) / Var(R): 1 where the critic knows, 0 where it knows no more than the mean. 0 without variance."""
    variance = float(returns.var()) if returns.numel() > 1 else 0.0
    return 1 - float((returns - values).var()) / variance if variance > 0 else 0.0
