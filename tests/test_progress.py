"""Without a terminal a long work says once a minute how far it is, in the numbers of the bar."""

import pytest

from charter.run.progress import Pace, track
from charter.run.run import Run


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(capsys, seconds, **options):
    """What a work prints whose steps take so many seconds each."""
    clock = Clock()
    for taken in track(seconds, "rl", clock=clock, **options):
        clock.now += taken
    return capsys.readouterr().err.splitlines()


def test_a_line_a_minute_with_step_rate_and_time_left(capsys):
    assert lines_of(capsys, [20.0] * 9) == [
        "  rl: 3 of 9, 3.0/min, 60 s so far, 2 min left",
        "  rl: 6 of 9, 3.0/min, 2 min so far, 60 s left",
        "  rl: 9 of 9, 3.0/min, 3 min so far, 0 s left",
    ]


def test_a_step_longer_than_a_minute_has_a_line_of_its_own_and_a_short_work_none(capsys):
    assert [line.split(",")[0] for line in lines_of(capsys, [600.0, 1.0, 100.0])] == ["  rl: 1 of 3", "  rl: 3 of 3"]
    assert lines_of(capsys, [0.5] * 100) == []
    assert lines_of(capsys, [600.0], quiet=True) == []


def test_a_resumed_work_counts_what_was_done_and_rates_what_it_does(capsys):
    assert lines_of(capsys, [60.0] * 10, done=8)[0] == "  rl: 9 of 10, 1.0/min, 60 s so far, 60 s left"


def test_batches_count_their_items_and_the_last_may_be_short(capsys):
    assert lines_of(capsys, [64.0, 64.0], unit=128, total=200) == [
        "  rl: 128 of 200, 2.0/s, 64 s so far, 36 s left",
        "  rl: 200 of 200, 1.6/s, 2 min so far, 0 s left",
    ]


def test_the_bar_shows_the_same_numbers(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    clock = Clock()
    for taken in track([20.0, 20.0, 20.0], "rl", clock=clock):
        clock.now += taken
    shown = capsys.readouterr().err
    pace = Pace(2, 3, 2, 40.0)
    assert (pace.rate, pace.time_left) == ("3.0/min", "20 s left")
    assert "3.0/min" in shown
    assert "so far" not in shown


@pytest.mark.parametrize("quiet", [True, False])
def test_a_stage_gives_the_rest_of_its_steps(tmp_path, quiet):
    with Run(tmp_path / "run", quiet=quiet) as run, run.stage("rl", {}, {}, []) as stage:
        assert list(stage.progress(range(5), done=2)) == [2, 3, 4]


def test_a_step_that_lasts_is_said_to_be_at_work(capsys, monkeypatch):
    monkeypatch.setattr("charter.run.progress.MINUTE", 0.001)
    for step in track(["first", "second"], "revise", unit=64, total=100):
        words = f"revise: {0 if step == 'first' else 64} of 100, 0 s so far, still at work on the next"
        while words not in capsys.readouterr().err:
            pass  # the thread that writes them has its own time
