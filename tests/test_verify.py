"""`charter verify`: an untouched run is equal, and a changed byte is named."""

import json
import random
import shutil

import pytest

from charter.commands.app import run_command
from charter.effects import adjusted_for_length, equivalence, minimum_detectable
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.verification import verify_run
from conftest import write_tiny_recipe


def test_a_whole_run_verifies_after_it_was_moved_and_every_changed_byte_is_named(finished_run, tmp_path, capsys):
    run = tmp_path / "moved"
    shutil.copytree(finished_run, run)
    assert verify_run(run)["differences"] == []
    assert run_command(["verify", str(run)]) == 0
    rng, files = random.Random(0), sorted(run.glob("*/*.jsonl"))
    for _ in range(20):
        file = rng.choice(files)
        before = file.read_bytes()
        place = rng.randrange(len(before))
        file.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
        name, line = file.relative_to(run).as_posix(), before[:place].count(b"\n") + 1
        assert (name, line) in {(row["file"], row["line"]) for row in verify_run(run)["differences"]}
        file.write_bytes(before)
    report = json.loads((run / "report.json").read_text())
    report["recipe"]["evaluation"]["over_refusal_margin"] = report["margins"]["over_refusal"] = 0.9
    (run / "report.json").write_text(json.dumps(report))
    assert "recipe.evaluation.over_refusal_margin" in {row["field"] for row in verify_run(run)["differences"]}
    report = json.loads((finished_run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(report | {"better": {"harmful_compliance": "higher"}}))
    assert "better.harmful_compliance" in {row["field"] for row in verify_run(run)["differences"]}
    arms = [report["arms"][0] | {"description": "trained longest"}, *report["arms"][1:]]
    (run / "report.json").write_text(json.dumps(report | {"arms": arms}))
    assert "arms.0.description" in {row["field"] for row in verify_run(run)["differences"]}
    (run / "report.json").write_text(json.dumps(report | {"arms": arms[:-1]}))
    assert "arms" in {row["field"] for row in verify_run(run)["differences"]}
    for key in ("better", "contrasts", "gates", "margins", "metrics", "primary", "provenance", "recipe", "verdict"):
        (run / "report.json").write_text(json.dumps(report | {key: 5}))
        assert [row["words"] for row in verify_run(run)["differences"]] == ["not a valid report; charter run writes it again"]
    (run / "report.json").write_text(json.dumps(report))
    (run / "sft" / "more.txt").write_text("x")
    assert run_command(["verify", str(run)]) == 1
    assert "sft/more.txt: not in the manifest" in capsys.readouterr().out


def test_measures_verify_in_their_order_and_the_scorer_is_that_of_the_evaluation(finished_run, random_llama, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    measures = {name: {"source": f"python:operator:{name}", "better": "higher"} for name in ("ne", "contains", "eq")}
    recipe = write_tiny_recipe(tmp_path, random_llama)  # which sorts keys
    run_recipe(load_recipe(recipe, changes={"evaluation.measures": measures}), run, quiet=True)
    assert verify_run(run)["differences"] == []
    words = (run / "report.json").read_text()
    (run / "report.json").write_text(words.replace('"scorer": "refusal-words (', '"scorer": "a careful judge ('))
    assert "metrics.0.scorer" in {row["field"] for row in verify_run(run)["differences"]}
    (run / "report.json").write_text(json.dumps(json.loads(words) | {"metrics": []}))
    assert "metrics" in {row["field"] for row in verify_run(run)["differences"]}


def test_the_first_measure_decides_also_where_only_the_order_of_the_measures_changed(random_llama, tmp_path):
    for names in (("ne", "eq"), ("eq", "ne")):
        measures = {name: {"source": f"python:operator:{name}", "better": "higher"} for name in names}
        recipe = write_tiny_recipe(tmp_path, random_llama, revise=None, sft=None, rl={"method": "dpo"})
        changes = {"evaluation.measures": measures, "evaluation.scorer": None}
        report = run_recipe(load_recipe(recipe, changes=changes), tmp_path / "run", quiet=True)
        assert report["primary"]["name"] == names[0]
        assert [row["name"] for row in report["contrasts"] if row["primary"]] == [names[0]]


def test_a_folder_without_a_report_is_bad_input(tmp_path):
    assert run_command(["verify", str(tmp_path)]) == 2


def test_length_adjusted_difference_is_the_value_of_the_line_at_equal_length():
    # differences 1, 2, 3 at doublings -1, 0, 1: 2 at equal length, 1 for each doubling
    result = adjusted_for_length([0.0] * 3, [1.0, 2.0, 3.0], [2, 2, 2], [1, 2, 4])
    assert (result.difference, result.per_doubling) == pytest.approx((2.0, 1.0))


def test_equivalence_needs_the_ninety_percent_interval_inside_the_margin():
    assert not equivalence([False] * 6, [False] * 6, 0.05).equivalent
    assert equivalence([False] * 400, [False] * 400, 0.05).equivalent


def test_the_minimum_detectable_difference_is_2_8_standard_errors():
    assert minimum_detectable((-1.959964, 1.959964)) == pytest.approx(2.8016, abs=1e-3)
