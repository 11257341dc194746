"""An evaluation: figures of models on test sets, their comparison, and the files and tables in which they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charter import __version__
from charter.comparing.compare import Comparison
from charter.comparing.tables import Tables, columns, contrast_lines, rank_lines
from charter.evaluation.words import number_text
from charter.measuring.page import error_note, page_html, table_html
from charter.records import EvalResult
from charter.run.files import write_json, write_text

SUMMARY, METRICS_FILE, PAGE = "evaluation.json", "metrics.csv", "report.html"


@dataclass(frozen=True)
class Evaluation(Tables):
    """What ``charter evaluate MODEL --set FILE`` prints; ``as_dict`` is its JSON. In a notebook it shows as its table.

    ``metrics``: every figure with its interval; ``arm`` is the model, or a rule that reads nothing but lengths or refusal words.
    ``comparison``: what ``charter compare`` says of the models, None for a single one. ``better``: the direction of each metric.
    ``scorers``: their cards, as in the report of a run.
    """

    folder: Path
    metrics: Sequence[EvalResult]
    comparison: Comparison | None
    better: Mapping[str, str | None]
    models: Sequence[Mapping[str, Any]]
    sets: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    samples: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    scorers: Sequence[Mapping[str, Any]] = ()

    def as_dict(self) -> dict[str, Any]:
        """The object of ``--json``; its ``comparison`` is that of ``charter compare --json``."""
        return {
            "metrics": [metric.model_dump(mode="json") for metric in self.metrics], "models": list(self.models),
            "sets": list(self.sets), "notes": list(self.notes), "settings": dict(self.settings), "better": dict(self.better),
            "comparison": self.comparison.as_dict() if self.comparison else None, "folder": str(self.folder),
            "scorers": list(self.scorers), "charter_version": __version__,
        }  # fmt: skip

    @property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """``metrics``, and the tables of the comparison."""
        return {"metrics": metric_rows(self.metrics)} | (self.comparison.tables if self.comparison else {})

    def html(self) -> str:
        """The table of figures."""
        return table_html(self)

    @property
    def page(self) -> Path:
        """The report's page."""
        return self.folder / PAGE

    def write_page(self, file: str | Path) -> None:
        """Write the self-contained HTML page."""
        write_text(Path(file), page_html(self))

    def write(self) -> None:
        """Write evaluation.json, metrics.csv and report.html into the folder."""
        write_json(self.folder / SUMMARY, self.as_dict())
        self.write_csv(self.folder / METRICS_FILE)
        self.write_page(self.page)

    def __str__(self) -> str:
        lines = [*columns([HEADER, *(figure_cells(metric) for metric in self.metrics if metric.group is None)])]
        lines += [f"scored by: {name}" for name in dict.fromkeys(m.scorer for m in self.metrics if m.unit)]
        notes = dict.fromkeys((m.scorer, note) for m in self.metrics if (note := error_note(m.name, self.scorers)))
        lines += [f"{scorer} {note}" for scorer, note in notes]
        lines += [f"{row['name']}: left out {count} x {reason}" for row in self.sets for reason, count in row["left_out"].items()]
        lines += [f"{row['name']}: {note}" for row in self.sets for note in row["notes"]]
        lines += [f"not shown: {note}" for note in self.notes]
        if self.comparison is not None:
            lines += ["", *contrast_lines(self.comparison)]
            lines += ["", *rank_lines(self.comparison)] if self.comparison.ranks else []
        return "\n".join(lines)


HEADER = ["metric", "model", "value", "95% interval", "n", "unscored", ""]


def metric_rows(metrics: Sequence[EvalResult]) -> list[dict[str, Any]]:
    """A flat row for each figure."""
    rows = []
    for metric in metrics:
        values = metric.model_dump(mode="json")
        low, high = values.pop("ci") or (None, None)
        rows.append({"name": values.pop("name"), "model": values.pop("arm"), **values, "ci_low": low, "ci_high": high})
    return rows


def figure_cells(metric: EvalResult) -> list[str]:
    """A figure in words."""
    share = metric.unit == "share"
    interval = "no interval" if metric.ci is None else " to ".join(number_text(end, share) for end in metric.ci)
    value = "unscored" if metric.value is None else number_text(metric.value, share)
    return [metric.name, metric.arm, value, interval, str(metric.n), str(metric.n_unscored), ""]
