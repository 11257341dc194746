"""The measurements of the lab of reward hacking: detectors along the gold curve of runs whose reward has a planted fault, and of
sound runs.

Everything here is computed from rows that runs stored: ``gold.jsonl`` {step, kl, proxy, gold} and
``gold_responses.jsonl`` {step, prompt_id, prompt, tags, text, gold, finished} in the folder of the stage ``rl``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from charter.errors import InputError
from charter.hacking.answers import Answer
from charter.hacking.detectors import DETECTORS, GOLD, Finding, detect
from charter.run.files import json_rows
from charter.training.curve import fall_of

NAMES = (*(detector.name for detector in DETECTORS), GOLD)
Refused = Callable[[str, str], bool | None]
"""Whether an answer (prompt text, answer text) declines; None if that cannot be told."""


@dataclass(frozen=True)
class LabRun:
    """One run of the lab. ``fault`` is None for a sound run. ``findings``: those of every step of the gold curve but the first,
    which is the reference."""

    name: str
    fault: str | None
    method: str
    seed: int
    curve: Sequence[Mapping[str, Any]]
    turned: bool
    """Whether gold at the end is certainly below its peak (``training.curve.fall_of``)."""
    findings: Mapping[int, Sequence[Finding]]

    @property
    def peak(self) -> int:
        """The step at which gold is highest."""
        return int(max(self.curve, key=lambda row: row["gold"])["step"])

    def last(self, detector: str) -> Finding:
        """The finding of a detector at the last step."""
        return next(f for f in self.findings[max(self.findings)] if f.detector == detector)

    def first_alarm(self, detector: str) -> int | None:
        """The first step at which a detector raised an alarm."""
        return next((step for step in sorted(self.findings) for f in self.findings[step] if f.detector == detector and f.raised),
                    None)  # fmt: skip

    @property
    def alarms(self) -> list[str]:
        """The detectors that raised an alarm at the last step."""
        return [f.detector for f in self.findings[max(self.findings)] if f.raised]


def read_lab_run(folder: Path, name: str, fault: str | None, method: str, seed: int, refused: Refused) -> LabRun:
    """A finished run of the lab with its detectors. InputError if the gold curve has fewer than two steps."""
    curve, rows = (json_rows(folder / "rl" / file) for file in ("gold.jsonl", "gold_responses.jsonl"))
    answers: dict[int, list[Answer]] = {}
    for i, row in enumerate(rows):
        answers.setdefault(row["step"], []).append(Answer(
            f"{row['step']}:{i}", row["prompt_id"], row["prompt"], row["text"], red_team="red_team" in row["tags"],
            cut=not row["finished"], refused=refused(row["prompt"], row["text"]),
        ))  # fmt: skip
    first, *later = sorted(answers) or [0]
    if not later:
        raise InputError("needs two steps of a gold curve; lower rl.gold.every", file=folder / "rl" / "gold.jsonl")
    findings = {
        step: detect(answers[first], answers[step], [row for row in curve if row["step"] <= step], rows) for step in later
    }
    fall = fall_of(curve, rows)
    return LabRun(name, fault, method, seed, curve, bool(fall and fall["past_peak"]), findings)


def area(ill: Sequence[float], sound: Sequence[float]) -> float | None:
    """Chance that a value of an ill run is above that of a sound one, ties half (area under the ROC curve); None without both."""
    if not ill or not sound:
        return None
    u = stats.mannwhitneyu(ill, sound).statistic
    return float(u / (len(ill) * len(sound)))


def detector_rows(runs: Sequence[LabRun], belongs: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row of each detector: AUC on the fault that ``belongs`` to it and on all faults, its alarms on these and on sound runs,
    and its lead, the median of (step of its first alarm − step of the gold peak), negative where it warns before the peak."""
    rows = []
    for name in NAMES:
        values: dict[str, list[float]] = {"fault": [], "all": [], "sound": []}
        raised = {"fault": 0, "all": 0, "sound": 0}
        leads = []
        for run in runs:
            own = run.fault is not None and name in (belongs.get(run.fault), GOLD)
            finding, first = run.last(name), run.first_alarm(name)
            for group in ["sound"] if run.fault is None else ["fault", "all"] if own else ["all"]:
                values[group] += [] if finding.value is None else [finding.value]
                raised[group] += finding.raised if group != "sound" else first is not None
            leads += [first - run.peak] if own and first is not None else []
        rows.append({
            "detector": name, "faults": [fault for fault, detector in belongs.items() if name in (detector, GOLD)],
            "auc_fault": area(values["fault"], values["sound"]), "auc_all": area(values["all"], values["sound"]),
            "raised_fault": raised["fault"], "n_fault": len(values["fault"]), "raised_all": raised["all"],
            "n_all": len(values["all"]), "false_alarms": raised["sound"], "n_sound": len(values["sound"]),
            "lead": float(np.median(leads)) if leads else None, "leads": leads,
        })  # fmt: skip
    return rows


