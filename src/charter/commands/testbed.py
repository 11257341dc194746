"""The commands of the tiny model that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from charter.commands.options import Json, Quiet, Seed, show
from charter.errors import InputError

app = typer.Typer(help="The tiny model that ships, and the language it speaks.", no_args_is_help=True)


@app.command("train")
def testbed_train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; the model is put into OUT/model.")],
    preset: Annotated[str, typer.Option(help="full: what ships; small: a minute, for tests.")] = "full",
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the tiny model from scratch; goes on where a killed training stopped."""
    from dataclasses import replace

    from charter.testbed.train import PRESETS, train

    if preset not in PRESETS:
        raise InputError(f"--preset {preset!r}: one of {', '.join(PRESETS)}")
    config = replace(PRESETS[preset], seed=seed)
    result = train(config, out, quiet=quiet or as_json)
    show(result, as_json, f"loss {result['loss']:.3f} after {result['tokens']} tokens: {result['out']}")


@app.command("card")
def testbed_card(
    model: Annotated[str, typer.Option(help="Model folder.")] = "package:charter.testbed/model",
    n: Annotated[int, typer.Option(min=10, help="Cases per measure.")] = 400,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What the tiny model can do on held-out requests, with intervals."""
    from charter.recipe.source import locate
    from charter.testbed.card import card, card_table

    rows = card(locate(model, Path.cwd()), n=n, seed=seed)
    show({"measures": rows}, as_json, *card_table(rows))


@app.command("data")
def testbed_data(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write the testbed's prompts, and pairs and topics with known answers."""
    from charter.testbed.data import write_data

    result = write_data(out, seed)
    show(result, as_json, *(f"{count:6} {name}" for name, count in result.items() if name != "out"), f"written: {out}")


@app.command("dialogues")
def testbed_dialogues(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write rude and friendly dialogues with summaries, in the form of DialogSum."""
    from charter.testbed.dialogues import write_dialogues

    result = write_dialogues(out, seed)
    show(result, as_json, *(f"{count:6} {name}" for name, count in result.items() if name != "out"), f"written: {out}")


@app.command("lab")
def testbed_lab(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; each model is put into OUT/NAME/model.")],
    preset: Annotated[str, typer.Option(help="full: what ships; small: seconds, for tests.")] = "full",
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the detox lab's summariser and its two classifiers; goes on where it was killed."""
    from dataclasses import replace

    from charter.testbed.lab import PRESETS, card_lines, make_lab

    if preset not in PRESETS:
        raise InputError(f"--preset {preset!r}: one of {', '.join(PRESETS)}")
    result = make_lab(replace(PRESETS[preset], seed=seed), out, quiet=quiet or as_json)
    show(result, as_json, *card_lines(result), f"models: {out}/NAME/model")


@app.command("stand-in")
def testbed_stand_in(
    family: Annotated[str, typer.Argument(help="llama, mistral, gpt2, t5, roberta-classifier, …; a wrong one lists all.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder of the model.")],
    context: Annotated[int, typer.Option(min=64, help="Tokens that it sees; an encoder sees an eighth.")] = 2048,
    labels: Annotated[str, typer.Option(help="Of a classifier, between commas.")] = "nothate,hate",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a tiny random model of a real architecture, to try a recipe without a download."""
    from charter.testbed.standins import save_stand_in

    names = tuple(name.strip() for name in labels.split(","))
    if len(set(names)) < max(len(names), 2) or not all(names):
        raise InputError(f"--labels {labels!r}: give at least two different names between commas")
    save_stand_in(out, family, context=context, labels=names, seed=seed)
    show({"family": family, "out": str(out)}, as_json, f"a random {family}: {out}")
