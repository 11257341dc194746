"""The written-out pass is the model: losses and gradients are those of transformers under autograd."""

import copy

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from charter.models.attention import use_fast_attention
from charter.models.llama import train as fused_training
from charter.models.llama.weights import weights_of
from charter.models.packing import Tokens, pack
from charter.models.trunk import REFERENCE, Trunk
from charter.recipe.settings import LoRASettings
from charter.training.losses import sft_loss
from charter.training.optimizer import Optimizer
from test_fused_llama import MODELS, model_of

ROWS = [Tokens([5, 6, 7, 8], [9, 10, 0]), Tokens([5, 6, 7, 8], [11]), Tokens([12], [13, 14, 15, 16, 0]),
        Tokens([5, 6, 7, 8], [9, 17, 18, 19]), Tokens([20, 21], [0])]  # fmt: skip


def trunk_of(name: str, *, lora: bool = False, precision: str = "float32") -> Trunk:
    tokenizer = PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast)  # never asked for anything here
    settings = LoRASettings(rank=3, alpha=5) if lora else None
    trunk = Trunk(use_fast_attention(model_of(name)), tokenizer, lora=settings, precision=precision)
    trunk.vocabulary = None  # every id of the model is one of the tokenizer's
    trunk.add_role("policy", head=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in trunk.parameters("policy").items():
            if "lora_B" in key or key == "head.weight":
                parameter.normal_(std=0.2, generator=generator)
    assert trunk.fuses
    return trunk


def loss_of(trunk: Trunk, packed, temperature: float = 1.0) -> torch.Tensor:
    """A loss through log-probabilities, entropies, values and scores at once."""
    logprobs, entropies = trunk.logprobs("policy", packed, temperature=temperature, entropy=True)
    others = trunk.values("policy", packed).square().sum() + trunk.scores("policy", packed).square().sum()
    return sft_loss(logprobs, packed.mask, packed.n_tokens) + 0.1 * entropies.sum() + 0.01 * others


def gradients(trunk: Trunk, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = trunk.parameters("policy")
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_losses_and_gradients_are_those_of_autograd(name, lora, share):
    trunk = trunk_of(name, lora=lora)
    packed = pack(ROWS, share=share)
    found = loss_of(trunk, packed, 0.7)
    mine = gradients(trunk, found)
    trunk.__dict__["fuses"] = False  # a cached property: the model's own code from here
    expected = loss_of(trunk, packed, 0.7)
    wanted = gradients(trunk, expected)
    assert found.item() == pytest.approx(expected.item(), abs=3e-6)
    assert mine.keys() == wanted.keys()
    for key, gradient in mine.items():
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-3, atol=2e-6, msg=key)


def test_the_row_of_a_pad_that_is_read_learns_as_much_as_in_transformers():
    trunk = trunk_of(next(iter(MODELS)))
    trunk.copies["policy"].model.embed_tokens.padding_idx = 9  # sampled like any other token
    packed = pack(ROWS)
    mine = gradients(trunk, loss_of(trunk, packed))
    trunk.__dict__["fuses"] = False
    for key, wanted in gradients(trunk, loss_of(trunk, packed)).items():
        torch.testing.assert_close(mine[key], wanted, rtol=1e-3, atol=2e-6, msg=key)


@pytest.mark.parametrize("share", [True, False])
def test_long_rows_are_cut_into_pieces_and_stay_the_same(monkeypatch, share):
    trunk = trunk_of("llama, one key for four queries")
    ids = torch.randint(2, 97, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [Tokens(ids[:4], ids[4:40]), Tokens(ids[:4], ids[10:43]), Tokens(ids[5:9], ids[9:12])]
    packed = pack(rows, share=share)
    whole = loss_of(trunk, packed)
    wanted = gradients(trunk, whole)
    monkeypatch.setattr(fused_training, "QUERIES_TOGETHER", 7)
    cut = loss_of(trunk, packed)
    assert cut.item() == pytest.approx(whole.item(), abs=1e-6)
    for key, gradient in gradients(trunk, cut).items():
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-4, atol=1e-6)


def test_frozen_weights_get_no_gradient_and_the_reference_none_at_all():
    trunk = trunk_of("qwen 2", lora=True)
    packed = pack(ROWS)
    torch.autograd.backward(loss_of(trunk, packed))
    own = {id(parameter) for parameter in trunk.parameters("policy").values()}
    for key, parameter in trunk.adapters.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in own), key
    logprobs, _ = trunk.logprobs(REFERENCE, packed)
    assert not logprobs.requires_grad


@pytest.mark.parametrize("lora", [True, False])
def test_weights_that_changed_are_read_again(lora):
    trunk = trunk_of("llama", lora=lora)
    packed = pack(ROWS)
    before, _ = trunk.logprobs("policy", packed)
    optimizer = Optimizer(trunk.parameters("policy"), 0.01, 2, decay=False)
    torch.autograd.backward(sft_loss(before, packed.mask))
    optimizer.step()
    stepped, _ = trunk.logprobs("policy", packed)
    assert not torch.allclose(before, stepped)
    for parameter in trunk.parameters("policy").values():
        parameter.data.add_(0.05)  # which torch's own count of versions does not see
    moved, _ = trunk.logprobs("policy", packed)
    assert not torch.allclose(stepped, moved)
    with trunk.as_role("policy") as model:
        assert weights_of(model, torch.float32) is weights_of(model, torch.float32)


def test_bfloat16_points_the_same_way():
    full, half = trunk_of("llama"), trunk_of("llama", precision="bfloat16")
    packed = pack(ROWS)
    exact, rough = (gradients(trunk, loss_of(trunk, packed)) for trunk in (full, half))
    a, b = (torch.cat([g.flatten() for g in found.values()]) for found in (exact, rough))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.995
    assert all(gradient.dtype == torch.float32 for gradient in rough.values())


def test_a_line_without_responses_to_some_prompts_and_of_one_token_rows():
    trunk = trunk_of("mistral")
    packed = pack([Tokens([3], [4]), Tokens([3], [5]), Tokens([6, 7, 8], [9])])
    found = gradients(trunk, loss_of(trunk, packed))
    other = copy.copy(trunk)
    other.__dict__["fuses"] = False
    wanted = gradients(other, loss_of(other, packed))
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-3, atol=2e-6)
