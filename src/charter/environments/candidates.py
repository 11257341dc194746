"""Prompts, and K candidate responses to each, from a feedback folder, a file or a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.raters.vote_files import find, find_beside
from charter.reading.pairs import answer_text, prompt_column
from charter.reading.prompts import read_prompts
from charter.reading.rows import Row, read_rows
from charter.records import Prompt, Response
from charter.run.files import read_jsonl


@dataclass(frozen=True)
class Candidates:
    """A prompt and K responses to it."""

    prompt: Prompt
    responses: tuple[str, ...]


def prompts_of(prompts: str | Path | Iterable[str | Prompt]) -> list[Prompt]:
    """The prompts of a file as ``charter prompts`` reads it, or a list of texts and Prompts. InputError without a prompt."""
    if isinstance(prompts, (str, Path)):
        return list(read_prompts(Path(prompts)))
    read = [prompt if isinstance(prompt, Prompt) else Prompt.ask(prompt) for prompt in prompts]
    if not read:
        raise InputError("the prompts are missing; give at least one", field="prompts")
    return read


def index_of(options: Mapping[str, Any] | None, n: int) -> int | None:
    """The prompt that the options of a reset name, None if they leave it to chance. InputError for an unknown prompt."""
    index = (options or {}).get("index")
    if index is None or index in range(n):
        return None if index is None else int(index)
    raise InputError(f"unknown prompt {index!r}; use 0 to {n - 1}", field="options.index")


def candidates_of(source: str | Path | Iterable[Mapping[str, Any]]) -> list[Candidates]:
    """``source``: the folder of a feedback stage, a run or a label project (`responses.jsonl` and `prompts.jsonl`), a table, or
    a list of rows. A row has `prompt` (text, messages or a Prompt) and `responses`, a list of texts, or one `response`: rows of
    one prompt then belong together. InputError if a row cannot be used, or where the prompts have different numbers of
    responses or fewer than two."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        place, answered = str(path), _of_folder(path) if _is_feedback(path) else _of_rows(read_rows(path))
    else:
        rows = (Row(dict(values), f"candidates, item {n}") for n, values in enumerate(source, start=1))
        place, answered = "candidates", _of_rows(rows)
    by_prompt: dict[str, tuple[Prompt, list[str]]] = {}
    for prompt, responses in answered:
        by_prompt.setdefault(prompt.id, (prompt, []))[1].extend(responses)
    groups = [Candidates(prompt, tuple(responses)) for prompt, responses in by_prompt.values()]
    counts = sorted({len(group.responses) for group in groups})
    if len(counts) != 1 or counts[0] < 2:
        words = (
            f"the prompts have {' or '.join(map(str, counts)) or 'no'} responses; give each prompt the same number, at least 2"
        )
        raise InputError(words, file=place)
    return groups


def _is_feedback(path: Path) -> bool:
    return path.is_dir() or path.name == "responses.jsonl"


def _of_folder(path: Path) -> Iterator[tuple[Prompt, list[str]]]:
    file = find(path, "responses.jsonl")
    prompt_file = find_beside("prompts.jsonl", "a list of candidates", None, [file.parent, file.parent.parent / "prompts"])
    prompts = {prompt.id: prompt for prompt in read_jsonl(prompt_file, Prompt)}
    for response in read_jsonl(file, Response):
        if response.prompt_id not in prompts:
            raise InputError(f"the prompt {response.prompt_id!r} of response {response.id!r} is missing", file=prompt_file)
        yield prompts[response.prompt_id], [response.text]


def _of_rows(rows: Iterable[Row]) -> Iterator[tuple[Prompt, list[str]]]:
    for row in rows:
        value = row.values.get("prompt")
        if value in (None, ""):
            raise row.bad("missing; candidates need prompt, and responses or response", "prompt")
        if isinstance(value, Prompt):
            row = Row({**row.values, "prompt": value.model_dump()}, row.file, row.line)
        prompt = prompt_column(row)
        if prompt is None:
            raise row.bad("ends with the assistant's turn; end it with the user's", "prompt")
        texts = row.values.get("responses")
        if texts is None:
            yield prompt, [answer_text(row, "response", prompt)]
            continue
        if not isinstance(texts, (list, tuple)):
            raise row.bad("must be a list of texts", "responses")
        named = Row({f"responses.{n}": text for n, text in enumerate(texts)}, row.file, row.line)
        yield prompt, [named.text(field) for field in named.values]
