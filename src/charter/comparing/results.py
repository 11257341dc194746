"""The scores of one model, item by item, whatever tool wrote them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from charter.errors import InputError

Place = Mapping[str, Any]
"""``file``, ``line`` and ``field`` of an ``InputError``."""

ABSENT = math.nan
"""In place of a value where the metric is not about the row. A value that is None is unscored, and NaN in a file is too."""


def scored_or_none(value: float | None) -> float | None:
    """A value; None if it is unscored or the metric is not about the row."""
    return None if value is ABSENT else value


@dataclass(frozen=True)
class Item:
    """One scored row: the question's id, its scores by metric (None: unscored), and what else the file says about it.

    ``repeat`` numbers several answers to one question from 1; None counts them in the order of the file. ``content`` is the
    question or its hash: two files with one id and two contents are about different questions. ``cluster`` joins questions
    that belong together.
    """

    id: str
    scores: Mapping[str, float | None]
    repeat: int | None = None
    content: str | None = None
    cluster: str | None = None


@dataclass
class Results:
    """All rows of one file or run. ``keys`` (id, repeat) are unique; every sequence runs over the same N rows."""

    source: str
    kind: str
    model: str | None
    keys: list[tuple[str, int]] = field(default_factory=list)
    contents: list[str | None] = field(default_factory=list)
    clusters: list[str | None] = field(default_factory=list)
    metrics: dict[str, list[float | None]] = field(default_factory=dict)
    better: dict[str, str | None] = field(default_factory=dict)
    """Direction of a metric where the file or Charter knows it: "higher", "lower" or None; "higher" for all others."""
    notes: list[str] = field(default_factory=list)
    """What of the file was not compared, in words."""


def gather(results: Results, items: Iterable[Item]) -> Results:
    """Fill ``results`` with the items. InputError if the file has no item, a repeat is there twice, or nothing is a score."""
    seen: Counter[str] = Counter()
    for row, item in enumerate(items):
        seen[item.id] += 1
        key = (item.id, seen[item.id] if item.repeat is None else item.repeat)
        results.keys.append(key)
        results.contents.append(item.content)
        results.clusters.append(item.cluster)
        for name in item.scores:
            if name not in results.metrics:
                results.metrics[name] = [None] * row
        for name, values in results.metrics.items():
            values.append(item.scores.get(name))
    if not results.keys:
        raise InputError("no item is scored; give a file with one row per item", file=results.source)
    if len(set(results.keys)) < len(results.keys):
        (id, repeat), n = Counter(results.keys).most_common(1)[0]
        raise InputError(f"item {id!r}, repeat {repeat} has {n} rows; keep one of them", file=results.source)
    leave_out_unscored(results)
    return results


def leave_out_unscored(results: Results) -> None:
    """Drop the metrics without any score, with a note; InputError if none remains."""
    empty = [name for name, values in results.metrics.items() if all(scored_or_none(value) is None for value in values)]
    if len(empty) == len(results.metrics):
        names = f" (all unscored: {', '.join(sorted(empty))})" if empty else ""
        raise InputError(f"no item has a score that is a number, true or false{names}", file=results.source)
    for name in sorted(empty):
        del results.metrics[name]
        results.notes.append(f"{name}: no item is scored")
    results.metrics = dict(sorted(results.metrics.items(), key=lambda pair: pair[0] != "score"))


def as_score(value: Any, place: Place, *, text: bool = False) -> float | None:
    """A score as number: true is 1, false 0, null and NaN unscored; with ``text`` also as cells of a table spell them. InputError
    where it is something else or infinite."""
    if text and isinstance(value, str):
        value = cell_value(value.strip())
    if value is None:
        return None
    if isinstance(value, bool | int | float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isinf(number):
            raise InputError("is infinite; use a finite number, or leave it empty for unscored", **place)
        return None if math.isnan(number) else number
    raise InputError(f"must be a number, true, false or empty, not {short(value)}", **place)


def cell_value(cell: str) -> Any:
    """The value that a cell of a table spells; the cell itself where it spells none."""
    word = cell.lower()
    if word in ("", "na", "n/a", "none", "null", "nan"):
        return None
    if word in ("true", "false"):
        return word == "true"
    try:
        return cell if "_" in cell else float(cell)  # Python reads 1_2 as 12
    except ValueError:
        return cell


def is_number(value: Any) -> bool:
    """Whether a value of a table is a score: a number, true or false, also as text."""
    value = cell_value(value.strip()) if isinstance(value, str) else value
    return isinstance(value, bool | int | float)


def short(value: Any) -> str:
    """A value in an error message: at most 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"


def id_of(value: Any, place: Place) -> str:
    """An item's id as text. InputError if it is missing or neither text nor number."""
    if value is None or value == "":
        raise InputError("missing; every row needs the id of its item", **place)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"must be a text or a number, not {short(value)}", **place)
    return str(value)


def look_up(row: Mapping[str, Any], path: str, place: Place) -> str:
    """The text at a dotted path such as ``doc.passage``. InputError if it is missing."""
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None or value == "":
        raise InputError(f"missing, but it names the cluster of a row (--cluster {path})", **{**place, "field": path})
    return str(value)
