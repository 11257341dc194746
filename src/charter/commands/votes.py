"""The commands about votes: label, rate, measure agreement, send out, take in. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from charter.commands.options import Json, Seed, show
from charter.errors import GateError, InputError
from charter.votes.imports.formats import FORMATS

app = typer.Typer(rich_markup_mode=None)
GroupTable = Annotated[Path | None, typer.Option(help="A table with the columns rater and group.")]
TOOLS = ("inspect", "lm-eval", "alpaca-eval")


@app.command("export")
def export_command(
    source: Annotated[Path, typer.Argument(help="A run, a folder of feedback, its judgments.jsonl, or a file of pairs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File (.jsonl, .parquet, .csv) or new folder to write.")],
    to: Annotated[
        str,
        typer.Option(
            help="trl, trl-conversational, unpaired, unpaired-conversational, rewardbench, hh, hh-red-team, grouped, csv, "
            "parquet, datasets or raw; of an evaluated run also inspect, lm-eval or alpaca-eval."
        ),
    ] = "",
    again: Annotated[Path | None, typer.Option(help="A manifest: write its dataset again, byte for byte.")] = None,
    soft_labels: Annotated[
        str,
        typer.Option(
            help="judgment: a row each; share of a set's raters; groups: pairs that each group prefers (--groups); "
            "ratings: P(chosen) of --ratings."
        ),
    ] = "judgment",
    ratings: Annotated[Path | None, typer.Option(help="Scores in nats by response id, a table.")] = None,
    groups: GroupTable = None,
    more_harmful: Annotated[
        str, typer.Option(help="Judgments that ask for harm: flip or leave-out; refuse where both signs are there.")
    ] = "refuse",
    keep_weakest: Annotated[bool, typer.Option("--keep-weakest", help="Pairs of the weakest notch, too.")] = False,
    rater_kind: Annotated[list[str] | None, typer.Option(help="Only human, judge, reward_model or rule.")] = None,
    without_rater: Annotated[list[str] | None, typer.Option(help="Leave this rater out. Repeat for more.")] = None,
    calibration: Annotated[float, typer.Option(help="Nats of a judge's margin per unit of the soft label.")] = 1.0,
    reasons: Annotated[
        bool, typer.Option("--reasons", help="Columns with the rater's words and the principles that decided.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write judgments or pairs as a dataset for training, with a manifest from which it can be made again; or the answers and
    values of an evaluated run as logs of inspect-ai, lm-evaluation-harness or AlpacaEval."""
    from charter.votes.exchange import export_again, export_feedback, manifest_path, selection_of

    if bool(to) == bool(again):
        raise InputError("give one of --to FORMAT and --again MANIFEST")
    selection = selection_of({
        "rater_kinds": tuple(rater_kind or ()), "without_raters": tuple(without_rater or ()), "keep_weakest": keep_weakest,
        "more_harmful": more_harmful, "soft": soft_labels, "calibration": calibration,
        "reasons": reasons,
    })  # fmt: skip
    if again and selection != selection_of({}):
        raise InputError("--again takes its filters from the manifest; leave the others out")
    if to in TOOLS:
        if selection != selection_of({}) or ratings or groups:
            raise InputError(f"the filters select judgments, and --to {to} writes the answers of a run; leave the filters out")
        from charter.comparing.tool_logs import export_arms

        result = export_arms(source, out, to)
        show(result, as_json, f"{result['rows']} rows as {to}:", *result["files"])
        return
    if again:
        result = export_again(source, out, again, ratings=ratings, groups=groups)
    else:
        result = export_feedback(source, out, to, selection, ratings=ratings, groups=groups)
    turned = f", {result['flipped']} judgments turned round" if result.get("flipped") else ""
    show(result, as_json, *left_out(result), f"{result['rows']} rows as {result['format']}{turned}: {out}",
         f"manifest: {manifest_path(out)}")  # fmt: skip


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="Feedback as JSONL, JSON, CSV or Parquet, or a saved dataset's folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for prompts, responses and judgments.")],
    from_: Annotated[
        str | None, typer.Option("--from", help=f"{', '.join(FORMATS)} or raw; by the columns unless given.")
    ] = None,
    rater: Annotated[str | None, typer.Option(help="Who judged, where the file does not say.")] = None,
    rater_kind: Annotated[
        str | None, typer.Option(help="human, judge, reward_model or rule, where the file does not say.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read published or exported feedback into prompts, responses and chained judgments."""
    from charter.votes.imports.files import import_feedback

    result = import_feedback(file, out, from_, rater=rater, rater_kind=rater_kind) | {"out": str(out)}
    words = f"{result['judgments']} judgments of {result['responses']} responses to {result['prompts']} prompts"
    show(result, as_json, *left_out(result), f"{words} from {result['rows']} rows of {result['format']}: {out}")


@app.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(help="Folders of feedback, or their judgments.jsonl.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the union, or a .jsonl file for judgments alone.")],
    as_json: Json = False,
) -> None:
    """Unite the feedback of several machines; any order gives the same bytes, and a changed record is an error."""
    from charter.votes.merging import merge_folders, merge_judgments

    unite = merge_judgments if out.suffix == ".jsonl" else merge_folders
    result: dict[str, Any] = {**unite(sources, out), "out": str(out)}
    once = f"{result['repeated']} of them are in two exports; ratings, agreement and export count these votes once"
    lines = [f"{result['judgments']} judgments of {len(sources)} sources: {out}", *([once] if result["repeated"] else [])]
    show(result, as_json, *lines)


