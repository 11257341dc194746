"""What the libraries underneath do with memory between two steps."""

from __future__ import annotations

import ctypes
import functools
import os
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep blocks that were freed for the next step instead of giving them back and faulting them in again.

    A training step asks for the same large blocks over and over; by default each is mapped and cleared anew, a tenth to a sixth
    of the time of a step on a CPU. No other C library is touched.

    And let oneDNN keep fewer compiled kernels: half a megabyte each, a thousand by default, one for every shape it meets.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that glibc accepts
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 2**26)
