"""The loop of every method that learns from sampled responses: sample, score, credit, learn, record.

Credit and learning are the method's own page, which iterates over ``steps``; everything before and after is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from charter.models.trunk import REFERENCE, Trunk
from charter.records import Prompt, Rollout
from charter.run.hashes import derive_seed
from charter.run.run import Stage
from charter.stages.rl.settings import RLSettings, RolloutSettings
from charter.training.checkpoints import Checkpoints
from charter.training.gold import GoldCurve
from charter.training.losses import token_kl
from charter.training.optimizer import Optimizer, scaling_of
from charter.training.rewards import RewardSum, Scores, apply_missing_eos_penalty, make_kl_controller
from charter.training.rollouts import (
    collect,
    cut_to_learn,
    describe_rollout,
    log_rollout,
    over_rollout,
    policy_pass,
    prompt_batch,
)
from charter.training.updates import Updates, updates_per_step
from charter.training.watch import Watch


@dataclass
class Step:
    """One step, sampled and scored. Its B = prompts_per_step x samples_per_prompt responses have up to T tokens; siblings, the
    responses to one prompt, are neighbours."""

    rollout: Rollout
    scores: Tensor
    """(B,): what each response is worth, reward units."""
    kept: Tensor
    """(B,), bool: the responses that the reward scored. The others are in no update and must be in no baseline."""
    logprobs: Tensor
    """(B, T), nats: of the policy that sampled, the *rollout* policy."""
    reference_logprobs: Tensor
    """(B, T), nats: of the frozen model before RL."""
    kl: Tensor
    """(B, T), nats: the difference of the two at the sampled tokens."""
    kl_coef: float
    """Price of the KL, reward units per nat; 0 where a method has none."""
    updates: Updates
    logged: dict[str, float] = field(default_factory=dict)

    def record(self, **values: float) -> None:
        """What the method logs of this step beside what all of them log."""
        self.logged |= values


def steps(
    trunk: Trunk,
    prompts: Sequence[Prompt],
    reward: RewardSum,
    settings: RolloutSettings,
    stage: Stage,
    learning_rates: Mapping[str, float],
) -> Iterator[Step]:
    """The steps from the last checkpoint on. ``learning_rates`` names the roles that are trained, ``policy`` among them; they
    must be on the trunk, whose base is the reference."""
    seed = derive_seed(stage.run.seed, stage.name)
    minibatches, n_updates = updates_per_step(settings)
    optimizers = optimizers_of(trunk, settings, learning_rates, settings.steps * n_updates)
    checkpoints = Checkpoints(stage, optimizers, settings.checkpoint_every)
    first, extra = checkpoints.first, checkpoints.extra
    kl_controller = make_kl_controller(settings, extra) if isinstance(settings, RLSettings) else None
    reward.restore(extra)
    for log in ("metrics.jsonl", "rollouts.jsonl"):
        stage.rewind(log, first)
    watch = Watch(stage, trunk, settings, updates=n_updates, first=first)

    def state() -> dict[str, float]:
        return ({"kl_coef": kl_controller.coef} if kl_controller else {}) | reward.state()

    def score(parts: Scores, rollout: Rollout) -> Tensor:
        return apply_missing_eos_penalty(parts.total, rollout.finished, settings.missing_eos_penalty)  # (B,)

    def proxy(rollout: Rollout) -> list[float | None]:
        parts = reward.unshaped(rollout)
        return or_none(score(parts, rollout), parts.kept)

    curve = GoldCurve(trunk, settings, stage, reward.gold, first, proxy)
    for number in stage.progress(range(settings.steps), done=first):
        if curve.before(number, watch.history):
            break
        # Sample.
        batch = prompt_batch(prompts, number, settings.prompts_per_step, seed)
        rollout = collect(trunk, batch, settings, derive_seed(seed, "rollout", number))

        # Score.
        parts = reward(rollout)
        scores = score(parts, rollout)
        shuffle, tokens = derive_seed(seed, "minibatches", number), settings.tokens_per_micro_batch
        cuts, others = cut_to_learn(trunk, rollout, minibatches, tokens, shuffle, parts.rows)
        every_cut = [cut for minibatch in cuts for cut in minibatch] + others
        policy = policy_pass(trunk, rollout, every_cut, settings.temperature)
        reference_logprobs = over_rollout(
            trunk,
            REFERENCE,
            rollout,
            every_cut,
            lambda packed: trunk.logprobs(REFERENCE, packed, temperature=settings.temperature)[0],
        )
        kl = token_kl(policy.values, reference_logprobs, rollout.mask)  # (B, T)
        watch.rollout(number, rollout, policy.values, kl)

        # Credit and learn: the method's page.
        updates = Updates(trunk, settings, optimizers, policy, cuts, watch, number)
        price = kl_controller.coef if kl_controller else 0.0
        step = Step(rollout, scores, parts.kept, policy.values, reference_logprobs, kl, price, updates)
        yield step

        # Record.
        described = describe_rollout(rollout, scores, parts.kept, kl) | parts.means() | state()
        learned = {"first_ratio": watch.first_ratio, "grad_norm": updates.grad_norm, "updates": updates.made}
        scaling = scaling_of(*optimizers.values())
        row = stage.record(number, **described, **step.logged, **learned, **scaling, sampler_gap=watch.sampler_gap)
        log_rollout(stage, number, rollout, or_none(scores, parts.kept), kl)
        watch.step_done(number, row)
        if kl_controller:
            kl_controller.update(described["kl"], len(scores))
        reward.update(parts)
        checkpoints.after(number + 1, state())
    curve.finish(len(watch.history))


def optimizers_of(
    trunk: Trunk, settings: RolloutSettings, learning_rates: Mapping[str, float], n_updates: int
) -> dict[str, Optimizer]:
    """An optimizer of ``n_updates`` at a constant rate for each role that is trained."""
    more: dict[str, Any] = {
        "max_grad_norm": settings.max_grad_norm,
        "value_learning_rate": getattr(settings, "value_learning_rate", None),
    }
    return {
        role: Optimizer(trunk.parameters(role), rate, n_updates, decay=False, **more) for role, rate in learning_rates.items()
    }


def or_none(scores: Tensor, kept: Tensor) -> list[float | None]:
    """The scores (B,) as numbers, None where they are not ``kept``."""
    return [score if scored else None for score, scored in zip(scores.tolist(), kept.tolist(), strict=True)]
