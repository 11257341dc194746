"""Published and exported feedback into a folder of prompts, responses and chained judgments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from charter.errors import InputError
from charter.reading.forms import LeftOut
from charter.reading.rows import Row, read_rows
from charter.records import RaterKind
from charter.votes.containers import dataset_folder_rows, sha256_of
from charter.votes.evidence import FILES, find_judgments, new_folder
from charter.votes.imports.dialogues import trees
from charter.votes.imports.formats import CONTAINERS, FORMATS, NAMES, RAW, Rater, recognise
from charter.votes.imports.votes import Part, Unique, Vote, records_of, unclean
from charter.votes.merging import merge_folders

Reader = Callable[[Part, Rater, Unique], Iterator[Vote | LeftOut]]


def import_feedback(
    source: Path, out: Path, format: str | None = None, *, rater: str | None = None, rater_kind: str | None = None
) -> dict[str, Any]:
    """Read a file of feedback into a new folder; what was read, written and left out.

    ``format`` is found from the first row when it is None. ``rater`` and ``rater_kind`` say who judged where the file does not.
    InputError names file, line and field, and then nothing is written.
    """
    if format is not None and format not in (*NAMES, *CONTAINERS):
        raise InputError(f"unknown format {format!r}; use --from with one of {', '.join(NAMES)}")
    if rater_kind is not None and rater_kind not in get_args(RaterKind):
        raise InputError(f"unknown rater kind {rater_kind!r}; use --rater-kind with one of {', '.join(get_args(RaterKind))}")
    if (format is None and find_judgments(source)) or format == RAW:
        counts = merge_folders([source], out)
        return {"format": RAW, "rows": counts["judgments"], **counts, "left_out": {}, "left_out_first": {}}
    rows = dataset_folder_rows(source) if source.is_dir() else read_rows(source)
    first = next(rows, None)
    if first is None:
        raise InputError("no row; give a file with at least one vote", file=source)
    if format is None or format in CONTAINERS:
        format = recognise(first)
    default = FORMATS[format].rater
    count = Counting(chain([first], rows))
    votes = _votes(count, format, Rater(rater or default.id, rater_kind or default.kind))  # type: ignore[arg-type]  # checked
    with new_folder(out) as folder:
        counts, left_out, places = _write_records(votes, folder, sha256_of(source))
        places = {reason: place.removeprefix(f"{source}, ") for reason, place in places.items()}
        if not counts["judgments"]:
            reasons = "; ".join(f"{n} x {reason}, first in {places[reason]}" for reason, n in sorted(left_out.items()))
            raise InputError(f"no usable judgment ({reasons})", file=source)
    return {"format": format, "rows": count.rows, **counts, "left_out": dict(sorted(left_out.items())), "left_out_first": places}


def _votes(rows: Iterable[Row], format: str, rater: Rater) -> Iterator[Vote | LeftOut]:
    """The votes of all rows. A row with a text that no stage can handle is left out, all of it."""
    module, _, function = FORMATS[format].reader.partition(":")
    read: Reader = getattr(import_module(f"charter.votes.imports.{module}"), function)
    ids = Unique()
    for row in trees(rows) if format == "oasst" else rows:
        try:
            votes = list(read(Part(row, row.values), rater, ids))
        except LeftOut as error:
            yield error
        except InputError:
            if (problem := unclean(row)) is None:
                raise
            yield problem
        else:
            yield from votes


class Counting:
    """The rows that pass, counted."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.waiting, self.rows = rows, 0

    def __iter__(self) -> Iterator[Row]:
        for row in self.waiting:
            self.rows += 1
            yield row


def _write_records(
    votes: Iterable[Vote | LeftOut], folder: Path, digest: str
) -> tuple[dict[str, int], Counter[str], dict[str, str]]:
    """Write votes as records one after another: how many of each kind, how many were left out for which reason, and the first
    place of each reason."""
    prompts: set[str] = set()
    responses: set[str] = set()
    left_out: Counter[str] = Counter()
    places: dict[str, str] = {}
    judgments, last = 0, ""
    files = [open(folder / name, "w", encoding="utf-8", newline="\n") for name in FILES]  # noqa: SIM115 - closed below
    try:
        for vote in votes:
            if isinstance(vote, LeftOut):
                left_out[vote.reason] += 1
                places.setdefault(vote.reason, vote.place)
                continue
            judgments += 1
            records, judgment = records_of(vote, number=judgments, file=digest, prev_hash=last)
            last = judgment.hash
            if vote.prompt.id not in prompts:
                prompts.add(vote.prompt.id)
                files[0].write(vote.prompt.model_dump_json() + "\n")
            for response in records:
                if response.id not in responses:
                    responses.add(response.id)
                    files[1].write(response.model_dump_json() + "\n")
            files[2].write(judgment.model_dump_json() + "\n")
    finally:
        for file in files:
            file.close()
    return {"prompts": len(prompts), "responses": len(responses), "judgments": judgments}, left_out, places
