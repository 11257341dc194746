"""The commands that run a recipe, or say beforehand what it would do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from charter.commands.options import MAIN_METRICS, Json, Out, Quiet, RecipeName, Sets, show
from charter.errors import GateError, InputError

app = typer.Typer()


def run_until(recipe_name: str, out: Path | None, sets: list[str] | None, until: str, as_json: bool, quiet: bool) -> None:
    from charter.recipe.files import check_files, find_recipe, load_recipe

    path = find_recipe(recipe_name)
    recipe = load_recipe(path, sets or ())
    check_files(recipe)
    from charter.pipeline import run_recipe
    from charter.plan.fit import check_machine

    folder = out or Path("runs") / path.stem
    if not (folder / "report.json").exists():  # a finished run loads nothing
        check_machine(recipe)
    report = run_recipe(recipe, folder, until=until, quiet=quiet or as_json)
    lines = [f"report: {folder / 'report.html'}"]
    if report["metrics"]:
        lines = [*headline(report), f"verdict: {report['verdict']['word']} ({report['verdict']['rule']})", *lines]
    elif until == "evaluate":
        last = next((stage["name"] for stage in reversed(report["stages"]) if stage["done"]), until)
        lines = [f"done: {folder / last}", *lines]
    else:
        lines = [f"done up to {until}: {folder / until}", *lines]
    if (accuracy := (report["reward_model"] or {}).get("accuracy")) is not None and not report["metrics"]:
        low, high = report["reward_model"]["ci"] or (float("nan"),) * 2
        words = f"reward model: right on {accuracy:.3f} [{low:.3f}, {high:.3f}] of {report['reward_model']['n']} held-out pairs"
        lines = [words, *lines]
    show(report, as_json, *lines)


def headline(report: dict[str, Any]) -> list[str]:
    """The main figures as a small table."""
    arms = [arm["name"] for arm in report["arms"]]
    rows = [f"{'':22}" + "".join(f"{arm:>24}" for arm in arms)]
    measured = {metric["name"] for metric in report["metrics"]}
    for name in [*report["better"], *(name for name in MAIN_METRICS if name in measured)]:
        cells = []
        for arm in arms:
            results = [m for m in report["metrics"] if m["name"] == name and m["arm"] == arm and m["group"] is None]
            if not results:
                cells.append("–")
            elif results[0]["value"] is None:
                cells.append("unscored")
            else:
                low, high = results[0]["ci"] or (float("nan"),) * 2
                cells.append(f"{results[0]['value']:.2f} [{low:.2f}, {high:.2f}]")
        rows.append(f"{name:22}" + "".join(f"{cell:>24}" for cell in cells))
    return rows


@app.command()
def run(
    recipe: RecipeName,
    out: Out = None,
    set_: Sets = None,
    until: Annotated[str, typer.Option(help="Stop after this stage.")] = "evaluate",
    feedback: Annotated[
        str | None, typer.Option(help="Who compares: judge, human or mixed; short for --set feedback.raters=WHO.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Run so many seeds, from the recipe's on, and show all of them.")] = 1,
    tracker: Annotated[
        list[str] | None, typer.Option(help="Send metrics there too: tensorboard, wandb, trackio, mlflow. Repeat for more.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe from constitution to report; goes on where an earlier run stopped."""
    set_ = [*(set_ or ()), *([f"feedback.raters={feedback}"] if feedback else ())]
    set_ += [f"trackers=[{', '.join(tracker)}]"] if tracker else []
    if seeds == 1:
        run_until(recipe, out, set_, until, as_json, quiet)
        return
    from charter.recipe.files import check_files, find_recipe, load_recipe

    path = find_recipe(recipe)
    loaded = load_recipe(path, set_)
    check_files(loaded)
    from charter.commands.seeds import run_seeds, seeds_table
    from charter.plan.fit import check_machine

    folder = out or Path("runs") / path.stem
    check_machine(loaded)
    result = run_seeds(loaded, folder, seeds, until=until, quiet=quiet or as_json)
    show(result, as_json, *seeds_table(result, MAIN_METRICS), f"all figures: {folder / 'seeds.json'}")
    if stopped := [run for run in result["runs"] if run["stopped"]]:
        raise GateError(f"{len(stopped)} of {seeds} seeds stopped at a gate; seed {stopped[0]['seed']}: {stopped[0]['stopped']}")


