"""The published form of report.json."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from charter.evaluation.schema import ReportFile, report_schema

SCHEMA = Path(__file__).parents[1] / "docs/report.schema.json"


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
