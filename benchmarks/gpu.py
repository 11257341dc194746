"""Charter on a GPU: rate, share of the GPU's product rate (MFU) and peak memory, beside TRL's and vLLM's on the same work.

python benchmarks/gpu.py [WORK …] [--models Q L P] [--runs 3] [--out results/gpu.md]

Every run is a process of its own (one_run.py with DEVICE=cuda). The product rate is measured: bfloat16 products of 8192 x 8192.
vLLM samples the same prompts where it is installed. Without a GPU the script says so in one line and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import workload
from speed import KINDS, PPO, UNITS

WORKS = ("sft", "sft-lora", "dpo", "grpo", "ppo", "ppo-head", "sample", "sample-groups")
NEW_TOKENS = 64
COLUMNS = ("work", "model", "unit", "Charter", "MFU", "peak GB", "TRL", "ratio", "TRL's peak GB")


def product_rate(size: int = 8192, turns: int = 20) -> float:
    """GFLOP/s in bfloat16 products; the best of the turns."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(turns):
        torch.cuda.synchronize()
        began = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds) / 1e9


def one_run(tool: str, work: str, shape: str, trl112: str | None) -> dict[str, Any] | str:
    """The figures of one run; its last line of error where it failed, as without TRL."""
    env = {**os.environ, "DEVICE": "cuda", "MICRO": "16384", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    if tool == "trl" and work in PPO:
        if trl112 is None:
            return "needs --trl112"
        env["PYTHONPATH"] = trl112
    script = str(Path(__file__).with_name("one_run.py"))
    done = subprocess.run([sys.executable, script, tool, work, shape], env=env, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1][:120]
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def median(runs: list[dict[str, Any] | str], key: str) -> float | None:
    values = [run[key] for run in runs if isinstance(run, dict)]
    return statistics.median(values) if values else None


def mfu(work: str, shape: str, rate: float, products: float) -> str:
    """Share of the product rate that the products with weights come to."""
    kind, group = KINDS.get(work, (work, 1))
    return f"{rate * workload.operations(kind, shape, NEW_TOKENS, group) / products:.0%}"


def row_of(work: str, shape: str, charter: list[Any], trl: list[Any], products: float) -> list[str]:
    """The cells of a row; a failed run is a dash, and its error is printed."""
    rate, peer = median(charter, "rate"), median(trl, "rate")
    peaks = [median(runs, "peak_mb") for runs in (charter, trl)]
    gigabytes = ["–" if peak is None else f"{peak / 1024:.1f}" for peak in peaks]
    return [
        work, shape, UNITS[work], "–" if rate is None else f"{rate:.0f}",
        "–" if rate is None else mfu(work, shape, rate, products), gigabytes[0], "–" if peer is None else f"{peer:.0f}",
        f"{rate / peer:.2f}" if rate and peer else "–", gigabytes[1],
    ]  # fmt: skip


def vllm_rate(shape: str) -> float | None:
    """Tokens a second of vLLM on the prompts of the work `sample`; None where vLLM is missing."""
    try:
        from vllm import LLM, SamplingParams
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as place:
        model = LLM(str(workload.save_model(Path(place) / "model", shape)), dtype="bfloat16", gpu_memory_utilization=0.5)
        params = SamplingParams(temperature=1.0, max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS, ignore_eos=True)
        prompts = [{"prompt_token_ids": ids} for ids in workload.prompts(64)]
        model.generate(prompts, params, use_tqdm=False)
        began = time.perf_counter()
        made = model.generate(prompts, params, use_tqdm=False)
        return sum(len(one.outputs[0].token_ids) for one in made) / (time.perf_counter() - began)


def table(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", default=WORKS, help=f"of {', '.join(WORKS)}")
    parser.add_argument("--models", nargs="+", default=["Q", "P", "L"])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--trl112", help="folder that holds TRL 1.12, for PPO")
    parser.add_argument("--out", type=Path, help="write the tables as Markdown")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU of CUDA is visible; nothing was measured")
        return
    products = product_rate()
    head = f"{torch.cuda.get_device_name()}, {products / 1000:.0f} TFLOP/s in bfloat16 products, torch {torch.__version__}"
    print(head, flush=True)
    rows = []
    for work in chosen.works:
        for shape in chosen.models:
            tools = {tool: [one_run(tool, work, shape, chosen.trl112) for _ in range(chosen.runs)] for tool in ("charter", "trl")}
            for tool, runs in tools.items():
                for message in {run for run in runs if isinstance(run, str)}:
                    print(f"{tool}, {work}, {shape}: {message}", flush=True)
            rows.append(row_of(work, shape, tools["charter"], tools["trl"], products))
            print("  ".join(rows[-1]), flush=True)
    speeds = {shape: vllm_rate(shape) for shape in chosen.models} if "sample" in chosen.works else {}
    text = f"# Charter on a GPU\n\n`python benchmarks/gpu.py`: {head}. MFU: share of that product rate.\n\n{table(COLUMNS, rows)}"
    known = [[shape, f"{rate:.0f}"] for shape, rate in speeds.items() if rate is not None]
    text += f"\n{table(('model', 'vLLM, sample, tokens/s'), known)}" if known else ""
    if chosen.out:
        chosen.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
