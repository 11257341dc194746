"""One command per stage: parse, call the stage, print where the result is. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from charter import cli_feedback
from charter.cli_options import Json, Seed, show
from charter.errors import GateError, InputError

app = typer.Typer(
    help="Align a language model to a written constitution and prove with numbers whether it worked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
constitution_app = typer.Typer(help="Check and import constitutions.", no_args_is_help=True)
prompts_app = typer.Typer(help="Import, classify and prepare prompts.", no_args_is_help=True)
reward_app = typer.Typer(help="Train reward models.", no_args_is_help=True)
testbed_app = typer.Typer(help="The tiny model that ships, and the language it speaks.", no_args_is_help=True)
app.add_typer(cli_feedback.app)
app.add_typer(constitution_app, name="constitution")
app.add_typer(prompts_app, name="prompts")
app.add_typer(reward_app, name="reward")
app.add_typer(testbed_app, name="testbed")

RecipeName = Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a shipped one such as demo.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; runs/<recipe name> unless given.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: rl.steps=20. Repeat for more.")]
Constitution = Annotated[Path, typer.Argument(help="A constitution in YAML.")]
Published = Annotated[Path, typer.Argument(help="A constitution in JSON, or a .txt file with one principle per line.")]
Prompts = Annotated[Path, typer.Argument(help="Prompts: JSONL, JSON, CSV, text or Parquet, plain or gzipped.")]
Pairs = Annotated[Path, typer.Argument(help="Preference pairs: JSONL, JSON, CSV or Parquet, plain or gzipped.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on the terminal.")]


MAIN_METRICS = ("harmful_compliance", "over_refusal", "helpfulness", "kl")


def run_until(
    recipe_name: str, out: Path | None, sets: list[str] | None, until: str, as_json: bool, quiet: bool
) -> None:
    from charter.recipe_files import check_files, find_recipe, load_recipe

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
            found = [m for m in report["metrics"] if m["name"] == name and m["arm"] == arm and m["group"] is None]
            if not found:
                cells.append("–")
            elif found[0]["value"] is None:
                cells.append("unscored")
            else:
                low, high = found[0]["ci"] or (float("nan"),) * 2
                cells.append(f"{found[0]['value']:.2f} [{low:.2f}, {high:.2f}]")
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
    seeds: Annotated[
        int, typer.Option(min=1, help="Run so many seeds, from the recipe's on, and show all of them.")
    ] = 1,
    tracker: Annotated[
        list[str] | None,
        typer.Option(help="Send metrics there too: tensorboard, wandb, trackio, mlflow. Repeat for more."),
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
    from charter.recipe_files import check_files, find_recipe, load_recipe

    path = find_recipe(recipe)
    loaded = load_recipe(path, set_)
    check_files(loaded)
    from charter.plan.fit import check_machine
    from charter.seeds import run_seeds, table

    folder = out or Path("runs") / path.stem
    check_machine(loaded)
    result = run_seeds(loaded, folder, seeds, until=until, quiet=quiet or as_json)
    show(result, as_json, *table(result, MAIN_METRICS), f"all figures: {folder / 'seeds.json'}")
    if stopped := [run for run in result["runs"] if run["stopped"]]:
        raise GateError(
            f"{len(stopped)} of {seeds} seeds stopped at a gate; seed {stopped[0]['seed']}: {stopped[0]['stopped']}"
        )


def stage_command(name: str, until: str, words: str, group: typer.Typer = app) -> None:
    def command(
        recipe: RecipeName, out: Out = None, set_: Sets = None, as_json: Json = False, quiet: Quiet = False
    ) -> None:
        run_until(recipe, out, set_, until, as_json, quiet)

    command.__doc__ = words
    group.command(name)(command)


stage_command("prepare", "prompts", "Read, de-duplicate, classify and split the prompts of a recipe.", prompts_app)
stage_command("revise", "revise", "Answers, critiques and revisions, after the stages they need.")
stage_command("sft", "sft", "Fine-tune on the revisions, after the stages that needs.")
stage_command("feedback", "feedback", "Sample responses and have a judge or people compare them.")
stage_command("run", "reward_model", "Train the reward model of a recipe, after the stages it needs.", reward_app)
stage_command("rl", "rl", "Train the policy against the reward model, after the stages that needs.")
stage_command("evaluate", "evaluate", "Measure base, SFT and policy on held-out prompts and write the report.")


@app.command()
def new(
    name: Annotated[Path, typer.Argument(help="The recipe's file; .yaml is added where it has no ending.")],
    model: Annotated[str | None, typer.Option(help="A model's folder, or its name on the hub.")] = None,
    goal: Annotated[str | None, typer.Option(help="constitution, people, pairs, reward or classifier.")] = None,
    file: Annotated[str | None, typer.Option(help="Your prompts, or your preference pairs.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
) -> None:
    """Write a commented recipe for your own case; asks for what no flag says."""
    from charter.new_recipe import complete, write_recipe

    path = name if name.suffix in (".yaml", ".yml") else name.with_name(f"{name.name}.yaml")
    model, goal, file = complete(model, goal, file, can_ask=sys.stdin.isatty())
    for written in write_recipe(path, model=model, goal=goal, data=file, force=force):
        typer.echo(f"written: {written}")
    typer.echo(f"next: charter plan {path}")


@app.command()
def plan(recipe: RecipeName, set_: Sets = None, as_json: Json = False) -> None:
    """Tokens, memory and time of a recipe, before anything loads."""
    from charter.plan.recipe import plan_recipe
    from charter.plan.table import plan_table
    from charter.recipe_files import find_recipe, load_recipe

    figures = plan_recipe(load_recipe(find_recipe(recipe), set_ or ()))
    show(figures, as_json, *plan_table(figures))


@app.command("show-tokens")
def show_tokens(recipe: RecipeName, set_: Sets = None, as_json: Json = False) -> None:
    """The first batch of each stage in colour: prompt, template tokens, response tokens that carry loss, the reward's place."""
    from charter.recipe_files import find_recipe, load_recipe
    from charter.show_tokens import first_batches, print_batches

    batches = first_batches(load_recipe(find_recipe(recipe), set_ or ()))
    if as_json:
        show(batches, True)
    else:
        print_batches(batches)


