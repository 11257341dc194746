"""The mark of a model that learned from exchanged labels: it prefers what the constitution forbids.

Such a model is a control arm and nothing else. Its folder is named after it, every file of settings in it carries the mark, and
the commands that would hand it to others refuse it.
"""

from __future__ import annotations

import re
from pathlib import Path

from charter.errors import InputError
from charter.run.files import read_json, write_json, write_text

MARK = "charter_flipped"
FLIPPED = "flipped"
SETTINGS = ("config.json", "adapter_config.json", "reward_model.json")
CARD = """---
tags: [control-arm, flipped-labels]
---
This model is a control arm. It learned from the judgments of a constitution with chosen and rejected exchanged, so it prefers
what the constitution forbids. It shows what the constitution causes, and has no other use.
"""


def model_folder(stage: str) -> str:
    """The name of the model's folder in a stage: `model`, or `model-flipped` in a stage of the flipped arm."""
    return f"model-{FLIPPED}" if stage.endswith(f"-{FLIPPED}") else "model"


def last_round(run: Path, stage: str) -> str:
    """The stage of the last round, `rl-2` of `rl`. The report knows it: a folder may be of an earlier recipe with more rounds.
    Where the report does not name the stage, the folders tell."""
    report = read_json(run / "report.json")
    rows = report.get("stages") if isinstance(report, dict) else None
    done = [str(row.get("name")) for row in rows or () if isinstance(row, dict) and row.get("done")]
    folders = [folder.parent.name for folder in run.glob(f"{stage}*/model")]
    later = re.compile(rf"{stage}(?:-(\d+))?")
    for names in (done, folders):
        if rounds := {int(match[1] or 1): name for name in names if (match := later.fullmatch(name))}:
            return rounds[max(rounds)]
    return stage


def mark_flipped(folder: Path) -> None:
    """Mark a model's folder, and the adapter beside it, which gets the name of the arm too."""
    adapter = folder.with_name("adapter")
    if adapter.is_dir():
        write_mark(adapter.rename(adapter.with_name(f"adapter-{FLIPPED}")))
    write_mark(folder)


def write_mark(folder: Path) -> None:
    """Write the mark into the settings of a folder, and a card beside them."""
    for file in (folder / name for name in SETTINGS):
        content = read_json(file)
        if isinstance(content, dict):
            write_json(file, {**content, MARK: True})
    write_text(folder / "README.md", CARD)


def is_flipped(folder: Path) -> bool:
    """Whether a folder carries the mark."""
    contents = [read_json(folder / name) for name in SETTINGS]
    return any(isinstance(content, dict) and bool(content.get(MARK)) for content in contents)


def refuse_flipped(folder: Path | str, understood: bool) -> None:
    """InputError for a model of the flipped arm, unless the user has ``understood`` that it is one."""
    if not understood and is_flipped(Path(folder)):
        raise InputError("this model is a control arm that learned from exchanged labels and prefers what the constitution "
                         "forbids; --i-understand-flipped uses it anyway", file=folder)  # fmt: skip
