"""charter ratings, agreement and raters from the command line, good input and bad."""

import json

import numpy as np
import pytest

from charter.commands.app import run_command
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.heads import Scorers, ScoreScale
from charter.models.packing import Tokens
from charter.models.reward_trunk import load_reward_model
from charter.models.trunk import load_trunk
from charter.records import Generation, Judgment, LabelSet, Prompt, Response
from charter.run.files import write_jsonl
from charter.training.methods.reward_model import score_rows
from charter.votes.judgments import ulid
from feedback_folder import chain
from test_raters import campaign


@pytest.fixture
def votes(tmp_path):
    """A folder with judgments of 20 raters and responses of four models, the first the best."""
    judgments = campaign(0, prompts=120, k=4)
    rows = {one: Response(id=one, prompt_id=j.prompt_id, model=f"model-{one[-1]}", text="t", finish_reason="stop",
                          generation=Generation(seed=0, temperature=1.0)) for j in judgments for one in j.order}  # fmt: skip
    write_jsonl(tmp_path / "responses.jsonl", rows.values())
    write_jsonl(tmp_path / "judgments.jsonl", chain(judgments))
    return tmp_path


def test_ratings_from_a_folder(votes, capsys):
    assert run_command(["ratings", str(votes), "--out", str(votes / "out")]) == 0
    text = capsys.readouterr().out
    assert "2,880 comparisons from 480 judgments by 20 raters on 120 prompts" in text
    assert "clustered by prompt and by rater" in text
    assert "votes that decide the top" in text
    result = json.loads((votes / "out/ratings.json").read_text())
    assert len(result["models"]) == 4
    assert np.mean([row["rating"] for row in result["models"]]) == pytest.approx(1000)
    assert (votes / "out/ratings.png").read_bytes().startswith(b"\x89PNG")
    assert len((votes / "out/ratings.csv").read_text().splitlines()) == 5


