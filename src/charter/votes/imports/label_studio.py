"""Exports of Label Studio (JSON, JSON_MIN, CSV): pairwise results, rankers, and choices such as A, B or Tie."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from charter.reading.forms import LeftOut
from charter.records import Rank
from charter.votes.imports.formats import PAIR_NAMES, Rater
from charter.votes.imports.votes import PROMPT_NAMES, Answer, Part, Unique, Vote, with_context
from charter.votes.winners import RANKS, worded

CANCELLED = "skipped by the annotator"
NOT_ANNOTATED = "a task without annotations"
NO_ANSWER = "an annotation without a comparison"
BUCKETS = "sorted into buckets, whose order the file does not say"
ABOUT_ONE = "a choice about one answer by itself"
UNKNOWN_CHOICE = "a choice that names neither answer, nor a tie, nor both bad"
ITEM_TEXTS = ("body", "text", "html", "title")
LINKS = re.compile(r"\b(the|is|are|answers|responses)\b")
FILLERS = re.compile(r"\b(the|is|are|better|best|wins|good|answer|response|output|option|model|about)\b")

FLAT = {"annotator", "annotation_id"}
FLAT_COLUMNS = FLAT | {"id", "created_at", "updated_at", "lead_time", "project", "agreement"}
LONGEST_CHOICE = 100  # characters

Compared = tuple[list[Answer], list[Rank | None]]


def read_task(row: Part, rater: Rater, ids: Unique) -> Iterator[Vote | LeftOut]:
    """A task with ``data`` and ``annotations``, an annotation with its ``task`` as a target storage receives it, or a row of
    JSON_MIN or CSV. Results are of type pairwise, ranker, or choices where an annotation has neither of the others."""
    if row.fields().keys() >= FLAT:
        row = _nested(row)
    elif "annotations" not in row.fields():
        row = Part(row.row, {**row["task"].fields(), "annotations": [row.value]})
    annotations = list(row["annotations"]) if row["annotations"].value else []
    if not annotations:
        yield row["annotations"].left_out(NOT_ANNOTATED)
    for annotation in annotations:
        ids.check(annotation["id"])
        if annotation["was_cancelled"].value is True:
            yield annotation.left_out(CANCELLED)
            continue
        results = list(annotation["result"])
        compared = [result for result in results if result["type"].value in ("pairwise", "ranker")]
        choices = [result for result in results if result["type"].value == "choices"]
        if not compared:
            compared = [result for result in choices if not _is_of_one(row["data"], result, choices)]
            yield from (result.left_out(ABOUT_ONE) for result in choices if result not in compared)
        if not compared and not choices:
            yield annotation.left_out(NO_ANSWER)
        for result in compared:
            try:
                yield _vote(row["data"], annotation, result, rater)
            except LeftOut as error:
                yield error


def _is_of_one(data: Part, result: Part, choices: list[Part]) -> bool:
    """Whether a choice is about one of two answers, as another one of the annotation is about the other; alone, it compares both,
    since Label Studio ties choices to one object."""
    names, about = _pair(data, None), {str(choice["to_name"].value) for choice in choices}
    return names is not None and about >= set(names) and result["to_name"].value in names


def _nested(row: Part) -> Part:
    """A row of JSON_MIN or CSV as a task with its annotation. Results stand among the columns of the task, so the two texts are
    those of a well-known pair such as answer1 and answer2. InputError where the row does not say what was compared."""
    columns = {name: _unpacked(value) for name, value in row.fields().items()}
    data = {name: value for name, value in columns.items() if name not in FLAT_COLUMNS}
    names = _pair(Part(row.row, data), None)
    results = [result for name in data if name not in PROMPT_NAMES for result in _results(data[name], names or ())]
    if len(results) > 1 or (names is None and not any(result["type"] == "ranker" for result in results)):
        raise row.bad("JSON_MIN and CSV do not say which columns were compared; export from Label Studio as JSON")
    seconds = columns.get("lead_time")
    if isinstance(seconds, str) and re.fullmatch(r"\d+(\.\d+)?", seconds):
        seconds = float(seconds)
    annotation = {"id": columns["annotation_id"], "completed_by": columns["annotator"], "lead_time": seconds, "result": results}
    return Part(row.row, {"data": data, "annotations": [annotation]})


def _unpacked(value: Any) -> Any:
    """The value of a cell; of a CSV, a list or an object is there as JSON."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _results(value: Any, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The results that a column of a flat export has; ``names`` are the compared columns."""
    if isinstance(value, list):
        return [
            {"type": kind, "value": entry} for entry in value if isinstance(entry, dict)
            for kind, key in (("pairwise", "selected"), ("ranker", "ranker")) if key in entry
        ]  # fmt: skip
    if not isinstance(value, str) or len(value) > LONGEST_CHOICE:
        return []
    choice = value in names or plainly_worded(value) is not None
    return [{"type": "choices", "value": {"choices": [value]}}] if choice else []


def plainly_worded(choice: str) -> int | None:
    """The outcome that a choice names in words, as it stands or without words such as "answer" and "is better"."""
    for words in (LINKS, FILLERS):
        if (outcome := worded(words.sub("", choice.casefold()), (), ())) is not None:
            return outcome
    return None


