"""How far a stage is: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
MINUTE = 60.0  # seconds between two lines without a terminal


def size(n: float) -> str:
    """Bytes as words."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """Seconds as words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Pace:
    """How far a work is: ``done`` of ``total`` items, ``since_start`` of them in the ``seconds`` of this process."""

    done: int
    total: int
    since_start: int
    seconds: float

    @property
    def rate(self) -> str:
        """Items a second, or a minute where they take longer."""
        per_second = self.since_start / self.seconds if self.seconds else 0.0
        if not per_second:
            return ""
        return f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.1f}/min"

    @property
    def time_left(self) -> str:
        """At the mean rate since the start of this process."""
        if not self.since_start:
            return ""
        return f"{duration(max(self.total - self.done, 0) * self.seconds / self.since_start)} left"

    def line(self, label: str) -> str:
        """The numbers of the bar in words."""
        return f"  {label}: {self.done} of {self.total}, {self.rate}, {duration(self.seconds)} so far, {self.time_left}"


def track(
    steps: Sequence[T], label: str, *, done: int = 0, unit: int = 1, total: int | None = None, quiet: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[T]:  # fmt: skip
    """The steps that are left. Standard error gets their count, rate and time to go: as a bar on a terminal, elsewhere as a line
    after the first step that ends a minute or more after the last line. ``unit``: items in a step, the last of which may have
    fewer, so ``total`` is their number where it is known. ``clock``: seconds."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if quiet or not steps[done:]:
        yield from steps[done:]
    else:
        show = bar if console.is_terminal else lines
        yield from show(console, steps, label, done, unit, len(steps) * unit if total is None else total, clock)


def lines(
    console: Any, steps: Sequence[T], label: str, done: int, unit: int, total: int, clock: Callable[[], float]
) -> Iterator[T]:
    """The steps, and a line a minute, also while one step lasts."""
    started = last = clock()
    ended, finished = 0, threading.Event()

    def wait_for_a_step() -> None:
        while not finished.wait(MINUTE):
            if clock() - last >= MINUTE:
                pace = pace_of(ended, done, unit, total, clock() - started)
                console.print(f"  {label}: {pace.done} of {total}, {duration(pace.seconds)} so far, still at work on the next")

    threading.Thread(target=wait_for_a_step, daemon=True).start()
    try:
        for step in steps[done:]:
            yield step
            ended, now = ended + 1, clock()
            if now - last >= MINUTE:
                console.print(pace_of(ended, done, unit, total, now - started).line(label))
                last = now
    finally:
        finished.set()


def bar(
    console: Any, steps: Sequence[T], label: str, done: int, unit: int, total: int, clock: Callable[[], float]
) -> Iterator[T]:
    """The steps, and a bar that vanishes at their end."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("  {task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("{task.fields[time_left]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=total, completed=done * unit, rate="", time_left="")
        started = clock()
        for number, step in enumerate(steps[done:], start=1):
            yield step
            pace = pace_of(number, done, unit, total, clock() - started)
            progress.update(task, completed=pace.done, rate=pace.rate, time_left=pace.time_left)


def pace_of(number: int, done: int, unit: int, total: int, seconds: float) -> Pace:
    """After ``number`` steps of this process."""
    return Pace(min((done + number) * unit, total), total, min((done + number) * unit, total) - done * unit, seconds)