def stage_command(name: str, until: str, words: str, group: typer.Typer) -> None:
    def command(recipe: RecipeName, out: Out = None, set_: Sets = None, as_json: Json = False, quiet: Quiet = False) -> None:
        run_until(recipe, out, set_, until, as_json, quiet)

    command.__doc__ = words
    group.command(name)(command)


@app.command("revise")
def revise(
    recipe: RecipeName,
    out: Out = None,
    set_: Sets = None,
    pilot: Annotated[
        bool, typer.Option("--pilot", help="Ten prompts: show all that the model writes and what is likely wrong; keep nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answers, critiques and revisions, after the stages they need."""
    if not pilot:
        run_until(recipe, out, set_, "revise", as_json, quiet)
        return
    if out is not None:
        raise InputError("--pilot keeps nothing; leave out --out")
    from charter.commands.pilot import pilot_lines, pilot_of
    from charter.recipe.files import find_recipe, load_recipe

    result = pilot_of(load_recipe(find_recipe(recipe), set_ or ()))
    show(result, as_json, *pilot_lines(result))


stage_command("sft", "sft", "Fine-tune on the revisions, after the stages that needs.", app)

stage_command("feedback", "feedback", "Sample responses and have a judge or people compare them.", app)

stage_command("rl", "rl", "Train the policy against the reward model, after the stages that needs.", app)

stage_command("evaluate", "evaluate", "Measure base, SFT and policy on held-out prompts and write the report.", app)


@app.command()
def new(
    name: Annotated[Path, typer.Argument(help="The recipe's file; .yaml is added where it has no ending.")],
    model: Annotated[str | None, typer.Option(help="A model's folder, or its name on the hub.")] = None,
    goal: Annotated[str | None, typer.Option(help="constitution, people, pairs, reward or classifier.")] = None,
    file: Annotated[str | None, typer.Option(help="Your prompts, or your preference pairs.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
) -> None:
    """Write a commented recipe for your own case; asks for what no flag says."""
    from charter.recipe.new import complete, write_recipe

    path = name if name.suffix in (".yaml", ".yml") else name.with_name(f"{name.name}.yaml")
    model, goal, file = complete(model, goal, file, can_ask=sys.stdin.isatty())
    for written in write_recipe(path, model=model, goal=goal, data=file, force=force):
        typer.echo(f"written: {written}")
    typer.echo(f"next: charter plan {path}")


@app.command()
def plan(
    recipe: RecipeName,
    set_: Sets = None,
    hours: Annotated[float, typer.Option(min=0.01, help="Propose settings where the run would take longer than this.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Tokens, memory, disk and time of a recipe, before anything loads; and settings with which it takes less time."""
    from charter.plan.plan import plan_recipe
    from charter.plan.table import plan_table
    from charter.recipe.files import find_recipe, load_recipe

    figures = plan_recipe(load_recipe(find_recipe(recipe), set_ or ()), hours)
    show(figures, as_json, *plan_table(figures))


@app.command("show-tokens")
def show_tokens(recipe: RecipeName, set_: Sets = None, as_json: Json = False) -> None:
    """The first batch of each stage in colour: prompt, template tokens, response tokens that carry loss, the reward's place."""
    from charter.commands.show_tokens import first_batches, print_batches
    from charter.recipe.files import find_recipe, load_recipe

    batches = first_batches(load_recipe(find_recipe(recipe), set_ or ()))
    if as_json:
        show(batches, True)
    else:
        print_batches(batches)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")], as_json: Json = False) -> None:
    """Write report.html and metrics.csv of a run again from its report.json."""
    from charter.evaluation.page import write_report
    from charter.run.files import read_json

    report = read_json(run / "report.json")
    if not isinstance(report, dict):
        raise InputError("holds no report.json; charter run RECIPE --out makes one", file=run)
    show(report, as_json, f"report: {write_report(report, run)}")


@app.command()
def verify(run: Annotated[Path, typer.Argument(help="A run folder.")], as_json: Json = False) -> None:
    """Recompute the report of a run from what it stores, check its hashes, and name what differs; loads no model."""
    from charter.verification import verify_run

    result = verify_run(run)
    lines = [*(row["text"] for row in result["differences"]), *result["notes"]]
    show(result, as_json, *lines, *(["all equal"] if result["equal"] else []))
    if not result["equal"]:
        raise GateError(f"{len(result['differences'])} differences in {run}")
