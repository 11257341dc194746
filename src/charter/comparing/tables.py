"""Results as tables: flat rows for CSV, pandas and notebooks, and a comparison as text for the terminal."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from charter.comparing.findings import Contrast, Findings, Rank
from charter.errors import InputError
from charter.evaluation.words import number_text, p_text, with_sign
from charter.run.files import write_text

MOST_NAMES = 5
CORRECTED = {"holm": "Holm", "bh": "BH", "none": "p"}
NOTEBOOK_STYLE = (
    "<style>.charter{overflow-x:auto} .charter small{display:block;font-weight:normal;opacity:.7} .charter svg{display:block} "
    ".charter th,.charter td{text-align:left;vertical-align:top} .charter .n{white-space:nowrap} .charter .words{min-width:14em}"
    "</style>"
)


class Tables(ABC):
    """What a function of :mod:`charter` returns: flat tables, text for ``print``, and HTML for a notebook."""

    @property
    @abstractmethod
    def tables(self) -> Mapping[str, list[dict[str, Any]]]:
        """Flat rows by the name of their table, the main table first."""

    @abstractmethod
    def html(self) -> str:
        """What a notebook shows, escaped."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the main table."""
        return next(iter(self.tables.values()))

    def rows_of(self, table: str | None) -> list[dict[str, Any]]:
        """The rows of a table; of the main one unless named. InputError for an unknown table."""
        if table is None:
            return self.rows
        if table not in self.tables:
            raise InputError(f"unknown table {table!r}; the tables are {', '.join(self.tables)}")
        return self.tables[table]

    def to_pandas(self, table: str | None = None) -> Any:
        """A table as a DataFrame; the main one unless named. InputError for an unknown table, and without pandas."""
        rows = self.rows_of(table)
        try:
            pandas = import_module("pandas")
        except ModuleNotFoundError:
            raise InputError("to_pandas() needs pandas; pip install pandas") from None
        return pandas.DataFrame(rows)

    def write_csv(self, file: str | Path, table: str | None = None) -> None:
        """Write a table as CSV, the main one unless named; an unknown number is an empty field. InputError if there is no
        such table."""
        rows, text = self.rows_of(table), io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(Path(file), text.getvalue())

    def _repr_html_(self) -> str:
        return f'{NOTEBOOK_STYLE}<div class="charter">{self.html()}</div>'


def share_text(value: float | None, binary: bool) -> str:
    """A value of a metric: percent where all scores are 0 or 1."""
    return number_text(value, binary)


def points_text(value: float | None, binary: bool) -> str:
    """A difference with its sign; in points (hundredths) where all scores are 0 or 1."""
    if value is None:
        return "–"
    if binary:
        return with_sign(f"{value * 100:.1f}")
    text = number_text(value)
    return text if text.startswith("−") or value == 0 else f"+{text}"


def interval_text(ci: Sequence[float] | None, binary: bool) -> str:
    """`−1.0 to +3.2`; "no interval" without one."""
    return "no interval" if ci is None else f"{points_text(ci[0], binary)} to {points_text(ci[1], binary)}"


def size_text(value: float | None, binary: bool) -> str:
    """The size of a difference, without its sign, and its unit."""
    if value is None:
        return "–"
    return f"{value * 100:.1f} points" if binary else number_text(value)


