"""Examples to imitate, from files: a prompt and the answer that fine-tuning should make likely."""

from __future__ import annotations

from pathlib import Path

from charter.errors import InputError
from charter.reading.pairs import answer, prompt_column
from charter.reading.prompts import row_messages, row_prompt
from charter.reading.rows import Row, read_rows
from charter.records import Prompt

ANSWERS = ("completion", "response", "answer", "output", "summary", "chosen")
DIALOGUES = ("messages", "conversation", "chosen", "text")


def read_demonstrations(path: Path) -> list[tuple[Prompt, str]]:
    """(prompt, answer) of each row of a JSONL, JSON, CSV or Parquet file, in file order.

    A row has ``prompt`` and one of the columns completion, response, answer, output, summary, chosen; or, in one of the columns
    messages, conversation, chosen, text, a whole dialogue that ends with the assistant's answer: messages, or a transcript of
    hh-rlhf. Rows whose last turns are two answers of the assistant in a row are left out, as in pairs. InputError names file,
    line and field.
    """
    found = []
    for row in read_rows(path):
        one = from_columns(row) if row.values.get("prompt") is not None else from_dialogue(row)
        if one is not None:
            if not one[1].strip():
                raise row.bad("holds an empty answer; write it or remove the row")
            found.append(one)
    if not found:
        raise InputError("holds no example to learn from", file=path)
    return found


def from_columns(row: Row) -> tuple[Prompt, str] | None:
    """Prompt and answer in columns of their own."""
    field = next((name for name in ANSWERS if row.values.get(name) is not None), None)
    if field is None:
        raise row.bad(f"no answer to learn; give one of the columns {', '.join(ANSWERS)} beside prompt")
    prompt = prompt_column(row)
    return None if prompt is None else (prompt, answer(row, field, prompt))


def from_dialogue(row: Row) -> tuple[Prompt, str] | None:
    """Prompt and answer of one whole dialogue."""
    field = next((name for name in DIALOGUES if row.values.get(name) is not None), None)
    if field is None:
        words = f"give prompt and an answer, or a dialogue in one of the columns {', '.join(DIALOGUES)}"
        raise row.bad(f"is no example to learn; {words} (columns here: {', '.join(map(str, row.values)) or 'none'})")
    messages = row_messages(row, field, as_transcript=isinstance(row.values[field], str))
    if not messages or messages[-1].role != "assistant":
        raise row.bad("does not end with an answer of the assistant", field)
    before = messages[:-1]
    if before and before[-1].role == "assistant":
        return None
    return row_prompt(Row({}, row.file, row.line), field, before), messages[-1].content
