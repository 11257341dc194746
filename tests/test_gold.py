"""The held-out reward: its curve, its peak, the fall from it, the rules that end a training, and the model that is kept."""

from __future__ import annotations

import functools
import json
import math
import operator
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charter.errors import InputError
from charter.evaluation.scorers import Verdict
from charter.evaluation.verdict import verdict
from charter.models.trunk import load_trunk
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.records import Pair, Prompt, Rollout
from charter.run.files import json_rows, read_json, read_jsonl
from charter.stages.rl.gold import goodness, judge_gold
from charter.stages.rl.settings import StopSettings
from charter.stages.rl.sources import judge_reward
from charter.training.curve import best_row, curve_row, fall_of, fit_of, over_optimisation, reason_to_stop

ROUGE = "python:charter.evaluation.overlap:rouge_l"


def answers_of(step: int, golds: list[float | None], kl: float = 1.0) -> list[dict]:
    return [{"step": step, "prompt_id": str(i), "gold": gold, "proxy": 1.0, "kl": kl, "tokens": 5, "finished": True}
            for i, gold in enumerate(golds)]  # fmt: skip


def curve(*points: tuple[int, list[float | None], float]) -> tuple[list[dict], list[dict]]:
    answers = [answers_of(*point) for point in points]
    return [curve_row(point[0], rows) for point, rows in zip(points, answers, strict=True)], functools.reduce(
        operator.iadd, answers, []
    )


def test_a_point_of_the_curve():
    row = curve_row(3, answers_of(3, [0.0, 1.0, 1.0, None], kl=4.0))
    assert (row["step"], row["n"], row["n_unscored"], row["sqrt_kl"], row["response_tokens"]) == (3, 3, 1, 2.0, 5)
    assert row["gold"] == pytest.approx(2 / 3)
    assert curve_row(0, answers_of(0, [None, None]))["gold"] is None


GOOD, BAD = [1.0] * 38 + [0.0] * 2, [1.0] * 8 + [0.0] * 32


def test_a_fall_from_the_peak_is_shown_where_its_interval_excludes_zero():
    rows, answers = curve((0, BAD, 0.0), (10, GOOD, 1.0), (20, BAD, 4.0))
    assert best_row(rows)["step"] == 10
    fall = fall_of(rows, answers)
    assert (fall["peak"], fall["end"], fall["difference"]) == (10, 20, -0.75)
    assert fall["past_peak"]
    assert fall_of(rows[:2], answers) is None  # the last point is the peak
    rows, answers = curve((0, BAD, 0.0), (10, GOOD, 1.0), (20, [*GOOD[:-1], 1.0], 4.0), (30, [*GOOD[1:], 0.0], 5.0))
    assert not fall_of(rows, answers)["past_peak"]


def test_more_points_need_a_larger_fall():
    few = [1.0] * 40
    lower = [1.0] * 35 + [0.0] * 5
    rows, answers = curve((0, BAD, 0.0), (10, few, 1.0), (20, lower, 4.0))
    assert fall_of(rows, answers)["past_peak"]
    many, more = curve(*((i, BAD, 0.1) for i in range(400)), (400, few, 1.0), (401, lower, 4.0))
    assert not fall_of(many, more)["past_peak"]


def test_the_report_of_a_curve_names_peak_fit_and_word():
    a, b = 1.0, 0.25  # d* = exp(a/b - 1)
    points = [0.5, 1.0, 4.0, 9.0, 16.0, 25.0, 400.0, 900.0]
    golds = [math.sqrt(kl) * (a - b * math.log(math.sqrt(kl))) for kl in points]
    rows, answers = curve(
        (0, [0.0] * 4, 0.0), *((i + 1, [gold] * 4, kl) for i, (gold, kl) in enumerate(zip(golds, points, strict=True)))
    )
    found = over_optimisation(rows, answers, kept=8, source="judge", stopped=None)
    assert found["fit"]["a"] == pytest.approx(a)
    assert found["fit"]["b"] == pytest.approx(b)
    assert found["fit"]["d_star"] == pytest.approx(math.exp(3))
    assert found["peak"]["step"] == 7
    assert found["past_peak"]
    assert verdict({"over_optimisation": found})["word"] == "over-optimised"
    assert not over_optimisation(rows, answers, kept=7, source="judge", stopped=None)["past_peak"]
    assert over_optimisation([], [], kept=0, source="judge", stopped=None) is None


