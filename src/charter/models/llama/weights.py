"""The weights of a Llama-like model as the fused pages use them: fewer, larger matrices in the precision of the run.

Query, key and value stand in one matrix, gate and up in another. The gain of the norm before a matrix and the scale of the
queries are multiplied into it, adapters are merged in. All of it is computed again when a source weight has changed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charter.models.formats.quantize import is_quantized

LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2"})
STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
ROWS_OF_A_STEP = 64  # that matrices are packed for; the layout serves any number of rows as well
# CPUs without bfloat16 products take another path in torch, which needs no packed layout.
PACKS = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # type: ignore[no-untyped-call]
FUSED_BYTES = 4 * 2**30  # of a second copy of the weights; a larger model runs through its own code


def is_llama_like(model: Any) -> bool:
    """Whether the fused pages are the arithmetic of this model: rotary positions, gated SiLU, full attention, RMS norms."""
    config = getattr(model, "config", None)
    if config is None or config.model_type not in LLAMA_LIKE or not hasattr(model, "lm_head") or is_quantized(model):
        return False
    if hasattr(model.model.layers[0], "unshard"):  # divided among processes (``sharded``): its own code gathers the weights
        return False
    windowed = getattr(config, "sliding_window", None) is not None and any(
        kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ["sliding_attention"]
    )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return config.hidden_act == "silu" and rope in STATIC_ROPE and not windowed


@dataclass(frozen=True)
class LinearRows:
    """The rows of a fused matrix that come from one linear layer. weight: (out, in); lora: (A (r, in), B (out, r), scale)."""

    weight: Tensor
    bias: Tensor | None = None
    lora: tuple[tuple[Tensor, Tensor, float], ...] = ()
    scale: float = 1.0

    def effective(self) -> Tensor:
        """The weight with its adapters, float32, before scale and gain."""
        weight = self.weight
        for a, b, scale in self.lora:
            weight = torch.addmm(weight, b, a, alpha=scale)
        return weight


def linear_rows(linear: Any, scale: float = 1.0) -> LinearRows:
    """The rows of a linear layer, with or without peft's adapters around it."""
    base = getattr(linear, "base_layer", linear)
    lora = []
    if base is not linear and not linear.disable_adapters:
        for name in linear.active_adapters:
            if name in linear.lora_A:
                lora.append((linear.lora_A[name].weight, linear.lora_B[name].weight, float(linear.scaling[name])))
    return LinearRows(base.weight, base.bias, tuple(lora), scale)


class Matrix:
    """x (N, in) ↦ (x · gain) Wᵀ + b with W the rows of several linear layers one above the other."""

    def __init__(self, parts: tuple[LinearRows, ...], gain: Tensor | None, dtype: torch.dtype) -> None:
        self.parts, self.gain, self.dtype = parts, gain, dtype
        self.rows = sum(len(part.weight) for part in parts)
        self.bias: Tensor | None = None
        self._weight: Tensor | None = None
        self._packed: Tensor | None = None
        if any(part.bias is not None for part in parts):
            biases = [part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias * part.scale for part in parts]
            self.bias = torch.cat(biases).to(dtype)

    @property
    def weight(self) -> Tensor:
        """(out, in) in the precision of the products, with its gain."""
        if self._weight is None:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._weight = self._cast() if self._packed is None else self._packed.to_dense()
            self._packed = None  # one copy at a time: the next one is made faster than one token of a batch
        return self._weight

    def _cast(self) -> Tensor:
        first = self.parts[0].weight
        weight = torch.empty(self.rows, first.shape[1], dtype=self.dtype, device=first.device)
        for part, rows in zip(self.parts, torch.split(weight, [len(part.weight) for part in self.parts]), strict=True):
            source = part.effective()
            source = source if part.scale == 1 else source * part.scale
            rows.copy_(source if self.gain is None else source * self.gain)
        return weight

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def packed(self, x: Tensor) -> Tensor:
        """The same for a decoder, which multiplies a few rows by each matrix over and over: on a CPU with bfloat16 products the
        matrix is packed once for them (oneDNN packs it in every product otherwise)."""
        if self.dtype != torch.bfloat16 or not PACKS or x.device.type != "cpu":
            return self(x)
        if self._packed is None:
            with torch.inference_mode(mode=False), torch.no_grad():
                whole = self._cast() if self._weight is None else self._weight
                self._packed = torch.ops.mkldnn._reorder_linear_weight(whole, ROWS_OF_A_STEP)
            self._weight = None
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return product

    def parameters(self) -> Iterator[Tensor]:
        """Its source parameters, in the order of ``gradients``."""
        if self.gain is not None:
            yield self.gain
        for part in self.parts:
            yield part.weight
            if part.bias is not None:
                yield part.bias
            for a, b, _ in part.lora:
                yield a
                yield b

    def gradients(self, of_output: Tensor, x: Tensor) -> list[Tensor | None]:
        """The gradient of each of ``parameters`` from that of the output (N, out) and the input (N, in) without its gain.
        None for frozen parameters: no product of their size is computed."""
        of_gain = self.gain is not None and self.gain.requires_grad
        whole = None
        if of_gain or any(part.weight.requires_grad for part in self.parts):
            whole = of_output.t() @ x  # (out, in), of the fused matrix
        gradients: list[Tensor | None] = []
        if self.gain is not None:
            gradients.append(self._of_gain(whole) if whole is not None and of_gain else None)
        start = 0
        for part in self.parts:
            rows = slice(start, start + len(part.weight))
            start = rows.stop
            here = of_output[:, rows]
            trained = whole is not None and part.weight.requires_grad
            gradients.append(self._unfold(whole[rows], part.scale) if trained else None)  # type: ignore[index]
            if part.bias is not None:
                gradients.append(here.float().sum(dim=0) * part.scale if part.bias.requires_grad else None)
            for a, b, scale in part.lora:
                # W = W0 + s B A: thin products, N x r and no larger.
                gradients.append(self._unfold((here @ b.to(here.dtype)).t() @ x, part.scale * scale))
                through = (a if self.gain is None else a * self.gain).to(x.dtype)
                gradients.append((here.t() @ (x @ through.t())).float() * (part.scale * scale))
        return gradients

    def _unfold(self, gradient: Tensor, scale: float) -> Tensor:
        gradient = gradient.float() if scale == 1 else gradient.float() * scale
        return gradient if self.gain is None else gradient * self.gain

    def _of_gain(self, whole: Tensor) -> Tensor:
        total = whole.new_zeros(whole.shape[1], dtype=torch.float32)
        start = 0
        for part in self.parts:
            stop = start + len(part.weight)
            total += (whole[start:stop] * part.effective()).sum(dim=0) * part.scale
            start = stop
        return total


