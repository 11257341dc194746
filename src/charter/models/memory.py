"""Memory: what is kept between two steps, what is given back, when it does not suffice, and how to need less of it."""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from charter.errors import InputError

LOG = logging.getLogger("charter")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
# The messages of torch's CPU allocator and of oneDNN; on a GPU there is an exception of its own.
OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "could not allocate", "out of memory")


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next step instead of giving them back and faulting them in again.

    A training step needs the same large blocks over and over; by default glibc maps and clears each of them anew, a tenth to a
    sixth of the time of a step on a CPU. No other C library is touched.

    Also let oneDNN keep fewer compiled kernels: half a megabyte each, a thousand by default, one for every shape it meets.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that glibc accepts
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 2**26)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on a GPU, in torch on a CPU, or in Python."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)


def let_go() -> None:
    """Give back all memory that nothing refers to any more, also the blocks that glibc keeps (``keep_freed_memory``)."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# -- gradient checkpointing (Chen et al. 2016) -----------------------------------------------------------------------------
# A layer keeps its input alone and is computed again when its gradient is needed. transformers marks the layers for it; its own
# switch works in training mode only, which would turn dropout on.


def checkpoint_layers(model: Any, context: Callable[[], AbstractContextManager[None]]) -> None:
    """Let every layer of the model forget what it computed. ``context`` is called in the forward pass and returns the context in
    which the layer is computed again: the adapters and the layout of its first time, which by then are another role's.
    InputError if the model has no such layers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(f"{type(model).__name__} marks no layers for gradient checkpointing; leave gradient_checkpointing out")
    for layer in layers:
        layer.forward = forgetful(functools.partial(type(layer).forward, layer), context)


def forgetful(inner: Callable[..., Any], context: Callable[[], AbstractContextManager[None]]) -> Callable[..., Any]:
    """A layer that returns its own result and keeps its input alone. Nothing is dropped at random, so no random state is kept. A
    plain function: a copy of the model shares it until it gets its own."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        return checkpoint(
            inner, *args, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), context()), **kwargs
        )

    return forward
