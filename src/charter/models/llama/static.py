"""Decoding for Llama-like models in one shape for every step, so that a GPU replays a recorded graph.

A step of a small model is some twenty kernels a layer, and a GPU computes each of them faster than Python launches it. A CUDA
graph launches all of them at once, but reads and writes the same memory every time: so the cache has all its columns from the
start, and the column to write is a number on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charter.models.llama.decode import FusedLlama


class StaticLlama(FusedLlama):
    """P prompts, K responses to each, B unfinished rows in the order of the prompts. Every row has its own keys and values of its
    prompt, (B, Hk, S, D) a layer with S the longest prompt and the new tokens."""

    crowd = 0.5  # a new number of rows is a new graph, so rows are dropped more seldom than elsewhere

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], k: int, max_new_tokens: int, dtype: torch.dtype) -> None:
        super().__init__(model, prompts, k, max_new_tokens, dtype)
        for caches, of_prompts in ((self.keys, self.prompt_keys or self.keys), (self.values, self.prompt_values or self.values)):
            for number, cache in enumerate(of_prompts):
                read = cache.view(len(prompts), self.kv_heads, -1, self.head_dim)[:, :, : self.width]
                caches[number] = F.pad(read.repeat_interleave(k, 0), (0, 0, 0, max_new_tokens))
        self.prompt_keys, self.prompt_values, self.shared = [], [], False
        least = torch.finfo(dtype).min
        self.hidden = F.pad(self.prompt_bias.repeat_interleave(k, 0), (0, max_new_tokens), value=least)  # (B, S), added to scores
        self.column = torch.tensor([self.width], device=self.device)
        self.place = self.lengths.clone()  # (B,), the position of the next token of each row
        self.tokens = torch.zeros_like(self.lengths)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.is_warm = False

    def step(self, tokens: Tensor) -> Tensor:
        """Write one token (B,) to every row; logits (B, V) of the next. The first step of a number of rows is launched kernel by
        kernel, as a graph needs it; the second one is recorded."""
        self.tokens.copy_(tokens)
        if self.device.type != "cuda" or not self.is_warm:
            self.advance()
            self.is_warm = True
        else:
            if self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self.advance()
            self.graph.replay()
        return self.logits

    def advance(self) -> None:
        """One step on buffers that stay where they are; nothing here waits for the device or depends on a number of the host."""
        b = len(self.tokens)
        cos, sin = self.cos[self.place], self.sin[self.place]
        self.hidden.index_fill_(1, self.column, 0)
        x = F.embedding(self.tokens, self.embedding)
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            mixed = self.rotated(layer, x, cos, sin).view(b, -1, 1, self.head_dim)
            query, key, value = torch.split(mixed, [self.heads, self.kv_heads, self.kv_heads], dim=1)
            keys.index_copy_(2, self.column, key)
            values.index_copy_(2, self.column, value)
            out = F.scaled_dot_product_attention(
                query, keys, values, attn_mask=self.hidden.view(b, 1, 1, -1), scale=1.0, enable_gqa=self.group > 1
            )
            x = self.after_attention(layer, x, out.reshape(b, -1))
        self.logits = self.logits_of(x)
        self.column += 1
        self.place += 1

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (b,)."""
        for caches in (self.keys, self.values):
            caches[:] = [cache[rows] for cache in caches]
        self.hidden, self.place, self.tokens = self.hidden[rows], self.place[rows], self.tokens[rows]
        self.graph, self.is_warm = None, False
