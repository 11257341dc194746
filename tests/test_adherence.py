"""Whether an answer follows its principle, by a judge that is asked about each answer alone."""

import json
import math
import shutil

import hypothesis.strategies as st
import pytest
from hypothesis import given

from charter.commands.app import run_command
from charter.constitution.constitution import Constitution, Principle
from charter.evaluation.schema import ReportFile
from charter.judging.adherence import CONTENT_FREE, adherence, adherence_hash, askable
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.records import Prompt
from charter.run.files import read_json
from charter.verification import verify_run
from conftest import write_tiny_recipe

PRINCIPLES = Constitution(title="three", principles=(
    Principle(id="calm", title="calm", preference="Which is calmer?", question="Is it rude?", tags=["red_team"]),
    Principle(id="kind", title="kind", preference="Which is kinder?"),
    Principle(id="short", title="short", preference="Which?", criteria=(
        {"criterion": "Is it short?", "points": 3}, {"criterion": "Is it rude?", "points": -1})),
    Principle(id="silent", title="silent", critique="Is it loud?", revision="Write it again."),
))  # fmt: skip
ASKED = askable(PRINCIPLES)


class Reader:
    """A judge whose log odds of a Yes are those of the last reply, and ``bias`` whatever it reads."""

    name = "reader"

    def __init__(self, bias=0.0):
        self.bias, self.odds = bias, {CONTENT_FREE: 0.0, "curse": 2.0, "dear": -1.0, "?": math.nan}

    def option_logprobs(self, conversations, options):
        assert set(options) == {("Yes", "No")}
        assert all(turns[-2].role == "assistant" for turns in conversations)
        return [[self.odds[turns[-2].content] + self.bias, 0.0] for turns in conversations]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def prompts_of(*principles, tags=()):
    return [Prompt.ask("How do I rest?", principle=principle, tags=tags) for principle in principles]


def test_the_probability_of_the_good_answer():
    rows = adherence(Reader(), ASKED, prompts_of("calm", "kind", "kind", "calm"), ["curse", "curse", "dear", "?"])
    assert rows == {0: pytest.approx(sigmoid(-2)), 1: pytest.approx(sigmoid(2)), 2: pytest.approx(sigmoid(-1)), 3: None}


def test_points_of_criteria_are_a_share_of_all_that_an_answer_could_get():
    rows = adherence(Reader(), ASKED, prompts_of("short"), ["curse"])
    assert rows == {0: pytest.approx((3 * sigmoid(2) + 1 * sigmoid(-2)) / 4)}


def test_rows_without_a_principle_that_can_be_asked_have_no_value():
    assert adherence(Reader(), ASKED, prompts_of(None, "silent", "unknown", "kind"), ["dear"] * 4).keys() == {3}
    assert adherence(Reader(), ASKED, [], []) == {}
    assert adherence(Reader(), ASKED, prompts_of("calm", "kind", tags=["benign"]), ["dear"] * 2).keys() == {1}


@given(bias=st.floats(-20, 20), texts=st.lists(st.sampled_from(["curse", "dear", "?"]), max_size=4))
def test_a_judge_that_likes_a_word_says_the_same(bias, texts):
    prompts = prompts_of(*["calm", "kind", "short", "kind"][: len(texts)])
    plain, biased = (adherence(Reader(b), ASKED, prompts, texts) for b in (0.0, bias))
    assert biased == {i: value if value is None else pytest.approx(value) for i, value in plain.items()}
    assert all(0 <= value <= 1 for value in plain.values() if value is not None)


def test_the_hash_follows_the_questions():
    other = PRINCIPLES.principles[0].model_copy(update={"good_answer": "yes"})
    changed = PRINCIPLES.model_copy(update={"principles": (other, *PRINCIPLES.principles[1:])})
    retitled = PRINCIPLES.model_copy(update={"title": "other"})
    assert adherence_hash(askable(changed)) != adherence_hash(ASKED) == adherence_hash(askable(retitled))


