"""The studio: one local app on the label page's site, with its roles, its security and its look."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, cast

from fastapi import Request

from charter.studio.jobs import Jobs
from charter.studio.models import Loaded
from charter.studio.runs import RunWatch, find_runs, locked_inodes
from charter.web.site import Site

FOLDER = "studio"  # inside the folder of runs; sessions are kept there
LOOK_S = 1.0  # between two looks into the run folders, however many people watch


class Studio(Site):
    """The site of one folder of runs. What people write is kept in its folder `studio`."""

    packages = ("charter.studio", "charter.web")

    def __init__(self, *arguments: Any, root: Path, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.root, self.loaded, self.jobs = root, Loaded(), Jobs()
        self._watches: dict[str, RunWatch] = {}
        self._looked, self._looking, self.saving = 0.0, threading.Lock(), threading.Lock()

    def close(self) -> None:
        """Let go of the models, and stop what is not to survive the studio."""
        self.loaded.close()
        self.jobs.close()

    def runs(self) -> dict[str, RunWatch]:
        """Every run by name, those at work first and then the newest; read at most once a second."""
        with self._looking:
            if time.monotonic() - self._looked >= LOOK_S:
                locks, places = locked_inodes(), find_runs(self.root)
                places.pop(FOLDER, None)
                watches = {name: self._watches.get(name) or RunWatch(folder) for name, folder in places.items()}
                for name, watch in watches.items():
                    if name not in self._watches or watch.live or watch.close or watch.is_newer(locks):
                        watch.look(locks)
                order = sorted(watches, key=lambda name: (not watches[name].live, -watches[name].changed, name))
                self._watches = {name: watches[name] for name in order}
                self._looked = time.monotonic()
            return self._watches


def studio_of(request: Request) -> Studio:
    return cast("Studio", request.app.state.site)
