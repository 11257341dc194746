"""Win rates of the last model, read from stored judgments."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from charter.commands.app import run_command
from charter.evaluation.arms import ScoredResponse
from charter.evaluation.schema import ReportFile
from charter.evaluation.wins import outcome, win_rates
from charter.models.chat_template import encode_response
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.records import Judgment, Response
from charter.run.files import read_json, read_jsonl, write_jsonl
from charter.verification import verify_run
from conftest import write_tiny_recipe


def judged(first_as_a: float, first_as_b: float, prompt: str = "p", tie: bool = False) -> Judgment:
    """A judgment of the answers x (of the other arm) and y (of the last model)."""
    margin = (first_as_a + first_as_b) / 2
    ranks = {"x": 1, "y": 1} if tie else {"x": 1 if margin > 0 else 2, "y": 2 if margin > 0 else 1}
    return Judgment(
        id=f"{prompt}{first_as_a}{first_as_b}", set_id=prompt, prompt_id=prompt, rater_id="judge", rater_kind="judge",
        order=("x", "y"), ranks=ranks, margin=margin, margins_by_order=(first_as_a, first_as_b),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("margins", "tie", "expected"),
    [((-1.0, -2.0), False, 1.0), ((1.0, 0.5), False, 0.0), ((-3.0, 1.0), False, 0.5), ((0.0, -1.0), False, 0.5),
     ((-1.0, -2.0), True, 0.5)],
)  # fmt: skip
def test_an_answer_wins_only_where_both_orders_agree(margins, tie, expected):
    assert outcome(judged(*margins, tie=tie)) == expected


def test_a_judgment_without_a_verdict_is_a_third_value():
    assert outcome(judged(1.0, 1.0).model_copy(update={"ranks": {}, "margins_by_order": None})) is None


@pytest.fixture(scope="module")
def judged_run(tmp_path_factory, random_llama, finished_run):
    """The finished run with its answers compared, and its recipe."""
    folder = tmp_path_factory.mktemp("judged")
    shutil.copytree(finished_run, folder / "run")
    recipe = write_tiny_recipe(folder, random_llama, evaluation={"judge": "base", "best_of": 2})
    run_recipe(load_recipe(recipe), folder / "run", quiet=True)
    return folder / "run", recipe


def test_a_run_compares_its_last_model_with_every_other_arm(judged_run):
    run, _ = judged_run
    report = read_json(run / "report.json")
    ReportFile.model_validate(report)
    assert [stage["name"] for stage in report["stages"] if not stage["skipped"]] == ["evaluate", "win_rate"]
    n = (run / "evaluate/responses.base.jsonl").read_text().count("\n")
    assert [(row["a"], row["b"], row["n"] + row["n_unscored"]) for row in report["win_rates"]] == [
        ("base", "policy", n), ("sft", "policy", n), ("best_of_n", "policy", n)
    ]  # fmt: skip
    for row in report["win_rates"]:
        assert row["wins"] + row["ties"] + row["losses"] == row["n"]
        assert row["value"] == pytest.approx((row["wins"] + row["ties"] / 2) / row["n"])
        assert row["ci"][0] <= row["value"] <= row["ci"][1]
        assert not row["independent"]  # the judge gave the feedback too
    page = (run / "report.html").read_text()
    assert "Win rate of policy" in page
    assert "The same judge gave the feedback or the reward" in page


def test_an_answer_that_was_cut_off_has_no_end_token_in_any_arm(judged_run, random_llama):
    tokenizer, evaluate = AutoTokenizer.from_pretrained(random_llama), judged_run[0] / "evaluate"
    for arm in ("base", "sft", "policy", "best_of_n"):
        answers = {answer.id: answer for answer in read_jsonl(evaluate / f"responses.{arm}.jsonl", Response)}
        rows = list(read_jsonl(evaluate / f"verdicts.{arm}.jsonl", ScoredResponse))
        assert any(row.values["missing_eos"] for row in rows)
        for row in rows:
            text, cut = answers[row.response_id].text, row.values["missing_eos"]
            assert row.values["response_tokens"] == len(encode_response(tokenizer, text, end=not cut)), arm


def test_win_rates_follow_from_the_rows_and_verify_names_a_changed_one(judged_run, tmp_path):
    shutil.copytree(judged_run[0], run := tmp_path / "run")
    assert verify_run(run)["differences"] == []
    file = run / "win_rate/judgments.sft.jsonl"
    rows = list(read_jsonl(file, Judgment))
    sure = {"margins_by_order": (-1.0, -1.0), "margin": -1.0}
    write_jsonl(file, [r.model_copy(update={**sure, "ranks": dict(zip(r.order, (2, 1), strict=True))}) for r in rows])
    result = read_json(run / "win_rate/manifest.json")["result"]
    row = win_rates(run, {"win_rate": result})[1]
    assert (row["value"], row["ci"][1], row["at_equal_length"]) == (1.0, 1.0, 1.0)
    assert row["ci"][0] < 1  # wins alone leave an interval with a width (Wilson)
    assert row["ci_at_equal_length"][0] <= row["ci"][0]
    assert row["ci_at_equal_length"][1] == 1.0
    names = {row["file"] for row in verify_run(run)["differences"]}
    assert "win_rate/judgments.sft.jsonl" in names
    assert "report.json" in names


def test_the_plan_counts_the_questions(judged_run, capsys):
    _, recipe = judged_run
    reads = []
    for more in ([], ["--set", "evaluation.judge=null"]):
        assert run_command(["plan", str(recipe), "--json", *more]) == 0
        plan = json.loads(capsys.readouterr().out)
        reads.append(next(row["scored"] for row in plan["stages"] if row["stage"] == "evaluate"))
    assert reads[0] > reads[1]


def test_the_judge_is_read_by_the_protocol_that_the_recipe_fixes_without_labelled_pairs_too(tmp_path, random_llama):
    feedback = {"protocol": "yes_no", "labelled_pairs": None}
    path = write_tiny_recipe(tmp_path, random_llama, revise=None, sft=None, feedback=feedback, rl={"method": "dpo"},
                             evaluation={"judge": "base"})  # fmt: skip
    run_recipe(load_recipe(path), tmp_path / "run", quiet=True)
    assert read_json(tmp_path / "run/win_rate/manifest.json")["result"]["protocol"] == "yes_no"
