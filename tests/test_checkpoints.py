"""Checkpoints take at most a twentieth of the time, and the most that a kill can lose is printed beforehand."""

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from charter.run.run import Run
from charter.run.team import Team
from charter.training.checkpoints import LEAST_WAIT, SLOW_DISK, WAIT, Checkpoints, Wait
from charter.training.optimizer import Optimizer


class Clock:
    """A clock that stands still between calls of ``pass_``; every call of it takes ``call`` seconds."""

    def __init__(self, call: float = 0.0) -> None:
        self.now, self.call = 0.0, call

    def __call__(self) -> float:
        self.now += self.call
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def optimizer_of(numbers: int = 4) -> Optimizer:
    return Optimizer({"w": nn.Parameter(torch.zeros(numbers))}, 0.1, 10)


def written(path) -> int:
    """The step of the checkpoint on the disk, 0 without one."""
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["charter"])["step"]


def test_by_number_every_step_that_divides(stage):
    checkpoints = Checkpoints(stage, {"w": optimizer_of()}, 3, clock=Clock())
    kept = []
    for step in range(1, 8):
        checkpoints.after(step, {"kl_coef": 0.5})
        kept.append(written(checkpoints.path))
    assert kept == [0, 0, 3, 3, 3, 6, 6]
    again = Checkpoints(stage, {"w": optimizer_of()}, 3)
    assert (again.first, again.extra) == (6, {"kl_coef": 0.5})


def test_by_time_twenty_times_as_long_as_the_last_one_took(stage):
    clock = Clock(call=1.0)  # so a write takes a second, and the question whether it is due another
    checkpoints = Checkpoints(stage, {"w": optimizer_of()}, clock=clock)
    checkpoints.after(1)
    assert written(checkpoints.path) == 1  # the state is small, so a second is enough
    assert checkpoints.wait.seconds == WAIT
    steps = [step for step in range(2, 60) if (checkpoints.after(step), written(checkpoints.path))[1] == step]
    assert steps == [21, 41]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=60), st.floats(0.01, 30))
def test_no_more_than_a_twentieth_of_the_time(steps, cost):
    """Whatever a step and a write take, the waits are as long as the writes before them allow."""
    clock = Clock()
    wait = Wait(0.0, clock)
    writes = []
    for seconds in steps:
        clock.pass_(seconds)
        if wait.over():
            begin = clock()
            clock.pass_(cost)
            wait.written(begin)
            writes.append(begin)
    for earlier, later in itertools.pairwise(writes):
        assert later - (earlier + cost) >= WAIT * cost - 1e-6
        assert later - (earlier + cost) <= max(LEAST_WAIT, WAIT * cost) + max(steps) + 1e-6


def test_the_start_says_what_a_kill_can_lose(tmp_path, capsys):
    numbers = 10_000_000
    with Run(tmp_path / "run") as run, run.stage("training", {}, {}, []) as stage:
        by_time = Checkpoints(stage, {"w": optimizer_of(numbers)}, clock=Clock())
        assert by_time.bytes == 12 * numbers
        assert by_time.wait.seconds == pytest.approx(WAIT * 12 * numbers / SLOW_DISK)
        slow = Checkpoints(stage, {"w": optimizer_of()}, clock=Clock(call=30.0))
        slow.after(1)
        Checkpoints(stage, {"w": optimizer_of()}, 50)
    said = capsys.readouterr().err
    assert "a kill loses at most 24 s of training and the step at hand (checkpoints of 120 MB, 5% of the time)" in said
    assert "a checkpoint took 30 s, so a kill now loses at most 10 min of training" in said
    assert "a kill loses at most 50 steps (checkpoints of 0 MB, checkpoint_every)" in said


class Follower(Team):
    """The second of two processes, told what the main one answers."""

    rank, size = 1, 2

    def __init__(self, answer: bool) -> None:
        self.answer = answer

    def on_main(self, _):
        return self.answer


@pytest.mark.parametrize(("decided", "seconds"), [(True, 0.0), (False, 1000.0)])
def test_the_main_process_decides_for_all_whatever_their_clocks_say(stage, monkeypatch, decided, seconds):
    clock = Clock()
    checkpoints = Checkpoints(stage, {"w": optimizer_of()}, clock=clock)
    clock.pass_(seconds)
    monkeypatch.setattr("charter.run.team._teams", [Follower(decided)])
    checkpoints.after(1)
    assert (checkpoints.wait.since == clock.now) == decided
    assert not checkpoints.path.exists()  # the main process writes it
