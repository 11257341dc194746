"""Rubrics: points times the probability of a yes, faults below zero, and a verdict that nobody could read."""

import json
import math

import hypothesis.strategies as st
import pytest
import torch
import yaml
from hypothesis import given

from charter.commands.app import run_command
from charter.constitution.constitution import Constitution, Principle, hashes_of_principles, load_constitution
from charter.constitution.revise import asked_for
from charter.errors import InputError
from charter.evaluation.measures import measure_of
from charter.judging.judge import Comparison, instructions_hash
from charter.judging.protocols import PROTOCOLS, LikelihoodJudge, RubricJudge, judges_of
from charter.judging.rubrics import Rubric, RubricQuestion, read_rubric, rubric_scores
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.recipe.source import REWARD, GoldSource, MeasureSource, Source
from charter.records import Pair, Prompt
from charter.stages.evaluate.settings import MeasureSettings
from charter.stages.rl.gold import gold_score
from charter.stages.rl.sources import rubric_reward
from charter.tasks.principle_reader import accuracy_of
from charter.training.advantages import among_kept, rloo_advantages
from charter.training.methods.principle_reader import ReadPair
from charter.training.rewards import RewardSum
from conftest import write_tiny_recipe
from feedback_folder import respond, vote, write_folder
from test_judge import response
from test_rewards import rollout_of

KIND = {"criterion": "The reply is kind", "points": 6, "tags": []}
RUDE = {"criterion": "Is the reply rude?", "points": -3, "tags": []}
ASK = Prompt.ask("How do I rest?")


class Reader:
    """A judge that answers by the odds of the first word that it knows in the question and the reply; "?" cannot be read."""

    name = "reader"
    odds = (("rude?", "curse", 2.0), ("kind", "dear", 1.0))

    def option_logprobs(self, conversations, options):
        assert set(options) == {("Yes", "No")}
        rows = []
        for (message,) in conversations:
            reply = message.content.rpartition("assistant: ")[2].partition("\n")[0]
            margin = math.nan if "?" in reply else -8.0
            for word, sign, odds in self.odds:
                if word in message.content.rpartition("\n")[2] and sign in reply:
                    margin = odds
            rows.append([margin, 0.0])
        return rows


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def written(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_points_times_the_probability_of_a_yes_over_the_positive_points(tmp_path):
    rubric = read_rubric(written(tmp_path / "r.jsonl", [KIND, RUDE, {"criterion": "It is short", "points": 2}]))
    scores = rubric_scores(Reader(), rubric, [ASK] * 3, ["dear", "curse", "what?"])
    low = sigmoid(-8)
    assert scores == [pytest.approx((6 * sigmoid(1) - 3 * low + 2 * low) / 8),
                      pytest.approx((6 * low - 3 * sigmoid(2) + 2 * low) / 8), None]  # fmt: skip


def test_criteria_of_a_prompt_are_asked_about_that_prompt_alone(tmp_path):
    other = {**KIND, "criterion": "It is short"}
    rows = [{"prompt": [{"role": "user", "content": "How do I rest?"}], "rubrics": [KIND]},
            {"prompt": [{"role": "user", "content": "Who are you?"}], "rubrics": [other]}]  # fmt: skip
    rubric = read_rubric(written(tmp_path / "r.jsonl", rows))
    assert [c.question for c in rubric.questions(ASK)] == ["Is this true of the assistant's last reply: The reply is kind"]
    assert rubric_scores(Reader(), rubric, [ASK, Prompt.ask("Other")], ["dear", "dear"]) == [pytest.approx(sigmoid(1)), None]
    assert rubric.mean_questions == 1


def test_a_criterion_of_every_prompt_stays_one_where_a_prompt_repeats_it(tmp_path):
    """It is asked about every reply, and once about a reply to the prompt that repeats it."""
    rubric = read_rubric(written(tmp_path / "r.jsonl", [KIND, {"prompt": "How do I rest?", **KIND}]))
    assert [len(rubric.questions(prompt)) for prompt in (ASK, Prompt.ask("Other"))] == [1, 1]


def test_a_constitution_is_a_rubric_by_weight_and_good_answer(tmp_path):
    principles = [{"id": "kind", "title": "k", "preference": "Be kind.", "question": "Is it rude?", "weight": 2.0},
                  {"id": "short", "title": "s", "preference": "Be short.", "tags": ["benign"]}]  # fmt: skip
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"title": "t", "principles": principles}))
    rubric = read_rubric(file)
    words = "Be short. Would you choose the assistant's last reply?"
    assert rubric.questions(ASK) == [RubricQuestion("Is it rude?", 2.0, by_no=True), RubricQuestion(words, 1.0)]
    assert len(rubric.questions(Prompt.ask("q", tags=("red_team",)))) == 1
    (score,) = rubric_scores(Reader(), rubric, [ASK], ["curse"])
    assert score == pytest.approx((2 * sigmoid(-2) + sigmoid(-8)) / 3)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.json", json.dumps([RUDE]), "the criteria have no positive points, by whose sum a score is divided; add one"),
        ("r.json", json.dumps([{"prompt": "q", "rubrics": [RUDE]}, {"prompt": "p", "rubrics": [KIND]}]), "of one prompt have no"),
        ("r.json", json.dumps(["Be kind."]), "a file of list of sentences, not of criteria with points"),
        ("r.json", "{", "not valid JSON"),
        ("r.yaml", "title: t\nprinciples:\n- {id: a, title: a, critique: c, revision: r}\n",
         "field 'a': has neither criteria nor a question nor a preference to ask about a reply; add one"),
    ],
)  # fmt: skip
def test_a_file_that_can_give_no_score_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        read_rubric(tmp_path / name)


