"""A run under a changed constitution, against the same folder's figures from before the change."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from charter.comparing.compare import compare_results
from charter.comparing.sources import read_run
from charter.constitution.constitution import Constitution
from charter.constitution.difference import differences
from charter.errors import InputError
from charter.run.files import read_json

FOLDER = "before"
"""In a run folder: the report and the verdicts of its arms from before the last change of the constitution."""
LAST = ("policy", "sft", "base")


def keep_before(run: Path, constitution_hash: str) -> None:
    """Copy the report and the verdicts of a finished evaluation under another constitution to RUN/before, in place of what is
    there. Does nothing if the constitution is the same, or if the evaluation is not that of the report."""
    report = read_json(run / "report.json") or {}
    provenance, manifest = report.get("provenance", {}), read_json(run / "evaluate" / "manifest.json") or {}
    known = provenance.get("stages", {}).get("evaluate")
    if provenance.get("constitution_hash") in (None, constitution_hash[:16]) or "result" not in manifest:
        return
    if manifest.get("fingerprint") != known:
        return
    copy = run / f".{FOLDER}"
    shutil.rmtree(copy, ignore_errors=True)
    (copy / "evaluate").mkdir(parents=True)
    for file in (run / "report.json", *sorted(run.glob("evaluate/verdicts.*.jsonl"))):
        shutil.copyfile(file, copy / file.relative_to(run))
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    copy.rename(run / FOLDER)


def contrasts_with_before(run: Path) -> list[dict[str, Any]]:
    """Each metric of the last model that both evaluations have, prompt by prompt from before the change (a) to now (b), Holm over
    the metrics; empty if nothing was kept, or the two share no prompt."""
    folders = [run / FOLDER, run]
    arm = next((arm for arm in LAST if all((f / f"evaluate/verdicts.{arm}.jsonl").exists() for f in folders)), None)
    if arm is None:
        return []
    try:
        read = [read_run(name, folder, arm) for name, folder in (("before", folders[0]), ("now", folders[1]))]
        found = compare_results(read, margins={}, correction="holm", lower=())
    except InputError:  # nothing is shared
        return []
    keys = ("name", "n", "n_missing", "n_unscored", "value_a", "value_b", "difference", "ci", "p", "p_corrected", "method",
            "verdict")  # fmt: skip
    return [{"arm": arm, **{key: getattr(contrast, key) for key in keys}} for contrast in found.contrasts]


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting."""
    for key, value in settings.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]


def changes_since(run: Path, constitution: Constitution, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """What changed since the report in RUN/before: the principles (None if their text cannot be read there), and the names of the
    recipe's other settings. None without that report."""
    report = read_json(run / FOLDER / "report.json")
    if report is None:
        return None
    try:
        changes = differences(Constitution.model_validate(report.get("constitution")), constitution)
    except ValidationError:  # of an older version, or without its text
        changes = None
    old, new = (dict(leaves(settings)) for settings in (report.get("recipe", {}), recipe))
    names = {key for key in {*old, *new} if key not in ("constitution", "title") and old.get(key) != new.get(key)}
    return {
        "constitution_hash": report["provenance"]["constitution_hash"],
        "changes": changes and [{"change": row.change, "principle": row.principle, "words": row.words} for row in changes],
        "settings": sorted(names),
    }
