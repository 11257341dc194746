"""A batch is the same batch however it stands: padded left or right, in line, prompts shared, in any order and any cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GemmaConfig, GemmaForCausalLM, MistralConfig, MistralForCausalLM

from charter.models.load import load_model
from charter.models.packing import Tokens, pack
from charter.models.trunk import REFERENCE, Trunk, load_trunk
from charter.recipe.settings import LoRASettings
from charter.training.losses import bradley_terry_loss, sft_loss
from conftest import save_random_model

ROWS = [Tokens([5, 6, 7, 8], [9, 10, 0]), Tokens([5, 6, 7, 8], [11]), Tokens([12], [13, 14, 15, 16, 0]),
        Tokens([5, 6, 7, 8], [9, 17, 18, 19]), Tokens([20, 21], [0])]  # fmt: skip
token = st.integers(2, 90)
row_lists = st.lists(st.tuples(st.integers(0, 2), st.lists(token, min_size=1, max_size=6)), min_size=1, max_size=7).map(
    lambda rows: [Tokens([[5, 6, 7], [8], [9, 10, 11, 12, 13]][p], response) for p, response in rows]
)


def trunk_of(folder, **changes) -> Trunk:
    trunk = load_trunk(str(folder), **changes)
    trunk.add_role("policy", head=True)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trunk.parameters("policy").items():
        if "lora_B" in name or name == "head.weight":
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return trunk


def gradients(trunk: Trunk, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = trunk.parameters("policy")
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


def loss_of(trunk: Trunk, packed, n: int) -> torch.Tensor:
    """A loss through log-probabilities, entropies and scores at once, a sum over responses divided by the batch's ``n``."""
    logprobs, entropies = trunk.logprobs("policy", packed, entropy=True)
    others = 0.1 * entropies.sum() + trunk.scores("policy", packed).square().sum()
    return sft_loss(logprobs, packed.mask, n) + others / n