def test_sources_name_the_file_and_the_judge(tmp_path):
    assert REWARD.parse("rubric:a/r.json") == Source("rubric", "a/r.json")
    source = REWARD.parse("rubric:package:x/r.YAML:endpoint:big")
    assert (source.name, source.model) == ("package:x/r.YAML", Source("endpoint", "big"))
    assert str(source) == "rubric:package:x/r.YAML:endpoint:big"
    assert REWARD.parse("rubric:r.jsonl").model == Source("run", "base")
    for accepts in (GoldSource.__metadata__[0], MeasureSource.__metadata__[0]):
        with pytest.raises(ValueError, match=r"the judge of r\.json is missing; use rubric:FILE:FOLDER"):
            accepts.parse("rubric:r.json")
    with pytest.raises(ValueError, match="the file is missing; use rubric:FILE"):
        REWARD.parse("rubric:folder")
    first = REWARD.parse(f"rubric:{written(tmp_path / 'r.json', [KIND])}").content_hash()
    assert first != REWARD.parse(f"rubric:{written(tmp_path / 'r.json', [RUDE])}").content_hash()


def test_gold_and_measures_are_scores_too(tmp_path):
    text = f"rubric:{written(tmp_path / 'r.jsonl', [KIND])}:reader"
    measure = measure_of("kind", MeasureSettings(source=text, better="higher"), lambda _: Reader())
    gold = gold_score(GoldSource.__metadata__[0].parse(text), reward_model=None, judge=lambda _: Reader(), device="cpu")
    for score in (measure.of, gold):
        assert score([ASK, ASK], ["dear", "what?"]) == [pytest.approx(sigmoid(1)), None]


TEXTS = st.lists(st.sampled_from(["dear", "curse", "dear curse", "plain"]), min_size=3, max_size=6)


