"""Votes of Chatbot Arena and MT-bench: the tables with winner_model_a … (55k), and the conversations with winner (33k, 140k)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from charter.reading.pairs import FORKED
from charter.reading.rows import Row
from charter.records import Message
from charter.votes.imports.formats import Rater
from charter.votes.imports.votes import (
    Answer,
    LeftOut,
    Unique,
    Vote,
    list_in,
    messages_prompt,
    object_in,
    optional_text_in,
    text_in,
)
from charter.votes.winners import NO_VERDICT, RANKS, outcome_of, set_aside

NO_WORDS = "a turn is empty, or holds more than text"
REPEATED = "the same vote as an earlier row"


def read_vote(row: Row, rater: Rater, ids: Unique) -> Iterator[Vote | LeftOut]:
    """A vote on two dialogues, cut after ``turn`` turns where that is given: MT-bench's raters judge the first turn or both. Two
    dialogues whose earlier answers differ have forked and are left out."""
    values = row.values
    if not {"conversation_a", "response_a"} & values.keys():
        raise row.bad("votes without the answers; rate the models with charter ratings FILE")
    ids.check(row, values.get("id"), "id")
    if "id" not in values and values.get("question_id") is not None:
        vote = [str(values.get(name)) for name in ("question_id", "model_a", "model_b", "judge", "turn", "winner", "tstamp")]
        if ids.known(json.dumps(vote)):
            raise LeftOut(row, REPEATED, "question_id")
    if reason := set_aside(row):
        raise LeftOut(row, reason)
    outcome = outcome_of(row)
    if outcome is None:
        raise LeftOut(row, NO_VERDICT, "winner")
    if "conversation_a" in values:
        first, second = (_conversation(row, f"conversation_{side}") for side in "ab")
    else:
        first, second = (_turns(row, f"response_{side}") for side in "ab")
    if first[:-1] != second[:-1]:
        raise LeftOut(row, FORKED)
    judge = optional_text_in(row, values.get("judge") or values.get("evaluation_session_id"), "judge")
    yield Vote(
        row=row,
        prompt=messages_prompt(row, first[:-1], "prompt", source="arena"),
        answers=(Answer(first[-1].content, row.text("model_a")), Answer(second[-1].content, row.text("model_b"))),
        ranks=RANKS[outcome],
        rater=Rater(judge, rater.kind) if judge else rater,
        kind="pair",
    )


def _turns(row: Row, field: str) -> list[Message]:
    """The dialogue of two columns of turns. LeftOut where one is null, as in the published table."""
    questions, replies = (_json_list(row, name) for name in ("prompt", field))
    if len(questions) != len(replies) or not questions:
        raise row.bad(f"has {len(replies)} turns where prompt has {len(questions)}", field)
    dialogue = []
    for question, reply in zip(questions, replies, strict=True):
        if question is None or reply is None:
            raise LeftOut(row, NO_WORDS, field)
        dialogue.append(Message(role="user", content=text_in(row, question, "prompt")))
        dialogue.append(Message(role="assistant", content=text_in(row, reply, field)))
    return _with_question(row, dialogue, field)


def _conversation(row: Row, field: str) -> list[Message]:
    """A list of messages whose content is a text or a list of parts. LeftOut where a part is not a text."""
    dialogue = []
    for item in _json_list(row, field):
        message = object_in(row, item, field)
        content, role = message.get("content"), message.get("role")
        if role not in ("user", "assistant", "system"):
            raise row.bad(f"unknown role {role!r}; use user, assistant or system", f"{field}.role")
        if isinstance(content, list):
            parts = [object_in(row, part, f"{field}.content") for part in content]
            if any(part.get("type") != "text" for part in parts):
                raise LeftOut(row, NO_WORDS, field)
            content = "".join(text_in(row, part.get("text"), f"{field}.content.text") for part in parts)
        dialogue.append(Message(role=role, content=text_in(row, content, f"{field}.content")))
    turn = row.values.get("turn")
    if isinstance(turn, int) and not isinstance(turn, bool) and turn > 0:
        answers = [place for place, message in enumerate(dialogue, start=1) if message.role == "assistant"]
        dialogue = dialogue[: answers[turn - 1]] if turn < len(answers) else dialogue
    if len(dialogue) < 2 or dialogue[-1].role != "assistant":
        raise row.bad("does not end with an answer of the assistant", field)
    return _with_question(row, dialogue, field)


def _with_question(row: Row, dialogue: list[Message], field: str) -> list[Message]:
    if not dialogue[-2].content.strip():
        raise LeftOut(row, NO_WORDS, field)
    return dialogue


def _json_list(row: Row, field: str) -> list[Any]:
    """A list, or in a CSV cell the JSON of one."""
    value = row.values.get(field)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise row.bad("is not the JSON of a list of turns", field) from None
    return list_in(row, value, field)
