"""Sixteen-bit training: the precision of products, and loss scaling where a gradient would fall below what float16 can hold.

A gradient below 6e-8 is 0 in float16. So it is multiplied by a large number where it enters the model and divided by it before
the update (Micikevicius et al. 2018, section 3.2); the number is halved where a gradient overflowed, and that update is left
out. Above the model nothing knows of it: losses are what they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class RoleParameters(dict[str, nn.Parameter]):
    """The trainable parameters of a role by name, the scaler by which their gradients are too large, None where they are not, and
    where their trunk keeps DeepSpeed's engines, None where it uses none. The optimizer reads it here, so that no loop can forget
    it."""

    scaler: torch.amp.GradScaler | None = None
    engines: list[Any] | None = None


def scaled(scaler: torch.amp.GradScaler | None, values: Tensor) -> Tensor:
    """The values; what comes back as their gradient is multiplied by the scale."""
    found: Tensor = values if scaler is None else _Scaled.apply(values, scaler)  # type: ignore[no-untyped-call]
    return found


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
        ctx.scaler = scaler
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.scaler.scale(gradients[0]), None
