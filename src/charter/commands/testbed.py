"""The commands of the tiny model that ships."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from charter.commands.options import Json, Quiet, Seed, show
from charter.errors import InputError

app = typer.Typer(help="The tiny model that ships, and its language.", no_args_is_help=True)
Folder = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
Preset = Annotated[str, typer.Option(help="full: the models that ship; small: a minute at most, for tests.")]
T = TypeVar("T")


def config_of(presets: Mapping[str, T], name: str, seed: int) -> T:
    """A preset under a seed."""
    from dataclasses import replace

    if name not in presets:
        raise InputError(f"--preset: unknown preset {name!r}; use {' or '.join(presets)}")
    config: T = replace(presets[name], seed=seed)  # type: ignore[type-var]
    return config


def show_counts(result: dict[str, Any], out: Path, as_json: bool) -> None:
    """Print the number of rows of each file."""
    show(result, as_json, *(f"{count:6} {name}" for name, count in result.items() if name != "out"), f"written: {out}")


@app.command("train")
def testbed_train(out: Folder, preset: Preset = "full", seed: Seed = 0, as_json: Json = False, quiet: Quiet = False) -> None:
    """Train the tiny model from scratch into OUT/model; a killed training resumes."""
    from charter.testbed.train import TESTBED_PRESETS, train_testbed

    result = train_testbed(config_of(TESTBED_PRESETS, preset, seed), out, quiet=quiet or as_json)
    show(result, as_json, f"loss {result['loss']:.3f} after {result['tokens']} tokens: {result['out']}")


@app.command("card")
def testbed_card(
    model: Annotated[str, typer.Option(help="Model folder.")] = "package:charter.testbed/model",
    n: Annotated[int, typer.Option(min=10, help="Cases per measure.")] = 400,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure the tiny model on held-out requests, with intervals."""
    from charter.recipe.source import locate
    from charter.testbed.card import card_table, measure_card

    rows = measure_card(locate(model, Path.cwd()), n=n, seed=seed)
    show({"measures": rows}, as_json, *card_table(rows))


@app.command("data")
def testbed_data(out: Folder, seed: Seed = 0, as_json: Json = False) -> None:
    """Write the testbed's prompts, and pairs and topics with known answers."""
    from charter.testbed.data import write_data

    show_counts(write_data(out, seed), out, as_json)


@app.command("dialogues")
def testbed_dialogues(out: Folder, seed: Seed = 0, as_json: Json = False) -> None:
    """Write rude and friendly dialogues with summaries, in the form of DialogSum."""
    from charter.testbed.dialogues import write_dialogsum

    show_counts(write_dialogsum(out, seed), out, as_json)


@app.command("lab")
def testbed_lab(out: Folder, preset: Preset = "full", seed: Seed = 0, as_json: Json = False, quiet: Quiet = False) -> None:
    """Train the detox lab's summariser and its two classifiers into OUT/NAME/model; a killed training resumes."""
    from charter.testbed.lab import LAB_PRESETS, card_lines, make_lab

    result = make_lab(config_of(LAB_PRESETS, preset, seed), out, quiet=quiet or as_json)
    show(result, as_json, *card_lines(result), f"models: {out}/NAME/model")


@app.command("stand-in")
def testbed_stand_in(
    family: Annotated[str, typer.Argument(help="llama, mistral, gpt2, t5, roberta-classifier, …; an unknown name lists all.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder of the model.")],
    context: Annotated[int, typer.Option(min=64, help="Tokens in the context; of an encoder an eighth.")] = 2048,
    labels: Annotated[str, typer.Option(help="Labels of a classifier, separated by commas.")] = "nothate,hate",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a tiny random model of a real architecture, to try a recipe without a download."""
    from charter.testbed.standins import save_stand_in

    names = tuple(name.strip() for name in labels.split(","))
    if len(set(names)) < max(len(names), 2) or not all(names):
        raise InputError(f"--labels {labels!r}: give at least two different names, separated by commas")
    save_stand_in(out, family, context=context, labels=names, seed=seed)
    show({"family": family, "out": str(out)}, as_json, f"a random {family}: {out}")


@app.command("votes")
def testbed_votes(
    out: Folder,
    principles: Annotated[str, typer.Option(help="What the voters follow, by commas: peace, privacy, tone, helpful, …")],
    n: Annotated[int, typer.Option(min=1, help="Votes of each voter.")] = 1500,
    voters: Annotated[int, typer.Option(min=1, help="Voters, who all follow the same principles.")] = 1,
    noise: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of wrong votes where a principle decides.")] = 0.1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write votes of simulated people who follow known principles, and a constitution with candidates for them."""
    from charter.constitution.constitution import Constitution, Principle, save_constitution
    from charter.run.files import write_jsonl
    from charter.testbed.voters import candidate_rows, simulate_votes

    names = [name.strip() for name in principles.split(",")]
    people = [f"voter-{number + 1}" for number in range(voters)]
    votes = [vote for person in people for vote in simulate_votes(names, n, seed, noise=noise, rater=person)]
    rows = candidate_rows(1, seed)
    candidates = Constitution(title="Candidates of the testbed", principles=tuple(map(Principle.model_validate, rows)))
    write_jsonl(out / "votes.jsonl", votes)
    save_constitution(candidates, out / "candidates.yaml")
    show_counts({"votes": len(votes), "candidates": len(rows), "out": str(out)}, out, as_json)
