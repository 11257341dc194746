"""Rollouts sampled by vLLM with the trainer's weights; where it is not installed, what is said of that and what it would get."""

import importlib.util
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from charter.commands.app import run_command
from charter.errors import InputError
from charter.models.chat_template import encode_prompt
from charter.models.load import load_model
from charter.models.packing import Tokens
from charter.models.trunk import REFERENCE, load_trunk
from charter.recipe.settings import LoRASettings
from charter.records import Prompt
from charter.stages.rl.run import trainer_of
from charter.stages.rl.settings import METHODS, RLOOSettings, VLLMSettings
from charter.testbed.standins import save_stand_in
from charter.training.rewards import RewardSum
from charter.training.rollouts import collect
from charter.training.vllm_rollouts import engine_for
from test_team import ENVIRONMENT, assert_close, torchrun
from test_training import PRICED
from together import train_all

installed = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vllm; pip install 'charter-align[vllm]'")
SMALL = VLLMSettings(kv_cache_gb=0.05, max_rows=16)
PROMPTS = [Prompt.ask(f"Say {word} once, please.") for word in ("red", "green", "blue", "a long word", "yes", "no")]
ROLLOUTS = {"prompts_per_step": 4, "samples_per_prompt": 4, "max_new_tokens": 12, "vllm": SMALL}


