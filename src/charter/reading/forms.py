"""Rows of published forms under the names that every reader knows: prompt or a dialogue, chosen and rejected.

Alpaca's instruction and input, ShareGPT's conversations, ms-swift's rejected_messages, AlpacaEval's preferences, DialogSum's
dialogues. Nothing that a row says to the model is dropped: a part that Charter cannot render makes the row one to leave out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from charter.errors import InputError
from charter.reading.rows import Row, read_rows
from charter.records import Split

T = TypeVar("T")
DIALOGUE_COLUMNS = ("messages", "conversations", "conversation")
QUESTION_COLUMNS = ("instruction", "question", "query")
SYSTEM_COLUMNS = ("system", "system_prompt")
PROMPT_COLUMNS = ("messages", "conversations", "prompt", "conversation", "text", "transcript", "chosen")
ROLE_NAMES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "developer": "system",
}  # fmt: skip
TOOL_ROLES = frozenset({"tool", "function", "function_call", "observation", "ipython"})
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call")
MEDIA = ("image", "images", "videos", "audios")
LABELS: dict[Any, bool] = {True: True, "1": True, "1.0": True, "true": True, "yes": True,
                           False: False, "0": False, "0.0": False, "false": False, "no": False}  # fmt: skip  # True == 1 == 1.0


class LeftOut(InputError):
    """A row that Charter cannot use as it stands. Readers of training data leave the row out and count ``reason``."""

    def __init__(self, row: Row, reason: str, field: str | None = None) -> None:
        self.reason = reason
        place = (row.file, f"line {row.line}" if row.line else "", f"field {field!r}" if field else "")
        self.place = ", ".join(filter(None, place))
        super().__init__(f"{reason}; remove the row or that part of it", file=row.file, line=row.line, field=field)


def read_usable(path: Path, read: Callable[[Row], T | str], what: str) -> tuple[list[T], int, dict[str, int]]:
    """What ``read`` makes of the rows of a file, how many rows there are, and how many were left out for which reason (``read``
    returns the reason or raises LeftOut). InputError if nothing is left."""
    records: list[T] = []
    excluded: Counter[str] = Counter()
    n_rows = 0
    for row in read_rows(path):
        n_rows += 1
        try:
            record = read(row)
        except LeftOut as error:
            record = error.reason
        if isinstance(record, str):
            excluded[record] += 1
        else:
            records.append(record)
    if not records:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in excluded.items())
        raise InputError(f"no usable {what}" + (f" ({reasons})" if reasons else f"; give at least one {what}"), file=path)
    return records, n_rows, dict(excluded)


def usual_columns(row: Row) -> Row:
    """The row with the columns that the readers know. LeftOut where it has a part that Charter cannot render; InputError if
    it is an export of a labelling tool."""
    values = row.values
    for names, words in ((("tools",), "the row gives tools, which Charter does not render"),
                         (MEDIA, "the row has media, which Charter does not read")):  # fmt: skip
        if field := next((name for name in names if values.get(name)), None):
            raise LeftOut(row, words, field)
    changed = {**_summary_task(row), **_rejected_turns(values)}
    if values.get("prompt") is None and not changed.get("prompt"):
        field = next((name for name in QUESTION_COLUMNS if values.get(name) is not None), None)
        # Alpaca's column text is the instruction and the answer in one; elsewhere it is the prompt.
        others = DIALOGUE_COLUMNS if field == "instruction" else (*DIALOGUE_COLUMNS, "text", "transcript")
        if field is not None and not any(values.get(name) is not None for name in others):
            changed["prompt"] = values[field]
            if values.get("input") in (None, "") and isinstance(values.get("context"), str):
                changed["input"] = values["context"]  # Dolly's name for it
        elif values.get("rejected") is not None and "chosen" not in changed:
            field = next((name for name in DIALOGUE_COLUMNS if values.get(name) is not None), None)
            changed |= {"prompt": values[field]} if field else {}
    row = replace(row, values={**values, **changed})
    changed = _alpaca_input(row)
    return replace(row, values={**row.values, **changed}) if changed else row


def good_by_label(label: Any) -> bool | None:
    """Whether KTO's label says that an answer is good, in the ways in which tables write true and false (a spreadsheet: FALSE);
    None for any other value."""
    word = label.strip().casefold() if isinstance(label, str) else label
    return LABELS.get(word) if isinstance(word, (bool, int, float, str)) else None


def check_tool_export(row: Row) -> None:
    """InputError if a row that has no answers comes from a labelling tool: its votes are for the importer to read."""
    names = [str(name) for name in row.values]
    tool = "Label Studio" if {"annotator", "annotation_id"} <= set(names) else "Argilla"
    if tool == "Label Studio" or any(name.endswith(".responses") for name in names):
        raise row.bad(f"a row of an export of {tool}; read the file with `charter import` first, which makes pairs of votes")


def _summary_task(row: Row) -> dict[str, Any]:
    """DialogSum or SAMSum (columns dialogue and summary): the prompt that asks for the summary. DialogSum's ids say the split:
    train_0, test_0_1."""
    values = row.values
    if not values.keys() >= {"dialogue", "summary"} or any(values.get(name) is not None for name in PROMPT_COLUMNS):
        return {}
    split = str(values.get("id")).partition("_")[0]
    named = {"split": split} if split in get_args(Split) and values.get("split") in (None, "") else {}
    dialogue = row.text("dialogue")
    if not dialogue.strip():
        raise row.bad("empty; write the dialogue or remove the row", "dialogue")
    return {**named, "prompt": summary_prompt(dialogue)}


def summary_prompt(dialogue: str) -> str:
    """The request for the summary of a dialogue, in the words of the course labs that use FLAN-T5."""
    return f"Summarize the following conversation.\n\n{dialogue}\n\nSummary: "


def preferred_output(row: Row) -> Row:
    """AlpacaEval's annotations, two outputs and a preference from 1, the first, to 2, the second, as chosen, rejected and p.
    LeftOut where there is no preference."""
    values = row.values
    if not values.keys() >= {"output_1", "output_2", "preference"} or values.get("chosen") is not None:
        return row
    try:
        preference = float(values["preference"])  # a text in CSV
    except (TypeError, ValueError, OverflowError):
        preference = 0.0
    if isinstance(values["preference"], bool) or not 1 <= preference <= 2:
        raise LeftOut(row, "the row has no preference between 1 and 2", "preference")
    pair = {"chosen": values["output_1"], "rejected": values["output_2"], "p": round(2 - preference, 12)}
    return replace(row, values={**values, **pair})


def _rejected_turns(values: Mapping[str, Any]) -> dict[str, Any]:
    """ms-swift's pairs: a dialogue that ends with the better answer, and the worse one as a dialogue or as a text."""
    turns = values.get("messages")
    if not isinstance(turns, list) or values.get("chosen") is not None:
        return {}
    if isinstance(values.get("rejected_messages"), list):
        return {"messages": None, "chosen": turns, "rejected": values["rejected_messages"]}
    if isinstance(values.get("rejected_response"), str) and turns:
        rejected = [*turns[:-1], {"role": "assistant", "content": values["rejected_response"]}]
        return {"messages": None, "chosen": turns, "rejected": rejected}
    return {}


