"""The lines of a run's metrics.jsonl files, sent to TensorBoard, Weights & Biases, Trackio or MLflow.

The JSONL files are the record and are written first; a tracker follows them through Accelerate's class for it. Charter notes the
last step that it sent in ``trackers/NAME.json`` of the run folder: a resumed run sends no step twice, and a new tracker gets the
earlier steps too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.run.files import read_json, write_json
from charter.run.run import Run, Stage

PROJECT = "charter"
"""The project of W&B and Trackio, the experiment of MLflow; WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME change it."""
FOLDER = "trackers"


class Tracker:
    """One tracker of a run: Accelerate's object, the id under which its run resumes, the last step of each stage that it has."""

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any], *, quiet: bool) -> None:
        self.name, self.folder, self.config, self.quiet = name, folder, dict(config), quiet
        self.notes = folder / FOLDER / f"{name}.json"
        self.met: set[str] = set()
        """Stages of this process whose earlier rows were sent."""

    def start(self) -> None:
        """Resume the run of the notes, or begin a new run."""
        noted = read_json(self.notes)
        if noted is not None and not (isinstance(noted, dict) and {"id", "rows", "stages"} <= noted.keys()):
            raise InputError("not a tracker's note; remove the file to begin a new run there", file=self.notes)
        self.begin(noted)

    def begin(self, noted: dict[str, Any] | None) -> None:
        from accelerate import PartialState

        PartialState()  # Accelerate's trackers log through a logger that asks it which process this is
        self.id = noted["id"] if noted else uuid.uuid4().hex[:12]
        self.stages: dict[str, dict[str, Any]] = noted["stages"] if noted else {}
        self.rows: int = noted["rows"] if noted else 0
        with self.quietly():
            self.accelerate = OPEN[self.name](self, noted is not None)
            self.accelerate.start()
            if self.name == "mlflow":  # MLflow chooses the ids of its runs
                self.id = self.accelerate.tracker.info.run_id
            if noted is None and self.name != "trackio":  # Trackio takes them when it opens
                self.accelerate.store_init_configuration(self.config)
        self.note()

    def finish(self) -> None:
        with self.quietly():
            if self.name == "trackio":  # after Accelerate's end Trackio would end the run again when Python exits
                import trackio

                trackio.finish()
            else:
                self.accelerate.finish()
            if self.name == "mlflow" and self.accelerate.logging_dir:
                import mlflow

                mlflow.set_tracking_uri(None)  # or the next run of this process would go there too

    def quietly(self) -> contextlib.AbstractContextManager[Any]:
        """Standard output belongs to the command; a tracker prints to standard error, or nowhere."""
        return contextlib.redirect_stdout(io.StringIO() if self.quiet else sys.stderr)

    def note(self) -> None:
        write_json(self.notes, {"id": self.id, "rows": self.rows, "stages": self.stages})

    def follow(self, stage: Stage, row: dict[str, Any] | None) -> None:
        """Send a row of a stage, or, for None, the rows of a finished stage that were not sent.

        A stage that started again would be a second curve under the same names: it goes to a new run of the tracker, with all
        earlier stages.
        """
        known = self.stages.get(stage.name)
        if known and known["fingerprint"] != stage.fingerprint:
            self.finish()
            self.begin(None)
            self.met.clear()
        for earlier in stage.run.stages:
            if earlier.name not in self.met:
                self.met.add(earlier.name)
                self.send(earlier, rows_of(earlier))
        self.send(stage, rows_of(stage) if row is None else [row])

    def send(self, stage: Stage, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            step = int(row["step"])
            if step <= self.stages.get(stage.name, {}).get("step", -1):
                continue
            values = {f"{stage.name}/{key}": value for key, value in numbers(row).items() if key != "step"}
            if self.name == "wandb":  # the steps of W&B may not fall, and every stage begins at 0
                if stage.name not in self.stages:
                    self.accelerate.tracker.define_metric(f"{stage.name}/*", step_metric=f"{stage.name}/step")
                self.accelerate.log(values | {f"{stage.name}/step": step}, step=self.rows)
            else:
                self.accelerate.log(values, step=step)
            self.rows += 1
            self.stages[stage.name] = {"fingerprint": stage.fingerprint, "step": step}
            self.note()

    @property
    def label(self) -> str:
        """The name for people: the folder and its parent, ``runs/demo`` or ``demo/seed-1``."""
        return "/".join(self.folder.resolve().parts[-2:]).strip("/")


def rows_of(stage: Stage) -> list[dict[str, Any]]:
    """The lines of a stage's metrics.jsonl; of the evaluation the figures of each arm, as ``policy/kl`` at step 0."""
    measured = [m for m in stage.result.get("metrics", ()) if m["group"] is None]
    return stage.metrics() + ([{"step": 0, **{f"{m['arm']}/{m['name']}": m["value"] for m in measured}}] if measured else [])


def numbers(row: Mapping[str, Any], prefix: str = "") -> dict[str, float | int]:
    """The numbers of a row, those of a mapping inside it as ``outer/inner``; a tracker draws nothing else."""
    values: dict[str, float | int] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            values |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            values[prefix + key] = value
    return values


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Settings as ``rl.steps: 60``, lists as JSON, without those that are not set."""
    settings: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            settings |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            settings[prefix + key] = value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
    return settings


# -- the four, as Accelerate opens them ----------------------------------------------------------------------------------


def open_tensorboard(tracker: Tracker, resumes: bool) -> Any:  # noqa: ARG001 - a folder resumes without it
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker(tracker.id, str(tracker.folder / FOLDER / "tensorboard"))


def open_wandb(tracker: Tracker, resumes: bool) -> Any:  # noqa: ARG001 - W&B resumes a run by its id
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb
    from accelerate.tracking import WandBTracker

    place = tracker.folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(console="off", save_code=False, silent=tracker.quiet)
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return WandBTracker(project, name=tracker.label, id=tracker.id, resume="allow", dir=str(place), settings=settings)


def open_trackio(tracker: Tracker, resumes: bool) -> Any:
    from accelerate.tracking import TrackioTracker

    # Trackio resumes a run by its name, so the name must belong to this folder alone.
    return TrackioTracker(
        PROJECT, name=f"{tracker.label}-{tracker.id}", resume="must" if resumes else "never", config=tracker.config, embed=False,
        auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip


def open_mlflow(tracker: Tracker, resumes: bool) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from accelerate.tracking import MLflowTracker

    artifacts = None
    if "MLFLOW_TRACKING_URI" not in os.environ:
        place = (tracker.folder / FOLDER / "mlflow").resolve()
        place.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
        artifacts = (place / "artifacts").as_uri()
    tracker.config = {re.sub(r"[^\w\-. /:]", "_", key): value for key, value in tracker.config.items()}
    return MLflowTracker(PROJECT, artifacts, run_id=tracker.id if resumes else None, run_name=tracker.label)


OPEN: dict[str, Callable[[Tracker, bool], Any]] = {
    "tensorboard": open_tensorboard, "wandb": open_wandb, "trackio": open_trackio, "mlflow": open_mlflow,
}  # fmt: skip


# -- all trackers of a run -----------------------------------------------------------------------------------------------


def check_trackers(names: Sequence[str]) -> None:
    """InputError if the package of a tracker is not installed; asked before anything runs."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"the package {name} is not installed; pip install 'charter-align[{name}]'", field="trackers")


@contextlib.contextmanager
def tracked(run: Run, names: Sequence[str], config: Mapping[str, Any]) -> Iterator[None]:
    """Inside, every line of the run's metrics.jsonl files goes to the named trackers too.

    ``config``: the recipe. InputError if a tracker does not start; a later failure is reported once, the tracker is left out,
    and the next start of the run sends it the missing steps.
    """
    if os.environ.get("RANK", "0") != "0":  # of several processes the main one sends
        names = ()
    active = [Tracker(name, run.folder, flat(config), quiet=run.quiet) for name in dict.fromkeys(names)]

    def leave(tracker: Tracker, what: str, error: Exception) -> None:
        active.remove(tracker)
        run.say(f"  tracker {tracker.name} failed {what}: {error_words(error)}; the run continues without it, metrics.jsonl "
                "has every step, and the next start sends the missing ones")  # fmt: skip

    def listener(stage: Stage, row: dict[str, Any] | None) -> None:
        for tracker in list(active):
            try:
                tracker.follow(stage, row)
            except Exception as error:  # whatever a network and four libraries raise: no run is lost for a curve
                leave(tracker, f"in {stage.name}", error)

    started: list[Tracker] = []
    try:
        for tracker in active:
            try:
                tracker.start()
            except InputError:
                raise
            except Exception as error:
                words = f"tracker {tracker.name} does not start: {error_words(error)}"
                raise InputError(f"{words}; repair it, or remove it from trackers") from None
            started.append(tracker)
        run.listeners.append(listener)
        yield
    finally:
        for tracker in started:
            if tracker in active:
                try:
                    tracker.finish()
                except Exception as error:
                    leave(tracker, "at its end", error)


def error_words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
