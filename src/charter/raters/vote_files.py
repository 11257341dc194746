"""Votes from files: our own judgments, or a table with a row for each comparison of two models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from charter.errors import InputError
from charter.raters.comparisons import Numbers, Votes, votes_of
from charter.reading.rows import Row, read_rows
from charter.records import Judgment, Response, content_id
from charter.run.files import read_jsonl
from charter.votes.judgments import read_judgments

A, B = ("model_a", "model_1"), ("model_b", "model_2")
PROMPT = ("prompt_id", "question_id", "prompt")
RATER = ("rater_id", "rater", "labeler", "annotator", "judge")
WORDS = {
    "a": 1, "modela": 1, "left": 1, "leftvote": 1, "first": 1, "1": 1, "model1": 1,
    "b": -1, "modelb": -1, "right": -1, "rightvote": -1, "second": -1, "2": -1, "model2": -1,
    "tie": 0, "tievote": 0, "draw": 0, "equal": 0, "same": 0,
}  # fmt: skip
BOTH_BAD = {"bothbad", "tiebothbad", "bothbadvote", "neither"}
ONE_HOT = (("winner_model_a", 1), ("winner_model_b", -1), ("winner_tie", 0))
COUNTS = (("wins_a", 1), ("wins_b", -1), ("ties", 0))
NOBODY = "unnamed"


def find(path: Path, name: str) -> Path:
    """The file itself, or ``name`` in a folder or in the feedback stage of a run. InputError where there is none."""
    if not path.is_dir():
        return path
    for place in (path / name, path / "feedback" / name):
        if place.is_file():
            return place
    raise InputError(f"holds no {name}, nor does its folder feedback", file=path)


def read_any_judgments(path: Path) -> list[Judgment]:
    """Judgments of a chained file, checked; those of a run, which are not chained, as they are."""
    first = next(read_jsonl(path, Judgment), None)
    if first is None:
        raise InputError("holds no judgment", file=path)
    if first.hash:
        return read_judgments(path)
    judgments = list(read_jsonl(path, Judgment))
    return read_judgments(path) if any(one.hash for one in judgments) else judgments


def read_votes(path: Path, responses: Path | None = None, *, models: bool = False) -> Votes:
    """The votes of a file or folder: judgments, or a table (:func:`read_table`); which of the two is read from its first row.

    ``responses``: file or folder of the responses, which name the models; without it the one beside the judgments. With
    ``models`` it is an InputError where the model of a response is not known, otherwise that is −1.
    """
    place = find(path, "judgments.jsonl")
    if not _holds_judgments(place):
        if responses is not None:
            raise InputError("is a table, which names its models itself; leave out --responses", file=place)
        return read_table(place)
    judgments = read_any_judgments(place)
    beside = place.parent / "responses.jsonl"
    source = find(responses, "responses.jsonl") if responses is not None else beside if beside.is_file() else None
    if source is None:
        if models:
            raise InputError(
                "judgments name responses and not models; give --responses FILE (there is no responses.jsonl beside)",
                file=place,
            )
        return votes_of(judgments)
    known = {one.id: one.model for one in read_jsonl(source, Response)}
    missing = next((one for judgment in judgments for one in judgment.order if one not in known), None)
    if models and missing is not None:
        raise InputError(f"does not hold response {missing!r}, which {place} judges; give the file with all of them", file=source)
    return votes_of(judgments, known)


def _holds_judgments(path: Path) -> bool:
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        return False
    row = next(read_rows(path), None)
    return row is not None and {"set_id", "order"} <= row.values.keys()


def read_table(path: Path) -> Votes:
    """Votes of a table (JSONL, JSON, CSV, Parquet), a row a comparison: ``model_a``, ``model_b`` and ``winner``.

    ``winner`` is a, b, tie or both bad, in the words of Chatbot Arena too, or the name of the model; where it is empty there
    is no verdict. Instead there may be ``winner_model_a``, ``winner_model_b``, ``winner_tie`` (one of them 1), or counts
    ``wins_a``, ``wins_b``, ``ties``. Optional: a prompt (``prompt_id``, ``question_id`` or ``prompt``) and a rater
    (``rater_id``, ``rater``, ``labeler``, ``annotator`` or ``judge``), with ``rater_kind`` and ``seconds``. Model a is taken
    to have stood first. "Both bad" is an F for both and no pair. InputError names file, line and field.
    """
    return votes_of_rows(read_rows(path), path)


def votes_of_rows(rows: Iterable[Row], path: Path) -> Votes:
    models, prompts, raters = Numbers(), Numbers(), Numbers()
    kinds: dict[int, str] = {}
    said: Counter[str] = Counter()
    found: list[tuple[int, int, int, int, int, float, float]] = []  # a, b, outcome, prompt, rater, seconds, count
    names: tuple[str | None, ...] | None = None
    for number, row in enumerate(rows):
        if names is None:
            names = tuple(next((n for n in options if n in row.values), None) for options in (A, B, PROMPT, RATER))
        a_field, b_field, prompt_field, rater_field = names
        if a_field is None or b_field is None:
            columns = ", ".join(map(str, row.values)) or "none"
            raise row.bad(f"no models; give columns model_a, model_b and winner, or our judgments (columns here: {columns})")
        a, b = _name(row, a_field), _name(row, b_field)
        counted = _counts(row)
        if counted is None:
            said["no verdict"] += 1
            continue
        if a == b:
            said["same model"] += 1
            continue
        prompt = prompts(_prompt_name(row, prompt_field)) if prompt_field else number
        rater = raters(_name(row, rater_field) if rater_field else NOBODY)
        if rater not in kinds:
            kinds[rater] = _kind(row)
        seconds = _number(row, "seconds")
        found += [(models(a), models(b), outcome, prompt, rater, seconds, count) for outcome, count in counted]
    if not found:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in said.items())
        raise InputError("holds no comparison" + (f" ({reasons})" if reasons else ""), file=path)
    said["judgments"] = len(found)
    table = np.array(found, dtype=np.float64).T
    a_of, b_of, outcome, prompt_of, rater_of = table[:5].astype(np.int64)
    prompt_names = prompts.names
    if not prompt_names:  # every row is of a prompt of its own
        rows_kept, prompt_of = np.unique(prompt_of, return_inverse=True)
        prompt_names = tuple(f"row {i + 1}" for i in rows_kept)
    by_prompt = names is not None and names[2] is not None
    return _as_votes(models.names, prompt_names, raters.names, tuple(kinds[i] for i in range(len(raters.names))), a_of, b_of,
                     outcome, prompt_of, rater_of, table[5], table[6], said, by_prompt=by_prompt)  # fmt: skip


BOTH_FAILED = 2  # an outcome of its own while a table is read


def _as_votes(
    models: tuple[str, ...], prompts: tuple[str, ...], raters: tuple[str, ...], kinds: tuple[str, ...], a: Any, b: Any,
    outcome: Any, prompt: Any, rater: Any, seconds: Any, count: Any, said: Mapping[str, int], *, by_prompt: bool,
) -> Votes:  # fmt: skip
    """Arrays of a table as votes. The response of a model to a prompt is one response; without prompts, the model is."""
    n = len(models)
    order = sorted(range(n), key=models.__getitem__)
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    models = tuple(models[i] for i in order)
    a, b = place[a], place[b]
    responses, model_of = models, np.arange(n)
    if by_prompt:
        keys, index = np.unique(np.concatenate([prompt * n + a, prompt * n + b]), return_inverse=True)
        a, b = index[: len(a)], index[len(a) :]
        model_of = keys % n
        responses = tuple(f"{prompts[key // n]}: {models[key % n]}" for key in keys.tolist())
    ballots = np.arange(len(a))
    bad = outcome == BOTH_FAILED
    turned = a > b
    x, y = np.where(turned, b, a), np.where(turned, a, b)
    side = np.where(turned, -1, 1)
    ranks = np.stack([np.where(bad, 0, np.where(outcome == -1, 2, 1)), np.where(bad, 0, np.where(outcome == 1, 2, 1))], axis=1)
    pairs = np.flatnonzero(~bad)
    return Votes(
        raters, kinds, prompts, responses, models, model_of, rater, prompt, np.zeros(len(a), dtype=np.int64), seconds,
        np.zeros(len(a), dtype=np.int64), np.full(len(a), 2), np.repeat(ballots, 2), np.stack([a, b], axis=1).ravel(),
        ranks.ravel(), x[pairs], y[pairs], (outcome * side)[pairs], side[pairs], ballots[pairs], count[pairs],
        {**said, "both bad": int(bad.sum())},
    )  # fmt: skip


def _name(row: Row, field: str) -> str:
    value = row.values.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    name = row.text(field)
    if not name.strip():
        raise row.bad("is empty", field)
    return name


def _prompt_name(row: Row, field: str) -> str:
    value = row.values.get(field)
    if value is None or value == "":
        raise row.bad("is empty; give every row its prompt, or leave the column out", field)
    return value if isinstance(value, str) else content_id(value)


def _kind(row: Row) -> str:
    kind = row.optional("rater_kind") or "human"
    if kind not in ("human", "judge", "reward_model", "rule"):
        raise row.bad(f"is {kind!r}; write human, judge, reward_model or rule", "rater_kind")
    return kind


def _number(row: Row, field: str) -> float:
    value = row.values.get(field)
    if value in (None, ""):
        return float("nan")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise row.bad(f"is {value!r}; give a number of at least 0", field)
    return number


def _counts(row: Row) -> list[tuple[int, float]] | None:
    """(outcome, how often) of a row, None where it has no verdict."""
    values = row.values
    if "winner" in values:
        outcome = _outcome(row)
        return None if outcome is None else [(outcome, 1.0)]
    if "wins_a" in values and "wins_b" in values:
        counts = [(outcome, _number(row, field)) for field, outcome in COUNTS]
        return [(outcome, count) for outcome, count in counts if count > 0] or None
    if all(field in values for field, _ in ONE_HOT):
        marked = [outcome for field, outcome in ONE_HOT if _number(row, field) == 1]
        if len(marked) != 1:
            raise row.bad("one of winner_model_a, winner_model_b and winner_tie is 1, the others 0", ONE_HOT[0][0])
        return [(marked[0], 1.0)]
    raise row.bad("is missing; write a, b, tie or both bad (or give wins_a, wins_b and ties)", "winner")


def _outcome(row: Row) -> int | None:
    value = row.values["winner"]
    if value is None or value == "":
        return None
    if isinstance(value, str):
        for fields, outcome in ((A, 1), (B, -1)):
            if any(value == row.values.get(field) for field in fields):
                return outcome
    word = re.sub(r"[^a-z0-9]", "", str(value).casefold())
    if word in BOTH_BAD:
        return BOTH_FAILED
    if word not in WORDS:
        raise row.bad(f"is {value!r}; write a, b, tie, both bad or the name of one of the two models", "winner")
    return WORDS[word]
