"""Sampling: prompts in, responses out, the same response for the same seed whatever else is in the batch.

Each response has its own stream of uniform numbers, drawn from its own seed, and picks its token by inverting the
cumulative distribution. The log-probabilities are those of the distribution the tokens came from: rollouts are never filtered,
and where other texts are, these are of the filtered distribution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from charter.errors import InputError
from charter.models.architectures import EncoderDecoder, is_encoder_decoder
from charter.models.llama.decode import FusedLlama
from charter.models.llama.static import StaticLlama
from charter.models.llama.weights import FUSED_BYTES, is_llama_like
from charter.models.memory import LOG, is_out_of_memory, let_go
from charter.models.packing import left_pad, positions
from charter.models.sampling.filters import ALL_TOKENS, exact_of, filtered_
from charter.records import Filters


@dataclass(frozen=True)
class Sampled:
    """One sampled response. ids: response tokens, the end token included when it came; logprobs: one per id, nats."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


STEPS_TO_CHECK = 8  # on a GPU: asking whether rows have ended waits for it
CROWD = 0.75


class Decoder(Protocol):
    """Prompts that were read and rows that are being written. Rows are in the order of the prompts, siblings side by side."""

    logits: Tensor
    """(B, V) of the next token of every row."""
    crowd: float
    """Rows that have ended are dropped where at most this share is left."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append tokens (B,); the new logits."""

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""


class TransformersDecoder:
    """Any causal language model, through its own forward pass and cache. The prompt is read once and its cache repeated."""

    crowd = CROWD

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], k: int, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.dtype = model, dtype
        ids, self.attention = left_pad(prompts, next(model.parameters()).device)
        with self.flash():
            output = model(
                input_ids=ids, attention_mask=self.attention, position_ids=positions(self.attention), use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
        self.cache, self.logits = output.past_key_values, output.logits[:, -1]
        if k > 1:
            self.cache.batch_repeat_interleave(k)
            self.logits = self.logits.repeat_interleave(k, 0)
            self.attention = self.attention.repeat_interleave(k, 0)
        self.length = self.attention.sum(dim=1)

    def step(self, tokens: Tensor) -> Tensor:
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(tokens), 1)], dim=1)
        with self.flash():
            output = self.model(
                input_ids=tokens.unsqueeze(1),
                attention_mask=self.attention,
                position_ids=self.length.unsqueeze(1),
                past_key_values=self.cache,
                use_cache=True,
            )
        logits: Tensor = output.logits[:, -1]
        self.logits, self.length = logits, self.length + 1
        return logits

    def flash(self) -> Any:
        """Flash attention knows 16 bits only; everything else is sampled in float32."""
        enabled = self.model.config._attn_implementation == "flash_attention_2"
        return torch.autocast(self.attention.device.type, dtype=self.dtype if enabled else None, enabled=enabled)

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.attention, self.length = self.attention[rows], self.length[rows]


def is_fused(model: Any, dtype: torch.dtype) -> bool:
    """Whether ``make_decoder`` takes the fused page."""
    return is_llama_like(model) and sum(p.numel() for p in model.parameters()) * dtype.itemsize <= FUSED_BYTES


def make_decoder(
    model: Any, prompts: Sequence[Sequence[int]], k: int, max_new_tokens: int, dtype: torch.dtype, *, graphs: bool = False
) -> Decoder:
    """A written-out page where it fits the model and a second copy of the weights fits the memory; with ``graphs`` on a GPU the
    one that replays a graph for as long as the number of rows stays. The model itself elsewhere."""
    if is_fused(model, dtype):
        page = StaticLlama if graphs and model.device.type == "cuda" else FusedLlama
        return page(model, prompts, k, max_new_tokens, dtype)
    if is_encoder_decoder(model):
        return EncoderDecoder(model, prompts, k)
    return TransformersDecoder(model, prompts, k, dtype)


@torch.inference_mode()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    *,
    ends: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    filters: Filters = ALL_TOKENS,
    dtype: torch.dtype = torch.float32,
    vocabulary: int | None = None,
) -> list[list[Sampled]]:
    """Sample one response per seed for every prompt. ``seeds[i]`` are the K seeds of prompt i; returns as nested.

    The prompt is read once for the K responses. Rows that have ended are dropped from the batch when they make up a quarter of
    it. A response ends at any of the ids ``ends``. ``temperature`` 0 takes the likeliest token. ``dtype`` is that of the products
    of the fused decoder; the choice is made in float32, among the first ``vocabulary`` ids where the model has rows for more,
    and of these among the tokens that ``filters`` leave.
    If memory runs out, fewer prompts are sampled together. InputError if a prompt leaves no room.
    """
    check_room(model, prompts, max_new_tokens)
    groups: list[list[Sampled]] = []
    at_once = len(prompts)
    while len(groups) < len(prompts):
        part = slice(len(groups), len(groups) + at_once)
        try:
            groups += _sample(model, prompts[part], seeds[part], ends, max_new_tokens, temperature, filters, dtype, vocabulary)
            continue
        except Exception as error:
            if at_once == 1 or not is_out_of_memory(error):
                raise
        let_go()
        at_once = (at_once + 1) // 2
        LOG.warning("out of memory; sampling %d prompts at a time from here on", at_once)
    return groups


