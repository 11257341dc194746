"""The commands on principles and votes: infer a constitution, explain votes by one, measure how judges execute one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from charter.commands import constitution
from charter.commands.options import Json, Quiet, Seed, show
from charter.errors import GateError, InputError

app = typer.Typer(rich_markup_mode=None)
TESTBED = "package:charter.testbed/model"
Votes = Annotated[
    Path, typer.Argument(help="A run with a label page, a folder of feedback, judgments, or any file that import reads.")
]
Model = Annotated[str, typer.Option(help="Folder of the model that judges; with --endpoint its name there.")]
Endpoint = Annotated[str | None, typer.Option(help="A server that speaks OpenAI's protocol: https://HOST/v1.")]
KeyName = Annotated[str | None, typer.Option(help="Name of the environment variable with the server's key.")]
Answers = Annotated[Path, typer.Option(help="Folder that keeps the server's answers, so that none is paid twice.")]
Protocol = Annotated[str, typer.Option(help="letters, yes_no, dialogue, rubric or likelihood: how the judge is read.")]
By = Annotated[str | None, typer.Option(help="rater or group: also for each of them.")]
Groups = Annotated[Path | None, typer.Option(help="A table with the columns rater and group, for --by group.")]
Kinds = Annotated[
    list[str] | None, typer.Option("--rater-kind", help="Votes of human (by default), judge, reward_model or rule.")
]
AnnotatedPairs = Annotated[Path | None, typer.Option("--annotated-pairs", help="JSON file for ICAI and Feedback Forensics.")]


@constitution.app.command("infer")
def constitution_infer(
    judgments: Votes,
    out: Annotated[Path, typer.Option("--out", "-o", help="Constitution to write; the judge's votes go to NAME.votes.jsonl.")],
    candidates: Annotated[
        Path | None, typer.Option(help="Principles to try: a constitution, a list, or annotated pairs with principles.")
    ] = None,
    propose: Annotated[int, typer.Option(min=0, help="Principles that the model writes, each from one pair.")] = 0,
    model: Model = TESTBED,
    endpoint: Endpoint = None,
    api_key_env: KeyName = None,
    answers: Answers = Path("endpoint-answers"),
    protocol: Protocol = "letters",
    by: By = None,
    groups: Groups = None,
    rater_kind: Kinds = None,
    annotated_pairs: AnnotatedPairs = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the principles that predict votes: candidates are judged on every pair, and held-out votes confirm what is kept."""
    from charter.tasks.principle_files import Request, infer_from_files

    request = Request(
        judgments, tuple(rater_kind or ("human",)), by, groups, model, endpoint, api_key_env, answers, protocol, quiet or as_json
    )
    result, lines = infer_from_files(request, out, candidates, propose, annotated_pairs, seed)
    show(result, as_json, *lines)
    if result["constitution"] is None:
        raise GateError(f"{out}: not written; no candidate predicts the held-out votes, see the table for why")


@constitution.app.command("card")
def constitution_card(
    file: constitution.ConstitutionFile,
    pairs: Annotated[Path, typer.Option(help="Pairs of responses to judge, in any form that Charter reads.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Folder of a model that judges; give a second one to compare them.")
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="How the judge is read; repeat for more. Unless given letters, yes_no and dialogue.")
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="Most pairs to judge; a hash of their texts draws them.")] = 100,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how far a constitution gives the same verdicts to different judges, and which principle causes disagreement."""
    from charter.tasks.principle_files import card_from_files

    if len(models := model or [TESTBED]) > 2:
        raise InputError("--model: give one model or two")
    result, lines = card_from_files(file, pairs, models, protocol, limit, quiet=quiet or as_json)
    show(result, as_json, *lines)


@app.command()
def explain(
    judgments: Votes,
    constitution: Annotated[Path, typer.Option(help="The principles, a constitution in YAML.")],
    model: Model = TESTBED,
    endpoint: Endpoint = None,
    api_key_env: KeyName = None,
    answers: Answers = Path("endpoint-answers"),
    protocol: Protocol = "letters",
    by: By = None,
    groups: Groups = None,
    rater_kind: Kinds = None,
    annotated_pairs: AnnotatedPairs = None,
    most: Annotated[int, typer.Option("--show", min=0, help="Pairs to print where people and judge part.")] = 5,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show which principles of a constitution people follow, and where they part from the judge."""
    from charter.tasks.principle_files import Request, explain_files

    request = Request(
        judgments, tuple(rater_kind or ("human",)), by, groups, model, endpoint, api_key_env, answers, protocol, quiet or as_json
    )
    result, lines = explain_files(request, constitution, annotated_pairs, most)
    show(result, as_json, *lines)
