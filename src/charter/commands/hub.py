"""A model of a run on the Hugging Face hub, with a model card that says what was measured and what was not.

Sent are the weights as they lie in the run folder, the card and the step metrics. What people or models wrote (prompts,
responses, judgments, the report with its samples) stays here unless it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.run.files import read_json

ARM_OF = {"sft": "sft", "rl": "policy"}
"""The arm of the report that is the model of a stage."""
CARD_METRICS = ("harmful_compliance", "over_refusal", "helpfulness", "kl")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
WEIGHTS = ".safetensors"
OWN_WORDS = (
    "The figures are those of this run, its seed and its held-out prompts, and say nothing of other uses. The licence is that of "
    "the base model."
)
DATA = ("sft.csv", "preferences.csv", "rl_log.csv", "report.json", "report.html")
"""Files of the run folder that hold prompts and responses."""


@dataclass(frozen=True)
class Upload:
    """What goes to the hub: path there to a file here, or to the bytes themselves."""

    stage: str
    files: Mapping[str, Path | bytes]

    def sizes(self) -> list[tuple[str, int]]:
        """(path there, bytes) of each file."""
        return [(name, len(one) if isinstance(one, bytes) else one.stat().st_size) for name, one in self.files.items()]


def gather(where: Path, *, with_data: bool = False) -> Upload:
    """What :func:`push` sends of a run folder, or of one stage of it.

    InputError where there is no finished model.
    """
    place = where.resolve()
    run, stage = (place, "rl") if (place / "rl").is_dir() else (place.parent, place.name)
    folder = run / stage / "model"
    manifest = read_json(run / stage / "manifest.json")
    if not folder.is_dir() or not isinstance(manifest, dict):
        raise InputError("holds no model; give a run folder, or one of its stages: RUN/sft, RUN/reward_model, RUN/rl", file=where)
    if "result" not in manifest:
        raise InputError("is not finished; the command of the run goes on with it", file=run / stage)
    report = read_json(run / "report.json") or {}
    files: dict[str, Path | bytes] = {"README.md": card(report, stage, manifest).encode()}
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
    """Send all files in one commit to the model repository ``name`` of the hub, made where there is none.

    Files that are the same there are not sent again; weights there that are not among these go, since a loader would
    take them. ``endpoint``: another hub than HF_ENDPOINT. InputError where there is no login, where the hub says no, and where
    the repository is public and ``public`` is not asked for.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors, get_token

    token = get_token()
    if token is None:
        raise InputError("no login: set HF_TOKEN, or log in with `hf auth login`")
    api = HfApi(endpoint=endpoint, token=token)
    try:
        repo = api.create_repo(name, private=not public, exist_ok=True)
        there = api.model_info(repo.repo_id)
        if not there.private and not public:
            raise InputError("is public on the hub; --public says that this is meant, or choose another name", file=repo.repo_id)
        stale = [
            one.rfilename
            for one in there.siblings or ()
            if one.rfilename.endswith(WEIGHTS) and "/" not in one.rfilename and one.rfilename not in upload.files
        ]
        operations: list[Any] = [CommitOperationDelete(path) for path in stale]
        operations += [
            CommitOperationAdd(path, one if isinstance(one, bytes) else str(one)) for path, one in upload.files.items()
        ]
        commit = api.create_commit(repo.repo_id, operations, commit_message=f"Charter: the model of {upload.stage}")
    except (errors.HTTPError, errors.HFValidationError, errors.OfflineModeIsEnabled) as error:  # type: ignore[attr-defined]
        words = " ".join(str(error).split()).replace(token, "…")[:300]
        raise InputError(f"cannot be sent to the hub: {words}", file=name) from None
    return {
        "repository": repo.repo_id, "url": str(repo), "private": bool(there.private), "commit": commit.oid, "removed": stale,
        "files": [{"path": path, "bytes": size} for path, size in upload.sizes()],
    }  # fmt: skip


# -- the model card ------------------------------------------------------------------------------------------------------


