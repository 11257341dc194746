"""QLoRA on the CPU: weights of 4 bits, adapters that learn, what is saved, and a run that goes on with it."""

import builtins
import importlib.util
import json
import sys

import pytest
import torch

from charter.commands.app import run_command
from charter.errors import InputError
from charter.models.packing import Tokens
from charter.models.sampling.sampler import LocalSampler
from charter.models.shape import read_shape
from charter.models.trunk import REFERENCE, load_trunk
from charter.plan.plan import plan_recipe
from charter.recipe.files import load_recipe
from charter.recipe.settings import LoRASettings
from charter.records import Message, Prompt
from charter.run.run import Run
from charter.stages.sft.settings import SFTSettings
from charter.training.methods.sft import sft_tokens, train_sft
from conftest import HARMFUL, save_random_model

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra [qlora] is not installed")

PROMPTS = [Prompt.ask(text) for text in HARMFUL[:4]]
ROWS = [Tokens([5, 6, 7], [8, 9, 0]), Tokens([20] * 9, [13, 14, 15])]
LORA = LoRASettings(rank=4)
SHORT = {
    "revise": {"rounds": 1, "prompts": 6, "max_new_tokens": 4},
    "feedback": {"prompts": 12, "max_new_tokens": 4},
    "prompts": {"train": 6, "test": 2},
    "evaluation": {"max_new_tokens": 4},
}


@pytest.fixture(scope="module", params=["llama", "gpt2", "t5"])
def folder(request, tmp_path_factory):
    return str(save_random_model(tmp_path_factory.mktemp(request.param), request.param))


def logprobs(trunk, role=REFERENCE):
    with torch.no_grad():
        return trunk.logprobs(role, trunk.pack(ROWS))[0]


def shaken(trunk, role="policy"):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trunk.parameters(role).values():
            parameter += 0.05 * torch.randn_like(parameter)
    return trunk


