"""Exports of Label Studio: pairwise results, rankers, and choices such as A, B or Tie."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from charter.reading.rows import Row
from charter.records import Rank
from charter.votes.imports.formats import Rater
from charter.votes.imports.votes import (
    PROMPT_NAMES,
    Answer,
    LeftOut,
    Unique,
    Vote,
    list_in,
    object_in,
    optional_text_in,
    prompt_in,
    text_in,
)
from charter.votes.winners import RANKS, worded

CANCELLED = "skipped by the annotator"
NOT_ANNOTATED = "a task without annotations"
NO_ANSWER = "an annotation without a comparison"
BUCKETS = "sorted into buckets, whose order the file does not say"
UNKNOWN_CHOICE = "a choice that names neither answer, nor a tie, nor both bad"
PAIR_NAMES = (("answer1", "answer2"), ("response1", "response2"), ("response_a", "response_b"), ("text1", "text2"),
              ("answer_a", "answer_b"), ("left", "right"))  # fmt: skip
ITEM_TEXTS = ("body", "text", "html", "title")
FILLERS = re.compile(r"\b(the|is|are|better|best|wins|good|answer|response|output|option|model|about)\b")

Compared = tuple[list[Answer], list[Rank | None]]


def read_task(row: Row, rater: Rater, ids: Unique) -> Iterator[Vote | LeftOut]:
    """A task with ``data`` and ``annotations``, or an annotation with its ``task`` as a target storage receives it. Results are
    of type pairwise, ranker, or choices where an annotation has neither of the others."""
    values = row.values
    if "annotations" not in values:
        values = {**object_in(row, values.get("task"), "task"), "annotations": [values]}
    data = object_in(row, values.get("data"), "data")
    annotations = list_in(row, values.get("annotations") or [], "annotations")
    if not annotations:
        yield LeftOut(row, NOT_ANNOTATED, "annotations")
    for place, item in enumerate(annotations):
        field = f"annotations.{place}"
        annotation = object_in(row, item, field)
        ids.check(row, annotation.get("id"), f"{field}.id")
        if annotation.get("was_cancelled") is True:
            yield LeftOut(row, CANCELLED, field)
            continue
        results = [object_in(row, result, f"{field}.result") for result in
                   list_in(row, annotation.get("result"), f"{field}.result")]  # fmt: skip
        compared = [result for result in results if result.get("type") in ("pairwise", "ranker")]
        compared = compared or [result for result in results if result.get("type") == "choices"]
        if not compared:
            yield LeftOut(row, NO_ANSWER, field)
        for result in compared:
            try:
                yield _vote(row, data, annotation, result, field, rater)
            except LeftOut as error:
                yield error


def _vote(row: Row, data: dict[str, Any], annotation: dict[str, Any], result: dict[str, Any], field: str, rater: Rater) -> Vote:
    value = object_in(row, result.get("value"), f"{field}.value")
    ranked = result["type"] == "ranker"
    read = _ranked if ranked else _selected if result["type"] == "pairwise" else _chosen
    answers, ranks = read(row, data, value, result.get("to_name"), field)
    prompt_name = next((name for name in PROMPT_NAMES if data.get(name)), None)
    if prompt_name is None:
        raise row.bad(f"the prompt is missing; name it one of {', '.join(PROMPT_NAMES)}", "data")
    person = annotation.get("completed_by")
    person = (person.get("email") or person.get("id")) if isinstance(person, dict) else person
    name = optional_text_in(row, person, f"{field}.completed_by")
    seconds = annotation.get("lead_time")
    return Vote(
        row=row,
        prompt=prompt_in(row, data[prompt_name], f"data.{prompt_name}", source="label-studio"),
        answers=tuple(answers),
        ranks=tuple(ranks),
        rater=Rater(f"annotator-{name}" if name.isdecimal() else name, "human") if name else rater,
        kind="rank" if ranked else "pair",
        seconds=float(seconds) if isinstance(seconds, (int, float)) and math.isfinite(seconds) else None,
    )


def _selected(row: Row, data: dict[str, Any], value: dict[str, Any], to_name: Any, field: str) -> Compared:
    """A pairwise result: its two texts are the columns of ``data`` named in to_name, else a well-known pair such as answer1 and
    answer2."""
    selected = value.get("selected")
    if selected in (None, ""):
        raise LeftOut(row, NO_ANSWER, f"{field}.value.selected")
    if selected not in ("left", "right"):
        raise row.bad(f"is {selected!r}; left or right", f"{field}.value.selected")
    if (names := _pair(data, to_name)) is None:
        raise row.bad(f"names {to_name!r}, which are no columns of data (there are: {', '.join(map(str, data))[:200]})",
                      f"{field}.to_name")  # fmt: skip
    return [Answer(text_in(row, data[name], f"data.{name}")) for name in names], [1, 2] if selected == "left" else [2, 1]


def _chosen(row: Row, data: dict[str, Any], value: dict[str, Any], to_name: Any, field: str) -> Compared:
    """One choice among A, B, a tie and both bad, in words or by the name of a column."""
    choices = list_in(row, value.get("choices") or [], f"{field}.value.choices")
    names = _pair(data, to_name)
    if names is None or len(choices) != 1:
        raise LeftOut(row, NO_ANSWER, f"{field}.value.choices")
    choice = text_in(row, choices[0], f"{field}.value.choices")
    try:
        outcome = worded(choice if choice in names else FILLERS.sub("", choice.casefold()), names[:1], names[1:])
    except ValueError as error:
        raise row.bad(str(error), f"{field}.value.choices") from None
    if outcome is None:
        raise LeftOut(row, UNKNOWN_CHOICE, f"{field}.value.choices")
    return [Answer(text_in(row, data[name], f"data.{name}")) for name in names], list(RANKS[outcome])


def _ranked(row: Row, data: dict[str, Any], value: dict[str, Any], to_name: Any, field: str) -> Compared:
    """A ranker's list is best first; items outside of it were not ranked."""
    ranker = value.get("ranker")
    if not ranker:
        raise LeftOut(row, NO_ANSWER, f"{field}.value.ranker")
    lists = {"": ranker} if isinstance(ranker, list) else object_in(row, ranker, f"{field}.value.ranker")
    lists = {name: keys for name, keys in lists.items() if name != "_"}
    if len(lists) != 1:
        raise LeftOut(row, BUCKETS, f"{field}.value.ranker")
    keys = [str(key) for key in list_in(row, next(iter(lists.values())), f"{field}.value.ranker")]
    items = _items(row, data, to_name, keys)
    if unknown := [key for key in keys if key not in items]:
        raise row.bad(f"unknown item {unknown[0][:60]!r}; a ranker ranks items of the task", f"{field}.value.ranker")
    if len(set(keys)) < len(keys):
        raise row.bad("names an item twice", f"{field}.value.ranker")
    if len(items) < 2 or not keys:
        raise LeftOut(row, NO_ANSWER, f"{field}.value.ranker")
    return list(items.values()), [keys.index(key) + 1 if key in keys else None for key in items]


