"""AdamW, its schedule, and checkpoints that hold everything a stopped training needs to go on bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from charter.errors import GateError
from charter.models.precision import RoleParameters
from charter.records import atomic_path


class Optimizer:
    """AdamW without weight decay over named parameters, with gradient clipping and a schedule known in advance.

    The learning rate rises over ``warmup`` of the steps and falls to zero by a half cosine, or stays (``decay=False``).
    A gradient that is not finite stops the run with the reason: skipping it would hide it. In float16, where the scale of the
    gradients is found by trial, such an update is left out, counted (``scaling_of``) and made smaller the next time.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        learning_rate: float,
        steps: int,
        *,
        warmup: float = 0.0,
        decay: bool = True,
        max_grad_norm: float = 1.0,
    ) -> None:
        self.parameters = dict(parameters)
        self.scaler = parameters.scaler if isinstance(parameters, RoleParameters) else None
        self.skipped = 0
        self.learning_rate, self.steps, self.decay, self.max_grad_norm = learning_rate, steps, decay, max_grad_norm
        self.warmup_steps = math.ceil(warmup * steps)
        self.made = 0
        self.adam = torch.optim.AdamW(
            list(self.parameters.values()), lr=0.0, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0, fused=True
        )

    def rate(self) -> float:
        """Learning rate of the next step."""
        if self.made < self.warmup_steps:
            return self.learning_rate * (self.made + 1) / self.warmup_steps
        if not self.decay:
            return self.learning_rate
        progress = (self.made - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def step(self) -> float:
        """Clip, update, clear; the gradient norm before clipping, 0 where the update was left out."""
        if self.scaler is not None:
            self.scaler.unscale_(self.adam)
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm))
        if self.scaler is not None and not math.isfinite(norm) and self.scaler.get_scale() > 1:
            return self._skip()
        if not math.isfinite(norm):
            raise GateError(f"the gradient is not finite at update {self.made}; lower the learning rate or use float32")
        for group in self.adam.param_groups:
            group["lr"] = self.rate()
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        if self.scaler is not None:
            self.scaler.update()
        self.made += 1
        return norm

    def _skip(self) -> float:
        """Leave out an update whose gradient overflowed float16, and halve the scale."""
        assert self.scaler is not None
        self.scaler.update()
        self.adam.zero_grad(set_to_none=True)
        self.made += 1
        self.skipped += 1
        return 0.0

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Parameters and moments by name."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            found[f"{prefix}.{name}"] = parameter.detach()
            for key, value in self.adam.state.get(parameter, {}).items():
                found[f"{prefix}.{name}#{key}"] = value.detach()
        return found

    def restore(self, prefix: str, tensors: Mapping[str, Tensor], made: int) -> None:
        """Put parameters and moments back."""
        self.made = made
        for name, parameter in self.parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"{prefix}.{name}"])
            marker = f"{prefix}.{name}#"
            state = {
                key.removeprefix(marker): value.clone() for key, value in tensors.items() if key.startswith(marker)
            }
            if state:
                self.adam.state[parameter] = state


def scaling_of(*optimizers: Optimizer) -> dict[str, float]:
    """What a step logs in float16: the smallest scale, and updates left out since the start. Nothing in other precisions."""
    scales = [one.scaler.get_scale() for one in optimizers if one.scaler is not None]
    return {"loss_scale": min(scales), "skipped_updates": sum(one.skipped for one in optimizers)} if scales else {}


def save_checkpoint(path: Path, step: int, optimizers: Mapping[str, Optimizer], extra: Mapping[str, Any]) -> None:
    """Write parameters, optimizer moments, the step and plain values, atomically."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for prefix, optimizer in optimizers.items():
        tensors |= {key: value.contiguous().cpu() for key, value in optimizer.tensors(prefix).items()}
    made = {prefix: optimizer.made for prefix, optimizer in optimizers.items()}
    card: dict[str, Any] = {"step": step, "made": made, "extra": dict(extra)}
    if scaled := {prefix: one for prefix, one in optimizers.items() if one.scaler is not None}:
        card["scaling"] = {
            prefix: [one.scaler.state_dict(), one.skipped] for prefix, one in scaled.items() if one.scaler
        }
    metadata = {"charter": json.dumps(card, sort_keys=True)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_checkpoint(path: Path, optimizers: Mapping[str, Optimizer]) -> tuple[int, dict[str, Any]]:
    """The next step and the plain values of the last checkpoint; (0, {}) where there is none."""
    from safetensors import safe_open

    if not path.exists():
        return 0, {}
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["charter"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping, only keys()
    for prefix, optimizer in optimizers.items():
        own = {key: value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
        optimizer.restore(prefix, own, card["made"][prefix])
        if optimizer.scaler is not None:
            state, optimizer.skipped = card["scaling"][prefix]
            optimizer.scaler.load_state_dict(state)
    return card["step"], card["extra"]
