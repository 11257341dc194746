"""`charter revise RECIPE --pilot`: ten prompts through the revise stage in a folder that is thrown away, printed to be read."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from charter.errors import InputError
from charter.pipeline import parts_of
from charter.recipe.files import check_files
from charter.recipe.recipe import Recipe
from charter.run.run import Run
from charter.stages.prompts.show import training_prompts
from charter.stages.revise.pilot import pilot
from charter.tasks.conversation import escape_controls

LABEL = 10  # characters of the column that names a text
VERDICTS = {True: "harmful", False: "not harmful", None: "unscored"}


def pilot_of(recipe: Recipe) -> dict[str, Any]:
    """The rows and findings of a pilot. InputError if the recipe revises nothing, or a file or a prompt is missing."""
    settings = recipe.revise
    if settings is None:
        raise InputError("the recipe has revise: null, so there is nothing to try; leave out --pilot")
    check_files(recipe)
    with TemporaryDirectory() as folder, Run(Path(folder), seed=recipe.seed, quiet=True) as run:
        parts = parts_of(run, recipe)
        models, scorer = parts.models, parts.scoring.scorer
        assert scorer is not None, "a recipe that revises names a scorer"
        prompts = training_prompts(recipe, models.trunk(recipe.model))["red_team"]
        generator = models.answering(settings.generator)
        critic = generator if settings.context is not None else models.answering(settings.critic)
        return pilot(recipe, settings, parts.constitution, generator, critic, scorer, prompts)


def pilot_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The pilot as lines for a terminal. The texts are untrusted: control characters are spelled out."""
    width = max(40, min(shutil.get_terminal_size().columns, 120))
    rows = result["rows"]
    for number, row in enumerate(rows, 1):
        yield f"── {number} of {len(rows)} ".ljust(width, "─")
        yield from labelled("prompt", row["prompt"], width)
        yield from labelled("answer", row["answer"], width, VERDICTS[row["harmful"]])
        for part in row["rounds"]:
            yield ""
            if part["critique_request"]:
                yield from labelled("principle", part["critique_request"], width, part["principle"])
                yield from labelled("critique", part["critique"], width)
                yield from labelled("request", part["revision_request"], width)
            else:
                yield from labelled("context", part["revision_request"], width)
            verdict = f"excluded: {part['excluded']}" if part["excluded"] else VERDICTS[part["harmful"]]
            yield from labelled("revision", part["revision"], width, verdict)
        yield ""
    findings = result["findings"]
    yield "Likely wrong, and what to change:" if findings else f"Nothing looks wrong in these {len(rows)} prompts."
    for finding in findings:
        yield from textwrap.wrap(finding, width, initial_indent="- ", subsequent_indent="  ")


def labelled(label: str, text: str, width: int, remark: str = "") -> Iterator[str]:
    """A text in a column beside its label, with a remark in brackets before it."""
    shown = (f"[{remark}] " if remark else "") + (escape_controls(text).strip() or "(empty)")
    margin = " " * LABEL
    for number, line in enumerate(shown.splitlines()):
        yield from textwrap.wrap(
            line, width, initial_indent=label.ljust(LABEL) if number == 0 else margin, subsequent_indent=margin,
            replace_whitespace=False,
        ) or [""]  # fmt: skip