@given(texts=TEXTS, places=st.sets(st.integers(0, 6), min_size=1))
def test_an_unread_verdict_has_no_advantage_and_changes_no_other(tmp_path_factory, texts, places):
    """Of one group some verdicts cannot be read: the others have the advantages that they have without those responses."""
    rubric = read_rubric(written(tmp_path_factory.getbasetemp() / "r.jsonl", [KIND, RUDE]))
    reward = RewardSum({"rubric": (1.0, rubric_reward(Reader(), rubric))})
    mixed = [*texts]
    for place in sorted(places):
        mixed.insert(place, "what?")
    scores, alone = reward(rollout_of(*mixed)), reward(rollout_of(*texts))
    assert scores.kept.tolist() == [text != "what?" for text in mixed]
    advantages = among_kept(rloo_advantages, scores.total[None], scores.kept[None])[0]
    assert not advantages[~scores.kept].any()
    assert torch.equal(advantages[scores.kept], rloo_advantages(alone.total[None])[0])


def test_a_run_learns_from_a_rubric(tmp_path, random_llama):
    written(tmp_path / "r.json", [KIND, RUDE])
    recipe = write_tiny_recipe(
        tmp_path, random_llama, revise=None, sft=None, feedback=None,
        rl={"method": "rloo", "steps": 1, "prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 8,
            "reward": {"rubric": {"source": "rubric:r.json"}}},
        evaluation={"measures": {"kind": {"source": f"rubric:r.json:{random_llama}", "better": "higher"}}},
    )  # fmt: skip
    run_recipe(load_recipe(recipe), tmp_path / "run", until="rl", quiet=True)
    (row,) = [json.loads(line) for line in (tmp_path / "run/rl/metrics.jsonl").read_text().splitlines()]
    assert -0.5 <= row["reward/rubric"] <= 1
    assert row["abstained"] == 0
    (tmp_path / "r.json").write_text(json.dumps([RUDE]))
    with pytest.raises(InputError, match="no positive points"):
        run_recipe(load_recipe(recipe), tmp_path / "other", quiet=True)
    assert not (tmp_path / "other/rl").exists()


def test_the_protocol_rubric_weighs_the_criteria_of_a_principle():
    """The difference of the weighted sums as log odds; an unread criterion leaves the pair without a verdict."""
    criteria = [{"criterion": "Is it kind?", "points": 3}, {"criterion": "Is it rude?", "points": -1}]
    rules = Constitution.model_validate({"title": "t", "principles": [
        {"id": "a", "title": "a", "preference": "Which is better?", "criteria": criteria}]})  # fmt: skip
    (principle,) = rules.principles
    pair = Comparison(ASK, response(ASK, "dear", 0), response(ASK, "curse", 1), principle)
    unread = Comparison(ASK, response(ASK, "what?", 0), response(ASK, "curse", 1), principle)

    class Kind(Reader):
        odds = (("kind?", "dear", 1.0), ("rude?", "curse", 2.0))

    good, none = PROTOCOLS["rubric"](Kind())([pair, unread])
    low = sigmoid(-8)
    difference = (3 * sigmoid(1) - low - 3 * low + sigmoid(2)) / 4
    assert good.margin == pytest.approx(math.log((1 + difference) / (1 - difference)))
    assert none.margin is None
    assert list(judges_of("auto", Kind(), rules)) == ["letters", "yes_no", "dialogue", "rubric", "likelihood"]
    other = principle.model_copy(update={"criteria": principle.criteria[:1]})
    hashes = {instructions_hash(Comparison(ASK, pair.first, pair.second, p), RubricJudge.template) for p in (principle, other)}
    assert len(hashes) == 2
    assert hashes_of_principles(rules, "preference", "question") != hashes_of_principles(
        rules.model_copy(update={"principles": (other,)}), "preference", "question"
    )


def test_criteria_have_points_and_stand_alone(tmp_path):
    base = {"id": "a", "title": "a", "preference": "p"}
    for more, words in (
        ({"criteria": [{"criterion": "c", "points": 0}]}, "a criterion with 0 points"),
        ({"criteria": [{"criterion": "c", "points": 1}], "points": 2}, "criteria with points of their own"),
        ({"criteria": [{"criterion": "c", "point": 1}]}, "did you mean 'points'"),
    ):
        file = tmp_path / "c.yaml"
        file.write_text(yaml.safe_dump({"title": "t", "principles": [base | more]}))
        with pytest.raises(InputError, match=words):
            read_rubric(file)


