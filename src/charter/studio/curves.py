"""Curves of any length in bounded memory, and the places of their points in a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

BUCKETS = 240  # points of a curve at most
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 480, 170, 58, 10, 146


@dataclass
class Bucket:
    """The values of some neighbouring steps."""

    first: int
    last: int
    total: float
    n: int
    low: float
    high: float

    @property
    def mean(self) -> float:
        return self.total / self.n

    def join(self, later: Bucket) -> Bucket:
        low, high = min(self.low, later.low), max(self.high, later.high)
        return Bucket(self.first, later.last, self.total + later.total, self.n + later.n, low, high)


class Curve:
    """One metric over the steps of a training. When it has more than ``BUCKETS`` points, neighbours are joined two by two, so
    a step costs the same whatever the number of steps."""

    def __init__(self) -> None:
        self.buckets: list[Bucket] = []
        self.width = 1  # values in a full bucket

    def add(self, step: int, value: float) -> None:
        """Values that are not finite are left out."""
        if not math.isfinite(value):
            return
        fresh = Bucket(step, step, value, 1, value, value)
        if self.buckets and self.buckets[-1].n < self.width:
            self.buckets[-1] = self.buckets[-1].join(fresh)
        else:
            self.buckets.append(fresh)
        if len(self.buckets) > BUCKETS:
            pairs = zip(self.buckets[::2], [*self.buckets[1::2], None], strict=False)
            self.buckets = [left.join(right) if right else left for left, right in pairs]
            self.width *= 2

    @property
    def last(self) -> float:
        """The mean of the last point."""
        return self.buckets[-1].mean

    def picture(self) -> dict[str, Any]:
        """The means as a line, and the range within each point as a band, in a picture of ``WIDTH`` by ``HEIGHT``."""
        low, high = min(b.low for b in self.buckets), max(b.high for b in self.buckets)
        first, last = self.buckets[0].first, self.buckets[-1].last

        def x(bucket: Bucket) -> float:
            middle = (bucket.first + bucket.last) / 2
            return round(LEFT + (WIDTH - LEFT - 12) * (middle - first) / max(last - first, 1), 1)

        def y(value: float) -> float:
            return round(BOTTOM - (BOTTOM - TOP) * ((value - low) / (high - low) if high > low else 0.5), 1)

        line = " ".join(f"{x(b)},{y(b.mean)}" for b in self.buckets)
        edge = [f"{x(b)},{y(b.high)}" for b in self.buckets] + [f"{x(b)},{y(b.low)}" for b in reversed(self.buckets)]
        return {
            "line": line, "band": " ".join(edge) if self.width > 1 else "", "dot": (x(self.buckets[-1]), y(self.last)),
            "low": low, "high": high, "first": first, "last": last, "value": self.last, "flat": high == low,
        }  # fmt: skip
