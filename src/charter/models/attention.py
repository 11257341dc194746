"""Attention for bfloat16 on a CPU, where torch's fused kernel takes two to four times as long as two batched products.

Registered with transformers under the name `charter`, so that every decoder that dispatches its attention can use it. It takes
the fused kernel wherever that one is faster or the only right one: float32, a GPU, dropout, a bias on the scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from charter.models.packing import LAYOUT, attend

NAME = "charter"


def use_fast_attention(model: Any) -> Any:
    """Switch a model that dispatches its attention from the fused kernel to this one; returns the model."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask_of)
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
    return model


def mask_of(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask for the fused kernel; None for a line of packed rows, which has its layout instead."""
    from transformers.masking_utils import sdpa_mask

    mask: Tensor | None = None if LAYOUT.get() is not None else sdpa_mask(*args, **kwargs)
    return mask


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q kᵀ scaling + mask) v. query: (B, Hq, T, D); key, value: (B, Hk, S, D), Hk dividing Hq; returns (B, T, Hq, D).

    ``attention_mask`` is (B or 1, 1, T, S), True where a query sees a key, or added to the scores; None with more than one
    query means causal, unless ``is_causal`` or the module says otherwise.
    """
    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        lower = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(lower), key.to(lower), value.to(lower)
    layout = LAYOUT.get()
    if layout is not None:
        token = LAYOUT.set(None)  # the padded views below are not a line
        try:
            return attend(
                layout, query, key, value,
                lambda q, k, v, mask: attention(module, q, k, v, mask, scaling, dropout, True, **kwargs)[0],
            ), None  # fmt: skip
        finally:
            LAYOUT.reset(token)
    plain = dropout == 0 and all(kwargs.get(name) is None for name in ("position_bias", "softcap", "s_aux", "cache"))
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or not plain:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
        return output
    b, heads, t, d = query.shape
    kv_heads, s = key.shape[1], key.shape[2]
    group = heads // kv_heads
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    bias = additive(attention_mask, t, s, causal=bool(is_causal) and t > 1, dtype=query.dtype)
    if bias is not None and bias.dim() == 4:
        bias = bias.unsqueeze(2)  # (B or 1, 1, 1, T, S), over the heads of a group
    scale = d**-0.5 if scaling is None else scaling
    out: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query.reshape(b * kv_heads, group * t, d) * scale,
        key.reshape(b * kv_heads, s, d),
        value.reshape(b * kv_heads, s, value.shape[3]),
        bias,
        (b, kv_heads, group, t, s),
    )
    return out.view(b, heads, t, value.shape[3]).transpose(1, 2), None


def additive(mask: Tensor | None, t: int, s: int, *, causal: bool, dtype: torch.dtype) -> Tensor | None:
    """The mask as a number to add: the least finite number instead of -inf, since a row that sees nothing, a pad, must not
    become NaN. A causal mask is aligned to the end of the keys: the last query sees all of them."""
    least = torch.finfo(dtype).min
    if mask is None:
        return torch.full((t, s), least, dtype=dtype).triu(1 + s - t) if causal else None
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, least)
    return mask.to(dtype)


class _Attention(torch.autograd.Function):
    """Three saved tensors of size D and one of size S per query; nothing else is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        scores = torch.bmm(query, key.transpose(1, 2))
        if bias is not None:
            scores.view(shape).add_(bias)
        weights = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(query, key, value, weights)
        return torch.bmm(weights, value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, weights = ctx.saved_tensors
        (gradient,) = gradients
        of_scores = torch._softmax_backward_data(torch.bmm(gradient, value.transpose(1, 2)), weights, -1, weights.dtype)
        return (
            torch.bmm(of_scores, key),
            torch.bmm(of_scores.transpose(1, 2), query),
            torch.bmm(weights.transpose(1, 2), gradient),
            None,
            None,
        )
