"""Options and words that the commands share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")]


def show(result: Any, as_json: bool, *lines: str) -> None:
    """The result as JSON, or the lines written for people; of several processes the main one says it."""
    from charter.team import team

    if team().is_main:
        typer.echo(json.dumps(result, ensure_ascii=False, sort_keys=True) if as_json else "\n".join(lines))
