"""The commands that run a recipe, or say beforehand what it would do."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from charter.commands.options import MAIN_METRICS, Json, Out, Quiet, RecipeName, Sets, show
from charter.errors import GateError, InputError

app = typer.Typer()


def run_file(
    path: Path, out: Path | None, sets: Sequence[str] = (), *, changes: Mapping[str, Any] | None = None, until: str, quiet: bool
) -> tuple[Path, dict[str, Any]]:
    """Run a recipe's file up to a stage, in ``out`` or runs/NAME. Returns the folder and the report."""
    from charter.recipe.files import check_files, load_recipe

    recipe = load_recipe(path, sets, changes)
    check_files(recipe)
    from charter.pipeline import run_recipe
    from charter.plan.fit import check_machine

    folder = out or Path("runs") / path.stem
    if not (folder / "report.json").exists():  # a finished run loads nothing
        check_machine(recipe)
    return folder, run_recipe(recipe, folder, until=until, quiet=quiet)


def run_until(recipe_name: str, out: Path | None, sets: list[str] | None, until: str, as_json: bool, quiet: bool) -> None:
    from charter.recipe.files import find_recipe

    folder, report = run_file(find_recipe(recipe_name), out, sets or (), until=until, quiet=quiet or as_json)
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


def all_controls(recipe_name: str, sets: list[str]) -> list[str]:
    """The control arms that fit a recipe: `shuffled` needs comparisons that a judge made."""
    from charter.metrics import CONTROLS
    from charter.recipe.files import find_recipe, load_recipe

    try:
        load_recipe(find_recipe(recipe_name), [*sets, "controls=[shuffled]"])
    except InputError:
        return [name for name in CONTROLS if name != "shuffled"]
    return list(CONTROLS)


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
    drop_one: Annotated[
        bool, typer.Option("--drop-one", help="Run it also without each principle, and show what its absence changes.")
    ] = False,
    from_policy: Annotated[
        Path | None, typer.Option(help="A run whose policy RL starts from; short for --set rl.from_policy=RUN/rl/model.")
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Train control arms too: flipped, random, length and, with a judge, shuffled.")
    ] = False,
    tracker: Annotated[
        list[str] | None, typer.Option(help="Send metrics there too: tensorboard, wandb, trackio, mlflow. Repeat for more.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe from constitution to report; resumes where an earlier run stopped."""
    set_ = [*(set_ or ()), *([f"feedback.raters={feedback}"] if feedback else ())]
    set_ += [f"controls=[{', '.join(all_controls(recipe, set_))}]"] if controls else []
    set_ += [f"trackers=[{', '.join(tracker)}]"] if tracker else []
    set_ += [f"rl.from_policy={policy_of(from_policy)}"] if from_policy else []
    if drop_one and (seeds > 1 or until != "evaluate"):
        raise InputError("--drop-one compares whole runs of one seed; leave out --seeds and --until")
    if seeds == 1 and not drop_one:
        run_until(recipe, out, set_, until, as_json, quiet)
        return
    from charter.recipe.files import check_files, find_recipe, load_recipe

    path = find_recipe(recipe)
    loaded = load_recipe(path, set_)
    check_files(loaded)
    from charter.plan.fit import check_machine
    from charter.tasks.drop_one import drop_one_table, run_without_each
    from charter.tasks.seeds import run_seeds, seeds_table

    folder = out or Path("runs") / path.stem
    check_machine(loaded)
    if drop_one:
        result = run_without_each(loaded, folder, quiet=quiet or as_json)
        show(result, as_json, *drop_one_table(result), f"all figures: {folder / 'drop-one.json'}")
        return
    result = run_seeds(loaded, folder, seeds, until=until, quiet=quiet or as_json)
    show(result, as_json, *seeds_table(result, MAIN_METRICS), f"all figures: {folder / 'seeds.json'}")
    if stopped := [run for run in result["runs"] if run["stopped"]]:
        raise GateError(f"{len(stopped)} of {seeds} seeds stopped at a gate; seed {stopped[0]['seed']}: {stopped[0]['stopped']}")


def policy_of(run: Path) -> Path:
    """The folder of the last policy of a run, or the folder itself if it is a model's. InputError if both are missing."""
    from charter.models.marks import last_round

    policy = run / last_round(run, "rl") / "model"  # and of no control arm
    for folder in (policy, run):
        if (folder / "config.json").is_file():
            return folder.resolve()
    raise InputError("no policy; --from-policy takes a run that trained one", file=run)


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
    from charter.recipe.files import find_recipe, load_recipe
    from charter.tasks.pilot import pilot_lines, pilot_of

    result = pilot_of(load_recipe(find_recipe(recipe), set_ or ()))
    show(result, as_json, *pilot_lines(result))


stage_command("sft", "sft", "Fine-tune on the revisions, after the stages that needs.", app)

stage_command("feedback", "feedback", "Sample responses and have a judge or people compare them.", app)

stage_command("rl", "rl", "Train the policy against the reward model, after the stages that needs.", app)


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
    labels: Annotated[
        str | None, typer.Option(help="What the labels cost: of people and the judge (people), or of the judge alone (judge).")
    ] = None,
    seconds_per_label: Annotated[
        float | None, typer.Option(min=0.1, help="A person's time for a comparison; 10 unless given.")
    ] = None,
    price_per_label: Annotated[float | None, typer.Option(min=0.0, help="Money for a comparison; 0.10 unless given.")] = None,
    raters: Annotated[int | None, typer.Option(min=1, help="People who compare the same two responses; 1 unless given.")] = None,
    machine_price: Annotated[float | None, typer.Option(min=0.0, help="Money for an hour of the judge's machine.")] = None,
    as_json: Json = False,
) -> None:
    """Tokens, memory, disk and time of a recipe, before anything loads; settings with which it takes less; the cost of labels."""
    from charter.plan.labels import Rates, label_lines
    from charter.plan.plan import plan_recipe
    from charter.plan.table import plan_table
    from charter.recipe.files import find_recipe, load_recipe

    rates = {"seconds": seconds_per_label, "price": price_per_label, "raters": raters, "machine_price": machine_price}
    rates = {name: value for name, value in rates.items() if value is not None}
    if labels not in (None, "people", "judge"):
        raise InputError(f"--labels {labels!r}: people or judge")
    if rates and labels is None:
        raise InputError("rates are for the cost of labels; add --labels people")
    if labels == "judge" and set(rates) - {"machine_price"}:
        raise InputError("--labels judge asks no people; leave out their rates, or use --labels people")
    figures = plan_recipe(load_recipe(find_recipe(recipe), set_ or ()), hours, Rates(**rates) if labels else None)  # type: ignore[arg-type]
    costs = label_lines(figures["labels"], labels) if labels else []
    show(figures, as_json, *plan_table(figures), *(["", *costs] if costs else []))


@app.command("show-tokens")
def show_tokens(recipe: RecipeName, set_: Sets = None, as_json: Json = False) -> None:
    """The first batch of each stage in colour: prompt, template tokens, response tokens that carry loss, the reward's place."""
    from charter.recipe.files import find_recipe, load_recipe
    from charter.tasks.show_tokens import first_batches, print_batches

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
        raise InputError("report.json is missing; charter run RECIPE --out makes one", file=run)
    try:
        page = write_report(report, run)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        words = f"not a valid report, or of another version ({type(error).__name__}: {error}); charter run writes it again"
        raise InputError(words, file=run / "report.json") from None
    show(report, as_json, f"report: {page}")


@app.command()
def verify(run: Annotated[Path, typer.Argument(help="A run folder.")], as_json: Json = False) -> None:
    """Recompute the report of a run from what it stores, check its hashes, and name what differs; loads no model."""
    from charter.verification import verify_run

    result = verify_run(run)
    lines = [*(row["text"] for row in result["differences"]), *result["notes"]]
    show(result, as_json, *lines, *(["all equal"] if result["equal"] else []))
    if not result["equal"]:
        raise GateError(f"{len(result['differences'])} differences in {run}")
