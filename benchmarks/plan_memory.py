"""The memory that `charter plan` gives a stage at most, against the memory of its process, stage by stage.

python benchmarks/plan_memory.py [--model FOLDER] [CASE …]

A case is a shipped recipe that needs no download, or training of one of the two random models of the speed comparison on the
testbed's texts; with ``--model`` it is every stage of a recipe on that model, and each method of RL. Each stage runs in a process
of its own, which continues the run. The table shows the planned and the measured peak (resident memory), how much of it was
pages of mapped files (the program's libraries and the model's weights), and the ratio of the two peaks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import workload
import yaml

ROOT = Path(__file__).parents[1]
TESTBED = "package:charter.testbed/data"
RL = {"reward_model": {"weight": 1.0}}
LORA = {"lora": {"rank": 16}}
STAGES = ("prompts", "revise", "sft", "feedback", "reward_model", "rl", "evaluate")
CASES: dict[str, Any] = {
    "smoke": "smoke",
    "smoke float32": ("smoke", "precision=float32"),
    "smoke LoRA": ("smoke", "sft.lora.rank=16", "reward_model.lora.rank=16", "rl.lora.rank=16"),
    "S PPO": ("S", {"method": "ppo"}),
    "M PPO": ("M", {"method": "ppo"}),
    "M GRPO": ("M", {"method": "grpo"}),
    "M PPO LoRA": ("M", {"method": "ppo", **LORA}),
    "M DPO": ("M", {"method": "dpo"}),
}
MODEL_CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # (settings, stages): a case continues the run of the last
    "RLOO": ((), STAGES),
    "PPO": (("rl.method=ppo",), ("rl",)),
    "GRPO": (("rl.method=grpo",), ("rl",)),
    "DPO": (("rl={method: dpo}",), ("rl",)),
    "RLOO LoRA": (("training.lora.rank=16",), ("sft", "reward_model", "rl")),
    "PPO LoRA": (("training.lora.rank=16", "rl.method=ppo"), ("rl",)),
    "DPO LoRA": (("training.lora.rank=16", "rl={method: dpo}"), ("rl",)),
    "float32": (("precision=float32",), ("prompts", "revise", "sft", "feedback", "reward_model", "rl", "evaluate")),
}
EACH_KIND = 40  # prompts


@dataclass(frozen=True)
class Peak:
    """Most resident memory of a process in bytes, and how much of it was pages of mapped files."""

    resident: int
    files: int


def recipe_of(place: Path, shape: str, rl: dict[str, Any]) -> str:
    """Fine-tuning, a reward model and reinforcement learning of a random model, on few texts."""
    lora = {key: value for key, value in rl.items() if key == "lora"}
    sampled = {} if rl["method"] == "dpo" else {"steps": 2, "prompts_per_step": 16, "max_new_tokens": 64, "reward": RL}
    recipe: dict[str, Any] = {
        "title": "memory", "model": str(workload.save_model(place / "model", shape)),
        "prompts": {"files": [f"{TESTBED}/prompts.jsonl"], "train": 60, "test": 8},
        "revise": None, "sft": {"data": [f"{TESTBED}/judge_pairs.jsonl"], "max_examples": 128, "epochs": 1, **lora},
        "feedback": {"pairs": [f"{TESTBED}/judge_pairs.jsonl"], "max_pairs": 128}, "reward_model": {"epochs": 1, **lora},
        "rl": {**rl, **sampled}, "evaluation": None, "gates": {"override": True},
    }  # fmt: skip
    if rl["method"] == "dpo":
        del recipe["prompts"], recipe["reward_model"]
    return write(place, recipe)


def recipe_on(place: Path, model: str) -> str:
    """Every stage on a model that was trained, with few texts, which reach their limits: fine-tuning hardly moves the model, or
    its answers would become as short as those of the testbed."""
    import charter

    kinds: dict[tuple[str, str], list[str]] = {}
    with open(Path(charter.__file__).parent / "testbed/data/prompts.jsonl", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            kinds.setdefault((row["tags"][0], row["split"]), []).append(line)
    (place / "prompts.jsonl").write_text("".join(line for rows in kinds.values() for line in rows[:EACH_KIND]))
    recipe = {
        "title": "memory", "model": str(Path(model).absolute()), "batch_size": 64,
        "constitution": str(ROOT / "constitutions/demo.yaml"), "prompts": {"files": ["prompts.jsonl"]},
        "revise": {"prompts": 24, "rounds": 1, "max_new_tokens": 32},
        "sft": {"data": [f"{TESTBED}/judge_pairs.jsonl"], "max_examples": 128, "epochs": 1, "learning_rate": 1e-6},
        "feedback": {"prompts": 64, "max_new_tokens": 32, "judge": "base", "abstain_below": 0.0}, "reward_model": {"epochs": 1},
        "rl": {"method": "rloo", "steps": 2, "prompts_per_step": 16, "samples_per_prompt": 4, "max_new_tokens": 32},
        "evaluation": {"scorer": "refusal-words", "max_new_tokens": 32}, "gates": {"override": True},
    }  # fmt: skip
    return write(place, recipe)


def write(place: Path, recipe: dict[str, Any]) -> str:
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return str(place / "recipe.yaml")


def charter(*arguments: str) -> tuple[str, Peak]:
    """What a command printed, and its peak."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "charter", *arguments], stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    seen = [(0, 0)]
    watcher = threading.Thread(target=watch, args=(process.pid, seen))
    watcher.start()
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    watcher.join()
    if status:
        raise SystemExit(f"charter {' '.join(arguments)} failed")
    return output, Peak(usage.ru_maxrss * 1024, max(seen)[1])