@app.command("forget")
def forget_command(
    place: Annotated[Path, typer.Argument(help="A run, a label project, a folder of feedback, or one file.")],
    person: Annotated[str, typer.Option(help="The name of the rater, as the votes have it.")],
    reason: Annotated[str, typer.Option(help="Stays in the chain of judgments.")] = "at the request of the rater",
    as_json: Json = False,
) -> None:
    """Take one person out of all votes, tables and databases of a folder, delete what was made for them alone, and search for
    what is left; exit code 1 where a file that cannot be edited still names them."""
    from charter.forgetting import forget

    result = forget(place, person, reason)
    show(result, as_json,
         f"{result['judgments']} judgments and {result['prompts']} prompts taken out; changed: {len(result['files'])} files",
         *(f"deleted: {folder}" for folder in result["removed"]),
         *([f"not searched for: {result['short_texts']} texts of fewer than 12 characters"] if result["short_texts"] else []),
         *(f"learned from these votes too; train it again: {folder}" for folder in result["trained"]),
         *([] if result["left"] else ["searched: no file has the name or a text of this person"]))  # fmt: skip
    if result["left"]:
        raise GateError(f"still has the name or a text of this person: {', '.join(result['left'])}; remove it or make it again")


def left_out(result: dict[str, Any]) -> list[str]:
    """A line for each reason to leave something out, with the first place where it is known."""
    places = result.get("left_out_first", {})
    return [f"left out: {count} x {reason}" + (f" (first in {places[reason]})" if reason in places else "")
            for reason, count in result.get("left_out", {}).items()]  # fmt: skip


VoteFile = Annotated[
    Path, typer.Argument(help="Votes: judgments.jsonl, a run folder, or a table with model_a, model_b and winner.")
]
ResponseFile = Annotated[
    Path | None, typer.Option(help="responses.jsonl or its folder; by default the file beside the judgments.")
]
PromptFile = Annotated[
    Path | None, typer.Option(help="prompts.jsonl or its folder; by default beside the judgments or in their run.")
]
VotesOut = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for JSON, CSV and a picture.")]


@app.command()
def ratings(
    file: VoteFile,
    of: Annotated[str, typer.Option(help="Rate models or single responses.")] = "models",
    responses: ResponseFile = None,
    prompts: PromptFile = None,
    equal_raters: Annotated[bool, typer.Option("--equal-raters", help="Every rater counts the same.")] = False,
    out: VotesOut = None,
    as_json: Json = False,
) -> None:
    """Rate models or responses from votes: Bradley-Terry with ties, intervals by prompt, rank sets, votes that decide the top."""
    if of not in ("models", "responses"):
        raise InputError(f"--of {of!r}: models or responses")
    from charter.raters.report_files import write_ratings
    from charter.raters.reports import ratings_report
    from charter.raters.vote_files import rated_texts, read_votes

    if prompts and (of == "models" or not out):
        raise InputError("--prompts gives texts to the ratings of responses; use it with --of responses and --out")
    result, lines = ratings_report(read_votes(file, responses, models=of == "models"), of, equal_raters=equal_raters)
    texts = None
    if of == "responses" and out:
        rated = [(prompt["prompt"], row["response"]) for prompt in result["prompts_rated"] for row in prompt["responses"]]
        try:
            texts = rated_texts(file, prompts, responses, rated)
            lines.append(f"next: charter reward train {out / 'ratings.csv'} --loss squared --out DIR")
        except InputError as error:
            if prompts:
                raise
            lines.append(f"ratings.csv has ids and no texts, so no reward model can be trained on it: {error}")
    files = write_ratings(result, out, texts) if out else []
    show(result, as_json, *lines, *(f"written: {path}" for path in files))


