"""A recipe without each of its principles in turn: what the absence of a principle changes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from charter.constitution.constitution import Constitution, load_constitution, save_constitution
from charter.errors import GateError, InputError
from charter.evaluation.arms import ScoredResponse
from charter.metrics import HEADLINE
from charter.pipeline import run_recipe
from charter.recipe.recipe import Recipe
from charter.recipe.source import File
from charter.run.files import read_json, read_jsonl, write_json
from charter.run.team import team
from charter.statistics import paired_difference
from charter.votes.exports import write_csv

COLUMNS = ("without", "metric", "prompts", "all", "without it", "difference", "low", "high", "n")
NOT_COPIED = ("without-*", ".without-*", "drop-one.*", "report.*", "metrics.csv", ".lock")


def run_without_each(recipe: Recipe, folder: Path, *, quiet: bool) -> dict[str, Any]:
    """Run the recipe in ``folder``, then without each principle in ``folder``/without-ID; write drop-one.json and drop-one.csv.

    Each variant begins as a copy of the whole run, so stages and rows that do not read the principle are not made again. A
    variant that a gate stops, or that a stage cannot do without the principle, is part of the result. InputError if the recipe
    has fewer than two principles or no evaluation."""
    if recipe.constitution is None or recipe.evaluation is None:
        raise InputError("--drop-one needs a recipe with a constitution and an evaluation")
    constitution = load_constitution(Path(recipe.constitution))
    if len(constitution.principles) < 2:
        raise InputError("--drop-one leaves out one principle of several, and there is only one", file=recipe.constitution)
    report = run_recipe(recipe, folder, quiet=quiet)
    arm = next(name for name in ("policy", "sft", "base") if any(arm["name"] == name for arm in report["arms"]))
    names = [*HEADLINE, *recipe.evaluation.measures]
    variants: list[dict[str, Any]] = []
    for principle in constitution.principles:
        place = folder / f"without-{principle.id}"
        stopped = run_variant(recipe, without(constitution, principle.id), folder, place, quiet=quiet)
        changes = [] if stopped else changes_between(folder, place, arm, names, principle.id)
        variants.append({"principle": principle.id, "title": principle.title, "folder": str(place), "stopped": stopped,
                         "stages": stages_made(place), "changes": changes})  # fmt: skip
    result = {"title": recipe.title, "arm": arm, "run": str(folder), "variants": variants}
    write_json(folder / "drop-one.json", result)
    rows = [(row["principle"], *cells(change)) for row in variants for change in row["changes"]]
    write_csv(folder / "drop-one.csv", COLUMNS, rows)
    return result


def without(constitution: Constitution, name: str) -> Constitution:
    """The constitution without one of its principles."""
    return constitution.model_copy(update={"principles": tuple(p for p in constitution.principles if p.id != name)})


def run_variant(recipe: Recipe, constitution: Constitution, whole: Path, place: Path, *, quiet: bool) -> str | None:
    """Run the recipe under another constitution in a folder that begins as a copy of the whole run; why it stopped, or None."""
    team().on_main(lambda: begin_as_copy(whole, place))
    file = place / "constitution.yaml"
    save_constitution(constitution, file)
    try:
        run_recipe(recipe.model_copy(update={"constitution": File(file)}), place, quiet=quiet)
    except (GateError, InputError) as error:
        return str(error)
    return None


def begin_as_copy(whole: Path, place: Path) -> None:
    """Copy the stages of a run to a new folder, whole or not at all; a folder that is there stays as it is."""
    if not place.exists():
        aside = place.with_name(f".{place.name}")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(whole, aside, copy_function=link_weights, ignore=shutil.ignore_patterns(*NOT_COPIED))
        os.replace(aside, place)


def link_weights(source: str, target: str) -> None:
    """Copy a file; weights, which are never changed in place, become one more name of the same bytes where the disk can."""
    if source.endswith(".safetensors"):
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copy2(source, target)


def stages_made(run: Path) -> dict[str, Any]:
    """Of each stage of the run that was made for it, the rows that it kept of the whole run, by file."""
    stages = {}
    for manifest in sorted(run.glob("*/manifest.json"), key=lambda file: file.stat().st_mtime):
        result = (read_json(manifest) or {}).get("result", {})
        same = read_json(run.parent / manifest.parent.name / "manifest.json") == read_json(manifest)
        stages[manifest.parent.name] = {"skipped": same, "reused": result.get("reused", {})}
    return stages


def changes_between(whole: Path, place: Path, arm: str, names: Sequence[str], principle: str) -> list[dict[str, Any]]:
    """Each metric of an arm in both runs and its paired difference, with an interval clustered by prompt, on the held-out prompts
    of both: on all of them, and on those that the whole run sorted under the principle."""
    before, after = (
        {(row.prompt_id, row.index): row for row in read_jsonl(run / f"evaluate/verdicts.{arm}.jsonl", ScoredResponse)}
        for run in (whole, place)
    )
    both = [key for key in before if key in after]
    rows = []
    for group in (None, principle):
        keys = [key for key in both if group is None or before[key].principle == group]
        for name in names:
            scored = [key for key in keys if name in before[key].values and name in after[key].values]
            if not scored:
                continue
            a, b = ([run[key].values[name] for key in scored] for run in (before, after))
            change = paired_difference(a, b, [key[0] for key in scored])
            if change.difference is not None:
                pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
                means = [sum(map(float, side)) / len(pairs) for side in zip(*pairs, strict=True)]
                rows.append({"metric": name, "group": group, "all": means[0], "without": means[1],
                             "difference": change.difference, "ci": change.ci, "n": change.n})  # fmt: skip
    return rows


def cells(change: dict[str, Any]) -> list[Any]:
    """A change as cells of the CSV, after its principle."""
    where = "all" if change["group"] is None else "its own"
    return [change["metric"], where, change["all"], change["without"], change["difference"], *(change["ci"] or (None, None)),
            change["n"]]  # fmt: skip


def drop_one_table(result: dict[str, Any]) -> list[str]:
    """The changes as lines for the terminal."""
    head = f"{'without':18}{'metric':24}{'prompts':9}{'all':>8}{'without':>9}{'change':>9}  {'95% interval':20}{'n':>6}"
    lines = [f"{result['arm']} without a principle, minus {result['arm']} with all:", head]
    for variant in result["variants"]:
        if variant["stopped"]:
            lines.append(f"{variant['principle']:18}stopped: {variant['stopped']}")
        for change in variant["changes"]:
            _, where, all_, left, difference, low, high, n = cells(change)
            interval = "–" if low is None else f"{low:+.3f} to {high:+.3f}"
            lines.append(f"{variant['principle']:18}{change['metric']:24}{where:9}{all_:8.3f}{left:9.3f}{difference:+9.3f}"
                         f"  {interval:20}{n:6}")  # fmt: skip
        kept = [f"{row['reused']} of {row['rows']} rows of {stage}/{name}" for stage, made in variant["stages"].items()
                for name, row in made["reused"].items()]  # fmt: skip
        skipped = [stage for stage, made in variant["stages"].items() if made["skipped"]]
        lines.append(f"{'':18}not made again: {', '.join([*skipped, *kept]) or 'nothing'}")
    return [*lines, "The intervals are over prompts; another seed would train other models, so look at several."]