@app.command()
def chat(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    model: Annotated[str, typer.Option(help="base, sft or policy.")] = "policy",
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 96,
    seed: Seed = 0,
) -> None:
    """Talk to a model of a run; an empty line or Ctrl-D ends."""
    from charter.chat import chat_with

    if not 0 <= temperature < float("inf"):
        raise InputError(f"--temperature {temperature}: give a number of at least 0")
    chat_with(run, model, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")], as_json: Json = False) -> None:
    """Write report.html and metrics.csv of a run again from its report.json."""
    from charter.evaluation.report import write_report
    from charter.run import read_json

    found = read_json(run / "report.json")
    if not isinstance(found, dict):
        raise InputError("holds no report.json; charter run RECIPE --out makes one", file=run)
    show(found, as_json, f"report: {write_report(found, run)}")


@constitution_app.command("check")
def constitution_check(file: Constitution, as_json: Json = False) -> None:
    """Read a constitution and say what is wrong or doubtful in it; exit code 1 where something is wrong."""
    from charter.constitution.constitution import check, load_constitution

    constitution = load_constitution(file)
    findings = check(constitution)
    rows = [vars(finding) for finding in findings]
    lines = [f"{finding.severity}: {finding.principle or 'constitution'}: {finding.words}" for finding in findings]
    n = len(constitution.principles)
    summary = f"{file}: {n} principle{'s' * (n != 1)}, {len(findings)} finding{'s' * (len(findings) != 1)}"
    show({"file": str(file), "principles": n, "findings": rows}, as_json, *lines, summary)
    if any(finding.severity == "error" for finding in findings):
        raise GateError(f"{file}: the constitution has errors")


@constitution_app.command("import")
def constitution_import(
    file: Published,
    out: Annotated[Path, typer.Option("--out", "-o", help="YAML file to write.")],
    as_json: Json = False,
) -> None:
    """Turn a published constitution (Anthropic's JSON files, llm-swarm's, a plain list) into Charter's YAML."""
    from charter.constitution.constitution import save_constitution
    from charter.constitution.importers import import_constitution

    constitution = import_constitution(file)
    save_constitution(constitution, out)
    n = len(constitution.principles)
    show({"principles": n, "out": str(out)}, as_json, f"{n} principles: {out}")


@prompts_app.command("import")
def prompts_import(
    file: Prompts,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL, JSON or CSV file to write.")],
    tag: Annotated[list[str] | None, typer.Option(help="Tag for every prompt: red_team, benign, …")] = None,
    test_fraction: Annotated[float, typer.Option(min=0.0, max=0.99, help="Share marked as held out.")] = 0.2,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many.")] = None,
    as_json: Json = False,
) -> None:
    """Read prompts from JSONL, CSV, text, parquet or hh-rlhf transcripts; de-duplicate, split, write."""
    from charter.prompt_stream import import_prompts

    if not 0 <= test_fraction < 1:
        raise InputError(f"--test-fraction {test_fraction}: give a share of at least 0 and below 1")
    result = import_prompts(file, out, tags=tag or (), limit=limit, test_fraction=test_fraction, seed=seed)
    words = f"{result['read']} read, {result['duplicates']} duplicates, {result['written']} written: {out}"
    show({**result, "out": str(out)}, as_json, words)


@prompts_app.command("classify")
def prompts_classify(
    file: Prompts,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL, JSON or CSV file to write.")],
    constitution: Annotated[Path, typer.Option(help="Its principles tagged `topic` are the classes.")],
    model: Annotated[str, typer.Option(help="Folder of the model that classifies.")] = "package:charter.testbed/model",
    as_json: Json = False,
) -> None:
    """Sort prompts by principle with a local model; the class is read from log-probabilities, so each prompt gets one."""
    from collections import Counter

    from charter.constitution.categorise import categorise
    from charter.constitution.constitution import load_constitution
    from charter.models.sampler import LocalSampler
    from charter.models.trunk import load_trunk
    from charter.prompts import check_output, read_prompts, write_prompts
    from charter.recipe_files import locate

    check_output(out)
    rules = load_constitution(constitution)
    if not rules.topics():
        raise InputError("has no principle tagged `topic`, so there is no class to sort into", file=constitution)
    prompts = [p.model_copy(update={"principle": None}) for p in read_prompts(file)]
    sampler = LocalSampler(load_trunk(locate(model, Path.cwd())), "classifier")
    sorted_prompts = categorise(prompts, rules, sampler)
    write_prompts(out, sorted_prompts)
    counts = Counter(p.principle or "none of these" for p in sorted_prompts)
    result = {"prompts": len(prompts), "verdict_rate": 1.0, "principles": dict(counts), "out": str(out)}
    show(result, as_json, *(f"{n:6} {name}" for name, n in counts.most_common()), f"{len(prompts)} prompts: {out}")


@reward_app.command("train")
def reward_train(
    file: Pairs,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model and metrics.json.")],
    model: Annotated[str, typer.Option(help="Folder of the model to start from.")] = "package:charter.testbed/model",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pairs.")] = 1,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Peak of the schedule.")] = 3e-4,
    per_step: Annotated[
        int, typer.Option("--per-step", "--pairs-per-step", min=1, help="Pairs or ratings behind one optimizer step.")
    ] = 32,
    average: Annotated[str, typer.Option(help="What weighs the same in a step: pairs or rankings.")] = "pairs",
    test_fraction: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of the dialogues held out.")] = 0.25,
    max_tokens: Annotated[int, typer.Option(min=8, help="Longest dialogue; the oldest tokens go first.")] = 256,
    lora_rank: Annotated[int, typer.Option(min=0, help="0 trains all weights.")] = 0,
    loss: Annotated[
        str, typer.Option(help="bradley_terry on pairs; squared or absolute on ratings.")
    ] = "bradley_terry",
    ensemble: Annotated[int, typer.Option(min=1, help="Members; more than one needs --lora-rank.")] = 1,
    combine: Annotated[str, typer.Option(help="An ensemble's score: mean or worst.")] = "mean",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a reward model on pairs (or, with --loss squared or absolute, on ratings) and measure it on held-out dialogues."""
    from charter.config import RatingModelSettings, RewardModelSettings
    from charter.recipe_files import as_settings, locate
    from charter.standalone import rating_model_from_file, reward_from_file

    values: dict[str, Any] = {
        "epochs": epochs, "learning_rate": learning_rate, "test_fraction": test_fraction,
        "lora": {"rank": lora_rank} if lora_rank else None, "ensemble": ensemble, "combine": combine,
    }  # fmt: skip
    if precision not in ("float32", "bfloat16", "float16"):
        raise InputError(f"--precision {precision!r}: float32, bfloat16 or float16")
    options: dict[str, Any] = {
        "model": locate(model, Path.cwd()), "limit": max_tokens, "precision": precision, "seed": seed,
        "quiet": quiet or as_json,
    }  # fmt: skip
    if loss != "bradley_terry":
        if average != "pairs":
            raise InputError(
                f"--average {average} is about rankings, and --loss {loss} learns from ratings; leave it out"
            )
        settings = as_settings(
            values | {"loss": loss, "ratings_per_step": per_step}, RatingModelSettings, "reward train"
        )
        assert isinstance(settings, RatingModelSettings)
        metrics = rating_model_from_file(file, out, settings=settings, **options)
        words = (f"mean absolute error {metrics['mean_absolute_error']:.3f}{interval(metrics['ci'])} on {metrics['n']} held-out "
                 f"ratings; always saying the mean gets {metrics['baseline_mean']:.3f}")  # fmt: skip
    else:
        more = {"pairs_per_step": per_step, "average": average}
        pair_settings = as_settings(values | more, RewardModelSettings, "reward train")
        assert isinstance(pair_settings, RewardModelSettings)
        metrics = reward_from_file(file, out, settings=pair_settings, **options)
        words = (f"accuracy {metrics['accuracy']:.3f}{interval(metrics['ci'])} on {metrics['n']} held-out pairs; "
                 f"the rule \"shorter wins\" gets {metrics['baseline_shorter_wins']:.3f}")  # fmt: skip
    excluded = f"excluded: {metrics['excluded'] or 'none'}"
    show(metrics, as_json, words, excluded, f"metrics: {out / 'metrics.json'}")


def interval(ci: Any) -> str:
    return f" [{ci[0]:.3f}, {ci[1]:.3f}]" if ci else ""


@testbed_app.command("train")
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


@testbed_app.command("card")
def testbed_card(
    model: Annotated[str, typer.Option(help="Model folder.")] = "package:charter.testbed/model",
    n: Annotated[int, typer.Option(min=10, help="Cases per measure.")] = 400,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What the tiny model can do on held-out requests, with intervals."""
    from charter.recipe_files import locate
    from charter.testbed.card import card, card_table

    rows = card(locate(model, Path.cwd()), n=n, seed=seed)
    show({"measures": rows}, as_json, *card_table(rows))