def test_likelihood_is_that_under_the_principle_less_that_without(random_llama):
    sampler = LocalSampler(load_trunk(str(random_llama), precision="float32"), "model")
    principle = Principle(id="a", title="a", preference="Be kind.")
    pair = Comparison(ASK, response(ASK, "Yes dear.", 0), response(ASK, "No.", 1), principle)
    (margin,) = [p.margin for p in LikelihoodJudge(sampler)([pair])]
    ruled = asked_for(ASK, "Reply by this rule. Be kind.").messages
    rows = sampler.option_logprobs([ruled, ruled, ASK.messages, ASK.messages], [["Yes dear."], ["No."]] * 2)
    (first,), (second,), (plain_first,), (plain_second,) = rows
    assert margin == pytest.approx((first - plain_first) - (second - plain_second), abs=1e-4)
    assert LikelihoodJudge(sampler)([pair.swap()])[0].margin == pytest.approx(-margin, abs=1e-4)


def test_a_server_gives_no_likelihood_of_whole_texts(write_recipe, random_llama):
    class Server(Reader):
        first_token_alone = True

    principle = Principle(id="a", title="a", preference="p")
    rules = Constitution(title="t", principles=(principle,))
    assert list(judges_of("auto", Server(), rules)) == ["letters", "yes_no", "dialogue"]
    with pytest.raises(InputError, match="gives no likelihood of whole responses"):
        LikelihoodJudge(Server())([Comparison(ASK, response(ASK, "a", 0), response(ASK, "b", 1), principle)])
    server = {"url": "http://localhost:1/v1", "model": "m"}
    with pytest.raises(InputError, match="a server gives no likelihood of whole responses; use another protocol"):
        load_recipe(write_recipe(random_llama, endpoints={"big": server},
                                 feedback={"judge": "endpoint:big", "protocol": "likelihood"}))  # fmt: skip


