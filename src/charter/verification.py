"""`charter verify RUN`: what a run folder stores, against its hashes, and the figures of its report, against the stored rows.

No model is loaded: what a model measured of a response (KL, tokens, the scorer's verdict) is read from the rows of `evaluate`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.evaluation.arms import BEST_OF
from charter.evaluation.contrasts import margins_of
from charter.evaluation.figures import changed_rows, figures_of, stored_arms
from charter.evaluation.model_card import cards_of
from charter.evaluation.page import as_json, metrics_csv
from charter.evaluation.verdict import verdict
from charter.records import Filters, Judgment, Response, content_id
from charter.run.files import json_rows, read_json, read_jsonl
from charter.run.seals import MANIFEST, Difference, broken_seals
from charter.stages.evaluate.settings import EvaluationSettings
from charter.summary import ARM_WORDS, TRAININGS, arm_rows, stage_kind, stored_figures
from charter.votes.judgments import read_judgments, why_forgotten

DESCRIPTION = ("stage", "seed", "settings", "inputs", "code")
FIGURES = ("metrics", "contrasts", "samples")
OBJECTS = ("better", "margins", "primary", "provenance", "recipe", "verdict")
ROWS = ("alarms", "contrasts", "detectors", "gates", "metrics")


def verify_run(run: Path) -> dict[str, Any]:
    """`differences`: {file, line, field, words}, none where all is equal; `notes`: what was not checked, and what was taken out
    when and why (:mod:`charter.forgetting`); `stages`: the stages that were checked. InputError if the folder has no report."""
    if not (run / "report.json").is_file():
        raise InputError("not a run folder: report.json is missing; charter run RECIPE --out makes one", file=run)
    notes: list[str] = []
    try:
        report = read_json(run / "report.json")
        names = [row["name"] for row in report["stages"] if row["done"]]
        check_shapes(report)
    except (InputError, KeyError, TypeError):
        broken = Difference("report.json", "not a valid report; charter run writes it again")
        return result_of(run, [], [broken], notes)
    differences = [difference for name in names for difference in stage_differences(run, name, report, notes)]
    for file in sorted(run.rglob("judgments.jsonl")):
        differences += row_differences(run, file) if file.parent.name not in names else ()
        notes += cuts_of(run, file)
    differences += figure_differences(run, report, names)
    differences += report_differences(run, report, names)
    return result_of(run, names, differences, notes)


def check_shapes(report: Mapping[str, Any]) -> None:
    """TypeError if a part of a report from which the verdict, the table or a model card is made has another form."""
    for key in OBJECTS:
        if not isinstance(report.get(key, {}), dict):
            raise TypeError(key)
    for key in ROWS:
        if not isinstance(rows := report.get(key, []), list) or not all(isinstance(row, dict) for row in rows):
            raise TypeError(key)


def result_of(run: Path, names: list[str], differences: list[Difference], notes: list[str]) -> dict[str, Any]:
    rows = [vars(difference) | {"text": difference.text} for difference in differences]
    return {"run": str(run), "equal": not rows, "stages": names, "differences": rows, "notes": notes}


def inside(error: InputError, run: Path, file: Path) -> Difference:
    """What a reader of files says of a broken one, as a difference."""
    return Difference(file.relative_to(run).as_posix(), str(error).replace(f"{run}/", ""))


def stage_differences(run: Path, name: str, report: Mapping[str, Any], notes: list[str]) -> Iterator[Difference]:
    """The manifest of a stage, its files, the ids of its responses, and its chain of judgments."""
    shown = f"{name}/{MANIFEST}"
    try:
        manifest = read_json(run / name / MANIFEST)
    except InputError as error:
        yield inside(error, run, run / shown)
        return
    if not isinstance(manifest, dict) or "result" not in manifest:
        yield Difference(shown, "missing, or of a stage that is not finished; the report says that it is done")
        return
    description = {key: manifest.get(key) for key in DESCRIPTION}
    known = ((report.get("provenance") or {}).get("stages") or {}).get(name)
    if manifest.get("fingerprint") not in (content_id(description),) or manifest["fingerprint"] != known:
        yield Difference(shown, "not the hash of its settings, inputs and code, or not that of the report", field="fingerprint")
    for cut in manifest.get("forgotten", ()):
        notes.append(f"{name}: {', '.join(cut['files'])} lost a person on {cut['when']} ({cut['reason']})")
    if "files" in manifest:
        yield from broken_seals(run, name, manifest)
    else:
        notes.append(f"{name}: no hashes recorded; the run is older than charter verify")
    for file in sorted((run / name).glob("*.jsonl")):
        yield from row_differences(run, file)


def row_differences(run: Path, file: Path) -> Iterator[Difference]:
    """Responses whose id is not the hash of their content; judgments whose chain is broken."""
    shown = file.relative_to(run).as_posix()
    try:
        if file.name.startswith("judgments."):
            read_judgments(file)
        elif file.name.startswith(("responses.", "originals.", "helpful.")):
            for line, row in enumerate(read_jsonl(file, Response), start=1):
                if row.id != content_id(row.prompt_id, row.model, row.generation.seed, row.text):
                    yield Difference(shown, "not the hash of prompt, model, seed and text", line=line, field="id")
    except InputError as error:
        yield Difference(shown, str(error).removeprefix(str(file)).lstrip(", :"))


def cuts_of(run: Path, file: Path) -> list[str]:
    """A line for each day and reason for which judgments of a file were taken out."""
    try:
        cuts = Counter(cut for judgment in read_jsonl(file, Judgment) if (cut := why_forgotten(judgment)))
    except InputError:
        return []  # a difference already
    return [f"{file.relative_to(run).as_posix()}: {n} judgments of a person were taken out on {when} ({reason}); the chain keeps "
            "their hashes" for (reason, when), n in sorted(cuts.items())]  # fmt: skip


def figure_differences(run: Path, report: Mapping[str, Any], names: list[str]) -> Iterator[Difference]:
    """Metrics, contrasts and samples from the stored rows, against the report; the verdict and metrics.csv from the report."""
    stage = run / "evaluate"
    if "evaluate" in names:
        try:
            settings = EvaluationSettings.model_validate(report["recipe"]["evaluation"])
            manifest = read_json(stage / MANIFEST)
            yield from declaration_differences(manifest, settings, report)
            measured = manifest["result"]["metrics"]  # which keep the order of the measures; keys of JSON files are sorted
            order = dict.fromkeys(row["name"] for row in measured if row["name"] in settings.measures)
            settings = settings.model_copy(update={"measures": {name: settings.measures[name] for name in order}})
            arms = stored_arms(stage, run / "prompts" / "prompts.jsonl", settings, measured)
            for name, arm in arms.items():
                for line, field, words in changed_rows(arm, stage):
                    yield Difference(f"evaluate/verdicts.{name}.jsonl", words, line=line, field=field)
            expected = as_json(figures_of(arms, report["primary"], settings))
            for key in FIGURES:
                yield from unequal(expected[key], report.get(key), key)
        except (InputError, KeyError, TypeError, ValueError, IndexError) as error:
            yield Difference("evaluate", f"the figures cannot be recomputed: {str(error).replace(f'{run}/', '')}")
    yield from unequal(verdict(report), report.get("verdict"), "verdict")
    table = run / "metrics.csv"
    if not table.is_file() or table.read_bytes() != metrics_csv(report).encode():
        yield Difference("metrics.csv", "not the table of report.json; charter report RUN writes it again")


def declaration_differences(
    manifest: Mapping[str, Any], settings: EvaluationSettings, report: Mapping[str, Any]
) -> Iterator[Difference]:
    """Arms, margins, directions and primary comparison of the report that are not those under which the stage `evaluate` ran."""
    ran_with = {key: value for key, value in manifest["settings"].items()
                if isinstance(value, int | float) or key in Filters.model_fields}  # fmt: skip
    yield from unequal(ran_with, {key: getattr(settings, key, None) for key in ran_with}, "recipe.evaluation")
    for name, measure in (manifest["settings"].get("measures") or {}).items():
        for key in ("better", "margin"):
            shown = getattr(settings.measures.get(name), key, None)
            yield from unequal(measure.get(key), shown, f"recipe.evaluation.measures.{name}.{key}")
    yield from unequal(as_json(margins_of(settings)), report.get("margins"), "margins")
    yield from unequal({name: measure.better for name, measure in settings.measures.items()}, report.get("better"), "better")
    models = [name.removeprefix("model ") for name in manifest["inputs"] if name.startswith("model ")]
    measured = [name for name in ARM_WORDS if name in models or (name == BEST_OF and settings.best_of is not None)]
    yield from unequal(arm_rows(measured, report["recipe"], settings), report.get("arms"), "arms")
    for row in manifest["result"]["contrasts"]:
        if row["primary"]:
            yield from unequal({key: row[key] for key in ("name", "a", "b")}, report.get("primary"), "primary")


def report_differences(run: Path, report: Mapping[str, Any], names: list[str]) -> Iterator[Difference]:
    """All else in the report that follows from the manifests, the step logs and the stored rows: judges, reward model, revisions,
    curves, the gold curve, gates, alarms and detectors."""
    try:
        results = {name: read_json(run / name / MANIFEST)["result"] for name in names}
        logs = {name: json_rows(run / name / "metrics.jsonl") for name in names if stage_kind(name) in TRAININGS}
        expected = as_json(stored_figures(run, results, logs))
    except (InputError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        yield Difference("report.json", f"the rest of the report cannot be recomputed: {str(error).replace(f'{run}/', '')}")
        return
    for key in expected.keys() - set(FIGURES):  # those were made from the rows themselves
        if expected[key] or report.get(key) is not None:  # an older report lacks what its run does not have
            yield from unequal(expected[key], report.get(key), key)
    for name, result in results.items():
        for gate in result.get("gates", []):
            if gate not in report.get("gates", []):
                yield Difference("report.json", f"the gate {gate.get('name')!r} of {name} is missing or changed", field="gates")
    try:
        cards = list(cards_of(run, report))
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        yield Difference("report.json", f"the model cards cannot be made from it ({type(error).__name__}: {error})")
        return
    for path, text in cards:
        if path.exists() and path.read_text(encoding="utf-8") != text:
            yield Difference(path.relative_to(run).as_posix(), "not the card that the report gives")


def unequal(expected: Any, stored: Any, field: str) -> Iterator[Difference]:
    """The places of report.json that are not what is expected; numbers are equal within 1e-9 of their size."""
    if isinstance(expected, dict) and isinstance(stored, dict):
        for key in {**expected, **stored}:
            yield from unequal(expected.get(key), stored.get(key), f"{field}.{key}")
    elif isinstance(expected, list) and isinstance(stored, list) and len(expected) == len(stored):
        for i, pair in enumerate(zip(expected, stored, strict=True)):
            yield from unequal(*pair, f"{field}.{i}")
    elif not same_value(expected, stored):
        yield Difference("report.json", f"{str(stored)[:80]!r} is stored, the rows give {str(expected)[:80]!r}", field=field)


def same_value(a: Any, b: Any) -> bool:
    """Equal, and numbers nearly so: another machine may round the last digit differently."""
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return bool(a == b)
