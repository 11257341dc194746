"""When memory does not suffice: to know it, and to let go of what is no longer used."""

from __future__ import annotations

import ctypes
import gc
import logging
import platform

import torch

LOG = logging.getLogger("charter")
# What torch's CPU allocator and oneDNN say; on a GPU there is an exception of its own.
WORDS = ("can't allocate memory", "cannot allocate memory", "not enough memory", "could not allocate", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on a GPU, in torch on a CPU, or in Python."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)


def let_go() -> None:
    """Give back what nothing refers to any more; also what glibc was told to keep (``allocator``)."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
