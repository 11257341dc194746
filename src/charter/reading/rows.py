"""Numbered rows from the tables people have: JSONL, JSON, CSV, text, Parquet, all but the last also gzipped."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from charter.errors import InputError
from charter.records import clean_text
from charter.run.files import MAX_LINE_BYTES, read_lines

Format = Literal["jsonl", "json", "csv", "txt", "parquet"]
SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".txt": "txt", ".parquet": "parquet",
}  # fmt: skip
MAX_FILE_BYTES = 2**30  # for the formats that are read whole; a gzipped file may be a thousand times its size


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
