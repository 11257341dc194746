"""The command that measures the models of a recipe, or any models on test sets. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from charter.commands.options import Json, Out, Quiet, Seed, Understood, margins_of, show
from charter.commands.run import run_until
from charter.errors import InputError

app = typer.Typer()


def parted(texts: list[str]) -> tuple[list[str], list[str]]:
    """Settings (KEY=VALUE) and files among what follows ``--set``. InputError if both are there."""
    files = [text for text in texts if "=" not in text or Path(text).exists()]
    settings = [text for text in texts if text not in files]
    if files and settings:
        raise InputError(f"--set {files[0]} is a file and --set {settings[0]} a setting of a recipe; give a model with files, or "
                         "a recipe with settings")  # fmt: skip
    return settings, files


def named_sources(texts: list[str]) -> dict[str, str]:
    """Measures by name from NAME=SOURCE. InputError if one has no name or is there twice."""
    measures: dict[str, str] = {}
    for text in texts:
        name, equals, source = text.partition("=")
        if not name or not equals or not source:
            raise InputError(f"--measure {text}: write NAME=SOURCE, such as toxicity=classifier:FOLDER:LABEL")
        if name in measures:
            raise InputError(f"--measure {name}: given more than once")
        measures[name] = source
    return measures


@app.command("evaluate")
def evaluate(  # one parameter for each flag, as typer reads them
    what: Annotated[str, typer.Argument(
        metavar="RECIPE|MODEL", help="A recipe; with --set FILE a model: folder, RUN:arm, adapter, hub name, or URL#MODEL.")],
    sets: Annotated[list[str] | None, typer.Option(
        "--set", help="With a model: a file of a test set. With a recipe: a setting, rl.steps=20. Repeat for more.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="A model to compare MODEL with. Repeat for more.")] = None,
    scorer: Annotated[str | None, typer.Option(
        help="Who says what is harmful and refused: refusal-words, judge:MODEL or python:module:function.")] = None,
    measure: Annotated[list[str] | None, typer.Option(
        help="A number of every answer: NAME=classifier:FOLDER:LABEL, or reward:FOLDER, judge:MODEL, python:module:function.",
    )] = None,
    card: Annotated[list[str] | None, typer.Option(
        help="The card of the scorer or of a measure, from charter scorer card. Repeat for more.")] = None,
    lower: Annotated[list[str] | None, typer.Option(help="A measure of which less is better. Repeat for more.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tag of all prompts of a file that has none: red_team, benign.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most items of each set, the same ones for every model.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="In place of the set's protocol.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="In place of the set's protocol.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Answers to a prompt, in place of the set's protocol.")] = None,
    margin: Annotated[list[str] | None, typer.Option(
        help="Largest difference that does not matter: 0.02, or METRIC=0.02. Repeat for more.")] = None,
    correct: Annotated[str, typer.Option(help="Over all metrics and pairs: holm, bh (Benjamini-Hochberg) or none.")] = "holm",
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the key of a server.")] = None,
    out: Out = None,
    seed: Seed = 0,
    understood: Understood = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Measure base, SFT and policy of a recipe and write the report; or, with --set FILE, any models on test sets."""
    settings, files = parted(sets or [])
    if not files:
        given = {"--against": against, "--scorer": scorer, "--measure": measure, "--card": card, "--lower": lower, "--tag": tag,
                 "--limit": limit, "--temperature": temperature, "--max-new-tokens": max_new_tokens, "--samples": samples,
                 "--margin": margin, "--correct": None if correct == "holm" else correct, "--api-key-env": api_key_env,
                 "--seed": seed or None, "--i-understand-flipped": understood or None}  # fmt: skip
        if named := [name for name, value in given.items() if value is not None]:
            raise InputError(f"{named[0]} is for a model on a test set; add --set FILE, or set it in the recipe")
        run_until(what, out, settings, "evaluate", as_json, quiet)
        return
    from charter.recipe.files import shipped
    from charter.run.team import launched

    if Path(what).suffix in (".yaml", ".yml") or (shipped("recipes") / f"{what}.yaml").is_file():
        raise InputError(f"a recipe, but --set {files[0]} is a file; give a model with files, or --set KEY=VALUE", file=what)
    if launched():
        raise InputError("an evaluation of models is the work of one process; start it without a launcher")
    margins, measures = margins_of(margin or []), named_sources(measure or [])
    from charter.measuring.evaluate import REFUSAL_WORDS, Options, evaluate_models

    options = Options(
        scorer=scorer or REFUSAL_WORDS, measures=measures, cards=card or (), lower=lower or (), tags=tag or (), limit=limit,
        temperature=temperature, max_new_tokens=max_new_tokens, samples=samples, margins=margins,
        correction=correct, api_key_env=api_key_env, understood=understood, seed=seed, quiet=quiet or as_json,  # type: ignore[arg-type]
    )  # fmt: skip
    result = evaluate_models([what, *(against or [])], files, out, options)
    show(result.as_dict() if as_json else None, as_json, str(result), f"report: {result.folder / 'report.html'}")