def wider(folder, family):
    """A stand-in with heads of 64, which vLLM's attention has kernels for on every machine."""
    import transformers

    save_stand_in(folder, family)
    config = transformers.AutoConfig.from_pretrained(folder)
    if family == "gpt2":
        config.n_embd = 128
    else:
        config.hidden_size, config.head_dim = 64 * config.num_attention_heads, 64
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def shift(trunk, role):
    """Weights that are clearly others."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trunk.parameters(role).values():
            size = 0.3 * parameter.abs().mean().clamp(min=0.02)
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def gap(trunk, role, rollout, temperature):
    """Largest difference, in nats, between what the rollout says of its tokens and what the trunk says of them."""
    rows = [
        Tokens(prompt, row[mask].tolist())
        for prompt, row, mask in zip(rollout.prompt_ids, rollout.ids, rollout.mask, strict=True)
    ]
    with torch.no_grad():
        logprobs, _ = trunk.logprobs(role, trunk.pack(rows), temperature=temperature)
    return float((logprobs - rollout.logprobs)[rollout.mask].abs().max())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("lora", [None, LoRASettings(rank=4, alpha=8)])
def test_the_weights_handed_over_are_those_of_a_plain_model_that_scores_the_same(tmp_path, family, lora):
    trunk = load_trunk(str(save_stand_in(tmp_path / family, family)), lora=lora)
    trunk.add_role("policy")
    shift(trunk, "policy")
    ids = torch.tensor([encode_prompt(trunk.tokenizer, PROMPTS[0].messages)])
    for role in ("policy", REFERENCE):
        plain = load_model(str(tmp_path / family))
        names = set(plain.state_dict())
        handed = dict(trunk.plain_weights(role))
        assert handed.keys() <= names
        missing, unknown = plain.load_state_dict(handed, strict=False)
        assert not unknown
        assert {name for name in missing if "lm_head" not in name} == set()
        with torch.no_grad(), trunk.as_role(role) as model:
            assert torch.allclose(plain(ids).logits, model(ids).logits, atol=1e-5)


def test_without_vllm_one_line_says_how_to_get_it(write_recipe, random_llama, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    recipe = write_recipe(random_llama, rl={"vllm": {}})
    assert run_command(["run", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert (
        "field 'rl.vllm': needs vLLM, which is missing; install it with: pip install 'charter-align[vllm]'"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_the_plan_counts_the_copy_and_the_cache(write_recipe, random_llama, capsys):
    peaks = []
    for vllm in (None, {"kv_cache_gb": 1}, {"kv_cache_gb": 3}):
        recipe = write_recipe(random_llama, rl={"vllm": vllm})
        assert run_command(["plan", str(recipe), "--json"]) == 0
        stages = {stage["stage"]: stage["peak_bytes"] for stage in json.loads(capsys.readouterr().out)["stages"]}
        peaks.append(stages["rl"])
    assert peaks[2] - peaks[1] == 2 * 2**30
    assert 2**29 < peaks[1] - peaks[0] <= 2**30 + 10**7


def test_an_encoder_decoder_is_refused_in_words(tmp_path):
    trunk = load_trunk(str(save_stand_in(tmp_path / "model", "flan_t5")))
    refused = pytest.raises(InputError, match="serves decoders whose weights are whole")
    with refused, engine_for(trunk, PROMPTS, RLOOSettings(**ROLLOUTS)):
        pass


@installed
@pytest.mark.parametrize("family", ["llama", "llama3", "qwen2", "qwen3", "gpt2"])
@pytest.mark.parametrize("lora", [None, LoRASettings(rank=4, alpha=8)])
def test_vllm_draws_with_the_probabilities_of_the_trainer_whatever_the_weights(tmp_path, family, lora):
    trunk = load_trunk(wider(tmp_path / "model", family), lora=lora)
    trunk.add_role("policy")
    settings = RLOOSettings(**ROLLOUTS, temperature=0.8)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.set_num_threads
    with engine_for(trunk, PROMPTS, settings):
        first = collect(trunk, PROMPTS, settings, 3)
        assert gap(trunk, "policy", first, 0.8) < 1e-4
        again = collect(trunk, PROMPTS, settings, 3)
        assert torch.equal(first.ids, again.ids)
        assert not torch.equal(collect(trunk, PROMPTS, settings, 4).ids, first.ids)
        shift(trunk, "policy")
        moved = collect(trunk, PROMPTS, settings, 3)
        assert gap(trunk, "policy", moved, 0.8) < 1e-4
        assert gap(trunk, REFERENCE, moved, 0.8) > 0.01
        assert gap(trunk, REFERENCE, collect(trunk, PROMPTS, settings, 3, role=REFERENCE), 0.8) < 1e-4
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]
    assert torch.set_num_threads is state[2]
    assert trunk.engine is None


@installed
def test_a_response_ends_at_its_end_and_stays_in_the_vocabulary(tmp_path):
    trunk = load_trunk(wider(tmp_path / "model", "llama"))
    end = trunk.tokenizer.eos_token_id
    trunk.add_role("policy")
    settings = RLOOSettings(**{**ROLLOUTS, "max_new_tokens": 200, "samples_per_prompt": 8})
    known = trunk.tokenizer.vocab_size
    trunk.__dict__["vocabulary"] = known // 2  # as where a model has twice as many rows as its tokenizer knows ids
    with engine_for(trunk, PROMPTS, settings):
        rollout = collect(trunk, PROMPTS, settings, 0)
    assert gap(trunk, "policy", rollout, 1.0) < 1e-4
    assert rollout.finished.any()
    for ids, mask, finished in zip(rollout.ids, rollout.mask, rollout.finished, strict=True):
        own = ids[mask].tolist()
        assert (own[-1] == end) == bool(finished)
        assert end not in own[:-1]
        assert max(own) < known // 2


@installed
@pytest.mark.parametrize("method", PRICED)
def test_every_method_learns_from_vllms_rollouts(tmp_path, stage, method):
    """A token is preferred; after the steps it is likelier. What vLLM drew weighs 1, to the last bits."""
    trunk = load_trunk(wider(tmp_path / "model", "llama"))
    trunk.add_role("policy")
    if method == "ppo":
        trunk.add_role("value", head=True)
    settings = METHODS[method](**{**ROLLOUTS, "samples_per_prompt": 8}, steps=12, learning_rate=3e-3, kl_coef=0.0)

    def reward(rollout):
        return ((rollout.ids < 120) & rollout.mask).sum(dim=1).float() / rollout.mask.sum(dim=1)

    with engine_for(trunk, PROMPTS, settings):
        trainer_of(method)(trunk, PROMPTS, RewardSum({"low": (1.0, reward)}), settings, stage)
    rows = stage.metrics()
    assert all(row["sampler_gap"] < 1e-4 for row in rows)
    assert all(row["importance_weight"] == pytest.approx(1, abs=1e-4) for row in rows)
    assert all(row["importance_capped"] == 0 for row in rows)
    assert np.mean([row["reward"] for row in rows[-3:]]) > np.mean([row["reward"] for row in rows[:3]]) + 0.05


@installed
def test_a_recipe_runs_to_its_end_with_vllm(write_recipe, tmp_path):
    recipe = write_recipe(wider(tmp_path / "model", "llama"), rl={"vllm": {"kv_cache_gb": 0.05}})
    assert run_command(["run", str(recipe), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/rl/metrics.jsonl").read_text().splitlines()]
    assert all("importance_weight" in row for row in rows)


@installed
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_a_merged_model_is_one_that_vllm_loads_and_scores_the_same(tmp_path, family):
    lora = LoRASettings(rank=4, alpha=8)
    trunk = load_trunk(wider(tmp_path / "base", family), lora=lora)
    trunk.add_role("policy")
    shift(trunk, "policy")
    trunk.save_language_model("policy", tmp_path / "stage/model")
    merged = tmp_path / "merged"
    assert run_command(["model", "merge", str(tmp_path / "stage/adapter"), "--out", str(merged)]) == 0
    alone = load_trunk(str(merged))
    settings = RLOOSettings(**ROLLOUTS)
    with engine_for(alone, PROMPTS, settings):
        alone.engine.holds = REFERENCE  # the weights that vLLM itself read from the folder
        rollout = collect(alone, PROMPTS, settings, 0, role=REFERENCE)
    assert gap(alone, REFERENCE, rollout, 1.0) < 1e-4
    assert gap(trunk, "policy", rollout, 1.0) < 1e-4
    assert gap(trunk, REFERENCE, rollout, 1.0) > 0.01


@installed
def test_each_of_two_processes_samples_with_an_engine_of_its_own(tmp_path):
    model = Path(wider(tmp_path / "model", "llama"))
    ways = (f"{way}={tmp_path / way}" for way in ("vllm", "vllm_fsdp"))
    command = torchrun(Path(__file__).with_name("together.py"), model, *ways)
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train_all(model, tmp_path / "one", "vllm")
    for two in ("vllm", "vllm_fsdp"):
        for name in ("vllm_single", "vllm_five"):
            # A loss of RLOO is a difference between sums of 70 nats, whose last bit is 8e-6.
            assert_close(tmp_path / two / name, tmp_path / "one" / name, tolerance=1e-4)
