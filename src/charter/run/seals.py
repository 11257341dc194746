"""Seals: the hashes of all that a stage leaves behind, so that a byte that changes later is named with its file and line.

The manifest of a finished stage lists every file with its SHA-256, but for a model's card, which follows from the report.
``lines.json`` beside it has eight hex digits for each line of each JSONL file. A seal shows that files changed; whoever rewrites
the seals too leaves no trace here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.records import content_id
from charter.run.files import read_json, write_json
from charter.run.hashes import CARD

LINES, MANIFEST = "lines.json", "manifest.json"
DIGITS = 8  # of the hash of a line, in hex


@dataclass(frozen=True)
class Difference:
    """A place where a stored file is not as it was, or where a figure is not what the stored rows give. ``file`` is relative to
    the run folder; ``field`` is a dotted key."""

    file: str
    words: str
    line: int | None = None
    field: str | None = None

    @property
    def text(self) -> str:
        """One line, with the place in front."""
        return str(InputError(self.words, file=self.file, line=self.line, field=self.field))


def visible_files(folder: Path) -> Iterator[Path]:
    """The files of a folder and of the folders in it, sorted; hidden ones left out."""
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith("."))


def sha256_of(file: Path) -> str:
    """SHA-256 of the content of a file, 64 hex digits."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def line_hashes(file: Path) -> str:
    """``DIGITS`` hex digits for each line of a file, one after the other."""
    with open(file, "rb") as opened:
        return "".join(hashlib.sha256(line).hexdigest()[:DIGITS] for line in opened)


def manifest_of(folder: Path, exports: Iterable[Path], description: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a finished stage: ``description``, then every file of its folder and its ``exports`` (tables that it wrote
    into the run folder) with SHA-256, then the hash of the manifest itself. Writes lines.json; all else is written."""
    jsonl = {name_in(file, folder): line_hashes(file) for file in visible_files(folder) if file.suffix == ".jsonl"}
    write_json(folder / LINES, jsonl)
    files = [file for file in (*visible_files(folder), *sorted(set(exports))) if file != folder / MANIFEST]
    whole = {**description, "files": {name_in(file, folder): sha256_of(file) for file in files}}
    return {**whole, "hash": hash_of_manifest(whole)}


def name_in(file: Path, folder: Path) -> str:
    """`model/config.json`, or `../sft.csv` for a file of the run folder."""
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else f"../{file.name}"


def hash_of_manifest(manifest: Mapping[str, Any]) -> str:
    """Hash of all that a manifest has but its hash, as it reads back from JSON."""
    return content_id(json.loads(json.dumps({key: value for key, value in manifest.items() if key != "hash"})))


def broken_seals(run: Path, stage: str, manifest: Mapping[str, Any]) -> Iterator[Difference]:
    """The files of a stage that are missing, changed or not in its manifest, and a manifest that was changed."""
    folder, files = run / stage, manifest["files"]
    if not isinstance(files, Mapping) or manifest.get("hash") != hash_of_manifest(manifest):
        yield Difference(f"{stage}/{MANIFEST}", "the manifest was changed: its hash is not that of its fields", field="hash")
    if not isinstance(files, Mapping):
        return
    for name, digest in files.items():
        file, shown = folder / name, f"{stage}/{name}" if not name.startswith("../") else name[3:]
        if not file.is_file():
            yield Difference(shown, "missing; the manifest of the stage lists it")
        elif sha256_of(file) != digest:
            line = changed_line(folder, name)
            yield Difference(shown, "changed since the stage wrote it: its SHA-256 is not that of the manifest", line=line)
    for file in visible_files(folder):
        if (name := name_in(file, folder)) not in files and name != MANIFEST and file.name != CARD:
            yield Difference(f"{stage}/{name}", "not in the manifest of the stage; remove it or move it out of the run folder")


def changed_line(folder: Path, name: str) -> int | None:
    """The first line of a JSONL file that is not as lines.json has it; None if that cannot be told."""
    try:
        sealed = (read_json(folder / LINES) or {}).get(name)
    except (InputError, AttributeError):
        return None
    if not isinstance(sealed, str):
        return None
    current, step = line_hashes(folder / name), DIGITS
    ends = range(0, max(len(current), len(sealed)), step)
    return next((i // step + 1 for i in ends if current[i : i + step] != sealed[i : i + step]), None)
