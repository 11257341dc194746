"""Log-probabilities from hidden states, without float32 logits of the vocabulary for every token.

Logits are made in blocks of rows in the precision of the run, large enough for products at full speed whatever the vocabulary.
They are normalised in float32, a few rows at a time.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from charter.errors import InputError
from charter.models.architectures import is_encoder, is_encoder_decoder

BLOCK_ELEMENTS = 2**25  # logits of one product: 682 rows of a vocabulary of 49,152, 220 of 151,936; 64 MB in bfloat16
CACHE_ELEMENTS = 2**19  # logits that are normalised together: 2 MB in float32, within the caches of a core
WEIGHT_ROWS = 4096  # of the matrix, whose gradient a CPU adds up in parts, while a product is still in its caches
KEPT_ELEMENTS = 2**27  # most logits kept for the backward pass: 256 MB in bfloat16; further rows are computed again
SCALES = ("logit_scale", "lm_head_multiplier", "logits_scaling")
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Settings of config.json that change the logits after the product with the vocabulary projection."""


def logits_from_hidden(model: Any, hidden: Tensor) -> Tensor:
    """Vocabulary logits (N, V) of hidden states (N, H), with the caps and scales of some architectures."""
    config = model.config.get_text_config()
    if scales_states(config):
        hidden = hidden * config.d_model**-0.5
    logits: Tensor = model.get_output_embeddings()(hidden)
    if (bias := getattr(model, "final_logits_bias", None)) is not None:  # BART
        logits = logits + bias
    for name in SCALES:
        if (scale := getattr(config, name, None)) is not None:
            divides = name == "logits_scaling" and config.model_type != "hyperclovax"
            logits = logits / scale if divides else logits * scale
    for name in CAPS:
        if (cap := getattr(config, name, None)) is not None:
            logits = torch.tanh(logits / cap) * cap
    return logits


def scales_states(config: Any) -> bool:
    """Whether the states are scaled before the product, as in T5 with tied embeddings."""
    tied = config.model_type in ("umt5", "switch_transformers") and config.tie_word_embeddings
    return bool(getattr(config, "scale_decoder_outputs", tied))


@torch.no_grad()
def check_logits(model: Any, path: str) -> None:
    """InputError where a model makes its logits in a way that ``logits_from_hidden`` does not know: all that is read from it or
    trained would be of another model. Decided by a trial."""
    if is_encoder(model):
        return
    output = model.get_output_embeddings().weight
    ids = torch.tensor([[3, 5, 7]], device=output.device)
    flash = model.config._attn_implementation == "flash_attention_2"  # which knows 16 bits only
    with torch.autocast(output.device.type, dtype=torch.bfloat16 if flash else None, enabled=flash):
        if is_encoder_decoder(model):
            logits = model(input_ids=ids, decoder_input_ids=ids, use_cache=False).logits
            read = model.get_encoder()(input_ids=ids).last_hidden_state
            states = model.get_decoder()(input_ids=ids, encoder_hidden_states=read, use_cache=False)
        else:
            logits = model(input_ids=ids, use_cache=False).logits
            states = model.base_model(input_ids=ids, use_cache=False)
        logits, known = logits.float(), logits_from_hidden(model, states.last_hidden_state.to(output.dtype)).float()
    if not torch.allclose(logits, known, rtol=1e-2, atol=1e-2 * float(logits.abs().max())):
        raise InputError(f"{type(model).__name__} shapes its logits in a way that Charter does not know; use another model",
                         file=path or None)  # fmt: skip


def exact_logprobs(model: Any, hidden: Tensor, vocabulary: int | None = None) -> Tensor:
    """Log-probabilities (N, V), nats, of the next token after hidden states (N, H), the product in float32 whatever the
    precision of the layers below, unless the matrix itself is stored in 16 bits. ``vocabulary``: ids that count."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = logits_from_hidden(model, hidden.to(model.get_output_embeddings().weight.dtype))
    return torch.log_softmax(logits[:, :vocabulary].float(), dim=-1)


def is_plain_projection(model: Any) -> bool:
    """Whether logits are one product with one matrix: no bias, adapter, cap or scale."""
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    if scales_states(config) or hasattr(model, "final_logits_bias"):
        return False
    shaped = any(getattr(config, name, None) is not None for name in (*SCALES, *CAPS))
    return type(output) is nn.Linear and output.bias is None and not shaped


def chosen_logprobs(
    hidden: Tensor, weight: Tensor, cast: Tensor, targets: Tensor, *, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden Wᵀ / temperature) at the targets, and the entropy of each distribution: (n,) each, nats.

    hidden: (n, H), float32; weight: (V, H), ``cast`` the same in the precision of the products; targets: (n,).
    """
    learns = torch.is_grad_enabled()
    logprobs, entropies = _ChosenLogprobs.apply(hidden, weight, cast, targets, temperature, entropy, learns)  # type: ignore[no-untyped-call]
    return logprobs, entropies if entropy else None


