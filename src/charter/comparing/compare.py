"""Two or more models on the same items: every shared metric, pair by pair, corrected for their number, with a word for each."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from charter.comparing.findings import Contrast, Findings, Rank
from charter.comparing.formats import RUN
from charter.comparing.inspect_logs import KIND as INSPECT
from charter.comparing.page import page_html, table_html
from charter.comparing.paired import ALPHA, CORRECTIONS, Correction, Paired, corrected, equivalence_level, pair
from charter.comparing.results import ABSENT, Results, scored_or_none
from charter.comparing.sources import read_results
from charter.comparing.tables import Tables, contrast_rows, rank_rows, terminal_text
from charter.effects import equivalent, minimum_detectable
from charter.errors import InputError
from charter.run.files import write_text

ARTICLES = {INSPECT: "an ", RUN: "a "}
"""Before the kinds that are one thing; the others are plural."""


class Comparison(Findings, Tables):
    """What ``charter compare`` prints; ``as_dict`` is its JSON. In a notebook it shows as its table."""

    @property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """``contrasts``, and the ``ranks`` of three or more models."""
        return {"contrasts": contrast_rows(self), "ranks": rank_rows(self)}

    def html(self) -> str:
        """The table of contrasts."""
        return table_html(self)

    def write_page(self, file: str | Path) -> None:
        """Write the self-contained HTML page."""
        write_text(Path(file), page_html(self))

    def __str__(self) -> str:
        return terminal_text(self)


def compare_files(
    sources: Sequence[str | os.PathLike[str]],
    *,
    margins: Mapping[str | None, float] | None = None,
    correction: Correction = "holm",
    lower: Sequence[str] = (),
    cluster: str | None = None,
) -> Comparison:
    """Compare the models of two or more result files or runs, in the order given.

    margins: the largest difference that does not matter, by metric; None stands for all other metrics. correction: over all
    metrics and pairs. lower: metrics of which less is better. cluster: dotted path of a field whose value joins items.
    InputError if a file cannot be read, kinds differ, or nothing is shared.
    """
    if len(sources) < 2:
        raise InputError("needs two or more result files or runs to compare")
    if correction not in CORRECTIONS:
        raise InputError(f"unknown correction {correction!r}; use one of {', '.join(CORRECTIONS)}")
    read = [read_results(os.fspath(source), cluster) for source in sources]
    check_kinds(read)
    return compare_results(read, margins=margins or {}, correction=correction, lower=lower)


def compare_results(
    read: Sequence[Results], *, margins: Mapping[str | None, float], correction: Correction, lower: Sequence[str]
) -> Comparison:
    """The comparison of results that were read from one kind of files."""
    labels = labels_of(read)
    metrics, left_out = shared_metrics(read)
    for name in [*lower, *(name for name in margins if name is not None)]:
        if name not in metrics:
            raise InputError(f"unknown metric {name!r}; the files share {', '.join(metrics)}")
    better = {name: "lower" if name in lower else read[0].better.get(name, "higher") for name in metrics}
    pairs = list(combinations(range(len(read)), 2))
    if bad := [margin for margin in margins.values() if not 0 < margin < math.inf]:
        raise InputError(f"a margin must be a number above 0, not {bad[0]:g}")
    level = equivalence_level(len(pairs) * sum(name in margins or None in margins for name in metrics), correction)
    drafts = [
        draft_contrast(table, name, labels[i], labels[j], better[name], margins.get(name, margins.get(None)), level)
        for i, j in pairs
        for table in [Shared(read[i], read[j])]
        for name in metrics
    ]
    p_values = corrected([draft["p"] for draft in drafts], correction)
    contrasts = [Contrast(**draft, p_corrected=p, verdict=word_of(draft, p)) for draft, p in zip(drafts, p_values, strict=True)]
    order = {name: number for number, name in enumerate(metrics)}
    contrasts.sort(key=lambda contrast: order[contrast.name])
    ranks = [rank for name in metrics for rank in ranks_of(name, read, labels, contrasts, better[name])] if len(read) > 2 else []
    files = [
        {"name": label, "path": results.source, "kind": results.kind, "model": results.model, "n": len(results.keys)}
        for label, results in zip(labels, read, strict=True)
    ]
    notes = [{"file": label, "what": note} for label, results in zip(labels, read, strict=True) for note in results.notes]
    return Comparison(files, contrasts, ranks, correction, notes + left_out)


def check_kinds(read: Sequence[Results]) -> None:
    """InputError if the files are of several kinds, or one file is there twice."""
    for other in read[1:]:
        if other.kind != read[0].kind:
            kinds = " and ".join(f"{r.source} is {ARTICLES.get(r.kind, '')}{r.kind}" for r in (read[0], other))
            raise InputError(f"{kinds}; compare files of one kind, or write both as rows with id and score")
    sources = [results.source for results in read]
    for source in sources:
        if sources.count(source) > 1:
            raise InputError("given more than once; a comparison needs different results", file=source)


def labels_of(read: Sequence[Results]) -> list[str]:
    """A short name for each: the model's name where every file names another model, else the name of the file without its
    suffix or of the folder with its dots (Llama-3.1-8B), else the path as given."""
    names = [Path(results.source).name for results in read]
    stems = [name if results.kind == RUN or Path(results.source).is_dir() else name.removesuffix(".gz").rpartition(".")[0] or name
             for name, results in zip(names, read, strict=True)]  # fmt: skip
    models = [results.model or "" for results in read]
    for labels in (models, stems, names):
        if all(labels) and len(set(labels)) == len(labels):
            return labels
    return [results.source for results in read]


def shared_metrics(read: Sequence[Results]) -> tuple[list[str], list[dict[str, str]]]:
    """The metrics that every file has, and the others as rows of what was left out. InputError if they share none."""
    metrics = [name for name in read[0].metrics if all(name in results.metrics for results in read)]
    if not metrics:
        lists = "; ".join(f"{results.source} has {', '.join(list(results.metrics)[:5])}" for results in read[:2])
        raise InputError(f"the files share no metric: {lists}; give both the same metric")
    labels = labels_of(read)
    left_out = [
        {"file": label, "what": f"{name}: a metric that not every file has"}
        for label, results in zip(labels, read, strict=True)
        for name in results.metrics
        if name not in metrics
    ]
    return metrics, left_out


class Shared:
    """The rows of two files by key: which both have, which only one has. InputError if no row is shared, where an id means two
    different questions, or where the files put an item into different clusters."""

    def __init__(self, a: Results, b: Results) -> None:
        self.a, self.b = a, b
        rows_b = {key: row for row, key in enumerate(b.keys)}
        pairs = [(row, rows_b[key]) for row, key in enumerate(a.keys) if key in rows_b]
        if not pairs:
            ids = f"ids such as {a.keys[0][0]!r} and {b.keys[0][0]!r}"
            raise InputError(f"{a.source} and {b.source} share no item ({ids}); compare results on the same items")
        self.rows_a, self.rows_b = [row for row, _ in pairs], [row for _, row in pairs]
        self.check_contents()
        self.clusters = self.cluster_labels()
        keys_a = set(a.keys)
        self.missing = {
            "a": [key_text(key) for key in b.keys if key not in keys_a],
            "b": [key_text(key) for key in a.keys if key not in rows_b],
        }

    def check_contents(self) -> None:
        different = [
            self.a.keys[i][0]
            for i, j in zip(self.rows_a, self.rows_b, strict=True)
            if self.a.contents[i] != self.b.contents[j] and None not in (self.a.contents[i], self.b.contents[j])
        ]
        if different:
            share = f"{len(different)} of {len(self.rows_a)} shared items, such as {different[0]!r}"
            raise InputError(f"{self.a.source} and {self.b.source} ask different questions under the same id ({share}); "
                             "compare results on the same questions")  # fmt: skip

    def cluster_labels(self) -> list[str]:
        """The cluster of each shared row: the named one, else the item."""
        labels = []
        for i, j in zip(self.rows_a, self.rows_b, strict=True):
            a, b = self.a.clusters[i], self.b.clusters[j]
            if a != b:
                item = f"item {self.a.keys[i][0]!r} into different clusters, {a!r} and {b!r}"
                raise InputError(f"{self.a.source} and {self.b.source} put {item}; name the same clusters in both")
            labels.append(self.a.keys[i][0] if a is None else a)
        return labels

    def names(self, rows: Sequence[int]) -> list[str]:
        """The keys of shared rows, as text."""
        return [key_text(self.a.keys[self.rows_a[row]]) for row in rows]


def key_text(key: tuple[str, int]) -> str:
    """``q7`` for the first answer to an item, ``q7#2`` for another."""
    return key[0] if key[1] == 1 else f"{key[0]}#{key[1]}"


