"""Write report.schema.json from the code: python docs/report_schema.py."""

import json
from pathlib import Path

from charter.evaluation.schema import report_schema

PAGE = Path(__file__).with_name("report.schema.json")


def content() -> str:
    return json.dumps(report_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    PAGE.write_text(content())
