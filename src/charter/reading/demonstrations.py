"""Examples to imitate, from files: a prompt and the answer that fine-tuning should make likely."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from charter.reading.forms import DIALOGUE_COLUMNS, LeftOut, check_tool_export, good_by_label, read_usable, usual_columns
from charter.reading.pairs import EMPTY_ANSWER, SPOKEN, answer_text, number, prompt_column, with_system_of
from charter.reading.prompts import messages_in_json, row_conversation, row_prompt
from charter.reading.rows import Row, is_missing
from charter.records import Prompt

ANSWERS = ("completion", "response", "answer", "output", "summary", "chosen")
DIALOGUES = (*DIALOGUE_COLUMNS, "chosen", "text")
BAD_ANSWER = "the label is false: a bad answer"
UNANSWERED = "the dialogue does not end with an answer of the assistant"
WORSE_ANSWER = "p is below one half: the rejected answer is the better one"

Demonstration = tuple[Prompt, str]
"""A prompt and the answer to learn."""


@dataclass(frozen=True)
class DemonstrationFile:
    """The examples of a file to learn, how many rows it has, and how many of them were left out for which reason."""

    examples: list[Demonstration]
    n_rows: int
    excluded: dict[str, int]

    def __iter__(self) -> Iterator[Demonstration]:
        return iter(self.examples)

    def __len__(self) -> int:
        return len(self.examples)


def read_demonstrations(path: Path) -> DemonstrationFile:
    """The examples of a JSONL, JSON, CSV, TSV or Parquet file, in file order.

    A row has ``prompt`` (or instruction, with input) and one of the columns completion, response, answer, output, summary,
    chosen; or, in one of the columns messages, conversations, conversation, chosen, text, a whole dialogue that ends with the
    assistant's answer: messages, or a transcript of hh-rlhf. Rows are left out and counted where a dialogue does not end with an
    answer, where the last two turns are both the assistant's, as in pairs, where the answer is empty, where KTO's ``label`` is
    false, where ``p`` of a pair prefers the other answer, and where a part of the row is not rendered (tools, reasoning, media).
    InputError names file, line and field.
    """
    return DemonstrationFile(*read_usable(path, row_demonstration, "example"))


def row_demonstration(row: Row) -> Demonstration | str:
    """The example of a row, or the reason to leave it out, which may also be raised as LeftOut."""
    row = usual_columns(row)
    # The prompt beside a whole dialogue and no other answer is a turn of it (no_robots, UltraChat).
    is_dialogue = not any(row.values.get(name) is not None for name in ANSWERS) and any(
        row.values.get(name) is not None for name in DIALOGUE_COLUMNS
    )
    example = _from_dialogue(row) if row.values.get("prompt") is None or is_dialogue else _from_columns(row)
    if example is None:
        return SPOKEN
    label = row.values.get("label")
    # Without KTO's column completion a 0 may be the class of another task.
    is_label = row.values.get("completion") is not None or str(label).strip().casefold() == "false"
    if is_label and good_by_label(label) is False:
        return BAD_ANSWER
    return example if example[1].strip() else EMPTY_ANSWER


def _from_columns(row: Row) -> Demonstration | None:
    """Prompt and answer in columns of their own."""
    field = next((name for name in ANSWERS if not is_missing(row.values.get(name))), None)
    if field is None and any(name in row.values for name in ANSWERS):
        raise LeftOut(row, EMPTY_ANSWER)
    if field == "chosen":
        check_that_chosen_is_better(row)
    if field is None:
        check_tool_export(row)
        raise row.bad(f"no answer to learn; give one of the columns {', '.join(ANSWERS)} as well as prompt")
    prompt = prompt_column(row)
    if prompt is None:
        return None
    prompt = with_system_of(row, field, prompt)
    return prompt, answer_text(row, field, prompt)


def _from_dialogue(row: Row) -> Demonstration | None:
    """Prompt and answer of one whole dialogue."""
    field = next((name for name in DIALOGUES if row.values.get(name) is not None), None)
    if field == "chosen":
        check_that_chosen_is_better(row)
    if field is None:
        check_tool_export(row)
        words = f"give prompt and an answer, or a dialogue in one of the columns {', '.join(DIALOGUES)}"
        raise row.bad(f"not an example to learn; {words} (columns here: {', '.join(map(str, row.values)) or 'none'})")
    value = row.values[field]
    plain = isinstance(value, str) and messages_in_json(value) is None
    messages = row_conversation(row, field, as_transcript=plain)
    if not messages or messages[-1].role != "assistant":
        raise LeftOut(row, UNANSWERED, field)
    before = messages[:-1]
    if before and before[-1].role == "assistant":
        return None
    return row_prompt(Row({}, row.file, row.line), field, before), messages[-1].content


def check_that_chosen_is_better(row: Row) -> None:
    """LeftOut if ``p`` of a pair, P(chosen is better), prefers the rejected answer."""
    p = None if row.values.get("rejected") is None or number(row, "weight") is not None else number(row, "p")
    if p is not None and p < 0.5:
        raise LeftOut(row, WORSE_ANSWER, "p")