def read_group_table(path: Path | None) -> dict[str, str] | None:
    """The group of each rater of a table, None without one."""
    from charter.reading.card import read_groups

    return read_groups(path) if path else None


@app.command()
def agreement(file: VoteFile, groups: GroupTable = None, out: VotesOut = None, as_json: Json = False) -> None:
    """How far raters agree, with intervals, beside published figures, and a line for each rater, person or judge; with groups
    also within and between them."""
    from charter.raters.report_files import write_agreement
    from charter.raters.reports import agreement_report
    from charter.raters.vote_files import read_votes

    result, lines = agreement_report(read_votes(file, repeats=True), read_group_table(groups))
    files = write_agreement(result, out) if out else []
    show(result, as_json, *lines, *(f"written: {path}" for path in files))


@app.command()
def raters(
    file: VoteFile,
    reward: Annotated[Path, typer.Option(help="A trained reward model: a run folder or what reward train made.")],
    model: Annotated[str | None, typer.Option(help="The model that the reward model was trained from.")] = None,
    prompts: PromptFile = None,
    responses: ResponseFile = None,
    groups: GroupTable = None,
    heads: Annotated[Path | None, typer.Option(help="New folder for a reward model with the head of each.")] = None,
    out: VotesOut = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Tell noise from taste: whether a head of a rater's own, on a reward model's features, predicts votes it has not seen; or,
    with groups, a head of each group."""
    from charter.raters.personal import MIN_VOTES
    from charter.raters.report_files import write_tastes
    from charter.raters.reports import taste_report
    from charter.recipe.source import locate
    from charter.tasks.own_files import heads_from_files

    base, table = locate(model, Path.cwd()) if model else None, read_group_table(groups)
    predicted, votes = heads_from_files(
        file, reward, model=base, prompts=prompts, responses=responses, seed=seed, groups=table, out=heads
    )
    result, lines = taste_report(predicted, votes, table)
    lines += [f"a reward model for each with at least {MIN_VOTES} votes: {heads}"] if heads else []
    files = write_tastes(result, out) if out else []
    show(result, as_json, *lines, *(f"written: {path}" for path in files))


@app.command()
def label(
    place: Annotated[Path, typer.Argument(help="A label project's folder, a run folder, or a table of responses.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Project folder; RUN/label or FILE-label.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any port that is free.")] = 8765,
    public: Annotated[
        str | None, typer.Option(help="Be reachable from elsewhere under this name, over https: label.example.org.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM file; without it a proxy in front speaks https.")] = None,
    private_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    as_json: Json = False,
) -> None:
    """Open the page on which people rank, compare, edit or red-team answers; prints the owner's link; Ctrl-C ends."""
    if (certificate is None) != (private_key is None):
        raise InputError("give --certificate and --private-key together")
    for file in (certificate, private_key):
        if file is not None and not file.is_file():
            raise InputError("no such file", file=file)
    if certificate is not None and public is None:
        raise InputError("--certificate is for --public NAME; on this machine alone the page needs none")
    try:
        from charter.web.serve import serve
    except ModuleNotFoundError as error:
        raise InputError(f"the label page needs {error.name}; pip install 'charter-align[web]'") from None
    from charter.web.project import open_project

    project = open_project(place, out)
    samplers: list[Any] = []
    if project.settings.kind == "redteam":
        from charter.models.load import pick_device
        from charter.models.sampling.sampler import LocalSampler
        from charter.models.trunk import load_trunk

        for model in project.settings.redteam.models:
            samplers.append(LocalSampler(load_trunk(model, device=pick_device("auto")), Path(model).name))
    items = project.items
    work = sum(task.role == "work" for task in items.sets.values())

    def say(link: str) -> None:
        counts = {"link": link, "folder": str(project.folder), "sets": work, "left_out": dict(items.left_out)}
        show(counts, as_json, *left_out(counts), f"{work} sets of kind {project.settings.kind}: {project.folder}",
             f"your link, good for a day: {link}")  # fmt: skip
        sys.stdout.flush()

    serve(project, samplers, port=port, public=public, certificate=certificate, private_key=private_key, say=say)
