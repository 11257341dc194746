"""Checkpoints: everything that a stopped training needs to resume bit for bit, and when it is written."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from charter.models.formats.sharded import CARD, is_divided, load_divided, save_divided
from charter.run.files import atomic_path
from charter.run.progress import duration, size
from charter.run.run import Stage
from charter.run.team import team
from charter.training.optimizer import Optimizer

WAIT = 20  # seconds between two checkpoints for each second that the last one took: at most 5% of a stage's time
SLOW_DISK = 100e6  # bytes a second, assumed until the first checkpoint is measured
LEAST_WAIT = 1.0  # seconds


class Wait:
    """Seconds from the last checkpoint, or from the start, to the next: ``expected`` for the first, then 20 times as long as the
    last one took."""

    def __init__(self, expected: float, clock: Callable[[], float]) -> None:
        self.seconds, self.clock, self.since = max(LEAST_WAIT, expected), clock, clock()

    def over(self) -> bool:
        """Whether the next checkpoint is due."""
        return self.clock() - self.since >= self.seconds

    def written(self, begin: float) -> None:
        """A checkpoint that was begun at ``begin`` is on the disk."""
        self.since = self.clock()
        self.seconds = max(LEAST_WAIT, WAIT * (self.since - begin))


class Checkpoints:
    """Where a training resumes, and when its state is written.

    With ``every`` after so many steps. Without, by time, at most a twentieth of it. The moment depends on the machine, the
    trained model does not. Of several processes the main one decides. ``clock``: seconds.
    """

    def __init__(
        self,
        stage: Stage,
        optimizers: Mapping[str, Optimizer],
        every: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.optimizers, self.every, self.clock = stage.path("checkpoint.safetensors"), optimizers, every, clock
        self.say = stage.run.say
        self.first, self.extra = load_checkpoint(self.path, optimizers)
        """The step to resume at, and the plain values that were kept with it."""
        self.bytes = sum(optimizer.state_bytes for optimizer in optimizers.values())
        self.wait = Wait(WAIT * self.bytes / SLOW_DISK, clock)
        self.told = self.wait.seconds
        """The most that a kill loses, in seconds of training, as it was last said."""
        how = f"checkpoints of {size(self.bytes)}"
        if every is not None:
            self.say(f"  a kill loses at most {every} step{'s' * (every > 1)} ({how}, checkpoint_every)")
        else:
            seconds = duration(self.wait.seconds)
            self.say(f"  a kill loses at most {seconds} of training and the step at hand ({how}, 5% of the time)")

    def after(self, step: int, extra: Mapping[str, Any] | None = None) -> None:
        """Note that ``step`` steps are made; write a checkpoint if one is due. OSError where the disk is full."""
        if step % self.every if self.every is not None else not team().on_main(self.wait.over):
            return
        begin = self.clock()
        save_checkpoint(self.path, step, self.optimizers, extra or {})
        self.wait.written(begin)
        if self.every is None and self.wait.seconds > self.told:
            self.told = self.wait.seconds
            took, loses = duration(self.told / WAIT), duration(self.told)
            self.say(f"  a checkpoint took {took}, so a kill now loses at most {loses} of training")


def save_checkpoint(path: Path, step: int, optimizers: Mapping[str, Optimizer], extra: Mapping[str, Any]) -> None:
    """Write parameters, optimizer moments, the step and plain values, atomically: one file, or a folder beside it where the
    parameters are divided among processes."""
    from safetensors.torch import save_file

    folder = path.with_suffix("")
    tensors = {key: value for prefix, one in optimizers.items() for key, value in one.tensors(prefix).items()}
    card: dict[str, Any] = {"step": step, "made": {prefix: one.made for prefix, one in optimizers.items()}, "extra": dict(extra)}
    if scaled := {prefix: one for prefix, one in optimizers.items() if one.scaler is not None}:
        card["scaling"] = {prefix: [one.scaler.state_dict(), one.skipped] for prefix, one in scaled.items() if one.scaler}
    if any(map(is_divided, tensors.values())):
        save_divided(folder, tensors, card)
        if team().is_main:
            path.unlink(missing_ok=True)
    elif team().is_main:
        with atomic_path(path) as temporary:
            whole = {key: value.contiguous().cpu() for key, value in tensors.items()}
            save_file(whole, temporary, metadata={"charter": json.dumps(card, sort_keys=True)})
        shutil.rmtree(folder, ignore_errors=True)


def load_checkpoint(path: Path, optimizers: Mapping[str, Optimizer]) -> tuple[int, dict[str, Any]]:
    """The next step and the plain values of the last checkpoint; (0, {}) where there is none."""
    from safetensors import safe_open

    folder = path.with_suffix("")
    divided, whole = team().on_main(lambda: ((folder / CARD).exists(), path.exists()))
    if divided:
        parameters = {f"{p}.{name}": value for p, one in optimizers.items() for name, value in one.parameters.items()}
        card, tensors = load_divided(folder, parameters)
    elif whole:
        with safe_open(path, framework="pt") as file:
            card = json.loads(file.metadata()["charter"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping, only keys()
    else:
        return 0, {}
    for prefix, optimizer in optimizers.items():
        own = {key: value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
        optimizer.restore(prefix, own, card["made"][prefix])
        if optimizer.scaler is not None:
            state, optimizer.skipped = card["scaling"][prefix]
            optimizer.scaler.load_state_dict(state)
    return card["step"], card["extra"]
