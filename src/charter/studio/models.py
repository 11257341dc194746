"""The models of a folder's runs by name, loaded when somebody talks to them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from charter.errors import InputError
from charter.measuring.models import load_writer
from charter.models.load import OF_PERSON, STAGE_OF, model_of_run, people_of, run_and_model
from charter.models.marks import refuse_flipped
from charter.serving.app import Serving
from charter.serving.engine import Engine
from charter.studio.runs import RunWatch, mtime

MOST_LOADED = 4


def names_of(runs: Mapping[str, RunWatch], *, people: bool = False) -> list[str]:
    """RUN:base, RUN:sft and RUN:policy of the runs that have them; with ``people`` also RUN:person NAME, for pages that write no
    name of a model into a file: what is private of a person stays in the folder of that person."""
    names = []
    for run, watch in runs.items():
        names += [f"{run}:{model}" for model, stage in STAGE_OF.items() if (watch.folder / stage / "model").is_dir()]
        names += [f"{run}:base"] if watch.has_report else []
        names += [f"{run}:{OF_PERSON}{name}" for name in (people_of(watch.folder) if people else ())]
    return names


class Loaded:
    """At most ``MOST_LOADED`` models in memory; the one that nobody used for longest makes room."""

    def __init__(self) -> None:
        self.models: OrderedDict[str, Serving] = OrderedDict()
        self.lock = threading.Lock()

    def open(self, name: str, folder: Path) -> Serving:
        """The model RUN:MODEL of the run in ``folder``, an engine of its own around it. InputError where it is missing, or is a
        control arm that prefers what the constitution forbids, or where all models in memory are at work."""
        with self.lock:
            place = model_of_run(folder, run_and_model(name)[1])
            stamp = str(mtime(Path(place)))  # a training that ran again made the folder anew
            if name in self.models and self.models[name].fingerprint != stamp:
                self.models.pop(name).engine.close()
            if name not in self.models:
                refuse_flipped(place, understood=False)
                self._make_room()
                self.models[name] = Serving(Engine(load_writer(place, "float32")), name, stamp)
            self.models.move_to_end(name)
            return self.models[name]

    def _make_room(self) -> None:
        if len(self.models) < MOST_LOADED:
            return
        engines = {name: serving.engine for name, serving in self.models.items()}
        idle = [name for name, engine in engines.items() if not engine.groups and not engine.waiting]
        if not idle:
            raise InputError(f"{MOST_LOADED} other models are writing; wait until one of them is done")
        self.models.pop(idle[0]).engine.close()

    def close(self) -> None:
        with self.lock:
            for serving in self.models.values():
                serving.engine.close()


def folder_of(name: str, runs: Mapping[str, RunWatch]) -> Path:
    """The run of a model's name. InputError where it is not among :func:`names_of`."""
    if name not in names_of(runs, people=True):
        raise InputError(f"unknown model {name[:100]!r}; load the page again")
    return runs[run_and_model(name)[0]].folder
