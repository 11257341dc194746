"""The commands on prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from charter.commands.options import Json, Prompts, Seed, show
from charter.commands.run import stage_command
from charter.errors import InputError

app = typer.Typer(help="Import, describe, classify and prepare prompts.", no_args_is_help=True)


@app.command("import")
def prompts_import(
    file: Prompts,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL, JSON or CSV file to write.")],
    tag: Annotated[list[str] | None, typer.Option(help="Tag to put on every prompt: red_team, benign, …")] = None,
    test_fraction: Annotated[float, typer.Option(min=0.0, max=0.99, help="Share of the prompts to hold out.")] = 0.2,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Most prompts to keep.")] = None,
    as_json: Json = False,
) -> None:
    """Read prompts from JSONL, CSV, text, parquet or hh-rlhf transcripts; de-duplicate, split, write."""
    from charter.reading.spool import import_prompts

    if not 0 <= test_fraction < 1:
        raise InputError(f"--test-fraction {test_fraction}: give a share of at least 0 and below 1")
    result = import_prompts(file, out, tags=tag or (), limit=limit, test_fraction=test_fraction, seed=seed)
    words = f"{result['read']} read, {result['duplicates']} duplicates, {result['written']} written: {out}"
    show({**result, "out": str(out)}, as_json, words)


@app.command("card")
def prompts_card(
    file: Annotated[Path, typer.Argument(help="A file of prompts, a run folder, or a folder of feedback.")],
    judgments: Annotated[Path | None, typer.Option(help="Votes on them; of a run by default those of judge and people.")] = None,
    groups: Annotated[
        Path | None, typer.Option(help="A table with the columns rater and group; by kind of rater unless given.")
    ] = None,
    constitution: Annotated[Path | None, typer.Option(help="Name its principles that no prompt has.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a set of prompts consists of: principles, tags, scripts, lengths, duplicates, raters, and what is missing."""
    from charter.constitution.constitution import load_constitution
    from charter.reading.card import card_lines, card_of

    names = [p.id for p in load_constitution(constitution).topics()] if constitution else []
    card = card_of(file, judgments, groups=groups, principles=names)
    show(card, as_json, *card_lines(card))


@app.command("classify")
def prompts_classify(
    file: Prompts,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL, JSON or CSV file to write.")],
    constitution: Annotated[Path, typer.Option(help="Constitution; its principles tagged `topic` are the classes.")],
    model: Annotated[str, typer.Option(help="Folder of the model that classifies.")] = "package:charter.testbed/model",
    labelled: Annotated[
        Path | None, typer.Option(help="Prompts with known principles: choose the way of sorting by them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sort prompts by principle with a local model; the class is read from log-probabilities, so each prompt gets one."""
    from collections import Counter

    from charter.constitution.categorise import categorise, choose_way
    from charter.constitution.constitution import load_constitution
    from charter.models.sampling.sampler import LocalSampler
    from charter.models.trunk import load_trunk
    from charter.reading.prompts import check_output, read_prompts, write_prompts
    from charter.recipe.source import locate

    check_output(out)
    rules = load_constitution(constitution)
    if not rules.topics():
        raise InputError("no principle is tagged `topic`; tag the principles to classify by", file=constitution)
    prompts = [p.model_copy(update={"principle": None}) for p in read_prompts(file)]
    sampler = LocalSampler(load_trunk(locate(model, Path.cwd())), "classifier")
    sorting = choose_way(list(read_prompts(labelled)), rules, sampler) if labelled else None
    sorted_prompts = categorise(prompts, rules, sampler, sorting)
    write_prompts(out, sorted_prompts)
    counts = Counter(p.principle or "none of these" for p in sorted_prompts)
    result = {"prompts": len(prompts), "verdict_rate": 1.0, "principles": dict(counts), "out": str(out),
              "sorting": sorting.figures() if sorting else None}  # fmt: skip
    show(result, as_json, *(f"{n:6} {name}" for name, n in counts.most_common()), *([sorting.words()] if sorting else []),
         f"{len(prompts)} prompts: {out}")  # fmt: skip


stage_command("prepare", "prompts", "Read, de-duplicate, classify and split the prompts of a recipe.", app)
