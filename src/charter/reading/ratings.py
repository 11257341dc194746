"""Ratings of single responses from files: a prompt, a response, a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from charter.reading.forms import read_usable, usual_columns
from charter.reading.pairs import EMPTY_ANSWER, SPOKEN, answer_text, number, prompt_column
from charter.reading.rows import Row, is_missing
from charter.records import Prompt, Rating, content_id

ID = re.compile(r"[0-9a-f]{16}")
NO_SCORE = "the score is missing"
COLUMNS = "a rating needs prompt, response, and score or rating"


@dataclass(frozen=True)
class RatingFile:
    """The ratings of a file to use, how many rows it has, and how many of them were left out for which reason."""

    ratings: list[Rating]
    n_rows: int
    excluded: dict[str, int]


def read_ratings(path: Path) -> RatingFile:
    """Read ratings from JSONL, JSON, CSV, TSV (these also compressed) or Parquet: columns ``prompt`` (text, transcript,
    messages, or our own Prompt), ``response``, and ``score`` or ``rating``; ``group_id`` by default the id of the first user
    turn, so that dialogues with the same opening stay together. Rows are left out and counted where the score is missing (of
    two columns the score), where the prompt ends with the assistant, where the response is empty and where a part of the row
    is not rendered. InputError names file, line, field; ids in place of texts are one."""
    return RatingFile(*read_usable(path, row_rating, "rating"))


def row_rating(row: Row) -> Rating | str:
    """The rating of a row, or the reason to leave it out, which may also be raised as LeftOut."""
    row = usual_columns(row)
    column = "score" if "score" in row.values else "rating"  # of a file with both one alone is read: they may be two scales
    if column in row.values and (is_missing(row.values[column]) or row.values[column] == ""):
        return NO_SCORE
    score = number(row, column)
    if score is None and row.values.get("prompt") not in (None, ""):
        raise row.bad(f"missing; {COLUMNS}", "score")
    if "response" in row.values and is_missing(row.values["response"]):
        return EMPTY_ANSWER
    answered = answered_prompt(row)
    if isinstance(answered, str):
        return answered
    prompt, response, group = answered
    assert score is not None
    if not response.strip():
        return EMPTY_ANSWER
    return Rating(prompt=prompt, response=response, score=score, group_id=group)


def answered_prompt(row: Row) -> tuple[Prompt, str, str] | str:
    """Prompt, response and group of a row, or the reason to leave it out. InputError if the two are ids: nothing can be
    learned from these, or scored."""
    if row.values.get("prompt") in (None, ""):
        more = "; the file has ids and no texts: run charter ratings where prompts.jsonl and responses.jsonl lie"
        raise row.bad(f"missing; {COLUMNS}" + (more if {"prompt_id", "response_id"} <= row.values.keys() else ""), "prompt")
    prompt = prompt_column(row)
    if prompt is None:
        return SPOKEN
    response = answer_text(row, "response", prompt)
    if ID.fullmatch(prompt.last_turn) and ID.fullmatch(response):
        raise row.bad("prompt and response are ids and not texts; give prompts.jsonl and responses.jsonl to charter ratings "
                      "(--prompts, --responses), which then writes the texts", "response")  # fmt: skip
    opening = next((message for message in prompt.messages if message.role == "user"), prompt.messages[0])
    return prompt, response, row.optional("group_id") or Prompt.ask(opening.content).id


def split_ratings(ratings: Sequence[Rating], *, test_fraction: float, seed: int) -> tuple[list[Rating], list[Rating]]:
    """(train, test), both in the given order, with ``test_fraction`` of the groups (rounded) in test; which ones follows from a
    hash of group and seed. The ratings of one group are never on both sides."""
    groups = sorted({rating.group_id for rating in ratings}, key=lambda group: content_id(seed, group))
    in_test = set(groups[: round(len(groups) * test_fraction)])
    return [r for r in ratings if r.group_id not in in_test], [r for r in ratings if r.group_id in in_test]