def _pair(data: dict[str, Any], to_name: Any) -> tuple[str, str] | None:
    """The two columns that an annotator compared, None where neither to_name nor a well-known pair says them."""
    names = to_name.split(",") if isinstance(to_name, str) else to_name
    if isinstance(names, list) and len(names) == 2 and all(isinstance(n, str) and n.strip() in data for n in names):
        return names[0].strip(), names[1].strip()
    return next((pair for pair in PAIR_NAMES if data.keys() >= set(pair)), None)


def _items(row: Row, data: dict[str, Any], to_name: Any, keys: list[str]) -> dict[str, Answer]:
    """The items that were ranked, by id: the list of objects in the column to_name, else the only one with these ids."""
    lists = {name: value for name, value in data.items()
             if isinstance(value, list) and value and all(isinstance(item, dict) and "id" in item for item in value)}  # fmt: skip
    if not lists:
        raise row.bad("a list of items with an id is missing; a ranker needs it", "data")
    fitting = [name for name, items in lists.items() if {str(item["id"]) for item in items} >= set(keys)] or list(lists)
    name = to_name if to_name in lists else fitting[0]
    if to_name not in lists and len(fitting) > 1:
        raise row.bad(f"{' and '.join(fitting)} have items with the ranked ids; keep the list that was ranked", "data")
    answers: dict[str, Answer] = {}
    for place, item in enumerate(lists[name]):
        field = f"data.{name}.{place}"
        if (key := str(item["id"])) in answers:
            raise row.bad(f"duplicate id {key[:60]!r}; give every item a different id", f"{field}.id")
        part = next((part for part in ITEM_TEXTS if item.get(part)), "body")
        model = optional_text_in(row, item.get("model"), f"{field}.model") or "unknown"
        answers[key] = Answer(text_in(row, item.get(part), f"{field}.{part}"), model)
    return answers
