"""The text side of a model: conversations in, texts and choices out. What feedback and constitution know of models.

Tensors end here. A choice is *read* from the log-probabilities of the options, so a model cannot decline to choose.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from charter.models.chat_template import decode_response, encode_prompt, encode_response, end_ids
from charter.models.generate import is_fused, make_decoder, sample
from charter.models.trunk import REFERENCE, Trunk
from charter.records import Message
from charter.run.team import team

Conversation = Sequence[Message]
READ_TOKENS = 4096  # of conversations that are read at once, with every copy of their cache


@dataclass(frozen=True)
class Sample:
    """A sampled text. finish_reason: `stop` where the model ended it, `length` where it was cut."""

    text: str
    finish_reason: Literal["stop", "length"]


class Sampler(Protocol):
    """Anything that answers conversations and weighs options: a local model, a server."""

    name: str

    def generate(
        self,
        conversations: Sequence[Conversation],
        seeds: Sequence[Sequence[int]],
        *,
        temperature: float,
        max_new_tokens: int,
    ) -> list[list[Sample]]:
        """One text per seed for each conversation."""

    def option_logprobs(self, conversations: Sequence[Conversation], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each conversation the log-probability, nats, of each of its options as the assistant's next words."""


def fill(template: str, **values: str) -> str:
    """The template with {name} replaced, in one pass: braces inside a value stay what they are."""
    return re.sub(r"\{(\w+)\}", lambda mark: values.get(mark[1], mark[0]), template).rstrip("\n")


def conversation_text(messages: Iterable[Message]) -> str:
    """A conversation as lines `role: content`, to be quoted in a question about it."""
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


class LocalSampler:
    """A model of this process in one role."""

    def __init__(self, trunk: Trunk, name: str, *, role: str = REFERENCE, tokens_per_micro_batch: int = READ_TOKENS) -> None:
        self.trunk, self.name, self.role = trunk, name, role
        self.tokens_per_micro_batch = tokens_per_micro_batch

    def generate(
        self,
        conversations: Sequence[Conversation],
        seeds: Sequence[Sequence[int]],
        *,
        temperature: float,
        max_new_tokens: int,
    ) -> list[list[Sample]]:
        tokenizer = self.trunk.tokenizer
        with self.trunk.as_role(self.role) as model:
            sampled = sample(
                model,
                [encode_prompt(tokenizer, conversation) for conversation in conversations],
                seeds,
                ends=end_ids(tokenizer),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                dtype=self.trunk.dtype,
                vocabulary=self.trunk.vocabulary,
            )
        return [
            [Sample(decode_response(tokenizer, one.ids), "stop" if one.finished else "length") for one in group]
            for group in sampled
        ]

    @torch.inference_mode()
    def option_logprobs(self, conversations: Sequence[Conversation], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Whole option strings are compared: the sum over an option's tokens after the same prompt. The end of turn counts
        only where one option is the beginning of another, because then nothing else tells them apart."""
        tokenizer = self.trunk.tokenizer
        prompts = [encode_prompt(tokenizer, conversation) for conversation in conversations]
        encoded: list[list[list[int]]] = []
        for choices in options:
            ids = [encode_response(tokenizer, choice, end=False) for choice in choices]
            end = any(a is not b and a == b[: len(a)] for a in ids for b in ids)
            encoded.append([[*one, end_ids(tokenizer)[0]] for one in ids] if end else ids)
        found: list[list[float]] = [[] for _ in prompts]
        # Conversations with equally many options and like length share a pass.
        order = sorted(range(len(prompts)), key=lambda i: (len(encoded[i]), len(prompts[i]), i))
        # In the precision of the trunk: unlike a sample, a margin of nats does not hang on the last bits of a logit.
        knows = is_fused(self.trunk.model, self.trunk.dtype)  # its precision, without being told
        # The model's own cache is repeated for every option that has more than one token; the fused one is not.
        repeated = not knows and any(len(one) > 1 for choices in encoded for one in choices)
        with self.trunk.as_role(self.role) as model, contextlib.nullcontext() if knows else self.trunk.autocast():
            batches = []
            start = 0
            while start < len(order):
                stop = start + 1
                k = len(encoded[order[start]])
                while (
                    stop < len(order)
                    and len(encoded[order[stop]]) == k
                    and len(prompts[order[stop]]) * (k if repeated else 1) * (stop + 1 - start) <= self.tokens_per_micro_batch
                ):
                    stop += 1
                batches.append(order[start:stop])
                start = stop
            own: list[tuple[int, list[float]]] = []
            for batch in team().share(batches, [sum(len(prompts[i]) for i in batch) for batch in batches]):
                sums = continuation_logprobs(
                    model,
                    [prompts[i] for i in batch],
                    [encoded[i] for i in batch],
                    self.trunk.dtype,
                    self.trunk.vocabulary,
                )
                own += zip(batch, sums, strict=True)
        for i, row in team().gather(own):
            found[i] = row
        return found


def continuation_logprobs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    dtype: torch.dtype = torch.float32,
    vocabulary: int | None = None,
) -> list[list[float]]:
    """log P(continuation | prompt), nats, of the K continuations of each prompt; the prompt is read once for all of them.
    ``vocabulary`` as in ``sample``."""
    device = next(model.parameters()).device
    k = len(continuations[0])
    rows = [continuation for group in continuations for continuation in group]
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    real = torch.arange(width, device=device) < torch.tensor([[len(row)] for row in rows], device=device)
    decoder = make_decoder(model, prompts, k if width > 1 else 1, width, dtype)
    logits = decoder.logits if width > 1 else decoder.logits.repeat_interleave(k, 0)
    chosen = []
    for column in range(width):
        logprobs = torch.log_softmax(logits[:, :vocabulary].float(), dim=-1)
        chosen.append(logprobs.gather(1, tokens[:, column : column + 1]))
        if column + 1 < width:
            logits = decoder.step(tokens[:, column])
    flat = torch.where(real, torch.cat(chosen, dim=1), 0.0).sum(dim=1).tolist()
    return [flat[i : i + k] for i in range(0, len(flat), k)]
