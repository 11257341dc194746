"""Two processes, started by the real launchers, give what one process gives."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charter.commands.app import run_command
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.run.team import Team
from charter.stages.rl.settings import METHODS
from charter.training.batches import by_tokens, even_by_tokens
from charter.training.rollouts import share_of_rows
from together import WAYS, train_all

TESTS = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


def torchrun(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, arguments)]


def rows(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def assert_close(got: Path, expected: Path, *, tolerance: float = 1e-5, leave_out: str = "") -> None:
    """Every figure of every step within the tolerance, relative or absolute; a loss within ten times as much, since in RL it is a
    small difference of terms of many nats."""
    figures, wanted = (
        [{key: value for key, value in row.items() if key != leave_out} for row in rows(folder / "metrics.jsonl")]
        for folder in (got, expected)
    )
    assert wanted
    losses, wanted_losses = ([row.pop("loss", 0.0) for row in rows] for rows in (figures, wanted))
    assert losses == pytest.approx(wanted_losses, rel=10 * tolerance, abs=10 * tolerance)
    assert figures == [pytest.approx(row, rel=tolerance, abs=tolerance) for row in wanted]


def test_every_method_is_trained_by_two_processes():
    parts = {part.__name__ for part in WAYS["ddp"][1]}
    assert {method.removesuffix("_dpo") for method in METHODS} <= parts  # online_dpo is `online`


def test_two_processes_train_and_sample_as_one(tmp_path, random_llama):
    ways = ("ddp", "fsdp", *(("deepspeed", "offloaded") if DEEPSPEED else ()))
    command = torchrun(TESTS / "together.py", random_llama, *(f"{way}={tmp_path / way}" for way in ways))
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train_all(random_llama, tmp_path / "one")
    for two in ways:
        stages = {folder.parent.name for folder in (tmp_path / two).glob("*/metrics.jsonl")} - {"answers"}
        assert len(stages) == {"ddp": 13, "fsdp": 10, "deepspeed": 12, "offloaded": 4}[two]
        for name in stages:
            # Before the first update every pair is a tie, so what DPO counts as right there is rounding.
            assert_close(tmp_path / two / name, tmp_path / "one" / name, leave_out="accuracy" if name == "dpo" else "")
        if (tmp_path / two / "rloo").exists():
            texts, expected = (
                [row["response"] for row in rows(tmp_path / folder / "rloo/rollouts.jsonl")] for folder in (two, "one")
            )
            assert texts == expected
    for name in ("answers/responses.jsonl", "answers/metrics.jsonl", "answers/prompts.jsonl"):
        assert (tmp_path / "ddp" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@given(n=st.integers(1, 9), k=st.integers(1, 9), size=st.integers(1, 9))
def test_rows_are_dealt_in_order_and_evenly(n, k, size):
    shares = [share_of_rows(n, k, rank, size) for rank in range(size)]
    dealt = [(i, j) for share in shares for i, cut in share for j in range(k)[cut]]
    assert dealt == [(i, j) for i in range(n) for j in range(k)]
    assert all(len({len(range(k)[cut]) for _, cut in share}) <= 1 for share in shares)  # what is sampled together
    if n >= size:
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def kill_one_of_two(recipe: Path, out: Path, *settings: str) -> str:
    """Run up to RL in two processes and kill the second after two steps of it; what they said."""
    command = torchrun("-m", "charter", "run", recipe, "--out", out, "--until", "rl", *settings)
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    log = out / "rl/metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 2):
        time.sleep(0.005)
    ranks = {child.environ()["RANK"]: child for child in psutil.Process(process.pid).children()}
    ranks["1"].send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode != 0
    assert not any(child.is_running() for child in ranks.values())
    assert not (out / "rl/model").exists()
    assert 2 <= len(log.read_text().splitlines()) < 12
    return errors


def test_a_killed_process_ends_the_run_and_one_process_goes_on(tmp_path, write_recipe, random_llama):
    path = write_recipe(random_llama, rl={"steps": 12, "checkpoint_every": 1})
    recipe = load_recipe(path)
    out, whole = tmp_path / "killed", tmp_path / "whole"
    errors = kill_one_of_two(path, out)
    assert "2 processes (gloo, cpu)" in errors
    assert errors.count("prompts …") == 1
    run_recipe(recipe, out, until="rl", quiet=True)
    run_recipe(recipe, whole, until="rl", quiet=True)
    for name in ("sft", "reward_model"):
        assert_close(out / name, whole / name)
    # REINFORCE's loss is a difference between sums of 70 nats, whose last bit is 8e-6.
    assert_close(out / "rl", whole / "rl", tolerance=1e-4)
    for name in ("revise/revisions.jsonl", "revise/originals.jsonl", "feedback/judgments.jsonl", "feedback/pairs.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()

    shutil.rmtree(out / "rl")
    kill_one_of_two(path, out, "--set", "parallel=fsdp")
    assert len(list((out / "rl/checkpoint").glob("step-*/__*_0.distcp"))) >= 2  # a part of each process
    run_recipe(recipe, out, until="rl", quiet=True)
    assert_close(out / "rl", whole / "rl", tolerance=1e-4)
    assert not list(out.rglob("*.tmp"))
    assert not (out / "rl/checkpoint").exists()


def test_an_error_is_said_once_and_is_the_exit_code_of_the_process(tmp_path):
    command = torchrun("-m", "charter", "run", tmp_path / "none.yaml", "--out", tmp_path / "out")
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.count("charter: ") == 1
    assert "none.yaml" in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert not (tmp_path / "out").exists()


def with_deepspeed(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command in two processes, as `accelerate launch --use_deepspeed` sets it up."""
    names = {key: key[1:] if key.startswith("/") else f"deepspeed_{key}" for key in settings}
    told = {f"ACCELERATE_{names[key].upper()}": value for key, value in settings.items()}
    environment = {**ENVIRONMENT, "ACCELERATE_USE_DEEPSPEED": "true", **told}
    return subprocess.run(torchrun("-m", "charter", *arguments), env=environment, capture_output=True, text=True)


