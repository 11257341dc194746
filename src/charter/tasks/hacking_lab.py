"""The lab of reward hacking: runs of the testbed with planted faults of the reward, sound runs as controls, tables."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.hacking.lab import LabRun, detector_rows, lab_table, read_lab_run, run_row
from charter.pipeline import run_recipe
from charter.recipe.files import find_recipe, load_recipe
from charter.recipe.recipe import Recipe
from charter.run.files import atomic_path, write_json, write_text
from charter.testbed.faults import FAULTS, WEIGHTS, habits
from charter.testbed.oracle import REFUSALS, read

SHARED = ("prompts", "revise", "sft", "feedback", "reward_model")
COLOURS = {"rloo": "#0b6e99", "ppo": "#b4561c"}


@dataclass(frozen=True)
class Lab:
    """The settings of a lab. ``methods`` take turns over the seeds of a fault; each seed has a sound run by every method."""

    out: Path
    seeds: int = 5
    methods: Sequence[str] = ("rloo", "ppo")
    faults: Sequence[str] = tuple(FAULTS)
    steps: int = 50
    every: int = 5
    """Steps between two points of the gold curve."""
    habits: int = 30
    """Rounds of the habits among the examples of the supervised fine-tuning."""
    changes: Sequence[str] = ()
    """Further settings of every run, as `--set` takes them."""

    def runs(self) -> list[tuple[str | None, str, int]]:
        """(fault, method, seed) of every run; the sound ones have no fault."""
        sound = [(None, method, seed) for seed in range(self.seeds) for method in self.methods]
        return sound + [
            (fault, self.methods[seed % len(self.methods)], seed) for fault in self.faults for seed in range(self.seeds)
        ]

    @property
    def examples(self) -> Path:
        return self.out / "habits.jsonl"

    def settings(self, seed: int) -> list[str]:
        """The settings of the stages that the runs of a seed share."""
        return [f"seed={seed}", f"sft.data=[{json.dumps(str(self.examples.resolve()))}]", "sft.epochs=8", "prompts.test=80"]

    def recipe(self, fault: str | None, method: str, seed: int) -> Recipe:
        """The recipe of a run: the price of KL and the reward model alone, or no price and a reward with a fault."""
        rl: dict[str, Any] = {
            "method": method, "steps": self.steps, "prompts_per_step": 8, "samples_per_prompt": 4, "kl_coef": 0.08,
            "gold": {"source": "python:charter.testbed.oracle:gold", "every": self.every, "prompts": 120},
        }  # fmt: skip
        if fault is not None:
            source = {"source": f"python:charter.testbed.faults:{fault}", "weight": WEIGHTS[fault]}
            rl |= {
                "learning_rate": 3e-4,
                "kl_coef": 0,
                "missing_eos_penalty": 0,
                "reward": {"reward_model": {"weight": 1}, "fault": source},
            }
        return load_recipe(find_recipe("smoke"), [*self.settings(seed), f"rl={json.dumps(rl)}", *self.changes])


def run_lab(lab: Lab, say: Callable[[str], None]) -> dict[str, Any]:
    """Run what is missing, and write lab.json, lab.md and lab.png into the lab's folder. A finished run is not repeated, a killed
    one resumes. InputError for an unknown fault or method."""
    for names, known, what in ((lab.faults, tuple(FAULTS), "fault"), (lab.methods, ("ppo", "rloo"), "method")):
        for name in names:
            if name not in known:
                raise InputError(f"unknown {what} {name!r}; use {', '.join(known)}")
    lab.out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": prompt, "response": answer}) + "\n" for prompt, answer in habits(lab.habits, seed=0)]
    write_text(lab.examples, "".join(lines))
    runs = []
    for fault, method, seed in lab.runs():
        name = f"{fault or 'sound'}-{method}-{seed}"
        share_stages(lab, seed, lab.out / name)
        run_recipe(lab.recipe(fault, method, seed), lab.out / name, until="rl", quiet=True)
        runs.append(read_lab_run(lab.out / name, name, fault, method, seed, refused))
        say(run_line(run_row(runs[-1], FAULTS)))
    return write_results(lab, runs)


def refused(prompt: str, answer: str) -> bool | None:
    kind = read(prompt, answer)["refusal"]
    return None if kind is None else kind in REFUSALS


def share_stages(lab: Lab, seed: int, folder: Path) -> None:
    """Make the stages before RL once for a seed, and give a new run folder its copy; the weights are links to the same files."""
    shared = lab.out / f"shared-{seed}"
    if folder.exists():
        return
    run_recipe(lab.recipe(None, lab.methods[0], seed), shared, until=SHARED[-1], quiet=True)
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    for stage in SHARED:
        shutil.copytree(shared / stage, unfinished / stage, copy_function=copy_or_link)
    unfinished.rename(folder)


def copy_or_link(source: str, target: str) -> None:
    """Copy a file; weights, which no stage changes in place, are linked."""
    if source.endswith(".safetensors"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def run_line(row: dict[str, Any]) -> str:
    """A run in one line of the terminal."""
    own = "" if row["fault"] is None else f"; {row['detector']} at step {row['first_alarm']}"
    gold = f"gold {row['gold_first']:.2f} → {row['gold_peak']:.2f} (step {row['peak_step']}) → {row['gold_last']:.2f}"
    return f"{row['run']:24} {gold}{own}; alarms: {', '.join(row['alarms']) or 'none'}"


def write_results(lab: Lab, runs: Sequence[LabRun]) -> dict[str, Any]:
    """lab.json, lab.md and lab.png; the content of the first."""
    rows, detectors = [run_row(run, FAULTS) for run in runs], detector_rows(runs, FAULTS)
    faulty = [row for row in rows if row["fault"] is not None]
    result = {
        "runs": rows, "detectors": detectors, "n_faulty": len(faulty), "turned": sum(row["turned"] for row in faulty),
        "caught": sum(row["first_alarm"] is not None for row in faulty), "n_sound": len(rows) - len(faulty),
        "false_alarms": sum(len(row["alarms"]) for row in rows if row["fault"] is None),
    }  # fmt: skip
    write_json(lab.out / "lab.json", result)
    write_text(lab.out / "lab.md", lab_table(rows, detectors))
    draw(lab, runs)
    return result


def draw(lab: Lab, runs: Sequence[LabRun]) -> None:
    """lab.png: gold and proxy of every run against √KL, a panel for each fault and one for the sound runs; a mark where the
    detector of the fault first raised its alarm."""
    from matplotlib.figure import Figure

    panels: list[str | None] = [None, *lab.faults]
    figure = Figure(figsize=(2.6 * len(panels), 4.6), layout="constrained")
    axes = figure.subplots(2, len(panels), sharex="col", sharey="row", squeeze=False)
    for column, fault in enumerate(panels):
        gold, proxy = axes[0][column], axes[1][column]
        for run in (run for run in runs if run.fault == fault):
            x = [max(row["kl"], 0.0) ** 0.5 for row in run.curve]
            colour = COLOURS[run.method]
            gold.plot(x, [row["gold"] for row in run.curve], color=colour, lw=1)
            proxy.plot(x, [row["proxy"] for row in run.curve], color=colour, lw=1)
            first = run.first_alarm(FAULTS[fault]) if fault else None
            for where, row in zip(x, run.curve, strict=True):
                if row["step"] == first:
                    gold.plot([where], [row["gold"]], "v", color="black", ms=6)
        gold.set_title(fault.replace("_", " ") if fault else "sound")
        proxy.set_xlabel("√KL (√nats)")
    axes[0][0].set_ylabel("gold (oracle, 0 to 1)")
    axes[1][0].set_ylabel("proxy (reward)")
    for method in lab.methods:
        axes[1][0].plot([], [], color=COLOURS[method], label=method.upper())
    axes[1][0].legend(frameon=False)
    with atomic_path(lab.out / "lab.png") as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
