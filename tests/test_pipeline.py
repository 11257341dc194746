"""Whole runs at tiny size through the real entry point."""

import json
import shutil
from itertools import permutations
from pathlib import Path

import pytest
import yaml

from charter.commands.app import run_command
from charter.commands.run import policy_of
from charter.constitution.revise import under_stances
from charter.errors import GateError, InputError
from charter.evaluation.arms import ScoredResponse
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.load import model_of_run
from charter.models.packing import Tokens
from charter.models.reward_trunk import load_reward_model, reward_folder
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.pipeline import STAGES, run_recipe
from charter.reading.pairs import read_pairs
from charter.recipe.files import load_recipe
from charter.records import Message, Pair, Prompt, Response
from charter.run.files import read_json, read_jsonl
from charter.run.run import Run
from charter.stages.feedback.run import check_system_turn, stances_of
from charter.stages.models import Models
from charter.statistics import distinct_pairs
from charter.tasks.hub import gather
from charter.tasks.own_files import features_of, response_features
from charter.training.methods.reward_model import reward_scores
from charter.verification import verify_run
from charter.votes.exchange import export_feedback
from charter.votes.judgments import read_judgments
from charter.votes.training_rows import Selection
from conftest import save_random_classifier, save_random_model, write_tiny_recipe
from feedback_folder import tips
from test_training import ROLLOUT

# Each method that samples runs to the end: on llama with all weights, unless another model, adapters or settings are named here.
MODELS: dict[str, tuple[str, dict[str, int] | None]] = {
    "rloo": ("gpt2", None), "ppo": ("qwen2", {"rank": 2}), "grpo": ("llama", {"rank": 2}),
}  # fmt: skip
SETTINGS = {
    "rloo": {"sigmoid_against": 2, "reward_scale": True, "reward_clip": 3.0},
    "ppo": {"whiten_advantages": "biased", "stop_kl": 0.1},
}


