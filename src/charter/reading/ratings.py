"""Ratings of single responses from files: a prompt, a response, a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from charter.reading.forms import read_usable, usual_columns
from charter.reading.pairs import SPOKEN, answer_text, number, prompt_column
from charter.reading.rows import Row
from charter.records import Prompt, Rating, content_id


@dataclass(frozen=True)
class RatingFile:
    """The ratings of a file to use, how many rows it has, and how many of them were left out for which reason."""

    ratings: list[Rating]
    n_rows: int
    excluded: dict[str, int]


def read_ratings(path: Path) -> RatingFile:
    """Read ratings from JSONL, JSON, CSV, TSV (these also compressed) or Parquet: columns ``prompt`` (text, transcript, messages,
    or our own Prompt), ``response`` and ``score``; ``group_id`` by default the id of the first user turn, so that dialogues with
    the same opening stay together. Rows are left out and counted where the prompt ends with the assistant and where a part of
    the row is not rendered. InputError names file, line, field."""
    return RatingFile(*read_usable(path, row_rating, "rating"))


def row_rating(row: Row) -> Rating | str:
    """The rating of a row, or the reason to leave it out, which may also be raised as LeftOut."""
    row = usual_columns(row)
    if row.values.get("prompt") in (None, ""):
        raise row.bad("missing; a rating needs prompt, response and score", "prompt")
    prompt = prompt_column(row)
    score = number(row, "score")
    if score is None:
        raise row.bad("missing; a rating needs prompt, response and score", "score")
    if prompt is None:
        return SPOKEN
    opening = next((message for message in prompt.messages if message.role == "user"), prompt.messages[0])
    group = row.optional("group_id") or Prompt.ask(opening.content).id
    return Rating(prompt=prompt, response=answer_text(row, "response", prompt), score=score, group_id=group)


def split_ratings(ratings: Sequence[Rating], *, test_fraction: float, seed: int) -> tuple[list[Rating], list[Rating]]:
    """(train, test), both in the given order, with ``test_fraction`` of the groups (rounded) in test; which ones follows from a
    hash of group and seed. The ratings of one group are never on both sides."""
    groups = sorted({rating.group_id for rating in ratings}, key=lambda group: content_id(seed, group))
    in_test = set(groups[: round(len(groups) * test_fraction)])
    return [r for r in ratings if r.group_id not in in_test], [r for r in ratings if r.group_id in in_test]
