"""A run's arms as files of inspect-ai, lm-evaluation-harness and AlpacaEval, read back with equal figures."""

import json
import shutil
from pathlib import Path

import pytest

from charter.commands.app import run_command
from charter.comparing.results import scored_or_none
from charter.comparing.sources import read_results
from charter.records import Judgment, Response
from charter.run.files import read_jsonl, write_jsonl

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


def test_the_harness_knows_the_file_of_samples_by_its_name(finished_run, tmp_path):
    harness = pytest.importorskip("lm_eval.utils")
    file = export(finished_run, tmp_path / "logs", "lm-eval")["run-policy"]
    names = [str(path) for path in file.parent.iterdir()]
    assert harness.get_sample_results_filenames(names) == [str(file)]
    assert harness.get_file_datetime(file.name)


def annotations(finished_run, tmp_path) -> Path:
    """The annotations of a run whose judge has two wins of the base, a tie and no verdict."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    first, last = (read_jsonl(run / f"evaluate/responses.{arm}.jsonl", Response) for arm in ("base", "policy"))
    margins = [(-1.0, -2.0), (1.0, 2.0), (1.0, -1.0), (-3.0, -1.0)]
    judgments = [
        Judgment(id=f"j{n}", set_id=a.prompt_id, prompt_id=a.prompt_id, rater_id="judge", rater_kind="judge", order=(a.id, b.id),
                 ranks={a.id: 1 + (sum(m) < 0), b.id: 1 + (sum(m) > 0)}, margins_by_order=m)
        for n, (a, b, m) in enumerate(zip(first, last, margins, strict=False))
    ]  # fmt: skip
    judgments[1] = judgments[1].model_copy(update={"ranks": {}})
    write_jsonl(run / "win_rate/judgments.base.jsonl", judgments)
    assert run_command(["export", str(run), "--to", "alpaca-eval", "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out/base/annotations.json"


def test_annotations_have_the_win_rates_of_the_run(finished_run, tmp_path):
    file = annotations(finished_run, tmp_path)
    rows = json.loads(file.read_text())
    assert [row["preference"] for row in rows] == [2, None, 1.5, 2]
    assert {(row["generator_1"], row["generator_2"]) for row in rows} == {("run-base", "run-policy")}
    assert read_results(str(file)).metrics == {"win against run-base": [1, None, 0.5, 1]}


def test_alpaca_eval_counts_the_same_wins(finished_run, tmp_path):
    metrics = pytest.importorskip("alpaca_eval.metrics")
    result = metrics.get_winrate(json.loads(annotations(finished_run, tmp_path).read_text()))
    assert {name: result[name] for name in ("n_wins", "n_wins_base", "n_draws", "n_total")} == {
        "n_wins": 2, "n_wins_base": 0, "n_draws": 1, "n_total": 3,
    }  # fmt: skip
    assert result["win_rate"] == pytest.approx(100 * 2.5 / 3)


def test_what_cannot_be_exported_is_one_line(finished_run, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    for to, source, out, more, words in (
        ("inspect", tmp_path, "new", [], "evaluate/verdicts.*.jsonl are missing"),
        ("alpaca-eval", tmp_path, "new", [], "win_rate/judgments.*.jsonl are missing"),
        ("inspect", finished_run, "full", [], "the folder exists already"),
        ("lm-eval", finished_run, "new", ["--keep-weakest"], "leave the filters out"),
    ):
        assert run_command(["export", str(source), "--to", to, "--out", str(tmp_path / out), *more]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
        assert not (tmp_path / "new").exists()
