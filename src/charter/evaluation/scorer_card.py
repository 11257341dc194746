"""The card of a scorer: how often it agrees with people who labelled the same answers, by measure, class, script and column.

A label or a verdict is true, false or unknown. A row without a label is left out and counted; a row that the scorer cannot judge
is unscored, which is a third value beside right and wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from charter.errors import InputError
from charter.evaluation.scorers import NO_KIND
from charter.reading.card import script_of
from charter.reading.ratings import answered_prompt
from charter.reading.rows import Row, read_rows
from charter.records import Prompt
from charter.run.files import read_json
from charter.statistics import Estimate, clustered_proportion, expected_calibration_error

VERDICTS = ("harmful", "refusal", "helpful", "honest")
LANGUAGES = ("language", "lang")
TRUE, FALSE = frozenset({"true", "yes", "1", "1.0"}), frozenset({"false", "no", "0", "0.0"})
FORM = "charter scorer card"


@dataclass(frozen=True)
class Labelled:
    """An answer with what a person said of it. ``labels``: by measure, None if nobody labelled it; ``classes``: the words of
    the labels; ``groups``: its language or script, and the value of each column to divide by."""

    prompt: Prompt
    response: str
    labels: Mapping[str, bool | None]
    classes: Mapping[str, str]
    groups: Mapping[str, str]


@dataclass(frozen=True)
class Opinion:
    """What a scorer said of one answer. ``probability``: of a yes; ``score``: its number, higher for yes. None: it has none."""

    verdict: bool | None
    probability: float | None = None
    score: float | None = None


def read_labelled(file: Path, labels: Sequence[str], by: Sequence[str]) -> tuple[list[Labelled], dict[str, int]]:
    """The answers of a file with their ``labels`` (columns; by default those of ``VERDICTS`` that any row has) and the
    columns ``by``, and the rows left out by reason. InputError names file, line and field where a text or a label cannot be read,
    where a column is missing, and where nothing is left."""
    rows, left_out = list[Labelled](), dict[str, int]()
    table = list(read_rows(file))
    columns = dict.fromkeys(name for row in table for name in row.values)  # lines of JSON need not have the same ones
    labels = labels or [name for name in VERDICTS if name in columns]
    for row in table[:1]:
        if not labels:
            raise row.bad(f"no column of labels; give {', '.join(VERDICTS)}, or name one with --label")
        for name in (*labels, *by):
            if name not in columns:
                raise row.bad(f"no such column; the file has {', '.join(map(str, columns))}", name)
    for row in table:
        answered = answered_prompt(row)
        if isinstance(answered, str):
            left_out[answered] = left_out.get(answered, 0) + 1
            continue
        prompt, response, _ = answered
        pairs = {name: label_of(row, name) for name in labels}
        language = next((text for name in LANGUAGES if (text := row.optional(name))), None)
        groups = {"language": language} if language else {"script": script_of(response)}
        groups |= {name: "none" if row.values.get(name) in (None, "") else str(row.values[name]) for name in by}
        classes = {name: word for name, (_, word) in pairs.items() if word}
        rows.append(Labelled(prompt, response, {name: truth for name, (truth, _) in pairs.items()}, classes, groups))
    if not any(truth is not None for row in rows for truth in row.labels.values()):
        raise InputError("no row has prompt, response and a label", file=file)
    return rows, left_out


def label_of(row: Row, name: str) -> tuple[bool | None, str]:
    """(truth, its word) of a label: true or false, 1 or 0, yes or no; of a refusal also its kind, "none" for no refusal."""
    value = row.values.get(name)
    word = str(value).strip()
    if value is None or not word:
        return None, ""
    if word.lower() in TRUE | FALSE:
        return word.lower() in TRUE, ""
    if name == "refusal" and isinstance(value, str) and not NO_KIND.search(word):
        return word.lower() != "none", word
    kinds = ", a kind of refusal, or none for an answer that does not refuse" if name == "refusal" else ""
    raise row.bad(f"{word[:40]!r} is not a label; write true or false{kinds}; leave it empty where nobody labelled", name)


def card_of_scorer(
    rows: Sequence[Labelled], opinions: Mapping[str, Sequence[Opinion]], left_out: Mapping[str, int]
) -> dict[str, Any]:
    """The figures of a card: for each measure of ``opinions`` (one opinion for each row) those of :func:`figures` over all rows,
    and by class of the label, language or script and column."""
    measures = []
    for name, said in opinions.items():
        known = [i for i, row in enumerate(rows) if row.labels.get(name) is not None]
        divided: dict[str, dict[str, list[int]]] = {}
        for i in known:
            label = rows[i].classes.get(name) or str(bool(rows[i].labels[name])).lower()
            for column, value in {"class": label, **rows[i].groups}.items():
                divided.setdefault(column, {}).setdefault(value, []).append(i)
        by = {
            column: {value: figures(name, rows, said, part) for value, part in sorted(parts.items())}
            for column, parts in divided.items()
        }
        whole = figures(name, rows, said, known) | calibration(name, rows, said, known)
        measures.append({"measure": name, "n_unlabelled": len(rows) - len(known), **whole, "by": by})
    return {"form": FORM, "rows": len(rows), "left_out": dict(left_out), "measures": measures}


def figures(name: str, rows: Sequence[Labelled], said: Sequence[Opinion], part: Sequence[int]) -> dict[str, Any]:
    """Accuracy, recall (of the answers labelled true), specificity (of those labelled false) and precision (of those that the
    scorer calls true) over the rows ``part``, with Wilson's 95% interval, clustered where prompts repeat; and their counts."""
    scored = [i for i in part if said[i].verdict is not None]
    truth = {i: bool(rows[i].labels[name]) for i in part}

    def share(of: Iterable[int]) -> dict[str, Any]:
        chosen = list(of)
        estimate: Estimate = clustered_proportion(
            [said[i].verdict == truth[i] for i in chosen], [rows[i].prompt.id for i in chosen]
        )
        return {"value": estimate.value, "ci": estimate.ci, "n": estimate.n}

    counts = {
        f"{'true' if called == label else 'false'}_{'positive' if called else 'negative'}": sum(
            said[i].verdict is called and truth[i] is label for i in scored
        )
        for called in (True, False)
        for label in (True, False)
    }
    return {
        "n": len(scored), "n_unscored": len(part) - len(scored), "n_prompts": len({rows[i].prompt.id for i in scored}),
        "accuracy": share(scored), "recall": share(i for i in scored if truth[i]),
        "specificity": share(i for i in scored if not truth[i]), "precision": share(i for i in scored if said[i].verdict),
        "counts": counts,
    }  # fmt: skip