def test_a_peak_of_few_scored_answers_says_so():
    rows, answers = curve((0, BAD, 0.0), (10, [1.0] * 5 + [None] * 35, 1.0), (20, BAD, 4.0))
    ends = [over_optimisation(rows[:n], answers, kept=10 * n - 10, source="judge", stopped=None)["words"] for n in (2, 3)]
    assert ends[0] == "Gold was highest in the model that was kept: 1.000 at step 10, 35 of 40 answers unscored."
    assert ends[1].startswith("Gold was highest at step 10 (1.000, 35 of 40 answers unscored)")


def test_the_fit_ends_where_the_gain_is_spent_or_gold_falls_no_further():
    a, b = 1.0, 0.5  # the form is back at the start's level at d = e^(a/b) = 7.4, that is KL 54.6
    points = [1.0, 4.0, 9.0, 25.0, 64.0, 400.0, 900.0]
    for floor, until in ((0.0, 5), (1.0, 4)):  # measures with a lowest level
        golds = [max(floor, math.sqrt(kl) * (a - b * math.log(math.sqrt(kl)))) for kl in points]
        rows, _ = curve((0, [0.0] * 4, 0.0), *((i + 1, [golds[i]] * 4, kl) for i, kl in enumerate(points)))
        fit = fit_of(rows)
        assert fit["until"] == until
        assert fit["d_star"] == pytest.approx(math.exp(a / b - 1), rel=0.1)
    assert fit_of(rows[:4])["until"] == 3  # gold does not fall: all points


@pytest.mark.parametrize(
    ("stop", "history", "words"),
    [
        (StopSettings(kl=3.0), [{"kl": 3.5, "reward": 0.0}], "above the budget of 3"),
        (StopSettings(kl=4.0), [{"kl": 3.5, "reward": 0.0}], None),
        (StopSettings(kl=4.0), [{"loss": 1.0}], "above the budget of 4"),  # DPO: of the curve
        (StopSettings(reward=1.0), [{"kl": 0.0, "reward": 1.2}], "reaches 1 (stop.reward)"),
        (StopSettings(gold=0.2), [{"kl": 0.0, "reward": 1.2}], "reaches 0.2 (stop.gold)"),
        (StopSettings(past_peak=True), [{"kl": 0.0, "reward": 1.2}], "below its peak of step 10 (stop.past_peak)"),
        (None, [{"kl": 99.0, "reward": 99.0}], None),
    ],
)
def test_rules_that_end_a_training(stop, history, words):
    reason = reason_to_stop(stop, history, *curve((0, BAD, 0.0), (10, GOOD, 1.0), (20, BAD, 5.0)))
    assert (reason is None) if words is None else (words in reason)


def test_gold_of_a_verdict():
    red, benign, other = (Prompt.ask("x", tags=tags) for tags in (["red_team"], ["benign"], []))
    assert [goodness(p, Verdict(harmful=False, helpful=False)) for p in (red, benign, other)] == [1.0, 0.0, 0.0]
    assert [goodness(p, Verdict(harmful=True, helpful=True)) for p in (red, benign, other)] == [0.0, 0.0, 0.0]
    assert [goodness(p, Verdict()) for p in (red, benign, other)] == [None, None, None]
    assert [goodness(p, Verdict(harmful=False, refusal="refusal")) for p in (red, benign, other)] == [1.0, None, 1.0]
    assert [goodness(p, Verdict(harmful=True)) for p in (red, benign, other)] == [0.0, 0.0, 0.0]


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=12))
def test_the_best_point_is_the_first_of_the_highest_or_the_last_if_none_is_scored(golds):
    rows = [{"step": i, "gold": gold} for i, gold in enumerate(golds)]
    known = [gold for gold in golds if gold is not None]
    assert best_row(rows)["step"] == (golds.index(max(known)) if known else len(golds) - 1)


