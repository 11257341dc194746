"""Log-probabilities in blocks are those of a plain log-softmax, with their gradients."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from charter.errors import InputError
from charter.models import logprobs as module
from charter.models.logprobs import blocks, check_logits, chosen_logprobs, is_plain_projection, logits_from_hidden
from charter.models.sampling.generate import pick, side


def case(n: int = 11, hidden: int = 6, vocabulary: int = 13):
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(n, hidden, generator=generator, requires_grad=True)
    w = torch.randn(vocabulary, hidden, generator=generator, requires_grad=True)
    targets = torch.randint(vocabulary, (n,), generator=generator)
    return h, w, targets, torch.randn(n, generator=generator), torch.randn(n, generator=generator)


@pytest.mark.parametrize(("block", "kept"), [(2**25, 2**27), (26, 2**27), (26, 0), (26, 60)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("entropy", [True, False])
def test_values_and_gradients_are_those_of_autograd(monkeypatch, block, kept, temperature, entropy):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(module, "KEPT_ELEMENTS", kept)
    monkeypatch.setattr(module, "CACHE_ELEMENTS", 2**19 if block > 26 else 13)
    monkeypatch.setattr(module, "WEIGHT_ROWS", 4096 if block > 26 else 5)
    h, w, targets, pull, push = case()
    found, entropies = chosen_logprobs(h, w, w.detach(), targets, temperature=temperature, entropy=entropy)
    plain = torch.log_softmax(h @ w.t() / temperature, dim=1)
    expected = plain.gather(1, targets.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    mine, wanted = (found * pull).sum(), (expected * pull).sum()
    if entropy:
        expected_entropies = -(plain.exp() * plain).sum(dim=1)
        torch.testing.assert_close(entropies, expected_entropies, atol=1e-6, rtol=1e-6)
        mine, wanted = mine + (entropies * push).sum(), wanted + (expected_entropies * push).sum()
    for a, b in zip(torch.autograd.grad(mine, (h, w)), torch.autograd.grad(wanted, (h, w)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_second_backward_pass_gives_the_gradients_of_the_first():
    h, w, targets, pull, _ = case()
    values, _ = chosen_logprobs(h, w, w.detach(), targets, temperature=1.0, entropy=False)
    first, second = (torch.autograd.grad((values * pull).sum(), (h, w), retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


def test_no_rows_give_the_weight_a_gradient_of_zero():
    h, w, targets, _, _ = case(n=0)
    values, _ = chosen_logprobs(h, w, w.detach(), targets, temperature=1.0, entropy=False)
    (gradient,) = torch.autograd.grad(values.sum(), w)
    assert torch.equal(gradient, torch.zeros_like(w))


def test_blocks_are_as_large_as_memory_allows_and_end_where_kept_logits_do():
    assert [(s.start, s.stop) for s in blocks(10, 5, 20, 6)] == [(0, 4), (4, 6), (6, 10)]
    assert blocks(3, 100, 20) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert blocks(0, 5, 20) == []


def test_a_token_that_is_nearly_certain_keeps_its_small_gradient_in_bfloat16():
    h = torch.tensor([[1.0]], requires_grad=True)
    w = torch.tensor([[6.0], [0.0]])  # p = 0.9975: 1 - p is below the spacing of bfloat16 next to 1
    found, _ = chosen_logprobs(h, w, w.bfloat16(), torch.tensor([0]), temperature=1.0, entropy=False)
    (gradient,) = torch.autograd.grad(found.sum(), h)
    assert gradient.item() == pytest.approx(6 * (1 - torch.sigmoid(torch.tensor(6.0)).item()), rel=0.02)


@pytest.mark.parametrize(("n", "size"), [(4096, 64), (49152, 256), (151936, 1187), (50257, 225), (1, 1), (2, 2), (13, 13)])
def test_a_vocabulary_is_cut_into_rows_without_padding_where_it_has_a_divisor(n, size):
    assert side(n) == size


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=40), st.floats(0, 1, exclude_max=True), st.sampled_from([1.0, 0.5]))
def test_a_token_is_drawn_where_the_running_sum_passes_the_number(logits, uniform, temperature):
    row = torch.tensor([logits])
    choice, logprob = pick(row, torch.tensor([uniform], dtype=torch.float64), temperature)
    probabilities = torch.softmax(row.double() / temperature, dim=1)[0]
    upper = probabilities.cumsum(0)[choice.item()].item()
    assert upper - probabilities[choice.item()].item() - 1e-6 <= uniform <= upper + 1e-6
    assert logprob.item() == pytest.approx(probabilities[choice.item()].log().item(), abs=1e-4)


SHAPED = [
    ("HyperCLOVAX", {"logits_scaling": 4.0}), ("Granite", {"logits_scaling": 4.0}), ("FalconH1", {"lm_head_multiplier": 0.1}),
    ("RecurrentGemma", {"logits_soft_cap": 5.0}), ("Gemma2", {"final_logit_softcapping": 5.0}), ("Cohere", {"logit_scale": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes"), SHAPED)
def test_caps_and_scales_of_the_logits_are_those_of_the_model(family, changes):
    model = small_decoder(family, **changes)
    ids = torch.tensor([[3, 5, 7, 2]])
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[0]
        logits = logits_from_hidden(model, model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
    assert torch.allclose(logits, expected, atol=1e-4)
    assert not is_plain_projection(model)
    check_logits(model, "")


@pytest.mark.parametrize("family", ["T5", "UMT5", "SwitchTransformers"])
def test_states_of_tied_encoder_decoders_are_scaled_as_in_the_model(family):
    shape = {"vocab_size": 40, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(getattr(transformers, f"{family}Config")(**shape)).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=3.0)
    check_logits(model, "")
    assert not is_plain_projection(model)


def test_a_decoder_whose_logits_are_made_in_another_way_is_refused():
    with pytest.raises(InputError, match="BigBirdForCausalLM shapes its logits in a way that Charter does not know"):
        check_logits(small_decoder("BigBird", is_decoder=True, attention_type="original_full"), "")


def small_decoder(family, **changes):
    shape = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    kv = {} if family == "BigBird" else {"num_key_value_heads": 2}
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**shape, **kv, **changes))
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=3.0)
    return model.eval()