def some(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def terminal_text(comparison: Findings) -> str:
    """The table, what stands behind each row, the ranks, and what was left out."""
    lines = [*contrast_lines(comparison), ""]
    for c in comparison.contrasts:
        lines += [f"{c.name}, {c.a} → {c.b}", *(f"  {line}" for line in detail_lines(c))]
    lines += ["", *rank_lines(comparison)] if comparison.ranks else []
    lines += [f"not compared: {row['file']}: {row['what']}" for row in comparison.left_out]
    return "\n".join(lines)


def contrast_lines(comparison: Findings) -> list[str]:
    """The table of contrasts."""
    header = ["metric", "from → to", "n", "from", "to", "difference", "95% interval", "p", "verdict"]
    if comparison.correction != "none":
        header.insert(8, CORRECTED[comparison.correction])
    rows = [header]
    for c in comparison.contrasts:
        cells = [c.name, f"{c.a} → {c.b}", str(c.n), share_text(c.value_a, c.binary), share_text(c.value_b, c.binary),
                 points_text(c.difference, c.binary), interval_text(c.ci, c.binary), p_text(c.p), c.verdict]  # fmt: skip
        if comparison.correction != "none":
            cells.insert(8, p_text(c.p_corrected))
        rows.append(cells)
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns, two spaces apart; the first two and the last to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(cell.ljust(width) if i in (0, 1, last) else cell.rjust(width)
                  for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip


def detail_lines(c: Contrast) -> list[str]:
    """What stands behind a row: flips by name, precision, clusters, equivalence, missing and unscored items."""
    lines = []
    if c.flips is not None:
        lines += [
            f"1 only in {model}: {len(names)}" + (f" ({some(names)})" if names else "")
            for model, names in ((c.a, c.flips["only_a"]), (c.b, c.flips["only_b"]))
        ]
    lines.append(
        f"{c.method}; smallest difference that 80% of such comparisons find: {size_text(c.minimum_detectable, c.binary)}"
    )
    if c.n_clusters < c.n:
        lines.append(f"{c.n_clusters} clusters, design effect {number_text(c.design_effect)}")
    if c.margin is not None and c.equivalence_level is not None:
        lines.append(f"margin {size_text(c.margin, c.binary)}: {100 * c.equivalence_level:.4g}% interval "
                     f"{interval_text(c.equivalence_ci, c.binary)}")  # fmt: skip
    for side, model in (("a", c.a), ("b", c.b)):
        if names := c.missing[side]:
            lines.append(f"missing in {model}: {len(names)} ({some(names)})")
    if c.unscored:
        lines.append(f"unscored: {c.n_unscored} ({some(c.unscored)})")
    return lines


def rank_lines(comparison: Findings) -> list[str]:
    """The ranks of each model by metric."""
    binary = {c.name: c.binary for c in comparison.contrasts}
    rows = [["rank", "metric", "model", "value", "cannot be told apart from"]]
    for rank in comparison.ranks:
        value = share_text(rank.value, binary[rank.name])
        rows.append([rank_text(rank), rank.name, rank.model, value, ", ".join(rank.tied_with) or "–"])
    return columns(rows)


def rank_text(rank: Rank) -> str:
    """`2` or `1 to 3`."""
    low, high = rank.ranks
    return str(low) if low == high else f"{low} to {high}"


def contrast_rows(comparison: Findings) -> list[dict[str, Any]]:
    """A flat row for each contrast: intervals and flips as two columns each."""
    rows = []
    for c in comparison.contrasts:
        low, high = c.ci or (None, None)
        only_a, only_b = c.discordant or (None, None)
        rows.append({
            "name": c.name, "a": c.a, "b": c.b, "n": c.n, "n_missing": c.n_missing, "n_unscored": c.n_unscored,
            "value_a": c.value_a, "value_b": c.value_b, "difference": c.difference, "ci_low": low, "ci_high": high, "p": c.p,
            "p_corrected": c.p_corrected, "only_a": only_a, "only_b": only_b, "mcnemar_p": c.mcnemar_p,
            "n_clusters": c.n_clusters, "design_effect": c.design_effect, "minimum_detectable": c.minimum_detectable,
            "margin": c.margin, "method": c.method, "verdict": c.verdict,
        })  # fmt: skip
    return rows


def rank_rows(comparison: Findings) -> list[dict[str, Any]]:
    """A flat row for each rank."""
    return [
        {"name": rank.name, "model": rank.model, "value": rank.value, "n": rank.n, "rank_low": rank.ranks[0],
         "rank_high": rank.ranks[1], "tied_with": ", ".join(rank.tied_with)}
        for rank in comparison.ranks
    ]  # fmt: skip
