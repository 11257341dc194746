"""From votes to ratings, from ratings to a reward model, from a reward model to scores: one file from each step to the next."""

import csv
import json

import pytest
import torch
import yaml

from charter.commands.app import run_command
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.heads import Scorers, ScoreScale
from charter.models.packing import Tokens
from charter.models.reward_trunk import load_reward_model
from charter.models.trunk import load_trunk
from charter.pipeline import run_recipe
from charter.reading.ratings import read_ratings
from charter.recipe.files import load_recipe
from charter.recipe.settings import LoRASettings
from charter.records import Generation, Judgment, Message, Prompt, Response
from charter.run.files import read_json, read_jsonl, write_jsonl
from charter.training.methods.reward_model import reward_scores
from charter.votes.exchange import read_scores
from conftest import write_tiny_recipe
from feedback_folder import chain

WORDS = ("Gladly", "Maybe", "No")


@pytest.fixture
def voted(tmp_path):
    """A folder of feedback: twelve prompts, three responses to each, ranked by three raters in the order of WORDS."""
    prompts = [Prompt.ask(f"Lamp {n}?") for n in range(11)]
    prompts.append(Prompt(messages=(Message(role="user", content="Lamp?"), Message(role="assistant", content="Which?"),
                                    Message(role="user", content="The red one."))))  # fmt: skip
    responses, judgments = [], []
    for prompt in prompts:
        three = [Response(prompt_id=prompt.id, model=word, text=f"{word}, lamp.", finish_reason="stop",
                          generation=Generation(seed=0, temperature=1.0)) for word in WORDS]  # fmt: skip
        responses += three
        judgments += [
            Judgment(id=f"{prompt.id}{rater}", set_id=prompt.id, prompt_id=prompt.id, rater_id=rater, rater_kind="human",
                     order=tuple(r.id for r in three), ranks={r.id: place for place, r in enumerate(three, start=1)})
            for rater in ("ann", "bob", "eve")
        ]  # fmt: skip
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    write_jsonl(tmp_path / "responses.jsonl", responses)
    write_jsonl(tmp_path / "judgments.jsonl", chain(judgments))
    return tmp_path


