"""Prompts from the files people have, without duplicates, in splits that stay apart.

All tables come in as the same numbered rows, so that an error names file, line and field.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from charter.errors import InputError
from charter.reading.forms import (
    DIALOGUE_COLUMNS,
    PROMPT_COLUMNS,
    ROLE_NAMES,
    SYSTEM_COLUMNS,
    TOOL_ROLES,
    check_tool_export,
    usual_columns,
    usual_turn,
    without_answer,
)
from charter.reading.rows import Format, Row, kind_of_value, read_rows
from charter.reading.sets.prompts import known_set
from charter.records import Message, Prompt
from charter.run.files import atomic_path, describe, write_jsonl, write_text

SPEAKERS: dict[str, Literal["user", "assistant"]] = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
LINE_TURN = re.compile(r"(?:\A\s*|\n)(Human|Assistant):")  # of transcripts that part their turns by single line breaks
SHAREGPT_SPEAKERS = ("system", "user", "assistant", *ROLE_NAMES, *TOOL_ROLES)
TRANSCRIPT_COLUMNS = ("transcript", "chosen")  # never plain text: an answer alone is not a prompt
CSV_COLUMNS = ("prompt", "source", "principle", "tags", "split")


KINDS = ("red_team", "benign", "task")
"""What a prompt is for: to be refused or turned to good, to be answered, or, without either tag, a task like any other."""


def is_kind(tags: Sequence[str], kind: str) -> bool:
    """Whether a prompt with these tags is of the kind."""
    return kind in tags if kind != "task" else not {"red_team", "benign"} & set(tags)


def read_prompts(
    path: Path, *, format: Format | None = None, tags: Iterable[str] = (), source: str | None = None
) -> Iterator[Prompt]:
    """The prompts of a file, in file order. ``tags`` are added to each; ``source`` replaces the file's own.

    The conversation is the first of the columns messages, conversations, prompt, conversation, text, transcript, chosen: a list
    of messages (in CSV as JSON), a transcript with ``Human:`` and ``Assistant:`` turns, or plain text, which is one user turn. A
    column system stands before it. Assistant turns at its end are the answer and are dropped. Rows of other published forms are
    read too (:mod:`charter.reading.forms`, :mod:`charter.reading.sets`). Columns principle, tags, split and source are kept,
    others ignored, ids computed anew. The format follows from suffix and content unless it is given. InputError if a row cannot
    be used (with file, line and field) and where there is no row.
    """
    tags = checked_tags(tags)
    empty = True
    for row in read_rows(path, format=format):
        empty = False
        yield row_to_prompt(row, tags=tags, source=source, default_source=path.name)
    if empty:
        raise InputError("the prompts are missing; give at least one row", file=path)


def row_to_prompt(row: Row, **fields: Any) -> Prompt:
    """The prompt of a row of a file of prompts; ``fields`` as of :func:`row_prompt`."""
    if {"message_id", "parent_id", "role"} <= row.values.keys():
        raise row.bad("a single message of a tree, such as OpenAssistant's; `charter import FILE --out DIR` makes prompts and "
                      "votes of the whole file", "message_id")  # fmt: skip
    row = usual_columns(known_set(row, fields.get("tags", ())))
    present = [name for name in PROMPT_COLUMNS if row.values.get(name) is not None]
    if not present:
        check_tool_export(row)
        columns = ", ".join(map(str, row.values)) or "none"
        raise row.bad(f"no prompt; give one of the columns {', '.join(PROMPT_COLUMNS)} (columns here: {columns})")
    field = next((name for name in present if row.values[name] != ""), present[0])
    value = row.values[field]
    if field == "chosen" and row.values.get("prompt") == "" and not is_transcript(str(value)):
        raise row.bad("empty; write the prompt or remove the row", "prompt")
    row = replace(row, values={**row.values, field: without_answer(value)})
    return row_prompt(row, field, row_conversation(row, field, as_transcript=field in TRANSCRIPT_COLUMNS), **fields)


def row_conversation(row: Row, field: str, *, as_transcript: bool = False) -> tuple[Message, ...]:
    """The conversation in one column of a row (:func:`row_messages`), after the system turn of a column system."""
    messages = row_messages(row, field, as_transcript=as_transcript)
    column = next((name for name in SYSTEM_COLUMNS if row.values.get(name) not in (None, "")), None)
    if column is None:
        return messages
    system = Message(role="system", content=row.text(column))
    if any(message.role == "system" and message != system for message in messages):
        raise row.bad(f"differs from the system turn in {field!r}; keep one of the two", column)
    return messages if messages[:1] == (system,) else (system, *messages)


def row_messages(row: Row, field: str, *, as_transcript: bool = False) -> tuple[Message, ...]:
    """The conversation in one column of a row: messages, a transcript or plain text (see :func:`read_prompts`)."""
    value = row.values[field]
    if isinstance(value, str):
        text = row.text(field)
        if as_transcript or is_transcript(text):
            try:
                return parse_transcript(text)
            except ValueError as error:
                raise row.bad(str(error), field) from None
        value = messages_in_json(text)
        if value is None and field in DIALOGUE_COLUMNS and re.match(r"\s*\[\s*\{", text):
            raise row.bad("looks like a list of messages and cannot be read as one; give it as JSON, whole (a spreadsheet cuts "
                          "cells at 32,767 characters)", field)  # fmt: skip
        if value is None:
            return (Message(role="user", content=text),)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise row.bad(f"must be a text or a list of messages, not {kind_of_value(value)}", field)
    messages = []
    for number, item in enumerate(value):
        try:
            messages.append(Message.model_validate(usual_turn(row, item, f"{field}.{number}")))
        except ValidationError as error:
            part, words = describe(error)
            raise row.bad(words, f"{field}.{number}.{part}") from None
    return tuple(messages)


def row_prompt(
    row: Row,
    field: str,
    messages: Sequence[Message],
    *,
    tags: Iterable[str] = (),
    source: str | None = None,
    default_source: str = "",
) -> Prompt:
    """The prompt that waits for an answer after these messages, with the row's principle, tags, split and source."""
    waiting = list(messages)
    while waiting and waiting[-1].role == "assistant":
        waiting.pop()
    if not waiting:
        raise row.bad("nothing for the assistant to answer; begin with a turn of the user", field)
    if not waiting[-1].content.strip():
        raise row.bad("empty; write the prompt or remove the row", field)
    given = row.values.get("source")
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        given = ", ".join(given)  # Nectar's prompts have several
    row_source = default_source if given is None or source is not None else replace(row, values={"source": given}).text("source")
    try:
        return Prompt(
            messages=tuple(waiting),
            source=row_source if source is None else source,
            principle=row.optional("principle"),
            tags=tuple(dict.fromkeys([*_tags(row), *tags])),
            split=row.optional("split"),  # type: ignore[arg-type]  # validated there
        )
    except ValidationError as error:
        problem, words = describe(error)
        raise row.bad(words, problem or field) from None


