"""Hashes: seeds from names, and what files and models are identified by."""

from __future__ import annotations

import hashlib
from pathlib import Path

from charter.records import content_id

CONTENTS = {"contents": True}
"""Serialises settings for a fingerprint: what they name as the hash of its contents, not as a path."""
SMALL_FILE = 64 * 2**20  # larger files are identified by size and time: hashing 14 GB takes a minute


def derive_seed(*names: object) -> int:
    """A seed of 63 bits that is a pure function of names: (run seed, what for, which)."""
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


CARD = "README.md"
"""A model's card: it says what the model is, and decides no answer."""


def file_hash(path: Path) -> str:
    """SHA-256 of a file, or of every file of a folder with its name; 16 hex digits. Hidden files and a card do not count."""
    digest = hashlib.sha256()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        if not file.is_file() or file.name.startswith(".") or (file.name == CARD and file != path):
            continue
        digest.update(str(file.relative_to(path)).encode() + b"\0")
        status = file.stat()
        if status.st_size > SMALL_FILE:
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        else:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def model_hash(name: str) -> str:
    """What the answers of a model depend on: the files of its folder, or its name on a hub."""
    path = Path(name)
    return file_hash(path) if path.exists() else content_id(name)
