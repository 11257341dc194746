"""What a plan says holds for the run: counts are exact, lengths are bounds, and no weight is read."""

import json
import re
import struct

import pytest
import torch

from charter.commands.app import run_command
from charter.errors import InputError
from charter.models.load import load_model
from charter.models.packing import Tokens
from charter.models.shape import read_shape
from charter.models.trunk import load_trunk
from charter.pipeline import run_recipe
from charter.plan.fit import NO_TEXTS, certain_bytes, check_machine
from charter.plan.labels import Rates
from charter.plan.loads import loads_of, shapes_of
from charter.plan.machine import free_memory, memory_of
from charter.plan.plan import plan_recipe
from charter.plan.table import plan_table
from charter.reading.prompts import KINDS
from charter.recipe.files import load_recipe
from charter.recipe.settings import LoRASettings
from charter.run.progress import duration, size
from charter.stages.load import Counted, Given, Load
from charter.stages.sft.settings import SFTSettings
from conftest import save_random_model


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "llama"])
def test_headers_tell_the_parameters_of_model_and_adapter(tmp_path, architecture):
    folder = save_random_model(tmp_path / "model", architecture)
    shape = read_shape(str(folder))
    assert shape.parameters == load_model(str(folder)).num_parameters()
    lora = LoRASettings(rank=3)
    trunk = load_trunk(str(folder), lora=lora)
    trunk.add_role("policy")
    assert shape.adapter(lora) == sum(p.numel() for p in trunk.parameters("policy").values())


def test_no_weight_is_read(tmp_path, write_recipe):
    model = save_random_model(tmp_path / "model", "llama")
    recipe = load_recipe(write_recipe(model))
    whole = plan_recipe(recipe)
    file = model / "model.safetensors"
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    file.write_bytes(content[: 8 + length])  # the header alone
    assert plan_recipe(recipe)["parameters"] == whole["parameters"]
    file.write_bytes(b"\xff" * 20)
    with pytest.raises(InputError, match=r"model\.safetensors.*header"):
        plan_recipe(recipe)


def stages(figures):
    return {stage["stage"]: stage for stage in figures["stages"]}


def test_tokens_of_reinforcement_learning_are_steps_times_rollouts_times_length(random_llama, write_recipe):
    rl = {"steps": 5, "prompts_per_step": 6, "samples_per_prompt": 3, "max_new_tokens": 7}
    plain = plan_recipe(load_recipe(write_recipe(random_llama, rl={"method": "rloo", **rl})))
    ppo = plan_recipe(load_recipe(write_recipe(random_llama, rl={"method": "ppo", "epochs": 4, **rl})))
    assert stages(plain)["rl"]["generated"] == stages(ppo)["rl"]["generated"] == 5 * 6 * 3 * 7
    # PPO trains policy and value model, four times each.
    assert stages(ppo)["rl"]["trained"] == pytest.approx(8 * stages(plain)["rl"]["trained"], abs=8)
    row = plain["prompt_tokens"]["mean"] + 7
    assert stages(plain)["rl"]["trained"] == pytest.approx(5 * 6 * 3 * row, rel=0.01)


def test_responses_under_another_system_turn_are_planned_with_it(tmp_path, random_llama, write_recipe):
    (tmp_path / "stances.txt").write_text("Answer kindly.\nAnswer in verse, please.\n")
    plain, diverse = (stages(plan_recipe(load_recipe(write_recipe(random_llama, feedback=more))))["feedback"]["scored"]
                      for more in ({}, {"sampling": "diverse", "stances": "stances.txt"}))  # fmt: skip
    assert diverse > plain


