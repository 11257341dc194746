"""One recipe under several seeds: a run folder for each, and one table that shows every seed."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from charter.errors import GateError
from charter.pipeline import run_recipe
from charter.recipe.recipe import Recipe
from charter.run.files import atomic_path, read_json, write_json


def run_seeds(recipe: Recipe, folder: Path, n: int, *, until: str, quiet: bool) -> dict[str, Any]:
    """Run the recipe under its seed and the n - 1 seeds after it, in ``folder``/seed-N; write seeds.json and seeds.csv.

    A seed that a gate stops is part of the result, and the other seeds run.
    """
    reports = []
    for seed in range(recipe.seed, recipe.seed + n):
        place = folder / f"seed-{seed}"
        try:
            report = run_recipe(recipe.model_copy(update={"seed": seed}), place, until=until, quiet=quiet)
        except GateError:
            report = read_json(place / "report.json")
        reports.append({**report, "folder": str(place)})
    metrics = spread_of(reports)
    measures = list(recipe.evaluation.measures) if recipe.evaluation is not None else []
    result = {"title": recipe.title, "own": measures, "runs": [seed_summary(report) for report in reports], "metrics": metrics}
    write_json(folder / "seeds.json", result)
    with atomic_path(folder / "seeds.csv") as temporary:
        temporary.write_text(as_csv(metrics), encoding="utf-8")
    return result


def seed_summary(report: dict[str, Any]) -> dict[str, Any]:
    """The result of one seed in a line."""
    return {
        "seed": report["seed"],
        "folder": report["folder"],
        "stopped": report["stopped"],
        "verdict": report["verdict"]["word"] if report["metrics"] else None,
        "wall_s": round(sum(stage["wall_s"] for stage in report["stages"]), 2),
    }


def spread_of(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each metric of each arm over the seeds that measured it: every value with its interval, the mean, lowest and highest. A
    handful of seeds is too few for an interval over seeds."""
    values: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for report in reports:
        for metric in report["metrics"]:
            if metric["group"] is None:
                entry = {"seed": report["seed"], "value": metric["value"], "ci": metric["ci"]}
                values.setdefault((metric["name"], metric["arm"]), []).append(entry)
    rows = []
    for (name, arm), entries in values.items():
        scored = [entry["value"] for entry in entries if entry["value"] is not None]
        rows.append({
            "name": name, "arm": arm, "seeds": entries, "mean": sum(scored) / len(scored) if scored else None,
            "low": min(scored, default=None), "high": max(scored, default=None),
        })  # fmt: skip
    return rows


def as_csv(metrics: Sequence[dict[str, Any]]) -> str:
    """One line for each metric, arm and seed."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["name", "arm", "seed", "value", "ci_low", "ci_high"])
    for row in metrics:
        for entry in row["seeds"]:
            writer.writerow([row["name"], row["arm"], entry["seed"], entry["value"], *(entry["ci"] or (None, None))])
    return out.getvalue()


def seeds_table(result: dict[str, Any], names: Sequence[str]) -> list[str]:
    """The named metrics and the measures of the recipe, as lines for the terminal: each arm with its mean and every seed."""
    lines = []
    for row in result["metrics"]:
        if row["name"] in names or row["name"] in result["own"]:
            each = ", ".join("unscored" if entry["value"] is None else f"{entry['value']:.3f}" for entry in row["seeds"])
            mean = "–" if row["mean"] is None else f"{row['mean']:.3f}"
            lines.append(f"{row['name']:22}{row['arm']:12}{mean:>8}   ({each})")
    for run in result["runs"]:
        word = run["stopped"] or run["verdict"] or "done"
        lines.append(f"seed {run['seed']}: {word}; {run['wall_s']:.0f} s; {run['folder']}")
    return lines