def test_a_reader_learns_principles_and_serves_one_that_it_has_not_seen(tmp_path, random_llama, capsys):
    """From pairs under two principles that want the opposite; the folder is a model that a rubric asks."""
    put = (("red", "Is it red?", "yes"), ("blue", "Is it red?", "no"), ("green", "Is it red or what?", "yes"))
    principles = [{"id": name, "title": name, "preference": "p", "question": question, "good_answer": answer}
                  for name, question, answer in put]  # fmt: skip
    rules, file, out = tmp_path / "c.yaml", tmp_path / "pairs.jsonl", tmp_path / "reader"
    rules.write_text(yaml.safe_dump({"title": "t", "principles": principles}))
    rows = [{"prompt": f"q{i}", "chosen": "blue" if name == "blue" else "red", "rejected": "red" if name == "blue" else "blue",
             "principle": name} for i in range(12) for name in ("red", "blue", "green", "other")]  # fmt: skip
    rows += [{"prompt": "q0", "chosen": "blue", "rejected": "red", "principle": "green", "p": 0.5}]
    file.write_text("\n".join(map(json.dumps, rows)))
    command = ["reward", "train", str(file), "--constitution", str(rules), "--model", str(random_llama), "--out", str(out)]
    assert run_command([*command, "--hold-out", "green", "--epochs", "4", "--learning-rate", "0.01", "--per-step", "8"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["accuracy"] == 1.0
    assert metrics["groups"]["blue"]["accuracy"] == 1.0
    assert metrics["held_out"]["principle"] == "green"
    assert (metrics["held_out"]["n"], metrics["held_out"]["ties"]) == (12, 1)
    assert metrics["excluded"] == {"pair without a principle of the constitution": 12}
    assert "principle held out, green:" in capsys.readouterr().out
    judge = LocalSampler(load_trunk(metrics["model"], precision="float32"), "reader")
    red, blue = rubric_scores(judge, Rubric(load_constitution(rules).principles[:1], {}), [Prompt.ask("q")] * 2, ["red", "blue"])
    assert red > blue


def test_a_reader_learns_from_the_principles_that_voters_named(tmp_path, random_llama):
    """The export of votes with reasons: a vote that two principles decided is a question about each, and held out with either."""
    prompts = [Prompt.ask(f"q{i}") for i in range(24)]
    pairs = [(respond(prompt, "red"), respond(prompt, "blue")) for prompt in prompts]
    named = ["kind", "kind,true", "", "other"] * 6
    votes = [
        vote(f"{i:02}", pair, (1, 2), flags={f"set-{prompt.id}": [f"decided={name}" for name in names.split(",") if name]})
        for i, (prompt, pair, names) in enumerate(zip(prompts, pairs, named, strict=True))
    ]
    write_folder(tmp_path / "votes", prompts, [response for pair in pairs for response in pair], votes)
    rules, file, out = tmp_path / "c.yaml", tmp_path / "pairs.jsonl", tmp_path / "reader"
    put = [
        {"id": name, "title": name, "preference": "p", "question": f"Is it {name}?", "good_answer": "yes"}
        for name in ("kind", "true")
    ]
    rules.write_text(yaml.safe_dump({"title": "t", "principles": put}))
    assert run_command(["export", str(tmp_path / "votes"), "--to", "trl", "--out", str(file), "--reasons"]) == 0
    command = ["reward", "train", str(file), "--constitution", str(rules), "--model", str(random_llama), "--epochs", "1"]
    assert run_command([*command, "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["rows"], metrics["train_pairs"] + metrics["n"]) == (24, 18)
    assert metrics["excluded"] == {"pair without a principle of the constitution": 12}
    assert run_command([*command, "--out", str(tmp_path / "apart"), "--hold-out", "true"]) == 0
    apart = json.loads((tmp_path / "apart/metrics.json").read_text())
    assert (apart["held_out"]["n"], apart["train_pairs"] + apart["n"]) == (6, 6)
    assert apart["excluded"]["principle beside the held-out one on a pair"] == 6


def test_ties_do_not_measure_a_reader(tmp_path, random_llama):
    rules, file = tmp_path / "c.yaml", tmp_path / "pairs.jsonl"
    put = [{"id": name, "title": name, "preference": "p", "question": "Is it red?", "good_answer": "yes"} for name in ("a", "b")]
    rules.write_text(yaml.safe_dump({"title": "t", "principles": put}))
    rows = [{"prompt": f"q{i}", "chosen": "red", "rejected": "blue", "principle": name, "p": 0.5 if i % 2 else 1.0}
            for i in range(40) for name in ("a", "b")]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)))
    command = ["reward", "train", str(file), "--constitution", str(rules), "--model", str(random_llama), "--epochs", "1"]
    assert run_command([*command, "--out", str(tmp_path / "out"), "--hold-out", "b"]) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["held_out"]["n"], metrics["held_out"]["ties"]) == (20, 20)
    assert metrics["train_pairs"] + metrics["n"] + metrics["ties"] == 40
    assert metrics["ties"] > 0


def test_options_of_a_reader_that_nothing_reads_are_refused(tmp_path, capsys):
    file = written(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    for more, words in (
        (["--hold-out", "a"], "reads none; leave it out"),
        (["--constitution", "c.yaml", "--loss", "squared"], "leave out --loss, --ensemble and --average"),
    ):
        assert run_command(["reward", "train", str(file), "--out", str(tmp_path / "out"), *more]) == 2
        assert words in capsys.readouterr().err


def test_a_tie_is_no_pair_that_a_reader_is_right_about():
    pairs = [ReadPair(Pair(prompt=ASK, chosen="dear", rejected="no", group_id=str(n), weight=weight), "dear: is it kind?",
                      "no: is it kind?", by_no=False) for n, weight in enumerate((1.0, 0.5, 0.5))]  # fmt: skip
    assert accuracy_of(Reader(), pairs)["n"] == 1
