"""Tables for other tools and for people, as CSV that reads back as what was written.

Texts are quoted and otherwise left byte for byte, also where they begin with = + - or @: a changed answer is no longer
the answer. Open such a file in a spreadsheet by importing its columns as text.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from charter.errors import InputError
from charter.reading.prompts import prompt_text
from charter.records import Pair, Prompt, clean_text
from charter.run.files import atomic_path

PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected", "weight", "margin", "principle", "group_id")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> int:
    """Write a UTF-8 CSV atomically; the number of rows. Texts are quoted, numbers not, None is an empty cell.

    InputError names row (from 1, without the header) and column where a text contains a NUL or a lone surrogate;
    ValueError where a row is not as long as ``columns``.
    """
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(columns)
        for count, row in enumerate(rows, start=1):
            for column, cell in zip(columns, row, strict=True):
                try:
                    clean_text(cell if isinstance(cell, str) else "")
                except ValueError as error:
                    raise InputError(str(error), file=f"{path}, row {count}", field=column) from None
            writer.writerow(row)
    return count


def export_sft(path: Path, rows: Iterable[tuple[Prompt, str]]) -> int:
    """Write prompts and the responses to train on, columns prompt and response; the number of rows.

    A prompt is its text where it is a single user turn, otherwise its messages as JSON.
    """
    return write_csv(path, ("prompt", "response"), ((prompt_text(prompt), response) for prompt, response in rows))


def export_preferences(path: Path, pairs: Iterable[Pair]) -> int:
    """Write pairs so that :func:`charter.reading.pairs.read_pairs` reads the same ones back; the number of rows.

    Of the prompt, the messages are kept (see :func:`export_sft`); its source, tags and split are not part of a pair.
    """
    rows = (
        (prompt_text(p.prompt), p.chosen, p.rejected, p.weight, p.margin, p.principle, p.group_id)
        for p in pairs
    )  # fmt: skip
    return write_csv(path, PREFERENCE_COLUMNS, rows)
