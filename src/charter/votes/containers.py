"""Files that hold the rows of a dataset: JSONL, CSV, Parquet, and the folder that ``datasets.load_from_disk`` opens.

All are written row by row, and equal rows are equal bytes. The folder is written without the ``datasets`` library: an Arrow
stream and two small JSON files beside it.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charter.errors import InputError
from charter.reading.rows import Row
from charter.run.files import atomic_path, write_json
from charter.votes.evidence import new_folder

if TYPE_CHECKING:
    import pyarrow

BATCH = 1000  # rows that are held at a time
ARROW_FILE = "data-00000-of-00001.arrow"

Cells = Mapping[str, Any]


def write_container(path: Path, columns: Mapping[str, str], rows: Iterable[Cells]) -> int:
    """Write rows to ``path`` by its suffix (.jsonl, .csv, .parquet, none for a folder), atomically; the number of rows."""
    if path.suffix == "":
        with new_folder(path) as folder:
            return _write_dataset_folder(folder, columns, rows)
    write: Callable[[Path, Mapping[str, str], Iterable[Cells]], int] = {
        ".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet,
    }[path.suffix]  # fmt: skip
    with atomic_path(path) as temporary:
        return write(temporary, columns, rows)


def _write_jsonl(path: Path, _: Mapping[str, str], rows: Iterable[Cells]) -> int:
    count = 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for count, row in enumerate(rows, start=1):  # noqa: B007 - the count is returned
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def _write_csv(path: Path, columns: Mapping[str, str], rows: Iterable[Cells]) -> int:
    count = 0
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(columns)
        for count, row in enumerate(rows, start=1):  # noqa: B007 - the count is returned
            writer.writerow([row[name] for name in columns])
    return count


def _write_parquet(path: Path, columns: Mapping[str, str], rows: Iterable[Cells]) -> int:
    import pyarrow.parquet

    schema = arrow_schema(columns)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        return _write_batches(writer, schema, rows)


def _write_batches(writer: Any, schema: pyarrow.Schema, rows: Iterable[Cells]) -> int:
    import pyarrow

    count, left = 0, iter(rows)
    while batch := [dict(row) for row in islice(left, BATCH)]:
        writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
        count += len(batch)
    return count


def _write_dataset_folder(folder: Path, columns: Mapping[str, str], rows: Iterable[Cells]) -> int:
    import pyarrow

    schema = arrow_schema(columns)
    with pyarrow.OSFile(str(folder / ARROW_FILE), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
        count = _write_batches(writer, schema, rows)
    # The library reads the columns' types from the Arrow file where `features` is missing.
    info = {"citation": "", "description": "", "features": None, "homepage": "", "license": ""}
    write_json(folder / "dataset_info.json", info)
    state: dict[str, Any] = {
        "_data_files": [{"filename": ARROW_FILE}], "_fingerprint": sha256_of(folder / ARROW_FILE)[:16], "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None,
    }  # fmt: skip
    write_json(folder / "state.json", state)
    return count


def dataset_folder_rows(folder: Path) -> Iterator[Row]:
    """The rows of a folder that ``datasets`` saved. InputError where its state names a file outside of it, or one is broken."""
    import pyarrow

    state = folder / "state.json"
    try:
        names = [str(entry["filename"]) for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        raise InputError("does not name the data files of a saved dataset", file=state, field="_data_files") from None
    number = 0
    for name in names:
        if "/" in name or "\\" in name or name.startswith("."):
            raise InputError(f"names {name!r}; a data file lies in the folder itself", file=state, field="_data_files")
        try:
            with pyarrow.memory_map(str(folder / name)) as file, pyarrow.ipc.open_stream(file) as stream:
                for batch in stream:
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(values, f"{folder / name}, row {number}")
        except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise InputError(f"not a valid Arrow file ({str(error).splitlines()[0]})", file=folder / name) from None


def arrow_schema(columns: Mapping[str, str]) -> pyarrow.Schema:
    """The Arrow schema of a layout's columns."""
    import pyarrow

    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    types = {"text": pyarrow.string(), "float": pyarrow.float64(), "int": pyarrow.int64(), "bool": pyarrow.bool_(),
             "messages": pyarrow.list_(message)}  # fmt: skip
    return pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex; of a folder, over the names and hashes of its files."""
    if path.is_dir():
        lines = "".join(f"{sha256_of(file)}  {file.name}\n" for file in sorted(path.iterdir()))
        return hashlib.sha256(lines.encode()).hexdigest()
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
