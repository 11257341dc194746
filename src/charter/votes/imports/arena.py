"""Votes of Chatbot Arena and MT-bench: the tables with winner_model_a … (55k), and the conversations with winner (33k, 140k)."""

from __future__ import annotations

import json
from collections.abc import Iterator

from charter.reading.forms import LeftOut
from charter.reading.pairs import FORKED, number
from charter.reading.rows import is_nan
from charter.records import Message
from charter.votes.imports.formats import Rater
from charter.votes.imports.votes import Answer, Part, Unique, Vote
from charter.votes.winners import NO_VERDICT, RANKS, outcome_of, set_aside

NO_WORDS = "a turn is empty, or holds more than text"
REPEATED = "the same vote as an earlier row"


def read_vote(row: Part, rater: Rater, ids: Unique) -> Iterator[Vote | LeftOut]:
    """A vote on two dialogues, cut after ``turn`` turns where that is given: MT-bench's raters judge the first turn or both. Two
    dialogues whose earlier answers differ have forked and are left out."""
    values = row.row.values
    if not {"conversation_a", "response_a"} & values.keys():
        raise row.bad("votes without the answers; rate the models with charter ratings FILE")
    ids.check(row["id"])
    if "id" not in values and values.get("question_id") is not None:
        vote = [str(values.get(name)) for name in ("question_id", "model_a", "model_b", "judge", "turn", "winner", "tstamp")]
        if ids.known(json.dumps(vote)):
            raise row["question_id"].left_out(REPEATED)
    if reason := set_aside(row.row):
        raise row.left_out(reason)
    outcome = outcome_of(row.row)
    if outcome is None:
        raise row["winner"].left_out(NO_VERDICT)
    if "conversation_a" in values:
        first, second = (_conversation(row, f"conversation_{side}") for side in "ab")
    else:
        first, second = (_turns(row, f"response_{side}") for side in "ab")
    if first[:-1] != second[:-1]:
        raise row.left_out(FORKED)
    judge = row["judge" if values.get("judge") else "evaluation_session_id"].name()
    yield Vote(
        row=row.row,
        prompt=row["prompt"].prompt_of(first[:-1], "arena"),
        answers=(Answer(first[-1].content, row["model_a"].text()), Answer(second[-1].content, row["model_b"].text())),
        ranks=RANKS[outcome],
        rater=Rater(judge, rater.kind) if judge else rater,
        kind="pair",
    )


def _turns(row: Part, field: str) -> list[Message]:
    """The dialogue of two columns of turns. LeftOut where one is null, as in the published table."""
    questions, replies = list(_from_json(row["prompt"])), list(_from_json(row[field]))
    if len(questions) != len(replies) or not questions:
        raise row[field].bad(f"has {len(replies)} turns where prompt has {len(questions)}")
    dialogue = []
    for question, reply in zip(questions, replies, strict=True):
        if question.value is None or reply.value is None:
            raise row[field].left_out(NO_WORDS)
        dialogue += [Message(role="user", content=question.text()), Message(role="assistant", content=reply.text())]
    return _with_question(dialogue, row[field])


def _conversation(row: Part, field: str) -> list[Message]:
    """A list of messages whose content is a text or a list of parts. LeftOut where a part is not a text."""
    dialogue = []
    for message in _from_json(row[field]):
        role, content = message["role"].value, message["content"]
        if role not in ("user", "assistant", "system"):
            raise message["role"].bad(f"unknown role {role!r}; use user, assistant or system")
        parts = list(content) if isinstance(content.value, list) else []
        if any(part["type"].value != "text" for part in parts):
            raise content.left_out(NO_WORDS)
        text = "".join(part["text"].text() for part in parts) if isinstance(content.value, list) else content.text()
        dialogue.append(Message(role=role, content=text))
    turn = None if is_nan(row["turn"].value) else number(row.row, "turn")  # a text in a CSV, a float beside missing ones
    if turn is not None and turn >= 1:
        answers = [place for place, message in enumerate(dialogue, start=1) if message.role == "assistant"]
        dialogue = dialogue[: answers[int(turn) - 1]] if turn < len(answers) else dialogue
    if len(dialogue) < 2 or dialogue[-1].role != "assistant":
        raise row[field].bad("does not end with an answer of the assistant")
    return _with_question(dialogue, row[field])


def _with_question(dialogue: list[Message], part: Part) -> list[Message]:
    if not dialogue[-2].content.strip():
        raise part.left_out(NO_WORDS)
    return dialogue


def _from_json(part: Part) -> Part:
    """A list, or in a CSV cell the JSON of one."""
    if not isinstance(part.value, str):
        return part
    try:
        return Part(part.row, json.loads(part.value), part.field)
    except (ValueError, RecursionError):
        raise part.bad("is not the JSON of a list of turns") from None
