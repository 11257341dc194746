"""charter.run and charter.load: the report of a run as an object, and the notebook that shows it."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import charter
from charter.errors import InputError
from conftest import write_tiny_recipe

NOTEBOOK = Path(__file__).parents[1] / "examples/from_python.ipynb"


def test_the_report_of_a_run_has_the_figures_of_its_files(finished_run):
    run = charter.load(finished_run)
    with (finished_run / "metrics.csv").open() as file:
        written = {(row["name"], row["arm"], row["group"]): row["value"] for row in csv.DictReader(file)}
    loaded = {(row["name"], row["model"], row["group"] or ""): row["value"] for row in run.rows}
    assert {key: "" if value is None else str(value) for key, value in loaded.items()} == written
    assert len(run.tables["contrasts"]) == len(run.contrasts) > 0
    contrast, flat = run.contrasts[0], run.tables["contrasts"][0]
    assert [flat["ci_low"], flat["ci_high"]] == contrast["ci"]
    assert [flat["only_a"], flat["only_b"]] == contrast["discordant"]
    assert run.as_dict() == json.loads((finished_run / "report.json").read_text())
    assert run.page.is_file()
    assert f"verdict: {run.verdict} ({run.reason})" in str(run)
    assert "harmful_compliance" in str(run)


def test_a_notebook_shows_verdict_figures_and_contrasts_and_escapes_them(finished_run):
    report = json.loads((finished_run / "report.json").read_text())
    run = type(charter.load(finished_run))(finished_run, {**report, "title": "<script>alert(1)</script>"})
    html = run._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script" not in html
    assert html.count("<table>") == 2
    assert run.verdict in html


def test_tables_as_data_frames_and_csv(finished_run, tmp_path):
    pytest.importorskip("pandas")
    run = charter.load(finished_run)
    assert list(run.to_pandas()["name"]) == [metric.name for metric in run.metrics]
    assert len(run.to_pandas("contrasts")) == len(run.contrasts)
    run.write_csv(tmp_path / "contrasts.csv", "contrasts")
    assert (tmp_path / "contrasts.csv").read_text().startswith("name,a,b,group,n,n_unscored,difference,ci_low,ci_high,p,")
    with pytest.raises(InputError, match="unknown table 'ranks'; the tables are metrics, contrasts"):
        run.to_pandas("ranks")


def test_changes_are_settings(tmp_path, random_llama):
    recipe = write_tiny_recipe(tmp_path, random_llama)
    changes = {"seed": 4, "rl__steps": 2, "sft": {"epochs": 2}, "evaluation.max_new_tokens": 5}
    changes["evaluation.measures.a__b"] = {"source": "python:math:floor", "better": "higher"}
    run = charter.run(recipe, out=tmp_path / "run", until="prompts", **changes)
    settings = run.report["recipe"]
    assert (settings["seed"], settings["rl"]["steps"], settings["rl"]["prompts_per_step"]) == (4, 2, 4)
    assert (settings["sft"]["epochs"], settings["sft"]["helpful_fraction"]) == (2, 0.4)  # the section is replaced
    assert settings["evaluation"]["max_new_tokens"] == 5
    assert list(settings["evaluation"]["measures"]) == ["a__b"]
    assert (run.metrics, run.rows, run.contrasts) == ([], [], [])
    assert run.folder == tmp_path / "run"
    assert "<table>" not in run._repr_html_()


def test_what_is_wrong_is_said_in_a_line(tmp_path, random_llama):
    recipe = write_tiny_recipe(tmp_path, random_llama)
    with pytest.raises(InputError, match=r"field 'rl\.stepz': unknown key; did you mean 'steps'"):
        charter.run(recipe, out=tmp_path / "run", rl__stepz=2)
    with pytest.raises(InputError, match=r"no report\.json; give the folder of a run"):
        charter.load(tmp_path)
    (tmp_path / "report.json").write_text('{"metrics": [{"name": "x", "arm": "base", "n": "many"}]}')
    with pytest.raises(InputError, match="a metric that cannot be read"):
        charter.load(tmp_path).metrics  # noqa: B018
    assert not (tmp_path / "run").exists()


def test_the_function_stays_callable_when_the_room_of_its_name_is_imported():
    script = (
        "import charter, charter.run.files\n"
        "from charter.errors import InputError\n"
        "try: charter.run('nowhere')\n"
        "except InputError as error: print(error)"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("no recipe 'nowhere'")


def test_the_notebook_runs(tmp_path, monkeypatch):
    pytest.importorskip("pandas")
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    names: dict = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert (tmp_path / "compare.html").is_file()
    assert {"response_tokens", "over_refusal"} <= {contrast.name for contrast in names["comparison"].contrasts}
    assert names["evaluation"].page.is_file()
    shutil.rmtree(tmp_path / "run")