def _vote(data: Part, annotation: Part, result: Part, rater: Rater) -> Vote:
    kind = result["type"].value
    answers, ranks = (_ranked if kind == "ranker" else _selected if kind == "pairwise" else _chosen)(data, result)
    prompt_name = next((name for name in PROMPT_NAMES if data[name].value), None)
    if prompt_name is None:
        raise data.bad(f"the prompt is missing; name it one of {', '.join(PROMPT_NAMES)}")
    person = annotation["completed_by"]
    if isinstance(person.value, dict):
        person = person["email"] if person["email"].value else person["id"]
    name, seconds = person.name(), annotation["lead_time"].value
    return Vote(
        row=data.row,
        prompt=with_context(data, prompt_name).prompt("label-studio"),
        answers=tuple(answers),
        ranks=tuple(ranks),
        rater=Rater(f"annotator-{name}" if name.isdecimal() else name, "human") if name else rater,
        kind="rank" if kind == "ranker" else "pair",
        seconds=float(seconds) if isinstance(seconds, (int, float)) and math.isfinite(seconds) else None,
    )


def _selected(data: Part, result: Part) -> Compared:
    """A pairwise result: its two texts are the columns of ``data`` named in to_name, else a well-known pair such as answer1 and
    answer2."""
    selected = result["value"]["selected"]
    if selected.value in (None, ""):
        raise selected.left_out(NO_ANSWER)
    if selected.value not in ("left", "right"):
        raise selected.bad(f"is {selected.value!r}; left or right")
    if (names := _pair(data, result["to_name"].value)) is None:
        columns = ", ".join(map(str, data.fields()))[:200]
        raise result["to_name"].bad(f"unknown columns {result['to_name'].value!r}; name two of data (there are: {columns})")
    return [Answer(data[name].text()) for name in names], [1, 2] if selected.value == "left" else [2, 1]


def _chosen(data: Part, result: Part) -> Compared:
    """One choice among A, B, a tie and both bad, in words or by the name of a column."""
    choices = result["value"]["choices"]
    names = _pair(data, result["to_name"].value)
    if names is None or not choices.value or len(choices.entries()) != 1:
        raise choices.left_out(NO_ANSWER)
    choice = next(iter(choices)).text()
    try:
        outcome = worded(choice, names[:1], names[1:])
        outcome = plainly_worded(choice) if outcome is None else outcome
    except ValueError as error:
        raise choices.bad(str(error)) from None
    if outcome is None:
        raise choices.left_out(UNKNOWN_CHOICE)
    return [Answer(data[name].text()) for name in names], list(RANKS[outcome])


def _ranked(data: Part, result: Part) -> Compared:
    """A ranker's list is best first; items outside of it were not ranked."""
    ranker = result["value"]["ranker"]
    if not ranker.value:
        raise ranker.left_out(NO_ANSWER)
    if not isinstance(ranker.value, list):
        buckets = [ranker[name] for name in ranker.fields() if name != "_"]
        if len(buckets) != 1:
            raise ranker.left_out(BUCKETS)
        ranker = buckets[0]
    keys = [str(key) for key in ranker.entries()]
    items = _items(data, result["to_name"].value, keys)
    if unknown := [key for key in keys if key not in items]:
        raise ranker.bad(f"unknown item {unknown[0][:60]!r}; a ranker ranks items of the task")
    if len(set(keys)) < len(keys):
        raise ranker.bad("names an item twice")
    if len(items) < 2 or not keys:
        raise ranker.left_out(NO_ANSWER)
    return list(items.values()), [keys.index(key) + 1 if key in keys else None for key in items]


def _pair(data: Part, to_name: Any) -> tuple[str, str] | None:
    """The two columns that an annotator compared, None where neither to_name nor a well-known pair names them."""
    columns = data.fields()
    names = to_name.split(",") if isinstance(to_name, str) else to_name
    if isinstance(names, list) and len(names) == 2 and all(isinstance(n, str) and n.strip() in columns for n in names):
        return names[0].strip(), names[1].strip()
    return next((pair for pair in PAIR_NAMES if columns.keys() >= set(pair)), None)


def _items(data: Part, to_name: Any, keys: list[str]) -> dict[str, Answer]:
    """The items that were ranked, by id: the list of objects in the column to_name, else the only one with these ids."""
    lists = {name: value for name, value in data.fields().items()
             if isinstance(value, list) and value and all(isinstance(item, dict) and "id" in item for item in value)}  # fmt: skip
    if not lists:
        raise data.bad("a list of items with an id is missing; a ranker needs it")
    fitting = [name for name, items in lists.items() if {str(item["id"]) for item in items} >= set(keys)] or list(lists)
    if to_name not in lists and len(fitting) > 1:
        raise data.bad(f"{' and '.join(fitting)} have items with the ranked ids; keep the list that was ranked")
    answers: dict[str, Answer] = {}
    for item in data[to_name if to_name in lists else fitting[0]]:
        if (key := str(item["id"].value)) in answers:
            raise item["id"].bad(f"duplicate id {key[:60]!r}; give every item a different id")
        part = next((part for part in ITEM_TEXTS if item[part].value), "body")
        answers[key] = Answer(item[part].text(), item["model"].name() or "unknown")
    return answers
