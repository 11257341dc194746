"""Charter against TRL at its best settings on the same work: one pinned core, a process of its own for every run, in turns.

python benchmarks/speed.py [WORK …] [--models S M R Q] [--runs 5] [--out results/speed.json]

Prints the median rate of each in CPU seconds of the process, the ratio of the medians with its range over the pairs of runs, the
part of the core's product rate that the products with weights come to (``workload.operations``), and peak memory of the whole
process. PPO needs TRL 1.12 (`pip install --no-deps --target FOLDER trl==1.12.0`, then `--trl112 FOLDER`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import workload

UNITS = {"sft": "tokens/s", "sft-lora": "tokens/s", "reward": "pairs/s", "dpo": "pairs/s", "grpo": "completions/s",
         "rloo": "completions/s", "ppo": "completions/s", "ppo-head": "completions/s", "sample": "tokens/s",
         "sample-groups": "tokens/s"}  # fmt: skip
KINDS = {"grpo": ("rl", 8), "rloo": ("rl", 4), "sample": ("sample", 1), "sample-groups": ("sample", 8)}
"""Of works with responses: the kind of work, and responses to a prompt."""
PPO = ("ppo", "ppo-head")
MICRO = {"R": "3072", "Q": "1536"}  # tokens of a micro-batch; layers are many and the vocabulary is large
# glibc keeps blocks that were freed instead of giving them back and faulting them in again; for both tools.
KEEP = {"MALLOC_TRIM_THRESHOLD_": str(2**36), "MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TOP_PAD_": str(2**26)}


def run(tool: str, work: str, shape: str, trl112: str | None) -> dict[str, float]:
    """One run in a process of its own on one core."""
    env = {**os.environ, **KEEP, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    env.setdefault("MICRO", MICRO.get(shape, "6144"))
    if tool == "trl" and work in PPO:
        env["PYTHONPATH"] = str(trl112)
    done = on_one_core("one_run.py", tool, work, shape, env=env)
    found: dict[str, float] = json.loads(done.strip().splitlines()[-1])
    return found


def on_one_core(script: str, *arguments: str, env: dict[str, str]) -> str:
    """The output of a script of this folder."""
    pin = ["taskset", "-c", "0"] if shutil.which("taskset") else []
    command = [*pin, sys.executable, str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def product_rate() -> float:
    """GFLOP/s of one core in bfloat16 products."""
    return float(on_one_core("workload.py", env={**os.environ, "OMP_NUM_THREADS": "1"}).split()[1])


def share(work: str, shape: str, rate: float, products: float) -> str:
    """The part of the core's product rate that the weights' products of a work come to."""
    kind, group = KINDS.get(work, (work, 1))
    return f"{rate * workload.operations(kind, shape, 64, group) / products:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", default=[], help=f"of {', '.join(UNITS)}; all but ppo unless named")
    parser.add_argument("--models", nargs="+", default=["S", "M"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--trl112", help="folder that holds TRL 1.12")
    parser.add_argument("--out", type=Path, help="write every run as JSON")
    chosen = parser.parse_args()
    works = chosen.works or [work for work in UNITS if work not in PPO or chosen.trl112]
    rows, products = [], product_rate()
    print(f"products of one core: {products:.0f} GFLOP/s")
    print(f"{'work':14}{'model':6}{'charter':>10}{'trl':>10}  {'unit':14}{'ratio':>6}  {'range':14}{'products':>9}"
          f"{'peak MB':>14}{'ratio':>7}")  # fmt: skip
    for work in works:
        for shape in chosen.models:
            pairs = []
            for _ in range(chosen.runs):
                pairs.append([run(tool, work, shape, chosen.trl112) for tool in ("charter", "trl")])
            ours, theirs = ([pair[i]["rate"] for pair in pairs] for i in (0, 1))
            peaks = [statistics.median(pair[i]["peak_mb"] for pair in pairs) for i in (0, 1)]
            ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
            a, b = statistics.median(ours), statistics.median(theirs)
            spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
            print(f"{work:14}{shape:6}{a:>10.1f}{b:>10.1f}  {UNITS[work]:14}{a / b:>6.2f}  {spread:14}"
                  f"{share(work, shape, a, products):>9}{peaks[0]:>7.0f}{peaks[1]:>7.0f}{peaks[0] / peaks[1]:>7.2f}",
                  flush=True)  # fmt: skip
            rows.append({"work": work, "model": shape, "charter": ours, "trl": theirs, "peak_mb": peaks})
    if chosen.out:
        chosen.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
