"""A run's arms as logs of inspect-ai and lm-evaluation-harness: `charter compare` and the tools themselves read equal figures."""

import json
from pathlib import Path

import pytest

from charter.commands.app import run_command
from charter.comparing.results import scored_or_none
from charter.comparing.sources import read_results

LOGS = Path(__file__).parent / "data/results"


def export(run, out, to):
    assert run_command(["export", str(run), "--to", to, "--out", str(out)]) == 0
    return {arm: next(path for path in out.rglob("*.json*") if arm in path.read_text()[:3000] or arm in str(path))
            for arm in ("run-base", "run-policy")}  # fmt: skip


def values_of(results):
    """The values by metric, those without one left out, in the order of the keys."""
    return {name: [v for _, v in sorted(zip(results.keys, map(scored_or_none, values), strict=True)) if v is not None]
            for name, values in results.metrics.items()}  # fmt: skip


@pytest.mark.parametrize("to", ["inspect", "lm-eval"])
def test_compare_reads_the_counts_and_values_of_the_run(finished_run, tmp_path, to):
    files = export(finished_run, tmp_path / "logs", to)
    for arm, file in files.items():
        run, log = read_results(f"{finished_run}:{arm.removeprefix('run-')}"), read_results(str(file))
        assert (log.model, len(log.keys)) == (arm, len(run.keys))
        whole = {name: sorted(values) for name, values in values_of(log).items()}
        assert {name: whole[name] for name in run.metrics} == {name: sorted(v) for name, v in values_of(run).items()}
    assert run_command(["compare", *map(str, files.values()), "--json"]) == 0


def test_answers_that_are_unscored_and_repeated_stay_apart(finished_run, tmp_path):
    run = tmp_path / "run"
    for name in ("prompts/prompts.jsonl", "evaluate/responses.base.jsonl"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text((finished_run / name).read_text())
    rows = [json.loads(line) for line in (finished_run / "evaluate/verdicts.base.jsonl").read_text().splitlines()[:2]]
    rows = [
        rows[0] | {"values": {"a": None, "b": 2}},
        rows[0] | {"index": 1, "values": {"a": True}},
        rows[1] | {"values": {"b": 4}},
    ]
    (run / "evaluate/verdicts.base.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for to in ("inspect", "lm-eval"):
        assert run_command(["export", str(run), "--to", to, "--out", str(tmp_path / to)]) == 0
        (file,) = (path for path in (tmp_path / to).rglob("*") if path.is_file())
        results = read_results(str(file))
        assert results.metrics == {"a": [None, 1.0, None], "b": [2.0, None, 4.0]}
        assert [repeat for _, repeat in results.keys] == [1, 2, 1]


def test_a_row_has_the_fields_that_the_harness_writes(finished_run, tmp_path):
    file = export(finished_run, tmp_path / "logs", "lm-eval")["run-policy"]
    row = json.loads(file.read_text().splitlines()[0])
    harness = json.loads((LOGS / "lm-eval-old.jsonl").read_text().splitlines()[0])
    assert harness.keys() - set(harness["metrics"]) <= row.keys()
    assert all(isinstance(row[name], float | None) for name in row["metrics"])


def test_inspect_ai_reads_the_log(finished_run, tmp_path):
    log = pytest.importorskip("inspect_ai.log")
    file = export(finished_run, tmp_path / "logs", "inspect")["run-policy"]
    read = log.read_eval_log(str(file))
    mine = read_results(str(file))
    assert (read.status, len(read.samples)) == ("success", len(mine.keys))


def test_what_cannot_be_exported_is_one_line(finished_run, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    for source, out, more, words in (
        (tmp_path, "new", [], "evaluate/verdicts.*.jsonl are missing"),
        (finished_run, "full", [], "the folder exists already"),
        (finished_run, "new", ["--keep-weakest"], "leave the filters out"),
    ):
        assert run_command(["export", str(source), "--to", "inspect", "--out", str(tmp_path / out), *more]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
        assert not (tmp_path / "new").exists()