def card(report: Mapping[str, Any], stage: str, manifest: Mapping[str, Any]) -> str:
    """README.md of the model of a stage: how it came about, what was measured with intervals, what stopped or was overridden.

    No path of this machine and no prompt or response stands in it.
    """
    import yaml

    recipe, provenance = report.get("recipe", {}), report.get("provenance", {})
    base = str(recipe.get("model", ""))
    head: dict[str, Any] = {"tags": ["charter", "alignment", *([recipe["rl"]["method"]] if stage == "rl" and recipe else [])]}
    if stage in ARM_OF:
        head["library_name"] = "transformers"
    if HUB_NAME.fullmatch(base):
        head["base_model"] = base
    title = " ".join(str(report.get("title", "Charter run")).split())
    lines = ["---", yaml.safe_dump(head, sort_keys=True).strip(), "---", "", f"# {title}: {stage}", ""]
    lines += [
        f"The {words_of(stage)} of a run of Charter {report.get('charter_version', '')}, from `{Path(base).name}`.",
        "",
    ]
    lines += ["## Measured", "", *measured(report, stage, manifest["result"])]
    notes = [f"- Gate overridden: {gate['message']}" for gate in report.get("gates", []) if gate.get("overridden")]
    notes += [f"- {alarm['detector']}: {alarm['message']}" for alarm in report.get("alarms", [])]
    notes += [f"- The run stopped: {report['stopped']}"] if report.get("stopped") else []
    if notes:
        lines += ["## What a reader should know", "", *map(without_folders, notes), ""]
    lines += ["## Training", "", *(f"- `{key}`: {value}" for key, value in settings_of(recipe, stage).items()), ""]
    facts = {
        key: provenance[key] for key in ("constitution_hash", "model_hash", "scorer", "device", "torch") if key in provenance
    }
    facts |= {"seed": report["seed"]} if "seed" in report else {}
    lines += ["## Provenance", "", f"- fingerprint of the stage: `{manifest['fingerprint']}`"]
    lines += [f"- {key.replace('_', ' ')}: `{without_folders(str(value))}`" for key, value in facts.items()]
    lines += ["", OWN_WORDS, ""]
    return "\n".join(lines)


def without_folders(text: str) -> str:
    """The text with absolute paths cut to their last name."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/]+/)+", "", text)


def words_of(stage: str) -> str:
    return {"sft": "fine-tuned model", "rl": "policy", "reward_model": "reward model"}.get(stage, "model")


def measured(report: Mapping[str, Any], stage: str, result: Mapping[str, Any]) -> list[str]:
    """A table of what the report says of the model of the stage and of those before it, or of the reward model."""
    if stage not in ARM_OF:
        if "accuracy" not in result:
            return ["Nothing was measured.", ""]
        low_high = interval(result.get("ci"))
        return [f"Accuracy on {result['n']} held-out pairs: {result['accuracy']:.3f}{low_high}; the rule \"shorter wins\" gets "
                f"{result['baseline_shorter_wins']:.3f}.", ""]  # fmt: skip
    arms: Sequence[str] = ("base", "sft", "policy")[: 2 if stage == "sft" else 3]
    found = {(m["name"], m["arm"]): m for m in report.get("metrics", []) if m["group"] is None}
    rows = [name for name in CARD_METRICS if (name, ARM_OF[stage]) in found]
    if not rows:
        return ["Nothing was measured: the run ended before its evaluation.", ""]
    lines = ["| | " + " | ".join(arms) + " | n |", "|---" * (len(arms) + 2) + "|"]
    for name in rows:
        cells = [cell(found.get((name, arm))) for arm in arms]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + f" | {found[name, ARM_OF[stage]]['n']} |")
    verdict = report.get("verdict", {})
    if stage == "rl" and verdict.get("word"):
        lines += ["", f"Verdict of the report: **{verdict['word']}**. {verdict['rule']}"]
    return [*lines, ""]


def cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return "–"
    return "unscored" if metric["value"] is None else f"{metric['value']:.2f}{interval(metric['ci'], 2)}"


def interval(ci: Sequence[float] | None, digits: int = 3) -> str:
    return f" [{ci[0]:.{digits}f}, {ci[1]:.{digits}f}]" if ci else ""


def settings_of(recipe: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The numbers and words of a stage's settings; no text that may be the path of a file."""
    own = recipe.get(stage, {})
    plain = {key: value for key, value in own.items() if isinstance(value, (bool, int, float))}
    return ({"method": own["method"]} if "method" in own else {}) | plain | (
        {"lora": f"rank {own['lora']['rank']}, alpha {own['lora']['alpha']}"} if own.get("lora") else {}
    )  # fmt: skip
