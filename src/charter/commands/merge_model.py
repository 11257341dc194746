"""`charter model merge`: what a run or a LoRA training left, as a plain folder that other programs load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.models.adapters import is_adapter, merge_folder
from charter.models.load import STAGE_OF, model_of_run
from charter.models.precision import DTYPES
from charter.recipe.source import locate


def source_of(where: str) -> Path:
    """The folder that is meant: of an adapter, of a model, of a stage (its model), or of a run (its policy)."""
    folder = Path(locate(where, Path.cwd()))
    if not folder.is_dir():
        raise InputError("no such folder; give a run, a stage of it such as RUN/sft, a model or a LoRA adapter", file=where)
    if is_adapter(folder) or (folder / "config.json").is_file():
        return folder
    if (folder / "model/config.json").is_file():
        return folder / "model"
    if (folder / "report.json").is_file() or any((folder / stage).is_dir() for stage in STAGE_OF.values()):
        return Path(model_of_run(folder, "policy"))
    raise InputError("holds no model, no LoRA adapter and no run", file=where)


def merge(where: str, out: Path, *, base: str | None, dtype: str | None, shard_size: str) -> dict[str, Any]:
    """Write the model of ``where`` to ``out``, which must not exist yet; what was written."""
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype {dtype!r}: one of {', '.join(DTYPES)}")
    if not re.fullmatch(r"[1-9]\d*(MB|GB)", shard_size):
        raise InputError(f"--shard-size {shard_size!r}: write it as 5GB or 500MB")
    source = source_of(where)
    if base is not None and not is_adapter(source):
        raise InputError("--base is about an adapter, and this is a whole model; leave it out", file=source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("is there already; choose another --out", file=out)
    return merge_folder(source, out, base=locate(base, Path.cwd()) if base else None, dtype=dtype, shard_size=shard_size)
