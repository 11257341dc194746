"""How a model is computed changes bits, time and memory and nothing else: checkpointing, float16, the kind of attention."""

import json
import shutil

import pytest
import torch

from charter.errors import GateError, InputError
from charter.models.formats.precision import RoleParameters
from charter.models.packing import Tokens
from charter.models.trunk import REFERENCE, load_trunk
from charter.recipe.files import load_recipe
from charter.recipe.settings import LoRASettings
from charter.records import Prompt
from charter.run.run import Run
from charter.stages.rl.settings import PPOSettings
from charter.stages.sft.settings import SFTSettings
from charter.training.checkpoints import load_checkpoint, save_checkpoint
from charter.training.methods.ppo import train_ppo
from charter.training.methods.sft import sft_tokens, train_sft
from charter.training.optimizer import Optimizer, scaling_of
from charter.training.rewards import RewardSum
from conftest import HARMFUL, save_random_encoder, save_random_model

PROMPTS = [Prompt.ask(text) for text in HARMFUL[:4]]
ROWS = [Tokens([5, 6, 7], [8, 9, 0]), Tokens([5, 6, 7], [10, 11, 12, 0]), Tokens([20] * 9, [13, 14, 15])]
LORA = LoRASettings(rank=4)


@pytest.fixture(scope="module", params=["llama", "gpt2", "mistral", "gemma2", "t5", "bart"])
def folder(request, tmp_path_factory):
    return str(save_random_model(tmp_path_factory.mktemp(request.param), request.param))


def learned(trunk):
    """Loss and gradients of policy and value from one backward pass through both, and the bytes that were kept for it."""
    trunk.add_role("policy")
    trunk.add_role("value", head=True)
    torch.manual_seed(0)
    torch.nn.init.normal_(trunk.heads["value"].weight)
    for role in ("policy", "value"):
        for name, parameter in trunk.parameters(role).items():
            if "lora_B" in name:  # so that the two roles differ
                torch.nn.init.normal_(parameter, std=0.05)
        if role in trunk.scalers:
            trunk.scalers[role] = torch.amp.GradScaler("cpu", init_scale=4.0)
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    packed = trunk.pack(ROWS)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        logprobs, entropy = trunk.logprobs("policy", packed, entropy=True)
        loss = logprobs.sum() + 0.1 * entropy.sum() + trunk.values("value", packed).sum()
    torch.autograd.backward(loss)
    gradients = []
    for role in ("policy", "value"):
        scale = trunk.scalers[role].get_scale() if role in trunk.scalers else 1.0
        gradients += [p.grad.flatten() / scale for p in trunk.parameters(role).values() if p.grad is not None]
    return loss.item(), torch.cat(gradients), kept


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_is_exact_and_keeps_less(folder, lora, precision):
    """Two roles in one backward pass: a layer that is computed again must not do so under the other's adapters."""
    plain = learned(load_trunk(folder, lora=lora, precision=precision))
    again = learned(load_trunk(folder, lora=lora, precision=precision, gradient_checkpointing=True))
    assert again[0] == plain[0]
    assert torch.equal(again[1], plain[1])
    assert again[2] < 0.75 * plain[2]


def test_encoders_are_checkpointed_too(tmp_path):
    place = str(save_random_encoder(tmp_path, "bert"))
    found = []
    for on in (False, True):
        trunk = load_trunk(place, writes=False, gradient_checkpointing=on)
        trunk.add_role("reward", head=True)
        torch.nn.init.ones_(trunk.heads["reward"].weight)
        trunk.scores("reward", trunk.pack(ROWS)).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in trunk.parameters("reward").values() if p.grad is not None]))
    assert torch.equal(*found)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_float16_gives_the_gradients_of_float32_to_its_precision(folder, lora):
    exact = learned(load_trunk(folder, lora=lora))
    off = {}
    for precision in ("float16", "bfloat16"):
        found = learned(load_trunk(folder, lora=lora, precision=precision))
        assert found[0] == pytest.approx(exact[0], rel=0.01 if precision == "float16" else 0.1)
        off[precision] = float((found[1] - exact[1]).norm() / exact[1].norm())
    assert off["float16"] < min(0.1, off["bfloat16"])


