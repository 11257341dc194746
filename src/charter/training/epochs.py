"""The start of a training that goes over its data in epochs: the order of the rows, and an optimizer for it."""

from __future__ import annotations

from charter.models.trunk import Trunk
from charter.stages.reward_model.settings import ScorerSettings
from charter.stages.rl.settings import PairSettings
from charter.stages.sft.settings import SFTSettings
from charter.training.batches import epoch_batches
from charter.training.optimizer import Optimizer

EpochSettings = SFTSettings | PairSettings | ScorerSettings


def epochs_of(
    trunk: Trunk, role: str, n: int, per_step: int, settings: EpochSettings, seed: int
) -> tuple[list[list[int]], Optimizer]:
    """The index lists of all steps over ``n`` items, and the optimizer of the role, whose schedule spans these steps."""
    steps = epoch_batches(n, per_step, settings.epochs, seed)
    rate, warmup = settings.learning_rate, settings.warmup
    optimizer = Optimizer(
        trunk.parameters(role), rate, len(steps), warmup=warmup, max_grad_norm=settings.max_grad_norm,
        value_learning_rate=getattr(settings, "value_learning_rate", None),
    )  # fmt: skip
    return steps, optimizer
