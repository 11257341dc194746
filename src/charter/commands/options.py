"""Options and words that the commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from charter.errors import InputError
from charter.metrics import HEADLINE

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")]
RecipeName = Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a shipped one such as demo.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; runs/<recipe name> unless given.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: rl.steps=20. Repeat for more.")]
Prompts = Annotated[Path, typer.Argument(help="Prompts: JSONL, JSON, CSV, text or Parquet, plain or gzipped.")]
Pairs = Annotated[Path, typer.Argument(help="Preference pairs: JSONL, JSON, CSV or Parquet, plain or gzipped.")]
MAIN_METRICS = HEADLINE
Understood = Annotated[
    bool, typer.Option("--i-understand-flipped", help="Also for a control arm that learned from exchanged labels.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on the terminal.")]


def interval_words(ci: Sequence[float] | None, digits: int = 3) -> str:
    """` [low, high]`, or nothing without an interval."""
    return f" [{ci[0]:.{digits}f}, {ci[1]:.{digits}f}]" if ci else ""


def margins_of(texts: list[str]) -> dict[str | None, float]:
    """Margins by metric from ``0.02`` (all metrics: None) or ``acc=0.02``. InputError if it is not a number above 0."""
    margins: dict[str | None, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            margin = float(number)
        except ValueError:
            margin = 0.0
        if not 0 < margin < float("inf"):
            raise InputError(f"--margin {text}: not a number above 0; write --margin 0.02 or --margin METRIC=0.02")
        if (name or None) in margins:
            raise InputError(f"--margin {text}: given more than once for {name or 'all metrics'}")
        margins[name or None] = margin
    return margins


def show(result: Any, as_json: bool, *lines: str) -> None:
    """Print the result as JSON, or the lines for people; of several processes only the main one prints."""
    from charter.run.team import team

    if team().is_main:
        typer.echo(json.dumps(result, ensure_ascii=False, sort_keys=True) if as_json else "\n".join(lines))
