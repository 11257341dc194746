"""Logs of inspect-ai: the ``.eval`` archive, also with zstandard members as its newer releases write it, and the JSON log."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from charter.comparing.formats import with_directions
from charter.comparing.results import Item, Results, as_score, cell_value, gather, id_of, look_up
from charter.errors import InputError

KIND = "inspect-ai log"
ZSTD = 93
MAX_MEMBER_BYTES = 2**30
MAX_QUESTION_CHARS = 500  # summaries cut longer texts
LETTERS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0, "yes": 1.0, "no": 0.0}
"""Grades as inspect-ai's own ``value_to_float`` counts them; N (no answer) counts as wrong there."""


def read_eval(path: Path, cluster: str | None) -> Results:
    """The log in a ``.eval`` archive. InputError if the file is not such an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            start = next((name for name in ("header.json", "_journal/start.json") if name in names), None)
            if start is None:
                raise InputError("a zip archive, but not a log of inspect-ai (no header.json in it)", file=path)
            header = member(archive, start, path)
            parts = sorted(name for name in names if name.startswith("_journal/summaries/"))
            if "summaries.json" in names:
                samples = member(archive, "summaries.json", path)
            elif parts:
                samples = [sample for part in parts for sample in listed(member(archive, part, path), part, path)]
            else:
                rows = sorted(name for name in names if name.startswith("samples/"))
                samples = [member(archive, name, path) for name in rows]
    except zipfile.BadZipFile as error:
        raise InputError(f"broken archive ({error}); copy it again", file=path) from None
    return log_results(path, header, samples, cluster)


def member(archive: zipfile.ZipFile, name: str, path: Path) -> Any:
    """The JSON document of one member."""
    place = f"{path}, {name}"
    info = archive.getinfo(name)
    if info.file_size > MAX_MEMBER_BYTES:
        raise InputError(f"larger than {MAX_MEMBER_BYTES >> 30} GiB; convert the log to JSON lines", file=place)
    try:
        raw = zstd_bytes(archive, info) if info.compress_type == ZSTD else archive.read(name)
        return json.loads(raw)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise InputError(f"cannot be unpacked ({error}); copy the log again", file=place) from None
    except (ValueError, RecursionError):
        raise InputError("not valid JSON; copy the log again", file=place) from None


def zstd_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member that zipfile cannot unpack before Python 3.14: its local header has 30 bytes, then name and extra field."""
    import pyarrow

    file = archive.fp
    assert file is not None
    file.seek(info.header_offset)
    local = file.read(30)
    if len(local) < 30:
        raise EOFError("the archive ends early")
    file.seek(int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"), 1)
    packed = pyarrow.BufferReader(file.read(info.compress_size))
    with pyarrow.CompressedInputStream(packed, "zstd") as stream:
        return bytes(stream.read(MAX_MEMBER_BYTES))


def listed(value: Any, what: str, path: Path) -> list[Any]:
    """The value, which must be a list."""
    if not isinstance(value, list):
        raise InputError("must be a list of samples", file=f"{path}, {what}")
    return value


def log_results(path: Path, log: Any, samples: Any, cluster: str | None) -> Results:
    """The scores of a log: ``log`` is its header, ``samples`` its samples or their summaries."""
    run = log.get("eval") if isinstance(log, Mapping) else None
    if not isinstance(run, Mapping):
        raise InputError("a log of inspect-ai without 'eval'; is it whole?", file=path)
    if not isinstance(samples, list) or not samples:
        raise InputError("the log has no samples; inspect-ai writes them with log_samples=True", file=path, field="samples")
    results = Results(str(path), KIND, run.get("model") if isinstance(run.get("model"), str) else None)
    if log.get("status") not in (None, "success"):
        results.notes.append(f"the log's status is {log['status']}, with {len(samples)} samples")
    task = str(run.get("task") or "")
    items = (sample_item(sample, number, path, task, cluster) for number, sample in enumerate(samples, start=1))
    return with_directions(gather(results, items))


def sample_item(sample: Any, number: int, path: Path, task: str, cluster: str | None) -> Item:
    """One sample as item; a sample that ended with an error has no scores."""
    place: dict[str, Any] = {"file": f"{path}, sample {number}"}
    if not isinstance(sample, Mapping):
        raise InputError("must be an object", **place)
    id = id_of(sample.get("id"), {**place, "field": "id"})
    epoch = sample.get("epoch", 1)
    if isinstance(epoch, bool) or not isinstance(epoch, int):
        raise InputError("must be a whole number", **place, field="epoch")
    scores = sample.get("scores") or {}
    if not isinstance(scores, Mapping):
        raise InputError("must be an object with a score per scorer", **place, field="scores")
    values = dict(pair for name, score in scores.items() for pair in score_values(name, score, place))
    return Item(
        id, values, epoch, f"{task}: {question_of(sample.get('input'))}", look_up(sample, cluster, place) if cluster else None
    )


def question_of(messages: Any) -> str:
    """The start of a sample's input as text: of messages the words alone, since every run gives messages new ids, and summaries
    cut long texts and leave out images."""
    if isinstance(messages, str):
        return messages[:MAX_QUESTION_CHARS]
    parts = [part for message in messages or [] if isinstance(message, Mapping) for part in parts_of(message.get("content"))]
    return "\n".join(parts)[:MAX_QUESTION_CHARS]


def parts_of(content: Any) -> list[str]:
    """The texts of a message's content: itself, or its parts of type text but the marks that stand for images."""
    if isinstance(content, str):
        return [content]
    parts = [part for part in content or [] if isinstance(part, Mapping) and part.get("type") == "text"]
    return [str(part.get("text")) for part in parts if not re.fullmatch(r"\([A-Z][a-z]+\)", str(part.get("text")))]


def score_values(name: str, score: Any, place: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """(metric, score) of one scorer: one, or one for each key of its value."""
    value = score.get("value") if isinstance(score, Mapping) else score
    parts: Sequence[tuple[str, Any]] = [(name, value)]
    if isinstance(value, Mapping):
        parts = [(f"{name}.{key}", part) for key, part in value.items()]
    elif isinstance(value, list):
        parts = [(f"{name}.{index}", part) for index, part in enumerate(value)]
    for key, part in parts:
        yield key, graded(part, {**place, "field": key})


def graded(value: Any, place: Mapping[str, Any]) -> float | None:
    """A grade as number; None if it is a word that stands for no number."""
    if isinstance(value, str):
        value = LETTERS.get(value, LETTERS.get(value.lower(), cell_value(value)))
        if isinstance(value, str):
            return None
    return as_score(value, place)
