"""The weights of a Llama-like model as the fused pages use them: fewer, larger matrices in the precision of the run.

Query, key and value stand in one matrix, gate and up in another. The gain of the norm before a matrix and the scale of the
queries are multiplied into it, adapters are merged in. All of it is made again when a weight it comes from has changed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charter.models.quantize import is_quantized

LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2"})
STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
FEW_ROWS = 256
# CPUs without bfloat16 products take another path in torch, for which nothing is laid out.
PACKS = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # type: ignore[no-untyped-call]
FUSED_BYTES = 4 * 2**30  # of a second copy of the weights; a larger model runs through its own code


def is_llama_like(model: Any) -> bool:
    """Whether the fused pages are the arithmetic of this model: rotary positions, gated SiLU, full attention, RMS norms."""
    config = getattr(model, "config", None)
    if config is None or config.model_type not in LLAMA_LIKE or not hasattr(model, "lm_head") or is_quantized(model):
        return False
    if hasattr(model.model.layers[0], "unshard"):  # divided among processes (``sharded``): its own code gathers what it needs
        return False
    windowed = getattr(config, "sliding_window", None) is not None and any(
        kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ["sliding_attention"]
    )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return config.hidden_act == "silu" and rope in STATIC_ROPE and not windowed


@dataclass(frozen=True)
class Rows:
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


def rows_of(linear: Any, scale: float = 1.0) -> Rows:
    """What a linear layer, with peft's adapters around it or without, contributes."""
    base = getattr(linear, "base_layer", linear)
    lora = []
    if base is not linear and not linear.disable_adapters:
        for name in linear.active_adapters:
            if name in linear.lora_A:
                lora.append((linear.lora_A[name].weight, linear.lora_B[name].weight, float(linear.scaling[name])))
    return Rows(base.weight, base.bias, tuple(lora), scale)


class Matrix:
    """x (N, in) ↦ (x · gain) Wᵀ + b with W the rows of several linear layers one above the other."""

    def __init__(self, parts: tuple[Rows, ...], gain: Tensor | None, dtype: torch.dtype) -> None:
        self.parts, self.gain = parts, gain
        weight = torch.cat([part.effective() * part.scale for part in parts])
        self.weight = (weight if gain is None else weight * gain).to(dtype)
        self.bias: Tensor | None = None
        self.packed: Tensor | None = None
        if any(part.bias is not None for part in parts):
            biases = [part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias * part.scale for part in parts]
            self.bias = torch.cat(biases).to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def few(self, x: Tensor) -> Tensor:
        """The same for a decoder, which multiplies a few rows by each matrix over and over: on a CPU that multiplies bfloat16 the
        matrix is laid out once as the product wants it (oneDNN does so in every product otherwise)."""
        if len(x) > FEW_ROWS or x.dtype != torch.bfloat16 or not PACKS or x.device.type != "cpu":
            return self(x)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, len(x))
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return found

    def parameters(self) -> Iterator[Tensor]:
        """Everything it was made of, in the order of ``gradients``."""
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
        None where none is asked for: with frozen weights no product of their size is made."""
        of_gain = self.gain is not None and self.gain.requires_grad
        whole = None
        if of_gain or any(part.weight.requires_grad for part in self.parts):
            whole = of_output.t() @ x  # (out, in), of the fused matrix
        found: list[Tensor | None] = []
        if self.gain is not None:
            found.append(self._of_gain(whole) if whole is not None and of_gain else None)
        start = 0
        for part in self.parts:
            rows = slice(start, start + len(part.weight))
            start = rows.stop
            here = of_output[:, rows]
            wanted = whole is not None and part.weight.requires_grad
            found.append(self._unfold(whole[rows], part.scale) if wanted else None)  # type: ignore[index]
            if part.bias is not None:
                found.append(here.float().sum(dim=0) * part.scale if part.bias.requires_grad else None)
            for a, b, scale in part.lora:
                # W = W0 + s B A: thin products, N x r and no larger.
                found.append(self._unfold((here @ b.to(here.dtype)).t() @ x, part.scale * scale))
                through = (a if self.gain is None else a * self.gain).to(x.dtype)
                found.append((here.t() @ (x @ through.t())).float() * (part.scale * scale))
        return found

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
            (rows_of(attention.q_proj, query_scale), rows_of(attention.k_proj), rows_of(attention.v_proj)),
            block.input_layernorm.weight, dtype,
        )  # fmt: skip
        self.out = Matrix((rows_of(attention.o_proj),), None, dtype)
        self.gate_up = Matrix((rows_of(mlp.gate_proj), rows_of(mlp.up_proj)), block.post_attention_layernorm.weight, dtype)
        self.down = Matrix((rows_of(mlp.down_proj),), None, dtype)
        self.matrices = (self.qkv, self.out, self.gate_up, self.down)

    def parameters(self) -> list[Tensor]:
        return [parameter for matrix in self.matrices for parameter in matrix.parameters()]


class LlamaWeights:
    """All of a model's blocks, its shape, and the parameters it was read from with their versions."""

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
        """The token whose row learns nothing where it is read, in transformers too."""
        self.lm_head = Matrix((rows_of(model.lm_head),), None, dtype)
        self.sources = [
            *(p for block in self.blocks for p in block.parameters()),
            *self.lm_head.parameters(),
            self.embedding,
        ]
        self.versions, self.marks = [p._version for p in self.sources], self.mark()

    def mark(self) -> Tensor:
        """One number out of the middle of every weight: code that writes through ``.data`` leaves no other trace."""
        return torch.stack([p.detach()[tuple(n // 2 for n in p.shape)] for p in self.sources])

    def fresh(self) -> bool:
        """Whether no weight has changed since this was made."""
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


KEPT_ROLES = 2  # roles of one trunk whose merged weights are held at a time; making them takes less than a step
_WEIGHTS: weakref.WeakKeyDictionary[Any, dict[Any, LlamaWeights]] = weakref.WeakKeyDictionary()


def weights_of(model: Any, dtype: torch.dtype) -> LlamaWeights:
    """The fused weights of a Llama-like model in the role it plays now; kept until a weight changes."""
    first = model.model.layers[0].self_attn.q_proj
    adapters = tuple(first.active_adapters) if hasattr(first, "base_layer") and not first.disable_adapters else ()
    kept = _WEIGHTS.setdefault(model, {})
    found = kept.pop((adapters, dtype), None)
    if found is None or not found.fresh():
        found = None  # before the new ones are made: there should not be room for both
        while len(kept) >= KEPT_ROLES:
            kept.pop(next(iter(kept)))
        # Sampling is in inference mode, and what is made there could not be used in training.
        with torch.inference_mode(mode=False), torch.no_grad():
            found = LlamaWeights(model, dtype)
    kept[(adapters, dtype)] = found  # the last one used stands last
    return found
