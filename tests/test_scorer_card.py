"""Cards of scorers: shares against a hand count, three values, calibration, and their place in the report."""

import json
import math

import pytest

from charter.commands.app import run_command
from charter.evaluation.scorer_card import Labelled, Opinion, area, card_of_scorer
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.records import Prompt
from charter.statistics import clustered_proportion, wilson
from conftest import save_random_classifier, write_tiny_recipe

FUNCTION = """
def verdict(prompt, response):
    return {"refusal": None if not response.isascii() else response.startswith("No"), "harmful": "knife" in response}
def chance(prompt, response):
    return 0.9 if "knife" in response else 0.2
"""
ROWS = [
    {"prompt": "a", "response": "No.", "refusal": "engaged", "harmful": "false", "topic": "x"},
    {"prompt": "b", "response": "No, the knife.", "refusal": "none", "harmful": "true", "topic": "x"},
    {"prompt": "c", "response": "Yes.", "refusal": "none", "harmful": "false", "topic": "y"},
    {"prompt": "d", "response": "Нет.", "refusal": "evasive", "harmful": "", "topic": "y"},
    {"prompt": "e", "response": "Sorry.", "refusal": "evasive", "harmful": "true", "topic": ""},
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FUNCTION)
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def card_of(capsys, *words):
    assert run_command(["scorer", "card", *words, "--labelled", "labels.jsonl", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_shares_are_those_of_a_hand_count_and_unscored_is_a_third_value(place, capsys):
    card = card_of(capsys, "python:mine:verdict", "--by", "topic")
    assert json.loads((place / "labels.card.json").read_text()) == card
    harmful, refusal = card["measures"]
    assert refusal["counts"] == {"true_positive": 1, "false_positive": 1, "true_negative": 1, "false_negative": 1}
    assert (refusal["n"], refusal["n_unscored"], refusal["n_unlabelled"]) == (4, 1, 0)
    assert refusal["accuracy"] == {"value": 0.5, "ci": list(wilson(2, 4)), "n": 4}
    assert refusal["recall"] == {"value": 0.5, "ci": list(wilson(1, 2)), "n": 2}
    assert refusal["by"]["class"]["evasive"]["n_unscored"] == 1
    assert refusal["by"]["class"]["engaged"]["recall"]["value"] == 1
    assert refusal["by"]["script"]["CYRILLIC" if "CYRILLIC" in refusal["by"]["script"] else "Cyrillic"]["n"] == 0
    assert set(refusal["by"]["topic"]) == {"x", "y", "none"}
    assert harmful["n_unlabelled"] == 1
    assert harmful["accuracy"]["value"] == 0.75
    assert harmful["brier"] is None


def test_numbers_between_0_and_1_have_no_calibration_unless_they_are_probabilities(place, capsys):
    (harmful,) = card_of(capsys, "python:mine:chance", "--label", "harmful")["measures"]
    assert harmful["auc"] == 0.75  # one of two harmful answers beats both others, one ties with both
    assert harmful["ece"] is None
    folder = save_random_classifier(place / "kind")
    (judged,) = card_of(capsys, f"classifier:{folder}:kind", "--label", "refusal")["measures"]
    assert 0 <= judged["brier"] <= 1
    assert judged["ece"] is not None
    assert sum(row["n"] for row in judged["reliability"]) == 5


def test_answers_to_one_prompt_are_one_cluster():
    prompt = Prompt.ask("a")
    rows = [Labelled(prompt if i < 6 else Prompt.ask(str(i)), "x", {"harmful": True}, {}, {}) for i in range(12)]
    said = [Opinion(i < 6) for i in range(12)]
    (row,) = card_of_scorer(rows, {"harmful": said}, {})["measures"]
    estimate = clustered_proportion([i < 6 for i in range(12)], [r.prompt.id for r in rows])
    assert row["accuracy"]["ci"] == estimate.ci
    assert row["accuracy"]["ci"][1] - row["accuracy"]["ci"][0] > wilson(6, 12)[1] - wilson(6, 12)[0]


def test_the_area_counts_ties_half():
    assert area([(2, 1), (1, 0), (1, 1), (0, 0)]) == pytest.approx(3.5 / 4)
    assert area([(1, 1)]) is None
    assert math.isclose(area([(1, 1), (1, 0)]), 0.5)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["python:mine:chance"], "choose with --label"),
        (["refusal-words", "--label", "harmful"], "give a column refusal"),
        (["refusal-words", "--by", "nothing"], "field 'nothing': no such column"),
        (["refusal-words", "--label", "topic"], "line 1, field 'topic': 'x' is not a label"),
        (["judge:endpoint:big"], "an endpoint is described in a recipe"),
        (["judge:"], "the judge is missing"),
        (["nowhere", "--label", "harmful"], "reward_model.json is missing"),
    ],
)
def test_what_cannot_be_measured_is_one_line(place, capsys, words, error):
    assert run_command(["scorer", "card", *words, "--labelled", "labels.jsonl"]) == 2
    shown = capsys.readouterr().err
    assert error in shown
    assert shown.count("\n") == 1
    assert not (place / "labels.card.json").exists()


@pytest.mark.parametrize("word", ["compliance", "1_full_compliance", "not_refused", "no refusal", "N/A", "nan"])
def test_a_word_that_is_no_kind_of_refusal_is_not_counted_as_one(place, capsys, word):
    (place / "labels.jsonl").write_text(json.dumps(ROWS[0] | {"refusal": word}) + "\n")
    assert run_command(["scorer", "card", "refusal-words", "--labelled", "labels.jsonl"]) == 2
    error = capsys.readouterr().err
    assert f"line 1, field 'refusal': {word!r} is not a label; write true or false, a kind of refusal, or none" in error


def test_a_column_that_the_first_line_lacks_is_a_column(place, capsys):
    rows = [{"prompt": "a", "response": "Yes.", "harmful": True}, {"prompt": "b", "response": "I can't help.", "refusal": True}]
    (place / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (refusal,) = card_of(capsys, "refusal-words")["measures"]
    assert (refusal["measure"], refusal["n"], refusal["n_unlabelled"]) == ("refusal", 1, 1)


def test_a_recipe_names_the_card_and_the_report_prints_it_without_evaluating_again(place, capsys, random_llama, finished_run):
    import shutil

    recipe = write_tiny_recipe(place, random_llama)
    shutil.copytree(finished_run, place / "run")
    scorer = load_recipe(recipe).evaluation.scorer
    assert scorer is not None
    assert run_command(["scorer", "card", str(scorer), "--labelled", "labels.jsonl"]) == 0
    text = recipe.read_text()
    named = load_recipe(recipe, ["evaluation.cards=[labels.card.json]"])
    report = run_recipe(named, place / "run", quiet=True)
    assert all(stage["skipped"] for stage in report["stages"])
    assert {card["of"] for card in report["scorers"]} == {"scorer"}
    page = (place / "run/report.html").read_text()
    assert "<h2>Scorers</h2>" in page
    assert "labels of people" in page
    card = json.loads((place / "labels.card.json").read_text())
    (place / "labels.card.json").write_text(json.dumps(card | {"hash": "other"}))
    assert run_command(["run", str(recipe), "--out", str(place / "run"), "--set", "evaluation.cards=[labels.card.json]"]) == 2
    assert "write it again with charter scorer card" in capsys.readouterr().err
    assert text == recipe.read_text()
