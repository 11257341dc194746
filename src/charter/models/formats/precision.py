"""Sixteen-bit training: the precision of products, and loss scaling for gradients below the range of float16.

A gradient below 6e-8 is 0 in float16. So it is multiplied by a large scale where it enters the model and divided by it before the
update (Micikevicius et al. 2018, section 3.2); after an overflow the scale is halved and the update skipped. Code above the model
does not see the scale: losses are not scaled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class RoleParameters(dict[str, nn.Parameter]):
    """The trainable parameters of a role by name; the scaler of their gradients, None without scaling; the list of the trunk's
    DeepSpeed engines, None without DeepSpeed. The optimizer reads these here, so that no loop can forget them."""

    scaler: torch.amp.GradScaler | None = None
    engines: list[Any] | None = None


def with_scaled_gradient(scaler: torch.amp.GradScaler | None, values: Tensor) -> Tensor:
    """The values, whose gradient is multiplied by the scale on its way back."""
    unchanged: Tensor = values if scaler is None else _ScaledGradient.apply(values, scaler)  # type: ignore[no-untyped-call]
    return unchanged


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
        ctx.scaler = scaler
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.scaler.scale(gradients[0]), None