def watch(process: int, seen: list[tuple[int, int]]) -> None:
    """Resident bytes and those of mapped files, thirty times a second until the process ends."""
    while True:
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            return
        parts = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}
        if not parts:  # it has ended and waits for its exit code to be read
            return
        seen.append((sum(parts.values()), parts["RssFile"]))
        time.sleep(0.03)


def measure(name: str, arguments: list[str], run: Path, stages: tuple[str, ...]) -> list[float]:
    """Print a row for each stage; the ratios of the planned to the measured peak."""
    plan = json.loads(charter("plan", *arguments, "--json")[0])
    planned = {stage["stage"]: stage["peak_bytes"] for stage in plan["stages"]}
    ratios = []
    for stage in stages:
        if stage in planned:
            _, peak = charter("run", *arguments, "--out", str(run), "--until", stage, "--quiet")
            ratios.append(planned[stage] / peak.resident)
            sizes = (planned[stage], peak.resident, peak.files)
            print(f"{name:16}{stage:14}" + "".join(f"{size / 1e6:>12,.0f}" for size in sizes) + f"{ratios[-1]:>8.2f}", flush=True)
    return ratios


def with_settings(recipe: str, settings: tuple[str, ...]) -> list[str]:
    return [recipe, *(word for setting in settings for word in ("--set", setting))]


def main(names: list[str], model: str | None) -> None:
    print(f"{'case':16}{'stage':14}{'planned MB':>12}{'measured':>12}{'of files':>12}{'ratio':>8}")
    ratios: list[float] = []
    if model is not None:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            recipe = recipe_on(place, model)
            for name in names or MODEL_CASES:
                settings, stages = MODEL_CASES[name]
                ratios += measure(name, with_settings(recipe, settings), place / "run", stages)
    else:
        for name in names or CASES:
            with tempfile.TemporaryDirectory() as folder:
                place, case = Path(folder), CASES[name]
                if isinstance(case, tuple) and isinstance(case[1], dict):
                    arguments = [recipe_of(place, *case)]
                else:
                    recipe, *changes = [case] if isinstance(case, str) else case
                    arguments = with_settings(recipe, tuple(changes))
                ratios += measure(name, arguments, place / "run", STAGES)
    print(f"planned over measured: {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--model", help="folder of a model that was trained")
    options = parser.parse_args()
    main(options.cases, options.model)
