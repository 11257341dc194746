"""A model of a run on the Hugging Face hub, with a model card of its measured figures.

Charter sends the weights as they are in the run folder, the card and the step metrics. Texts of people and models (prompts,
responses, judgments, the report with its samples) stay here unless the user asks to send them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.evaluation.model_card import model_card
from charter.models.marks import is_flipped, last_round, model_folder, refuse_flipped
from charter.run.files import read_json
from charter.run.hashes import CARD

WEIGHT_ENDING = ".safetensors"
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
    """The files that :func:`push` sends of a run folder, or of one stage of it. InputError without a finished model."""
    place = where.resolve()
    run, stage = (place, last_round(place, "rl")) if (place / "rl").is_dir() else (place.parent, place.name)
    last = last_round(run, "rl")
    folder = run / stage / model_folder(stage)
    manifest = read_json(run / stage / "manifest.json")
    if not folder.is_dir() or not isinstance(manifest, dict):
        raise InputError("no model here; give a run folder, or one of its stages: RUN/sft, RUN/reward_model, RUN/rl", file=where)
    if "result" not in manifest:
        raise InputError("this stage is not finished; repeat the command of the run to resume it", file=run / stage)
    refuse_flipped(folder, understood)
    report = read_json(run / "report.json") or {}
    if stage == "rl" != last:  # the report measures the policy of the last round
        report = {**report, "metrics": []}
    card = folder / CARD if is_flipped(folder) else model_card(report, "rl" if stage == last else stage, manifest).encode()
    files: dict[str, Path | bytes] = {CARD: card}
    files |= {
        str(file.relative_to(folder)): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.startswith(".") and file.name != CARD
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
