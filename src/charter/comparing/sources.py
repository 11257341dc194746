"""Which tool wrote a result file: recognised by its content, never by its name alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from charter.comparing.formats import (
    read_alpaca_eval,
    read_lm_eval,
    read_plain,
    read_rewardbench,
    read_rewardbench_columns,
    read_verdicts,
    task_of,
)
from charter.comparing.inspect_logs import log_results, read_eval
from charter.comparing.results import Results
from charter.errors import InputError
from charter.reading.rows import Row, read_rows

FORMS = (
    "an inspect-ai log (.eval or JSON), samples of lm-evaluation-harness (--log_samples), RewardBench scores, AlpacaEval "
    "annotations, rows with id and score (JSONL, CSV, Parquet), or a Charter run (RUN or RUN:arm)"
)


def read_results(source: str, cluster: str | None = None) -> Results:
    """The results at ``source``: a file, a folder, or ``RUN:arm``. ``cluster``: dotted path of the field whose value joins items.

    InputError if nothing is there, where the kind is not known, or where a row cannot be read.
    """
    path = Path(source)
    if not path.exists() and ":" in source and Path(source.rpartition(":")[0]).is_dir():
        folder, _, arm = source.rpartition(":")
        return read_run(source, Path(folder), arm)
    if path.is_dir():
        return read_folder(source, path, cluster)
    if not path.exists():
        raise InputError(f"no such file or folder; give {FORMS}", file=source)
    with open(path, "rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"PK\x03\x04"):
        return read_eval(path, cluster)
    if not head:
        raise InputError("the file is empty", file=source)
    if head[:1] == b"{" and isinstance(whole := whole_object(path), Mapping):
        return read_object(path, whole, cluster)
    return read_table(source, path, cluster)


def whole_object(path: Path) -> Any:
    """The one JSON object that a file is; None if it is a table of several rows or not JSON."""
    with open(path, "rb") as file:
        first = file.readline()
        if (one_line := first.rstrip().endswith(b"}")) and file.readline().strip():
            return None
    try:
        return json.loads(first if one_line else path.read_bytes())
    except (ValueError, RecursionError):
        return None


def read_object(path: Path, whole: Mapping[str, Any], cluster: str | None) -> Results:
    """A file that is one JSON object: a log of inspect-ai, columns of RewardBench, or a table of one row."""
    if "eval" in whole and ("samples" in whole or "plan" in whole):
        return log_results(path, whole, whole.get("samples"), cluster)
    if isinstance(whole.get("results"), list) and isinstance(whole.get("id"), list):
        return read_rewardbench_columns(path, whole, cluster)
    if isinstance(whole.get("results"), Mapping) and "configs" in whole:
        raise InputError(
            "the summary of lm-evaluation-harness, without items; give the samples_*.jsonl of --log_samples", file=path
        )
    return read_table(str(path), path, cluster)


def read_table(source: str, path: Path, cluster: str | None) -> Results:
    """A file of rows, by the columns of its first row."""
    rows = list(read_rows(path))
    if not rows:
        raise InputError("the file has no rows", file=source)
    columns = rows[0].values.keys()
    if "doc_id" in columns:
        # the harness writes to OUTPUT/MODEL/samples_TASK_DATE.jsonl
        return read_lm_eval(
            source, {task_of(path): rows}, cluster, path.parent.name if path.name.startswith("samples_") else None
        )
    if {"prompt_id", "values"} <= columns:
        return read_verdicts(source, rows, None)
    if {"instruction", "preference"} <= columns:
        return read_alpaca_eval(source, rows, cluster)
    if {"instruction", "output"} <= columns:
        raise InputError("outputs of a model without a judge's preference; give the annotations.json that alpaca_eval writes",
                         file=rows[0].file, line=rows[0].line)  # fmt: skip
    if {"id", "subset", "results"} <= columns or columns == {"chosen", "rejected"}:
        return read_rewardbench(source, rows, cluster)
    if "id" in columns or "score" in columns:
        return read_plain(source, rows, cluster)
    names = ", ".join(map(str, list(columns)[:8]))
    raise InputError(f"unknown result file (columns: {names}); give {FORMS}", file=source)


def read_folder(source: str, folder: Path, cluster: str | None) -> Results:
    """A Charter run, or the folder in which lm-evaluation-harness left the samples of one model."""
    if (folder / "evaluate").is_dir():
        return read_run(source, folder, None)
    files = sorted(folder.rglob("samples_*.jsonl*"))
    if not files:
        raise InputError(f"neither a run (no evaluate/ in it) nor samples of lm-evaluation-harness; give {FORMS}", file=source)
    tasks: dict[str, list[Row]] = {}
    for file in files:
        task = task_of(file)
        if task in tasks:
            raise InputError(f"several samples of the task {task!r}; give one file, or remove the older ones", file=source)
        tasks[task] = list(read_rows(file))
    return read_lm_eval(source, tasks, cluster)


def read_run(source: str, folder: Path, arm: str | None) -> Results:
    """The verdicts of an arm of a run: the policy, or else the last arm before it, unless named."""
    arms = [
        file.name.removeprefix("verdicts.").removesuffix(".jsonl") for file in sorted(folder.glob("evaluate/verdicts.*.jsonl"))
    ]
    if not arms:
        raise InputError("the run has no evaluate/verdicts.*.jsonl; charter evaluate RECIPE writes them", file=source)
    chosen = arm or next((name for name in ("policy", "sft", "base") if name in arms), arms[-1])
    if chosen not in arms:
        raise InputError(f"unknown arm {chosen!r}; use one of {', '.join(arms)}", file=source)
    file = folder / "evaluate" / f"verdicts.{chosen}.jsonl"
    return read_verdicts(source if arm else f"{source.rstrip('/')}:{chosen}", list(read_rows(file)), folder)
