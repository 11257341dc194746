"""Killed at any moment, a run resumes with the same command and ends with the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from charter.pipeline import run_recipe
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


def start(recipe: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "charter", "run", str(recipe), "--out", str(out), "--quiet"]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(path: Path, process: subprocess.Popen, lines: int = 1) -> None:
    """Until the file holds that many lines, or the run is over."""
    while process.poll() is None:
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
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
    assert killed >= 2
    run_recipe(load_recipe(recipe), out, quiet=True)
    got = artifacts(out)
    assert got.keys() == expected.keys()
    assert [name for name in expected if got[name] != expected[name]] == []
