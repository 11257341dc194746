"""Rows as the model sees them, for `charter show-tokens`: ids, pieces, which tokens carry loss, where the reward is.

The rows come from the functions that the stages call. No stage's `run` imports this module or a `show`, so that a change of what
is shown trains nothing anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from charter.constitution.constitution import Constitution
from charter.constitution.revise import respond
from charter.models.chat_template import encode_prompt
from charter.models.packing import Tokens, left_pad
from charter.models.sampling.sampler import Conversation, LocalSampler, Sample, Sampler
from charter.models.trunk import Trunk
from charter.recipe.recipe import Recipe
from charter.records import Message, Pair, Prompt, Response
from charter.training.methods.reward_model import pair_tokens
from charter.training.rewards import last_token

ROWS = 2  # prompts per stage: enough to see padding, few enough to read
NO_PAIRS = "Nothing to show: the responses to these prompts are equal or tied, so they make no pair."
MARKS = "⟨⟩⟦⟧★│∅"

Row = dict[str, Any]
Shown = tuple[str, list[Row]]  # a sentence on what the stage does with its rows, and the first of them


@dataclass
class Preview:
    """What the stages make their rows from. ``prompts``: by kind, the training prompts that the run takes, not yet sorted by
    principle; ``first``: the first ROWS of each kind, sorted."""

    recipe: Recipe
    trunk: Trunk
    constitution: Constitution
    prompts: Mapping[str, list[Prompt]]
    first: Mapping[str, list[Prompt]]
    examples: list[tuple[Conversation, str]] = field(default_factory=list)
    """From revise, for sft."""
    revised: list[tuple[Prompt, str, str]] = field(default_factory=list)
    """From revise, for feedback: a prompt, its first answer and its last revision."""
    pairs: list[Pair] = field(default_factory=list)
    """From feedback, for the stages that learn from pairs."""

    def respond(
        self, sampler: Sampler, prompts: Sequence[Prompt], stage: str, k: int = 1, stances: Sequence[str] = ()
    ) -> list[list[Response]]:
        """K responses to each prompt, with the seeds and settings of a stage."""
        return respond(sampler, prompts, getattr(self.recipe, stage), seed=self.recipe.seed, what=stage, k=k, stances=stances)


class Recorder(LocalSampler):
    """A sampler that remembers its calls: the conversations that it continued and those whose options it compared."""

    def __init__(self, trunk: Trunk, name: str) -> None:
        super().__init__(trunk, name)
        self.continued: list[Sequence[Conversation]] = []
        self.compared: list[tuple[Sequence[Conversation], Sequence[Sequence[str]]]] = []

    def generate(
        self, conversations: Sequence[Conversation], seeds: Sequence[Sequence[int]], **settings: Any
    ) -> list[list[Sample]]:
        self.continued.append([tuple(conversation) for conversation in conversations])
        return super().generate(conversations, seeds, **settings)

    def option_logprobs(self, conversations: Sequence[Conversation], options: Sequence[Sequence[str]]) -> list[list[float]]:
        self.compared.append((conversations, options))
        return super().option_logprobs(conversations, options)


def question_rows(trunk: Trunk, name: str, conversations: Sequence[Conversation]) -> list[Row]:
    """Conversations that the model continues, padded on the left as in sampling."""
    encoded = [encode_prompt(trunk.tokenizer, conversation) for conversation in conversations]
    ids, attention = left_pad(encoded, "cpu")
    return [row_of(trunk, name, ids[i], attention[i], ids[i] * 0, conversation) for i, conversation in enumerate(conversations)]


def response_rows(
    trunk: Trunk, names: Sequence[str], tokens: Sequence[Tokens], conversations: Sequence[Conversation], *, rewarded: bool = False
) -> list[Row]:
    """Prompts with their responses, padded on the right; where they are ``rewarded``, the place is the last real token."""
    width = max(len(row) for row in tokens)
    ids = torch.tensor([[*row.prompt, *row.response] + [0] * (width - len(row)) for row in tokens])  # (B, T)
    place = torch.arange(width).unsqueeze(0)
    attention = place < torch.tensor([[len(row)] for row in tokens])
    mask = attention & (place >= torch.tensor([[len(row.prompt)] for row in tokens]))
    rewards = last_token(attention).tolist() if rewarded else [None] * len(tokens)
    return [row_of(trunk, *row) for row in zip(names, ids, attention, mask, conversations, rewards, strict=True)]


def rows_of_pair(trunk: Trunk, pairs: Sequence[Pair], limit: int | None, *, rewarded: bool = False) -> list[Row]:
    """Chosen and rejected of each pair, padded to the longer of the two."""
    rows = []
    for pair in pairs:
        tokens = pair_tokens(trunk, pair, limit or trunk.room)
        rows += response_rows(trunk, ("chosen", "rejected"), tokens, [pair.prompt.messages] * 2, rewarded=rewarded)
    return rows


def row_of(
    trunk: Trunk, what: str, ids: Tensor, attention: Tensor, mask: Tensor, messages: Conversation, reward: int | None = None
) -> Row:
    """One row of a batch as lists of equal length T. ids, attention, mask: (T,)."""
    numbers, real, response = ids.tolist(), attention.int().tolist(), mask.int().tolist()
    tokenizer = trunk.tokenizer
    template = [0] * len(numbers)
    prompt = [i for i, on in enumerate(real) if on and not response[i]]
    for i, on in zip(prompt, template_tokens(tokenizer, [numbers[i] for i in prompt], messages), strict=True):
        template[i] = int(on)
    added = tokenizer.added_tokens_decoder
    special = {number for number, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    return {
        "what": what,
        "ids": numbers,
        "pieces": pieces_of(tokenizer, numbers),
        "attention": real,
        "mask": response,
        "template": [int(bool(t) or (bool(on) and n in special)) for t, on, n in zip(template, real, numbers, strict=True)],
        "reward_position": reward,
    }


def template_tokens(tokenizer: Any, ids: Sequence[int], messages: Sequence[Message]) -> list[bool]:
    """True on the tokens of a rendered prompt that belong to no message: control tokens, but also a template's plain words,
    such as `Human:`. If the text does not contain a message as it stands (some templates trim), no token is marked."""
    ends = [len(decode(tokenizer, ids[: i + 1])) for i in range(len(ids))]
    text = decode(tokenizer, ids)
    spans, cursor = [], 0
    for message in messages:
        content = message.content.strip()
        start = text.find(content, cursor)
        if start < 0:
            return [False] * len(ids)
        cursor = start + len(content)
        spans.append((start, cursor))
    starts = [0, *ends[:-1]]
    return [not any(start < stop and end > begin for begin, stop in spans) for start, end in zip(starts, ends, strict=True)]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each id. Control characters, and the marks that the display uses, are spelled out, so that the text of a
    model can neither move the cursor nor pass for a mark; a part of a character is shown as the tokenizer's own name."""
    pieces = []
    for number in ids:
        name = str(tokenizer.convert_ids_to_tokens(number))
        text = decode(tokenizer, [number])
        if "\ufffd" in text:
            text = name
        elif name[:1] in ("▁", "Ġ") and text[:1] != " ":  # decoding a token alone drops its space in some tokenizers
            text = " " + text
        text = "".join(
            c if c.isprintable() and c not in MARKS else c.encode("unicode_escape", "surrogatepass").decode() for c in text
        )
        pieces.append(text)
    return pieces
