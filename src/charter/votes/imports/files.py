"""Published and exported feedback into a folder of prompts, responses and chained judgments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from charter.errors import InputError
from charter.reading.rows import Row, read_rows
from charter.records import RaterKind
from charter.votes.containers import dataset_folder_rows, sha256_of
from charter.votes.evidence import FILES, find_judgments, new_folder
from charter.votes.imports.arena import read_arena
from charter.votes.imports.dialogues import read_open_assistant, read_red_team
from charter.votes.imports.tables import read_grouped, read_label_rows, read_pair_rows
from charter.votes.imports.tools import read_argilla, read_label_studio, read_ultrafeedback
from charter.votes.imports.votes import Rater, Vote, records_of
from charter.votes.merging import merge_folders

Reader = Callable[[Iterable[Row], Rater], Iterator[Vote | str]]

READERS: dict[str, tuple[Reader, Rater]] = {
    "trl": (read_pair_rows, Rater("unknown", "human")),
    "hh": (read_pair_rows, Rater("hh-crowdworkers", "human")),
    "hh-red-team": (read_red_team, Rater("hh-red-team", "human")),
    "unpaired": (read_label_rows, Rater("unknown", "human")),
    "grouped": (read_grouped, Rater("unknown", "human")),
    "oasst": (read_open_assistant, Rater("oasst-volunteers", "human")),
    "ultrafeedback": (read_ultrafeedback, Rater("gpt-4", "judge")),
    "label-studio": (read_label_studio, Rater("label-studio", "human")),
    "argilla": (read_argilla, Rater("argilla", "human")),
    "arena": (read_arena, Rater("arena-users", "human")),
}
"""Formats by name, each with who judged where the file does not say."""
RAW = "raw"
FORMATS = (*READERS, RAW)
# Names of exports that differ in the container or the form of their cells and not in what they hold.
CONTAINERS = ("trl-conversational", "unpaired-conversational", "csv", "parquet", "datasets")


def import_feedback(
    source: Path,
    out: Path,
    format: str | None = None,
    *,
    rater: str | None = None,
    rater_kind: str | None = None,
) -> dict[str, Any]:
    """Read a file of feedback into a new folder; what was read, written and left out.

    ``format`` is found from the first row when it is None. ``rater`` and ``rater_kind`` say who judged where the file does not.
    InputError names file, line and field, and then nothing is written.
    """
    if format is not None and format not in (*FORMATS, *CONTAINERS):
        raise InputError(f"--from {format!r}: one of {', '.join(FORMATS)}")
    if rater_kind is not None and rater_kind not in get_args(RaterKind):
        raise InputError(f"--rater-kind {rater_kind!r}: one of {', '.join(get_args(RaterKind))}")
    if (format is None and find_judgments(source)) or format == RAW:
        counts = merge_folders([source], out)
        return {"format": RAW, "rows": counts["judgments"], **counts, "left_out": {}}
    rows = dataset_folder_rows(source) if source.is_dir() else read_rows(source)
    first = next(rows, None)
    if first is None:
        raise InputError("holds no row", file=source)
    if format is None or format in CONTAINERS:
        format = recognise(first)
    read, default = READERS[format]
    who = Rater(rater or default.id, rater_kind or default.kind)  # type: ignore[arg-type]  # checked above
    count = Counting(chain([first], rows))
    with new_folder(out) as folder:
        counts, left_out = _write_records(read(count, who), folder, sha256_of(source))
        if not counts["judgments"]:
            reasons = "; ".join(f"{n} x {reason}" for reason, n in sorted(left_out.items()))
            raise InputError(f"holds no usable judgment ({reasons or 'no row'})", file=source)
    return {"format": format, "rows": count.rows, **counts, "left_out": dict(sorted(left_out.items()))}


def recognise(row: Row) -> str:
    """The format whose columns a first row has. InputError where it is none."""
    columns = row.values.keys()
    signs: tuple[tuple[str, bool], ...] = (
        ("hh-red-team", {"transcript", "rating"} <= columns),
        ("oasst", "message_tree_id" in columns),
        ("ultrafeedback", {"instruction", "completions"} <= columns),
        ("label-studio", {"data", "annotations"} <= columns),
        ("argilla", "fields" in columns),
        ("arena", {"model_a", "model_b"} <= columns and bool({"winner", "winner_model_a"} & columns)),
        ("grouped", {"responses", "rankings"} <= columns),
        ("unpaired", {"completion", "label"} <= columns),
        ("trl", {"chosen", "rejected", "prompt"} <= columns),
        ("hh", {"chosen", "rejected"} <= columns),
    )
    for name, found in signs:
        if found:
            return name
    names = ", ".join(map(str, columns))[:200] or "none"
    raise row.bad(f"no known format has these columns ({names}); name it with --from, one of {', '.join(FORMATS)}")


class Counting:
    """The rows that pass, counted."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.left, self.rows = rows, 0

    def __iter__(self) -> Iterator[Row]:
        for row in self.left:
            self.rows += 1
            yield row


def _write_records(votes: Iterable[Vote | str], folder: Path, digest: str) -> tuple[dict[str, int], Counter[str]]:
    """Write votes as records one after another; how many of each kind, and how many were left out for which reason."""
    prompts: set[str] = set()
    responses: set[str] = set()
    left_out: Counter[str] = Counter()
    judgments, last = 0, ""
    files = [open(folder / name, "w", encoding="utf-8", newline="\n") for name in FILES]  # noqa: SIM115 - closed below
    try:
        for vote in votes:
            if isinstance(vote, str):
                left_out[vote] += 1
                continue
            judgments += 1
            found, judgment = records_of(vote, number=judgments, file=digest, prev_hash=last)
            last = judgment.hash
            if vote.prompt.id not in prompts:
                prompts.add(vote.prompt.id)
                files[0].write(vote.prompt.model_dump_json() + "\n")
            for response in found:
                if response.id not in responses:
                    responses.add(response.id)
                    files[1].write(response.model_dump_json() + "\n")
            files[2].write(judgment.model_dump_json() + "\n")
    finally:
        for file in files:
            file.close()
    return {"prompts": len(prompts), "responses": len(responses), "judgments": judgments}, left_out
