"""Decoding for Llama-like models without what a general model class must carry: about a page of arithmetic.

The weights are read from the transformers model, adapters merged in, once for each call of ``sample``: query, key and value
in one product, gate and up in another, all in the precision of the run. Keys and values go into memory that was set aside
before the first token. The K responses to a prompt attend to one copy of its keys and values until rows begin to end.
Greedy tokens equal those of ``generate`` in float32 (a test).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from charter.models.layout import left_pad, positions

LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2"})
STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})


def is_llama_like(model: Any) -> bool:
    """Whether the page below is the arithmetic of this model: rotary positions, gated SiLU, full attention, RMS norms."""
    config = getattr(model, "config", None)
    if config is None or config.model_type not in LLAMA_LIKE or not hasattr(model, "lm_head"):
        return False
    windowed = getattr(config, "sliding_window", None) is not None and any(
        kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ["sliding_attention"]
    )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return config.hidden_act == "silu" and rope in STATIC_ROPE and not windowed


class Layer(NamedTuple):
    """The weights of one block. qkv: ((Hq + 2 Hk) D, H); out: (H, Hq D); gate_up: (2 I, H); down: (H, I)."""

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


def effective_weight(linear: Any) -> Tensor:
    """The weight of a linear layer with its active adapters added."""
    if not hasattr(linear, "base_layer"):
        weight: Tensor = linear.weight
        return weight
    weight = linear.base_layer.weight
    if not linear.disable_adapters:
        for name in linear.active_adapters:
            if name in linear.lora_A:
                weight = weight + linear.get_delta_weight(name)
    return weight


def bias_of(linear: Any) -> Tensor | None:
    bias: Tensor | None = getattr(linear, "base_layer", linear).bias
    return bias


class FusedLlama:
    """The state of one call of ``sample``: P prompts, K responses to each, B rows that are still being written.

    Rows are in the order of the prompts, siblings side by side. Prompts are padded on the left, so that all rows write their
    next key into the same column.
    """

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], k: int, max_new_tokens: int, dtype: torch.dtype
    ) -> None:
        config = model.config
        self.k, self.dtype, self.eps = k, dtype, config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.group = self.heads // self.kv_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.scale = self.head_dim**-0.5
        self.device = model.device
        self.layers = [self.read(block) for block in model.model.layers]
        self.norm = model.model.norm.weight.to(dtype)
        self.embedding = model.model.embed_tokens.weight.to(dtype)
        tied = effective_weight(model.lm_head) is model.model.embed_tokens.weight
        self.lm_head = self.embedding if tied else effective_weight(model.lm_head).to(dtype)
        ids, attention = left_pad(prompts, self.device)
        self.width, self.step_number = ids.shape[1], 0
        place = positions(attention)
        table = torch.arange(self.width + max_new_tokens, device=self.device).unsqueeze(0)
        cos, sin = model.model.rotary_emb(torch.zeros(1, dtype=torch.float32, device=self.device), table)
        self.cos, self.sin = cos[0].to(dtype), sin[0].to(dtype)  # (S, D)
        self.lengths = attention.sum(dim=1).repeat_interleave(k)  # (B,)
        padded = bool((attention == 0).any())
        least = torch.finfo(dtype).min
        hidden_columns = torch.zeros(attention.shape, dtype=dtype, device=self.device).masked_fill_(
            attention == 0, least
        )
        self.prompt_bias = hidden_columns if padded else None  # (P, T), added to scores of prompt columns
        self.prompt_keys: list[Tensor] = []  # (P Hk, T, D) a layer
        self.prompt_values: list[Tensor] = []
        self.logits = self.prefill(ids, place).repeat_interleave(k, 0)
        rows = len(prompts) * k * self.kv_heads
        own = (rows, max_new_tokens, self.head_dim)
        self.keys = [torch.empty(own, dtype=dtype, device=self.device) for _ in self.layers]
        self.values = [torch.empty(own, dtype=dtype, device=self.device) for _ in self.layers]
        self.shared = True  # the prompt's keys belong to the group and not yet to each row

    def read(self, block: Any) -> Layer:
        attention, mlp = block.self_attn, block.mlp
        three = (attention.q_proj, attention.k_proj, attention.v_proj)
        biases = [bias_of(linear) for linear in three]
        out_bias = bias_of(attention.o_proj)
        return Layer(
            attention_norm=block.input_layernorm.weight.to(self.dtype),
            qkv=torch.cat([effective_weight(linear) for linear in three]).to(self.dtype),
            qkv_bias=None if biases[0] is None else torch.cat([b for b in biases if b is not None]).to(self.dtype),
            out=effective_weight(attention.o_proj).to(self.dtype),
            out_bias=None if out_bias is None else out_bias.to(self.dtype),
            mlp_norm=block.post_attention_layernorm.weight.to(self.dtype),
            gate_up=torch.cat([effective_weight(mlp.gate_proj), effective_weight(mlp.up_proj)]).to(self.dtype),
            down=effective_weight(mlp.down_proj).to(self.dtype),
        )

    def rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = self.head_dim // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin

    def heads_of(self, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, Hq, D), scaled, keys and values (N, Hk, D) of rows x (N, H); cos, sin: (N, 1, D)."""
        mixed = F.linear(self.rms(x, layer.attention_norm), layer.qkv, layer.qkv_bias)
        mixed = mixed.view(len(x), self.heads + 2 * self.kv_heads, self.head_dim)
        turned = self.rotate(mixed[:, : self.heads + self.kv_heads], cos, sin)
        return turned[:, : self.heads] * self.scale, turned[:, self.heads :], mixed[:, self.heads + self.kv_heads :]

    def after_attention(self, layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
        x = x + F.linear(attended, layer.out, layer.out_bias)
        gate, up = F.linear(self.rms(x, layer.mlp_norm), layer.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, layer.down)

    def prefill(self, ids: Tensor, place: Tensor) -> Tensor:
        """Read the prompts (P, T); logits (P, V) of the first new token."""
        p, t = ids.shape
        cos, sin = (table[place].view(p * t, 1, self.head_dim) for table in (self.cos, self.sin))
        causal = torch.full((t, t), torch.finfo(self.dtype).min, dtype=self.dtype, device=self.device).triu(1)
        bias = causal if self.prompt_bias is None else causal + self.prompt_bias.view(p, 1, 1, 1, t)
        # Two least numbers add up to minus infinity, and a row of nothing but that to NaN: a pad sees itself.
        bias = bias.clamp(min=torch.finfo(self.dtype).min)
        x = F.embedding(ids.view(-1), self.embedding)
        for layer in self.layers:
            query, key, value = self.heads_of(layer, x, cos, sin)
            query = query.view(p, t, self.kv_heads, self.group, -1).permute(0, 2, 3, 1, 4)
            key, value = (
                y.view(p, t, self.kv_heads, -1).transpose(1, 2).reshape(p * self.kv_heads, t, -1) for y in (key, value)
            )
            self.prompt_keys.append(key)
            self.prompt_values.append(value)
            scores = torch.bmm(query.reshape(p * self.kv_heads, self.group * t, -1), key.transpose(1, 2))
            scores.view(p, self.kv_heads, self.group, t, t).add_(bias)
            out = torch.bmm(torch.softmax(scores, dim=-1), value).view(p, self.heads, t, -1)
            x = self.after_attention(layer, x, out.transpose(1, 2).reshape(p * t, -1))
        return F.linear(self.rms(x.view(p, t, -1)[:, -1], self.norm), self.lm_head)

    def step(self, tokens: Tensor) -> Tensor:
        """Write one token (B,) to every row; logits (B, V) of the next."""
        b, n = len(tokens), self.step_number
        place = self.lengths + n
        cos, sin = self.cos[place].unsqueeze(1), self.sin[place].unsqueeze(1)
        x = F.embedding(tokens, self.embedding)
        for number, layer in enumerate(self.layers):
            query, key, value = self.heads_of(layer, x, cos, sin)
            keys, values = self.keys[number], self.values[number]
            column = n if self.shared else self.width + n
            keys[:, column] = key.reshape(b * self.kv_heads, -1)
            values[:, column] = value.reshape(b * self.kv_heads, -1)
            seen = slice(0, column + 1)
            query = query.reshape(b * self.kv_heads, self.group, -1)
            own = torch.bmm(query, keys[:, seen].transpose(1, 2))
            if self.shared:
                out = self.attend_shared(number, query, own, values[:, seen])
            else:
                if self.prompt_bias is not None:
                    own.view(b, self.kv_heads, self.group, -1)[..., : self.width].add_(
                        self.prompt_bias.view(b, 1, 1, -1)
                    )
                out = torch.bmm(torch.softmax(own, dim=-1), values[:, seen])
            x = self.after_attention(layer, x, out.reshape(b, -1))
        self.step_number += 1
        self.logits = F.linear(self.rms(x, self.norm), self.lm_head)
        return self.logits

    def attend_shared(self, number: int, query: Tensor, own: Tensor, values: Tensor) -> Tensor:
        """Attention over the group's prompt and the row's own tokens: one product for the K queries of a group."""
        keys, prompt_values = self.prompt_keys[number], self.prompt_values[number]
        p, width = len(keys) // self.kv_heads, self.width

        def by_group(rows: Tensor) -> Tensor:  # (B Hk, G, X) to (P Hk, K G, X)
            shape = (p, self.k, self.kv_heads, self.group, rows.shape[-1])
            return rows.view(shape).transpose(1, 2).reshape(p * self.kv_heads, self.k * self.group, -1)

        def by_row(groups: Tensor) -> Tensor:
            shape = (p, self.kv_heads, self.k, self.group, groups.shape[-1])
            return groups.view(shape).transpose(1, 2).reshape(len(query), self.group, -1)

        of_prompt = torch.bmm(by_group(query), keys.transpose(1, 2))
        if self.prompt_bias is not None:
            of_prompt.view(p, self.kv_heads * self.k * self.group, width).add_(self.prompt_bias.unsqueeze(1))
        weights = torch.softmax(torch.cat((by_row(of_prompt), own), dim=-1), dim=-1)
        out = torch.bmm(weights[..., width:], values)
        return out + by_row(torch.bmm(by_group(weights[..., :width].contiguous()), prompt_values))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (b,) alone. From here each row has its prompt's keys to itself."""
        places = (rows.unsqueeze(1) * self.kv_heads + torch.arange(self.kv_heads, device=self.device)).view(-1)
        if self.shared:
            groups = rows // self.k
            of_prompt = (groups.unsqueeze(1) * self.kv_heads + torch.arange(self.kv_heads, device=self.device)).view(-1)
            for number in range(len(self.layers)):
                for cache, prompt in ((self.keys, self.prompt_keys), (self.values, self.prompt_values)):
                    cache[number] = torch.cat((prompt[number][of_prompt], cache[number][places]), dim=1)
            if self.prompt_bias is not None:
                self.prompt_bias = self.prompt_bias[groups]
            self.prompt_keys, self.prompt_values, self.shared = [], [], False
        else:
            for number in range(len(self.layers)):
                self.keys[number], self.values[number] = self.keys[number][places], self.values[number][places]
            if self.prompt_bias is not None:
                self.prompt_bias = self.prompt_bias[rows]
        self.lengths = self.lengths[rows]
