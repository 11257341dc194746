"""Gradient checkpointing (Chen et al. 2016): a layer keeps its input alone and is computed again when its gradient is wanted.

The layers are those that transformers marks for it. Its own switch works in training mode only, which would turn dropout on;
and a layer that is computed again must find the adapters and the layout of its first time, which by then are another role's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from charter.errors import InputError


def checkpoint_layers(model: Any, again: Callable[[], AbstractContextManager[None]]) -> None:
    """Let every layer of the model forget what it computed. ``again`` is called in the forward pass and gives the context in
    which the layer is computed again. InputError where the model has no such layers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(f"{type(model).__name__} marks no layers for gradient checkpointing; leave gradient_checkpointing out")
    for layer in layers:
        layer.forward = forgetful(functools.partial(type(layer).forward, layer), again)


def forgetful(inner: Callable[..., Any], again: Callable[[], AbstractContextManager[None]]) -> Callable[..., Any]:
    """A layer that gives its own result and keeps its input alone. Nothing is dropped at random, so nothing random is kept. A
    plain function: a copy of the model shares it, and is given its own."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        return checkpoint(
            inner,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), again()),
            **kwargs,
        )

    return forward
