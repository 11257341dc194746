"""REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024): PPO's page with the credit lines replaced.

The whole response is one action. There is no value model, no clipping, and one update per batch, so every gradient is
on-policy and the ratio is 1 by construction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from charter.models.trunk import REFERENCE, Trunk
from charter.records import Prompt
from charter.run.hashes import derive_seed
from charter.run.run import Stage
from charter.run.team import team
from charter.stages.rl.settings import RLOOSettings
from charter.training.advantages import rloo_advantages
from charter.training.losses import reinforce_loss, token_kl
from charter.training.optimizer import Optimizer, load_checkpoint, save_checkpoint, scaling_of
from charter.training.rewards import RewardSum, apply_missing_eos_penalty, make_kl_controller
from charter.training.rollouts import (
    collect,
    describe_rollout,
    log_rollout,
    micro_batches,
    over_rollout,
    own_cuts,
    policy_pass,
    prompt_batch,
)
from charter.training.vllm_rollouts import describe_weights, sampler_weights
from charter.training.watch import Watch


def train_rloo(trunk: Trunk, prompts: Sequence[Prompt], reward: RewardSum, settings: RLOOSettings, stage: Stage) -> None:
    """Train role ``policy``, which must be on the trunk; the trunk's base is the reference.

    Each step: sample, score, credit, learn, record. Rollouts are B = prompts_per_step x samples_per_prompt rows.
    """
    seed = derive_seed(stage.run.seed, stage.name)
    optimizer = Optimizer(
        trunk.parameters("policy"),
        settings.learning_rate,
        settings.steps,
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
    watch = Watch(stage, trunk, settings, updates=1, first=first)

    for step in stage.progress(range(settings.steps), done=first):
        # Sample.
        batch = prompt_batch(prompts, step, settings.prompts_per_step, seed)
        rollout = collect(trunk, batch, settings, derive_seed(seed, "rollout", step))
        n = len(rollout.texts)
        cuts = micro_batches(trunk, rollout, range(n), settings.tokens_per_micro_batch)

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
        rewards = scores - kl_controller.coef * kl.sum(dim=1)  # (B,)
        groups = rewards.view(-1, settings.samples_per_prompt)
        advantages = rloo_advantages(groups).view(-1)
        weights = sampler_weights(settings, rollout, logprobs)  # (B, T)

        # Learn.
        loss_total = entropy_total = ratio_total = 0.0
        n_tokens = max(int(rollout.mask.sum()), 1)
        for cut in own_cuts(trunk, cuts, "policy"):
            mask = cut.packed.mask
            new_logprobs, entropies = policy.of(trunk, cut, settings.temperature)
            loss = reinforce_loss(new_logprobs, advantages[cut.rows], mask, n, weights=cut.of(weights))
            torch.autograd.backward(loss)
            loss_total += loss.item()
            entropy_total += float(entropies.detach().sum())
            ratio_total += float((new_logprobs.detach() - cut.of(logprobs))[mask].exp().sum())
        loss_total, entropy_total, ratio_total = team().add_up(loss_total, entropy_total, ratio_total)
        watch.first_minibatch(step, ratio_total / n_tokens)
        norm = optimizer.step()

        # Record.
        described = describe_rollout(rollout, scores, kl)
        row = stage.record(
            step,
            **described,
            **parts.means(),
            **describe_weights(settings, rollout, weights),
            **reward.state(),
            kl_coef=kl_controller.coef,
            first_ratio=watch.first_ratio,
            entropy=entropy_total / n_tokens,
            loss=loss_total,
            groups_without_spread=float((groups.amax(dim=1) == groups.amin(dim=1)).float().mean()),
            grad_norm=norm,
            updates=1,
            sampler_gap=watch.sampler_gap,
            **scaling_of(optimizer),
        )
        log_rollout(stage, step, rollout, scores, kl)
        watch.step_done(step, row)
        kl_controller.update(described["kl"], n)
        reward.update(parts)
        if (step + 1) % settings.checkpoint_every == 0:
            save_checkpoint(checkpoint, step + 1, optimizers, {"kl_coef": kl_controller.coef, **reward.state()})
