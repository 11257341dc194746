"""Runs on disk: stages, files, hashes and progress.

Python puts an imported room in the place of the function of its name in :mod:`charter`, so the room can be called as the function
can: ``charter.run(recipe)``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import charter

if TYPE_CHECKING:
    from charter.measuring.run_report import RunReport

run_and_report = charter.run


class Room(ModuleType):
    """This room as a function."""

    def __call__(self, recipe: Any, **options: Any) -> RunReport:
        return run_and_report(recipe, **options)


Room.__call__.__doc__ = run_and_report.__doc__
sys.modules[__name__].__class__ = Room