def draft_contrast(
    shared: Shared, name: str, a: str, b: str, better: str | None, margin: float | None, level: float
) -> dict[str, Any]:
    """All of a contrast but its corrected p and its word."""
    columns = shared.a.metrics[name], shared.b.metrics[name]
    about = [row for row, (i, j) in enumerate(zip(shared.rows_a, shared.rows_b, strict=True))
             if not (columns[0][i] is ABSENT and columns[1][j] is ABSENT)]  # fmt: skip
    values_a, values_b = ([scored_or_none(column[rows[row]]) for row in about]
                          for column, rows in zip(columns, (shared.rows_a, shared.rows_b), strict=True))  # fmt: skip
    result: Paired = pair(values_a, values_b, [shared.clusters[row] for row in about], None if margin is None else level)
    flips = None
    if result.only_a is not None and result.only_b is not None:
        flips = {side: shared.names([about[row] for row in rows])
                 for side, rows in (("only_a", result.only_a), ("only_b", result.only_b))}  # fmt: skip
    unscored = [row for row, x, y in zip(about, values_a, values_b, strict=True) if x is None or y is None]
    return {
        "name": name, "a": a, "b": b, "n": result.n, "n_missing": len(shared.missing["a"]) + len(shared.missing["b"]),
        "n_unscored": result.n_unscored, "difference": result.difference, "ci": result.ci, "p": result.p,
        "discordant": None if flips is None else (len(flips["only_a"]), len(flips["only_b"])), "method": result.method,
        "value_a": result.mean_a, "value_b": result.mean_b, "binary": result.binary, "better": better,
        "n_clusters": result.n_clusters, "design_effect": result.design_effect,
        "minimum_detectable": minimum_detectable(result.ci), "mcnemar_p": result.mcnemar_p, "margin": margin,
        "equivalence_ci": result.equivalence_ci, "equivalence_level": None if margin is None else level, "flips": flips,
        "missing": shared.missing, "unscored": shared.names(unscored),
    }  # fmt: skip


