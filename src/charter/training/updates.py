"""The updates of one step: epochs of minibatches, each an optimizer step, each of micro-batches whose gradients add up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from charter.models.trunk import PolicyPass, Trunk
from charter.run.team import team
from charter.stages.rl.settings import RolloutSettings
from charter.training.losses import PolicyStats
from charter.training.optimizer import Optimizer
from charter.training.rollouts import FirstPass, MicroBatch, own_cuts
from charter.training.watch import Watch


def updates_per_step(settings: RolloutSettings) -> tuple[int, int]:
    """Minibatches of a step, and its updates: minibatches x epochs. One of each where a method has no such setting."""
    minibatches = getattr(settings, "minibatches", 1)
    return minibatches, minibatches * getattr(settings, "epochs", 1)


class Updates:
    """Iterating gives every micro-batch of every update with the policy's pass over it, which carries gradient. The
    body of the loop passes each micro-batch's loss to ``learn``; the optimizers move between updates.

    ``n_tokens`` and ``n_responses`` count those of the whole update that a micro-batch belongs to, on all processes.
    """

    n_tokens = n_responses = 0

    def __init__(
        self,
        trunk: Trunk,
        settings: RolloutSettings,
        optimizers: Mapping[str, Optimizer],
        policy: FirstPass[PolicyPass],
        minibatches: Sequence[Sequence[MicroBatch]],
        watch: Watch,
        step: int,
    ) -> None:
        self.trunk, self.settings, self.optimizers = trunk, settings, optimizers
        self.policy, self.minibatches = policy, minibatches
        self.watch, self.step = watch, step
        self.cuts = [cut for minibatch in minibatches for cut in minibatch]
        self.totals = dict.fromkeys(("ratio", "clip_fraction", "approx_kl", "n_tokens", "entropy", "value_loss", "loss"), 0.0)
        self.norms: list[float] = []
        self.moved = 0.0  # from the rollout policy, in the last update: nats a token

    def __iter__(self) -> Iterator[tuple[MicroBatch, PolicyPass]]:
        stop_kl = getattr(self.settings, "stop_kl", None)
        for minibatch in [minibatch for _ in range(getattr(self.settings, "epochs", 1)) for minibatch in self.minibatches]:
            if stop_kl is not None and self.moved > stop_kl:
                break
            self.moved = 0.0
            self.n_tokens = sum(cut.packed.n_tokens for cut in minibatch)
            self.n_responses = sum(len(cut.rows) for cut in minibatch)
            for cut in own_cuts(self.trunk, minibatch, *self.optimizers):
                yield cut, self.policy.of(cut)
            self.moved, ratio, n_tokens = team().add_up(self.moved, self.totals["ratio"], self.totals["n_tokens"])
            if not self.norms:
                self.watch.first_minibatch(self.step, ratio / max(n_tokens, 1))
            norms = {role: optimizer.step() for role, optimizer in self.optimizers.items()}
            self.norms.append(norms["policy"])
        self.totals = dict(zip(self.totals, team().add_up(*self.totals.values()), strict=True))

    def learn(self, loss: Tensor, stats: PolicyStats, *, entropy: float, value_loss: float = 0.0) -> None:
        """Add the gradient of a micro-batch's loss. ``entropy`` and ``value_loss`` are sums over its tokens, to be logged."""
        torch.autograd.backward(loss)
        self.moved += stats.approx_kl / self.n_tokens
        of_part = (stats.ratio, stats.clipped, stats.approx_kl, stats.n_tokens, entropy, value_loss, loss.item())
        self.totals = {name: total + value for (name, total), value in zip(self.totals.items(), of_part, strict=True)}

    def per_token(self, *names: str) -> dict[str, float]:
        """Means over the tokens of all updates; a token counts once an epoch."""
        return {name: self.totals[name] / max(self.totals["n_tokens"], 1) for name in names}

    @property
    def loss(self) -> float:
        """Mean over the updates."""
        return self.totals["loss"] / len(self.norms)

    @property
    def grad_norm(self) -> float:
        """The policy's, before it is clipped; mean over the updates."""
        return sum(self.norms) / len(self.norms)

    @property
    def made(self) -> int:
        """The number of updates; ``stop_kl`` may end them early."""
        return len(self.norms)
