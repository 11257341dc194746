"""`charter model merge`: a model of a run, its reward model, or a LoRA adapter on its base, as a folder of transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.models.formats.adapters import is_adapter, merge_folder, write_whole
from charter.models.formats.precision import DTYPES
from charter.models.load import STAGE_OF, model_of_run
from charter.models.marks import is_flipped, model_folder, refuse_flipped, write_mark
from charter.models.reward_classifier import as_classifier
from charter.models.trunk import REWARD_CARD
from charter.recipe.source import locate


def mergeable_folder(where: str) -> Path:
    """The folder of an adapter, of a model, of a stage's model or of a run's policy."""
    folder = Path(locate(where, Path.cwd()))
    if not folder.is_dir():
        raise InputError("no such folder; give a run, a stage of it such as RUN/sft, a model or a LoRA adapter", file=where)
    if is_adapter(folder) or (folder / "config.json").is_file():
        return folder
    if (folder / model_folder(folder.name) / "config.json").is_file():
        return folder / model_folder(folder.name)
    if (folder / "report.json").is_file() or any((folder / stage).is_dir() for stage in STAGE_OF.values()):
        return Path(model_of_run(folder, "policy"))
    raise InputError("not a model, a LoRA adapter or a run; give one of these folders", file=where)


def write_merged(
    where: str, out: Path, *, base: str | None, dtype: str | None, shard_size: str, understood: bool = False
) -> dict[str, Any]:
    """Write the model of ``where`` to ``out``, which must be new; returns a summary."""
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype: unknown dtype {dtype!r}; use {', '.join(DTYPES)}")
    if not re.fullmatch(r"[1-9]\d*(MB|GB)", shard_size):
        raise InputError(f"--shard-size: invalid size {shard_size!r}; write it as 5GB or 500MB")
    source = mergeable_folder(where)
    refuse_flipped(source, understood)
    if base is not None and not is_adapter(source):
        raise InputError("this is a whole model, and --base belongs to an adapter; leave --base out", file=source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("the folder exists already; choose another --out", file=out)
    if (source / REWARD_CARD).is_file():
        model, tokenizer = as_classifier(source)
        done = write_whole(model, tokenizer, source, out, dtype=dtype, shard_size=shard_size)
    else:
        done = merge_folder(source, out, base=locate(base, Path.cwd()) if base else None, dtype=dtype, shard_size=shard_size)
    if is_flipped(source):
        write_mark(out)
    return done