@pytest.mark.parametrize("method", ROLLOUT)
def test_every_way_to_learn_from_rollouts_runs_to_the_end_where_gates_are_overridden(tmp_path, write_recipe, method):
    architecture, lora = MODELS.get(method, ("llama", None))
    model = save_random_model(tmp_path / "model", architecture, template=architecture != "gpt2", pad_is_eos=True)
    rl = {"method": method, "lora": lora, **SETTINGS.get(method, {})}
    changes = {"rl": rl, "reward_model": {"lora": lora}, "sft": {"lora": lora}}
    recipe = load_recipe(write_recipe(model, **changes))
    report = run_recipe(recipe, tmp_path / "run", quiet=True)
    assert [stage["name"] for stage in report["stages"]] == list(STAGES)
    assert any(gate["overridden"] for gate in report["gates"])
    measured = {(row["name"], row["arm"]) for row in report["metrics"] if row["group"] is None}
    for name in ("harmful_compliance", "over_refusal", "helpfulness", "kl"):
        assert {(name, arm) for arm in ("base", "sft", "policy")} <= measured
    on_disk = json.loads((tmp_path / "run/report.json").read_text())
    assert on_disk["metrics"] == report["metrics"]
    for row in report["metrics"]:
        assert row["n"] + row["n_unscored"] > 0
    steps = [json.loads(line) for line in (tmp_path / "run/rl/metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 3
    assert abs(steps[0]["kl"]) < 1e-5
    assert steps[0]["first_ratio"] == pytest.approx(1, abs=1e-5)
    assert steps[0]["sampler_gap"] < 1e-4
    if "reward_scale" in rl:
        assert steps[-1]["score_count"] == 3 * 8
    assert (tmp_path / "run/report.html").exists()

    again = run_recipe(recipe, tmp_path / "run", quiet=True)
    assert all(stage["skipped"] for stage in again["stages"])
    assert again["metrics"] == report["metrics"]


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_dpo_learns_from_the_pairs_and_trains_no_reward_model(tmp_path, write_recipe, random_llama, lora):
    rl = {"method": "dpo", "pairs_per_step": 8, "lora": lora}
    recipe = load_recipe(write_recipe(random_llama, sft={"lora": lora}, rl=rl))
    report = run_recipe(recipe, tmp_path / "run", quiet=True)
    assert [stage["name"] for stage in report["stages"]] == [name for name in STAGES if name != "reward_model"]
    metrics = [json.loads(line) for line in (tmp_path / "run/rl/metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert {row["arm"] for row in report["metrics"]} == {"base", "sft", "policy"}
    assert not (tmp_path / "run/rl_log.csv").exists()
    assert all(stage["skipped"] for stage in run_recipe(recipe, tmp_path / "run", quiet=True)["stages"])


def test_pairs_by_contrast_need_no_judge(tmp_path, write_recipe, random_llama):
    contrast = {"positive": "Answer kindly.", "negative": "Answer rudely."}
    path = write_recipe(random_llama)
    recipe = yaml.safe_load(path.read_text())
    recipe["feedback"] = {"prompts": 24, "max_new_tokens": 12, "contrast": contrast}
    path.write_text(yaml.safe_dump(recipe))
    report = run_recipe(load_recipe(path), tmp_path / "run", until="reward_model", quiet=True)
    assert report["judges"] == []
    pairs = list(read_jsonl(tmp_path / "run/feedback/pairs.jsonl", Pair))
    assert len(pairs) >= 4
    asked = {r.prompt_id for r in read_jsonl(tmp_path / "run/feedback/responses.positive.jsonl", Response)}
    assert all(pair.prompt.id not in asked and "kindly" not in pair.prompt.last_turn for pair in pairs)
    recipe["feedback"]["judge"] = "base"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(InputError, match="judge would not be read"):
        load_recipe(path)


def test_diverse_candidates_are_asked_for_under_stances_and_belong_to_the_plain_prompt(tmp_path, write_recipe, random_llama):
    stances = tmp_path / "stances.txt"
    stances.write_text("Answer kindly.\n\nAnswer rudely.\nAnswer kindly.\n")
    diverse = {"prompts": 8, "sampling": "diverse", "stances": str(stances)}
    recipe = load_recipe(write_recipe(random_llama, feedback=diverse))
    report = run_recipe(recipe, tmp_path / "run", until="feedback", quiet=True)
    responses = list(read_jsonl(tmp_path / "run/feedback/responses.jsonl", Response))
    prompts = {prompt.id: prompt for prompt in read_jsonl(tmp_path / "run/prompts/prompts.jsonl", Prompt)}
    assert len(responses) == 16
    assert {response.prompt_id for response in responses} <= prompts.keys()
    assert not [message for pair in read_jsonl(tmp_path / "run/feedback/pairs.jsonl", Pair)
                for message in pair.prompt.messages if message.role == "system"]  # fmt: skip
    by_prompt = [distinct_pairs([first.text, second.text]) for first, second in zip(responses[::2], responses[1::2], strict=True)]
    values = [value for value in by_prompt if value is not None]  # the random model now and then writes no two words
    card = report["candidates"]
    assert (card["sampling"], card["k"], card["n"], card["n_unmeasured"]) == ("diverse", 2, len(values), 8 - len(values))
    assert card["distinct_2"] == pytest.approx(sum(values) / len(values))
    assert "each asked for under another stance" in (tmp_path / "run/report.html").read_text()
    with pytest.raises(InputError, match=r"2 stances, and feedback.responses_per_prompt is 3; write more lines"):
        stances_of(recipe.feedback.model_copy(update={"responses_per_prompt": 3}))
    with pytest.raises(InputError, match="stances is about sampling: diverse"):
        load_recipe(write_recipe(random_llama, feedback={"stances": str(stances)}))


def test_a_stance_stands_before_the_prompt_or_ends_its_system_turn():
    plain = Prompt.ask("Hi?")
    told = Prompt(messages=(Message(role="system", content="You are Ann."), *plain.messages))
    stances = ["Be brief.", "Be kind.", "Be formal."]
    drawn = [under_stances(Prompt.ask(f"q{i}"), stances, 0, 2) for i in range(30)]
    assert {tuple(dialogue[0].content for dialogue in dialogues) for dialogues in drawn} == set(permutations(stances, 2))
    (system, user), _ = under_stances(plain, stances, 0, 2)
    assert (system.role, user) == ("system", plain.messages[0])
    (system, user), _ = under_stances(told, stances, 0, 2)
    assert system.content.startswith("You are Ann.\n\nBe ")
    assert user == plain.messages[0]


def test_a_template_without_a_system_turn_cannot_give_diverse_candidates(tmp_path):
    model = save_random_model(tmp_path / "model", "llama")
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    template = (
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    (model / "chat_template.jinja").unlink(missing_ok=True)
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"chat_template": template}))
    trunk = load_trunk(str(model))
    check_system_turn(LocalSampler(trunk, "m"), [])
    with pytest.raises(InputError, match=r"diverse needs a system turn, and the model's chat template leaves out the system"):
        check_system_turn(LocalSampler(trunk, "m"), ["Be kind."])


def test_what_the_judge_says_is_a_chain_of_judgments_that_gives_the_pairs_of_the_run(tmp_path, write_recipe, random_llama):
    recipe = load_recipe(write_recipe(random_llama, feedback={"calibration": 0.5}))
    run_recipe(recipe, tmp_path / "run", until="feedback", quiet=True)
    judgments = read_judgments(tmp_path / "run/feedback/judgments.jsonl")
    assert tips(judgments) == [judgments[-1].hash]
    assert {one.rater_kind for one in judgments} == {"judge"}
    out = tmp_path / "pairs.jsonl"
    manifest = export_feedback(tmp_path / "run", out, "trl-conversational", Selection(calibration=0.5))
    assert manifest["tips"] == tips(judgments)
    trained = read_jsonl(tmp_path / "run/feedback/pairs.jsonl", Pair)
    exported = read_pairs(out).pairs
    key = [(p.prompt.id, p.chosen, p.rejected, p.principle, round(p.weight, 9)) for p in trained]
    assert sorted(key) == sorted((p.prompt.id, p.chosen, p.rejected, p.principle, round(p.weight, 9)) for p in exported)
    assert {pair.group_id for pair in exported} == {one.set_id for one in judgments if len(set(one.ranks.values())) > 1}


def test_an_ensemble_rewards_reinforcement_learning(tmp_path, write_recipe, random_llama):
    changes = {"reward_model": {"lora": {"rank": 2}, "ensemble": 2, "combine": "worst"}, "rl": {"lora": {"rank": 2}}}
    report = run_recipe(load_recipe(write_recipe(random_llama, **changes)), tmp_path / "run", quiet=True)
    assert report["reward_model"]["n"] > 0
    card = json.loads((tmp_path / "run/reward_model/model/reward_model.json").read_text())
    assert [member["role"] for member in card["members"]] == ["reward", "reward_2"]
    log = [json.loads(line) for line in (tmp_path / "run/rl/metrics.jsonl").read_text().splitlines()]
    assert all(row["reward/reward_model/disagreement"] > 0 for row in log)
    assert report["detectors"][-1]["message"] == "needs 20 steps of training"


def silent(*_: str) -> dict[str, None]:
    return {"harmful": None}


def test_a_scorer_that_cannot_say_stops_the_run(tmp_path, write_recipe, random_llama, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    changes = {"gates": {"override": False}, "evaluation": {"scorer": "python:test_pipeline:silent"}}
    recipe = load_recipe(write_recipe(random_llama, **changes))
    with pytest.raises(GateError, match="100% of 12 responses are unscored"):
        run_recipe(recipe, tmp_path / "run", quiet=True)
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert "unscored" in report["stopped"]


def test_a_judge_without_labelled_pairs_stops_the_run_before_it_revises(tmp_path, write_recipe, random_llama):
    recipe = load_recipe(write_recipe(random_llama, gates={"override": False}, feedback={"labelled_pairs": None}))
    with pytest.raises(GateError, match="no labelled pairs to test the judge on"):
        run_recipe(recipe, tmp_path / "run", quiet=True)
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} == {"prompts"}


def count_words(_: str, response: str) -> int:
    return len(response.split())


def test_a_reward_of_many_parts_with_a_cost_has_a_curve_for_each(
    tmp_path, write_recipe, random_llama, before_rl, monkeypatch
):  # fmt: skip
    shutil.copytree(before_rl, tmp_path / "run")
    save_random_classifier(tmp_path / "classifier")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    parts = {
        "reward_model": {}, "length": {"weight": -0.01}, "words": {"source": "python:test_pipeline:count_words"},
        "helpful": {"source": "judge:base", "weight": 0.5}, "kind": {"source": "classifier:classifier:KIND"},
    }  # fmt: skip
    rl = {"reward": parts, "cost": {"part": "words", "budget": 2.0}}
    recipe = load_recipe(write_recipe(random_llama, rl=rl))
    run_recipe(recipe, tmp_path / "run", until="rl", quiet=True)
    metrics = [json.loads(line) for line in (tmp_path / "run/rl/metrics.jsonl").read_text().splitlines()]
    for row in metrics:
        assert {f"reward/{name}" for name in parts} <= row.keys()
        assert row["reward/length"] == pytest.approx(row["response_tokens"])
    moved = metrics[1]["cost_multiplier"] - metrics[0]["cost_multiplier"]
    assert (moved > 0) == (metrics[0]["reward/words"] > 2.0)


def test_without_a_reward_model_in_the_sum_none_is_trained(tmp_path, write_recipe, random_llama):
    path = write_recipe(random_llama)
    rl = {"method": "ppo", "steps": 2, "prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 8,
          "reward": {"length": {"weight": -0.1}}}  # fmt: skip
    report = run_recipe(load_recipe(path, [f"rl={json.dumps(rl)}"]), tmp_path / "run", until="rl", quiet=True)
    assert "reward_model" not in [stage["name"] for stage in report["stages"]]


def test_the_base_as_judge_is_the_folder_of_the_base_in_four_bits_too(tmp_path, write_recipe, random_llama):
    lora = {"lora": {"rank": 2}}
    recipe = load_recipe(write_recipe(random_llama, quantization="nf4", sft=lora, reward_model=lora, rl=lora,
                                      evaluation={"scorer": f"judge:{random_llama}"}))  # fmt: skip
    with Run(tmp_path / "run", quiet=True) as run:
        models = Models(run, recipe)
        assert models.identity_of(recipe.feedback.judge) == models.identity_of(recipe.scorer)


def test_a_judge_that_rewards_may_not_also_score_the_report(tmp_path, write_recipe, random_llama, before_rl):
    shutil.copytree(before_rl, tmp_path / "run")
    rl = {"reward": {"helpful": {"source": "judge:base"}}}
    changes = {"rl": rl, "evaluation": {"scorer": f"judge:{random_llama}"}}
    report = run_recipe(load_recipe(write_recipe(random_llama, **changes)), tmp_path / "run", until="rl", quiet=True)
    overridden = [gate for gate in report["gates"] if gate["name"] == "independent scorer" and gate["stage"] == "rl"]
    assert [gate["overridden"] for gate in overridden] == [True]


def test_a_scorer_is_compared_with_the_reward_where_the_training_is_skipped_too(tmp_path, write_recipe, random_llama):
    trained = set()

    def stages_that_fail(scorer: str) -> list[str]:
        changes = {"rl": {"steps": 1, "reward": {"helpful": {"source": "judge:base"}}}, "evaluation": {"scorer": scorer}}
        recipe = load_recipe(write_recipe(random_llama, **changes, revise=None, sft=None))
        report = run_recipe(recipe, tmp_path / "run", until="rl", quiet=True)
        assert verify_run(tmp_path / "run")["differences"] == []
        trained.add((tmp_path / "run/rl/manifest.json").stat().st_mtime_ns)
        return [gate["stage"] for gate in report["gates"] if gate["name"] == "independent scorer"]

    assert stages_that_fail("refusal-words") == []
    assert stages_that_fail(f"judge:{random_llama}") == ["feedback", "rl"]
    assert stages_that_fail("refusal-words") == []
    assert len(trained) == 1


TWO_ROUNDS = {"rounds": 2, "revise": None, "sft": None, "reward_model": {"lora": {"rank": 2}}, "evaluation": {"best_of": 4},
              "rl": {"lora": {"rank": 2}, "steps": 1, "learning_rate": 0.1}}  # fmt: skip


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory, random_llama):
    """The folder of a recipe of two rounds and of its run."""
    folder = tmp_path_factory.mktemp("rounds")
    run_recipe(load_recipe(write_tiny_recipe(folder, random_llama, **TWO_ROUNDS)), folder / "run", quiet=True)
    return folder


def test_best_of_n_asks_the_reward_model_of_the_last_round_on_the_model_it_was_trained_from(two_rounds):
    run = two_rounds / "run"
    trunk, scorers = load_reward_model(run / "reward_model-2/model")
    answers = list(read_jsonl(run / "evaluate/responses.best_of_n.jsonl", Response))
    prompts = {prompt.id: prompt for prompt in read_jsonl(run / "prompts/prompts.jsonl", Prompt)}
    rows = [Tokens(encode_prompt(trunk.tokenizer, prompts[a.prompt_id].messages), encode_response(trunk.tokenizer, a.text))
            for a in answers]  # fmt: skip
    best = reward_scores(trunk, scorers, rows, 8192).view(-1, 4).argmax(dim=1).tolist()
    chosen = [row.response_id for row in read_jsonl(run / "evaluate/verdicts.best_of_n.jsonl", ScoredResponse)]
    assert chosen == [answers[4 * i + j].id for i, j in enumerate(best)]


def test_a_run_up_to_rl_trains_in_every_round(two_rounds, tmp_path):
    shutil.copytree(two_rounds / "run", tmp_path / "run")
    for until, last in (("reward_model", "reward_model"), ("rl", "rl-2")):
        report = run_recipe(load_recipe(two_rounds / "recipe.yaml"), tmp_path / "run", until=until, quiet=True)
        assert report["stages"][-1]["name"] == last


def test_the_policy_of_a_run_is_that_of_its_last_round(two_rounds, capsys):
    run = two_rounds / "run"
    assert model_of_run(run, "policy") == str(run / "rl-2/model")
    assert gather(run).stage == "rl-2"
    assert gather(run).files["README.md"] == (run / "rl-2/model/README.md").read_bytes()
    assert b"Harmful compliance" not in gather(run / "rl").files["README.md"]  # which the report does not measure
    assert not (run / "rl/model/README.md").exists()
    first, last = (read_json(run / name / "manifest.json")["result"] for name in ("reward_model", "reward_model-2"))
    card = (run / "reward_model-2/model/README.md").read_text()
    assert "This is the reward model of a run" in card
    assert f"{last['accuracy']:.3f}" in card
    assert gather(run / "reward_model-2").files["README.md"].decode() == card.replace(": reward_model", ": reward_model-2")
    report = read_json(run / "report.json")
    assert (report["reward_model"]["accuracy"], report["reward_model"]["ece"]) == (last["accuracy"], last["ece"])
    assert report["reward_model_on_labelled_pairs"] == last["labelled"] != first["labelled"]
    assert verify_run(run)["equal"]
    report = json.loads((run / "report.json").read_text())
    names = ("reward_model-2", "feedback-2", "feedback")
    last = {name: json.loads((run / name / "manifest.json").read_text())["result"] for name in names}
    feedback = [last["feedback"], last["feedback-2"]]
    assert report["reward_model"] == {key: value for key, value in last["reward_model-2"].items() if key != "labelled"}
    assert report["reward_model_on_labelled_pairs"] == last["reward_model-2"]["labelled"]
    assert (report["judges"], report["candidates"]) == ([last["feedback-2"]["judge"]], last["feedback-2"]["candidates"])
    assert sum(row["judgments"] for row in report["data_card"]["raters"]) == sum(row["comparisons"] for row in feedback)
    for words in (["export", "--to", "trl"], ["ratings", "--of", "responses"]):
        command = [words[0], str(run), *words[1:], "--out", str(two_rounds / words[0])]
        assert run_command(command) == 2
        assert f"several rounds; name one, {run}/feedback to {run}/feedback-2" in capsys.readouterr().err
    assert reward_folder(run) == run / "reward_model-2/model"
    prompts = {prompt.id: prompt for prompt in read_jsonl(run / "prompts/prompts.jsonl", Prompt)}
    answers = list(read_jsonl(run / "feedback-2/responses.jsonl", Response))[:4]
    trunk, scorers = load_reward_model(run / "reward_model-2/model")
    rows = [(prompts[answer.prompt_id], answer.text) for answer in answers]
    expected, _ = features_of(trunk, scorers.roles[0], rows, trunk.room)
    assert response_features(run, None, prompts, answers) == pytest.approx(expected, abs=1e-5)
    run_recipe(load_recipe(two_rounds / "recipe.yaml", ["rounds=1"]), run, quiet=True)
    assert (run / "rl-2/model").is_dir()
    assert model_of_run(run, "policy") == str(run / "rl/model")
    assert policy_of(run) == run / "rl/model"


@pytest.mark.parametrize("kinds", [("red_team", "benign", "harmful"), ("task",)])
def test_prompts_of_neither_kind_are_counted_where_others_are_of_one(tmp_path, write_recipe, random_llama, capsys, kinds):
    rows = [
        {"prompt": f"{kind} {n}", "tags": [kind], "split": split} for kind in kinds for n, split in [(1, "train"), (2, "test")]
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"revise": None, "sft": None, "prompts": {"files": ["p.jsonl"]}}
    run_recipe(load_recipe(write_recipe(random_llama, **changes)), tmp_path / "run", until="prompts", quiet=False)
    assert ("prompts: 2 have neither the tag red_team nor benign" in capsys.readouterr().err) == ("harmful" in kinds)


def test_ties_of_a_file_are_no_part_of_the_accuracy_of_the_reward_model(tmp_path, write_recipe, random_llama):
    rows = [{"prompt": f"q {n}", "chosen": "Yes, gladly." if n % 2 else "No.", "rejected": "No." if n % 2 else "Yes, gladly.",
             "p": 0.5 if n % 2 else 1} for n in range(24)]  # fmt: skip
    (tmp_path / "ties.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = write_recipe(random_llama, **dict.fromkeys(("revise", "sft", "prompts", "evaluation", "rl")))
    recipe = load_recipe(path, ["feedback={pairs: [ties.jsonl], labelled_pairs: ties.jsonl}", "reward_model.test_fraction=0.5"])
    report = run_recipe(recipe, tmp_path / "run", until="reward_model", quiet=True)
    held_out, labelled = report["reward_model"], report["reward_model_on_labelled_pairs"]
    assert (held_out["n"] + held_out["ties"], labelled["n"], labelled["ties"]) == (12, 12, 12)
    assert held_out["ties"] > 0
    assert (held_out["baseline_shorter_wins"], labelled["baseline_shorter_wins"]) == (1.0, 1.0)


def test_a_renamed_file_of_prompts_is_read_again(tmp_path, write_recipe, random_llama):
    left_out = dict.fromkeys(("revise", "sft", "feedback", "rl"))
    for name, kind in (("or-bench-toxic.csv", "red_team"), ("or-bench-hard.csv", "benign")):
        (tmp_path / name).write_text("prompt,category\n" + "".join(f"How is a {w} mended?,deception\n" for w in ("car", "lamp")))
        path = write_recipe(random_llama, **left_out, prompts={"files": [name]})
        run_recipe(load_recipe(path), tmp_path / "run", until="prompts", quiet=True)
        prompts = list(read_jsonl(tmp_path / "run/prompts/prompts.jsonl", Prompt))
        assert {prompt.tags for prompt in prompts} == {(kind, "deception")}


def test_at_most_so_many_pairs_of_a_file_are_those_of_whole_prompts(tmp_path, write_recipe, random_llama):
    rows = [{"prompt": f"q {i}", "chosen": f"good {j}", "rejected": "bad"} for i in range(4) for j in range(3)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = dict.fromkeys(("revise", "sft", "prompts", "evaluation"))
    path = write_recipe(random_llama, **stages, rl={"method": "dpo"})
    recipe = load_recipe(path, ["feedback={pairs: [many.jsonl], max_pairs: 8}"])
    run_recipe(recipe, tmp_path / "run", until="feedback", quiet=True)
    taken = [pair.prompt.id for pair in read_jsonl(tmp_path / "run/feedback/pairs.jsonl", Pair)]
    assert [taken.count(key) for key in dict.fromkeys(taken)] == [3, 3]


def test_another_precision_answers_again(tmp_path, write_recipe, random_llama):
    stages = dict.fromkeys(("revise", "sft", "feedback", "rl"))
    path = write_recipe(random_llama, **stages)
    run_recipe(load_recipe(path), tmp_path / "run", quiet=True)
    report = run_recipe(load_recipe(path, ["precision=bfloat16"]), tmp_path / "run", quiet=True)
    assert [stage["skipped"] for stage in report["stages"]] == [False, False]
