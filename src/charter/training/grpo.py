"""Group relative policy optimisation (Shao et al. 2024) and Dr. GRPO (Liu et al. 2025): PPO's page, the credit lines replaced.

A response is measured against the group of its siblings, so there is no value model. The KL to the frozen reference is a
term of the loss and not of the reward; the clipped ratio is against the policy that sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from charter.models.trunk import REFERENCE, Trunk
from charter.records import Prompt
from charter.run.hashes import derive_seed
from charter.run.run import Stage
from charter.run.team import team
from charter.stages.rl.settings import GRPOSettings
from charter.training.advantages import group_advantages
from charter.training.losses import clipped_policy_loss, kl_penalty, token_kl, token_weights
from charter.training.optimizer import Optimizer, load_checkpoint, save_checkpoint, scaling_of
from charter.training.rewards import RewardSum, apply_missing_eos_penalty, make_kl_controller
from charter.training.rollouts import (
    collect,
    cut_minibatches,
    describe_rollout,
    log_rollout,
    over_rollout,
    own_cuts,
    policy_pass,
    prompt_batch,
)
from charter.training.vllm_rollouts import describe_weights, sampler_weights
from charter.training.watch import Watch


def train_grpo(trunk: Trunk, prompts: Sequence[Prompt], reward: RewardSum, settings: GRPOSettings, stage: Stage) -> None:
    """Train role ``policy``, which must be on the trunk; the trunk's base is the reference.

    Each step: sample, score, credit, learn, record. Rollouts are B = prompts_per_step x samples_per_prompt rows.
    """
    seed = derive_seed(stage.run.seed, stage.name)
    optimizer = Optimizer(
        trunk.parameters("policy"),
        settings.learning_rate,
        settings.steps * settings.epochs * settings.minibatches,
        decay=False,
        max_grad_norm=settings.max_grad_norm,
    )
    optimizers = {"policy": optimizer}
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
        n = len(rollout.texts)
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
        groups = scores.view(-1, settings.samples_per_prompt)
        advantages = group_advantages(groups, scale_by_std=settings.scale_by_std).view(-1)  # (B,)
        importance = sampler_weights(settings, rollout, logprobs)
        advantages = advantages.unsqueeze(1) * importance  # (B, T)

        # Learn.
        totals = dict.fromkeys(("ratio", "clipped", "approx_kl", "n_tokens", "entropy", "loss"), 0.0)
        norms: list[float] = []
        moved = 0.0  # from the rollout policy, in the last update: nats a token
        for _ in range(settings.epochs):
            for minibatch in minibatches:
                if settings.stop_kl is not None and moved > settings.stop_kl:
                    break
                moved = 0.0
                n_tokens = sum(cut.packed.n_tokens for cut in minibatch)
                n_responses = sum(len(cut.rows) for cut in minibatch)
                for cut in own_cuts(trunk, minibatch, "policy"):
                    mask = cut.packed.mask
                    new_logprobs, entropies = policy.of(trunk, cut, settings.temperature)
                    weights = token_weights(
                        mask,
                        settings.average,
                        n_tokens=n_tokens,
                        n_responses=n_responses,
                        max_new_tokens=settings.max_new_tokens,
                    )
                    old = cut.of(logprobs)
                    policy_loss, stats = clipped_policy_loss(
                        new_logprobs,
                        old,
                        cut.of(advantages),
                        mask,
                        settings.clip_coef,
                        clip_coef_high=settings.clip_coef_high,
                        weights=weights,
                    )
                    penalty = kl_penalty(new_logprobs, cut.of(reference_logprobs), old, mask, settings.kl_estimator)
                    loss = policy_loss + kl_controller.coef * (penalty * weights).sum()
                    torch.autograd.backward(loss)
                    totals["ratio"] += stats.ratio
                    totals["clipped"] += stats.clipped
                    totals["approx_kl"] += stats.approx_kl
                    moved += stats.approx_kl / n_tokens
                    totals["n_tokens"] += stats.n_tokens
                    totals["entropy"] += float(entropies.detach().sum())
                    totals["loss"] += loss.item()
                moved, ratio, n_seen = team().add_up(moved, totals["ratio"], totals["n_tokens"])
                if not norms:
                    watch.first_minibatch(step, ratio / max(n_seen, 1))
                norms.append(optimizer.step())

        totals = dict(zip(totals, team().add_up(*totals.values()), strict=True))

        # Record.
        seen = max(totals["n_tokens"], 1)
        described = describe_rollout(rollout, scores, kl)
        row = stage.record(
            step,
            **described,
            **parts.means(),
            **describe_weights(settings, rollout, importance),
            **reward.state(),
            kl_coef=kl_controller.coef,
            first_ratio=watch.first_ratio,
            ratio=totals["ratio"] / seen,
            clip_fraction=totals["clipped"] / seen,
            approx_kl=totals["approx_kl"] / seen,
            entropy=totals["entropy"] / seen,
            loss=totals["loss"] / len(norms),
            groups_without_spread=float((groups.amax(dim=1) == groups.amin(dim=1)).float().mean()),
            grad_norm=sum(norms) / len(norms),
            updates=len(norms),
            sampler_gap=watch.sampler_gap,
            **scaling_of(optimizer),
        )
        log_rollout(stage, step, rollout, scores, kl)
        watch.step_done(step, row)
        kl_controller.update(described["kl"], n)
        reward.update(parts)
        if (step + 1) % settings.checkpoint_every == 0:
            save_checkpoint(checkpoint, step + 1, optimizers, {"kl_coef": kl_controller.coef, **reward.state()})
