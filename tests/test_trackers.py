"""What metrics.jsonl says is what a tracker was sent: every metric of every step, once."""

import importlib.util
import json
import os
import sqlite3
import struct
from collections import defaultdict
from pathlib import Path

import pytest

from charter.commands.app import run_command
from charter.run.run import Run
from charter.run.trackers import check_trackers, flat, numbers, rows_of, tracked


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Each tag with its (step, value), in the order in which they were written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = defaultdict(list)
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    for tag in accumulator.Tags()["scalars"]:
        found[tag] = [(event.step, event.value) for event in accumulator.Scalars(tag)]
    return dict(found)


def read_wandb(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The history in .wandb files: records in LevelDB's log format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2 as protocol

    found = defaultdict(list)
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        raw, at, parts = file.read_bytes(), 7, b""
        while at + 7 <= len(raw):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack("<IHB", raw[at : at + 7])
            parts, at = parts + raw[at + 7 : at + 7 + length], at + 7 + length
            if kind in (1, 4):  # whole, or the last part
                record = protocol.Record()
                record.ParseFromString(parts)
                parts = b""
                row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                for key, value in row.items():
                    if "/" in key and not key.endswith("/step"):
                        found[key].append((int(row[f"{key.partition('/')[0]}/step"]), json.loads(value)))
    return dict(found)


def read_trackio(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = defaultdict(list)
    with sqlite3.connect(folder.parent.parent / "trackio/charter.db") as database:
        for step, row in database.execute("SELECT step, metrics FROM metrics ORDER BY id"):
            for key, value in json.loads(row).items():
                found[key].append((step, value))
    return dict(found)


def read_mlflow(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = defaultdict(list)
    with sqlite3.connect(folder / "mlflow/mlflow.db") as database:
        for key, step, value in database.execute("SELECT key, step, value FROM metrics ORDER BY timestamp, step"):
            found[key].append((step, value))
    return dict(found)


READERS = {
    "tensorboard": lambda folder: read_tensorboard(next(folder.glob("tensorboard/*"))),
    "wandb": read_wandb, "trackio": read_trackio, "mlflow": read_mlflow,
}  # fmt: skip


def written(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What metrics.jsonl and the report of a run hold, in the form of the readers."""
    found = defaultdict(list)
    for file in folder.glob("*/metrics.jsonl"):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            for key, value in row.items():
                if key != "step":
                    found[f"{file.parent.name}/{key}"].append((row["step"], value))
    for metric in json.loads((folder / "report.json").read_text())["metrics"]:
        if metric["group"] is None and metric["value"] is not None:
            found[f"evaluate/{metric['arm']}/{metric['name']}"].append((0, metric["value"]))
    return dict(found)


def same(sent, expected) -> bool:
    """Equal to float32, which is what TensorBoard keeps."""
    return sent.keys() == expected.keys() and all(
        sent[key] == [(step, pytest.approx(value, rel=1e-6, abs=1e-12)) for step, value in rows] for key, rows in expected.items()
    )


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in which no tracker has a network or an account."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", READERS)
def test_every_metric_of_a_run_arrives_once(name, place, write_recipe, random_llama, capsys):
    pytest.importorskip(name)
    recipe, out = write_recipe(random_llama), place / "run"
    command = ["run", str(recipe), "--out", str(out), "--tracker", name, "--json"]
    assert run_command([*command, "--until", "sft"]) == 0  # and go on later: the run of the tracker goes on too
    capsys.readouterr()
    assert run_command(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["recipe"]["trackers"] == [name]
    expected = written(out)
    assert {"sft/loss", "reward_model/accuracy", "rl/kl", "rl/reward/reward_model", "evaluate/policy/kl"} <= expected.keys()
    assert same(READERS[name](out / "trackers"), expected)
    assert "MLFLOW_TRACKING_URI" not in os.environ  # the next run of this process has a store of its own


def test_a_recipe_goes_in_as_the_configuration(place):
    pytest.importorskip("tensorboard")
    with Run(place, quiet=True) as run, tracked(run, ["tensorboard"], {"rl": {"steps": 3, "lora": None}, "files": ["a"]}):
        pass
    (file,) = place.glob("trackers/tensorboard/*/*/hparams.yml")
    assert file.read_text() == "files: '[\"a\"]'\nrl.steps: 3\n"


def sent_to_tensorboard(folder: Path) -> list[dict[str, list[int]]]:
    """Of each run of the tracker, in the order of their beginning, the steps of each metric."""
    runs = sorted(folder.glob("trackers/tensorboard/*"), key=lambda run: run.stat().st_mtime_ns)
    return [{tag: [step for step, _ in rows] for tag, rows in read_tensorboard(run).items()} for run in runs]


def train(folder: Path, steps: int, *, start: int = 0, settings: int = 0, last: bool = False) -> None:
    """A run of two stages under TensorBoard: one that is done, and one that records the steps from its checkpoint on."""
    with Run(folder, quiet=True) as run, tracked(run, ["tensorboard"], {}):
        with run.stage("first", {}, {}, []) as stage:
            if not stage.done:
                stage.record(0, loss=2.0)
                stage.finish({})
        with run.stage("second", settings, {}, []) as stage:
            stage.rewind("metrics.jsonl", start)
            for step in range(start, steps):
                stage.record(step, loss=1.0)
            if last:
                stage.finish({})


def test_a_step_that_is_done_again_after_a_kill_is_not_sent_again(place):
    pytest.importorskip("tensorboard")
    train(place, 3)
    train(place, 5, start=1, last=True)  # the checkpoint was older than the last line
    assert sent_to_tensorboard(place) == [{"first/loss": [0], "second/loss": [0, 1, 2, 3, 4]}]


def test_a_stage_that_begins_anew_is_a_new_run_with_the_stages_before_it(place):
    pytest.importorskip("tensorboard")
    train(place, 3, last=True)
    train(place, 2, settings=1)
    old, new = sent_to_tensorboard(place)
    assert old == {"first/loss": [0], "second/loss": [0, 1, 2]}
    assert new == {"first/loss": [0], "second/loss": [0, 1]}


def test_a_tracker_that_comes_later_gets_what_there_is(place):
    pytest.importorskip("tensorboard")
    with Run(place, quiet=True) as run, run.stage("first", {}, {}, []) as stage:
        stage.record(0, loss=2.0)
        stage.finish({})
    train(place, 2)
    assert sent_to_tensorboard(place) == [{"first/loss": [0], "second/loss": [0, 1]}]


def test_a_tracker_that_fails_is_said_once_and_gets_the_rest_at_the_next_start(place, capsys):
    pytest.importorskip("tensorboard")
    with Run(place) as run, tracked(run, ["tensorboard"], {}), run.stage("second", 0, {}, []) as stage:
        stage.record(0, loss=1.0)
        notes = place / "trackers/tensorboard.json"
        kept = notes.read_bytes()
        notes.unlink()
        notes.mkdir()  # a disk that takes no more
        (notes / "x").touch()
        for step in (1, 2, 3):
            stage.record(step, loss=1.0)
        assert len(stage.metrics()) == 4
    said = capsys.readouterr().err
    assert said.count("tracker tensorboard failed in second") == 1
    (notes / "x").unlink()
    notes.rmdir()
    notes.write_bytes(kept)
    train(place, 5, start=4)
    assert sorted(set(sent_to_tensorboard(place)[0]["second/loss"])) == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("default")
def test_a_server_that_does_not_answer_is_said_before_anything_runs(place, monkeypatch, write_recipe, random_llama, capsys):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    out = place / "run"
    assert run_command(["run", str(write_recipe(random_llama)), "--out", str(out), "--tracker", "mlflow"]) == 2
    assert "tracker mlflow does not start" in capsys.readouterr().err
    assert not (out / "prompts").exists()


def test_a_missing_package_is_named_before_anything_runs(write_recipe, random_llama, tmp_path, capsys):
    missing = [name for name in READERS if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("every tracker is installed here")
    out = tmp_path / "run"
    assert run_command(["run", str(write_recipe(random_llama)), "--out", str(out), "--tracker", missing[0]]) == 2
    assert f"pip install 'charter-align[{missing[0]}]'" in capsys.readouterr().err
    assert not out.exists()


def test_a_tracker_that_nobody_knows_is_named(write_recipe, random_llama, capsys):
    assert run_command(["run", str(write_recipe(random_llama)), "--tracker", "tensorbord"]) == 2
    assert "trackers.0" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "names"), [("0", []), ("1", ["tensorboard"])])
def test_no_tracker_starts_unasked_or_in_another_process_than_the_main_one(tmp_path, monkeypatch, rank, names):
    monkeypatch.setenv("RANK", rank)
    check_trackers([])
    with Run(tmp_path, quiet=True) as run, tracked(run, names, {}):
        assert not (tmp_path / "trackers").exists()


def test_only_numbers_are_sent():
    assert numbers({"step": 1, "a": 0.5, "b": None, "c": "text", "d": {"e": 2}}) == {"step": 1, "a": 0.5, "d/e": 2}
    assert flat({"rl": {"lora": None, "steps": 3}, "files": ["a"]}) == {"rl.steps": 3, "files": '["a"]'}


def test_an_evaluation_is_one_row_of_figures(stage):
    metric = {"name": "kl", "arm": "policy", "value": 1.5, "group": None}
    stage.finish({"metrics": [metric, {**metric, "group": "benign", "value": 2.0}]})
    assert rows_of(stage) == [{"step": 0, "policy/kl": 1.5}]
