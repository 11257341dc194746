"""A reward model on what is labelled so far, trained beside the page by `charter reward train`.

The prompts are split once; a quarter, a half and all of the training prompts are learned from and measured on the same
held-out ones. That is the learning curve, and its last point comes with the accuracy for each strength of preference.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.reading.pairs import split_pairs
from charter.records import Pair
from charter.run.files import read_json, write_json, write_jsonl
from charter.votes.evidence import Evidence
from charter.votes.training_rows import Selection, Tally, pair_rows
from charter.web.project import RetrainSettings

SHARES = (0.25, 0.5, 1.0)
LEAST_PROMPTS = 8


def pairs_of_votes(judgments: Path) -> list[Pair]:
    """What people's answers to the work train on: the rows of `charter export`, those of one prompt in one group, so that no
    prompt is on both sides of the split."""
    if not judgments.is_file():
        return []
    with Evidence(judgments) as evidence:
        rows = pair_rows(evidence, Selection(rater_kinds=("human",), more_harmful="flip"), Tally())
        return [
            Pair(prompt=row.prompt, chosen=row.chosen, rejected=row.rejected, margin=row.margin, group_id=row.prompt.id)
            for row in rows
        ]  # fmt: skip


class Retrain:
    """The trainings of one project, each in a folder of its own; one runs at a time."""

    def __init__(self, folder: Path, settings: RetrainSettings) -> None:
        self.folder, self.settings = folder / "retrain", settings
        self.thread: threading.Thread | None = None
        self.process: subprocess.Popen[str] | None = None
        self.stopped = False
        self.lock = threading.Lock()

    @property
    def running(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def runs(self) -> list[dict[str, Any]]:
        """Results so far, the newest first; a training that was interrupted has the state "cut off"."""
        runs = []
        for place in sorted(self.folder.glob("[0-9]*"), reverse=True):
            result = read_json(place / "result.json")
            if isinstance(result, dict):
                cut = result["state"] == "running" and not (self.running and place == self.place)
                runs.append(result | {"name": place.name, "state": "cut off" if cut else result["state"]})
        return runs

    def start(self, pairs: Sequence[Pair], ceiling: Mapping[str, Any]) -> None:
        """Begin a training in the background. InputError where there is too little to learn from, or one runs already."""
        with self.lock:  # two people may press the button at once
            self._start(pairs, ceiling)

    def _start(self, pairs: Sequence[Pair], ceiling: Mapping[str, Any]) -> None:
        if self.running:
            raise InputError("a training is running; wait until it ends")
        prompts = {pair.group_id for pair in pairs}
        if len(prompts) < LEAST_PROMPTS:
            raise InputError(f"preferences on {len(prompts)} prompts so far; a training needs at least {LEAST_PROMPTS}")
        numbers = [int(place.name) for place in self.folder.glob("[0-9]*") if place.name.isdigit()]
        self.place = self.folder / f"{max(numbers, default=0) + 1:03}"
        train, test = split_pairs(pairs, test_fraction=self.settings.test_fraction, seed=0)
        order = list(dict.fromkeys(pair.group_id for pair in train))
        if not test or len(order) < 4:
            raise InputError("too few prompts are left to train on or to measure on; label more, or change "
                             "retrain.test_fraction")  # fmt: skip
        n_test = len({pair.group_id for pair in test})
        steps = []
        for share in SHARES:
            groups = set(order[: max(2, round(share * len(order)))])
            chosen = [pair for pair in train if pair.group_id in groups]
            file = self.place / f"pairs-{round(100 * share)}.jsonl"
            write_jsonl(file, [*chosen, *test])
            steps.append({"file": str(file), "n": len(chosen), "fraction": n_test / (n_test + len(groups))})
        result: dict[str, Any] = {"state": "running", "pairs": len(pairs), "test_pairs": len(test), "points": [], "words": "",
                                  "ceiling": dict(ceiling)}  # fmt: skip
        write_json(self.place / "result.json", result)
        self.thread = threading.Thread(target=self._train, args=(self.place, steps, result), daemon=True)
        self.thread.start()

    def _train(self, place: Path, steps: list[dict[str, Any]], result: dict[str, Any]) -> None:
        for number, step in enumerate(steps):
            command = [
                sys.executable, "-m", "charter", "reward", "train", step["file"], "--out", str(place / f"model-{number}"),
                "--model", self.settings.model, "--epochs", str(self.settings.epochs), "--test-fraction",
                str(step["fraction"]), "--json",
            ]  # fmt: skip
            with self.lock:
                if self.stopped:
                    return
                # A session of its own: Ctrl-C in the terminal is for the page, which then ends the training.
                self.process = process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
                )
            output, errors = process.communicate()
            if process.returncode and self.stopped:
                return
            if process.returncode:
                words = errors.strip().splitlines()[-1:] or ["the training was stopped"]
                write_json(place / "result.json", result | {"state": "failed", "words": words[0][:500]})
                return
            metrics = json.loads(output)
            result["points"].append(
                {"n": step["n"], "accuracy": metrics["accuracy"], "ci": metrics["ci"], "n_test": metrics["n"],
                 "shorter_wins": metrics["baseline_shorter_wins"], "by_margin": metrics.get("by_margin", {}),
                 "model": str(Path(metrics["model"]).relative_to(self.folder.parent))}
            )  # fmt: skip
            done = number + 1 == len(steps)
            write_json(place / "result.json", result | {"state": "done" if done else "running"})

    def close(self) -> None:
        """End a training that is running; its page says that it was cut off."""
        with self.lock:
            self.stopped = True
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if self.thread is not None:
            self.thread.join()
