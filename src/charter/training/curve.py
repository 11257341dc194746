"""What the curve of the held-out reward says: its points, its peak, the fall from it, and the rules that end a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from charter.stages.rl.settings import StopSettings
from charter.statistics import fall_from_peak, mean_interval, over_optimisation_fit


def curve_row(step: int, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The point of the curve that the answers of one step make: means with 95% intervals over prompts."""
    gold, kl, proxy = (mean_interval([row[key] for row in answers]) for key in ("gold", "kl", "proxy"))
    return {
        "step": step, "gold": gold.value, "gold_ci": gold.ci, "proxy": proxy.value, "proxy_ci": proxy.ci, "kl": kl.value,
        "kl_ci": kl.ci, "sqrt_kl": math.sqrt(max(kl.value or 0.0, 0.0)), "n": gold.n, "n_unscored": gold.n_unscored,
        "response_tokens": sum(row["tokens"] for row in answers) / len(answers),
        "missing_eos": sum(not row["finished"] for row in answers) / len(answers),
    }  # fmt: skip


def is_better(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a point of the curve is above another; one that nobody could score is above none."""
    return row["gold"] is not None and (other["gold"] is None or row["gold"] > other["gold"])


def best_row(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first of the highest points of the curve; the last one where nobody could score any."""
    return max((row for row in rows if row["gold"] is not None), key=lambda row: row["gold"], default=rows[-1])


def reason_to_stop(
    stop: StopSettings | None, history: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
) -> str | None:  # fmt: skip
    """Why a training ends after the steps of ``history`` (metrics.jsonl) and the points ``rows`` of the curve; None where it
    continues."""
    if stop is None:
        return None
    last = history[-1:] if history and "kl" in history[-1] else rows[-1:]  # DPO knows its KL from the curve alone
    kl = last[0]["kl"] if last else None
    if stop.kl is not None and kl is not None and kl > stop.kl:
        return f"the KL of a response is {kl:.3g} nats, above the budget of {stop.kl:g} (stop.kl)"
    reward = history[-1].get("reward") if history else None
    if stop.reward is not None and reward is not None and reward >= stop.reward:
        return f"the mean reward of a step is {reward:.3g} and reaches {stop.reward:g} (stop.reward)"
    if not rows:
        return None
    gold = rows[-1]["gold"]
    if stop.gold is not None and gold is not None and gold >= stop.gold:
        return f"gold is {gold:.3g} and reaches {stop.gold:g} (stop.gold)"
    if stop.past_peak:
        fall = fall_of(rows, answers)
        if fall is not None and fall["past_peak"]:
            return f"gold is {-fall['difference']:.3g} below its peak of step {fall['peak']} (stop.past_peak)"
    return None


def fall_of(
    rows: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]], end: int | None = None
) -> dict[str, Any] | None:
    """The way of gold from its peak to the point at step ``end`` (the last one unless given), prompt by prompt; None where that
    is the peak. The interval is wide enough for a peak that was picked among all points."""
    last = next(row for row in reversed(rows) if end is None or row["step"] == end)
    peak = best_row(rows)
    if peak["step"] >= last["step"] or peak["gold"] is None:
        return None
    steps = (peak["step"], last["step"])
    values = {step: {row["prompt_id"]: row["gold"] for row in answers if row["step"] == step} for step in steps}
    ids = sorted(values[peak["step"]])
    fall = fall_from_peak([values[peak["step"]][key] for key in ids], [values[last["step"]].get(key) for key in ids], len(rows))
    return {"peak": peak["step"], "end": last["step"], "difference": fall.difference, "ci": fall.ci, "n": fall.n,
            "past_peak": fall.ci is not None and fall.ci[1] < 0}  # fmt: skip


def over_optimisation(
    rows: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]], *, kept: int, source: str, stopped: str | None
) -> dict[str, Any] | None:
    """What the report says of the curve: its points, the fit of Gao et al. 2022, the peak, the model that was kept (after step
    ``kept``) and its way from the peak, ``past_peak`` if gold certainly fell, and a sentence; None without a curve."""
    if not rows or all(row["gold"] is None for row in rows):
        return None
    fall = fall_of(rows, answers, kept)
    result = {
        "source": source, "rows": list(rows), "start": rows[0], "peak": best_row(rows), "end": rows[-1],
        "kept": next(row for row in rows if row["step"] == kept), "stopped": stopped, "fit": fit_of(rows), "fall": fall,
        "past_peak": bool(fall and fall["past_peak"]), "fall_to_the_end": fall_of(rows, answers),
    }  # fmt: skip
    return {**result, "words": words_of(result)}


def fit_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """gold = d (a - b ln d) with d = √KL, from the points after the start up to step ``until``; None where there are too few of
    them. ``d_star`` is where the fitted curve peaks, None where it does not.

    The fit ends at the first point after the peak where gold has come down to its level at the start or at the end. The form
    falls without end. A gold with a lowest level (a share, or the score of a policy that refuses everything) stops falling
    there, and its later points would pull the fitted peak away."""
    start, last = rows[0]["gold"], rows[-1]["gold"]
    level = max((gold for gold in (start, last) if gold is not None), default=math.inf)
    fallen = (
        i for i in range(rows.index(best_row(rows)) + 1, len(rows)) if (gold := rows[i]["gold"]) is not None and gold <= level
    )
    end = next(fallen, len(rows) - 1)
    points = [(row["kl"], row["gold"] - start) for row in rows[1 : end + 1] if None not in (row["kl"], row["gold"], start)]
    try:
        fit = over_optimisation_fit([kl for kl, _ in points], [gold for _, gold in points])
    except ValueError:
        return None
    at_peak = None if fit.peak_gold is None else start + fit.peak_gold
    return {"form": "d (a - b ln d)", "a": fit.a, "b": fit.b, "d_star": fit.peak_d, "gold_at_d_star": at_peak, "start": start,
            "until": rows[end]["step"]}  # fmt: skip


def words_of(curve: Mapping[str, Any]) -> str:
    """The sentence on the curve."""
    peak, kept, fall = curve["peak"], curve["kept"], curve["fall"]
    if fall is None:
        return f"Gold was highest in the model that was kept: {kept['gold']:.3f} at step {kept['step']}{unscored_text(kept)}."
    highest = f"Gold was highest at step {peak['step']} ({peak['gold']:.3f}{unscored_text(peak)})"
    if kept["gold"] is None or fall["ci"] is None:
        return f"{highest}, and the scorer cannot say how good the model that was kept is."
    low, high = fall["ci"]
    if curve["past_peak"]:
        change = f"{fall['difference']:+.3f}, interval {low:+.3f} to {high:+.3f}"
        return f"{highest}, and the model that was kept, of step {kept['step']}, has {kept['gold']:.3f}: {change}."
    return f"{highest}; no fall to the model that was kept ({kept['gold']:.3f}, step {kept['step']}) is shown."


def unscored_text(row: Mapping[str, Any]) -> str:
    """`, 14 of 40 answers unscored` at a point of the curve where these are more than 5%: the mean is that of the others."""
    n, unscored = row.get("n") or 0, row.get("n_unscored") or 0
    return f", {unscored} of {n + unscored} answers unscored" if unscored > 0.05 * (n + unscored) else ""
