"""README.md of the model of a stage: its measured figures with intervals, and its origin.

A run writes it into its model folders when it writes its report; `charter push` sends the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charter.evaluation.words import title_of
from charter.metrics import HEADLINE
from charter.models.marks import is_flipped, last_round, model_folder
from charter.run.files import read_json, write_text
from charter.run.hashes import CARD

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

ARM_OF = {"sft": "sft", "rl": "policy"}
"""The arm of the report that is the model of a stage."""
MODEL_WORDS = {"sft": "fine-tuned model", "rl": "policy", "reward_model": "reward model"}
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
SCOPE = (
    "The figures belong to this run, its seed and its held-out prompts; they do not cover other uses. The licence is that of the "
    "base model."
)


def cards_of(run: Path, report: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """(path, text) of the card of every finished model of a run; policy and reward model are those of the last round. A flipped
    model has a card of its own."""
    for stage in MODEL_WORDS:
        place = run / last_round(run, stage)
        folder, manifest = place / model_folder(stage), read_json(place / "manifest.json")
        if folder.is_dir() and isinstance(manifest, dict) and "result" in manifest and not is_flipped(folder):
            yield folder / CARD, model_card(report, stage, manifest)


def write_cards(run: Path, report: Mapping[str, Any]) -> None:
    """Write the card of every finished model of a run into its folder."""
    for path, text in cards_of(run, report):
        write_text(path, text)


def model_card(report: Mapping[str, Any], stage: str, manifest: Mapping[str, Any]) -> str:
    """README.md of the model of a stage: its origin, its measured figures with intervals, the gates that were overridden.

    The card contains no path of this machine and no prompt or response.
    """
    from huggingface_hub import ModelCard, ModelCardData

    recipe, kind = report.get("recipe", {}), re.sub(r"-\d+$", "", stage)  # of a later round: reward_model-2
    base, title = str(recipe.get("model", "")), " ".join(str(report.get("title", "Charter run")).split())
    results = eval_results(report, stage, manifest["result"])
    data = ModelCardData(
        base_model=base if HUB_NAME.fullmatch(base) else None,
        library_name="transformers" if stage in ARM_OF else None,
        pipeline_tag="text-generation" if stage in ARM_OF else None,
        tags=["charter", "alignment", *([recipe["rl"]["method"]] if stage == "rl" and recipe else [])],
        model_name=f"{title}: {stage}" if results else None,
        eval_results=results or None,
    )
    version = f"Charter {report['charter_version']}" if "charter_version" in report else "Charter"
    lines = [f"# {title}: {stage}", "", f"This is the {MODEL_WORDS.get(kind, 'model')} of a run of {version} on "
             f"`{Path(base).name}`.", "", "## Measured", "", *figures_table(report, stage, manifest["result"])]  # fmt: skip
    notes = [f"- Gate overridden: {gate['message']}" for gate in report.get("gates", []) if gate.get("overridden")]
    notes += [f"- Alarm, {alarm['detector']}: {alarm['message']}" for alarm in report.get("alarms", [])]
    notes += [f"- The run stopped: {report['stopped']}"] if report.get("stopped") else []
    if notes:
        lines += ["## Read this first", "", *map(without_folders, notes), ""]
    lines += ["## Training", "", *(f"- `{key}`: {value}" for key, value in settings_of(recipe, kind).items()), ""]
    provenance = report.get("provenance", {})
    keys = ("constitution_hash", "model_hash", "scorer", "device", "torch")
    facts = {key: provenance[key] for key in keys if key in provenance} | {key: report[key] for key in ("seed",) if key in report}
    lines += ["## Provenance", "", f"- fingerprint of the stage: `{manifest['fingerprint']}`"]
    lines += [f"- {key.replace('_', ' ')}: `{without_folders(str(value))}`" for key, value in facts.items()]
    text = "\n".join([*lines, "", SCOPE, ""])
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def without_folders(text: str) -> str:
    """The text with absolute paths cut to their last name."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/]+/)+", "", text)


def overall(report: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The headline metrics and the recipe's own measures over all prompts, by (metric, arm)."""
    names = [*report.get("better", {}), *HEADLINE]
    rows = {(row["name"], row["arm"]): row for row in report.get("metrics", []) if row["group"] is None}
    arms = dict.fromkeys(arm for _, arm in rows)
    return {(name, arm): rows[name, arm] for name in names for arm in arms if (name, arm) in rows}


def eval_results(report: Mapping[str, Any], stage: str, result: Mapping[str, Any]) -> list[EvalResult]:
    """The scored figures of the stage's model as metadata of the card."""
    from huggingface_hub import EvalResult

    if stage in ARM_OF:
        rows = [row for (_, arm), row in overall(report).items() if arm == ARM_OF[stage] and row["value"] is not None]
        task, dataset = "text-generation", "held-out prompts of the run"
    else:
        rows = [{"name": "accuracy", "value": result["accuracy"], **result}] if "accuracy" in result else []
        task, dataset = "text-classification", "held-out pairs of the run"
    return [
        EvalResult(
            task_type=task, dataset_type=dataset.replace(" ", "-"), dataset_name=dataset, metric_type=row["name"],
            metric_name=title_of(row["name"]), metric_value=row["value"],
            metric_args={"n": row["n"], "ci": list(row["ci"]) if row.get("ci") else None},
        )
        for row in rows
    ]  # fmt: skip


def figures_table(report: Mapping[str, Any], stage: str, result: Mapping[str, Any]) -> list[str]:
    """A table of the report's figures for the model of the stage and for the models before it, or of the reward model."""
    if stage not in ARM_OF:
        if "accuracy" not in result:
            return ["Nothing was measured.", ""]
        low_high = low_to_high(result.get("ci"), 3)
        return [f"Accuracy on {result['n']} held-out pairs: {result['accuracy']:.3f}{low_high}; the rule \"shorter wins\" gets "
                f"{result['baseline_shorter_wins']:.3f}.", ""]  # fmt: skip
    arms: Sequence[str] = ("base", "sft", "policy")[: 2 if stage == "sft" else 3]
    figures = overall(report)
    names = [name for name, arm in figures if arm == ARM_OF[stage]]
    if not names:
        return ["Nothing was measured: the run ended before its evaluation.", ""]
    lines = ["| | " + " | ".join(arms) + " | n |", "|---" * (len(arms) + 2) + "|"]
    for name in names:
        cells = [cell(figures.get((name, arm))) for arm in arms]
        lines.append(f"| {title_of(name)} | " + " | ".join(cells) + f" | {figures[name, ARM_OF[stage]]['n']} |")
    verdict = report.get("verdict", {})
    if stage == "rl" and verdict.get("word"):
        lines += ["", f"Verdict of the report: **{verdict['word']}**. {verdict['rule']}"]
    return [*lines, ""]


def cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return "–"
    return "unscored" if metric["value"] is None else f"{metric['value']:.2f}{low_to_high(metric['ci'], 2)}"


def low_to_high(ci: Sequence[float] | None, digits: int) -> str:
    return f" [{ci[0]:.{digits}f}, {ci[1]:.{digits}f}]" if ci else ""


def settings_of(recipe: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The numbers and words of a stage's settings, without any text that may be a path."""
    settings = recipe.get(stage, {})
    numbers = {key: value for key, value in settings.items() if isinstance(value, (bool, int, float))}
    return ({"method": settings["method"]} if "method" in settings else {}) | numbers | (
        {"lora": f"rank {settings['lora']['rank']}, alpha {settings['lora']['alpha']}"} if settings.get("lora") else {}
    )  # fmt: skip
