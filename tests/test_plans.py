"""What the shipped recipes take, and what the source system's authors could not do for want of memory, verdicts or a trend."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from charter.evaluation.verdict import verdict
from charter.judging.judge import LETTERS
from charter.models.load import load_model
from charter.models.sampling.sampler import LocalSampler
from charter.models.shape import read_shape
from charter.pipeline import parts_of, run_recipe, stages_in_order
from charter.plan.fit import bytes_needed, what_fits
from charter.plan.loads import as_loaded
from charter.recipe.files import load_recipe, shipped
from charter.recipe.settings import LoRASettings
from charter.records import Judgment, Message
from charter.run.files import read_jsonl
from charter.run.run import Run
from charter.summary import alarms, stored_figures
from charter.training.watch import warnings_of

PAGE = Path(__file__).parents[1] / "docs/plans.py"
CARD = 24e9  # bytes


@pytest.fixture(scope="module")
def plans() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plans", PAGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- the page ------------------------------------------------------------------------------------------------------------


def test_the_page_has_a_row_and_a_section_of_every_shipped_recipe():
    text = PAGE.with_suffix(".md").read_text()
    for file in shipped("recipes").glob("*.yaml"):
        assert f"| [{file.stem}](#{file.stem}) |" in text
        assert f"\n## {file.stem}\n" in text


def test_the_7b_recipe_fits_a_card_of_24_gb(plans):
    with plans.made_up("meta-llama/Llama-2-7b-hf", share=0.01):
        recipe, counted, figures = plans.planned("llama2-7b-cai")
    assert figures["parameters"] == 6_738_415_616  # as published
    assert figures["peak_bytes"] < CARD
    weights = {one["stage"]: one["memory"]["weights"] for one in figures["stages"]}
    exact = 4 * (2 * 32000 * 4096 + 65 * 4096)  # embedding, output projection, norms
    assert weights["prompts"] == pytest.approx(exact + 0.516 * (figures["parameters"] - exact / 4), rel=1e-3)
    # What is written out for other programs is put together beside the GPU; only the adapters of a scorer are copied.
    kept = {one["stage"]: one["memory"].get("merged_copy") for one in figures["stages"]}
    assert (kept["sft"], kept["rl"], kept["reward_model"]) == (0, 0, None)
    # With twice as many texts at once it would not fit, and the plan says which setting to turn.
    more = recipe.model_copy(update={"batch_size": 16})
    assert bytes_needed(counted, more) > CARD
    assert what_fits(replace(counted, recipe=more), CARD).startswith("--set batch_size=4 ")
    own = PAGE.with_suffix(".md").read_text().partition("\n## llama2-7b-cai\n")[2].partition("\n## ")[0]
    assert "Fits 24 GB: yes" in own


def test_a_copy_of_the_weights_for_a_written_out_pass_is_planned_only_where_it_is_made(plans):
    recipe = load_recipe(shipped("recipes") / "mistral-cai-dpo.yaml")
    with plans.made_up("mistralai/Mistral-7B-Instruct-v0.2", "Qwen/Qwen2.5-0.5B", share=0.001):
        large, small = read_shape("mistralai/Mistral-7B-Instruct-v0.2"), read_shape("Qwen/Qwen2.5-0.5B")
    assert (large.parameters, small.parameters) == (7_241_732_096, 494_032_768)
    assert not as_loaded(large, recipe).fused
    assert as_loaded(small, recipe).fused


# -- what its authors could not do ---------------------------------------------------------------------------------------

LORA = {"lora": {"rank": 2}}


def test_out_of_memory_with_two_models_one_trunk_serves_policy_reference_reward_and_value(tmp_path, random_llama, write_recipe):
    recipe = load_recipe(write_recipe(random_llama, sft=LORA, reward_model=LORA, rl={"method": "ppo", **LORA}))
    with Run(tmp_path / "run", quiet=True) as run:
        parts = parts_of(run, recipe)
        for stage in stages_in_order(parts, "rl"):
            if stage == "rl":
                break
            parts.models.release()
        trunk = parts.models.trunk(str(tmp_path / "run/sft/model"), recipe.rl.lora)  # the one that PPO has just used
        assert trunk.playing is not None
        base, adapters = 0, {"policy": 0, "reward": 0, "value": 0}
        for name, parameter in trunk.model.named_parameters():
            role = next((one for one in adapters if f".{one}." in name), None)
            assert (role is not None) == ("lora_" in name)
            if role is None:
                base += parameter.numel()
            else:
                adapters[role] += parameter.numel()
        assert base == load_model(str(random_llama)).num_parameters()  # once, and the reference is no more than that
        assert set(adapters.values()) == {read_shape(str(random_llama)).adapter(LoRASettings(rank=2))}
        assert trunk.copies == {}
        assert set(trunk.heads) == {"reward", "value"}


def test_models_that_refuse_to_choose_every_comparison_has_a_verdict_or_a_counted_abstention(
    tmp_path, random_llama, write_recipe
):
    recipe = write_recipe(random_llama)
    folder = tmp_path / "run"
    run_recipe(load_recipe(recipe), folder, until="feedback", quiet=True)
    margins = sorted(abs(one.margin) for one in read_jsonl(folder / "feedback/judgments.jsonl", Judgment))
    floor = margins[len(margins) // 2]  # half of them are below
    unsure = load_recipe(recipe, [f"feedback.abstain_below={floor}"])
    with Run(folder, quiet=True) as run:
        parts = parts_of(run, unsure)
        for stage in stages_in_order(parts, "feedback"):
            if stage == "feedback":
                break
        found = next(one for one in run.stages if one.name == "feedback")
        judgments = list(read_jsonl(found.path("judgments.jsonl"), Judgment))
        # Asked for its words this model says no letter at all.
        asked = [(Message(role="user", content="Which is better, A or B?"),)] * 20
        said = LocalSampler(parts.models.trunk(str(random_llama)), "base").generate(
            asked, [[i] for i in range(20)], temperature=1.0, max_new_tokens=4
        )
        assert not any(one.text.strip() in LETTERS for group in said for one in group)
    assert len(judgments) == found.result["comparisons"] == 24
    tied = [one for one in judgments if one.has_verdict and len(set(one.ranks.values())) == 1]
    chosen = [one for one in judgments if one.has_verdict and len(set(one.ranks.values())) == 2]
    assert len(tied) + len(chosen) == found.result["verdicts"] == 24
    assert len(tied) == found.result["ties"] == sum(abs(one.margin) < floor for one in judgments) > 0
    assert len(chosen) == found.result["pairs"] > 0


def test_comparisons_without_a_verdict_are_counted_in_the_report(stage):
    stage.finish({"comparisons": 24, "verdicts": 21, "judge": {"n": 1}})
    (alarm,) = alarms(stage.result, [])
    assert (alarm["detector"], alarm["value"]) == ("no verdict", 3 / 24)


@pytest.mark.parametrize(("rise", "raised"), [(0.0, True), (0.05, False)])
def test_reward_without_trend_is_said_of_a_flat_curve_and_not_of_a_rising_one(stage, rise, raised):
    for step in range(20):
        wobble = 0.01 * (-1) ** step
        stage.record(step, reward=rise * step + wobble, reward_sem=0.05, kl=0.1, missing_eos=0.0, response_tokens=20)
    found = [one["detector"] for one in alarms({}, stage.metrics())]
    assert found == (["reward without trend"] if raised else [])


@pytest.mark.parametrize(
    ("last", "raised"), [(46, []), (31, []), (29, ["length fall"]), (16, ["length fall"]), (70, ["length growth"])]
)
def test_answers_that_end_far_longer_or_far_shorter_raise_an_alarm(stage, last, raised):
    for step in range(20):
        tokens = 46 if step < 16 else last
        stage.record(step, reward=0.1 * step, reward_sem=0.05, kl=0.1, missing_eos=0.0, response_tokens=tokens)
    found = alarms({}, stage.metrics())
    assert [one["detector"] for one in found] == raised
    assert all(one["value"] == last for one in found)


def test_the_alarms_of_a_later_round_are_in_the_report_too(tmp_path):
    sound = [{"reward": float(i), "kl": 0.1, "missing_eos": 0.0, "response_tokens": 20} for i in range(4)]
    cut = [row | {"missing_eos": 0.9} for row in sound]
    unsure = {"comparisons": 4, "verdicts": 3, "judge": {"n": 1}}
    results = {"feedback": {}, "rl": {}, "feedback-2": unsure, "rl-2": {}, "rl-random": {}}
    figures = stored_figures(tmp_path, results, {"rl": sound, "rl-2": cut, "rl-random": cut})
    assert [alarm["detector"] for alarm in figures["alarms"]] == ["no verdict", "missing EOS"]


def logged(rewards, sem):
    return [
        {"step": i, "reward": r, "reward_sem": sem, "kl": 0.1, "entropy": 1.0, "missing_eos": 0.0, "response_tokens": 20}
        for i, r in enumerate(rewards)
    ]


WAVE = [0.1 * (-1) ** i for i in range(40)]
CURVES = {
    # Ends a little above its start, by more than the spread within a batch and by less than the noise between batches.
    "within the noise": ([w + 0.03 * (i >= 32) for i, w in enumerate(WAVE)], 0.01, False),
    # Ends above its start, after a hump.
    "hump": ([0.01 * (-1) ** i + 1.0 * (8 <= i < 32) + 0.1 * (i >= 32) for i in range(40)], 0.4, False),
    # Rises in every part, in batches of few and scattered responses.
    "scattered batches": ([0.02 * i + w for i, w in enumerate(WAVE)], 1.0, True),
    "short": ([0.1 * i for i in range(19)], 0.01, None),
}


@pytest.mark.parametrize("name", CURVES)
def test_warning_alarm_and_verdict_agree_whether_the_reward_rose(stage, name):
    rewards, sem, rose = CURVES[name]
    rows = logged(rewards, sem)
    for row in rows:
        stage.record(**row)
    harm_rose = {"name": "harmful_compliance", "a": "base", "b": "policy", "difference": 0.1, "ci": [0.05, 0.15]}
    word = verdict({"contrasts": [harm_rose], "curves": {"rl": rows}})["word"]
    assert word == ("over-optimised" if rose else "worse")
    assert ("reward" in warnings_of(rows)) == (rose is False)
    assert ("reward without trend" in [alarm["detector"] for alarm in alarms({}, stage.metrics())]) == (rose is False)
