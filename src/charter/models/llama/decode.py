"""Decoding for Llama-like models without the overhead of a general model class: about a page of arithmetic.

The weights are those of ``llama.weights``. The K responses to a prompt attend to one copy of its keys and values until rows
begin to end. Greedy tokens equal those of ``generate`` in float32 (a test).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charter.models.llama.weights import Block, inverse_rms, rotate_, weights_of
from charter.models.packing import left_pad, positions

GROWTH = 16  # columns by which the cache grows
READ_TOKENS = 2048  # of prompts that are read together


class FusedLlama:
    """The state of one call of ``sample``: P prompts, K responses to each, B unfinished rows.

    Rows are in the order of the prompts, siblings side by side. Prompts are padded on the left, so that all rows write their
    next key into the same column.
    """

    crowd = 0.75

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], k: int, max_new_tokens: int, dtype: torch.dtype) -> None:
        weights = weights_of(model, dtype)
        self.k, self.dtype, self.eps = k, dtype, weights.eps
        self.heads, self.kv_heads, self.head_dim = weights.heads, weights.kv_heads, weights.head_dim
        self.group = self.heads // self.kv_heads
        self.device = model.device
        self.layers = weights.blocks
        self.norm, self.embedding = weights.norm, weights.embedding
        self.lm_head = weights.lm_head
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)  # (P,)
        self.width, self.step_number = int(lengths.max()), 0
        self.cos, self.sin = weights.rope(torch.arange(self.width + max_new_tokens, device=self.device))  # (S, 1, D/2)
        self.lengths = lengths.repeat_interleave(k)  # (B,)
        pads = torch.arange(self.width, device=self.device) < self.width - lengths.unsqueeze(1)
        self.padded = bool(pads.any())
        self.prompt_bias = torch.zeros(pads.shape, dtype=dtype, device=self.device)  # (P, T), added to scores of prompts
        self.prompt_bias.masked_fill_(pads, torch.finfo(dtype).min)
        # Columns of padding are hidden and zero, since uninitialised memory may be NaN.
        # A row without siblings continues in the cache of its prompt, which has room for that.
        room = GROWTH if k == 1 else 0
        shape = (len(prompts), self.kv_heads, self.width + room, self.head_dim)
        self.prompt_keys, self.prompt_values = (
            [torch.zeros(shape, dtype=dtype, device=self.device) for _ in self.layers] for _ in range(2)
        )  # (P, Hk, T, D) a layer
        self.logits = self.read(prompts).repeat_interleave(k, 0)
        self.shared = k > 1  # the prompt's keys belong to the group and not yet to each row
        if self.shared:
            none = torch.empty(len(prompts) * k * self.kv_heads, 0, self.head_dim, dtype=dtype, device=self.device)
            self.keys, self.values = [none] * len(self.layers), [none] * len(self.layers)  # (P Hk K, C, D)
            self.hidden = torch.empty(1, 0, dtype=dtype, device=self.device)  # (b or 1, C), added to scores of own columns
        else:
            self.keys, self.values = ([x.flatten(0, 1) for x in caches] for caches in (self.prompt_keys, self.prompt_values))
            self.prompt_keys, self.prompt_values = [], []
            self.hidden = F.pad(self.prompt_bias, (0, room), value=torch.finfo(dtype).min)

    def normed(self, x: Tensor) -> Tensor:
        return (x * inverse_rms(x, self.eps)).to(self.dtype)

    def reserve(self, columns: int) -> None:
        """Room for so many columns of keys and values. bmm copies a cache that it does not read to its last column, so the cache
        grows by little at a time, and its unwritten columns are hidden and zero, since uninitialised memory may be NaN."""
        if self.keys[0].shape[1] < columns:
            for caches in (self.keys, self.values):
                for number, cache in enumerate(caches):
                    rows, have, width = cache.shape
                    caches[number] = cache.new_empty(rows, have + GROWTH, width)
                    caches[number][:, :have] = cache
                    caches[number][:, have:] = 0
            self.hidden = F.pad(self.hidden, (0, GROWTH), value=torch.finfo(self.dtype).min)
        self.hidden[:, columns - 1] = 0

    def rotated(self, layer: Block, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries, keys and values (N, Hq + 2 Hk, D) of rows x (N, H), turned; cos, sin: (N, 1, D/2)."""
        mixed = layer.qkv.packed(self.normed(x)).view(len(x), self.heads + 2 * self.kv_heads, self.head_dim)
        rotate_(mixed[:, : self.heads + self.kv_heads], cos, sin)
        return mixed

    def after_attention(self, layer: Block, x: Tensor, attended: Tensor) -> Tensor:
        x = x + layer.out.packed(attended)
        gate, up = layer.gate_up.packed(self.normed(x)).chunk(2, dim=-1)
        return x.add_(layer.down.packed(F.silu(gate).mul_(up)))

    def logits_of(self, x: Tensor) -> Tensor:
        return self.lm_head.packed((x * inverse_rms(x, self.eps) * self.norm).to(self.dtype))

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts, those of similar length together; logits (P, V) of the first new token."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        logits = torch.empty(len(prompts), self.lm_head.rows, dtype=self.dtype, device=self.device)
        while order:
            n = max(1, READ_TOKENS // len(prompts[order[-1]]))
            part, order = order[-n:], order[:-n]
            logits[part] = self.prefill(*left_pad([prompts[i] for i in part], self.device), part)
        return logits

    def prefill(self, ids: Tensor, attention: Tensor, part: list[int]) -> Tensor:
        """Read some prompts (p, t) whose places in the batch are ``part``; logits (p, V) of the first new token. The last layer
        computes the last token only."""
        p, t = ids.shape
        cos, sin = (table[positions(attention).view(-1)] for table in (self.cos, self.sin))
        least = torch.finfo(self.dtype).min
        bias = torch.full((t, t), least, dtype=self.dtype, device=self.device).triu(1)
        if bool((attention == 0).any()):
            hidden = torch.zeros(p, 1, 1, 1, t, dtype=self.dtype, device=self.device)
            hidden.masked_fill_(attention.view(p, 1, 1, 1, t) == 0, least)
            # Two least numbers add up to minus infinity, and a row of these to NaN: so a pad sees itself.
            bias = (bias + hidden).clamp_(min=least)
        x = F.embedding(ids.view(-1), self.embedding)
        for number, layer in enumerate(self.layers):
            mixed = self.rotated(layer, x, cos, sin).view(p, t, -1, self.head_dim)
            key, value = (mixed[:, :, self.heads + i * self.kv_heads :][:, :, : self.kv_heads].transpose(1, 2) for i in range(2))
            self.prompt_keys[number][part, :, self.width - t : self.width] = key
            self.prompt_values[number][part, :, self.width - t : self.width] = value
            query = mixed[:, :, : self.heads]
            if number == len(self.layers) - 1:
                query, bias, x = query[:, -1:], bias[..., -1:, :], x.view(p, t, -1)[:, -1]
            t_query = query.shape[1]
            query = query.view(p, t_query, self.kv_heads, self.group, -1).permute(0, 2, 3, 1, 4)
            scores = torch.bmm(
                query.reshape(p * self.kv_heads, self.group * t_query, -1), key.reshape(p * self.kv_heads, t, -1).transpose(1, 2)
            )
            scores.view(p, self.kv_heads, self.group, t_query, t).add_(bias)
            out = torch.bmm(torch.softmax(scores, dim=-1), value.reshape(p * self.kv_heads, t, -1))
            out = out.view(p, self.heads, t_query, -1).transpose(1, 2).reshape(p * t_query, -1)
            x = self.after_attention(layer, x, out)
        return self.logits_of(x)

    def step(self, tokens: Tensor) -> Tensor:
        """Write one token (B,) to every row; logits (B, V) of the next. Caches and queries stand in the order prompt, key head,
        sibling, so that the siblings' queries are one product with the keys of their prompt."""
        b, n = len(tokens), self.step_number
        k = self.k if self.shared else 1
        place = self.lengths + n
        cos, sin = self.cos[place], self.sin[place]
        x = F.embedding(tokens, self.embedding)
        column = n if self.shared else self.width + n
        self.reserve(column + 1)
        for number, layer in enumerate(self.layers):
            mixed = self.rotated(layer, x, cos, sin).view(b // k, k, -1, self.head_dim)
            keys, values = self.keys[number], self.values[number]
            by_sibling = (b // k, self.kv_heads, k, self.head_dim)
            for i, cache in enumerate((keys, values)):
                new = mixed[:, :, self.heads + i * self.kv_heads :][:, :, : self.kv_heads]
                cache[:, column].view(by_sibling).copy_(new.transpose(1, 2))
            query = mixed[:, :, : self.heads].view(b // k, k, self.kv_heads, self.group, -1).transpose(1, 2)
            query = query.reshape(b * self.kv_heads, self.group, -1)
            scores = torch.bmm(query, keys.transpose(1, 2))
            scores.view(len(self.hidden), -1, scores.shape[2]).add_(self.hidden.unsqueeze(1))
            if self.shared:
                of_prompt = torch.bmm(
                    query.reshape(-1, k * self.group, self.head_dim), self.prompt_keys[number].flatten(0, 1).transpose(1, 2)
                )
                if self.padded:
                    of_prompt.view(b // k, -1, self.width).add_(self.prompt_bias.unsqueeze(1))
                scores = torch.cat((of_prompt.view(len(query), self.group, -1), scores), dim=-1)
            weights = torch.softmax(scores, dim=-1)
            out = torch.bmm(weights[..., -keys.shape[1] :], values)
            if self.shared:
                to_prompt = weights[..., : self.width].reshape(-1, k * self.group, self.width)
                out += torch.bmm(to_prompt, self.prompt_values[number].flatten(0, 1)).view(out.shape)
            out = out.view(b // k, self.kv_heads, k, -1).transpose(1, 2).reshape(b, -1)
            x = self.after_attention(layer, x, out)
        self.step_number += 1
        self.logits = self.logits_of(x)
        return self.logits

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (b,). From here on each row has its own copy of its prompt's keys."""
        groups = rows // self.k if self.shared else rows
        for number in range(len(self.layers)):
            for cache, prompt in ((self.keys, self.prompt_keys), (self.values, self.prompt_values)):
                if self.shared:
                    by_sibling = cache[number].view(len(prompt[number]), self.kv_heads, self.k, -1, self.head_dim)
                    written = by_sibling[groups, :, rows % self.k]  # (b, Hk, C, D)
                    cache[number] = torch.cat((prompt[number][groups], written), dim=2).flatten(0, 1)
                    prompt[number] = written[:0]  # so that only one layer's keys are there twice
                else:
                    by_row = cache[number].view(-1, self.kv_heads, *cache[number].shape[1:])
                    cache[number] = by_row[rows].flatten(0, 1)
        if self.shared:
            self.hidden = torch.cat((self.prompt_bias[groups], self.hidden.expand(len(rows), -1)), dim=1)
            self.prompt_keys, self.prompt_values, self.shared = [], [], False
        else:
            self.hidden = self.hidden[rows]
        self.lengths = self.lengths[rows]
