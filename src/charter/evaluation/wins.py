"""Win rates: how often a judge prefers the answers of the last model to those of another arm, read in both orders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from charter.effects import adjusted_for_length
from charter.evaluation.arms import ScoredResponse
from charter.records import Judgment
from charter.run.files import read_jsonl
from charter.statistics import mean_interval

STAGE, TOKENS = "win_rate", "response_tokens"


def judgments_name(arm: str) -> str:
    """The file of the stage with the judgments of an arm's answers, shown first, against those of the last model."""
    return f"judgments.{arm}.jsonl"


def outcome(judgment: Judgment) -> float | None:
    """1 where the judge prefers the second response in both orders, 0 where it prefers the first in both, ½ where the orders
    disagree or the responses tie, None without a verdict."""
    if judgment.margins_by_order is None or not judgment.has_verdict:
        return None
    first, second = judgment.order
    if judgment.ranks[first] == judgment.ranks[second]:
        return 0.5
    a, b = judgment.margins_by_order
    return 0.5 if a * b <= 0 else float(a < 0)


def win_rates(run: Path, results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each arm that the last model was compared with, from the stored judgments; none where no judge was asked.

    A tie counts half. At equal length: the fit of :func:`charter.effects.adjusted_for_length` to wins less losses, halved.
    """
    result = results.get(STAGE, {})
    last, rows = result.get("last"), []
    tokens = {arm: lengths(run, arm) for arm in (*result.get("arms", ()), last) if arm is not None}
    for arm in result.get("arms", ()):
        judgments = list(read_jsonl(run / STAGE / judgments_name(arm), Judgment))
        outcomes, prompts = [outcome(j) for j in judgments], [j.prompt_id for j in judgments]
        rate = mean_interval(outcomes, prompts)
        equal = adjusted_for_length([0.5] * len(outcomes), outcomes, tokens[arm], tokens[last], prompts)
        rows.append({
            "a": arm, "b": last, "value": rate.value, "ci": rate.ci, "n": rate.n, "n_unscored": rate.n_unscored,
            "wins": outcomes.count(1.0), "ties": outcomes.count(0.5), "losses": outcomes.count(0.0), "judge": result["judge"],
            "independent": result["independent"], "method": rate.method,
            "at_equal_length": None if equal.difference is None else 0.5 + equal.difference,
            "ci_at_equal_length": None if equal.ci is None else tuple(0.5 + end for end in equal.ci),
        })  # fmt: skip
    return rows


def lengths(run: Path, arm: str) -> list[float]:
    """Tokens of each answer of an arm, as the evaluation counted them."""
    return [row.values[TOKENS] or 0.0 for row in read_jsonl(run / f"evaluate/verdicts.{arm}.jsonl", ScoredResponse)]
