"""A progress bar for steps that take long."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(steps: Sequence[T], label: str, *, done: int = 0, unit: int = 1, quiet: bool = False) -> Iterator[T]:
    """The steps that are left, with a progress bar (count, rate, time to go) on the terminal's standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("  {task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    if quiet or not console.is_terminal or not steps[done:]:
        yield from steps[done:]
        return
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=len(steps) * unit, completed=done * unit, rate="")
        started = time.monotonic()
        for number, step in enumerate(steps[done:], start=1):
            yield step
            rate = number * unit / (time.monotonic() - started)
            progress.update(task, advance=unit, rate=f"{rate:.1f}/s")
