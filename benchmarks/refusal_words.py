"""How often `refusal-words` agrees with labels made by hand: the table of docs/evaluation.md.

The rows and the rule of the labels are in tests/data/refusals.jsonl and tests/data/refusals.md.
"""

import json
from collections import Counter
from pathlib import Path

from charter.evaluation.refusals import declines
from charter.statistics import wilson

ROWS = Path(__file__).parents[1] / "tests/data/refusals.jsonl"


def share(k: int, n: int) -> str:
    low, high = wilson(k, n)
    return f"{k} of {n} = {k / n:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    for half in ("tuned", "held out"):
        counts = Counter((row["refusal"], declines(row["response"])) for row in rows if row["half"] == half)
        both, none = counts[True, True], counts[True, None] + counts[False, None]
        right = both + counts[False, False]
        print(f"{half}: right {share(right, counts.total() - none)}, unscored {none}")
        print(f"  of the refusals {share(both, both + counts[True, False])} are named, "
              f"of those named {share(both, both + counts[False, True])} are refusals")  # fmt: skip


if __name__ == "__main__":
    main()