def word_of(draft: Mapping[str, Any], p: float | None) -> str:
    """The word of a contrast, by ``RULES``."""
    ci, margin, better = draft["ci"], draft["margin"], draft["better"]
    if margin is not None and equivalent(draft["equivalence_ci"], margin):
        return "equivalent"
    if ci is None or p is None or p >= ALPHA or ci[0] <= 0 <= ci[1]:
        return "no evidence"
    direction = "higher" if ci[0] > 0 else "lower"
    if better is None:
        return direction
    return "better" if direction == better else "worse"


def ranks_of(
    name: str, read: Sequence[Results], labels: Sequence[str], contrasts: Sequence[Contrast], better: str | None
) -> list[Rank]:
    """The ranks that the contrasts of a metric leave open (Mogstad et al. 2024, Rev. Econ. Stud. 91:476): each model that is
    told to be better pushes a model down by one, each that is told to be worse lifts it. Best value first; without a direction
    the highest."""
    above, below = ({label: set[str]() for label in labels} for _ in range(2))
    for row in contrasts:
        if row.name == name and (told := told_apart(row)):
            winner, loser = (row.b, row.a) if (told == "higher") == (better != "lower") else (row.a, row.b)
            above[loser].add(winner)
            below[winner].add(loser)
    rows = []
    for label, results in zip(labels, read, strict=True):
        scored = [value for value in map(scored_or_none, results.metrics[name]) if value is not None]
        tied = [other for other in labels if other != label and other not in above[label] | below[label]]
        value = sum(scored) / len(scored)
        rows.append(Rank(name, label, value, len(scored), (1 + len(above[label]), len(labels) - len(below[label])), tied))
    return sorted(rows, key=lambda rank: (rank.value or 0.0) * (1 if better == "lower" else -1))


def told_apart(row: Contrast) -> str | None:
    """ "higher" or "lower" where b differs from a by the rule of better and worse; None if the two cannot be told apart."""
    word = word_of({"ci": row.ci, "margin": row.margin, "better": None, "equivalence_ci": row.equivalence_ci}, row.p_corrected)
    return word if word in ("higher", "lower") else None
