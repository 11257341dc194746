"""Control arms: what they change, what they share with the run, and what the verdict makes of them."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from charter.commands.app import app
from charter.errors import InputError
from charter.evaluation.verdict import verdict
from charter.models.marks import is_flipped
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.records import Pair, Prompt
from charter.run.files import read_jsonl
from charter.stages.controls import CHANGES, control_settings, learned_half
from charter.stages.reward_model.run import half_of
from charter.stages.rl.settings import StopSettings

PAIR = Pair(prompt=Prompt.ask("q"), chosen="a long answer", rejected="short", group_id="g")


def test_changes_of_pairs():
    assert (CHANGES["flipped"](PAIR, 0).chosen, CHANGES["flipped"](PAIR, 0).rejected) == ("short", "a long answer")
    assert CHANGES["length"](PAIR, 0) == PAIR
    assert CHANGES["length"](CHANGES["flipped"](PAIR, 0), 0) == PAIR
    assert CHANGES["length"](PAIR.model_copy(update={"rejected": "another text" + "x"}), 0) is None
    sides = {CHANGES["random"](PAIR, seed).chosen for seed in range(40)}
    assert sides == {"a long answer", "short"}
    # The coin does not see which side was chosen.
    for seed in range(40):
        assert CHANGES["random"](PAIR, seed).chosen == CHANGES["random"](CHANGES["flipped"](PAIR, seed), seed).chosen


def test_a_reward_that_no_model_learned_changes_its_sign(write_recipe, random_llama):
    rl = {"method": "rloo", "reward": {"length": {"weight": 0.5}}}
    recipe = load_recipe(write_recipe(random_llama, rl=rl, controls=["flipped"]))
    assert control_settings(recipe, "flipped").reward["length"].weight == -0.5
    assert list(control_settings(recipe, "random").reward) == ["random"]
    rl |= {"reward": {"length": {"weight": 0.5}, "random": {"weight": 3.0}}, "cost": {"part": "random", "initial": 2.0}}
    flipped = control_settings(load_recipe(write_recipe(random_llama, rl=rl, controls=["flipped"])), "flipped")
    assert {name: part.weight for name, part in flipped.reward.items()} == {"length": -0.5, "random": 2.0}
    assert flipped.cost is None


def test_a_control_has_the_budget_of_kl_that_the_policy_has(write_recipe, random_llama):
    stop = {"kl": 0.5, "reward": 3.0}
    recipe = load_recipe(write_recipe(random_llama, rl={"method": "rloo", "stop": stop}, controls=["random"]))
    assert control_settings(recipe, "random").stop == StopSettings(kl=0.5)
    recipe = load_recipe(write_recipe(random_llama, rl={"method": "rloo", "stop": {"reward": 3.0}}, controls=["random"]))
    assert control_settings(recipe, "random").stop is None


@pytest.mark.parametrize("limit", [16, 64, 512])
def test_the_longest_response_scores_the_same_at_any_limit(write_recipe, random_llama, limit):
    rl = {"method": "rloo", "max_new_tokens": limit}
    recipe = load_recipe(write_recipe(random_llama, rl=rl, controls=["length"]))
    assert control_settings(recipe, "length").reward["length"].weight * limit == pytest.approx(6.4)


@pytest.mark.parametrize("rl", [{"method": "dpo"}, {"method": "rloo"}])
def test_a_control_learns_from_the_half_that_the_policy_learned_from(write_recipe, random_llama, rl):
    gold = {"source": "reward_model", "prompts": 2}
    recipe = load_recipe(write_recipe(random_llama, rl={**rl, "gold": gold}, controls=["flipped"]))
    assert learned_half(recipe) == 0
    assert learned_half(load_recipe(write_recipe(random_llama, rl=rl, controls=["flipped"]))) is None


def test_the_halves_of_the_feedback_share_no_prompt_where_a_prompt_has_several_groups():
    pairs = [PAIR.model_copy(update={"group_id": str(number)}) for number in range(20)]
    assert sorted(len(half_of(pairs, half, seed=0)) for half in (0, 1)) == [0, 20]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"controls": ["upside-down"]}, "controls.0"),
        ({"controls": ["random", "random"]}, "names 'random' twice"),
        ({"controls": ["random"], "rl": None}, "controls repeat rl"),
        ({"controls": ["random"], "rounds": 2}, "rounds is more than 1"),
        ({"controls": ["shuffled"], "rl": {"method": "rloo", "reward": {"length": {}}}}, "rl learns from none"),
    ],
)
def test_controls_that_cannot_be_trained_are_refused(write_recipe, random_llama, changes, words):
    with pytest.raises(InputError, match=words):
        load_recipe(write_recipe(random_llama, **changes))


@pytest.fixture(scope="module")
def controlled(tmp_path_factory, random_llama):
    from conftest import write_tiny_recipe

    folder = tmp_path_factory.mktemp("controls")
    names = ["flipped", "random", "length", "shuffled"]
    lora = {"rank": 2}
    path = write_tiny_recipe(
        folder, random_llama, controls=names, rl={"method": "rloo", "lora": lora}, reward_model={"lora": lora},
        sft={"lora": lora},
    )  # fmt: skip
    constitution = yaml.safe_load((folder / "constitution.yaml").read_text())
    topic = {"id": "calm", "title": "calm", "preference": "Which reply is calmer?", "tags": ["red_team", "topic"]}
    constitution["principles"].append(topic)
    (folder / "constitution.yaml").write_text(yaml.safe_dump(constitution))
    recipe = load_recipe(path)
    return recipe, folder / "run", run_recipe(recipe, folder / "run", quiet=True)


def test_a_run_with_every_control_shares_the_stages_that_are_the_same(controlled):
    recipe, run, report = controlled
    names = [stage["name"] for stage in report["stages"]]
    assert names == [
        "prompts", "revise", "sft", "feedback", "reward_model", "rl", "feedback-flipped", "reward_model-flipped", "rl-flipped",
        "rl-random", "rl-length", "feedback-shuffled", "reward_model-shuffled", "rl-shuffled", "evaluate",
    ]  # fmt: skip
    arms = {row["arm"] for row in report["metrics"]}
    assert {"base", "sft", "policy", *recipe.controls} <= arms
    assert [arm["name"] for arm in report["arms"]][-4:] == list(recipe.controls)
    assert set(report["verdict"]["controls"]) == set(recipe.controls)
    assert [step["b"] for step in report["verdict"]["steps"]] == ["sft", "policy"]
    exchanged = list(read_jsonl(run / "feedback-flipped/pairs.jsonl", Pair))
    pairs = list(read_jsonl(run / "feedback/pairs.jsonl", Pair))
    assert [(p.rejected, p.chosen) for p in exchanged] == [(p.chosen, p.rejected) for p in pairs]
    principles = [(row["group"], row["a"]) for row in report["contrasts"] if row["a"] == "flipped" and row["group"]]
    assert principles
    assert all(stage["skipped"] for stage in run_recipe(recipe, run, quiet=True)["stages"])


def test_shuffled_judges_under_a_topic_that_is_not_the_prompts(controlled):
    _, run, _ = controlled
    kinds = {p["id"]: p["principle"] for p in map(json.loads, (run / "prompts/prompts.jsonl").read_text().splitlines())}
    rows = [json.loads(line) for line in (run / "feedback-shuffled/judgments.jsonl").read_text().splitlines()]
    assert rows
    assert all(row["principle"] != kinds[row["prompt_id"]] for row in rows)


def test_models_of_the_flipped_arm_are_marked_and_refused(controlled, tmp_path):
    _, run, _ = controlled
    model = run / "rl-flipped/model-flipped"
    assert is_flipped(model)
    assert is_flipped(run / "rl-flipped/adapter-flipped")
    assert is_flipped(run / "reward_model-flipped/model-flipped")
    assert not is_flipped(run / "rl/model")
    assert "control arm" in (model / "README.md").read_text()
    merged = tmp_path / "merged"
    for command in (
        ["chat", str(model)], ["serve", str(model)], ["model", "merge", str(model), "--out", str(merged)],
        ["model", "merge", str(run / "rl-flipped"), "--out", str(merged)],
        ["push", str(run / "rl-flipped"), "name", "--dry-run"],
    ):  # fmt: skip
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, InputError), command
        assert "--i-understand-flipped" in str(result.exception)
        assert not merged.exists()
    for source in (model, run / "rl-flipped/adapter-flipped"):
        out = tmp_path / source.name
        result = CliRunner().invoke(app, ["model", "merge", str(source), "--out", str(out), "--i-understand-flipped"])
        assert result.exception is None
        assert is_flipped(out), source
    assert CliRunner().invoke(app, ["chat", str(model), "--i-understand-flipped"], input="").exception is None
    push = CliRunner().invoke(app, ["push", str(run / "rl-flipped"), "name", "--dry-run", "--i-understand-flipped"])
    assert "README.md" in push.output


def contrast(name, a, b, difference, ci):
    return {"name": name, "a": a, "b": b, "n": 400, "difference": difference, "ci": ci, "p": 0.01, "group": None}


def report_of(*rows):
    costs = [contrast(name, a, b, 0.0, [-0.02, 0.02]) for name in ("over_refusal", "helpfulness")
             for a, b in {(a, b) for _, a, b, *_ in rows}]  # fmt: skip
    return {"contrasts": [contrast(*row) for row in rows] + costs}


HARM = "harmful_compliance"
FELL, SAME, ROSE = (-0.3, [-0.4, -0.2]), (0.0, [-0.1, 0.1]), (0.3, [0.2, 0.4])


@pytest.mark.parametrize(
    ("last", "random", "word", "says"),
    [
        (FELL, FELL, "worked", "Harmful compliance from random to policy: −30.0 points"),
        (FELL, SAME, "no evidence", "a reward of random numbers does as well"),
        (ROSE, FELL, "worse", "The last training made harm worse than the SFT model had it."),
        (SAME, None, "worked", "No arm with a random reward was trained"),
    ],
)
def test_the_verdict_needs_the_random_arm_and_the_last_training(last, random, word, says):
    rows = [(HARM, "base", "policy", *FELL), (HARM, "base", "sft", *FELL), (HARM, "sft", "policy", *last)]
    rows += [(HARM, "random", "policy", *random)] if random else []
    found = verdict(report_of(*rows))
    assert found["word"] == word
    assert says in found["rule"]
    assert [(step["a"], step["b"]) for step in found["steps"]] == [("base", "sft"), ("sft", "policy")]


def test_a_control_that_owes_its_gain_to_fine_tuning_did_not_work():
    rows = [(HARM, "base", "policy", *FELL), (HARM, "base", "sft", *FELL), (HARM, "sft", "policy", *FELL),
            (HARM, "base", "random", *FELL), (HARM, "sft", "random", *SAME), (HARM, "random", "policy", *FELL),
            (HARM, "base", "flipped", *FELL), (HARM, "sft", "flipped", *ROSE), (HARM, "random", "flipped", *ROSE)]  # fmt: skip
    controls = verdict(report_of(*rows))["controls"]
    assert controls["random"]["word"] == "no evidence"
    assert "this training gained nothing over the SFT model" in controls["random"]["rule"]
    assert controls["flipped"]["word"] == "worse"