def _alpaca_input(row: Row) -> dict[str, Any]:
    """The prompt with Alpaca's input after the instruction and LLaMA-Factory's history, pairs of turns, before it."""
    values = row.values
    if not isinstance(values.get("prompt"), str) or not (values.get("input") or values.get("history")):
        return {}
    text = row.text("prompt")
    if values.get("input") and values["input"] != text:
        text += f"\n\n{row.text('input')}"
    before = values.get("history") or []
    if not isinstance(before, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in before):
        raise row.bad("must be a list of pairs of turns", "history")
    turns = [{"role": role, "content": words} for pair in before for role, words in zip(("user", "assistant"), pair, strict=True)]
    return {"prompt": [*turns, {"role": "user", "content": text}] if turns else text}


def without_answer(turns: Any) -> Any:
    """Turns without the assistant's at their end, which a reader of prompts drops, whatever they have beside their content."""
    kept = list(turns) if isinstance(turns, list) else []
    while kept and isinstance(kept[-1], dict) and kept[-1].get("role", ROLE_NAMES.get(str(kept[-1].get("from")))) == "assistant":
        kept.pop()
    return kept or turns


def usual_turn(row: Row, item: Any, field: str) -> dict[str, Any]:
    """One turn as role and content, from ShareGPT's names too. LeftOut where it has a part that Charter cannot render."""
    if not isinstance(item, dict):
        raise row.bad("must be an object with role and content", field)
    role, content = (item.get(first, item.get(second)) for first, second in (("role", "from"), ("content", "value")))
    role = ROLE_NAMES.get(role, role) if isinstance(role, str) else role
    for names, words in ((CALLS, "a turn calls tools, which Charter does not render"),
                         (THOUGHTS, "a turn has reasoning beside its content, which Charter does not render")):  # fmt: skip
        if name := next((name for name in names if item.get(name)), None):
            raise LeftOut(row, words, f"{field}.{name}")
    if isinstance(role, str) and role in TOOL_ROLES:
        raise LeftOut(row, "a turn is a tool's, which Charter does not render", f"{field}.role")
    if isinstance(content, list):
        if not all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
        ):
            raise LeftOut(row, "a turn has media, which Charter does not read", f"{field}.content")
        content = "".join(part["text"] for part in content)
    # Other keys (name, weight, tool calls that are null) are common in published sets and mean nothing here.
    return {name: value for name, value in (("role", role), ("content", content)) if value is not None}