def test_votes_on_sets_that_are_no_work_are_left_out_and_counted(tmp_path, capsys):
    """Two people prefer the first of two answers; each also votes on a set for practice, a quiz, gold and a repeat."""
    prompts = [Prompt(messages=({"role": "user", "content": f"prompt {i}"},)) for i in range(8)]
    responses, sets, judgments = [], [], []
    for i, prompt in enumerate(prompts):
        pair = [Response(prompt_id=prompt.id, model=name, text=f"{name} {i}", finish_reason="stop",
                         generation=Generation(seed=0, temperature=1.0)) for name in ("m", "n")]  # fmt: skip
        role = ("work", "work", "work", "work", "practice", "quiz", "gold", "repeat")[i]
        sets.append(LabelSet(prompt_id=prompt.id, kind="pair", response_ids=tuple(one.id for one in pair), role=role,
                             gold={pair[0].id: 1, pair[1].id: 2} if role in ("quiz", "gold") else None))  # fmt: skip
        responses += pair
        first, second = (one.id for one in pair)
        ranks = {first: 1, second: 2} if role == "work" else {first: 2, second: 1}
        judgments += [Judgment(id=ulid(), set_id=sets[-1].id, prompt_id=prompt.id, rater_id=who, rater_kind="human",
                               order=(first, second), ranks=ranks) for who in ("ann", "bob")]  # fmt: skip
    for name, rows in (("responses", responses), ("sets", sets), ("judgments", chain(judgments))):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    assert run_command(["ratings", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "8 comparisons from 8 judgments by 2 raters on 4 prompts" in text
    assert "2 on a set for practice, 2 on a set for quiz, 2 on a set for gold, 2 on a set for repeat" in text
    assert run_command(["agreement", str(tmp_path)]) == 0  # where a repeat is another vote of the rater
    assert "10 judgments by 2 raters" in capsys.readouterr().out


def test_ratings_of_responses_as_json(votes, capsys):
    assert run_command(["ratings", str(votes / "judgments.jsonl"), "--of", "responses", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["prompts_rated"]) == 120
    assert all(len(one["responses"]) == 4 for one in result["prompts_rated"])


def test_agreement_and_the_table_of_raters(votes, capsys):
    assert run_command(["agreement", str(votes), "--out", str(votes / "out")]) == 0
    text = capsys.readouterr().out
    assert "pair agreement, ties left out" in text
    assert "Ouyang et al. 2022" in text
    assert "Kendall's W" in text
    found = json.loads((votes / "out/agreement.json").read_text())
    assert {row["rater"] for row in found["raters"]} == {f"r{i:02}" for i in range(20)}
    assert (votes / "out/raters.png").exists()


def test_a_table_of_an_arena(tmp_path, capsys):
    file = tmp_path / "arena.csv"
    file.write_text("model_a,model_b,winner\n" + "gpt,llama,model_a\nllama,gpt,tie\nllama,gpt,tie (bothbad)\n" * 20)
    assert run_command(["ratings", str(file)]) == 0
    text = capsys.readouterr().out
    assert "40 comparisons from 60 judgments by 1 rater on 60 prompts; left out: 20 both bad" in text
    assert run_command(["agreement", str(file)]) == 2
    assert "there is one rater" in capsys.readouterr().err
    assert run_command(["ratings", str(file), "--of", "responses"]) == 2
    assert "name no prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ratings", "none.jsonl"], "none.jsonl"),
        (["ratings", "votes", "--of", "people"], "--of 'people': models or responses"),
        (["ratings", "empty"], "judgments.jsonl is missing"),
        (["agreement", "text.csv"], "give columns model_a, model_b and winner"),
        (["raters", "votes", "--reward", "empty"], "empty: reward_model.json is missing"),
        (["ratings", "table.csv", "--responses", "votes"], "leave out --responses"),
    ],
)
def test_bad_input_is_one_line(arguments, words, votes, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "votes").mkdir()
    for name in ("judgments.jsonl", "responses.jsonl"):
        (votes / name).rename(tmp_path / "votes" / name)
    write_jsonl(tmp_path / "votes/prompts.jsonl", [Prompt.ask("?")])
    (tmp_path / "text.csv").write_text("a,b\n1,2\n")
    (tmp_path / "table.csv").write_text("model_a,model_b,winner\nx,y,a\n")
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_names_are_text_on_the_terminal_and_in_the_picture(tmp_path, capsys):
    file = tmp_path / "votes.jsonl"
    rows = [{"model_a": "\x1b[31mred", "model_b": "$x^$ <b>", "winner": "a", "rater": f"r{i % 2}", "prompt_id": str(i // 2)}
            for i in range(40)]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_command(["ratings", str(file), "--out", str(tmp_path / "out")]) == 0
    assert run_command(["agreement", str(file), "--out", str(tmp_path / "out")]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_taste_on_the_features_of_a_reward_model(tmp_path, random_llama, capsys):
    """ann likes answers that say yes, bob those that say no, and a third rater tosses a coin; the model only has to tell them
    apart."""
    rng = np.random.default_rng(0)
    trunk = load_trunk(str(random_llama))
    trunk.add_role("reward", head=True)
    trunk.save_scorers(Scorers(("reward",), (ScoreScale(0.0, 1.0),)), tmp_path / "reward")
    prompts = [Prompt.ask(f"May I take lamp {i}?") for i in range(60)]
    responses, judgments = [], []
    for prompt in prompts:
        pair = [
            Response(
                prompt_id=prompt.id,
                model=word,
                text=f"{word} you may",
                finish_reason="stop",
                generation=Generation(seed=0, temperature=1.0),
            )
            for word in ("Yes", "No")
        ]
        responses += pair
        yes, no = (one.id for one in pair)
        for rater, p in (("ann", 0.9), ("cy", 0.9), ("dan", 0.9), ("bob", 0.1), ("coin", 0.5)):
            first, second = (yes, no) if rng.random() < p else (no, yes)
            judgments.append(
                Judgment(
                    id=f"{prompt.id}-{rater}",
                    set_id=prompt.id,
                    prompt_id=prompt.id,
                    rater_id=rater,
                    rater_kind="human",
                    order=(yes, no),
                    ranks={first: 1, second: 2},
                )
            )
    for name, rows in (("prompts", prompts), ("responses", responses), ("judgments", chain(judgments))):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    command = [
        "raters",
        str(tmp_path),
        "--reward",
        str(tmp_path / "reward"),
        "--model",
        str(random_llama),
        "--out",
        str(tmp_path / "out"),
    ]
    assert run_command([*command, "--json"]) == 0
    found = {row["rater"]: row for row in json.loads(capsys.readouterr().out)["raters"]}
    assert found["bob"]["word"] == "own taste"
    assert found["ann"]["word"] == "shared taste"
    assert found["coin"]["word"] != "shared taste"
    assert found["bob"]["own"] > 0.8 > 0.3 > found["bob"]["pooled"]
    assert (tmp_path / "out/tastes.png").exists()
    (tmp_path / "camps.csv").write_text("rater,group\nann,yes\ncy,yes\ndan,yes\nbob,../no\n")
    by_camp = [*command, "--groups", str(tmp_path / "camps.csv"), "--heads", str(tmp_path / "heads")]
    assert run_command([*by_camp, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["gain_ci"][0] > 0
    assert result["without_group"] == ["coin"]
    cards = {json.loads(file.read_text())["group"]: file.parent for file in (tmp_path / "heads").glob("*/head.json")}
    assert cards.keys() == {"yes", "../no"}
    assert all(place.parent == tmp_path / "heads" for place in cards.values())
    scores = {}
    for camp, place in cards.items():
        trunk, scorers = load_reward_model(place)
        rows = [Tokens(encode_prompt(trunk.tokenizer, prompts[0].messages), encode_response(trunk.tokenizer, one.text))
                for one in responses[:2]]  # fmt: skip
        scores[camp] = scorers(score_rows(trunk, rows, 512, "reward")[None]).tolist()
    assert scores["yes"][0] > scores["yes"][1]
    assert scores["../no"][0] < scores["../no"][1]
    assert run_command(by_camp) == 2
    assert "not empty; name a new folder" in capsys.readouterr().err
    (tmp_path / "prompts.jsonl").unlink()
    assert run_command(command) == 2
    assert "--prompts" in capsys.readouterr().err
