"""Log-probabilities from hidden states, without float32 logits of the vocabulary for every token.

Logits are made in blocks of rows in the precision of the run and normalised in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLOCK_ELEMENTS = 2**20  # logits of one block: 4 MB in float32, within the caches of a core
KEPT_ELEMENTS = 2**25  # most logits kept for the backward pass: 64 MB in bfloat16; more are computed again


def logits_from_hidden(model: Any, hidden: Tensor) -> Tensor:
    """Vocabulary logits (N, V) of hidden states (N, H), with the caps and scales of some architectures."""
    config = model.config.get_text_config()
    if getattr(config, "scale_decoder_outputs", False):  # T5 with tied embeddings
        hidden = hidden * config.d_model**-0.5
    logits: Tensor = model.get_output_embeddings()(hidden)
    if (bias := getattr(model, "final_logits_bias", None)) is not None:  # BART
        logits = logits + bias
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / scaling
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def is_plain_projection(model: Any) -> bool:
    """Whether logits are one product with one matrix: no bias, adapter, cap or scale."""
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    if getattr(config, "scale_decoder_outputs", False) or hasattr(model, "final_logits_bias"):
        return False
    shaped = any(getattr(config, name, None) is not None for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"))
    return type(output) is nn.Linear and output.bias is None and not shaped


def chosen_logprobs(
    hidden: Tensor, weight: Tensor, cast: Tensor, targets: Tensor, *, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden Wᵀ / temperature) at the targets, and the entropy of each distribution: (n,) each, nats.

    hidden: (n, H), float32; weight: (V, H), ``cast`` the same in the precision of the products; targets: (n,).
    """
    logprobs, entropies = _ChosenLogprobs.apply(hidden, weight, cast, targets, temperature, entropy)  # type: ignore[no-untyped-call]
    return logprobs, entropies if entropy else None


class _ChosenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, cast: Tensor, targets: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        n = len(hidden)
        low = (hidden if temperature == 1 else hidden / temperature).to(cast.dtype)
        chosen, entropies = hidden.new_empty(n), hidden.new_zeros(n)
        logits = []
        for rows in blocks(n, len(weight)):
            logits.append(low[rows] @ cast.t())
            logprobs = torch.log_softmax(logits[-1].float(), dim=1)
            chosen[rows] = logprobs.gather(1, targets[rows].unsqueeze(1)).squeeze(1)
            if entropy:
                entropies[rows] = -torch.linalg.vecdot(logprobs, logprobs.exp())
        kept = logits if n * len(weight) <= KEPT_ELEMENTS else []
        ctx.save_for_backward(low, cast, targets, chosen, entropies, *kept)
        ctx.temperature, ctx.entropy = temperature, entropy
        return chosen, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, cast, targets, chosen, entropies, *kept = ctx.saved_tensors
        of_chosen, of_entropies = gradients
        entropy = ctx.entropy and bool(of_entropies.any())
        of_hidden = torch.empty(low.shape, dtype=torch.float32, device=low.device)
        of_weight = torch.zeros(cast.shape, dtype=torch.float32, device=low.device) if ctx.needs_input_grad[1] else None
        # d log p(y) = [v = y] - p(v). The term of the target is computed in float32: 1 - p is small where p is near 1.
        of_target = (of_chosen * -torch.expm1(chosen)).to(low.dtype)
        pull = -of_chosen.to(low.dtype).unsqueeze(1)
        for number, rows in enumerate(blocks(len(low), len(cast))):
            logits = kept[number] if kept else low[rows] @ cast.t()
            of_logits = torch.softmax(logits, dim=1).mul_(pull[rows])
            of_logits[torch.arange(len(of_logits)), targets[rows]] = of_target[rows]
            if entropy:  # d H = -p(v) (log p(v) + H)
                logprobs = torch.log_softmax(logits.float(), dim=1)
                spread = logprobs.exp() * (logprobs + entropies[rows].unsqueeze(1))
                of_logits -= (spread * of_entropies[rows].unsqueeze(1)).to(low.dtype)
            of_hidden[rows] = of_logits @ cast
            if of_weight is not None:
                of_weight += of_logits.t() @ low[rows]
        if ctx.temperature != 1:
            of_hidden /= ctx.temperature
        return of_hidden, of_weight, None, None, None, None


def blocks(n: int, vocabulary: int) -> list[slice]:
    """Rows in blocks with few enough logits."""
    size = max(1, BLOCK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
