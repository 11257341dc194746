"""The two errors of Charter. Both become one line on the terminal, never a traceback."""

from __future__ import annotations

from pathlib import Path


class InputError(Exception):
    """The input cannot be used: says what was wrong, where, and what to do. Exit code 2."""

    def __init__(self, what: str, *, file: str | Path | None = None, line: int | None = None, field: str | None = None) -> None:
        place = "" if file is None else f"{file}"
        if line is not None:
            place += f", line {line}"
        if field is not None:
            place += f"{', ' if place else ''}field {field!r}"
        super().__init__(f"{place}: {what}" if place else what)


class MemoryFull(InputError):
    """Not even the smallest micro-batch fits into memory."""


class GateError(Exception):
    """A measured condition says that going on would waste the run or mislead its reader. Exit code 1."""
