"""What this machine has and reaches."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from charter.models.formats.precision import DTYPES
from charter.models.shape import Shape
from charter.stages.load import Load

EFFICIENCY = 0.4  # share of a bare matrix product's rate that a transformer reaches
STEP_PER_LAYER = 0.25e-3  # seconds of Python and small operations per layer and decoding step


@dataclass(frozen=True)
class Speed:
    """Measured on this machine: operations per second of a large product, and seconds per weight of a product of so
    many rows."""

    operations: float
    seconds_per_weight: Callable[[int], float]


def probe(shape: Shape, precision: str, device: str) -> Speed:
    """Time products of the model's own sizes, well below a second for each of the few that a plan needs."""
    weight = torch.randn(shape.hidden, shape.inner, device=device)
    measured: dict[int, float] = {}

    def per_weight(rows: int) -> float:
        if rows not in measured:
            measured[rows] = product_seconds(rows, weight, torch.float32) / weight.numel()
        return measured[rows]

    large = 2048
    return Speed(2 * large * weight.numel() / product_seconds(large, weight, DTYPES[precision]), per_weight)


def product_seconds(rows: int, weight: Tensor, dtype: torch.dtype, budget: float = 0.1) -> float:
    """Shortest time of (rows, H) @ weight: what else runs on the machine only ever adds to it. On a CPU also on one thread,
    because threads that have to wait for a busy core can take a hundred times as long as one alone."""
    a, b = torch.randn(rows, weight.shape[0], device=weight.device).to(dtype), weight.to(dtype)
    out = a @ b
    threads = torch.get_num_threads()
    times = []
    for n in {1, threads} if weight.device.type == "cpu" else {threads}:
        torch.set_num_threads(n)
        begin = time.monotonic()
        for tried in range(200):
            start = time.perf_counter()
            torch.matmul(a, b, out=out)
            if weight.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            if tried > 2 and time.monotonic() - begin > budget:
                break
    torch.set_num_threads(threads)
    return min(times)


def seconds_of(load: Load, shape: Shape, speed: Speed) -> float:
    """Rough seconds of a stage."""
    decoding = sum(
        batches * new * (shape.layers * STEP_PER_LAYER + shape.parameters * speed.seconds_per_weight(rows))
        for rows, new, batches in load.batches
    )
    return load.operations / (speed.operations * EFFICIENCY) + decoding


def free_memory(device: str) -> int:
    """Bytes that are free now on the GPU, or on this machine within what its control group allows."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux: what there is at all
        return memory_of(device)
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no limit is the word max
        allowed, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, allowed - used)
    return free


def memory_of(device: str) -> int:
    """Bytes of the GPU, or of this machine."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