def test_gradients_are_those_of_the_same_weights_written_out(folder, tmp_path):
    """bitsandbytes has a CPU kernel without a derivative: adapters below it would get none, and no error."""
    trunk = load_trunk(folder, lora=LORA, quantization="nf4")
    trunk.add_role("policy")
    trunk.save_language_model("policy", tmp_path / "stage/model")  # nothing learned yet: the rounded weights
    plain = load_trunk(str(tmp_path / "stage/model"), lora=LORA)
    plain.add_role("policy")
    with torch.no_grad():
        for own, other in zip(shaken(trunk).parameters("policy").values(), plain.parameters("policy").values(), strict=True):
            other.copy_(own)
    for one in (trunk, plain):
        logits = one.logprobs("policy", one.pack(ROWS))[0]
        torch.autograd.backward(logits.sum())
    for (name, own), other in zip(trunk.parameters("policy").items(), plain.parameters("policy").values(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_it_learns_samples_saves_and_goes_on_without_rounding_twice(folder, tmp_path):
    trunk = load_trunk(folder, lora=LORA, quantization="nf4", gradient_checkpointing=True)
    exact = load_trunk(folder)
    assert trunk.n_parameters == exact.n_parameters
    off = (logprobs(trunk) - logprobs(exact)).abs().mean()
    assert 0 < off < 0.5  # nats a token, for weights that are noise
    with Run(tmp_path / "run", quiet=True) as run, run.stage("sft", {}, {}, []) as stage:
        train_sft(trunk, sft_tokens(trunk, [(p.messages, "No.") for p in PROMPTS]),
                  SFTSettings(epochs=8, learning_rate=0.02, lora=LORA), stage)  # fmt: skip
        assert stage.metrics()[-1]["loss"] < stage.metrics()[0]["loss"]
        trunk.save_language_model("policy", stage.path("model"))
    asked = [[Message(role="user", content="Hi")]]
    one = LocalSampler(trunk, "m", role="policy").generate(asked, [[1]], temperature=1.0, max_new_tokens=6)
    learned = logprobs(trunk, "policy")
    saved = str(tmp_path / "run/sft/model")

    # As any other program reads it: the rounded weights and the adapter, written out.
    plain = load_trunk(saved)
    torch.testing.assert_close(logprobs(plain), learned, rtol=0, atol=1e-4)
    assert "quantization_config" not in json.loads((tmp_path / "run/sft/model/config.json").read_text())
    # As the run goes on: the same rounded weights, the adapter on top, and a new role that starts there.
    on = load_trunk(saved, lora=LORA, quantization="nf4")
    assert torch.equal(logprobs(on), learned)
    on.add_role("policy")
    assert torch.equal(logprobs(on, "policy"), learned)
    again = LocalSampler(on, "m").generate(asked, [[1]], temperature=1.0, max_new_tokens=6)
    assert again == one
    torch.autograd.backward(on.logprobs("policy", on.pack(ROWS))[0].sum())
    assert all(p.grad is not None for p in on.parameters("policy").values())
    assert not any(p.grad is not None for name, p in on.adapters.named_parameters() if "under" in name)
    moved = logprobs(shaken(on), "policy")
    assert torch.equal(logprobs(on), learned)  # the reference stays
    on.save_language_model("policy", tmp_path / "run/rl/model")
    final = load_trunk(str(tmp_path / "run/rl/model"), quantization="nf4")
    assert len(final.under) == 2
    assert torch.equal(logprobs(final), moved)
    torch.testing.assert_close(logprobs(load_trunk(str(tmp_path / "run/rl/model"))), moved, rtol=0, atol=1e-4)


def test_whole_weights_in_4_bits_are_not_trained(folder):
    with pytest.raises(InputError, match="weights of 4 bits cannot be trained; set lora"):
        load_trunk(folder, quantization="nf4").add_role("policy")


def test_a_run_in_4_bits(tmp_path, write_recipe, random_llama):
    lora = {"lora": {"rank": 2}}
    recipe = write_recipe(
        random_llama, quantization="nf4", sft=lora, reward_model=lora, rl={**lora, "steps": 1, "max_new_tokens": 4},
        precision="bfloat16", gradient_checkpointing=True, **SHORT,
    )  # fmt: skip
    out = tmp_path / "run"
    assert run_command(["run", str(recipe), "--out", str(out), "--quiet"]) == 0
    config = json.loads((out / "rl/model/config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert json.loads((out / "sft/manifest.json").read_text())["inputs"]["precision"] == "bfloat16 nf4"
    assert run_command(["model", "merge", str(out), "--out", str(tmp_path / "merged"), "--dtype", "float16"]) == 0
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.float16
    assert not (tmp_path / "merged/charter_adapters.json").exists()
    ids = torch.tensor([[2, 70, 71, 0, 3]])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(out / "rl/model").float()(ids).logits
        torch.testing.assert_close(merged.float()(ids).logits, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("without", ["sft", "reward_model", "rl"])
def test_a_recipe_that_would_train_4_bits_is_refused(write_recipe, random_llama, without):
    changes = {name: {"lora": {"rank": 2}} for name in ("sft", "reward_model", "rl") if name != without}
    with pytest.raises(InputError, match=rf"nf4 freezes the weights, so set {without}\.lora"):
        load_recipe(write_recipe(random_llama, quantization="nf4", **changes))


def test_without_the_package_one_line_names_the_extra(folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else find(name, *more))
    with pytest.raises(InputError, match=r"pip install 'charter-align\[qlora\]'"):
        load_trunk(folder, quantization="nf4")


def test_an_adapter_that_is_gone_is_one_line(tmp_path):
    model = save_random_model(tmp_path / "run/sft/model", "llama")
    (model / "charter_adapters.json").write_text("{}")
    with pytest.raises(InputError, match="trained in 4 bits and needs its adapter, which is missing"):
        load_trunk(str(model), quantization="nf4")


def test_no_kernel_is_fetched_while_bitsandbytes_is_imported(monkeypatch):
    from charter.models.formats.quantize import without_hub_kernels

    import_module = builtins.__import__
    with without_hub_kernels(), pytest.raises(ImportError):
        import_module("kernels")
    assert sys.modules.get("kernels", "nothing") is not None
    monkeypatch.setitem(sys.modules, "kernels", "there")
    with without_hub_kernels():
        assert sys.modules["kernels"] is None
    assert sys.modules["kernels"] == "there"


def test_the_plan_counts_the_bytes_of_4_bits(tmp_path, write_recipe):
    folder = save_random_model(tmp_path / "model", "llama3")
    lora = {"lora": {"rank": 2}}
    plain = plan_recipe(load_recipe(write_recipe(folder, sft=lora, reward_model=lora, rl=lora)))
    small = plan_recipe(load_recipe(write_recipe(folder, sft=lora, reward_model=lora, rl=lora, quantization="nf4")))
    held = {row["stage"]: row["memory"]["weights"] for row in small["stages"]}
    before = {row["stage"]: row["memory"]["weights"] for row in plain["stages"]}
    trunk = load_trunk(str(folder), quantization="nf4")
    quantized = sum(p.numel() * p.element_size() for p in trunk.model.parameters())
    shape = read_shape(str(folder))
    assert before["prompts"] == 4 * shape.parameters
    assert quantized < held["prompts"] < 1.1 * quantized  # the scales are in it
