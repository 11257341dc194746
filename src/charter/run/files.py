"""Files as a run reads and writes them: JSON Lines in and out, whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from charter.errors import InputError
from charter.records import Record, content_id
from charter.run.team import team

R = TypeVar("R", bound=Record)
HEAD_CARD = "head.json"  # beside a reward head that was fitted for one rater or one group: whose it is
MAX_LINE_BYTES = 4 * 2**20  # a longer line is not a dialogue; a stray binary would fill the memory


def describe(error: ValidationError) -> tuple[str, str]:
    """The first problem of a pydantic error as (field, words)."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return field, first["msg"].removeprefix("Value error, ")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered non-empty lines of a UTF-8 text file, plain or gzipped. InputError if it is not one."""
    return ((number, text) for number, _, text in read_lines_with_offsets(path))


def read_lines_with_offsets(path: Path) -> Iterator[tuple[int, int, str]]:
    """The lines of :func:`read_lines`, each with its number and the byte (of the unzipped content) at which it begins."""
    import gzip
    import zlib

    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            number = end = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number, start, end = number + 1, end, end + len(raw)
                if len(raw) > MAX_LINE_BYTES:
                    raise InputError(f"line is longer than {MAX_LINE_BYTES >> 20} MiB; is this the right file?",
                                     file=path, line=number)  # fmt: skip
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(f"not UTF-8 (byte {error.start}); convert it with iconv", file=path, line=number
                                     ) from None  # fmt: skip
                if text.strip():
                    yield number, start, text.rstrip("\r\n")
    except FileNotFoundError:
        raise InputError("no such file", file=path) from None
    except IsADirectoryError:
        raise InputError("is a folder, not a file", file=path) from None
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise InputError(f"broken gzip file ({error}); download or compress it again", file=path) from None
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None
    except (EOFError, zlib.error) as error:
        raise InputError(f"broken gzip file ({error}); download or compress it again", file=path) from None


def read_jsonl(path: Path, kind: type[R]) -> Iterator[R]:
    """Records of one kind, in file order. InputError names file, line and field."""
    return (parse_record(line, kind, path, number) for number, line in read_lines(path))


def json_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a step log as they are, without a record's kind; none where the file is missing. Texts of models may have
    separators such as U+2028, which end a line for ``str.splitlines`` and not in JSON Lines."""
    return [json.loads(line) for _, line in read_lines(path)] if path.exists() else []


def parse_record(line: str | bytes, kind: type[R], path: Path, number: int | None = None) -> R:
    """The record that a line of a file holds. InputError names file, line and field."""
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        field, words = describe(error)
        raise InputError(f"not a {kind.__name__}: {words}", file=path, line=number, field=field or None) from None


def write_jsonl(path: Path, records: Iterable[Record]) -> int:
    """Write all records at once and atomically; the number written."""
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")
            count += 1
    return count


class atomic_path:
    """A temporary path beside ``path`` that replaces it when the block ends well and vanishes when it does not. Of several
    processes in one run the main one writes; what the others write goes nowhere."""

    def __init__(self, path: Path) -> None:
        self.path, self.writes = path, team().is_main
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp") if self.writes else Path(os.devnull)

    def __enter__(self) -> Path:
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if not self.writes:
            return
        try:
            if kind is None:
                with open(self.temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(self.temporary, self.path)
        except OSError as failed:
            failed.filename, failed.filename2 = str(self.path), None
            self.temporary.unlink(missing_ok=True)
            raise
        if kind is not None:
            self.temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(self.temporary), self.temporary):
            error.filename = str(self.path)  # the name that the user knows


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document atomically, with sorted keys so that equal content is equal bytes."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON document at ``path``, or None if there is none yet. InputError if it is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        raise InputError("not valid JSON; remove it to have it made again", file=path) from None


def folder_name(name: str) -> str:
    """A name from a file as the name of a folder: itself where that is safe, else made safe and told apart by a hash."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".")[:60]
    return safe if safe == name else f"{safe}-{content_id(name)[:8]}"
