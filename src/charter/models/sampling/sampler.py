"""The text side of a model: conversations in, texts and choices out. All that judging and constitution know of models.

Tensors end here. A choice is *read* from the log-probabilities of the options, so a model cannot decline to choose.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from charter.models.chat_template import decode_response, encode_prompt, encode_response, end_ids
from charter.models.logprobs import exact_logprobs
from charter.models.memory import LOG
from charter.models.packing import Tokens
from charter.models.sampling.filters import ALL_TOKENS
from charter.models.sampling.generate import sample
from charter.models.trunk import REFERENCE, Trunk
from charter.records import Filters, Message
from charter.run.team import team

Conversation = Sequence[Message]
Seeds = Sequence[Sequence[int]]
"""One row of seeds for each conversation, one seed for each response."""
READ_TOKENS = 4096  # of conversations that are read together, options included
ROWS = 64  # places whose float32 log-probabilities of the vocabulary are in memory at once: 39 MB at 151,936 tokens


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
        self.told = False

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
        only where one option is the beginning of another, because then nothing else tells them apart. The product with the
        vocabulary is in float32: in bfloat16 logits near 32 are .25 nats apart, and margins would be rounded to ties. NaN for an
        option that ends beyond the tokens that the model can see: what it reads there means nothing."""
        tokenizer, room = self.trunk.tokenizer, self.trunk.room or math.inf
        prompts = [encode_prompt(tokenizer, conversation) for conversation in conversations]
        encoded = [encode_options(tokenizer, choices) for choices in options]
        fitting = [
            [ids for ids in group if len(prompt) + len(ids) <= room] for prompt, group in zip(prompts, encoded, strict=True)
        ]
        asked = [i for i, group in enumerate(fitting) if group]
        if fitting != encoded:
            self._tell()
        rows: list[tuple[int, list[float]]] = []
        with self.trunk.as_role(self.role) as model:
            places = self._batches([len(prompts[i]) for i in asked], [fitting[i] for i in asked])
            batches = [[asked[place] for place in batch] for batch in places]
            for batch in team().share(batches, [sum(len(prompts[i]) for i in batch) for batch in batches]):
                sums = continuation_logprobs(self.trunk, model, [prompts[i] for i in batch], [fitting[i] for i in batch])
                rows += zip(batch, sums, strict=True)
        by_number = {i: iter(sums) for i, sums in team().gather(rows)}
        return [
            [next(by_number[i]) if len(prompt) + len(ids) <= room else math.nan for ids in group]
            for i, (prompt, group) in enumerate(zip(prompts, encoded, strict=True))
        ]

    def has_room(self, conversation: Conversation, new_tokens: int) -> bool:
        """Whether the model can see a conversation and as many more tokens. A conversation that is too long gets no verdict."""
        room = self.trunk.room
        fits = room is None or len(encode_prompt(self.trunk.tokenizer, conversation)) + new_tokens <= room
        if not fits:
            self._tell()
        return fits

    def _tell(self) -> None:
        if not self.told:
            self.told = True
            words = "some questions are longer than the %s tokens that %s reads; they get no verdict"
            LOG.warning(words, self.trunk.room, self.name)

    def _batches(self, lengths: Sequence[int], options: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
        """Conversations that share a pass: all with options of one token, or none, and of like length."""
        batches: list[list[int]] = []
        longer = [max(map(len, choices)) > 1 for choices in options]
        cost = [
            (lengths[i] * (1 if self.trunk.packs else len(options[i])) + sum(map(len, options[i]))) if longer[i] else lengths[i]
            for i in range(len(lengths))
        ]
        tokens = 0
        for i in sorted(range(len(lengths)), key=lambda i: (longer[i], lengths[i], i)):
            if batches and longer[batches[-1][0]] == longer[i] and tokens + cost[i] <= self.tokens_per_micro_batch:
                batches[-1].append(i)
                tokens += cost[i]
            else:
                batches.append([i])
                tokens = cost[i]
        return batches


def encode_options(tokenizer: Any, options: Sequence[str]) -> list[list[int]]:
    """The ids of each option. All get the end of turn where one is the beginning of another."""
    ids = [encode_response(tokenizer, option, end=False) for option in options]
    end = any(a is not b and a == b[: len(a)] for a in ids for b in ids)
    return [[*option, end_ids(tokenizer)[0]] for option in ids] if end else ids


def continuation_logprobs(
    trunk: Trunk, model: Any, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """log P(continuation | prompt), nats, of the continuations of each prompt; the prompt is read once for all of them.
    ``model`` is the trunk's, in some role. Continuations of one token are read from one place of the prompt."""
    if all(len(ids) == 1 for group in continuations for ids in group):
        packed = trunk.pack([Tokens(prompt, group[0]) for prompt, group in zip(prompts, continuations, strict=True)])
        hidden = trunk.hidden(model, packed, packed.before[:, 0])
        return [
            [float(row[ids[0]]) for ids in group]
            for rows in blocks(len(hidden), ROWS)
            for row, group in zip(exact_logprobs(model, hidden[rows], trunk.vocabulary), continuations[rows], strict=True)
        ]
    packed = trunk.pack([Tokens(prompt, ids) for prompt, group in zip(prompts, continuations, strict=True) for ids in group])
    hidden, targets = trunk.hidden(model, packed, packed.before[packed.mask]), packed.targets[packed.mask].unsqueeze(1)
    chosen = [
        exact_logprobs(model, hidden[rows], trunk.vocabulary).gather(1, targets[rows]) for rows in blocks(len(hidden), ROWS)
    ]
    sums = (
        torch.zeros(packed.mask.shape, device=hidden.device).masked_scatter(packed.mask, torch.cat(chosen).squeeze(1)).sum(dim=1)
    )
    by_row = iter(sums.tolist())
    return [[next(by_row) for _ in group] for group in continuations]


def blocks(n: int, size: int) -> list[slice]:
    """The places 0 to n in slices of ``size``."""
    return [slice(start, start + size) for start in range(0, n, size)]