@pytest.fixture(scope="module")
def asked_run(tmp_path_factory, random_llama, finished_run):
    """The finished run with its answers judged by their principle, and its recipe."""
    folder = tmp_path_factory.mktemp("asked")
    shutil.copytree(finished_run, folder / "run")
    recipe = write_tiny_recipe(folder, random_llama, evaluation={"adherence": "base", "samples_per_prompt": 2})
    run_recipe(load_recipe(recipe), folder / "run", quiet=True)
    return folder / "run", recipe


def test_the_report_shows_adherence_of_every_arm_by_principle_beside_harm(asked_run):
    report = read_json(asked_run[0] / "report.json")
    ReportFile.model_validate(report)
    assert report["adherence"] == {"judge": "base", "independent": False}
    rows = {(row["arm"], row["group"]): row for row in report["metrics"] if row["name"] == "principle_adherence"}
    harm = {(row["arm"], row["group"]): row for row in report["metrics"] if row["name"] == "harmful_compliance"}
    assert rows.keys() == {(arm, group) for arm in ("base", "sft", "policy") for group in (None, "harmless")}
    for place, row in rows.items():
        assert row["ci"][0] < row["value"] < row["ci"][1]
        assert (row["n"], row["n_unscored"]) == (harm["base", None]["n"], 0), place
    rows_of_policy = (asked_run[0] / "evaluate/verdicts.policy.jsonl").read_text().splitlines()
    values = [json.loads(line)["values"] for line in rows_of_policy]
    scored = [row["principle_adherence"] for row in values if "principle_adherence" in row]
    assert rows["policy", "harmless"]["value"] == pytest.approx(sum(scored) / len(scored))
    change = next(c for c in report["contrasts"] if (c["name"], c["a"], c["b"], c["group"])
                  == ("principle_adherence", "base", "policy", "harmless"))  # fmt: skip
    assert change["difference"] == pytest.approx(rows["policy", None]["value"] - rows["base", None]["value"])
    reason = "left out: prompt without a principle: no adherence"
    assert {"stage": "evaluate", "reason": reason, "n": (len(values) - len(scored)) // 2} in report["left_out"]
    page = (asked_run[0] / "report.html").read_text()
    assert "Adherence by principle" in page
    assert "its adherence is not independent of that training" in page
    assert "No question about a single answer: harm." in page


def test_verify_recomputes_adherence_from_the_stored_rows(asked_run, tmp_path):
    shutil.copytree(asked_run[0], run := tmp_path / "run")
    assert verify_run(run)["differences"] == []
    file = run / "evaluate/verdicts.policy.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    place = next(i for i, row in enumerate(lines) if "principle_adherence" in row["values"])
    lines[place]["values"]["principle_adherence"] = 0.99
    file.write_text("".join(json.dumps(row) + "\n" for row in lines))
    fields = {row["field"] for row in verify_run(run)["differences"] if row["file"] == "report.json"}
    assert any(field.startswith("metrics") for field in fields)
    assert any(field.startswith("contrasts") for field in fields)


def test_the_plan_counts_the_questions_and_needs_a_constitution(asked_run, capsys):
    reads = []
    for more in ([], ["--set", "evaluation.adherence=null"]):
        assert run_command(["plan", str(asked_run[1]), "--json", *more]) == 0
        plan = json.loads(capsys.readouterr().out)
        reads.append(next(row["scored"] for row in plan["stages"] if row["stage"] == "evaluate"))
    assert reads[0] > reads[1]
    without = ["--set", "constitution=null", "--set", "revise=null", "--set", "feedback=null", "--set", "rl=null"]
    assert run_command(["plan", str(asked_run[1]), *without, "--set", "sft=null"]) == 2
    assert "evaluation.adherence asks about principles; give constitution" in capsys.readouterr().err
