"""Numbered rows from the tables people have: JSONL, JSON, CSV, TSV, text and Parquet; all but Parquet also compressed."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, get_args

from charter.errors import InputError
from charter.records import clean_text
from charter.run.files import MAX_LINE_BYTES, read_lines
from charter.run.yaml_files import decode_utf8

Format = Literal["jsonl", "json", "csv", "tsv", "txt", "parquet"]
SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".txt": "txt",
    ".parquet": "parquet",
}  # fmt: skip
WRAPPERS = {"data", "results", "rows", "examples", "items"}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
MAX_TABLE_BYTES = 2**30  # for the formats that are read whole; a compressed file may grow to a thousand times its size


def _open_zst(path: Path, _: str) -> IO[bytes]:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")  # type: ignore[no-any-return]


# The first bytes of a compressed file, its name, and what opens it; None if nothing here does.
MAGIC: tuple[tuple[bytes, str, Callable[[Path, str], Any] | None], ...] = (
    (b"\x1f\x8b", "gzip", gzip.open), (b"BZh", "bzip2", bz2.open), (b"\xfd7zXZ", "xz", lzma.open),
    (b"\x28\xb5\x2f\xfd", "zstd", _open_zst), (b"PK\x03\x04", "zip", None), (b"7z\xbc\xaf", "7z", None),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row of a table and the place where it stands, for errors. ``line`` is None if a file has no lines."""

    values: dict[str, Any]
    file: str
    line: int | None = None

    def bad(self, words: str, field: str | None = None) -> InputError:
        """The error with these words at the place of the row."""
        return InputError(words, file=self.file, line=self.line, field=field)

    def text(self, field: str) -> str:
        """A text that is there and that every stage can handle."""
        value = self.values.get(field)
        if not isinstance(value, str):
            raise self.bad("missing" if value is None else f"must be a text, not {kind_of_value(value)}", field)
        try:
            return clean_text(value)
        except ValueError as error:
            raise self.bad(str(error), field) from None

    def optional(self, field: str) -> str | None:
        """A text, or a whole number as text; None if it is missing or empty."""
        value = self.values.get(field)
        return None if value in (None, "") else str(value) if type(value) is int else self.text(field)


def is_nan(value: Any) -> bool:
    """Whether a value is NaN, which pandas writes for a missing one."""
    return isinstance(value, float) and math.isnan(value)


def is_missing(value: Any) -> bool:
    """Whether a cell has no value: null, or NaN."""
    return value is None or is_nan(value)


def kind_of_value(value: Any) -> str:
    """The kind of a JSON value, in words."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def read_rows(path: Path, *, format: Format | None = None) -> Iterator[Row]:
    """The rows of a table in any format, each with its place. A line of a text file is a row with the column prompt."""
    format = format or _detect(path)
    if format not in get_args(Format):
        raise InputError(f"unknown format {format!r}; use one of {', '.join(get_args(Format))}", file=path)
    readers = {"jsonl": _jsonl_rows, "json": _json_rows, "csv": _csv_rows, "tsv": _tsv_rows, "txt": _txt_rows,
               "parquet": _parquet_rows}  # fmt: skip
    return readers[format](path)


def _detect(path: Path) -> Format:
    """By suffix, but a .json file may hold JSON lines and a .jsonl file one array; by content where there is none."""
    named = SUFFIXES.get((path.with_suffix("") if path.suffix in COMPRESSED else path).suffix.lower())
    if named in ("csv", "tsv", "parquet"):
        return named
    head = _read_bytes(path, 4096)
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if named == "txt" or text[:1] not in (b"[", b"{"):
        return "tsv" if named in (None, "txt") and _is_tsv(text) else named or "txt"
    return "json" if text[:1] == b"[" else "jsonl"


def _is_tsv(head: bytes) -> bool:
    """Whether the first line names columns between tabs and the second has as many cells."""
    first, second = [*head.splitlines(), b"", b""][:2]
    return re.fullmatch(rb"[\w.-]+(\t[\w.-]+)+", first) is not None and second.count(b"\t") == first.count(b"\t")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not empty."""
    if _compression(path)[0] == ("gzip" if path.suffix == ".gz" else ""):
        yield from read_lines(path)
        return
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.rstrip("\r")


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        row = Row({}, str(path), number)
        try:
            value = _parse_json(line, path, number)
        except InputError:
            if number > 1 or (rows := _spread_rows(path)) is None:
                raise
            yield from rows
            return
        if number == 1 and isinstance(value, dict) and len(value) == 1 and WRAPPERS & value.keys():
            yield from _spread_rows(path) or ()
            return
        yield _object(value, row)


