"""The text side of a model: conversations in, texts and choices out. What feedback and constitution know of models.

Tensors end here. A choice is *read* from the log-probabilities of the options, so a model cannot decline to choose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from charter.models.chat_template import decode_response, encode_prompt, encode_response
from charter.models.generate import left_pad, positions, sample
from charter.models.trunk import REFERENCE, Trunk
from charter.records import Message

Conversation = Sequence[Message]


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

    def option_logprobs(
        self, conversations: Sequence[Conversation], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """For each conversation the log-probability, nats, of each of its options as the assistant's next words."""


def fill(template: str, **values: str) -> str:
    """The template with {name} replaced, in one pass: braces inside a value stay what they are."""
    return re.sub(r"\{(\w+)\}", lambda mark: values.get(mark[1], mark[0]), template).rstrip("\n")


def conversation_text(messages: Iterable[Message]) -> str:
    """A conversation as lines `role: content`, to be quoted in a question about it."""
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


class LocalSampler:
    """A model of this process in one role."""

    def __init__(self, trunk: Trunk, name: str, *, role: str = REFERENCE, tokens_per_micro_batch: int = 16_384) -> None:
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
                eos_id=tokenizer.eos_token_id,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
            )
        return [
            [Sample(decode_response(tokenizer, one.ids), "stop" if one.finished else "length") for one in group]
            for group in sampled
        ]

    @torch.inference_mode()
    def option_logprobs(
        self, conversations: Sequence[Conversation], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Whole option strings are compared: the sum over an option's tokens after the same prompt. The end of turn counts
        only where one option is the beginning of another, because then nothing else tells them apart."""
        tokenizer = self.trunk.tokenizer
        rows: list[tuple[list[int], list[int]]] = []
        for conversation, choices in zip(conversations, options, strict=True):
            prompt = encode_prompt(tokenizer, conversation)
            encoded = [encode_response(tokenizer, choice, end=False) for choice in choices]
            end = any(a is not b and a == b[: len(a)] for a in encoded for b in encoded)
            rows += [(prompt, [*ids, tokenizer.eos_token_id] if end else ids) for ids in encoded]
        flat = self._sum_logprobs(rows)
        groups, start = [], 0
        for choices in options:
            groups.append(flat[start : start + len(choices)])
            start += len(choices)
        return groups

    def _sum_logprobs(self, rows: list[tuple[list[int], list[int]]]) -> list[float]:
        """log P(continuation | prompt) of each (prompt, continuation). Equal prompts with one-token continuations are read
        from a single pass."""
        single = all(len(continuation) == 1 for _, continuation in rows)
        keys = [tuple(prompt) if single else (*prompt, *continuation) for prompt, continuation in rows]
        unique = sorted(set(keys), key=lambda key: (len(key), key))
        found: dict[tuple[int, ...], Any] = {}
        start = 0
        with self.trunk.as_role(self.role) as model:
            while start < len(unique):
                stop = start + 1
                while stop < len(unique) and len(unique[stop]) * (stop + 1 - start) <= self.tokens_per_micro_batch:
                    stop += 1
                batch = unique[start:stop]
                ids, attention = left_pad(batch, self.trunk.device)
                wanted = 1 if single else max(len(continuation) for _, continuation in rows) + 1
                logits = model(
                    input_ids=ids,
                    attention_mask=attention,
                    position_ids=positions(attention),
                    use_cache=False,
                    logits_to_keep=min(wanted, ids.shape[1]),
                ).logits
                logprobs = torch.log_softmax(logits.float(), dim=-1).cpu()
                found.update(zip(batch, logprobs, strict=True))
                start = stop
        sums = []
        for key, (_, continuation) in zip(keys, rows, strict=True):
            logprobs = found[key]
            if single:
                sums.append(float(logprobs[-1, continuation[0]]))
            else:
                places = torch.arange(len(logprobs) - 1 - len(continuation), len(logprobs) - 1)
                sums.append(float(logprobs[places, torch.tensor(continuation)].sum()))
        return sums