def reference_loss(trunk: Trunk, rows, n: int, *, left: bool = False) -> torch.Tensor:
    """The same from transformers alone, rows padded side by side, one forward pass, no code of ours."""
    model = trunk.copies["policy"]
    width = max(len(row) for row in rows)
    pad = [[1] * (width - len(row)) for row in rows]
    whole = [[*row.prompt, *row.response] for row in rows]
    ids = torch.tensor([p + w if left else w + p for p, w in zip(pad, whole, strict=True)])
    attention = torch.tensor([[0] * len(p) + [1] * len(w) if left else [1] * len(w) + [0] * len(p)
                              for p, w in zip(pad, whole, strict=True)])  # fmt: skip
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=ids, attention_mask=attention, position_ids=positions, output_hidden_states=True)
    logprobs = torch.log_softmax(out.logits, dim=-1)
    total = torch.zeros(())
    for i, row in enumerate(rows):
        start = (width - len(row) if left else 0) + len(row.prompt)
        for j, one in enumerate(row.response):
            at = logprobs[i, start + j - 1]
            total = total - at[one] - 0.1 * (at.exp() * at).sum()
        total = total + trunk.heads["policy"](out.hidden_states[-1][i, start + len(row.response) - 1]).square().sum()
    return total / n


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("left", [True, False])
def test_loss_and_gradient_are_those_of_transformers_on_padded_rows(tmp_path, architecture, left):
    trunk = trunk_of(save_random_model(tmp_path / "model", architecture))
    assert trunk.packs
    n = sum(len(row.response) for row in ROWS)
    expected = reference_loss(trunk, ROWS, n, left=left)
    found = loss_of(trunk, trunk.pack(ROWS), n)
    assert found.item() == pytest.approx(expected.item(), abs=2e-6)
    wanted, mine = gradients(trunk, expected), gradients(trunk, found)
    for name in mine:
        torch.testing.assert_close(mine[name], wanted[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lora", [None, LoRASettings(rank=2)])
def test_sharing_order_and_cut_change_neither_loss_nor_gradient(random_llama, lora):
    trunk = trunk_of(random_llama, lora=lora)
    n = sum(len(row.response) for row in ROWS)
    whole = loss_of(trunk, trunk.pack(ROWS), n)
    expected = gradients(trunk, whole)
    alone = loss_of(trunk, pack(ROWS, share=False), n)
    turned = loss_of(trunk, trunk.pack(ROWS[::-1]), n)
    parts = sum(loss_of(trunk, trunk.pack(part), n) for part in (ROWS[:2], ROWS[2:3], ROWS[3:]))
    for other in (alone, turned, parts):
        assert other.item() == pytest.approx(whole.item(), abs=2e-6)
        for name, gradient in gradients(trunk, other).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@given(row_lists)
@settings(max_examples=40, deadline=None)
def test_any_rows_score_as_they_do_alone(random_llama, rows):
    trunk = load_trunk(str(random_llama))
    with torch.no_grad():
        together, _ = trunk.logprobs(REFERENCE, trunk.pack(rows))
        for i, row in enumerate(rows):
            single, _ = trunk.logprobs(REFERENCE, trunk.pack([row]))
            torch.testing.assert_close(together[i, : len(row.response)], single[0], rtol=1e-4, atol=1e-5)
            assert (together[i, len(row.response) :] == 0).all()


@given(row_lists)
@settings(max_examples=60, deadline=None)
def test_a_line_holds_each_prompt_once_and_each_response_in_its_place(rows):
    packed = pack(rows)
    prompts = {tuple(row.prompt) for row in rows}
    assert len(packed.ids) == sum(map(len, prompts)) + sum(len(row.response) for row in rows)
    for i, row in enumerate(rows):
        assert packed.targets[i][packed.mask[i]].tolist() == list(row.response)
        before = packed.before[i][packed.mask[i]]
        assert packed.ids[before].tolist() == [row.prompt[-1], *row.response[:-1]]
        assert packed.positions[before].tolist() == list(range(len(row.prompt) - 1, len(row) - 1))
        assert packed.ids[packed.last[i]].item() == row.response[-1]
    layout = packed.layout
    slots = [view.slots[view.real] for view in (layout.prompts, layout.responses) if view is not None]
    assert sorted(torch.cat(slots).tolist()) == list(range(len(packed.ids)))


def test_a_pair_that_shares_its_prompt_has_the_gradient_of_one_that_does_not(random_llama):
    trunk = trunk_of(random_llama)
    pair = [Tokens([5, 6, 7, 8], [9, 10, 0]), Tokens([5, 6, 7, 8], [11, 0])]
    found = []
    for packed in (trunk.pack(pair), pack(pair, share=False)):
        chosen, rejected = trunk.scores("policy", packed).chunk(2)
        loss = bradley_terry_loss(chosen, rejected).sum()
        found.append((loss.item(), gradients(trunk, loss)))
    assert len(trunk.pack(pair).ids) == 9
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    for name in found[0][1]:
        torch.testing.assert_close(found[0][1][name], found[1][1][name], rtol=1e-4, atol=1e-6)


def test_models_that_cannot_stand_in_line_are_padded_side_by_side(random_llama):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "vocab_size": 97, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}  # fmt: skip
    from charter.models.attention import use_fast_attention

    window = use_fast_attention(MistralForCausalLM(MistralConfig(**small, sliding_window=3)).eval())
    gemma = use_fast_attention(GemmaForCausalLM(GemmaConfig(**small, head_dim=16)).eval())
    plain = load_model(str(random_llama))
    plain.set_attn_implementation("eager")
    for model, packs in ((window, False), (gemma, True), (plain, False)):
        trunk = Trunk(model, None)
        trunk.vocabulary = None  # every id of the model is one of the tokenizer's
        assert trunk.packs == packs
        with torch.no_grad():
            together, _ = trunk.logprobs(REFERENCE, trunk.pack(ROWS))
            for i, row in enumerate(ROWS):
                ids = torch.tensor([[*row.prompt, *row.response]])
                logprobs = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
                expected = [logprobs[len(row.prompt) - 1 + j, one].item() for j, one in enumerate(row.response)]
                assert together[i, : len(row.response)].tolist() == pytest.approx(expected, abs=1e-4)


def test_bfloat16_in_line_is_bfloat16_of_rows_alone(random_llama):
    trunk = load_trunk(str(random_llama), precision="bfloat16")
    with torch.no_grad():
        shared, _ = trunk.logprobs(REFERENCE, trunk.pack(ROWS))
        alone, _ = trunk.logprobs(REFERENCE, pack(ROWS, share=False))
    torch.testing.assert_close(shared, alone, rtol=0.02, atol=0.05)