def calibration(name: str, rows: Sequence[Labelled], said: Sequence[Opinion], part: Sequence[int]) -> dict[str, Any]:
    """Brier score, expected calibration error and reliability bins where the scorer gives probabilities; the area under the ROC
    curve where it gives numbers and both labels occur. Each is None elsewhere."""
    truth = {i: float(bool(rows[i].labels[name])) for i in part}
    certain = [(p, truth[i]) for i in part if (p := said[i].probability) is not None]
    numbers = [(s, truth[i]) for i in part if (s := said[i].score) is not None]
    result: dict[str, Any] = {"brier": None, "ece": None, "ece_floor": None, "reliability": [], "auc": area(numbers)}
    if certain:
        table = expected_calibration_error([p for p, _ in certain], [y for _, y in certain])
        brier = sum((p - y) ** 2 for p, y in certain) / len(certain)
        result |= {"brier": brier, "ece": table.ece, "ece_floor": table.floor, "reliability": [dict(row) for row in table.rows]}
    return result


def area(numbers: Sequence[tuple[float, float]]) -> float | None:
    """Probability that an answer labelled true has the higher number, a tie half; None if a label does not occur."""
    high, low = ([s for s, y in numbers if y == label] for label in (1, 0))
    if not high or not low:
        return None
    ordered, values = np.sort(np.array(low)), np.array(high)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return float(below.sum() / (2 * len(low) * len(high)))


def read_card(file: Path) -> dict[str, Any]:
    """A card that `charter scorer card` wrote. InputError if the file is something else."""
    card = read_json(file)
    if not isinstance(card, dict) or card.get("form") != FORM or not isinstance(card.get("measures"), list):
        raise InputError("not the card of a scorer; write one with charter scorer card SCORER --labelled FILE", file=file)
    return card
