"""Attention by batched products is the attention of torch, in value and gradient, whatever the mask and the heads."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from charter.models.attention import NAME, attention, use_fast_attention
from charter.models.load import load_model
from conftest import save_random_model

TOLERANCE = {"rtol": 0.02, "atol": 0.02}  # of bfloat16, whose numbers have eight bits


def tensors(heads: int, kv_heads: int, t: int, s: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, heads, t, 16), (3, kv_heads, s, 16), (3, kv_heads, s, 16)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def both(heads, kv_heads, t, s, mask=None):
    """(output, gradients) of ours in bfloat16 and of torch's in float32 on the same numbers."""
    ours = tensors(heads, kv_heads, t, s)
    theirs = [x.detach().float().requires_grad_() for x in ours]
    found, _ = attention(torch.nn.Module(), *ours, mask, is_causal=True)
    visible = torch.ones(t, s, dtype=torch.bool).tril(s - t) if mask is None else mask
    expected = scaled_dot_product_attention(*theirs, attn_mask=visible, enable_gqa=True).transpose(1, 2)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    seen = visible.expand(3, 1, t, s).any(dim=3).transpose(1, 2).unsqueeze(3)  # a row that sees nothing has no right answer
    (found.float() * weight * seen).sum().backward()
    (torch.nan_to_num(expected) * weight * seen).sum().backward()
    return (found.float() * seen, [x.grad.float() for x in ours]), (
        torch.nan_to_num(expected) * seen,
        [torch.nan_to_num(x.grad) for x in theirs],
    )


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize(("t", "s"), [(7, 7), (3, 9), (1, 6)])
def test_value_and_gradient_are_those_of_the_fused_kernel(heads, kv_heads, t, s):
    (found, gradients), (expected, wanted) = both(heads, kv_heads, t, s)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    for mine, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=0.05, atol=0.05)


def test_a_row_that_sees_nothing_is_no_nan_and_disturbs_no_other():
    mask = torch.ones(3, 1, 5, 5, dtype=torch.bool).tril()
    mask[1, :, :, :2] = False  # padding on the left: the first two queries of that row see nothing
    (found, gradients), (expected, wanted) = both(4, 2, 5, 5, mask)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, **TOLERANCE)
    torch.testing.assert_close(gradients[0], wanted[0], rtol=0.05, atol=0.05)


def test_a_mask_that_is_added_is_the_mask_that_is_true():
    ours = tensors(4, 4, 5, 5)
    seen = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    added = torch.zeros(1, 1, 5, 5).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        a, _ = attention(torch.nn.Module(), *ours, seen)
        b, _ = attention(torch.nn.Module(), *ours, added.to(torch.bfloat16))
    assert torch.equal(a, b)


@pytest.mark.parametrize("changes", [{"dtype": torch.float32}, {"dropout": 0.5}])
def test_what_is_faster_or_only_right_in_the_fused_kernel_goes_there(changes):
    q, k, v = tensors(4, 4, 5, 5, changes.get("dtype", torch.bfloat16))
    torch.manual_seed(0)
    found, _ = attention(torch.nn.Module(), q, k, v, None, dropout=changes.get("dropout", 0.0), is_causal=True)
    torch.manual_seed(0)
    expected = scaled_dot_product_attention(q, k, v, dropout_p=changes.get("dropout", 0.0), is_causal=True)
    assert torch.equal(found, expected.transpose(1, 2))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_a_model_computes_the_same_with_it(tmp_path, architecture):
    folder = str(save_random_model(tmp_path / "model", architecture))
    fast = load_model(folder)
    assert fast.config._attn_implementation == NAME
    plain = load_model(folder)
    plain.set_attn_implementation("sdpa")
    ids = torch.randint(0, 300, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(fast(input_ids=ids).logits, plain(input_ids=ids).logits)  # float32: the fused kernel in both
        with torch.autocast("cpu", dtype=torch.bfloat16):
            a, b = (model(input_ids=ids).logits.float() for model in (fast, plain))
    torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)


def test_the_switch_is_not_saved_with_the_model(tmp_path, random_llama):
    use_fast_attention(load_model(str(random_llama))).save_pretrained(tmp_path / "saved")
    assert NAME not in (tmp_path / "saved/config.json").read_text()
