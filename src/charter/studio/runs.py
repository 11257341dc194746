"""Run folders as a page shows them while they grow: the stage at work, its pace, curves, samples, gates and alarms.

Only what a file gained since the last look is read, and no more than ``MOST_READ`` bytes of it at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import comb
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.metrics import BY_PRINCIPLE
from charter.pipeline import STAGES
from charter.run.files import read_json
from charter.run.progress import Pace
from charter.studio.curves import Curve
from charter.summary import ROUND, TRAININGS, alarms, stage_kind

MOST_READ = 8 * 2**20
SAMPLES, SAMPLE_BYTES, SAMPLE_CHARACTERS = 6, 2**16, 1200
RECENT_S = 120  # where the system lists no locks, a run whose files changed in this time counts as live
DEPTH = 2  # of the folders that are searched for runs
LOCKS = Path("/proc/locks")

METRICS = {
    "rl": ("reward", "kl", "entropy", "response_tokens", "accuracy", "margin", "loss"),
    "reward_model": ("accuracy", "loss"),
    "sft": ("loss",),
}
TITLES = {"reward": "Reward", "gold": "Gold (held-out reward)", "kl": "KL, nats", "entropy": "Entropy, nats", "loss": "Loss",
          "response_tokens": "Length, tokens", "accuracy": "Accuracy", "margin": "Margin"}  # fmt: skip
OF_REPORT = ("title", "verdict", "stopped", "alarms", "metrics")
SIGNS = ("kl", "missing_eos", "reward", "response_tokens")
ROWS = {"revise": ("revisions.jsonl", "originals.jsonl"), "feedback": ("judgments.jsonl", "responses.jsonl"),
        "evaluate": ("responses.*.jsonl",)}  # fmt: skip
"""The files whose lines count the work of a stage, the last to be written first."""


def find_runs(root: Path) -> dict[str, Path]:
    """The run folders at ``root`` and up to two folders below, by their path from there ("." for itself)."""
    runs: dict[str, Path] = {}

    def search(folder: Path, depth: int) -> None:
        try:
            children = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
        except OSError:
            return
        if (folder / "report.json").is_file() or any(
            child.name in STAGES and (child / "manifest.json").is_file() for child in children
        ):
            runs[str(folder.relative_to(root))] = folder
        elif depth < DEPTH:
            for child in children:
                if not child.name.startswith("."):
                    search(child, depth + 1)

    search(root, 0)
    return runs


def locked_inodes() -> set[int] | None:
    """The inodes on which some process holds a write lock; None where the system does not list them. Nothing is locked to find
    out, so a run that starts at this moment is not disturbed."""
    try:
        lines = LOCKS.read_text().splitlines()
    except OSError:
        return None
    words = [line.split() for line in lines]
    return {int(row[5].rpartition(":")[2]) for row in words if len(row) > 5 and row[1] == "FLOCK" and row[3] == "WRITE"}


def is_live(run: Path, locks: set[int] | None) -> bool:
    """Whether a process works in the run folder."""
    try:
        if locks is not None:
            return (run / ".lock").stat().st_ino in locks
        files = [*run.glob("*/*.jsonl"), *run.glob("*/manifest.json")]
        return time.time() - max((file.stat().st_mtime for file in files), default=0.0) < RECENT_S
    except OSError:
        return False


class Tail:
    """The whole lines that a file gained since the last look. ``anew`` is set where the file was replaced or became shorter: what
    was read before no longer holds."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.inode, self.anew = path, 0, 0, False

    def lines(self) -> list[bytes]:
        self.anew = False
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if self.offset and (status.st_ino != self.inode or status.st_size < self.offset):
                    self.offset, self.anew = 0, True
                self.inode = status.st_ino
                file.seek(self.offset)
                whole, line_end, _ = file.read(MOST_READ).rpartition(b"\n")
        except OSError:
            self.anew = self.offset > 0
            self.offset = 0
            return []
        self.offset += len(whole) + len(line_end)
        return whole.split(b"\n") if line_end else []


