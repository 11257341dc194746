"""AdamW with its schedule, and the state that a stopped training needs to resume bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from charter.errors import GateError
from charter.models.formats.precision import RoleParameters
from charter.models.formats.sharded import is_divided, put
from charter.models.heads import VALUE_HEAD
from charter.run.team import team
from charter.training.zero import Zero

BUCKET = 2**24  # gradients that travel at once: 64 MB


class Optimizer:
    """AdamW without weight decay over named parameters, with gradient clipping and a schedule known in advance.

    The learning rate rises over ``warmup`` of the steps and falls to zero by a half cosine, or stays (``decay=False``).
    ``value_learning_rate``: of a value head among them; unless given, that of the others.
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
        value_learning_rate: float | None = None,
    ) -> None:
        self.parameters = dict(parameters)
        own = parameters if isinstance(parameters, RoleParameters) else RoleParameters()
        self.scaler = own.scaler
        self.skipped = 0
        self.learning_rate, self.steps, self.decay, self.max_grad_norm = learning_rate, steps, decay, max_grad_norm
        self.warmup_steps = math.ceil(warmup * steps)
        self.made = 0
        head = [p for name, p in self.parameters.items() if name.startswith(VALUE_HEAD)]
        below = [p for name, p in self.parameters.items() if not name.startswith(VALUE_HEAD)]
        divided = [p for p in below if is_divided(p)]
        others = [p for p in below if not is_divided(p)]
        factor = (value_learning_rate or learning_rate) / learning_rate
        self.adam = torch.optim.AdamW(
            [{"params": part, "factor": times} for part, times in ((divided, 1.0), (others, 1.0), (head, factor)) if part],
            lr=0.0, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0, fused=True,
        )  # fmt: skip
        self.zero: Zero | None = None
        if own.engines is not None:
            self.zero = Zero(list(self.parameters.values()), self.adam, max_grad_norm)
            own.engines.append(self.zero)

    def rate(self) -> float:
        """Learning rate of the next step."""
        if self.made < self.warmup_steps:
            return self.learning_rate * (self.made + 1) / self.warmup_steps
        if not self.decay:
            return self.learning_rate
        progress = (self.made - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def step(self) -> float:
        """Add up the gradients of the processes, clip, update, clear; the gradient norm before clipping, 0 where the update was
        left out."""
        if self.zero is not None:
            norm = self.zero.step(self.rate())
            self._check(norm)
            self.made += 1
            return norm
        parameters = list(self.parameters.values())
        sum_gradients([p for p in parameters if not is_divided(p)])
        if self.scaler is not None:
            self.scaler.unscale_(self.adam)
        norm = clip_gradients(parameters, self.max_grad_norm)
        if self.scaler is not None and not math.isfinite(norm) and self.scaler.get_scale() > 1:
            return self._skip()
        self._check(norm)
        for group in self.adam.param_groups:
            group["lr"] = self.rate() * group["factor"]
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        if self.scaler is not None:
            self.scaler.update()
        self.made += 1
        return norm

    def _check(self, norm: float) -> None:
        if not math.isfinite(norm):
            raise GateError(f"the gradient is not finite at update {self.made}; lower the learning rate or use float32")

    def _skip(self) -> float:
        """Leave out an update whose gradient overflowed float16, and halve the scale."""
        assert self.scaler is not None
        self.scaler.update()
        self.adam.zero_grad(set_to_none=True)
        self.made += 1
        self.skipped += 1
        return 0.0

    @property
    def state_bytes(self) -> int:
        """Bytes of the parameters and both moments, of all processes."""
        return sum(3 * p.numel() * p.element_size() for p in self.parameters.values())

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Parameters and moments by name."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"{prefix}.{name}"] = parameter.detach()
            moments = self.zero.moments(parameter) if self.zero else self.adam.state.get(parameter, {})
            for key, value in moments.items():
                tensors[f"{prefix}.{name}#{key}"] = value.detach()
        return tensors

    def restore(self, prefix: str, tensors: Mapping[str, Tensor], made: int) -> None:
        """Put parameters and moments back."""
        self.made = made
        for name, parameter in self.parameters.items():
            marker = f"{prefix}.{name}#"
            state = {key.removeprefix(marker): value for key, value in tensors.items() if key.startswith(marker)}
            if self.zero is not None:
                self.zero.restore(parameter, tensors[f"{prefix}.{name}"], state)
                continue
            put(parameter, tensors[f"{prefix}.{name}"])
            if state:
                self.adam.state[parameter] = {
                    key: like(parameter, value) if value.dim() else value.clone() for key, value in state.items()
                }


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Add up gradients over the processes, which worked on different rows of one batch. A loss is divided by what the whole batch
    holds, so the sum is the gradient that one process computes. A parameter that got none anywhere keeps none."""
    if team().size == 1 or not parameters:
        return
    device = parameters[0].device
    has = team().sum_(torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=device))
    bucket: list[nn.Parameter] = []
    for parameter in (p for p, n in zip(parameters, has.tolist(), strict=True) if n):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and sum(p.numel() for p in bucket) + parameter.numel() > BUCKET:
            sum_bucket(bucket)
            bucket = []
        bucket.append(parameter)
    if bucket:
        sum_bucket(bucket)


def sum_bucket(parameters: Sequence[nn.Parameter]) -> None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = team().sum_(torch.cat([g.reshape(-1) for g in gradients]))
    for gradient, whole in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(whole.view_as(gradient))


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> float:
    """Scale the gradients so that their norm is at most ``limit``; the norm before."""
    divided = [p.grad for p in parameters if is_divided(p) and p.grad is not None]
    if not divided:
        return float(nn.utils.clip_grad_norm_(parameters, limit))
    parts = [gradient.to_local() for gradient in divided]  # type: ignore[attr-defined]
    others = [p.grad for p in parameters if not is_divided(p) and p.grad is not None]
    square = team().sum_(nn.utils.get_total_norm(parts) ** 2)
    if others:
        square = square + nn.utils.get_total_norm(others) ** 2
    norm = square.sqrt()
    for gradient in (*parts, *others):
        gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
    return float(norm)


def like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """``value``, divided as the parameter is."""
    divided = torch.zeros_like(parameter)
    put(divided, value)
    return divided.detach()


def scaling_of(*optimizers: Optimizer) -> dict[str, float]:
    """What a step logs in float16: the smallest scale, and updates left out since the start. Nothing in other precisions."""
    scales = [one.scaler.get_scale() for one in optimizers if one.scaler is not None]
    return {"loss_scale": min(scales), "skipped_updates": sum(one.skipped for one in optimizers)} if scales else {}
