"""The report of a run as Python sees it: its tables, its page, and what a notebook shows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import charter.evaluation
from charter.comparing.page import template_of
from charter.comparing.tables import Tables, columns
from charter.errors import InputError
from charter.evaluation.page import contrast_tables
from charter.evaluation.words import interval_of, mappings_in
from charter.measuring.evaluation import HEADER, figure_cells, metric_rows
from charter.measuring.page import TEMPLATES, figure_rows
from charter.records import EvalResult

REPORT, PAGE = "report.json", "report.html"


@dataclass(frozen=True)
class RunReport(Tables):
    """What ``charter.run`` and ``charter.load`` return. ``report``: the content of report.json, as ``--json`` prints it."""

    folder: Path
    report: Mapping[str, Any] = field(repr=False)

    @cached_property
    def metrics(self) -> Sequence[EvalResult]:
        """Every figure with its interval; ``arm`` is the model. Empty before the evaluation. InputError if one is broken."""
        try:
            return [EvalResult.model_validate(row) for row in mappings_in(self.report, "metrics")]
        except ValidationError as error:
            place = ".".join(str(part) for part in error.errors()[0]["loc"])
            words = f"a metric that cannot be read ({place}); charter run RECIPE writes the file again"
            raise InputError(words, file=self.folder / REPORT) from None

    @property
    def contrasts(self) -> Sequence[Mapping[str, Any]]:
        """Every paired difference of two arms, ``b`` minus ``a``, as in report.json."""
        return mappings_in(self.report, "contrasts")

    @property
    def verdict(self) -> str:
        """The word of the report."""
        return str(self._verdict.get("word", "no verdict"))

    @property
    def _verdict(self) -> Mapping[str, Any]:
        verdict = self.report.get("verdict")
        return verdict if isinstance(verdict, Mapping) else {}

    @property
    def page(self) -> Path:
        """The report's page."""
        return self.folder / PAGE

    @property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """``metrics``, and ``contrasts`` with intervals and flips as two columns each."""
        return {"metrics": metric_rows(self.metrics), "contrasts": [flat_contrast(row) for row in self.contrasts]}

    def as_dict(self) -> dict[str, Any]:
        """The object of ``--json``."""
        return dict(self.report)

    def html(self) -> str:
        """The verdict, the figures of all prompts, and the contrasts of the recipe's arms."""
        overall = [metric for metric in self.metrics if metric.group is None]
        models = list(dict.fromkeys(metric.arm for metric in overall))
        places = (TEMPLATES, Path(charter.evaluation.__path__[0]) / "templates")
        page: str = template_of("run.html", *places).render(
            title=self.report.get("title") or self.folder.name, verdict=self.verdict, reason=self.reason, page=self.page,
            models=[{"name": name} for name in models], figures=figure_rows(overall, models, self.report.get("scorers") or ()),
            contrasts=contrast_tables(self.report)["main"],
        )  # fmt: skip
        return page

    @property
    def reason(self) -> str:
        """Why the run stopped, else the rule behind the verdict."""
        return str(self.report.get("stopped") or self._verdict.get("rule", ""))

    def __str__(self) -> str:
        lines = columns([HEADER, *(figure_cells(metric) for metric in self.metrics if metric.group is None)])
        return "\n".join([*(lines if self.metrics else []), f"verdict: {self.verdict} ({self.reason})", f"page: {self.page}"])


def flat_contrast(row: Mapping[str, Any]) -> dict[str, Any]:
    """A contrast of a report as a flat row."""
    low, high = interval_of(row) or (None, None)
    only_a, only_b = row.get("discordant") or (None, None)
    keys = ("name", "a", "b", "group", "n", "n_unscored", "difference")
    numbers = {"ci_low": low, "ci_high": high, "p": row.get("p"), "p_holm": row.get("p_holm"), "only_a": only_a, "only_b": only_b}
    last = ("minimum_detectable", "primary", "method", "scorer")
    return {key: row.get(key) for key in keys} | numbers | {key: row.get(key) for key in last}


def load_report(run: str | os.PathLike[str]) -> RunReport:
    """The report of a run folder. InputError if the folder has none."""
    from charter.run.files import read_json

    folder = Path(run)
    report = read_json(folder / REPORT)
    if not isinstance(report, dict):
        raise InputError("no report.json; give the folder of a run, as charter run RECIPE --out makes it", file=folder)
    return RunReport(folder, report)