def parse_transcript(text: str) -> tuple[Message, ...]:
    """Messages of a dialogue written as ``\\n\\nHuman: ...\\n\\nAssistant: ...`` (the form of hh-rlhf).

    Only a role word that opens a paragraph begins a turn, or one that opens a line where none opens a paragraph. Of a turn all
    is kept but the one space after the colon, and line ends are ``\\n``; text before the first turn is a system message.
    ValueError if there is no turn.
    """
    text = text.replace("\r\n", "\n")
    paragraphs = re.search(r"\n\n(Human|Assistant):", text)
    before, *parts = (TURN if paragraphs else LINE_TURN).split(text)
    if not parts:
        raise ValueError("not a transcript; turns begin with a blank line and then 'Human:' or 'Assistant:'")
    system = [Message(role="system", content=before.strip("\n"))] if before.strip() else []
    turns = zip(parts[::2], parts[1::2], strict=True)
    return (*system, *(Message(role=SPEAKERS[role], content=words.removeprefix(" ")) for role, words in turns))


def is_transcript(text: str) -> bool:
    """Whether a text is a dialogue and not one turn: it opens with a blank line and a role word, or with the human's turn,
    an assistant's follows, and the dialogue waits for an answer."""
    text = text.replace("\r\n", "\n")
    if text.startswith(("\n\nHuman:", "\n\nAssistant:")):
        return True
    if not re.match(r"\s*Human:", text) or "\nAssistant:" not in text:
        return False
    last = parse_transcript(text)[-1]
    return last.role == "user" or not last.content.strip()