class Block:
    """One layer: two norms folded into four matrices. qkv: ((Hq + 2 Hk) D, H); out: (H, Hq D); gate_up: (2 I, H); down:
    (H, I)."""

    def __init__(self, block: Any, query_scale: float, dtype: torch.dtype) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.qkv = Matrix(
            (linear_rows(attention.q_proj, query_scale), linear_rows(attention.k_proj), linear_rows(attention.v_proj)),
            block.input_layernorm.weight, dtype,
        )  # fmt: skip
        self.out = Matrix((linear_rows(attention.o_proj),), None, dtype)
        self.gate_up = Matrix(
            (linear_rows(mlp.gate_proj), linear_rows(mlp.up_proj)), block.post_attention_layernorm.weight, dtype
        )
        self.down = Matrix((linear_rows(mlp.down_proj),), None, dtype)
        self.matrices = (self.qkv, self.out, self.gate_up, self.down)

    def parameters(self) -> list[Tensor]:
        return [parameter for matrix in self.matrices for parameter in matrix.parameters()]


class LlamaWeights:
    """All blocks of a model, its shape, and the source parameters with their versions."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        config = model.config
        self.dtype, self.eps = dtype, config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.blocks = [Block(block, self.head_dim**-0.5, dtype) for block in model.model.layers]
        self.norm, self.embedding, self.rotary = (
            model.model.norm.weight, model.model.embed_tokens.weight, model.model.rotary_emb
        )  # fmt: skip
        self.padding = model.model.embed_tokens.padding_idx
        """The token whose row gets no gradient as input, in transformers too."""
        self.lm_head = Matrix((linear_rows(model.lm_head),), None, dtype)
        self.sources = [*(p for block in self.blocks for p in block.parameters()), *self.lm_head.parameters(), self.embedding]
        self.versions, self.marks = [p._version for p in self.sources], self.mark()

    def mark(self) -> Tensor:
        """One number from the middle of every weight: a write through ``.data`` leaves no other trace."""
        return torch.stack([p.detach()[tuple(n // 2 for n in p.shape)] for p in self.sources])

    def fresh(self) -> bool:
        """Whether no source weight has changed since."""
        versions = all(p._version == version for p, version in zip(self.sources, self.versions, strict=True))
        return versions and torch.equal(self.mark(), self.marks)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (N, 1, D/2) at positions (N,), of the angles that the two halves of a head share."""
        cos, sin = self.rotary(torch.zeros(1, dtype=torch.float32, device=positions.device), positions.unsqueeze(0))
        half = self.head_dim // 2
        return cos[0, :, None, :half].to(self.dtype), sin[0, :, None, :half].to(self.dtype)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> None:
    """Turn the two halves of each head (N, h, D) by the angle of its position, in place, or back again."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    turned = first * sin
    sign = 1.0 if back else -1.0
    first.mul_(cos).addcmul_(second, sin, value=sign)
    second.mul_(cos).add_(turned, alpha=-sign)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x²) + ε) of each row (N, H), in float32: (N, 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale: Tensor = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return scale


KEPT_ROLES = 2  # roles of one trunk whose merged weights are kept at a time; merging takes less than a step
_WEIGHTS: weakref.WeakKeyDictionary[Any, dict[Any, LlamaWeights]] = weakref.WeakKeyDictionary()


def weights_of(model: Any, dtype: torch.dtype) -> LlamaWeights:
    """The fused weights of a Llama-like model in the role it plays now; kept until a weight changes."""
    first = model.model.layers[0].self_attn.q_proj
    adapters = tuple(first.active_adapters) if hasattr(first, "base_layer") and not first.disable_adapters else ()
    kept = _WEIGHTS.setdefault(model, {})
    weights = kept.pop((adapters, dtype), None)
    if weights is None or not weights.fresh():
        weights = None  # free the old ones before: memory may not suffice for both
        while len(kept) >= KEPT_ROLES:
            kept.pop(next(iter(kept)))
        # Sampling is in inference mode, whose tensors could not be used in training.
        with torch.inference_mode(mode=False), torch.no_grad():
            weights = LlamaWeights(model, dtype)
    kept[(adapters, dtype)] = weights  # the last one used comes last
    return weights
