"""The command that compares result files of any tool. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from charter.commands.options import Json, margins_of, show

app = typer.Typer()


@app.command()
def compare(
    sources: Annotated[list[str], typer.Argument(help="Two or more result files, runs, or RUN:arm; the first is the baseline.")],
    margin: Annotated[
        list[str] | None, typer.Option(help="Largest difference that does not matter: 0.02, or METRIC=0.02. Repeat for more.")
    ] = None,
    correct: Annotated[str, typer.Option(help="Over all metrics and pairs: holm, bh (Benjamini-Hochberg) or none.")] = "holm",
    lower: Annotated[list[str] | None, typer.Option(help="A metric of which less is better. Repeat for more.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Field whose value joins items, such as doc.passage.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the contrasts as CSV.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write one self-contained HTML page.")] = None,
    as_json: Json = False,
) -> None:
    """Compare models item by item: files of inspect-ai, lm-eval, RewardBench, AlpacaEval, plain tables, or Charter runs."""
    margins = margins_of(margin or [])
    from charter.comparing.compare import compare_files

    comparison = compare_files(sources, margins=margins, correction=correct, lower=lower or (), cluster=cluster)  # type: ignore[arg-type]
    lines = [str(comparison)]
    if csv is not None:
        comparison.write_csv(csv)
        lines.append(f"table: {csv}")
    if page is not None:
        comparison.write_page(page)
        lines.append(f"page: {page}")
    show(comparison.as_dict() if as_json else None, as_json, *lines)