def prompt_text(prompt: Prompt) -> str:
    """The prompt as one table cell that :func:`read_prompts` reads back: its text where it is a single user turn,
    otherwise JSON."""
    first = prompt.messages[0]
    # A text that would be read as a transcript or as JSON goes out as JSON, so that it comes back as itself.
    plain = not is_transcript(first.content) and messages_in_json(first.content) is None
    if plain and len(prompt.messages) == 1 and first.role == "user":
        return first.content
    return json.dumps([message.model_dump() for message in prompt.messages], ensure_ascii=False)


def messages_in_json(text: str) -> list[Any] | None:
    """The messages that a text is the JSON of, or the Python of (pandas writes lists into CSV cells so, and arrays without commas
    between the messages), ShareGPT's names included; None if it is plain text."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            # A line break inside a text is written as \\n there, so one between two braces parts messages.
            python = re.sub(r"\}\r?\n\s*\{", "},{", text.strip())
            value = ast.literal_eval(python) if re.match(r"\s*\[?\s*\{\s*'", text) else None
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    turns = [value] if isinstance(value, dict) and {"content", "value"} & value.keys() else value
    is_messages = isinstance(turns, list) and turns and all(isinstance(turn, dict) and is_turn(turn) for turn in turns)
    return turns if is_messages else None


def is_turn(item: dict[str, Any]) -> bool:
    """Whether an object in a text is a turn of a dialogue: with a role, or with ShareGPT's from, a speaker, and value, a text."""
    return "role" in item or (item.get("from") in SHAREGPT_SPEAKERS and isinstance(item.get("value"), str))


def _tags(row: Row) -> list[str]:
    """A list, or in a CSV cell a JSON list or words between semicolons."""
    value = row.values.get("tags")
    if isinstance(value, str):
        text = row.text("tags")
        if not text.startswith("["):
            return [_known_kind(row, tag.strip()) for tag in text.split(";") if tag.strip()]
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise row.bad('not valid JSON; write tags as "one; two"', "tags") from None
    if value is not None and not (isinstance(value, list) and all(isinstance(tag, str) for tag in value)):
        raise row.bad("must be a list of texts", "tags")
    tags = Row({f"tags.{number}": tag for number, tag in enumerate(value or [])}, row.file, row.line)
    return [_known_kind(row, tags.text(field)) for field in tags.values]


def _known_kind(row: Row, tag: str) -> str:
    """The tag. InputError for another way to write red_team or benign, or for one of these among commas: the prompt would be of
    neither kind."""
    if tag not in KINDS[:2] and _written(tag) & {*KINDS[:2], "redteam"}:
        raise row.bad(f'is {tag[:60]!r}; write the kind as red_team or benign, and several tags as "one; two"', "tags")
    return tag


def _written(tag: str) -> set[str]:
    return {re.sub(r"[\s_-]+", "_", part.strip().casefold()) for part in tag.split(",")}


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """The tags that a user gives to all prompts of a file. InputError where one is nearly red_team or benign: the prompts would
    be of neither kind."""
    tags = tuple(tags)
    for tag in tags:
        near = next((near for part in _written(tag) for near in get_close_matches(part, KINDS[:2], n=1, cutoff=0.8)), None)
        if tag not in KINDS[:2] and near:
            raise InputError(f"unknown tag {tag[:60]!r}; did you mean {near}? (for another tag choose a name less like it)")
    return tags


def _tags_text(tags: Sequence[str]) -> str:
    text = "; ".join(tags)
    plain = not text.startswith("[") and [tag.strip() for tag in text.split(";") if tag.strip()] == list(tags)
    return text if plain else json.dumps(tags, ensure_ascii=False)


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> int:
    """Write .jsonl, .json or .csv by suffix, atomically, so that :func:`read_prompts` returns the same prompts; the
    number written."""
    check_output(path)
    if path.suffix == ".jsonl":
        return write_jsonl(path, prompts)
    if path.suffix == ".json":
        rows = [prompt.model_dump() for prompt in prompts]
        write_text(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
        return len(rows)
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for count, p in enumerate(prompts, start=1):  # noqa: B007 - the count is returned
            writer.writerow([prompt_text(p), p.source, p.principle or "", _tags_text(p.tags), p.split or ""])
    return count


def check_output(path: Path) -> None:
    """InputError if :func:`write_prompts` knows no format of that suffix; asked before a long computation."""
    if path.suffix not in (".jsonl", ".json", ".csv"):
        raise InputError(f"unknown suffix {path.suffix!r}; name it .jsonl, .json or .csv", file=path)
