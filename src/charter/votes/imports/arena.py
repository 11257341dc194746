"""Votes of Chatbot Arena: the tables with winner_model_a … (55k), and the conversations with winner (33k, 140k)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from charter.reading.pairs import FORKED
from charter.reading.rows import Row
from charter.records import Message, Rank
from charter.votes.imports.votes import Answer, Rater, Unique, Vote, list_in, object_in, optional_text_in, prompt_in, text_in

Ranks = tuple[Rank | None, ...]
WINNERS: dict[str, Ranks] = {
    "model_a": (1, 2), "model_b": (2, 1), "tie": (1, 1), "tie (bothbad)": ("F", "F"), "both_bad": ("F", "F"),
    "bothbad": ("F", "F"),
}  # fmt: skip
FLAGS = {"winner_model_a": "model_a", "winner_model_b": "model_b", "winner_tie": "tie"}
NO_TEXT = "a turn is empty, or holds more than text"


def read_arena(rows: Iterable[Row], rater: Rater) -> Iterator[Vote | str]:
    """One vote a row. Two dialogues of more than one turn have different answers before the last one; they are left out."""
    ids = Unique()
    for row in rows:
        ids.check(row, row.values.get("id", row.values.get("question_id")), "id" if "id" in row.values else "question_id")
        winner = _winner(row)
        if "conversation_a" in row.values:
            dialogues = [_conversation(row, f"conversation_{side}") for side in "ab"]
        else:
            dialogues = [_turns(row, f"response_{side}") for side in "ab"]
        first, second = dialogues
        if first is None or second is None:
            yield NO_TEXT
            continue
        if first[:-1] != second[:-1]:
            yield FORKED
            continue
        judge = optional_text_in(row, row.values.get("judge") or row.values.get("evaluation_session_id"), "judge")
        yield Vote(
            row=row,
            prompt=prompt_in(row, first[:-1], "prompt", source="arena"),
            answers=(Answer(first[-1].content, row.text("model_a")), Answer(second[-1].content, row.text("model_b"))),
            ranks=WINNERS[winner],
            rater=Rater(judge, rater.kind) if judge else rater,
            kind="pair",
        )


def _winner(row: Row) -> str:
    if "winner" in row.values:
        winner = row.text("winner")
        if winner not in WINNERS:
            raise row.bad(f"is {winner!r}; one of {', '.join(WINNERS)}", "winner")
        return winner
    flags = []
    for name in FLAGS:
        value = str(row.values.get(name, "")).removesuffix(".0")
        if value not in ("0", "1"):
            raise row.bad("is missing" if name not in row.values else f"is {value!r}, not 0 or 1", name)
        flags.append(value == "1")
    if sum(flags) != 1:
        raise row.bad(f"{sum(flags)} of {', '.join(FLAGS)} are 1; exactly one has to be", "winner_model_a")
    return list(FLAGS.values())[flags.index(True)]


def _turns(row: Row, field: str) -> list[Message] | None:
    """The dialogue of two columns of turns, None where one is missing (the published table has answers that are null)."""
    asked, answered = (_json_list(row, name) for name in ("prompt", field))
    if len(asked) != len(answered) or not asked:
        raise row.bad(f"has {len(answered)} turns where prompt has {len(asked)}", field)
    dialogue = []
    for question, reply in zip(asked, answered, strict=True):
        if question is None or reply is None:
            return None
        dialogue.append(Message(role="user", content=text_in(row, question, "prompt")))
        dialogue.append(Message(role="assistant", content=text_in(row, reply, field)))
    return dialogue if dialogue[-2].content.strip() else None


def _conversation(row: Row, field: str) -> list[Message] | None:
    """A list of messages whose content is a text or a list of parts, None where a part is no text."""
    dialogue = []
    for item in _json_list(row, field):
        found = object_in(row, item, field)
        content, role = found.get("content"), found.get("role")
        if role not in ("user", "assistant", "system"):
            raise row.bad(f"is {role!r}; one of user, assistant, system", f"{field}.role")
        if isinstance(content, list):
            parts = [object_in(row, part, f"{field}.content") for part in content]
            if any(part.get("type") != "text" for part in parts):
                return None
            content = "".join(text_in(row, part.get("text"), f"{field}.content.text") for part in parts)
        dialogue.append(Message(role=role, content=text_in(row, content, f"{field}.content")))
    if len(dialogue) < 2 or dialogue[-1].role != "assistant":
        raise row.bad("does not end with an answer of the assistant", field)
    return dialogue if dialogue[-2].content.strip() else None


def _json_list(row: Row, field: str) -> list[Any]:
    """A list, or in a CSV cell the JSON of one."""
    value = row.values.get(field)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise row.bad("is not the JSON of a list of turns", field) from None
    return list_in(row, value, field)
