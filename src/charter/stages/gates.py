"""Gates: measured conditions under which a run stops rather than waste time or mislead its reader."""

from __future__ import annotations

from typing import Any

from charter.errors import GateError
from charter.run.run import Run, Stage

INDEPENDENT = "independent scorer"


class Gates:
    """The gates that a run met, in order. With ``override`` a run continues where a gate fails, and the report records it."""

    def __init__(self, run: Run, *, override: bool) -> None:
        self.say, self.override = run.say, override
        self.met: list[dict[str, Any]] = []

    def check(self, stage: Stage, name: str, passed: bool, message: str) -> None:
        """Record a gate. GateError if it fails and the recipe does not override it."""
        overridden = not passed and self.override
        self.met.append({"name": name, "stage": stage.name, "passed": passed, "overridden": overridden, "message": message})
        if overridden:
            self.say(f"  gate {name!r} fails and is overridden: {message}")
        if not passed and not overridden:
            raise GateError(f"gate {name!r}: {message} (gates.override: true continues anyway)")

    def check_scorer(self, stage: Stage, teaches: bool, message: str) -> None:
        """The gate of a stage whose teacher may also score the report. The stage does not depend on the scorer. So this gate is
        checked where the stage is skipped too, and the result of the stage leaves it out."""
        if teaches:
            self.check(stage, INDEPENDENT, False, message)

    def of(self, stage: Stage) -> list[dict[str, Any]]:
        """Those of one stage, for its result."""
        return [gate for gate in self.met if gate["stage"] == stage.name and gate["name"] != INDEPENDENT]

    def recall(self, stage: Stage) -> None:
        """Take over the gates that a skipped stage met when it ran. GateError if one failed and is no longer overridden."""
        for gate in stage.result.get("gates", []):
            if gate["name"] == INDEPENDENT:  # of an earlier version, by the scorer of then
                continue
            self.check(stage, gate["name"], gate["passed"], gate["message"])


def percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.0f}%"


def signed(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:+.0f} points"