class _ChosenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, cast: Tensor, targets: Tensor, temperature: float, entropy: bool, learns: bool
    ) -> tuple[Tensor, Tensor]:
        n, v = len(hidden), len(weight)
        low = (hidden if temperature == 1 else hidden / temperature).to(cast.dtype)
        chosen, entropies = hidden.new_empty(n), hidden.new_zeros(n)
        kept = low.new_empty(min(n, KEPT_ELEMENTS // v) if learns else 0, v)
        for rows in blocks(n, v, BLOCK_ELEMENTS, len(kept)):
            logits = low[rows] @ cast.t() if rows.start >= len(kept) else torch.mm(low[rows], cast.t(), out=kept[rows])
            for part in blocks(len(logits), v, CACHE_ELEMENTS):
                here = slice(rows.start + part.start, rows.start + part.stop)
                logprobs = torch.log_softmax(logits[part].float(), dim=1)
                chosen[here] = logprobs.gather(1, targets[here].unsqueeze(1)).squeeze(1)
                if entropy:
                    entropies[here] = -torch.linalg.vecdot(logprobs, logprobs.exp())
        ctx.save_for_backward(low, cast, targets, chosen, entropies)
        ctx.kept, ctx.temperature, ctx.entropy = kept, temperature, entropy
        return chosen, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, cast, targets, chosen, entropies = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, low.new_empty(0, len(cast))  # overwritten here; a second pass would compute them again
        of_chosen, of_entropies = gradients
        entropy = ctx.entropy and bool(of_entropies.any())
        of_hidden = torch.empty(low.shape, dtype=torch.float32, device=low.device)
        make = torch.empty if len(low) else torch.zeros
        part_rows = WEIGHT_ROWS if low.device.type == "cpu" else len(cast)
        of_weight = make(cast.shape, dtype=torch.float32, device=low.device) if ctx.needs_input_grad[1] else None
        # d log p(y) = [v = y] - p(v). The term of the target is computed in float32: 1 - p is small where p is near 1.
        of_target = (of_chosen * -torch.expm1(chosen)).to(low.dtype)
        pull = -of_chosen.to(low.dtype).unsqueeze(1)
        for rows in blocks(len(low), len(cast), BLOCK_ELEMENTS, len(kept)):
            logits = low[rows] @ cast.t() if rows.start >= len(kept) else kept[rows]
            for part in blocks(len(logits), len(cast), CACHE_ELEMENTS):  # logits become their gradient
                here = slice(rows.start + part.start, rows.start + part.stop)
                logprobs = torch.log_softmax(logits[part].float(), dim=1) if entropy else None
                of_logits = torch.mul(torch.softmax(logits[part], dim=1), pull[here], out=logits[part])
                of_logits[torch.arange(len(of_logits)), targets[here]] = of_target[here]
                if logprobs is not None:  # d H = -p(v) (log p(v) + H)
                    spread = logprobs.exp() * (logprobs + entropies[here].unsqueeze(1))
                    of_logits -= (spread * of_entropies[here].unsqueeze(1)).to(low.dtype)
            of_hidden[rows] = logits @ cast
            if of_weight is not None:
                for sums, columns in zip(torch.split(of_weight, part_rows), torch.split(logits, part_rows, dim=1), strict=True):
                    product = columns.t() @ low[rows]
                    sums.copy_(product) if rows.start == 0 else sums.add_(product)
        if ctx.temperature != 1:
            of_hidden /= ctx.temperature
        return of_hidden, of_weight, None, None, None, None, None


def blocks(n: int, vocabulary: int, elements: int, first: int = 0) -> list[slice]:
    """``n`` rows in blocks of at most ``elements`` logits, one row at least; a block ends at row ``first``."""
    size = max(1, elements // vocabulary)
    starts = [*range(0, first, size), *range(first, n, size)]
    return [slice(start, stop) for start, stop in itertools.pairwise([*starts, n])]
