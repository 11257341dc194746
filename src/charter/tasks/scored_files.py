"""The pairs or responses of a file with what a reward model scores them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.models.cut import Cut, answer_rows
from charter.models.load import pick_device
from charter.models.packing import Tokens
from charter.models.reward_trunk import load_reward_model, reward_folder
from charter.reading.forms import LeftOut, preferred_output, usual_columns
from charter.reading.pairs import equal_scores, number, row_pair
from charter.reading.ratings import answered_prompt
from charter.reading.rows import Row, read_rows
from charter.records import Pair, Prompt
from charter.run.files import write_text
from charter.statistics import clustered_share, spearman
from charter.tasks.own_files import TOKENS_PER_PASS
from charter.training.methods.reward_model import reward_scores
from charter.votes.exports import write_csv

PAIR_COLUMNS = ("reward_chosen", "reward_rejected")
RESPONSE_COLUMNS = ("reward",)


@dataclass(frozen=True)
class Item:
    """What is scored in a row: one answer or two, of which the first is the better by the row's label. ``truth``: +1, -1 where
    the label says that the second is better (`p` below 0.5), 0 for a tie, or the rating of a response where there is one."""

    prompt: Prompt
    answers: tuple[str, ...]
    group: str
    truth: float | None


@dataclass
class ScoredFile:
    """The rows of a file in its order, with None for the item of a row that was left out, and the reasons."""

    rows: list[Row] = field(default_factory=list)
    items: list[Item | None] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def score_file(file: Path, reward: Path, out: Path, *, limit: int, precision: str) -> dict[str, Any]:
    """Write the rows of ``file`` to ``out`` (.jsonl or .csv, whole or not at all) with their scores: `reward` of a response,
    `reward_chosen` and `reward_rejected` of a pair, each on mean 0 and deviation 1 of the responses that the reward model
    was trained on. Rows that cannot be scored keep their place and have no score. Returns the counts and, against what the rows
    say of themselves, the accuracy on pairs or Spearman's ρ with ratings.

    InputError if the file, the reward model or the suffix of ``out`` does not fit.
    """
    if out.suffix not in (".jsonl", ".csv"):
        raise InputError(f"unknown suffix {out.suffix!r}; name it .jsonl or .csv", file=out)
    folder = reward_folder(reward)
    read = read_file(file)
    pairs = any(item is not None and len(item.answers) == 2 for item in read.items)
    columns = PAIR_COLUMNS if pairs else RESPONSE_COLUMNS
    if clash := next((name for name in columns if name in read.rows[0].values), None):
        raise read.rows[0].bad("this column already exists; rename it, so that no score is lost", clash)
    trunk, scorers = load_reward_model(folder, device=pick_device("auto"), precision=precision)
    room = min(limit, trunk.room or limit)
    items = [item for item in read.items if item is not None]
    rows: list[Tokens] = [row for item in items for row in answer_rows(trunk.tokenizer, item.prompt.messages, item.answers, room)]
    scores = iter(reward_scores(trunk, scorers, rows, TOKENS_PER_PASS).tolist())
    scored = [None if item is None else [next(scores) for _ in item.answers] for item in read.items]
    write_rows(out, read.rows, columns, scored)
    return {
        "rows": len(read.rows), "scored": len(items), "kind": "pairs" if pairs else "responses", "left_out": dict(read.left_out),
        "cut": Cut.of(rows).figures, "model": str(folder), "out": str(out), **agreement(items, scored),
    }  # fmt: skip


def read_file(file: Path) -> ScoredFile:
    """What there is to score in a file: pairs where its first row has `chosen` and `rejected`, else responses. InputError if
    nothing is left."""
    read = ScoredFile()
    item_of = None
    for row in read_rows(file):
        if item_of is None:
            item_of = pair_item if {"chosen", "rejected", "output_1", "rejected_messages"} & row.values.keys() else response_item
        try:
            item = item_of(row)
        except LeftOut as error:
            item = error.reason
        read.rows.append(row)
        read.items.append(None if isinstance(item, str) else item)
        read.left_out.update([item] if isinstance(item, str) else [])
    if not any(read.items):
        reasons = "; ".join(f"{count} x {reason}" for reason, count in read.left_out.items())
        raise InputError(f"nothing to score ({reasons or 'no row'}); give prompt and response, or pairs", file=file)
    return read


def pair_item(row: Row) -> Item | str:
    """Both answers of a pair in the order of its columns, or the reason to leave the row out."""
    row = preferred_output(row)
    weight = number(row, "weight")
    p = number(row, "p") if weight is None else weight
    pair = row_pair(replace(row, values={key: value for key, value in row.values.items() if key not in ("p", "weight")}))
    if not isinstance(pair, Pair):
        return pair
    p = 0.5 if equal_scores(row) else 1.0 if p is None else p
    return Item(pair.prompt, (pair.chosen, pair.rejected), pair.group_id, float((p > 0.5) - (p < 0.5)))


def response_item(row: Row) -> Item | str:
    """The response of a row with its rating where it has one, or the reason to leave the row out."""
    row = usual_columns(row)
    if "response" not in row.values:
        names = ", ".join(map(str, row.values))
        raise row.bad(f"missing; name the columns prompt and response, or prompt, chosen and rejected (columns here: {names})",
                      "response")  # fmt: skip
    if "prompt" in row.values and row.values["prompt"] in (None, ""):
        return "the prompt is missing"
    answered = answered_prompt(row)
    if isinstance(answered, str):
        return answered
    prompt, response, group = answered
    rating = number(row, "score")
    return Item(prompt, (response,), group, number(row, "rating") if rating is None else rating)


def agreement(items: Sequence[Item], scored: Sequence[Sequence[float] | None]) -> dict[str, Any]:
    """How often the better answer of a pair scores higher, clustered by dialogue, where the label is not a tie; of responses
    Spearman's ρ with the ratings that there are. Empty without labels."""
    scores = [row for row in scored if row is not None]
    if len(items[0].answers) == 2:
        differences = [(a - b) * (item.truth or math.nan) for item, (a, b) in zip(items, scores, strict=True)]
        right = [None if math.isnan(d) else 0.5 if d == 0 else float(d > 0) for d in differences]
        share = clustered_share(right, [item.group for item in items])
        return {"accuracy": share.value, "ci": share.ci, "n": share.n, "ties": share.n_unscored}
    ratings = [item.truth for item in items]
    rated = sum(rating is not None for rating in ratings)
    return {"spearman": spearman([row[0] for row in scores], ratings), "n": rated} if rated else {}


def write_rows(out: Path, rows: Sequence[Row], columns: Sequence[str], scored: Sequence[Sequence[float] | None]) -> None:
    """The rows as they came, each with its scores, atomically."""
    nothing = [None] * len(columns)
    whole = [row.values | dict(zip(columns, scores or nothing, strict=True)) for row, scores in zip(rows, scored, strict=True)]
    if out.suffix == ".jsonl":
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in whole))
        return
    names = list(dict.fromkeys(name for row in whole for name in row))
    write_csv(out, names, ([cell_of(row.get(name)) for name in names] for row in whole))


def cell_of(value: Any) -> Any:
    """A value as a cell of CSV that Charter's readers take: lists and objects as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
