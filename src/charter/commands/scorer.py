"""The command that measures a scorer against labels that people gave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from charter.commands.options import Json, interval_words, show

app = typer.Typer(help="Measure scorers.", no_args_is_help=True)


@app.callback()
def scorers() -> None:
    """Measure scorers."""


@app.command("card")
def scorer_card(
    scorer: Annotated[
        str,
        typer.Argument(
            help="refusal-words, judge:FOLDER, classifier:FOLDER:LABEL, python:module:function, or the folder of a reward model."
        ),
    ],
    labelled: Annotated[Path, typer.Option(help="A table with prompt, response and labels: harmful, refusal, helpful.")],
    label: Annotated[
        str | None, typer.Option(help="Column of the labels, for a scorer that gives one number; by default the only one.")
    ] = None,
    by: Annotated[list[str] | None, typer.Option(help="A column whose values get figures each. Repeat for more.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="A number above it is a yes; 0.5, for a reward model 0, the mean of its training.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the card; by default that of the labels.")] = None,
    as_json: Json = False,
) -> None:
    """Accuracy, recall, specificity and calibration of a scorer on answers that people labelled, with 95% intervals."""
    from charter.measuring.scorer_cards import write_card

    card, file = write_card(scorer, labelled, label=label, by=by or [], threshold=threshold, out=out)
    lines = [f"left out: {count} x {reason}" for reason, count in card["left_out"].items()]
    for row in card["measures"]:
        lines.append(f"{row['measure']}: {figure_words(row)}")
        numbers = [f"{key} {row[key]:.3f}" for key in ("brier", "ece", "auc") if row[key] is not None]
        lines += [f"  {', '.join(numbers)}"] if numbers else []
        for column, parts in row["by"].items():
            lines += [f"  {column} {value}: {figure_words(part)}" for value, part in parts.items()]
    show(card, as_json, *lines, f"card: {file}")


def figure_words(row: dict[str, Any]) -> str:
    """The shares of a row of the card that have a value, and its counts, in one line."""
    shares = [
        f"{name} {row[name]['value']:.3f}{interval_words(row[name]['ci'])}"
        for name in ("accuracy", "recall", "specificity")
        if row[name]["value"] is not None
    ]
    return ", ".join([*shares, f"{row['n']} scored, {row['n_unscored']} unscored"])