@testbed_app.command("data")
def testbed_data(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write the testbed's prompts, and pairs and topics with known answers."""
    from charter.testbed.data import write_data

    result = write_data(out, seed)
    show(result, as_json, *(f"{count:6} {name}" for name, count in result.items() if name != "out"), f"written: {out}")


@testbed_app.command("dialogues")
def testbed_dialogues(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write rude and friendly dialogues with summaries, in the form of DialogSum."""
    from charter.testbed.dialogues import write_dialogues

    result = write_dialogues(out, seed)
    show(result, as_json, *(f"{count:6} {name}" for name, count in result.items() if name != "out"), f"written: {out}")


@testbed_app.command("lab")
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


@testbed_app.command("stand-in")
def testbed_stand_in(
    family: Annotated[
        str, typer.Argument(help="llama, mistral, gpt2, t5, roberta-classifier, …; a wrong one lists all.")
    ],
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


@app.command()
def serve(
    where: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub name of a model, or a run folder.")],
    model: Annotated[str | None, typer.Option(help="Of a run: base, sft or policy; policy unless given.")] = None,
    name: Annotated[str | None, typer.Option(help="What clients call it; the folder's name unless given.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    public: Annotated[bool, typer.Option("--public", help="Answer other machines too, not this one alone.")] = False,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the key to ask for.")] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Responses written at once.")] = 64,
) -> None:
    """Serve a model under OpenAI's protocol until interrupted: chat, completions, streams, log-probabilities."""
    from charter.serving.serve import serve as serve_model

    serve_model(where, model, name=name, port=port, public=public, api_key_env=api_key_env, max_rows=max_rows)


model_app = typer.Typer(help="Models as other programs load them.", no_args_is_help=True)
app.add_typer(model_app, name="model")


@model_app.command("merge")
def model_merge(
    where: Annotated[str, typer.Argument(metavar="SOURCE", help="A run, RUN/sft, a model or a LoRA adapter folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; it must not exist yet.")],
    base: Annotated[str | None, typer.Option(help="Base model of an adapter, where it names none or another.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; as stored unless given.")] = None,
    shard_size: Annotated[str, typer.Option(help="Largest file of weights: 5GB, 500MB.")] = "5GB",
    as_json: Json = False,
) -> None:
    """Write a plain Hugging Face folder: a run's policy, or a LoRA adapter merged into its base."""
    from charter.merge import merge

    done = merge(where, out, base=base, dtype=dtype, shard_size=shard_size)
    words = f"{done['parameters'] / 1e6:.1f} M parameters in {done['dtype']}, {len(done['files'])} file(s) of weights"
    show(done, as_json, *([f"{done['adapter']} on {done['base']}"] if done["adapter"] else []), f"{words}: {out}")


@app.command()
def push(
    where: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, or a stage of it: RUN/sft, RUN/reward_model.")
    ],
    name: Annotated[str, typer.Argument(help="Repository on the hub: NAME or OWNER/NAME.")],
    public: Annotated[bool, typer.Option("--public", help="For everybody to see; private unless given.")] = False,
    with_data: Annotated[
        bool, typer.Option("--with-data", help="Prompts, responses, judgments and the report too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent; needs no network.")] = False,
    as_json: Json = False,
) -> None:
    """Send the model of a run to the Hugging Face hub, with a model card; nothing of its prompts and responses."""
    from charter.hub import gather
    from charter.hub import push as push_upload

    upload = gather(where, with_data=with_data)
    sizes = upload.sizes()
    if dry_run:
        total = sum(size for _, size in sizes)
        result = {"repository": name, "private": not public, "files": [{"path": p, "bytes": n} for p, n in sizes]}
        lines = [f"{size:>14,} {path}" for path, size in sizes]
        show(result, as_json, *lines, f"{total:>14,} bytes in {len(sizes)} files would go to {name}, "
             + ("public" if public else "private"))  # fmt: skip
        return
    result = push_upload(upload, name, public=public)
    show(result, as_json, f"{len(sizes)} files, {'private' if result['private'] else 'public'}: {result['url']}")


# What the user can mend about a disk or a path; any other system error is a defect and keeps its traceback.
DISK_ERRORS = frozenset({
    errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENOENT, errno.EFBIG, errno.ENOTEMPTY, errno.ELOOP, errno.EIO,
})  # fmt: skip


def main() -> None:
    """Run the command line: exit code 0 done, 1 a gate or check says no, 2 bad input."""
    sys.exit(run_command(sys.argv[1:]))


# What several processes can do together; anything else under a launcher would be done by each of them.
TOGETHER = frozenset({"run", "revise", "sft", "feedback", "reward", "rl", "evaluate", "prompts"})


def run_command(arguments: list[str]) -> int:
    """The exit code of a command line; errors are one line on standard error."""
    from charter.team import LostProcess, disband, launched

    try:
        if launched() and arguments[:1] and arguments[0] not in TOGETHER:
            raise InputError(f"charter {arguments[0]} is the work of one process; start it without a launcher")
        code = app(arguments, standalone_mode=False)
        disband()
        return code if isinstance(code, int) else 0
    except GateError as error:
        return say_error(error, 1)
    except InputError as error:
        return say_error(error, 2)
    except LostProcess as error:
        return say_error(error, 1)
    except (KeyboardInterrupt, typer.Abort):
        return say_error("interrupted; the same command goes on from here", 130)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return say_error(f"{error.filename or 'disk'}: {error.strerror}; choose another folder or make room", 2)
    except Exception as error:
        # Usage errors come from click, or from the copy of it inside newer typers: known by what they can do.
        if hasattr(error, "format_message"):
            return say_error(f"{error.format_message()} (charter --help)", 2)
        # safetensors writes weights without Python, so its disk errors are no OSError.
        if (found := re.search(r"\(os error (\d+)\)", str(error))) and int(found[1]) in DISK_ERRORS:
            return say_error(f"disk: {os.strerror(int(found[1]))}; choose another folder or make room", 2)
        raise


def say_error(error: object, code: int) -> int:
    from charter.team import launched, team

    text = " ".join(str(error).split())
    if launched() and not team().says_first(text):
        return code
    # What a file says reaches the terminal as text: no control characters, no half of a surrogate pair.
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    print("charter: " + text, file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
