"""Win rates: how often a judge prefers the answers of the last model to those of another arm, read in both orders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from charter.effects import Adjusted, adjusted_for_length
from charter.evaluation.arms import ScoredResponse
from charter.records import Judgment
from charter.run.files import read_jsonl
from charter.statistics import Estimate, Interval, clustered_share

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

    A tie counts half.
    """
    result = results.get(STAGE, {})
    last, rows = result.get("last"), []
    tokens = {arm: lengths(run, arm) for arm in (*result.get("arms", ()), last) if arm is not None}
    for arm in result.get("arms", ()):
        judgments = list(read_jsonl(run / STAGE / judgments_name(arm), Judgment))
        outcomes, prompts = [outcome(j) for j in judgments], [j.prompt_id for j in judgments]
        rate = clustered_share(outcomes, prompts)
        equal = adjusted_for_length([0.5] * len(outcomes), outcomes, tokens[arm], tokens[last], prompts)
        value, ci = at_equal_length(rate, equal)
        rows.append({
            "a": arm, "b": last, "value": rate.value, "ci": rate.ci, "n": rate.n, "n_unscored": rate.n_unscored,
            "wins": outcomes.count(1.0), "ties": outcomes.count(0.5), "losses": outcomes.count(0.0), "judge": result["judge"],
            "protocol": result["protocol"], "independent": result["independent"], "method": rate.method,
            "at_equal_length": value, "ci_at_equal_length": ci,
        })  # fmt: skip
    return rows


def at_equal_length(rate: Estimate, equal: Adjusted) -> tuple[float | None, Interval | None]:
    """The win rate between answers of one length, from the difference to an even rate, and its interval: both between 0 and 1,
    the interval at least as wide as that of the raw rate."""
    if equal.difference is None or rate.value is None:
        return None, None
    value = min(max(0.5 + equal.difference, 0.0), 1.0)
    if equal.ci is None or rate.ci is None:
        return value, None
    low = min(0.5 + equal.ci[0], value - (rate.value - rate.ci[0]))
    high = max(0.5 + equal.ci[1], value + (rate.ci[1] - rate.value))
    return value, (max(0.0, low), min(1.0, high))


def lengths(run: Path, arm: str) -> list[float]:
    """Tokens of each answer of an arm, as the evaluation counted them."""
    return [row.values[TOKENS] or 0.0 for row in read_jsonl(run / f"evaluate/verdicts.{arm}.jsonl", ScoredResponse)]
