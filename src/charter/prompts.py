"""Prompts from the files people have, without duplicates, in splits that stay apart.

All tables (JSONL, JSON, CSV, text, Parquet; all but the last also gzipped) come in as the same numbered rows, so that
whatever is wrong with one is said with its file, line and field.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from charter.errors import InputError
from charter.records import (
    MAX_LINE_BYTES,
    Message,
    Prompt,
    Split,
    atomic_path,
    clean_text,
    content_id,
    describe,
    read_lines,
    write_jsonl,
    write_text,
)

Format = Literal["jsonl", "json", "csv", "txt", "parquet"]
SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".txt": "txt", ".parquet": "parquet",
}  # fmt: skip
MAX_FILE_BYTES = 2**30  # for the formats that are read whole; a gzipped file may be a thousand times its size
ROLES: dict[str, Literal["user", "assistant"]] = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
PROMPT_COLUMNS = ("messages", "prompt", "text", "transcript", "chosen")
TRANSCRIPT_COLUMNS = ("transcript", "chosen")  # never plain text: an answer alone is no prompt
CSV_COLUMNS = ("prompt", "source", "principle", "tags", "split")


@dataclass(frozen=True)
class Row:
    """One row of a table and the place where it stands, for errors. ``line`` is None where a file has no lines."""

    values: dict[str, Any]
    file: str
    line: int | None = None

    def bad(self, words: str, field: str | None = None) -> InputError:
        """The error that says so."""
        return InputError(words, file=self.file, line=self.line, field=field)

    def text(self, field: str) -> str:
        """A text that is there and that every stage can handle."""
        value = self.values.get(field)
        if not isinstance(value, str):
            raise self.bad("is missing" if value is None else f"is a {type(value).__name__}, not a text", field)
        try:
            return clean_text(value)
        except ValueError as error:
            raise self.bad(str(error), field) from None

    def optional(self, field: str) -> str | None:
        """A text, or None where it is missing or empty."""
        return None if self.values.get(field) in (None, "") else self.text(field)


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


def read_rows(path: Path, *, format: Format | None = None) -> Iterator[Row]:
    """The rows of a table in any format, each with its place. A line of a text file is a row with the column prompt."""
    format = format or _detect(path)
    if format not in get_args(Format):
        raise InputError(f"unknown format {format!r}; known are {', '.join(get_args(Format))}", file=path)
    readers = {"jsonl": _jsonl_rows, "json": _json_rows, "csv": _csv_rows, "txt": _txt_rows, "parquet": _parquet_rows}
    return readers[format](path)


def _detect(path: Path) -> Format:
    """By suffix, but a .json file may hold JSON lines and a .jsonl file one array; by content where there is none."""
    named = SUFFIXES.get((path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower())
    if named in ("csv", "txt", "parquet"):
        return named
    head = _read_bytes(path, 4096)
    if head.startswith(b"PAR1"):
        return "parquet"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return "json" if start == b"[" else "jsonl" if start == b"{" else named or "txt"


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in read_lines(path):
        yield _object(_parse_json(line, path, number), Row({}, str(path), number))


def _json_rows(path: Path) -> Iterator[Row]:
    content = _parse_json(_read_text(path), path, None)
    if not isinstance(content, list):
        raise InputError(f"is a JSON {type(content).__name__}; it should be a list of objects", file=path)
    for number, item in enumerate(content, start=1):
        yield _object(item, Row({}, f"{path}, item {number}"))


def _object(value: Any, row: Row) -> Row:
    if isinstance(value, str):
        return replace(row, values={"prompt": value})
    if not isinstance(value, dict):
        raise row.bad(f"is a JSON {type(value).__name__}; every row is a JSON object")
    return replace(row, values=value)


def _txt_rows(path: Path) -> Iterator[Row]:
    for number, line in read_lines(path):
        row = Row({"prompt": line.strip()}, str(path), number)
        if re.match(r"(Human|Assistant):", row.values["prompt"]):
            raise row.bad('looks like a dialogue, but every line of a .txt is a prompt of its own; put each dialogue '
                          'into a JSONL line {"text": "..."}')  # fmt: skip
        yield row


def _csv_rows(path: Path) -> Iterator[Row]:
    # Python's default of 131,072 characters is less than some dialogues; the limit is global, so it only ever grows.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"not valid CSV ({error}); quote cells with commas or line breaks and double the quotes "
                             "inside", file=path, line=line) from None  # fmt: skip
        if cells is None:
            return
        if header is None:
            header = [name.strip() for name in cells]
            if len(set(header)) < len(header):
                raise InputError("two columns have the same name", file=path, line=line)
        elif cells:
            row = Row(dict(zip(header, cells, strict=False)), str(path), line)
            if len(cells) != len(header):
                raise row.bad(f"has {len(cells)} cells where the header has {len(header)}; quote cells with commas")
            yield row
        line = reader.line_num + 1


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(values, f"{path}, row {number}")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", file=path) from None
    except pyarrow.ArrowException as error:
        raise InputError(f"not a valid Parquet file ({str(error).splitlines()[0]})", file=path) from None


def _parse_json(text: str, path: Path, line: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON ({error.msg})", file=path, line=line or error.lineno) from None
    except (ValueError, RecursionError):  # a number of thousands of digits; brackets nested without end
        raise InputError("not valid JSON (numbers too long or nested too deeply)", file=path, line=line) from None


def _read_text(path: Path) -> str:
    """A whole UTF-8 text file, plain or gzipped, line ends as they are."""
    raw = _read_bytes(path, MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise InputError(f"larger than {MAX_FILE_BYTES >> 30} GiB; convert it to JSONL", file=path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError("not UTF-8; convert it with iconv", file=path, line=line) from None


def _read_bytes(path: Path, limit: int) -> bytes:
    """Up to ``limit`` bytes from the start of a file, unzipped."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            return file.read(limit)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        words = f"broken gzip file ({error}); download or compress it again"
        raise InputError(words, file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from None


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


def deduplicate(prompts: Iterable[Prompt]) -> tuple[list[Prompt], int]:
    """The first of all prompts that say the same, and how many were dropped. Unicode form (NFKC), case and white
    space do not count as a difference; who says it does."""
    first: dict[bytes, Prompt] = {}
    n = 0
    for n, prompt in enumerate(prompts, start=1):  # noqa: B007 - the count is used below
        first.setdefault(what_it_says(prompt), prompt)
    return list(first.values()), n - len(first)


def what_it_says(prompt: Prompt) -> bytes:
    """16 bytes that are equal where two prompts say the same: a hash of roles and normalised texts."""
    turns = [(message.role, _normal(message.content)) for message in prompt.messages]
    return hashlib.blake2b(
        json.dumps(turns, ensure_ascii=False).encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_prompts(prompts: Iterable[Prompt], *, test_fraction: float, seed: int) -> list[Prompt]:
    """The same prompts in the same order, each with a split.

    A given split stays. The others are dealt by a hash of id and seed within each stratum of (principle, tags), so that
    the test part is ``test_fraction`` of every stratum and of the whole, to within one prompt unless given splits
    exceed it, whatever the order of the input. Prompts with equal ids get the same split. ValueError where the
    fraction is not in [0, 1]; InputError where equal prompts were given different splits.
    """
    if not 0 <= test_fraction <= 1:
        raise ValueError(f"test_fraction is {test_fraction}; it should be between 0 and 1")
    prompts = list(prompts)
    splits: dict[str, Split] = {}
    strata_of: dict[str, set[str]] = defaultdict(set)
    for prompt in prompts:
        strata_of[prompt.id].add(content_id(prompt.principle, sorted(prompt.tags)))
        if prompt.split and splits.setdefault(prompt.id, prompt.split) != prompt.split:
            start = prompt.last_turn[:40]
            raise InputError(f"prompt {prompt.id} ({start!r}) is in both train and test; keep it in one")

    strata: dict[str, list[str]] = defaultdict(list)
    for id, names in strata_of.items():
        strata[min(names)].append(id)  # equal prompts under several principles count once
    quotas = apportion({name: len(ids) for name, ids in strata.items()}, test_fraction, seed)
    for name, ids in strata.items():
        free = sorted((id for id in ids if id not in splits), key=lambda id: content_id(seed, id))
        wanted = max(0, quotas[name] - sum(splits.get(id) == "test" for id in ids))
        splits |= {id: "test" if number < wanted else "train" for number, id in enumerate(free)}
    return [prompt.model_copy(update={"split": splits[prompt.id]}) for prompt in prompts]


def take_stratified(
    prompts: Iterable[Prompt], n: int, *, seed: int, by: Sequence[str] = ("principle",)
) -> list[Prompt]:
    """``n`` prompts whose mix over the fields ``by`` is that of all prompts to within one each.

    Which ones, and their order, follow from their content and the seed, not from the order of the input. InputError
    where there are fewer than ``n``.
    """
    strata: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        strata[content_id([getattr(prompt, field) for field in by])].append(prompt)
    total = sum(map(len, strata.values()))
    if not 0 <= n <= total:
        raise InputError(f"{n} prompts asked for, {total} are there; ask for fewer or add prompts")

    def rank(prompt: Prompt) -> tuple[str, str]:
        return content_id(seed, prompt.id), prompt.model_dump_json()

    quotas = apportion({name: len(group) for name, group in strata.items()}, n / total if total else 0.0, seed)
    return sorted((p for name, group in strata.items() for p in sorted(group, key=rank)[: quotas[name]]), key=rank)


def apportion(sizes: dict[str, int], fraction: float, seed: int) -> dict[str, int]:
    """Whole shares of every size that add up to the whole share of the sum (largest remainders, ties by hash)."""
    quotas = {name: int(size * fraction) for name, size in sizes.items()}
    left = round(sum(sizes.values()) * fraction) - sum(quotas.values())
    for name in sorted(sizes, key=lambda name: (quotas[name] - sizes[name] * fraction, content_id(seed, name)))[:left]:
        quotas[name] += 1
    return quotas
