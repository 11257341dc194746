"""The memory that `charter plan` gives a stage at most, against the memory of its process, stage by stage.

python benchmarks/plan_memory.py [CASE …]

A case is a shipped recipe that needs no download, or training of one of the two random models of the speed comparison on the
testbed's texts. Each stage runs in a process of its own, which continues the run. The table shows the ratio of the planned peak
to the measured one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import workload
import yaml

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
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return str(place / "recipe.yaml")


def charter(*arguments: str) -> tuple[str, int]:
    """What a command printed, and its peak in bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "charter", *arguments], stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"charter {' '.join(arguments)} failed")
    return output, usage.ru_maxrss * 1024


def main(names: list[str]) -> None:
    print(f"{'case':16}{'stage':14}{'planned MB':>12}{'measured':>12}{'ratio':>8}")
    worst = 1.0
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            place, case = Path(folder), CASES[name]
            if isinstance(case, tuple) and isinstance(case[1], dict):
                arguments = [recipe_of(place, *case)]
            else:
                recipe, *changes = [case] if isinstance(case, str) else case
                arguments = [recipe, *(word for change in changes for word in ("--set", change))]
            plan = json.loads(charter("plan", *arguments, "--json")[0])
            planned = {stage["stage"]: stage["peak_bytes"] for stage in plan["stages"]}
            for stage in STAGES:
                if stage in planned:
                    _, peak = charter("run", *arguments, "--out", str(place / "run"), "--until", stage, "--quiet")
                    ratio = planned[stage] / peak
                    worst = max(worst, ratio, 1 / ratio)
                    print(f"{name:16}{stage:14}{planned[stage] / 1e6:>12,.0f}{peak / 1e6:>12,.0f}{ratio:>8.2f}", flush=True)
    print(f"the farthest off: a factor of {worst:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