@pytest.mark.skipif(not DEEPSPEED, reason="no deepspeed; pip install 'charter-align[deepspeed]'")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"zero_stage": "3"}, "--use_fsdp --fsdp_version 2"),
        ({"zero_stage": "0"}, "--zero_stage 0"),
        ({"config_file": "zero.json"}, "does not read DeepSpeed's file of settings"),
        ({"offload_param_device": "cpu"}, "--offload_param_device"),
        ({"offload_optimizer_device": "nvme"}, "--offload_optimizer_device nvme"),
        ({"/gradient_accumulation_steps": "4"}, "--gradient_accumulation_steps"),
        ({"/gradient_clipping": "0.5"}, "set max_grad_norm"),
    ],
)
def test_what_deepspeed_is_not_used_for_here_is_said_in_a_line(settings, words, tmp_path):
    done = with_deepspeed("run", "smoke", "--out", tmp_path / "out", **settings)
    assert done.returncode != 0
    assert done.stderr.count("charter: ") == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr.split("exitcode")[0]


@pytest.mark.skipif(DEEPSPEED, reason="deepspeed is installed")
def test_a_run_that_needs_deepspeed_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert run_command(["run", "smoke", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("pip install 'charter-align[deepspeed]'") == 1


@pytest.mark.skipif(not DEEPSPEED, reason="no deepspeed; pip install 'charter-align[deepspeed]'")
def test_a_run_with_deepspeed_is_killed_and_one_process_goes_on_and_the_other_way(tmp_path, write_recipe, random_llama):
    path = write_recipe(random_llama, rl={"steps": 12, "checkpoint_every": 1})
    recipe = load_recipe(path)
    out, whole = tmp_path / "killed", tmp_path / "whole"
    kill_one_of_two(path, out, "--set", "parallel=deepspeed")
    assert (out / "rl/checkpoint.safetensors").exists()
    run_recipe(recipe, out, until="rl", quiet=True)
    run_recipe(recipe, whole, until="rl", quiet=True)
    assert_close(out / "rl", whole / "rl", tolerance=1e-4)

    shutil.rmtree(out / "rl")
    kill_one_of_two(path, out)
    done = with_deepspeed("run", path, "--out", out, "--until", "rl", offload_optimizer_device="cpu")
    assert done.returncode == 0, done.stderr
    assert_close(out / "rl", whole / "rl", tolerance=1e-4)


class OneOf(Team):
    """Process ``rank`` of ``size``, as far as the dealing of work goes."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def test_parts_are_dealt_whole_and_by_weight():
    costs = [5, 1, 4, 3, 3, 2]
    shares = [OneOf(rank, 2).share("abcdef", costs) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == list("abcdef")
    loads = [sum(costs["abcdef".index(part)] for part in share) for share in shares]
    assert loads == [9, 9]
    assert [OneOf(rank, 3).share("a", [1]) for rank in range(3)] == [["a"], [], []]
    assert Team().share("abc", [1, 1, 1]) == ["a", "b", "c"]


def test_groups_are_cut_so_that_every_process_has_as_many(monkeypatch):
    lengths = [10 + i % 7 for i in range(40)]
    whole = by_tokens(lengths, 4096)
    assert len(whole) == 1
    monkeypatch.setattr("charter.run.team._teams", [OneOf(0, 4)])
    groups = even_by_tokens(lengths, 4096)
    assert len(groups) == 4
    assert sorted(i for group in groups for i in group) == list(range(40))
    tokens = [sum(lengths[i] for i in group) for group in groups]
    assert max(tokens) < 1.4 * min(tokens)
    assert even_by_tokens([7], 4) == [[0]]
