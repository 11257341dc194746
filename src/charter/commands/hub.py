"""A model of a run on the Hugging Face hub, with a model card of its measured figures.

Charter sends the weights as they are in the run folder, the card and the step metrics. Texts of people and models (prompts,
responses, judgments, the report with its samples) stay here unless the user asks to send them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charter.commands.options import interval_words
from charter.errors import InputError
from charter.evaluation.words import title_of
from charter.metrics import HEADLINE
from charter.models.marks import is_flipped, model_folder, refuse_flipped
from charter.run.files import read_json

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

ARM_OF = {"sft": "sft", "rl": "policy"}
"""The arm of the report that is the model of a stage."""
MODEL_WORDS = {"sft": "fine-tuned model", "rl": "policy", "reward_model": "reward model"}
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
WEIGHT_ENDING = ".safetensors"
SCOPE = (
    "The figures belong to this run, its seed and its held-out prompts; they do not cover other uses. The licence is that of the "
    "base model."
)
DATA = ("sft.csv", "preferences.csv", "rl_log.csv", "report.json", "report.html")
"""Files of the run folder with prompts and responses."""


@dataclass(frozen=True)
class Upload:
    """The files for the hub: path there to a file here, or to the bytes themselves."""

    stage: str
    files: Mapping[str, Path | bytes]

    def sizes(self) -> list[tuple[str, int]]:
        """(path there, bytes) of each file."""
        return [(name, len(file) if isinstance(file, bytes) else file.stat().st_size) for name, file in self.files.items()]


def gather(where: Path, *, with_data: bool = False, understood: bool = False) -> Upload:
    """The files that :func:`push` sends of a run folder, or of one stage of it. InputError if there is no finished model."""
    place = where.resolve()
    run, stage = (place, "rl") if (place / "rl").is_dir() else (place.parent, place.name)
    folder = run / stage / model_folder(stage)
    manifest = read_json(run / stage / "manifest.json")
    if not folder.is_dir() or not isinstance(manifest, dict):
        raise InputError("no model here; give a run folder, or one of its stages: RUN/sft, RUN/reward_model, RUN/rl", file=where)
    if "result" not in manifest:
        raise InputError("this stage is not finished; repeat the command of the run to resume it", file=run / stage)
    refuse_flipped(folder, understood)
    report = read_json(run / "report.json") or {}
    card = folder / "README.md" if is_flipped(folder) else model_card(report, stage, manifest).encode()
    files: dict[str, Path | bytes] = {"README.md": card}
    files |= {
        str(file.relative_to(folder)): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.startswith(".") and file.name != "README.md"
    }
    metrics = run / stage / "metrics.jsonl"
    files |= {"metrics.jsonl": metrics} if metrics.exists() else {}
    if with_data:
        rows = [file for file in sorted(run.glob("*/*.jsonl")) if file.name != "metrics.jsonl"]
        files |= {f"data/{file.relative_to(run)}": file for file in [*rows, *(run / name for name in DATA)] if file.exists()}
    return Upload(stage, files)


def push(upload: Upload, name: str, *, public: bool = False, endpoint: str | None = None) -> dict[str, Any]:
    """Send all files in one commit to the model repository ``name`` of the hub, which is created if it does not exist.

    Files that are equal there are not sent again. Weights there that this upload lacks are removed, since a loader would
    take them. ``endpoint``: another hub than HF_ENDPOINT. InputError without a login, where the hub refuses, and where the
    repository is public and ``public`` is False.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors, get_token

    token = get_token()
    if token is None:
        raise InputError("no login for the hub; set HF_TOKEN, or log in with `hf auth login`")
    api = HfApi(endpoint=endpoint, token=token)
    try:
        repo = api.create_repo(name, private=not public, exist_ok=True)
        remote = api.model_info(repo.repo_id)
        if not remote.private and not public:
            raise InputError("this repository is public; add --public to send to it anyway, or choose another name",
                             file=repo.repo_id)  # fmt: skip
        stale = [
            file.rfilename
            for file in remote.siblings or ()
            if file.rfilename.endswith(WEIGHT_ENDING) and "/" not in file.rfilename and file.rfilename not in upload.files
        ]
        operations: list[Any] = [CommitOperationDelete(path) for path in stale]
        operations += [
            CommitOperationAdd(path, file if isinstance(file, bytes) else str(file)) for path, file in upload.files.items()
        ]
        commit = api.create_commit(repo.repo_id, operations, commit_message=f"Charter: the model of {upload.stage}")
    except (errors.HTTPError, errors.HFValidationError, errors.OfflineModeIsEnabled) as error:  # type: ignore[attr-defined]
        words = " ".join(str(error).split()).replace(token, "…")[:300]
        raise InputError(f"cannot send to the hub: {words}", file=name) from None
    return {
        "repository": repo.repo_id, "url": str(repo), "private": bool(remote.private), "commit": commit.oid, "removed": stale,
        "files": [{"path": path, "bytes": size} for path, size in upload.sizes()],
    }  # fmt: skip


# -- the model card ------------------------------------------------------------------------------------------------------


def model_card(report: Mapping[str, Any], stage: str, manifest: Mapping[str, Any]) -> str:
    """README.md of the model of a stage: its origin, its measured figures with intervals, the gates that were overridden.

    The card contains no path of this machine and no prompt or response.
    """
    from huggingface_hub import ModelCard, ModelCardData

    recipe = report.get("recipe", {})
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
    lines = [f"# {title}: {stage}", "", f"This is the {MODEL_WORDS.get(stage, 'model')} of a run of {version} on "
             f"`{Path(base).name}`.", "", "## Measured", "", *figures_table(report, stage, manifest["result"])]  # fmt: skip
    notes = [f"- Gate overridden: {gate['message']}" for gate in report.get("gates", []) if gate.get("overridden")]
    notes += [f"- Alarm, {alarm['detector']}: {alarm['message']}" for alarm in report.get("alarms", [])]
    notes += [f"- The run stopped: {report['stopped']}"] if report.get("stopped") else []
    if notes:
        lines += ["## Read this first", "", *map(without_folders, notes), ""]
    lines += ["## Training", "", *(f"- `{key}`: {value}" for key, value in settings_of(recipe, stage).items()), ""]
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
        low_high = interval_words(result.get("ci"))
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
    return "unscored" if metric["value"] is None else f"{metric['value']:.2f}{interval_words(metric['ci'], 2)}"


def settings_of(recipe: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The numbers and words of a stage's settings, without any text that may be a path."""
    settings = recipe.get(stage, {})
    numbers = {key: value for key, value in settings.items() if isinstance(value, (bool, int, float))}
    return ({"method": settings["method"]} if "method" in settings else {}) | numbers | (
        {"lora": f"rank {settings['lora']['rank']}, alpha {settings['lora']['alpha']}"} if settings.get("lora") else {}
    )  # fmt: skip
