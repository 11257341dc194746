"""A value head on the policy's states: what it computes, what its loss may move, and that PPO learns with it."""

import pytest
import torch
from pydantic import ValidationError

from charter.models.packing import Tokens
from charter.models.trunk import REFERENCE, load_trunk
from charter.recipe.settings import LoRASettings
from charter.stages.rl.settings import PPOSettings
from charter.training.methods.ppo import train_ppo
from charter.training.optimizer import Optimizer
from conftest import save_random_model
from test_training import BANDIT, PROMPTS, first_token_below

ROWS = [Tokens([5, 6, 7], [8, 9]), Tokens([5, 6, 7], [10]), Tokens([3], [4, 2, 6])]


def with_head(model, gradient: float, **options):
    trunk = load_trunk(str(model), **options)
    trunk.add_role("policy")
    trunk.add_value_head("policy", gradient)
    return trunk


def test_one_pass_gives_what_two_give(random_llama):
    trunk = with_head(random_llama, 1.0)
    packed = trunk.pack(ROWS)
    outputs = trunk.outputs("policy", packed, entropy=True)
    logprobs, entropies = trunk.logprobs(REFERENCE, packed, entropy=True)
    assert torch.equal(outputs.logprobs, logprobs)
    assert torch.equal(outputs.entropies, entropies)
    assert outputs.values.shape == packed.mask.shape
    assert not outputs.values.any()  # before the first update
    torch.nn.init.ones_(trunk.value_heads["policy"].outer.weight)
    values = trunk.outputs("policy", packed).values
    hidden = trunk.hidden(trunk.copies["policy"], packed, packed.before[packed.mask])
    head = trunk.value_heads["policy"]
    assert torch.allclose(values[packed.mask], torch.tanh(hidden @ head.inner.weight.T + head.inner.bias).sum(dim=1), atol=1e-5)
    assert not values[~packed.mask].any()


def gradients(model, gradient: float) -> dict[str, torch.Tensor]:
    """Of the sum of values, by parameter."""
    trunk = with_head(model, gradient)
    torch.nn.init.ones_(trunk.value_heads["policy"].outer.weight)
    parameters = trunk.parameters("policy")
    trunk.outputs("policy", trunk.pack(ROWS)).values.sum().backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_loss_of_values_weighs_its_share_below_the_head_and_all_in_it(random_llama, share):
    whole, part = gradients(random_llama, 1.0), gradients(random_llama, share)
    assert {name for name in whole if name.startswith("value_head.")} == {
        f"value_head.{layer}.{kind}" for layer in ("inner", "outer") for kind in ("weight", "bias")
    }
    for name, gradient in whole.items():
        expected = gradient if name.startswith("value_head.") else share * gradient
        assert torch.allclose(part[name], expected, atol=1e-6, rtol=1e-4), name
    assert sum(gradient.abs().sum() for name, gradient in whole.items() if not name.startswith("value_head.")) > 0


def test_the_head_has_a_learning_rate_of_its_own(random_llama):
    parameters = with_head(random_llama, 0.0).parameters("policy")
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    Optimizer(parameters, 1e-3, 1, decay=False, value_learning_rate=4e-3).step()
    for name, parameter in parameters.items():
        moved = (before[name] - parameter.detach()).abs()  # AdamW's first update is the learning rate
        assert torch.allclose(moved, torch.tensor(4e-3 if name.startswith("value_head.") else 1e-3), rtol=0.02), name


@pytest.mark.parametrize(("architecture", "lora"), [("llama", None), ("t5", None), ("llama", LoRASettings(rank=4, alpha=8))])
def test_ppo_learns_with_a_head_and_its_values_explain_returns(stage, tmp_path, architecture, lora):
    trunk = with_head(save_random_model(tmp_path / "model", architecture), 0.1, lora=lora)
    settings = PPOSettings(**(BANDIT | {"value": "head", "value_learning_rate": 1e-2, "steps": 25}))
    train_ppo(trunk, PROMPTS, first_token_below(40), settings, stage)
    metrics = stage.metrics()
    assert metrics[0]["first_ratio"] == pytest.approx(1, abs=1e-6)
    if lora is None:  # an adapter of a random model cannot reach every token
        assert metrics[0]["reward"] < 0.5
        assert metrics[-1]["reward"] > 0.8
    assert metrics[-1]["value_loss"] < metrics[0]["value_loss"]
    assert "value" not in trunk.copies  # there is no second model


def test_a_share_that_nothing_reads_is_refused():
    with pytest.raises(ValidationError, match="value_gradient is read with value: head alone"):
        PPOSettings(value_gradient=0.5)
