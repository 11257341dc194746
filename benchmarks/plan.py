"""What `charter plan` says a recipe takes of memory, beside what running it took.

python benchmarks/plan.py [CASE …]

Cases named M run the smoke recipe on a random model of 27.4M parameters (workload.py): its gates say that such a model cannot
judge, and are overridden, since memory is all that is asked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import workload

LORA = ["sft.lora.rank=16", "reward_model.lora.rank=16", "rl.lora.rank=16"]
CASES = {
    "smoke": [],
    "smoke, PPO, float32": ["rl.method=ppo", "precision=float32"],
    "M, PPO": ["model=M", "rl.method=ppo", "gates.override=true"],
    "M, PPO, LoRA": ["model=M", "rl.method=ppo", "gates.override=true", *LORA],
    "M, GRPO, large micro-batches": ["model=M", "rl.method=grpo", "gates.override=true", "rl.tokens_per_micro_batch=16384"],
}  # fmt: skip
SMALL = ["prompts.train=60", "prompts.test=30", "revise.prompts=40", "feedback.prompts=60", "rl.steps=3"]


def charter(command: str, sets: list[str], *more: str) -> tuple[str, int]:
    """Output and peak resident bytes of one command in a process of its own."""
    words = [sys.executable, "-m", "charter.cli", command, "smoke", *(w for one in sets for w in ("--set", one)), *more]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, err = process.communicate() if command == "plan" else (process.stdout.read(), "")  # type: ignore[union-attr]
        if command == "plan":
            return out, 0
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in (0, 1):  # 1: a gate said no
            sys.exit(f"{' '.join(words)}\n{err}{process.stderr.read()}")  # type: ignore[union-attr]
        return out, usage.ru_maxrss * 1024


def main(names: list[str]) -> None:
    print("| case | planned MB | in | measured MB | plan off by |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = workload.save_model(Path(place) / "M", "M")
        for name in names or CASES:
            sets = [f"model={folder}" if one == "model=M" else one for one in CASES[name]]
            sets += SMALL if "model=M" in CASES[name] else []
            planned = json.loads(charter("plan", sets, "--json")[0])
            _, measured = charter("run", sets, "--quiet", "--out", f"{place}/{name}")
            ratio = planned["peak_bytes"] / measured - 1
            print(f"| {name} | {planned['peak_bytes'] / 2**20:,.0f} | {planned['peak_stage']} | {measured / 2**20:,.0f} | "
                  f"{ratio:+.0%} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