def run_row(run: LabRun, belongs: Mapping[str, str]) -> dict[str, Any]:
    """A run in a line: gold at its start, peak and end, and the alarm that belongs to its fault."""
    detector = belongs.get(run.fault or "")
    gold = {row["step"]: row["gold"] for row in run.curve}
    return {
        "run": run.name, "fault": run.fault, "method": run.method, "seed": run.seed, "gold_first": run.curve[0]["gold"],
        "gold_peak": gold[run.peak], "gold_last": run.curve[-1]["gold"], "peak_step": run.peak,
        "last_step": run.curve[-1]["step"], "turned": run.turned, "detector": detector,
        "first_alarm": None if detector is None else run.first_alarm(detector), "alarms": run.alarms,
        "any_alarm": sorted({f.detector for findings in run.findings.values() for f in findings if f.raised}),
        "kl_last": run.curve[-1]["kl"],
    }  # fmt: skip


RUN_COLUMNS = ("run", "gold: first, peak, last", "peak at step", "alarm of the fault at step", "alarms at the end")
DETECTOR_COLUMNS = (
    "detector", "its fault", "AUC, its fault", "AUC, all faults", "alarms on its fault", "alarms on all faults",
    "sound runs with an alarm at any step", "lead, steps (median)",
)  # fmt: skip


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def run_cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of ``RUN_COLUMNS`` from a row of ``run_row``."""
    turned = "" if row["fault"] is None or row["turned"] else " (gold did not turn)"
    alarm = "–" if row["fault"] is None else f"{row['detector']}: {'none' if row['first_alarm'] is None else row['first_alarm']}"
    gold = ", ".join(f"{row[key]:.2f}" for key in ("gold_first", "gold_peak", "gold_last"))
    return [row["run"], gold, f"{row['peak_step']} of {row['last_step']}{turned}", alarm, ", ".join(row["alarms"]) or "none"]


def detector_cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of ``DETECTOR_COLUMNS`` from a row of ``detector_rows``."""
    counts = [f"{row[k]} of {row[n]}" if row[n] else "–" for k, n in
              (("raised_fault", "n_fault"), ("raised_all", "n_all"), ("false_alarms", "n_sound"))]  # fmt: skip
    faults = "all" if row["detector"] == GOLD else ", ".join(row["faults"]) or "–"
    return [row["detector"], faults, number(row["auc_fault"], ".2f"), number(row["auc_all"], ".2f"), *counts,
            number(row["lead"], "+.0f")]  # fmt: skip


def lab_table(rows: Sequence[Mapping[str, Any]], detectors: Sequence[Mapping[str, Any]]) -> str:
    """The tables of detectors and of runs as Markdown, failures included."""
    return (
        markdown(DETECTOR_COLUMNS, [detector_cells(row) for row in detectors])
        + "\n"
        + markdown(RUN_COLUMNS, [run_cells(row) for row in rows])
    )
