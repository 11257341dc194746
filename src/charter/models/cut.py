"""Conversations and answers as rows of at most so many tokens, and what that costs them.

The oldest turns of a conversation go first, whole; then the beginning of the last one. The system turn, and the marks of the
template around a turn, stay. The end of an answer goes where nothing else can.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from charter.models.chat_template import MARK, common_length, encode_prompt, encode_response
from charter.models.packing import Tokens, clip
from charter.records import Message


@dataclass(frozen=True)
class Cut:
    """How many rows lost tokens to the limit, how many of them the end of their answer, and how many pairs were left out because
    their two rows had become equal."""

    rows: int = 0
    ends: int = 0
    equal_pairs: int = 0

    @classmethod
    def of(cls, rows: Iterable[Tokens], equal_pairs: int = 0) -> Cut:
        """Counted over rows; those of the pairs that were left out are among them."""
        lost = [row.lost for row in rows]
        return cls(sum(part is not None for part in lost), lost.count("answer"), equal_pairs)

    @property
    def figures(self) -> dict[str, int]:
        """For the result of a stage; empty if nothing was lost."""
        return vars(self) if self != Cut() else {}

    def words(self, limit: int | None) -> str:
        """One line for the terminal."""
        text = f"{self.rows} rows were cut to {limit} tokens, {self.ends} of them lost the end of the answer"
        equal = f"{self.equal_pairs} pairs were left out: chosen and rejected are the same tokens"
        return "; ".join(([text] if self.rows else []) + ([equal] if self.equal_pairs else []))


def answer_rows(tokenizer: Any, messages: Sequence[Message], answers: Sequence[str], limit: int | None) -> list[Tokens]:
    """One row for each answer to a conversation, each closed by the end-of-turn token, after the same prompt."""
    prompt = encode_prompt(tokenizer, messages)
    responses = [encode_response(tokenizer, text) for text in answers]
    room = None if limit is None else limit - max(map(len, responses))
    if limit is None or room is None or len(prompt) <= room:
        return [Tokens(prompt, response) for response in responses]
    prompt = shorter_prompt(tokenizer, messages, prompt, room, limit // 2)
    rows = []
    for response in responses:
        if len(prompt) + len(response) <= limit:
            rows.append(Tokens(prompt, response, "prompt"))
        else:
            rows.append(clip(Tokens(prompt, response), limit, len(prompt)))
    return rows


def shorter_prompt(tokenizer: Any, messages: Sequence[Message], prompt: list[int], room: int, most_kept: int) -> list[int]:
    """The prompt in ``room`` tokens. Where that is too little for the system turn and the marks around the last turn, these
    alone, unless they are more than ``most_kept``; otherwise the last tokens."""
    system = list(messages[:1]) if messages[0].role == "system" else []
    turns = list(messages[len(system) :])
    for start in range(1, len(turns)):
        if turns[start].role == "user":
            prompt = encode_prompt(tokenizer, [*system, *turns[start:]])
            if len(prompt) <= room:
                return prompt
    while len(turns) > 1 and any(turn.role == "user" for turn in turns[1:]):
        turns.pop(0)
    if not turns:
        return prompt[-max(room, 1) :]
    marked = [*system, turns[0].model_copy(update={"content": MARK}), *turns[1:]]
    bare = encode_prompt(tokenizer, marked)
    head, tail = common_length(prompt, bare), common_length(prompt[::-1], bare[::-1])
    tail = min(tail, len(prompt) - head)
    if head + tail > most_kept:
        return prompt[-max(room, 1) :]
    return prompt[:head] + prompt[max(head, len(prompt) - max(tail, room - head)) :]