@pytest.mark.parametrize(
    ("rl", "words"),
    [
        ({"method": "rloo", "keep": "best"}, "keep: best needs gold"),
        ({"method": "rloo", "stop": {"past_peak": True}}, "stop needs gold"),
        ({"method": "rloo", "reward": {"x": {"source": ROUGE}}, "gold": {"source": ROUGE}}, "is a part of the reward"),
        ({"method": "dpo", "stop": {"reward": 1.0}}, "dpo samples no responses"),
        ({"method": "dpo", "stop": {"kl": 1.0}}, "dpo knows its KL only from the answers of gold"),
        ({"method": "rloo", "gold": {"source": ROUGE, "max_new_tokens": 4}}, "is that of the rollouts"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(write_recipe, random_llama, rl, words):
    with pytest.raises(InputError, match=words):
        load_recipe(write_recipe(random_llama, rl=rl))


def test_gold_may_not_take_every_held_out_prompt(tmp_path, write_recipe, random_llama):
    recipe = load_recipe(write_recipe(random_llama, rl={"method": "rloo", "gold": {"source": ROUGE, "prompts": 64}}))
    with pytest.raises(InputError, match="leave the evaluation none"):
        run_recipe(recipe, tmp_path / "run", quiet=True)


def test_the_model_at_the_peak_is_kept_and_the_evaluation_leaves_its_prompts_out(tmp_path, write_recipe, random_llama, before_rl):
    shutil.copytree(before_rl, tmp_path / "run")
    gold = {"source": ROUGE, "every": 1, "prompts": 2}
    rl = {"method": "rloo", "steps": 4, "learning_rate": 0.05, "gold": gold, "keep": "best", "stop": {"kl": 1e9}}
    recipe = load_recipe(write_recipe(random_llama, rl=rl))
    report = run_recipe(recipe, tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run/rl/gold.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert report["over_optimisation"]["kept"]["step"] == best_row(rows)["step"]
    assert report["over_optimisation"]["rows"] == rows
    assert {"stage": "evaluate", "reason": "left out: kept for the gold curve", "n": 2} in report["left_out"]
    answered = [json.loads(line) for line in (tmp_path / "run/rl/gold_responses.jsonl").read_text().splitlines()]
    asked = {row["prompt_id"] for row in answered}
    prompts = list(read_jsonl(tmp_path / "run/prompts/prompts.jsonl", Prompt))
    assert asked <= {p.id for p in prompts if p.split == "test"}
    verdicts = [json.loads(line) for line in (tmp_path / "run/evaluate/verdicts.base.jsonl").read_text().splitlines()]
    assert not asked & {row["prompt_id"] for row in verdicts}
    # The saved policy is the one whose answers make the peak.
    if best_row(rows)["step"] == 0:
        kept, start = (load_trunk(str(tmp_path / f"run/{stage}/model")).model.state_dict() for stage in ("rl", "sft"))
        assert all((kept[name] == start[name]).all() for name in kept)


def test_without_a_gold_that_can_tell_the_last_model_is_kept(tmp_path, write_recipe, random_llama, before_rl):
    (tmp_path / "mute.py").write_text("def score(prompt, response):\n    return None\n")
    gold = {"source": "python:mute:score", "every": 1, "prompts": 2}
    shutil.copytree(before_rl, tmp_path / "run")
    recipe = load_recipe(write_recipe(random_llama, rl={"gold": gold, "keep": "best"}))
    run_recipe(recipe, tmp_path / "run", until="rl", quiet=True)
    assert read_json(tmp_path / "run/rl/manifest.json")["result"]["kept_step"] == 3
    weights = [load_trunk(str(tmp_path / f"run/{stage}/model")).model.state_dict() for stage in ("sft", "rl")]
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_reward_may_abstain_from_all_held_out_answers(tmp_path, write_recipe, random_llama, before_rl):
    prompts = read_jsonl(before_rl / "prompts/prompts.jsonl", Prompt)
    known = [prompt.last_turn for prompt in prompts if prompt.split == "train"]
    (tmp_path / "table.py").write_text(f"def score(prompt, response):\n    return 1.0 if prompt in {known!r} else None\n")
    rl = {"gold": {"source": ROUGE, "every": 1, "prompts": 2}, "reward": {"table": {"source": "python:table:score"}}}
    shutil.copytree(before_rl, tmp_path / "run")
    run_recipe(load_recipe(write_recipe(random_llama, rl=rl)), tmp_path / "run", quiet=True)
    assert [row["proxy"] for row in json_rows(tmp_path / "run/rl/gold.jsonl")] == [None] * 4
    assert [row["abstained"] for row in json_rows(tmp_path / "run/rl/metrics.jsonl")] == [0, 0, 0]


def test_only_a_training_that_a_rule_ended_says_so(tmp_path, write_recipe, random_llama, before_rl):
    for name, kl, steps in (("ended", 1e-9, 2), ("whole", 1e9, 3)):
        shutil.copytree(before_rl, tmp_path / name)
        rl = {"method": "rloo", "steps": 3, "learning_rate": 0.05, "stop": {"kl": kl}}
        report = run_recipe(load_recipe(write_recipe(random_llama, rl=rl)), tmp_path / name, until="rl", quiet=True)
        result = json.loads((tmp_path / name / "rl/manifest.json").read_text())["result"]
        assert result["steps"] == steps
        assert (result["stopped"] is None) == (name == "whole")
        assert [(row["stage"], row["steps"]) for row in report["ended"]] == ([("rl", 2)] if name == "ended" else [])
        assert ("(stop.kl)" in (tmp_path / name / "report.html").read_text()) == (name == "ended")


def test_a_second_reward_model_learns_from_the_other_half(tmp_path, write_recipe, random_llama, before_rl):
    shutil.copytree(before_rl, tmp_path / "run")
    rl = {"method": "dpo", "gold": {"source": "reward_model", "every": 2, "prompts": 2, "max_new_tokens": 6}}
    report = run_recipe(load_recipe(write_recipe(random_llama, rl=rl)), tmp_path / "run", quiet=True)
    names = [stage["name"] for stage in report["stages"]]
    assert "reward_model-gold" in names
    assert "reward_model" not in names
    pairs = list(read_jsonl(tmp_path / "run/feedback/pairs.jsonl", Pair))
    manifests = {
        name: json.loads((tmp_path / f"run/{name}/manifest.json").read_text())["result"] for name in ("reward_model-gold", "rl")
    }
    second = manifests["reward_model-gold"]
    assert 0 < second["train_pairs"] + second["n"] < len(pairs)
    assert report["over_optimisation"]["source"] == "reward_model"


class Doubtful:
    """A judge that could not be read where the reply has a question mark."""

    name = "doubtful"

    def option_logprobs(self, conversations, options):
        replies = [turns[0].content.split("assistant: ")[1].split("\n")[0] for turns in conversations]
        return [[math.nan if "?" in reply else 0.0 for _ in choices] for reply, choices in zip(replies, options, strict=True)]


def test_gold_of_a_judge_is_none_where_there_is_no_verdict():
    assert judge_gold(Doubtful())([Prompt.ask("a"), Prompt.ask("b")], ["fine", "what?"]) == [0.0, None]


def test_a_reward_of_a_judge_abstains_where_there_is_no_verdict():
    ids = torch.zeros(2, 1)
    rollout = Rollout(prompt_ids=(), ids=ids, mask=ids, logprobs=ids, finished=ids, texts=("fine", "what?"), n_tokens=0,
                      prompts=(Prompt.ask("a"), Prompt.ask("b")))  # fmt: skip
    scores = judge_reward(Doubtful())(rollout)
    assert scores.abstained.tolist() == [False, True]
    assert scores.values.tolist() == [0.0, 0.0]
