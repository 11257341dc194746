"""Ratings of single responses from files: a prompt, a response, a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from charter.errors import InputError
from charter.reading.pairs import SPOKEN, answer, number, prompt_column
from charter.reading.rows import read_rows
from charter.records import Prompt, Rating, content_id


@dataclass(frozen=True)
class RatingFile:
    """What a file held: the ratings to use, how many rows there were, and how many were left out for which reason."""

    ratings: list[Rating]
    n_rows: int
    excluded: dict[str, int]


def read_ratings(path: Path) -> RatingFile:
    """Read ratings from JSONL, JSON, CSV (these also gzipped) or Parquet: columns ``prompt`` (text, transcript, messages, or our
    own Prompt), ``response`` and ``score``; ``group_id`` by default the id of the first user turn, so that dialogues with the
    same opening stay together. A row whose prompt ends with the assistant is left out. InputError names file, line, field."""
    ratings = []
    excluded = n_rows = 0
    for row in read_rows(path):
        n_rows += 1
        if row.values.get("prompt") in (None, ""):
            raise row.bad("is missing; a rating has prompt, response and score", "prompt")
        prompt = prompt_column(row)
        score = number(row, "score")
        if score is None:
            raise row.bad("is missing; a rating has prompt, response and score", "score")
        if prompt is None:
            excluded += 1
            continue
        opening = next((message for message in prompt.messages if message.role == "user"), prompt.messages[0])
        group = row.optional("group_id") or Prompt.ask(opening.content).id
        ratings.append(Rating(prompt=prompt, response=answer(row, "response", prompt), score=score, group_id=group))
    if not ratings:
        raise InputError("holds no usable rating", file=path)
    return RatingFile(ratings, n_rows, {SPOKEN: excluded} if excluded else {})


def split_ratings(ratings: Sequence[Rating], *, test_fraction: float, seed: int) -> tuple[list[Rating], list[Rating]]:
    """(train, test), both in the given order, with ``test_fraction`` of the groups (rounded) in test; which ones follows from a
    hash of group and seed. The ratings of one group are never on both sides."""
    groups = sorted({rating.group_id for rating in ratings}, key=lambda group: content_id(seed, group))
    in_test = set(groups[: round(len(groups) * test_fraction)])
    return [r for r in ratings if r.group_id not in in_test], [r for r in ratings if r.group_id in in_test]
