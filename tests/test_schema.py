"""The published form of report.json."""

import html
import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import charter.evaluation
from charter.evaluation.page import page_html
from charter.evaluation.schema import ReportFile, report_schema
from charter.evaluation.words import number_of, number_text, p_text, seconds_text
from charter.metrics import METRICS

SCHEMA = Path(__file__).parents[1] / "docs/report.schema.json"
TEMPLATES = Path(charter.evaluation.__file__).parent / "templates"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[−-]?\d+)?")


def test_the_published_schema_is_that_of_the_code():
    assert json.loads(SCHEMA.read_text()) == json.loads(json.dumps(report_schema())), "run python docs/report_schema.py"


def test_the_report_of_a_run_has_the_published_form(finished_run):
    report = json.loads((finished_run / "report.json").read_text())
    ReportFile.model_validate(report)
    assert report["data_card"]["prompts"] > 0
    with pytest.raises(ValidationError, match="surprise"):
        ReportFile.model_validate({**report, "surprise": 1})
    with pytest.raises(ValidationError, match="metrics"):
        ReportFile.model_validate({**report, "metrics": [{"name": "kl"}]})


def numbers_in(text):
    return {number.rstrip(",") for number in NUMBER.findall(text)}


def shown_forms(value):
    """The numbers of the texts in which the page may write a value of the report."""
    if isinstance(value, dict):
        return set().union(*map(shown_forms, [*value, *value.values()]))
    if isinstance(value, list):
        return set().union({str(len(value))}, *map(shown_forms, value))
    number = number_of(value)
    forms = [str(value)]
    if number is not None:
        size = abs(number)
        forms += [number_text(size), number_text(size, True), f"{size:g}", f"{size * 100:.1f}", f"{size * 100:g}", p_text(size)]
        forms += [seconds_text(size)]
    return numbers_in(" ".join(forms))


def read_numbers(page):
    """The numbers that a reader sees: without the axes of plots, styles, and the counts on what is filtered and unfolded."""
    text = re.sub(r"<(style|svg|form|summary)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return numbers_in(html.unescape(re.sub(r"<[^>]*>", " ", text)))


def test_every_number_of_the_page_stands_in_the_report(finished_run):
    report = json.loads((finished_run / "report.json").read_text())
    fixed = " ".join([*(metric.meaning for metric in METRICS.values()), *(file.read_text() for file in TEMPLATES.glob("*.html"))])
    states = [row["state"] for row in report["detectors"]]
    counted = {str(states.count(state)) for state in states} | {str(len(states) - states.count("did not run"))}
    known = shown_forms(report) | numbers_in(fixed) | counted
    assert read_numbers((finished_run / "report.html").read_text()) <= known
    report["metrics"][0]["value"] = 0.123456
    assert "12.3" in read_numbers(page_html(report)) - known
