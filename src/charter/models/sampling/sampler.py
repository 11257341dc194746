"""The text side of a model: conversations in, texts and choices out. All that judging and constitution know of models.

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
from charter.models.packing import right_pad
from charter.models.sampling.filters import ALL_TOKENS
from charter.models.sampling.generate import is_fused, make_decoder, sample
from charter.models.trunk import REFERENCE, Trunk
from charter.records import Filters, Message
from charter.run.team import team

Conversation = Sequence[Message]
Seeds = Sequence[Sequence[int]]
"""One row of seeds for each conversation, one seed for each response."""
READ_TOKENS = 4096  # of conversations that are read together, with every copy of their cache


@dataclass(frozen=True)
class Sample:
    """A sampled text. finish_reason: `stop` where the model ended it, `length` where it was cut."""

    text: str
    finish_reason: Literal["stop", "length"]


class Sampler(Protocol):
    """Anything that answers conversations and weighs options: a local model, a server."""

    name: str

    def generate(
        self, conversations: Sequence[Conversation], seeds: Seeds, *, temperature: float, max_new_tokens: int,
        filters: Filters = ALL_TOKENS,
    ) -> list[list[Sample]]:  # fmt: skip
        """One text per seed for each conversation, drawn among the tokens that ``filters`` leave."""

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
        self, conversations: Sequence[Conversation], seeds: Seeds, *, temperature: float, max_new_tokens: int,
        filters: Filters = ALL_TOKENS,
    ) -> list[list[Sample]]:  # fmt: skip
        tokenizer = self.trunk.tokenizer
        with self.trunk.as_role(self.role) as model:
            sampled = sample(
                model,
                [encode_prompt(tokenizer, conversation) for conversation in conversations],
                seeds,
                ends=end_ids(tokenizer),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                filters=filters,
                dtype=self.trunk.dtype,
                vocabulary=self.trunk.vocabulary,
            )
        return [
            [Sample(decode_response(tokenizer, row.ids), "stop" if row.finished else "length") for row in group]
            for group in sampled
        ]

    @torch.inference_mode()
    def option_logprobs(self, conversations: Sequence[Conversation], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Whole option strings are compared: the sum over an option's tokens after the same prompt. The end of turn counts
        only where one option is the beginning of another, because then nothing else tells them apart."""
        tokenizer = self.trunk.tokenizer
        prompts = [encode_prompt(tokenizer, conversation) for conversation in conversations]
        encoded = [encode_options(tokenizer, choices) for choices in options]
        # In the precision of the trunk: unlike a sample, a margin of nats does not hang on the last bits of a logit.
        fused = is_fused(self.trunk.model, self.trunk.dtype)  # the fused decoder casts by itself
        # The model's own cache is repeated for every option that has more than one token; the fused one is not.
        repeated = not fused and any(len(option) > 1 for choices in encoded for option in choices)
        rows: list[tuple[int, list[float]]] = []
        with self.trunk.as_role(self.role) as model, contextlib.nullcontext() if fused else self.trunk.autocast():
            batches = self._batches([len(prompt) for prompt in prompts], [len(choices) for choices in encoded], repeated)
            for batch in team().share(batches, [sum(len(prompts[i]) for i in batch) for batch in batches]):
                texts, continuations = [prompts[i] for i in batch], [encoded[i] for i in batch]
                sums = continuation_logprobs(model, texts, continuations, self.trunk.dtype, self.trunk.vocabulary)
                rows += zip(batch, sums, strict=True)
        by_number = dict(team().gather(rows))
        return [by_number[i] for i in range(len(prompts))]

    def _batches(self, lengths: Sequence[int], n_options: Sequence[int], repeated: bool) -> list[list[int]]:
        """Conversations that share a pass: equally many options and like length."""
        batches: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lambda i: (n_options[i], lengths[i], i)):
            cost = lengths[i] * (n_options[i] if repeated else 1)
            batch = batches[-1] if batches else []
            if batch and n_options[batch[0]] == n_options[i] and cost * (len(batch) + 1) <= self.tokens_per_micro_batch:
                batch.append(i)
            else:
                batches.append([i])
        return batches


def encode_options(tokenizer: Any, options: Sequence[str]) -> list[list[int]]:
    """The ids of each option. All get the end of turn where one is the beginning of another."""
    ids = [encode_response(tokenizer, option, end=False) for option in options]
    end = any(a is not b and a == b[: len(a)] for a in ids for b in ids)
    return [[*option, end_ids(tokenizer)[0]] for option in ids] if end else ids


def continuation_logprobs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    dtype: torch.dtype = torch.float32,
    vocabulary: int | None = None,
) -> list[list[float]]:
    """log P(continuation | prompt), nats, of the K continuations of each prompt; the prompt is read once for all of them.
    ``vocabulary`` as in ``sample``."""
    k = len(continuations[0])
    rows = [continuation for group in continuations for continuation in group]
    tokens, real = right_pad(rows, next(model.parameters()).device)
    width = tokens.shape[1]
    decoder = make_decoder(model, prompts, k if width > 1 else 1, width, dtype)
    logits = decoder.logits if width > 1 else decoder.logits.repeat_interleave(k, 0)
    chosen = []
    for column in range(width):
        logprobs = torch.log_softmax(logits[:, :vocabulary].float(), dim=-1)
        chosen.append(logprobs.gather(1, tokens[:, column : column + 1]))
        if column + 1 < width:
            logits = decoder.step(tokens[:, column])
    flat = torch.where(real == 1, torch.cat(chosen, dim=1), 0.0).sum(dim=1).tolist()
    return [flat[i : i + k] for i in range(0, len(flat), k)]
