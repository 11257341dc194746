"""One picture of two runs of smollm2-kind, with KL and without: sentiment and variety over the training, and answers of both.

python examples/kind_picture.py runs/smollm2-kind runs/smollm2-free --out runs/kind.png
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.open(encoding="utf-8")]


def variety(text: str) -> float:
    """Share of different words among the words of a text."""
    words = re.findall(r"[\w']+", text.lower())
    return len(set(words)) / max(len(words), 1)


def curve(rollouts: list[dict], value) -> tuple[list[int], list[float]]:
    """Steps, and the mean of a value of the rollouts of each."""
    by_step: dict[int, list[float]] = {}
    for row in rollouts:
        by_step.setdefault(row["step"], []).append(value(row))
    return sorted(by_step), [sum(by_step[step]) / len(by_step[step]) for step in sorted(by_step)]


def samples(run: Path, n: int) -> list[tuple[str, str]]:
    """Prompts and answers of the run's policy on held-out prompts."""
    prompts = {row["id"]: row["messages"][-1]["content"] for row in read(run / "prompts/prompts.jsonl")}
    answers = sorted(read(run / "evaluate/responses.policy.jsonl"), key=lambda row: row["prompt_id"])
    return [(prompts[row["prompt_id"]], row["text"]) for row in answers[:n]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs=2, help="the run with KL, the run without")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--samples", type=int, default=3, help="answers of each run")
    args = parser.parse_args()
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.4), height_ratios=(3, 2.6))
    for run, color, name in zip(args.runs, ("tab:blue", "tab:red"), ("with KL", "without KL"), strict=True):
        rollouts = read(run / "rl/rollouts.jsonl")
        axes[0][0].plot(*curve(rollouts, lambda row: row["reward"]), color=color, label=name)
        axes[0][1].plot(*curve(rollouts, lambda row: variety(row["response"])), color=color, label=name)
    axes[0][0].set(title="sentiment (VADER)", xlabel="step")
    axes[0][1].set(title="different words / words", xlabel="step")
    axes[0][0].legend()
    for place, (run, name) in enumerate(zip(args.runs, ("with KL", "without KL"), strict=True)):
        texts = [f"{prompt}\n→ {answer}" for prompt, answer in samples(run, args.samples)]
        wrapped = "\n\n".join("\n".join(textwrap.fill(line, 72) for line in text.splitlines()) for text in texts)
        axes[1][place].text(0, 1, wrapped.replace("$", r"\$"), va="top", fontsize=8, transform=axes[1][place].transAxes)
        axes[1][place].set_title(name)
        axes[1][place].axis("off")
    figure.tight_layout()
    figure.savefig(args.out, dpi=120)
    print(args.out)


if __name__ == "__main__":
    main()