def _sample(
    model: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], ends: Sequence[int], max_new_tokens: int,
    temperature: float, filters: Filters, dtype: torch.dtype, vocabulary: int | None,
) -> list[list[Sampled]]:  # fmt: skip
    """``sample`` of all prompts at once."""
    device = next(model.parameters()).device
    k = len(seeds[0])
    decoder = make_decoder(model, prompts, k, max_new_tokens, dtype, graphs=True)
    n = len(prompts) * k
    uniforms = torch.from_numpy(
        np.stack([np.random.default_rng(seed).random(max_new_tokens) for group in seeds for seed in group])
    ).to(device, exact_of(device))
    # Everything stays on the device until the end. What a row writes after its end is cut off there.
    tokens = torch.zeros(n, max_new_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(n, max_new_tokens, device=device)
    length = torch.zeros(n, dtype=torch.long, device=device)
    rows, alive = torch.arange(n, device=device), torch.ones(n, dtype=torch.bool, device=device)
    stops, check = torch.tensor(ends, device=device), STEPS_TO_CHECK if device.type == "cuda" else 1
    logits = decoder.logits
    for step in range(max_new_tokens):
        choice, chosen_logprobs = pick(logits[:, :vocabulary], uniforms[rows, step], temperature, filters)
        tokens[rows, step], logprobs[rows, step] = choice, chosen_logprobs
        length[rows] += alive
        alive = alive & ~torch.isin(choice, stops)
        if step == max_new_tokens - 1:
            break
        if step % check == check - 1:
            n_alive = int(alive.sum())
            if n_alive == 0:
                break
            if n_alive <= decoder.crowd * len(rows):
                keep = alive.nonzero().squeeze(1)
                decoder.keep(keep)
                rows, choice, alive = (x[keep] for x in (rows, choice, alive))
        logits = decoder.step(choice)
    written = zip(tokens.tolist(), logprobs.tolist(), length.tolist(), strict=True)
    flat = [Sampled(tuple(ids[:end]), tuple(row[:end]), ids[end - 1] in ends) for ids, row, end in written]
    return [flat[i : i + k] for i in range(0, n, k)]


def pick(logits: Tensor, uniform: Tensor, temperature: float, filters: Filters = ALL_TOKENS) -> tuple[Tensor, Tensor]:
    """Tokens (B,) drawn by inverse CDF from logits (B, V) with one uniform number a row, and their log-probabilities, of the
    filtered distribution. At temperature 0 the likeliest token, whatever the filters."""
    logits = logits.float()
    if temperature == 0:
        choice = logits.argmax(dim=-1)
        return choice, torch.log_softmax(logits, dim=-1).gather(1, choice.unsqueeze(1)).squeeze(1)
    probabilities = torch.softmax(logits / temperature if temperature != 1 else logits, dim=-1)
    if filters != ALL_TOKENS:
        filtered_(probabilities, filters)
    # First the block of tokens, then the token in it: the running sum is over two short rows and not one long one.
    b, v = probabilities.shape
    size = side(v)
    blocks = (F.pad(probabilities, (0, -v % size)) if v % size else probabilities).view(b, -1, size)
    sums = blocks.sum(dim=2)
    block, below = invert(sums, uniform)
    place, _ = invert(blocks[torch.arange(b, device=block.device), block], below)
    choice = (block * size + place).clamp_(max=v - 1)
    chosen = probabilities.gather(1, choice.unsqueeze(1)).squeeze(1)
    return choice, (chosen if filters == ALL_TOKENS else chosen / sums.sum(dim=1)).log()


@functools.cache
def side(n: int) -> int:
    """Length of the rows in which ``n`` numbers make about a square. A divisor of ``n`` needs no padding, which copies all of
    them, so it is taken if there is one below four times the root."""
    root = math.isqrt(n - 1) + 1
    return next((size for size in range(root, 4 * root) if n % size == 0), root)


def invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The column (B,) of weights (B, n) in which the running sum passes ``uniform`` times their total, and the part of that
    column below the mark, as a share of it. Scaled by the total, so that rounding takes nothing from the last column; the mark
    stays below the total, since the last columns may have no weight."""
    cumulative = weights.cumsum(dim=1, dtype=exact_of(weights.device))
    total = cumulative[:, -1]
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total))).unsqueeze(1)
    column = torch.searchsorted(cumulative, target, right=True).clamp_(max=weights.shape[1] - 1)
    weight = weights.gather(1, column).to(cumulative.dtype)
    share = (target - cumulative.gather(1, column) + weight) / weight
    return column.squeeze(1), share.squeeze(1).clamp(0, 1)


def context_length(model: Any) -> int | None:
    """Most tokens the model can see at once, None if its configuration names no limit."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return int(limit) if limit else None


def check_room(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    check_length(context_length(model), max(len(prompt) for prompt in prompts), max_new_tokens)


def check_length(limit: int | None, longest: int, max_new_tokens: int) -> None:
    """InputError if the longest prompt and its response are more tokens than the model sees at once."""
    if limit is not None and longest + max_new_tokens > limit:
        raise InputError(
            f"a prompt of {longest} tokens and {max_new_tokens} new tokens do not fit the {limit} positions of the model; "
            "shorten the prompts or lower max_new_tokens"
        )