def _spread_rows(path: Path) -> list[Row] | None:
    """The rows of a file of JSON objects that span several lines each, or of the list inside a lone wrapper such as
    {"data": [...]}; None if the file is something else."""
    decoder, text, rows, end, line = json.JSONDecoder(), _read_text(path).rstrip(), [], 0, 1
    try:
        while end < len(text):
            start = re.compile(r"\s*").match(text, end).end()  # type: ignore[union-attr]  # it matches the empty text too
            line += text.count("\n", end, start)
            value, end = decoder.raw_decode(text, start)
            rows.append(_object(value, Row({}, str(path), line)))
            line += text.count("\n", start, end)
    except (ValueError, RecursionError):
        return None
    if len(rows) == 1 and len(rows[0].values) == 1:
        ((key, inner),) = rows[0].values.items()
        if key in WRAPPERS and isinstance(inner, list):
            return [_object(value, Row({}, f"{path}, item {number}")) for number, value in enumerate(inner, start=1)]
    return rows


def _json_rows(path: Path) -> Iterator[Row]:
    content = _parse_json(_read_text(path), path, None)
    if not isinstance(content, list):
        raise InputError(f"must be a list of objects, not {kind_of_value(content)}", file=path)
    for number, item in enumerate(content, start=1):
        yield _object(item, Row({}, f"{path}, item {number}"))


def _object(value: Any, row: Row) -> Row:
    if isinstance(value, str):
        return replace(row, values={"prompt": value})
    if not isinstance(value, dict):
        raise row.bad(f"must be a JSON object, not {kind_of_value(value)}")
    return replace(row, values=value)


def _txt_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        row = Row({"prompt": line.strip()}, str(path), number)
        if re.match(r"(Human|Assistant):", row.values["prompt"]):
            raise row.bad('looks like a dialogue, but every line of a .txt is one prompt; put each dialogue '
                          'into a JSONL line {"text": "..."}')  # fmt: skip
        yield row


def _tsv_rows(path: Path) -> Iterator[Row]:
    return _csv_rows(path, "\t")


def _csv_rows(path: Path, delimiter: str | None = None) -> Iterator[Row]:
    # Python's default of 131,072 characters is less than some dialogues; the limit is global, so it only ever grows.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    text = _read_text(path)
    first = text.partition("\n")[0]
    delimiter = delimiter or next((mark for mark in ",\t;" if mark in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
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
    """A whole UTF-8 text file, plain or compressed, line ends as they are."""
    raw = _read_bytes(path, MAX_TABLE_BYTES + 1)
    if len(raw) > MAX_TABLE_BYTES:
        raise InputError(f"larger than {MAX_TABLE_BYTES >> 30} GiB; convert it to JSONL", file=path)
    return decode_utf8(raw, path)


def _compression(path: Path) -> tuple[str, Any]:
    """The name of a file's compression, empty if there is none, and what opens it. InputError if nothing does."""
    try:
        with open(path, "rb") as file:
            head = file.read(6)
    except IsADirectoryError:
        more = "; charter export FOLDER --to trl --out F makes pairs of its votes" if (path / "judgments.jsonl").exists() else ""
        raise InputError(f"is a folder; give a file{more}", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from None
    name, opener = next(((name, opener) for magic, name, opener in MAGIC if head.startswith(magic)), ("", open))
    if path.suffix == ".gz" and not name:
        return "gzip", gzip.open
    if opener is None:
        raise InputError(f"a {name} archive; unpack it, or compress the file with gzip or zstd", file=path)
    return name, opener


def _read_bytes(path: Path, limit: int) -> bytes:
    """Up to ``limit`` bytes from the start of a file, decompressed."""
    name, opener = _compression(path)
    try:
        with opener(path, "rb") as file:
            return bytes(file.read(limit))
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if not name or getattr(error, "strerror", None):
            raise InputError(f"cannot be read ({getattr(error, 'strerror', None) or error})", file=path) from None
        raise InputError(f"broken {name} file ({error}); download or compress it again", file=path) from None
