"""Decoding for Llama-like models without what a general model class must carry: about a page of arithmetic.

The weights are those of ``llama_weights``. The K responses to a prompt attend to one copy of its keys and values until rows
begin to end. Greedy tokens equal those of ``generate`` in float32 (a test).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charter.models.layout import left_pad, positions
from charter.models.llama_weights import Block, inverse_rms, rotate_, weights_of

GROWTH = 16  # columns by which the cache grows


class FusedLlama:
    """The state of one call of ``sample``: P prompts, K responses to each, B rows that are still being written.

    Rows are in the order of the prompts, siblings side by side. Prompts are padded on the left, so that all rows write their
    next key into the same column.
    """

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], k: int, max_new_tokens: int, dtype: torch.dtype
    ) -> None:
        weights = weights_of(model, dtype)
        self.k, self.dtype, self.eps = k, dtype, weights.eps
        self.heads, self.kv_heads, self.head_dim = weights.heads, weights.kv_heads, weights.head_dim
        self.group = self.heads // self.kv_heads
        self.device = model.device
        self.layers = weights.blocks
        self.norm, self.embedding = weights.norm, weights.embedding
        self.lm_head = weights.lm_head
        ids, attention = left_pad(prompts, self.device)
        self.width, self.step_number = ids.shape[1], 0
        place = positions(attention)
        table = torch.arange(self.width + max_new_tokens, device=self.device)
        self.cos, self.sin = weights.rope(table)  # (S, 1, D/2)
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
        none = torch.empty(len(prompts) * k * self.kv_heads, 0, self.head_dim, dtype=dtype, device=self.device)
        self.keys, self.values = [none] * len(self.layers), [none] * len(self.layers)
        self.shared = True  # the prompt's keys belong to the group and not yet to each row

    def normed(self, x: Tensor) -> Tensor:
        return (x * inverse_rms(x, self.eps)).to(self.dtype)

    def reserve(self, columns: int) -> None:
        """Room for so many columns of keys and values. bmm copies a cache that it does not read to its last column, so the cache
        grows by little at a time and the columns that are not yet written are hidden: zeros, since garbage may be NaN."""
        have = self.keys[0].shape[1]
        if have < columns:
            for caches in (self.keys, self.values):
                for number, cache in enumerate(caches):
                    caches[number] = F.pad(cache, (0, 0, 0, GROWTH))

    def heads_of(self, layer: Block, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, Hq, D), keys and values (N, Hk, D) of rows x (N, H); cos, sin: (N, 1, D/2)."""
        mixed = layer.qkv(self.normed(x)).view(len(x), self.heads + 2 * self.kv_heads, self.head_dim)
        rotate_(mixed[:, : self.heads + self.kv_heads], cos, sin)
        return mixed[:, : self.heads], mixed[:, self.heads : -self.kv_heads], mixed[:, -self.kv_heads :]

    def after_attention(self, layer: Block, x: Tensor, attended: Tensor) -> Tensor:
        x = x + layer.out(attended)
        gate, up = layer.gate_up(self.normed(x)).chunk(2, dim=-1)
        return x + layer.down(F.silu(gate).mul_(up))

    def logits_of(self, x: Tensor) -> Tensor:
        return self.lm_head((x * inverse_rms(x, self.eps) * self.norm).to(self.dtype))

    def prefill(self, ids: Tensor, place: Tensor) -> Tensor:
        """Read the prompts (P, T); logits (P, V) of the first new token."""
        p, t = ids.shape
        cos, sin = (table[place.view(-1)] for table in (self.cos, self.sin))
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
        return self.logits_of(x.view(p, t, -1)[:, -1])

    def step(self, tokens: Tensor) -> Tensor:
        """Write one token (B,) to every row; logits (B, V) of the next."""
        b, n = len(tokens), self.step_number
        place = self.lengths + n
        cos, sin = self.cos[place], self.sin[place]
        x = F.embedding(tokens, self.embedding)
        column = n if self.shared else self.width + n
        self.reserve(column + 1)
        for number, layer in enumerate(self.layers):
            query, key, value = self.heads_of(layer, x, cos, sin)
            keys, values = self.keys[number], self.values[number]
            keys[:, column] = key.reshape(b * self.kv_heads, -1)
            values[:, column] = value.reshape(b * self.kv_heads, -1)
            query = query.reshape(b * self.kv_heads, self.group, -1)
            own = torch.bmm(query, keys.transpose(1, 2))
            own[..., column + 1 :] = torch.finfo(self.dtype).min
            if self.shared:
                out = self.attend_shared(number, query, own, values)
            else:
                if self.prompt_bias is not None:
                    own.view(b, self.kv_heads, self.group, -1)[..., : self.width].add_(
                        self.prompt_bias.view(b, 1, 1, -1)
                    )
                out = torch.bmm(torch.softmax(own, dim=-1), values)
            x = self.after_attention(layer, x, out.reshape(b, -1))
        self.step_number += 1
        self.logits = self.logits_of(x)
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
                    written = cache[number][places, : self.step_number]
                    cache[number] = torch.cat((prompt[number][of_prompt], written), dim=1)
            if self.prompt_bias is not None:
                self.prompt_bias = self.prompt_bias[groups]
            self.prompt_keys, self.prompt_values, self.shared = [], [], False
        else:
            for number in range(len(self.layers)):
                self.keys[number], self.values[number] = self.keys[number][places], self.values[number][places]
            if self.prompt_bias is not None:
                self.prompt_bias = self.prompt_bias[rows]
        self.lengths = self.lengths[rows]