def test_the_ratings_of_responses_train_a_reward_model_in_one_step(voted, random_llama, capsys):
    assert run_command(["ratings", str(voted), "--of", "responses", "--out", str(voted / "out")]) == 0
    file = voted / "out/ratings.csv"
    assert f"next: charter reward train {file} --loss squared" in capsys.readouterr().out
    ratings = read_ratings(file).ratings
    assert len(ratings) == 36
    assert [m.content for m in ratings[-1].prompt.messages] == ["Lamp?", "Which?", "The red one."]
    by_text = {rating.response: rating.score for rating in ratings[:3]}
    assert sorted(by_text, key=by_text.__getitem__) == ["No, lamp.", "Maybe, lamp.", "Gladly, lamp."]
    assert sum(by_text.values()) == pytest.approx(0)
    responses = read_jsonl(voted / "responses.jsonl", Response)
    assert set(read_scores(file)) == {response.id for response in responses}  # it gives the labels of an export, too
    arguments = ["reward", "train", str(file), "--loss", "squared", "--out", str(voted / "reward"), "--model", str(random_llama)]
    assert run_command([*arguments, "--epochs", "6", "--learning-rate", "0.003", "--per-step", "6", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["train_ratings"] + metrics["n"] == 36
    assert metrics["spearman"] > 0.8


def test_ids_are_not_trained_on(voted, capsys):
    (voted / "prompts.jsonl").rename(voted / "away.jsonl")
    assert run_command(["ratings", str(voted), "--of", "responses", "--out", str(voted / "out")]) == 0
    assert "ids and no texts, so no reward model can be trained on it" in capsys.readouterr().out
    file, out = voted / "out/ratings.csv", str(voted / "o")
    assert run_command(["reward", "train", str(file), "--loss", "squared", "--out", out]) == 2
    assert "run charter ratings where prompts.jsonl and responses.jsonl lie" in capsys.readouterr().err
    file.write_text(file.read_text().replace("prompt_id", "prompt").replace("response_id", "response"))
    assert run_command(["reward", "train", str(file), "--loss", "squared", "--out", out]) == 2
    error = capsys.readouterr().err
    assert "line 2, field 'response': prompt and response are ids and not texts" in error
    assert error.count("\n") == 1
    assert not (voted / "o/train/model").exists()
    named = ["ratings", str(voted), "--of", "responses", "--out", str(voted / "out"), "--prompts", str(voted / "away.jsonl")]
    assert run_command(named) == 0
    assert len(read_ratings(file).ratings) == 36


def test_a_missing_text_and_the_wrong_loss_are_named(voted, capsys):
    lines = (voted / "responses.jsonl").read_text().splitlines(keepends=True)
    (voted / "responses.jsonl").write_text("".join(lines[1:]))
    assert run_command(["ratings", str(voted), "--of", "responses", "--out", str(voted / "out")]) == 0
    assert "was rated and is missing" in capsys.readouterr().out
    assert run_command(["ratings", str(voted), "--prompts", str(voted)]) == 2
    assert "--of responses and --out" in capsys.readouterr().err
    (voted / "r.csv").write_text("prompt,response,rating\nLamp?,Yes.,1\n")
    assert run_command(["reward", "train", str(voted / "r.csv"), "--out", str(voted / "o")]) == 2
    assert "these are ratings: train on them with --loss squared" in capsys.readouterr().err


@pytest.fixture
def reward(tmp_path, random_llama):
    """A reward model with a head of random weights, and an ensemble of two adapters."""
    for name, lora in (("one", None), ("two", LoRASettings(rank=2))):
        trunk = load_trunk(str(random_llama), lora=lora)
        roles = ("reward",) if lora is None else ("reward", "reward_2")
        for role in roles:
            trunk.add_role(role, head=True)
            torch.manual_seed(len(role))
            trunk.heads[role].weight.data.normal_()
        scales = tuple(ScoreScale(0.5, 2.0) for _ in roles)
        trunk.save_scorers(Scorers(roles, scales, "worst" if lora else "mean"), tmp_path / name)
    return tmp_path


def score(reward, rows, *, model="one", out="s.jsonl"):
    file = reward / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["reward", "score", str(file), "--model", str(reward / model), "--out", str(reward / out)]
    return run_command([*arguments, "--precision", "float32", "--json"])


@pytest.mark.parametrize("model", ["one", "two"])
def test_scores_are_those_of_the_reward_model_and_rows_stay(reward, model, capsys):
    rows = [{"prompt": f"Lamp {n}?", "response": word, "rating": n, "mine": [n]} for n in range(3) for word in WORDS]
    assert score(reward, rows, model=model) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["kind"], result["rows"], result["scored"], result["left_out"]) == ("responses", 9, 9, {})
    assert -1 <= result["spearman"] <= 1
    written = [json.loads(line) for line in (reward / "s.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in rows[0]} for row in written] == rows
    trunk, scorers = load_reward_model(reward / model)
    alone = [
        Tokens(
            encode_prompt(trunk.tokenizer, Prompt.ask(row["prompt"]).messages), encode_response(trunk.tokenizer, row["response"])
        )
        for row in rows
    ]
    assert [row["reward"] for row in written] == pytest.approx(reward_scores(trunk, scorers, alone, 64).tolist(), abs=1e-4)
    assert len({row["reward"] for row in written}) > 3


def test_pairs_are_scored_by_the_labels_they_have_and_none_is_dropped(reward, capsys):
    rows = [{"prompt": f"Lamp {n}?", "chosen": "Gladly", "rejected": "No"} for n in range(4)]
    same = {"prompt": "Lamp?", "chosen": "No", "rejected": "No"}
    assert score(reward, [*rows, same], out="s.csv") == 0
    first = json.loads(capsys.readouterr().out)
    assert first["left_out"] == {"chosen and rejected are identical": 1}
    with open(reward / "s.csv", encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == 5
    assert written[4]["reward_chosen"] == ""
    better = [float(row["reward_chosen"]) > float(row["reward_rejected"]) for row in written[:4]]
    assert first["accuracy"] == sum(better) / 4
    # A probability below a half says that the rejected one is the better one; the columns stay what they are.
    assert score(reward, [row | {"p": 0.2} for row in rows]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1 - sum(better) / 4
    again = [json.loads(line) for line in (reward / "s.jsonl").read_text().splitlines()]
    assert [row["reward_chosen"] for row in again] == pytest.approx(
        [float(row["reward_chosen"]) for row in written[:4]], abs=1e-5
    )


@pytest.mark.parametrize("tie", [{"p": 0.5}, {"weight": 0.5}, {"score_chosen": 8.0, "score_rejected": 8.0}])
def test_a_tie_is_scored_and_is_neither_right_nor_wrong(reward, capsys, tie):
    row = {"prompt": "Lamp?", "chosen": "Gladly", "rejected": "No"}
    assert score(reward, [row | tie]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["scored"], result["accuracy"], result["n"], result["ties"]) == (1, None, 0, 1)
    assert score(reward, [row, row | {"prompt": "Bulb?"} | tie]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["scored"], result["n"], result["ties"]) == (2, 1, 1)


def test_a_response_without_its_prompt_keeps_its_row_and_is_counted(reward, capsys):
    assert score(reward, [{"prompt": "Lamp?", "response": "No"}, {"prompt": "", "response": "No"}]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["scored"], result["left_out"]) == (2, 1, {"the prompt is missing": 1})


@pytest.mark.parametrize(
    ("rows", "more", "words"),
    [
        ([{"prompt": "Lamp?", "response": "No", "reward": 1}], {}, "this column already exists; rename it"),
        (
            [{"prompt": "Lamp?"}],
            {},
            "field 'response': missing; name the columns prompt and response, or prompt, chosen and rejected",
        ),
        ([{"prompt": "", "response": "No"}], {}, "nothing to score (1 x the prompt is missing)"),
        ([{"prompt": "Lamp?", "chosen": "No", "rejected": "No"}], {}, "nothing to score (1 x chosen and rejected"),
        ([{"prompt": "Lamp?", "response": "No"}], {"out": "s.txt"}, "unknown suffix '.txt'"),
        ([{"prompt": "Lamp?", "response": "No"}], {"model": "none"}, "reward_model.json is missing"),
        ([{"prompt": "ab" * 8, "response": "cd" * 8}], {}, "are ids and not texts"),
    ],
)
def test_what_cannot_be_scored_is_one_line(reward, rows, more, words, capsys):
    assert score(reward, rows, **more) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(reward.glob("s.*"))


def test_ties_of_labelled_pairs_measure_neither_judge_nor_reward_model(tmp_path, random_llama):
    """A tie has no better answer, so it is no part of an accuracy in a run either."""
    recipe = write_tiny_recipe(tmp_path, random_llama, revise=None, sft=None, rl=None, evaluation=None)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    ties = [row | {"prompt": f"Tied {n}?", "p": 0.5} for n, row in enumerate(rows)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ties, *rows]))
    run_recipe(load_recipe(recipe), tmp_path / "run", quiet=True)
    judge = read_json(tmp_path / "run/feedback/manifest.json")["result"]["judge"]
    assert sum(row["n"] for row in judge["groups"].values()) < 12  # of half of the pairs with a verdict
    assert read_json(tmp_path / "run/reward_model/manifest.json")["result"]["labelled"]["n"] == 12


def test_ties_of_pairs_do_not_measure_the_reward_model_that_learns_from_them(tmp_path, random_llama):
    rows = [{"prompt": f"Lamp {n}?", "chosen": "No.", "rejected": f"Yes {n}.", "p": 0.5 if n % 2 else 1} for n in range(40)]
    (tmp_path / "tied.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    feedback = {"pairs": ["tied.jsonl"]}
    recipe = write_tiny_recipe(tmp_path, random_llama, revise=None, sft=None, rl=None, evaluation=None, prompts=None)
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"feedback": feedback}))
    run_recipe(load_recipe(recipe), tmp_path / "run", quiet=True)
    result = read_json(tmp_path / "run/reward_model/manifest.json")["result"]
    assert result["ties"] > 0
    assert result["n"] + result["ties"] + result["train_pairs"] == 40


def test_a_response_without_a_rating_does_not_hide_the_correlation_of_the_others(reward, capsys):
    rows = [{"prompt": f"Lamp {n}?", "response": word, "rating": n} for n, word in enumerate((*WORDS, "Yes"))]
    assert score(reward, rows) == 0
    alone = json.loads(capsys.readouterr().out)
    assert score(reward, [*rows, {"prompt": "Bulb?", "response": "No", "rating": None}]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["scored"], result["n"], result["spearman"]) == (5, 4, alone["spearman"])
    assert score(reward, [{"prompt": "Bulb?", "response": "No"}]) == 0
    assert "spearman" not in json.loads(capsys.readouterr().out)
