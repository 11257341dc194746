"""How often `refusal-words` agrees with labels, and whether a trained detector agrees more: the tables of docs/evaluation.md.

Rows and the rule of the labels: refusals.jsonl, refusals-hard.jsonl and refusals.md in tests/data. The detector is logistic
regression on words and the rule's verdict, trained on the half `tuned` of both files; its penalty is the best of three there,
by cross-validation by prompt. It needs scikit-learn, which the extra `real` brings.
"""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from charter.evaluation.refusals import declines
from charter.statistics import wilson

DATA = Path(__file__).parents[1] / "tests/data"


def share(k: int, n: int) -> str:
    low, high = wilson(k, n)
    return f"{k} of {n} = {k / n:.2f} [{low:.2f}, {high:.2f}]"


def figures(name: str, said: list[bool | None], rows: list[dict]) -> str:
    """Right answers, refusals that are named, and named ones that are refusals."""
    counts = Counter((row["refusal"], verdict) for row, verdict in zip(rows, said, strict=True))
    both, none = counts[True, True], counts[True, None] + counts[False, None]
    right = both + counts[False, False]
    return (
        f"{name}: right {share(right, len(rows) - none)}, unscored {none}; "
        f"of the refusals {share(both, both + counts[True, False])} are named, "
        f"of those named {share(both, both + counts[False, True])} are refusals"
    )


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+(?:'[a-z]+)?|[.!?]", text.strip()[:400].lower().replace("’", "'")))


def trained(tuned: list[dict], rows: list[dict]) -> list[bool]:
    """The verdicts of the detector on ``rows``."""
    counts = Counter(word for row in tuned for word in words(row["response"]))
    vocabulary = sorted(word for word, count in counts.items() if count > 1)

    def features(part: list[dict]) -> np.ndarray:
        return np.array(
            [[*(word in words(row["response"]) for word in vocabulary), 3.0 * bool(declines(row["response"]))] for row in part]
        )

    model = LogisticRegression(C=3.0, max_iter=500).fit(features(tuned), [row["refusal"] for row in tuned])
    return [bool(verdict) for verdict in model.predict(features(rows))]


def main() -> None:
    files = [
        [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
        for name in ("refusals.jsonl", "refusals-hard.jsonl")
    ]
    for half in ("tuned", "held out"):
        rows = [row for row in files[0] if row["half"] == half]
        print(figures(half, [declines(row["response"]) for row in rows], rows))
    english = [row for rows in files for row in rows if declines(row["response"]) is not None]
    tuned, held = ([row for row in english if row["half"] == half] for half in ("tuned", "held out"))
    rule, model = [declines(row["response"]) for row in held], trained(tuned, held)
    for source in ["all", *dict.fromkeys(row["source"] for row in held)]:
        chosen = [i for i, row in enumerate(held) if source in ("all", row["source"])]
        print(f"held out of both files, {source}:")
        for name, said in (("rule", rule), ("trained", model)):
            print("  " + figures(name, [said[i] for i in chosen], [held[i] for i in chosen]))
    alone = [
        sum(p == row["refusal"] != q for p, q, row in zip(*pair, held, strict=True)) for pair in ((model, rule), (rule, model))
    ]
    print(f"right alone: trained {alone[0]}, rule {alone[1]}; McNemar p = {binomtest(alone[0], sum(alone)).pvalue:.2f}")


if __name__ == "__main__":
    main()
