"""Votes from files: our own judgments, or a table with a row for each comparison of two models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np

from charter.errors import InputError
from charter.raters.comparisons import Floats, Ints, Numbers, Votes, rater_names, votes_of
from charter.reading.rows import Row, is_nan, read_rows
from charter.records import Judgment, LabelSet, Prompt, RaterKind, Response, content_id
from charter.run.files import read_jsonl
from charter.votes.evidence import SETS, feedback_of
from charter.votes.judgments import check_chain
from charter.votes.winners import (
    BOTH_BAD,
    FIRST,
    GAMES,
    MODELS_A,
    MODELS_B,
    NO_VERDICT,
    RATER,
    SECOND,
    TIE,
    outcome_of,
    set_aside,
)

PROMPT = ("prompt_id", "question_id", "prompt", "instruction")
COUNTS = (("wins_a", FIRST), ("wins_b", SECOND), ("ties", TIE))
MOST_VOTES = 20_000_000
NOBODY = "unnamed"
FOR_ROLE = {role: f"on a set for {role}" for role in ("practice", "quiz", "gold", "repeat")}


def find(path: Path, name: str) -> Path:
    """The file itself, or ``name`` in a folder or in the feedback stage of a run. InputError if there is none."""
    if not path.is_dir():
        return path
    if (path / name).is_file():
        return path / name
    if (place := feedback_of(path) / name).is_file():
        return place
    raise InputError(f"{name} is missing, here and in the folder feedback; give a file of votes", file=path)


def find_beside(name: str, option: str, chosen: Path | None, folders: Sequence[Path]) -> Path:
    """The file ``name``: as ``chosen`` by the user, else in the first of ``folders`` that has it. InputError with the option that
    names it where none has."""
    if chosen is not None:
        return find(chosen, name)
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{name} is missing here and in the run; name it with {option}", file=folders[0])


def text_files(file: Path, prompts: Path | None, responses: Path | None, *runs: Path) -> tuple[Path, Path]:
    """The files of prompts and of responses behind a file of judgments: those that the user chose, else from the folder of the
    judgments, then from its run or from ``runs``. InputError names the missing file."""
    folder = find(file, "judgments.jsonl").parent
    places = [folder, folder.parent / "prompts", *(run / "prompts" for run in runs)]
    return (find_beside("prompts.jsonl", "--prompts", prompts, places),
            find_beside("responses.jsonl", "--responses", responses, [folder, *(run / "feedback" for run in runs)]))  # fmt: skip


def rated_texts(
    file: Path, prompts: Path | None, responses: Path | None, rated: Iterable[tuple[str, str]]
) -> tuple[dict[str, Prompt], dict[str, Response]]:
    """Prompts and responses by id, for ids (prompt, response) that were rated. InputError if a file or a text is missing."""
    prompt_file, response_file = text_files(file, prompts, responses)
    asked = {prompt.id: prompt for prompt in read_jsonl(prompt_file, Prompt)}
    answers = {response.id: response for response in read_jsonl(response_file, Response)}
    for prompt, response in rated:
        for name, known, place in ((prompt, asked, prompt_file), (response, answers, response_file)):
            if name not in known:
                raise InputError(f"{name!r} was rated and is missing; give the file with all texts", file=place)
    return asked, answers


def read_any_judgments(path: Path) -> list[Judgment]:
    """Judgments of a chained file, checked; those of a run, which are not chained, as they are."""
    judgments = list(read_jsonl(path, Judgment))
    if not judgments:
        raise InputError("no judgment in it; give a file of judgments or votes", file=path)
    return check_chain(judgments, path) if any(judgment.hash for judgment in judgments) else judgments


def read_votes(path: Path, responses: Path | None = None, *, models: bool = False, repeats: bool = False) -> Votes:
    """The votes of a file or folder: judgments, or a table (:func:`read_table`); which of the two is read from its first row.

    ``responses``: file or folder of the responses, which name the models; without it the one beside the judgments. With
    ``models`` it is an InputError if the model of a response is not known, otherwise that is −1. Where the sets of a label page
    stand beside the judgments, votes on other sets than work (practice, quiz, gold and, unless ``repeats``, repeat) are left
    out and counted in ``totals``, as in every export.
    """
    place = find(path, "judgments.jsonl")
    if not _holds_judgments(place):
        if responses is not None:
            raise InputError("is a table, which names its models itself; leave out --responses", file=place)
        return read_table(place)
    judgments, apart = work_alone(read_any_judgments(place), place.parent / SETS, ("repeat",) if repeats else ())
    beside = place.parent / "responses.jsonl"
    source = find(responses, "responses.jsonl") if responses is not None else beside if beside.is_file() else None
    if source is None:
        if models:
            raise InputError(
                "judgments name responses and not models; give --responses FILE (responses.jsonl is missing here)", file=place
            )
        return with_totals(votes_of(judgments), apart)
    known = {response.id: response.model for response in read_jsonl(source, Response)}
    missing = next((response for judgment in judgments for response in judgment.order if response not in known), None)
    if models and missing is not None:
        raise InputError(f"response {missing!r} of {place} is missing; give the file with all responses", file=source)
    return with_totals(votes_of(judgments, known), apart)


def work_alone(judgments: list[Judgment], sets: Path, also: Sequence[str]) -> tuple[list[Judgment], Counter[str]]:
    """The judgments on sets for work and on those of the roles ``also``; of the others how many there are for each reason."""
    if not sets.is_file():
        return judgments, Counter()
    roles = {task.id: task.role for task in read_jsonl(sets, LabelSet) if task.role not in ("work", *also)}
    apart = Counter(FOR_ROLE[roles[judgment.set_id]] for judgment in judgments if judgment.set_id in roles)
    return [judgment for judgment in judgments if judgment.set_id not in roles], apart


def with_totals(votes: Votes, totals: Mapping[str, int]) -> Votes:
    return replace(votes, totals={**votes.totals, **totals}) if totals else votes


def _holds_judgments(path: Path) -> bool:
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        return False
    row = next(read_rows(path), None)
    return row is not None and {"set_id", "order"} <= row.values.keys()


def read_table(path: Path) -> Votes:
    """Votes of a table (JSONL, JSON, CSV, Parquet), a row a comparison: ``model_a``, ``model_b`` and ``winner``.

    ``winner`` is a, b, tie or both bad, in the words of Chatbot Arena too, or the name of the model; an empty one gives no
    verdict. Instead the file may have the columns of :func:`charter.votes.winners.outcome_of`, or counts ``wins_a``, ``wins_b``,
    ``ties``, which are as many votes. Optional: a prompt (``prompt_id``, ``question_id``, ``prompt`` or ``instruction``) and a
    rater (``rater_id``, ``rater``, ``labeler``, ``annotator`` or ``judge``), with ``rater_kind`` and ``seconds``; and ``turn``: a
    model's answers to two turns of a prompt are two responses. Model a is taken to have stood first. "Both bad" is an F for both
    and no pair. InputError names file, line and field.
    """
    return votes_of_rows(read_rows(path), path)


@dataclass
class _Table:
    """The names in a table, and of each row (a, b, outcome, prompt, rater, place, seconds, count), names as numbers. ``raters``:
    (name, kind). ``places``: (prompt, turn), what the two models answered. ``kinds``: of each name, for rows that give none."""

    models: Numbers = field(default_factory=Numbers)
    prompts: Numbers = field(default_factory=Numbers)
    raters: Numbers = field(default_factory=Numbers)
    places: Numbers = field(default_factory=Numbers)
    kinds: dict[str, str] = field(default_factory=dict)
    rows: list[tuple[int, int, int, int, int, int, float, float]] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)
    by_prompt: bool = False
    counts: bool = False


def votes_of_rows(rows: Iterable[Row], path: Path) -> Votes:
    """The votes of the rows of a table; see :func:`read_table`."""
    table = _Table()
    columns: tuple[str | None, ...] = ()
    for number, row in enumerate(rows):
        columns = columns or tuple(
            next((name for name in options if name in row.values), None) for options in (MODELS_A, MODELS_B, PROMPT, RATER)
        )
        _add_row(table, row, number, columns)
    if not table.rows:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in table.totals.items())
        raise InputError("no comparison" + (f" ({reasons})" if reasons else "; give at least one row"), file=path)
    if sum(row[7] for row in table.rows) > MOST_VOTES:
        raise InputError(f"more than {MOST_VOTES:,} votes; give a sample of them", file=path)
    columns_of = np.array(table.rows, dtype=np.float64).T
    columns_of = np.repeat(columns_of, columns_of[7].astype(np.int64), axis=1)
    a, b, outcome, prompt, rater, place = columns_of[:6].astype(np.int64)
    table.totals["judgments"] = len(a)
    return _as_votes(table, a, b, outcome, prompt, rater, place, columns_of[6])


def _add_row(table: _Table, row: Row, number: int, columns: tuple[str | None, ...]) -> None:
    a_field, b_field, prompt_field, rater_field = columns
    if a_field is None or b_field is None:
        names = ", ".join(map(str, row.values)) or "none"
        raise row.bad(
            "no models; give columns model_a, model_b and winner, or our judgments; votes on answers become judgments by "
            f"charter import FILE --out DIR (columns here: {names})"
        )
    for field_of_first, names_of_field in ((prompt_field, PROMPT), (rater_field, RATER)):
        late = next((name for name in names_of_field if row.values.get(name) not in (None, "")), None)
        if field_of_first is None and late is not None:
            raise row.bad("the first row has no such column; give it to every row, or leave it out", late)
    a, b = _name(row, a_field), _name(row, b_field)
    counted = _counts(row)
    table.by_prompt = prompt_field is not None
    table.counts = table.counts or "wins_a" in row.values
    if reason := "same model" if a == b and counted else set_aside(row) or (None if counted else NO_VERDICT):
        table.totals[reason] += 1
        return
    prompt = table.prompts(_prompt_name(row, prompt_field)) if prompt_field else number
    name = _name(row, rater_field) if rater_field else NOBODY
    kind = _kind(row, table.kinds.get(name))
    table.kinds.setdefault(name, kind)
    rater, place = table.raters((name, kind)), table.places((prompt, _turn(row)))
    seconds = _number(row, "seconds")
    models = table.models(a), table.models(b)
    table.rows += [(*models, outcome, prompt, rater, place, seconds, count) for outcome, count in counted]


def _as_votes(
    table: _Table, a: Ints, b: Ints, outcome: Ints, prompt: Ints, rater: Ints, asked: Ints, seconds: Floats
) -> Votes:  # fmt: skip
    """The arrays of a table as votes. The response of a model to a prompt, or to a turn of it, is one response; without prompts,
    the model is."""
    prompts = table.prompts.names
    if not table.by_prompt:  # every vote is on a prompt of its own
        prompts, prompt = tuple(f"row {row + 1}" for row in prompt.tolist()), np.arange(len(prompt))
    n = len(table.models.names)
    order = sorted(range(n), key=table.models.names.__getitem__)
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    models = tuple(table.models.names[i] for i in order)
    a, b = place[a], place[b]
    responses, model_of = models, np.arange(n)
    if table.by_prompt:
        keys, index = np.unique(np.concatenate([asked * n + a, asked * n + b]), return_inverse=True)
        a, b = index[: len(a)], index[len(a) :]
        model_of = keys % n
        names = [f"{prompts[number]}{turn and ', turn '}{turn}" for number, turn in table.places.names]
        responses = tuple(f"{names[key // n]}: {models[key % n]}" for key in keys.tolist())
    ballots = np.arange(len(a))
    bad = outcome == BOTH_BAD
    turned = a > b
    x, y = np.where(turned, b, a), np.where(turned, a, b)
    side = np.where(turned, -1, 1)
    ranks = np.stack([np.where(bad, 0, np.where(outcome == SECOND, 2, 1)), np.where(bad, 0, np.where(outcome == FIRST, 2, 1))],
                     axis=1)  # fmt: skip
    pairs = np.flatnonzero(~bad)
    return Votes(
        raters=rater_names(table.raters.names), kinds=tuple(kind for _, kind in table.raters.names), prompts=prompts,
        responses=responses, models=models, model_of=model_of, rater=rater, prompt=prompt,
        question=np.zeros(len(a), dtype=np.int64), seconds=seconds, strength=np.zeros(len(a), dtype=np.int64),
        size=np.full(len(a), 2), ranked_in=np.repeat(ballots, 2), ranked=np.stack([a, b], axis=1).ravel(), rank=ranks.ravel(),
        x=x[pairs], y=y[pairs], outcome=(outcome * side)[pairs], shown=side[pairs], ballot=ballots[pairs],
        totals={**table.totals, "both bad": int(bad.sum())}, in_order=not table.counts,
    )  # fmt: skip


def _name(row: Row, field: str) -> str:
    value = row.values.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return " ".join(value)  # MT-bench: a judge and its prompt
    name = row.text(field)
    if not name.strip():
        raise row.bad("is empty", field)
    return name


def _prompt_name(row: Row, field: str) -> str:
    value = row.values.get(field)
    if value is None or value == "" or is_nan(value):
        raise row.bad("is empty; give every row its prompt, or leave the column out", field)
    return value if isinstance(value, str) else content_id(value)


def _turn(row: Row) -> str:
    """The turn of a dialogue that was judged; "" for a row without one."""
    value = row.values.get("turn")
    return "" if value is None or is_nan(value) else str(value).removesuffix(".0")


def _kind(row: Row, known: str | None) -> str:
    """The kind of a row's rater; where the row gives none, the one that is ``known`` of the name."""
    kind = row.optional("rater_kind") or known or ("judge" if {GAMES[0], "preference"} & row.values.keys() else "human")
    if kind not in get_args(RaterKind):
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


def _counts(row: Row) -> list[tuple[int, float]]:
    """(outcome, how often) of a row, empty if it has no verdict."""
    if not {"wins_a", "wins_b"} <= row.values.keys() or "winner" in row.values:
        outcome = outcome_of(row)
        return [] if outcome is None else [(outcome, 1.0)]
    counts = [(outcome, _number(row, name), name) for name, outcome in COUNTS]
    if broken := next((name for _, count, name in counts if count % 1 > 0), None):
        raise row.bad(f"is {row.values[broken]!r}; give a whole number of votes", broken)
    return [(outcome, count) for outcome, count, _ in counts if count > 0]
