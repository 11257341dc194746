"""Online DPO (Guo et al. 2024): preferences between responses that the policy has just given.

Of the K responses to a prompt the one that the reward scores highest is chosen and the lowest rejected; with ``judge:base`` for
a reward that is direct AI feedback. What DPO learns from a fixed set of pairs goes stale as the policy leaves the model that
wrote them; here it does not. One update per batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from charter.models.trunk import REFERENCE, Trunk
from charter.records import Prompt
from charter.run.hashes import derive_seed
from charter.run.run import Stage
from charter.run.team import team
from charter.stages.rl.settings import OnlineDPOSettings
from charter.training.losses import token_kl
from charter.training.optimizer import Optimizer, load_checkpoint, save_checkpoint, scaling_of
from charter.training.preference_losses import LOSSES, PairLogprobs
from charter.training.rewards import RewardSum, apply_missing_eos_penalty
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
from charter.training.watch import Watch


def train_online_dpo(
    trunk: Trunk, prompts: Sequence[Prompt], reward: RewardSum, settings: OnlineDPOSettings, stage: Stage
) -> None:
    """Train role ``policy``, which must be on the trunk; the trunk's base is the reference.

    Each step: sample, score, pair, learn, record. Rollouts are B = prompts_per_step x samples_per_prompt rows.
    """
    seed = derive_seed(stage.run.seed, stage.name)
    optimizer = Optimizer(
        trunk.parameters("policy"),
        settings.learning_rate,
        settings.steps,
        decay=False,
        max_grad_norm=settings.max_grad_norm,
    )
    checkpoint = stage.path("checkpoint.safetensors")
    first, extra = load_checkpoint(checkpoint, {"policy": optimizer})
    reward.restore(extra)
    for log in ("metrics.jsonl", "rollouts.jsonl"):
        stage.rewind(log, first)
    watch = Watch(stage, trunk, settings, updates=1, first=first)

    for step in stage.progress(range(settings.steps), done=first):
        # Sample.
        batch = prompt_batch(prompts, step, settings.prompts_per_step, seed)
        rollout = collect(trunk, batch, settings, derive_seed(seed, "rollout", step))
        cuts = micro_batches(trunk, rollout, range(len(rollout.texts)), settings.tokens_per_micro_batch)

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

        # Pair.
        chosen, rejected = best_and_worst(scores.view(-1, settings.samples_per_prompt))  # (pairs,) rows of the rollout
        slopes, loss = pair_slopes(
            logprobs.sum(dim=1),
            reference_logprobs.sum(dim=1),
            rollout.mask.sum(dim=1).float(),
            chosen,
            rejected,
            settings,
        )

        # Learn. The loss sees a response through its log-probability alone, so its slope there is all of the gradient.
        entropy_total = ratio_total = 0.0
        n_tokens = max(int(rollout.mask.sum()), 1)
        for cut in own_cuts(trunk, cuts, "policy"):
            new_logprobs, entropies = policy.of(trunk, cut, settings.temperature)
            torch.autograd.backward((slopes[cut.rows] * new_logprobs.sum(dim=1)).sum())
            entropy_total += float(entropies.detach().sum())
            ratio_total += float((new_logprobs.detach() - cut.of(logprobs))[cut.packed.mask].exp().sum())
        entropy_total, ratio_total = team().add_up(entropy_total, ratio_total)
        watch.first_minibatch(step, ratio_total / n_tokens)
        norm = optimizer.step()

        # Record.
        row = stage.record(
            step,
            **describe_rollout(rollout, scores, kl),
            **parts.means(),
            **reward.state(),
            first_ratio=watch.first_ratio,
            entropy=entropy_total / n_tokens,
            loss=loss,
            pairs=len(chosen),
            score_gap=float((scores[chosen] - scores[rejected]).mean()) if len(chosen) else 0.0,
            grad_norm=norm,
            updates=1,
            sampler_gap=watch.sampler_gap,
            **scaling_of(optimizer),
        )
        log_rollout(stage, step, rollout, scores, kl)
        watch.step_done(step, row)
        reward.update(parts)
        if (step + 1) % settings.checkpoint_every == 0:
            save_checkpoint(checkpoint, step + 1, {"policy": optimizer}, reward.state())


def best_and_worst(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the best and of the worst of each group of scores (P, K), rows counted through; (pairs,) each. A group whose
    scores are all equal holds no preference and no pair."""
    start = torch.arange(len(groups), device=groups.device) * groups.shape[1]
    told_apart = groups.amax(dim=1) > groups.amin(dim=1)
    return (start + groups.argmax(dim=1))[told_apart], (start + groups.argmin(dim=1))[told_apart]


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