def test_a_run_takes_no_more_tokens_than_planned(tmp_path, random_llama, write_recipe):
    recipe = load_recipe(write_recipe(random_llama))
    figures = plan_recipe(recipe)
    report = run_recipe(recipe, tmp_path / "run", until="rl", quiet=True)
    assert [stage["name"] for stage in report["stages"]] == [stage["stage"] for stage in figures["stages"]][:-1]
    done = json.loads((tmp_path / "run/prompts/manifest.json").read_text())["result"]
    assert done["counts"] == figures["prompts"]
    planned = stages(figures)["sft"]["trained"]
    trained = sum(row["tokens"] for row in report["curves"]["sft"])  # of responses only
    assert 0 < trained <= planned
    rolled = sum(row["response_tokens"] for row in report["curves"]["rl"]) * 4 * 2
    assert 0.5 * stages(figures)["rl"]["generated"] <= rolled <= stages(figures)["rl"]["generated"]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_activations_are_what_backward_keeps_to_within_a_factor_of_two(tmp_path, architecture):
    folder = str(save_random_model(tmp_path / "model", architecture))
    trunk = load_trunk(folder)
    trunk.add_role("policy")
    rows = [Tokens(ids[:16], ids[16:]) for ids in torch.randint(5, 200, (8, 64)).tolist()]
    packed = trunk.pack(rows)
    own = {p.untyped_storage().data_ptr() for p in trunk.parameters("policy").values()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trunk.logprobs("policy", packed)
    load = Load("sft")
    load.activate(read_shape(folder), SFTSettings(tokens_per_micro_batch=8 * 64), 8, 64, 48, copies=3)
    measured = sum(n for n, _ in kept.values())
    assert 0.5 < load.memory["activations"] / measured < 2


def test_memory_by_role(random_llama, write_recipe):
    full = plan_recipe(load_recipe(write_recipe(random_llama, rl={"method": "ppo"})))
    n = 4 * full["parameters"]
    assert stages(full)["sft"]["memory"]["weights"] == 2 * n  # the base and what is trained
    assert stages(full)["sft"]["memory"]["gradients"] == n
    assert stages(full)["sft"]["memory"]["adam"] == 2 * n
    assert stages(full)["rl"]["memory"]["weights"] == 4 * n  # base, policy, value, reward
    assert stages(full)["rl"]["memory"]["adam"] == 4 * n
    lora = {"lora": {"rank": 2}}
    changes = {"rl": {"method": "ppo", **lora}, "sft": lora, "reward_model": lora}
    small = plan_recipe(load_recipe(write_recipe(random_llama, **changes)))
    a = 4 * small["adapter_parameters"]
    assert 0 < a < n
    assert stages(small)["rl"]["memory"]["weights"] == n + 3 * a
    assert stages(small)["rl"]["memory"]["adam"] == 4 * a
    for stage in full["stages"]:
        assert max(stage["memory"].values()) < stage["peak_bytes"] <= sum(stage["memory"].values())


def test_models_that_compute_hold_a_copy_in_the_precision_of_the_products(random_llama, write_recipe):
    figures = plan_recipe(load_recipe(write_recipe(random_llama, precision="bfloat16")))
    copies = {name: stage["memory"]["cast_weights"] / (2 * figures["parameters"]) for name, stage in stages(figures).items()}
    # The base is idle where a copy of it is trained; RLOO reads policy, reference and reward model.
    assert copies == {"prompts": 1, "revise": 1, "sft": 1, "feedback": 2, "reward_model": 1, "rl": 3, "evaluate": 3}


def test_without_fine_tuning_generator_and_judge_are_one_model(random_llama, write_recipe):
    with_sft = plan_recipe(load_recipe(write_recipe(random_llama)))
    without = plan_recipe(load_recipe(write_recipe(random_llama, sft=None, revise=None)))
    held = [stages(figures)["feedback"]["memory"]["weights"] / (4 * figures["parameters"]) for figures in (with_sft, without)]
    assert held == [2, 1]


def test_a_prompt_stands_in_a_line_once_for_all_its_responses(random_llama):
    def kept(siblings: int) -> float:
        load = Load("reward_model")
        load.activate(read_shape(str(random_llama)), SFTSettings(), 16, 40, 12, copies=0, siblings=siblings)
        return load.memory["activations"]

    assert kept(8) / kept(1) == pytest.approx((28 / 8 + 12) / 40)


def test_a_peak_above_the_memory_is_said(random_llama, write_recipe):
    fine = plan_recipe(load_recipe(write_recipe(random_llama)))
    assert fine["fits"]
    assert any("fits into" in line for line in plan_table(fine))
    sft = {"tokens_per_micro_batch": 10**12, "responses_per_step": 10**10}
    large = plan_recipe(load_recipe(write_recipe(random_llama, sft=sft)))
    assert not large["fits"]
    assert large["peak_stage"] == "sft"
    assert any("does NOT fit" in line and "tokens_per_micro_batch" in line for line in plan_table(large))


def test_the_command_prints_a_table_or_json(random_llama, write_recipe, capsys):
    path = str(write_recipe(random_llama))
    assert run_command(["plan", path]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^rl +\d", text, re.MULTILINE)
    assert "rough estimate" in text
    assert run_command(["plan", path, "--json", "--set", "rl.steps=1"]) == 0
    assert stages(json.loads(capsys.readouterr().out))["rl"]["generated"] == 4 * 2 * 12


def test_requests_tokens_and_money_of_endpoints(random_llama, write_recipe):
    big = {"url": "http://127.0.0.1:1/v1", "model": "m", "input_price": 2.0, "output_price": 10.0, "budget_tokens": 100}
    changes = {"endpoints": {"big": big}, "feedback": {"judge": "endpoint:big"}, "revise": {"critic": "endpoint:big"}}
    here = plan_recipe(load_recipe(write_recipe(random_llama)))
    there = plan_recipe(load_recipe(write_recipe(random_llama, **changes)))
    # Two orders of 24 comparisons, of 12 labelled pairs by three protocols; a critique and a revision of 12 prompts in 2 rounds.
    assert stages(there)["feedback"]["requests"] == {"big": 2 * (24 + 3 * 12)}
    assert stages(there)["revise"]["requests"] == {"big": 2 * 2 * 12}
    asked = there["endpoints"]["big"]
    assert asked["requests"] == 120 + 48
    assert asked["output_tokens"] == 120 + 48 * 12
    assert asked["money"] == pytest.approx((asked["input_tokens"] * 2 + asked["output_tokens"] * 10) / 1e6, abs=1e-4)
    assert asked["too_small"] == ["budget_tokens"]
    moved = stages(here)["feedback"]["scored"] - stages(there)["feedback"]["scored"]
    assert 0 < moved < asked["input_tokens"]
    assert any("at most 168 requests" in line and "budget_tokens allows" in line for line in plan_table(there))
    assert here["endpoints"] == {}


def test_no_model_is_bad_input(tmp_path, write_recipe, capsys):
    assert run_command(["plan", str(write_recipe(tmp_path / "none"))]) == 2
    assert "no such model folder" in capsys.readouterr().err


def test_amounts_read_well():
    assert [size(n) for n in (8e6, 1.25e9)] == ["8 MB", "1.2 GB"]
    assert [duration(s) for s in (12.4, 600, 7200)] == ["12 s", "10 min", "2.0 h"]


LORA = {"lora": {"rank": 16}}


def test_checkpointing_is_planned_to_keep_less(random_llama, write_recipe):
    plain = plan_recipe(load_recipe(write_recipe(random_llama)))
    again = plan_recipe(load_recipe(write_recipe(random_llama, gradient_checkpointing=True)))
    for stage in ("sft", "reward_model", "rl"):
        kept = [stages(figures)[stage]["memory"]["activations"] for figures in (plain, again)]
        assert kept[1] < 0.8 * kept[0]
    assert stages(again)["sft"]["trained"] == stages(plain)["sft"]["trained"]


def test_a_run_that_cannot_fit_is_refused_before_anything_loads_with_what_fits(
    tmp_path, random_llama, write_recipe, monkeypatch, capsys
):
    """The proposal is what the line says: the run goes through with it."""
    recipe = write_recipe(random_llama)
    whole = max(certain_bytes(load) for load in loads_at_least(recipe))
    with_lora = max(certain_bytes(load) for load in loads_at_least(write_recipe(random_llama, sft=LORA, reward_model=LORA,
                                                                               rl=LORA)))  # fmt: skip
    recipe = write_recipe(random_llama)
    assert with_lora < whole
    monkeypatch.setattr("charter.plan.fit.free_memory", lambda _: int(with_lora))
    assert run_command(["run", str(recipe), "--out", str(tmp_path / "run"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert f"needs at least {size(whole)} for weights" in said
    assert "--set sft.lora.rank=16 --set reward_model.lora.rank=16 --set rl.lora.rank=16 needs" in said
    assert "checkpointing" not in said  # would save nothing of this
    assert not (tmp_path / "run").exists()
    proposed = re.findall(r"--set (\S+)", said)
    check_machine(load_recipe(recipe, proposed))
    monkeypatch.setattr("charter.plan.fit.free_memory", lambda _: 1000)
    with pytest.raises(InputError, match="take a smaller model"):
        check_machine(load_recipe(recipe))


def loads_at_least(recipe):
    loaded = load_recipe(recipe)
    shapes = shapes_of(loaded)
    counts = {f"{split} {kind}": 0 for split in ("train", "test") for kind in KINDS}
    return loads_of(Counted(loaded, shapes, NO_TEXTS, counts, 0, 0, Given(), Given()))


def test_what_is_certain_is_no_more_than_the_plan(random_llama, write_recipe):
    recipe = write_recipe(random_llama)
    planned = plan_recipe(load_recipe(recipe))["stages"]
    for least, most in zip(loads_at_least(recipe), planned, strict=True):
        assert certain_bytes(least) <= most["peak_bytes"]


def test_a_plan_that_does_not_fit_proposes_the_mildest_change(random_llama, write_recipe, monkeypatch):
    recipe = load_recipe(write_recipe(random_llama, sft={"tokens_per_micro_batch": 200_000, "responses_per_step": 10_000}))
    needed = plan_recipe(recipe)["peak_bytes"]
    monkeypatch.setattr("charter.plan.plan.memory_of", lambda _: int(0.95 * needed))
    figures = plan_recipe(recipe)
    assert not figures["fits"]
    assert "sft.tokens_per_micro_batch=1024" in figures["would_fit"]
    assert "lora" not in figures["would_fit"]
    assert any(figures["would_fit"] in line for line in plan_table(figures))


def test_free_memory_is_some_of_what_there_is():
    assert 0 < free_memory("cpu") <= memory_of("cpu")


def test_labels_of_people_cost_time_and_money_at_editable_rates(write_recipe, random_llama, capsys):
    path = write_recipe(random_llama)
    sets = ["--set", "feedback.prompts=20", "--set", "feedback.responses_per_prompt=3"]
    assert run_command(["plan", str(path), *sets, "--labels", "people", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    n = figures["labels"]["comparisons"]
    assert n == 20 * 3
    assert figures["labels"]["people"] == {"comparisons": n, "hours": round(n * 10 / 3600, 2), "money": n * 0.10}
    rates = ["--seconds-per-label", "36", "--price-per-label", "0.3", "--raters", "2", "--machine-price", "1.5"]
    mixed = ["--set", "feedback.raters=mixed", "--set", "feedback.human_share=0.5"]
    assert run_command(["plan", str(path), *sets, *mixed, *rates, "--labels", "people"]) == 0
    text = capsys.readouterr().out
    assert (
        "  people  60 answers (50% of the prompts), 2 raters each: 0.60 hours, money 18.00 at 36 s and 0.30 a comparison" in text
    )
    assert "on this machine, money" in text


def test_the_judge_costs_what_its_tokens_do(random_llama, write_recipe):
    path = write_recipe(random_llama)
    plain = plan_recipe(load_recipe(path), rates=Rates(machine_price=2.0))
    judge = plain["labels"]["judge"]
    assert 0 < judge["tokens"] < stages(plain)["feedback"]["scored"]
    assert judge["money"] == pytest.approx(2 * judge["hours"], abs=2e-4)
    server = {"url": "http://localhost:1/v1", "model": "m", "input_price": 3.0, "output_price": 0.0}
    sets = [f"endpoints.far={json.dumps(server)}", "feedback.judge=endpoint:far"]
    asked = plan_recipe(load_recipe(path, sets), rates=Rates())["labels"]["judge"]
    assert asked["hours"] is None
    assert asked["money"] == pytest.approx(asked["tokens"] * 3e-6, rel=0.02)  # a few of the tokens are written, for nothing


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--labels", "nobody"], "--labels 'nobody': people or judge"),
        (["--raters", "2"], "add --labels people"),
        (["--labels", "judge", "--raters", "2"], "asks no people"),
        (["--labels", "people", "--set", "feedback={revisions: true}"], "compares no responses"),
    ],
)
def test_rates_that_nothing_reads_are_refused(random_llama, write_recipe, options, words, capsys):
    assert run_command(["plan", str(write_recipe(random_llama)), *options]) == 2
    assert words in capsys.readouterr().err