def rows_of(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects among the lines."""
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def last_rows(path: Path, n: int) -> list[dict[str, Any]]:
    """The last ``n`` rows among the last 64 KiB of a JSON Lines file, the newest first."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - SAMPLE_BYTES))
            whole = file.read().rpartition(b"\n")[0].split(b"\n")
    except OSError:
        return []
    return list(deque(rows_of(whole if size <= SAMPLE_BYTES else whole[1:]), maxlen=n))[::-1]


def last_line(path: Path) -> str:
    """The last line of a text file that is not empty, at most 500 characters; "" where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "")


@dataclass
class Counter:
    """The lines of a file."""

    tail: Tail
    n: int = 0

    def look(self) -> int:
        lines = self.tail.lines()
        self.n = len(lines) + (0 if self.tail.anew else self.n)
        return self.n


@dataclass
class Log:
    """The step log of a training (metrics.jsonl, or gold.jsonl beside it) as curves: the columns ``names``, and the reward by
    principle where it is logged."""

    tail: Tail
    names: tuple[str, ...]
    curves: dict[str, Curve] = field(default_factory=dict)
    signs: list[dict[str, Any]] = field(default_factory=list)
    """What :func:`charter.summary.alarms` reads of each step."""
    step: int = -1

    def look(self) -> None:
        lines = self.tail.lines()
        if self.tail.anew:
            self.curves, self.signs, self.step = {}, [], -1
        for row in rows_of(lines):
            self.step = int(row.get("step", self.step))
            for name in (*self.names, *(key for key in row if key.startswith(BY_PRINCIPLE))):
                value = row.get(name)
                if isinstance(value, int | float):
                    self.curves.setdefault(name, Curve()).add(self.step, float(value))
            if all(key in row for key in SIGNS):
                self.signs.append({key: row[key] for key in SIGNS})


@dataclass
class StageState:
    """One stage: ``state`` is done, at work or interrupted; ``done`` of ``total`` steps or rows, None where that is unknown."""

    name: str
    state: str
    unit: str
    done: int
    total: int | None
    rate: str = ""
    time_left: str = ""
    seconds: float | None = None


class RunWatch:
    """One run folder. :meth:`look` reads what is new; the other methods tell what is known."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.live, self.close = folder, False, False
        """``close``: read the logs of finished stages too, for a page of the run itself."""
        self.changed = 0.0
        self.stages: list[StageState] = []
        self.gates: list[dict[str, Any]] = []
        self.alarms: list[dict[str, Any]] = []
        self.report, self.has_report = dict[str, Any].fromkeys(OF_REPORT), False
        self.broken: dict[Path, str] = {}
        self._manifests: dict[Path, tuple[int, Any]] = {}
        self._logs: dict[Path, Log] = {}
        self._counters: dict[Path, Counter] = {}
        self._begun: dict[str, tuple[float, int]] = {}  # stage to when it was first seen at work, and how far it was

    def look(self, locks: set[int] | None) -> None:
        """Bring everything up to date; what is broken is named in ``broken``."""
        self.live = is_live(self.folder, locks)
        self.changed = self._stamp()
        manifests = {path.parent.name: self._read(path) for path in self.folder.glob("*/manifest.json")}
        ordered = sorted(
            manifests, key=lambda name: (STAGES.index(stage_kind(name)), name) if stage_kind(name) in STAGES else (9, name)
        )
        counts = ((manifests.get("prompts") or {}).get("result") or {}).get("counts") or {}
        self.stages = [self._stage(name, manifests[name], counts) for name in ordered if isinstance(manifests[name], dict)]
        report = self._read(self.folder / "report.json")
        self.has_report = isinstance(report, dict)
        self.report = report if self.has_report else dict.fromkeys(OF_REPORT)
        results = {name: manifest.get("result") or {} for name, manifest in manifests.items() if isinstance(manifest, dict)}
        self.gates = [gate for name in ordered for gate in results.get(name, {}).get("gates", [])]
        known = {(gate.get("stage"), gate.get("name")) for gate in self.gates}  # the gate of the scorer is in the report alone
        self.gates += [gate for gate in self.report.get("gates") or () if (gate.get("stage"), gate.get("name")) not in known]
        self.alarms = self._alarms(results)

    def is_newer(self, locks: set[int] | None) -> bool:
        """Whether a process began to work in the folder, or wrote its report, since the last look."""
        return self.changed != self._stamp() or is_live(self.folder, locks)

    def _stamp(self) -> float:
        return max(mtime(self.folder / name) for name in (".lock", "report.json", "."))

    def _alarms(self, results: dict[str, Any]) -> list[dict[str, Any]]:
        """Those of the report; of a run that is live, those that can be told so far."""
        if not self.live and self.has_report:
            return list(self.report.get("alarms") or [])
        signs = {path.parent.name: log.signs for path, log in self._logs.items() if log.signs}
        ends = {match[1] for name in (*results, *signs) if (match := ROUND.fullmatch(name))}
        return [row for end in sorted(ends) for row in alarms(results.get(f"feedback{end}", {}), signs.get(f"rl{end}", []))]

    def _read(self, path: Path) -> Any:
        """A JSON file, read again only where it changed; of a report the parts that are shown here."""
        try:
            stamp = path.stat().st_mtime_ns
        except OSError:
            return None
        if self._manifests.get(path, (0, None))[0] != stamp:
            self.broken.pop(path, None)
            try:
                value = read_json(path)
            except InputError as error:
                value, self.broken[path] = None, str(error)
            if path.name == "report.json" and isinstance(value, dict):
                value = {key: value.get(key) for key in OF_REPORT}
            elif isinstance(value, dict):
                value = {key: value.get(key) for key in ("settings", "result", "wall_s") if key in value}
            self._manifests[path] = stamp, value
        return self._manifests[path][1]

    def _stage(self, name: str, manifest: dict[str, Any], counts: dict[str, int]) -> StageState:
        finished, folder = "result" in manifest, self.folder / name
        state = "done" if finished else "at work" if self.live else "interrupted"
        kind, settings = stage_kind(name), manifest.get("settings") or {}
        total: int | None = None
        if finished and not self.close:
            unit, done, total = "", 0, None
        elif kind in TRAININGS:
            unit, done = "steps", self._log(folder / "metrics.jsonl", METRICS[kind]).step + 1
            total = settings.get("steps")
            if (folder / "gold.jsonl").exists():
                self._log(folder / "gold.jsonl", ("gold",))
        else:
            unit, (done, total) = "rows", self._rows(kind, folder, settings, counts)
        seconds = (self._read(folder / ".timing.json") or {}).get("wall_s") if finished else None
        view = StageState(name, state, unit, done, done if finished else total, seconds=seconds)
        if state == "at work":
            pace = self._pace(name, view)
            view.rate, view.time_left = pace.rate, pace.time_left if view.total is not None else ""
        else:
            self._begun.pop(name, None)
        return view

    def _log(self, path: Path, names: tuple[str, ...]) -> Log:
        log = self._logs.setdefault(path, Log(Tail(path), names))
        log.look()
        return log

    def _rows(self, kind: str, folder: Path, settings: dict[str, Any], counts: dict[str, int]) -> tuple[int, int | None]:
        """Rows written and wanted of the file that a stage is writing."""
        for pattern in ROWS.get(kind, ()):
            files = sorted(folder.glob(pattern))
            if files:
                done = sum(self._counters.setdefault(file, Counter(Tail(file))).look() for file in files)
                return done, wanted_rows(kind, pattern, settings, counts)
        return 0, None

    def _pace(self, name: str, view: StageState) -> Pace:
        """How fast a stage works: since its folder was made, where this process made it, else since it was first seen here."""
        made, started = (mtime(self.folder / place) for place in (f"{name}/manifest.json", ".lock"))
        now = time.time()
        begun, before = self._begun.setdefault(name, (made, 0) if made >= started > 0 else (now, view.done))
        return Pace(view.done, view.total or 0, max(view.done - before, 0), max(now - begun, 1e-3))

    def panels(self) -> list[dict[str, Any]]:
        """The curves of the trainings, the last first: {stage, name, title, and the picture}."""
        order = [stage.name for stage in reversed(self.stages)]
        rows = []
        for path, log in sorted(
            self._logs.items(), key=lambda item: order.index(item[0].parent.name) if item[0].parent.name in order else 99
        ):
            for name in (*log.names, *sorted(log.curves.keys() - set(log.names))):
                if name in log.curves:
                    stage, title = path.parent.name, TITLES.get(name) or f"Reward, {name.removeprefix(BY_PRINCIPLE)}"
                    rows.append({"stage": stage, "name": name, "title": title, **log.curves[name].picture()})
        return rows

    def samples(self) -> list[dict[str, Any]]:
        """The newest texts: answers of the policy in training, else responses of the stage that was last at work."""
        for stage in reversed(self.stages):
            folder = self.folder / stage.name
            for file in [folder / "rollouts.jsonl", *sorted(folder.glob("responses*.jsonl")), folder / "originals.jsonl"]:
                if rows := last_rows(file, SAMPLES):
                    return [sample_of(row, stage.name) for row in rows]
        return []

    @property
    def at_work(self) -> StageState | None:
        return next((stage for stage in reversed(self.stages) if stage.state == "at work"), None)

    @property
    def state(self) -> str:
        """In a word or two: live, stopped at a gate, finished, interrupted, or a stage up to which it ran."""
        if self.live:
            return "live"
        if self.report.get("stopped"):
            return "stopped at a gate"
        if any(stage.state == "interrupted" for stage in self.stages):
            return "interrupted"
        return "finished" if self.has_report else f"up to {self.stages[-1].name}" if self.stages else "empty"


def wanted_rows(kind: str, file: str, settings: dict[str, Any], counts: dict[str, int]) -> int | None:
    """How many rows a stage will write into a file; None where its settings do not tell."""
    most, train = settings.get("prompts"), {tag: counts.get(f"train {tag}", 0) for tag in ("red_team", "benign")}
    if not isinstance(most, int) or not counts:
        return None
    if kind == "revise":
        return min(most, train["red_team"]) * (settings.get("rounds") or 1 if file == "revisions.jsonl" else 1)
    if kind == "feedback":
        k, n = settings.get("responses_per_prompt") or 1, min(most, sum(train.values()))
        return n * (comb(k, 2) if file == "judgments.jsonl" else k)
    return None


def sample_of(row: dict[str, Any], stage: str) -> dict[str, Any]:
    """A row of rollouts or responses for the page."""
    text = str(row.get("response", row.get("text", "")))
    return {
        "stage": stage, "prompt": str(row.get("prompt", ""))[:SAMPLE_CHARACTERS], "text": text[:SAMPLE_CHARACTERS],
        "cut": len(text) > SAMPLE_CHARACTERS, "step": row.get("step"), "reward": row.get("reward"), "kl": row.get("kl"),
    }  # fmt: skip


def mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
