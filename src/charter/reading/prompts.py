"""Prompts from the files people have, without duplicates, in splits that stay apart.

All tables (JSONL, JSON, CSV, text, Parquet; all but the last also gzipped) come in as the same numbered rows, so that
whatever is wrong with one is said with its file, line and field.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from charter.errors import InputError
from charter.reading.rows import Format, Row, read_rows
from charter.records import Message, Prompt, Split
from charter.run.files import atomic_path, describe, write_jsonl, write_text

ROLES: dict[str, Literal["user", "assistant"]] = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
PROMPT_COLUMNS = ("messages", "prompt", "text", "transcript", "chosen")
TRANSCRIPT_COLUMNS = ("transcript", "chosen")  # never plain text: an answer alone is no prompt
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

    The conversation is the first of the columns messages, prompt, text, transcript, chosen: a list of messages (in
    CSV as JSON), a transcript with ``\\n\\nHuman:`` and ``\\n\\nAssistant:`` turns, or plain text, which is one user
    turn. Assistant turns at its end are the answer and are dropped. A row of DialogSum becomes the request for its
    summary. Columns principle, tags, split and source are kept, others ignored, ids computed anew. The format follows from
    suffix and content unless it is given. InputError where a row cannot be used (with file, line and field) and where
    there is no row.
    """
    empty = True
    for row in map(as_summary_task, read_rows(path, format=format)):
        empty = False
        present = [name for name in PROMPT_COLUMNS if row.values.get(name) is not None]
        if not present:
            found = ", ".join(map(str, row.values)) or "none"
            raise row.bad(f"no prompt; give one of the columns {', '.join(PROMPT_COLUMNS)} (columns here: {found})")
        field = next((name for name in present if row.values[name] != ""), present[0])
        messages = row_messages(row, field, as_transcript=field in TRANSCRIPT_COLUMNS)
        yield row_prompt(row, field, messages, tags=tags, source=source, default_source=path.name)
    if empty:
        raise InputError("holds no prompt", file=path)


def summary_prompt(dialogue: str) -> str:
    """What asks for the summary of a dialogue, in the words of the course labs that use FLAN-T5."""
    return f"Summarize the following conversation.\n\n{dialogue}\n\nSummary: "


def as_summary_task(row: Row) -> Row:
    """A row of DialogSum or SAMSum (columns dialogue and summary) as the prompt that asks for the summary; any other as it is.
    DialogSum's ids say the split: train_0, test_0_1."""
    values = row.values
    if not values.keys() >= {"dialogue", "summary"} or any(values.get(name) is not None for name in PROMPT_COLUMNS):
        return row
    split = str(values.get("id")).partition("_")[0]
    given = {"split": split} if split in get_args(Split) and values.get("split") in (None, "") else {}
    dialogue = row.text("dialogue")
    if not dialogue.strip():
        raise row.bad("is empty; write the dialogue or remove the row", "dialogue")
    return replace(row, values={**values, **given, "prompt": summary_prompt(dialogue)})


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
        if value is None:
            return (Message(role="user", content=text),)
    if not isinstance(value, list):
        raise row.bad(f"is a {type(value).__name__}; give a text or a list of messages", field)
    messages = []
    for number, item in enumerate(value):
        if not isinstance(item, dict):
            raise row.bad("is not an object with role and content", f"{field}.{number}")
        try:
            # Other keys (name, weight, tool calls that are null) are common in published sets and mean nothing here.
            messages.append(Message.model_validate({key: item[key] for key in ("role", "content") if key in item}))
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
        raise row.bad("holds nothing for the assistant to answer", field)
    if not waiting[-1].content.strip():
        raise row.bad("is empty; write the prompt or remove the row", field)
    own_source = default_source if row.values.get("source") is None else row.text("source")
    try:
        return Prompt(
            messages=tuple(waiting),
            source=own_source if source is None else source,
            principle=row.optional("principle"),
            tags=tuple(dict.fromkeys([*_tags(row), *tags])),
            split=row.optional("split"),  # type: ignore[arg-type]  # validated there
        )
    except ValidationError as error:
        problem, words = describe(error)
        raise row.bad(words, problem or field) from None


def parse_transcript(text: str) -> tuple[Message, ...]:
    """Messages of a dialogue written as ``\\n\\nHuman: ...\\n\\nAssistant: ...`` (the form of hh-rlhf).

    Only a role word that opens a paragraph begins a turn. Of a turn all is kept but the one space after the colon; text
    before the first turn is a system message. ValueError where there is no turn.
    """
    before, *parts = TURN.split(text)
    if not parts:
        raise ValueError("is no transcript; turns begin with a blank line and then 'Human:' or 'Assistant:'")
    system = [Message(role="system", content=before.strip("\n"))] if before.strip() else []
    turns = zip(parts[::2], parts[1::2], strict=True)
    return (*system, *(Message(role=ROLES[role], content=words.removeprefix(" ")) for role, words in turns))


def is_transcript(text: str) -> bool:
    """Whether a text is a dialogue and not one turn: it opens with a blank line and a role word."""
    return text.startswith(("\n\nHuman:", "\n\nAssistant:"))


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
    """The list of messages that a text is the JSON of, or None where it is plain text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_messages = isinstance(value, list) and value and all(isinstance(item, dict) and "role" in item for item in value)
    return value if is_messages else None


def _tags(row: Row) -> list[str]:
    """A list, or in a CSV cell a JSON list or words between semicolons."""
    value = row.values.get("tags")
    if isinstance(value, str):
        text = row.text("tags")
        if not text.startswith("["):
            return [tag.strip() for tag in text.split(";") if tag.strip()]
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise row.bad('is not valid JSON; write tags as "one; two"', "tags") from None
    if value is not None and not (isinstance(value, list) and all(isinstance(tag, str) for tag in value)):
        raise row.bad("is not a list of texts", "tags")
    tags = Row({f"tags.{number}": tag for number, tag in enumerate(value or [])}, row.file, row.line)
    return [tags.text(field) for field in tags.values]


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
    """InputError where :func:`write_prompts` knows no format of that suffix; asked before a long computation."""
    if path.suffix not in (".jsonl", ".json", ".csv"):
        raise InputError(f"unknown suffix {path.suffix!r}; name it .jsonl, .json or .csv", file=path)
