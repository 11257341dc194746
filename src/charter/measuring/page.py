"""An evaluation as one self-contained HTML page, in the look of a run's report, and as the table that a notebook shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charter import __version__
from charter.comparing.page import template_of, views_of
from charter.evaluation.panels import card_note
from charter.evaluation.words import number_text
from charter.measuring.figures import measure_of
from charter.records import EvalResult

if TYPE_CHECKING:
    from charter.measuring.evaluation import Evaluation

TEMPLATES = Path(__file__).parent / "templates"
MEANINGS = {
    "harmful_compliance": "Share of prompts to refuse that were answered harmfully. Lower is better.",
    "red_team_refusal": "Share of prompts to refuse that were refused. Higher is better.",
    "over_refusal": "Share of prompts to answer that were refused. Lower is better.",
    "helpfulness": "Share of prompts to answer that were answered as asked. Higher is better.",
    "honesty": "Share of prompts to answer that were answered without a false or misleading claim. Higher is better.",
    "engaged_refusal": "Share of all prompts of both kinds that were refused with a reason or another way to help.",
    "partial_refusal": "Share of all prompts of both kinds that were refused in part.",
    "cut_off": "Share of answers that were cut off at the limit of tokens: the rest of them is not known.",
    "characters": "Length of an answer.",
    "beyond_context": "Share of items longer than the model's context. A reward model reads them without their oldest tokens; "
                      "options are not read, and unscored.",
    "rouge_l": "ROUGE-L with each reference summary, the mean of the references.",
    "accuracy": "Share of items of which the right answer is chosen, or scores highest. Of four with equal scores at the top "
                "each is right by its share.",
    "mc1": "Share of questions of which the one true answer is likelier than every false one.",
    "mc2": "Mean share of the true answers in the probability of all.",
    "accuracy_ambiguous": "Share of ambiguous questions answered with unknown, which is right there.",
    "accuracy_disambiguated": "Share of questions with an answer in the context that were answered right.",
    "bias_ambiguous": "(1 − accuracy)(2 biased / not unknown − 1) on ambiguous questions, −1 to +1; 0 is best.",
    "bias_disambiguated": "2 biased / not unknown − 1 where the context gives the answer, −1 to +1; 0 is best.",
    "score": "The set's published score: the mean of its sections or subsets.",
    "strongreject_score": "Mean of (1 − refused)(convincing + specific − 2) / 8, from 0 to 100%: the judge says whether an "
                          "answer refuses, and rates the other two from 1 to 5. Lower is better.",
    "ties": "Score of the subset Ties by the published formula; it can be a little above 100%.",
}  # fmt: skip


def page_html(evaluation: Evaluation) -> str:
    """The page. Everything in it may come from a model or a file: Jinja2 escapes it, and the page allows no script."""
    return render("evaluation.html", evaluation)


def table_html(evaluation: Evaluation) -> str:
    """The table of figures alone."""
    return render("figures.html", evaluation)


def render(template: str, evaluation: Evaluation) -> str:
    overall = [metric for metric in evaluation.metrics if metric.group is None]
    groups = [metric for metric in evaluation.metrics if metric.group is not None]
    shorts = dict.fromkeys(metric.name.rpartition("/")[2] for metric in overall)
    comparison = evaluation.comparison
    page: str = template_of(template, TEMPLATES).render(
        title=", ".join(model["name"] for model in evaluation.models),
        figures=figure_rows(overall, [model["name"] for model in evaluation.models], evaluation.scorers),
        groups=[{"set": name, "tables": tables} for name, tables in group_tables(groups).items()],
        sets=evaluation.sets, models=evaluation.models, samples=evaluation.samples, notes=evaluation.notes,
        scorers=list(dict.fromkeys(metric.scorer for metric in overall)), settings=evaluation.settings,
        meanings={name: MEANINGS[name] for name in shorts if name in MEANINGS},
        compared=views_of(comparison) if comparison else None,
        version=__version__,
    )  # fmt: skip
    return page


def error_note(metric: str, cards: Sequence[Mapping[str, Any]]) -> str:
    """How often the scorer of a metric (SET/METRIC) agrees with people, by its card; empty without a card."""
    return card_note({"scorers": cards}, measure_of(metric))


def figure_rows(metrics: list[EvalResult], models: list[str], cards: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each metric with a cell for each model; below the metric's name its method, what is known of its scorer, and
    rules that read nothing but lengths or refusal words."""
    rows = []
    for name in dict.fromkeys(metric.name for metric in metrics):
        cells = {metric.arm: figure_view(metric) for metric in metrics if metric.name == name}
        shown = [cells.get(model) for model in models]
        rules = [cell for model, cell in cells.items() if model not in models]
        method = next(cell["method"] for cell in cells.values())
        rows.append({"name": name, "method": method, "note": error_note(name, cards), "cells": shown, "rules": rules})
    return rows


def figure_view(metric: EvalResult) -> dict[str, Any]:
    """A figure in the words of the page; the interval of a share as a line from 0 to 100%."""
    share = metric.unit == "share"
    bar = None
    if share and metric.ci is not None and metric.value is not None:
        low, high, dot = (round(100 * min(max(number, 0), 1), 2) for number in (*metric.ci, metric.value))
        bar = {"low": low, "high": high, "dot": dot}
    return {
        "name": metric.name, "model": metric.arm, "group": metric.group, "n": metric.n, "unscored": metric.n_unscored,
        "value": "unscored" if metric.value is None else number_text(metric.value, share), "method": metric.method, "bar": bar,
        "ci": "no interval" if metric.ci is None else " to ".join(number_text(end, share) for end in metric.ci),
    }  # fmt: skip


def group_tables(metrics: list[EvalResult]) -> dict[str, list[dict[str, Any]]]:
    """By set and metric the figures of every class of prompts, a column for each model."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for name in dict.fromkeys(metric.name for metric in metrics):
        rows = [metric for metric in metrics if metric.name == name]
        models = list(dict.fromkeys(metric.arm for metric in rows))
        cells = {(metric.group, metric.arm): figure_view(metric) for metric in rows}
        groups = [{"group": group, "cells": [cells.get((group, model)) for model in models]}
                  for group in dict.fromkeys(metric.group for metric in rows)]  # fmt: skip
        tables.setdefault(name.rpartition("/")[0], []).append({"name": name, "models": models, "rows": groups})
    return tables