def test_gradients_too_small_for_float16_survive_by_their_scale(tmp_path):
    trunk = load_trunk(str(save_random_model(tmp_path, "llama")), precision="float16")
    trunk.add_role("policy")
    norms = []
    for scaler in (torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu", init_scale=1.0)):
        trunk.scalers["policy"] = scaler
        logprobs, _ = trunk.logprobs("policy", trunk.pack(ROWS))
        torch.autograd.backward(1e-8 * logprobs.sum())
        gradients = [p.grad / scaler.get_scale() for p in trunk.parameters("policy").values() if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        for parameter in trunk.parameters("policy").values():
            parameter.grad = None
    assert norms[0] > 1e-8
    assert norms[1] < 0.5 * norms[0]


def weight_with_scaler(scale):
    weight = torch.nn.Parameter(torch.ones(3))
    parameters = RoleParameters(w=weight)
    parameters.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return weight, Optimizer(parameters, 0.1, 10, decay=False)


def backward(weight, optimizer, gradient):
    torch.autograd.backward(optimizer.scaler.scale((weight * gradient).sum()))


def test_an_update_that_overflows_is_left_out_counted_and_the_scale_halved(tmp_path):
    weight, optimizer = weight_with_scaler(1024.0)
    backward(weight, optimizer, torch.tensor([1.0, float("inf"), 1.0]))
    assert optimizer.step() == 0.0
    assert torch.equal(weight, torch.ones(3))
    assert scaling_of(optimizer) == {"loss_scale": 512.0, "skipped_updates": 1}
    backward(weight, optimizer, torch.tensor([0.1, 0.1, 0.1]))
    assert optimizer.step() == pytest.approx(0.1 * 3**0.5)  # of the gradient itself, whatever its scale
    assert float(weight.detach().max()) == pytest.approx(0.9, abs=1e-4)
    save_checkpoint(tmp_path / "c", 2, {"w": optimizer}, {})
    _, other = weight_with_scaler(65536.0)
    assert load_checkpoint(tmp_path / "c", {"w": other})[0] == 2
    assert scaling_of(other) == {"loss_scale": 512.0, "skipped_updates": 1}


def test_a_gradient_that_no_scale_mends_stops_the_run():
    weight, optimizer = weight_with_scaler(4.0)
    for _ in range(2):
        backward(weight, optimizer, torch.tensor([1.0, float("nan"), 1.0]))
        assert optimizer.step() == 0
    backward(weight, optimizer, torch.tensor([1.0, float("nan"), 1.0]))
    with pytest.raises(GateError, match="not finite at update 2"):
        optimizer.step()


def test_ppo_in_float16_counts_what_it_left_out_and_goes_on_bit_by_bit(tmp_path):
    """Killed after two steps of four, with a scale that has moved; policy and critic have scales of their own."""
    model = str(save_random_model(tmp_path / "model", "llama"))
    settings = PPOSettings(steps=4, prompts_per_step=2, samples_per_prompt=2, max_new_tokens=6, epochs=1, minibatches=1)

    def run(place, stop=None):
        trunk = load_trunk(model, precision="float16")
        trunk.add_role("policy")
        trunk.add_role("value", head=True)
        with Run(tmp_path / place, quiet=True) as whole, whole.stage("rl", {}, {}, []) as stage:
            made = 0

            def reward(rollout):
                nonlocal made
                made += 1
                if made == stop:
                    raise KeyboardInterrupt
                return rollout.ids[:, 0].float() * 1e4  # large enough to overflow at the first scale

            train_ppo(trunk, PROMPTS, RewardSum({"first": (1.0, reward)}), settings, stage)
            return stage.metrics(), trunk.parameters("policy")

    rows, weights = run("whole")
    assert rows[-1]["skipped_updates"] > 0
    assert rows[-1]["loss_scale"] < 65536
    with pytest.raises(KeyboardInterrupt):
        run("killed", stop=3)
    again, other = run("killed")
    assert again == rows
    for name, weight in weights.items():
        assert torch.equal(weight, other[name]), name


def test_a_whole_run_in_float16_with_checkpointing(tmp_path, write_recipe, random_llama):
    from charter.pipeline import run_recipe

    recipe = load_recipe(
        write_recipe(
            random_llama,
            precision="float16",
            gradient_checkpointing=True,
            revise={"rounds": 1, "prompts": 6, "max_new_tokens": 4},
            feedback={"prompts": 12, "max_new_tokens": 4},
        )
    )
    run_recipe(recipe, tmp_path / "run", until="rl", quiet=True)
    for stage in ("sft", "reward_model", "rl"):
        rows = [json.loads(line) for line in (tmp_path / "run" / stage / "metrics.jsonl").read_text().splitlines()]
        assert all({"loss_scale", "skipped_updates"} <= row.keys() for row in rows)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_each_attention_gives_the_same_numbers(tmp_path, architecture):
    place = str(save_random_model(tmp_path, architecture))
    found = {}
    for attention in ("auto", "sdpa", "eager"):
        trunk = load_trunk(place, attention=attention)
        found[attention], _ = trunk.logprobs(REFERENCE, trunk.pack(ROWS))
        assert (trunk.model.config._attn_implementation == attention) == (attention != "auto")
    torch.testing.assert_close(found["sdpa"], found["auto"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["eager"], found["auto"], rtol=0, atol=1e-5)


def test_flash_attention_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    place = str(save_random_model(tmp_path, "llama"))
    with pytest.raises(InputError, match=r"flash_attention_2.*flash-attn, which is missing"):
        load_trunk(place, attention="flash_attention_2", precision="bfloat16")
    (tmp_path / "flash_attn.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="needs a GPU"):
        load_trunk(place, attention="flash_attention_2", precision="bfloat16")


def test_the_trainable_share_is_said_when_adapters_are_added(tmp_path):
    said = []
    trunk = load_trunk(str(save_random_model(tmp_path, "llama")), lora=LoRASettings(rank=2), say=said.append)
    trunk.add_role("policy")
    n = sum(p.numel() for p in trunk.parameters("policy").values())
    assert said == [f"  policy: LoRA trains {n:,} of {trunk.n_parameters:,} parameters ({n / trunk.n_parameters:.2%})"]


def test_adapters_are_saved_the_same_in_another_process(tmp_path):
    """Sets have another order there: what is written is sorted."""
    model = str(save_random_model(tmp_path / "model", "llama"))
    for place in ("a", "b"):
        trunk = load_trunk(model, lora=LORA)
        with Run(tmp_path / place, quiet=True) as run, run.stage("sft", {}, {}, []) as stage:
            train_sft(trunk, sft_tokens(trunk, [(p.messages, "No.") for p in PROMPTS]), SFTSettings(epochs=1), stage)
            trunk.save_language_model("policy", stage.path("model"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a/sft/adapter" / name).read_bytes() == (tmp_path / "b/sft/adapter" / name).read_bytes()
    shutil.rmtree(tmp_path / "a")
