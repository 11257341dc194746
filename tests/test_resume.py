"""Killed at any moment, a run resumes with the same command and ends with the same bytes."""

import multiprocessing
import shutil
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from charter.commands.app import run_command
from charter.pipeline import STAGES, run_recipe
from charter.recipe.files import load_recipe

# Wall-clock times are no artifacts: the report carries them, and the page and the manifest's timings come from there.
NOT_COMPARED = {"report.json", "report.html", ".timing.json", ".lock"}

GOLD = {"source": "python:charter.evaluation.overlap:rouge_l", "every": 1, "prompts": 2}


def artifacts(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in NOT_COMPARED
    }


# A process that has read Charter's modules and has no threads: every killed run is a fork of it, with the same entry point.
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(
    [
        "charter.commands.app", "charter.pipeline", "transformers.models.llama.modeling_llama", "matplotlib.pyplot",
        *(f"charter.stages.{stage}.run" for stage in STAGES),
    ]
)  # fmt: skip


def start(recipe: Path, out: Path) -> BaseProcess:
    process = WARM.Process(target=run_command, args=(["run", str(recipe), "--out", str(out), "--quiet"],))
    process.start()
    return process


def wait_for(path: Path, process: BaseProcess, lines: int = 1) -> None:
    """Until the file has that many lines, or the run is over."""
    while process.is_alive():
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("rl", "moments"),
    [
        (
            {"method": "rloo", "kl_target": 0.5, "gold": GOLD, "keep": "best"},
            [("revise/revisions.jsonl", 3), ("feedback/judgments.jsonl", 2), ("rl/metrics.jsonl", 1)],
        ),
        (
            {"method": "ppo", "kl_target": 0.5, "value": "head"},
            [("sft/metrics.jsonl", 2), ("reward_model/metrics.jsonl", 1), ("rl/metrics.jsonl", 2)],
        ),
        (
            {"method": "grpo", "kl_target": 0.5, "reward": {"reward_model": {}, "length": {}}, "cost": {"part": "length"}},
            [("rl/metrics.jsonl", 1), ("rl/metrics.jsonl", 2)],
        ),
        (
            {"method": "online_dpo", "sigmoid_against": 2, "reward_scale": True},
            [("rl/metrics.jsonl", 1), ("rl/metrics.jsonl", 2)],
        ),
        # By time, so from the beginning: a checkpoint is due after a second.
        (
            {
                "method": "dpo",
                "pairs_per_step": 4,
                "epochs": 2,
                "checkpoint_every": None,
                "gold": {**GOLD, "max_new_tokens": 8},
                "keep": "best",
            },
            [("rl/metrics.jsonl", 1), ("rl/metrics.jsonl", 3)],
        ),
    ],
)
def test_kill_minus_nine_at_many_moments_changes_nothing(tmp_path, write_recipe, random_llama, before_rl, rl, moments):
    recipe = write_recipe(random_llama, rl=rl)
    shutil.copytree(before_rl, tmp_path / "whole")
    run_recipe(load_recipe(recipe), tmp_path / "whole", quiet=True)
    expected = artifacts(tmp_path / "whole")
    assert "rl/model/model.safetensors" in expected

    out = tmp_path / "killed"
    if all(name.startswith("rl/") for name, _ in moments):
        shutil.copytree(before_rl, out)
    killed = 0
    for name, lines in moments:
        process = start(recipe, out)
        wait_for(out / name, process, lines)
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
    assert killed >= 2
    run_recipe(load_recipe(recipe), out, quiet=True)
    got = artifacts(out)
    assert got.keys() == expected.keys()
    assert [name for name in expected if got[name] != expected[name]] == []
