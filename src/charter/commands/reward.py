"""The commands that train reward models and score with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from charter.commands.options import Json, Pairs, Quiet, Seed, interval_words, show
from charter.commands.run import stage_command
from charter.errors import InputError

app = typer.Typer(help="Train reward models and score with them.", no_args_is_help=True)
PRECISIONS = ("float32", "bfloat16", "float16")


@app.command("train")
def reward_train(  # one parameter for each flag, as typer reads them
    file: Pairs,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model and metrics.json.")],
    model: Annotated[
        str, typer.Option(help="Folder of the model to start from, or of a reward model to continue.")
    ] = "package:charter.testbed/model",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pairs.")] = 1,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Peak of the schedule.")] = 3e-4,
    per_step: Annotated[
        int, typer.Option("--per-step", "--pairs-per-step", min=1, help="Pairs or ratings behind one optimizer step.")
    ] = 32,
    average: Annotated[str, typer.Option(help="Equal weight in a step for all pairs or rankings.")] = "pairs",
    test_fraction: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of the dialogues held out.")] = 0.25,
    max_tokens: Annotated[int, typer.Option(min=8, help="Tokens of the longest dialogue; the oldest tokens are cut.")] = 256,
    lora_rank: Annotated[int, typer.Option(min=0, help="0 trains all weights.")] = 0,
    loss: Annotated[str, typer.Option(help="On pairs: bradley_terry. On ratings: squared or absolute.")] = "bradley_terry",
    ensemble: Annotated[int, typer.Option(min=1, help="Number of members; several need --lora-rank.")] = 1,
    combine: Annotated[str, typer.Option(help="The score of an ensemble: mean or worst of its members.")] = "mean",
    constitution: Annotated[
        Path | None, typer.Option(help="Learn to read the principle of each pair: one model for any constitution.")
    ] = None,
    hold_out: Annotated[str | None, typer.Option(help="With --constitution: a principle to measure on alone.")] = None,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a reward model on pairs (or, with --loss squared or absolute, on ratings) and measure it on held-out dialogues."""
    from charter.recipe.files import as_settings
    from charter.recipe.source import locate
    from charter.stages.reward_model.settings import RatingModelSettings, RewardModelSettings
    from charter.tasks.own_files import Start, rating_model_from_file, reward_from_file

    values: dict[str, Any] = {
        "epochs": epochs, "learning_rate": learning_rate, "test_fraction": test_fraction,
        "lora": {"rank": lora_rank} if lora_rank else None, "ensemble": ensemble, "combine": combine,
    }  # fmt: skip
    check_precision(precision)
    start = Start(locate(model, Path.cwd()), max_tokens, precision, seed, quiet or as_json)
    if hold_out is not None and constitution is None:
        raise InputError("--hold-out names a principle, and a reward model without --constitution reads none; leave it out")
    if constitution is not None and (loss != "bradley_terry" or ensemble > 1 or average != "pairs"):
        raise InputError("--constitution trains one model on pairs; leave out --loss, --ensemble and --average")
    if loss != "bradley_terry":
        if average != "pairs":
            raise InputError(f"--average {average} weighs rankings, and --loss {loss} learns from ratings; leave --average out")
        settings = as_settings(values | {"loss": loss, "ratings_per_step": per_step}, RatingModelSettings, "reward train")
        assert isinstance(settings, RatingModelSettings)
        metrics = rating_model_from_file(file, out, settings, start)
        error = f"{metrics['mean_absolute_error']:.3f}{interval_words(metrics['ci'])}"
        words = (f"mean absolute error {error} on {metrics['n']} held-out ratings; always predicting the mean gets "
                 f"{metrics['baseline_mean']:.3f}")  # fmt: skip
    else:
        more = {"pairs_per_step": per_step, "average": average}
        pair_settings = as_settings(values | more, RewardModelSettings, "reward train")
        assert isinstance(pair_settings, RewardModelSettings)
        if constitution is None:
            metrics = reward_from_file(file, out, pair_settings, start)
        else:
            from charter.tasks.principle_reader import reader_from_file

            metrics = reader_from_file(file, constitution, hold_out, out, pair_settings, start)
        accuracy = f"{metrics['accuracy']:.3f}{interval_words(metrics['ci'])}"
        if constitution is None:
            other = f'the rule "shorter wins" gets {metrics["baseline_shorter_wins"]:.3f}'
        else:
            other = f"before training {metrics['before']['accuracy']:.3f}"
        words = f"accuracy {accuracy} on {metrics['n']} held-out pairs; {other}"
    lines = [words, f"excluded: {metrics['excluded'] or 'none'}", f"metrics: {out / 'metrics.json'}"]
    if unseen := metrics.get("held_out"):
        figures = f"{unseen['accuracy']:.3f}{interval_words(unseen['ci'])} of {unseen['n']} pairs"
        lines.insert(1, f"principle held out, {unseen['principle']}: {figures}; before {unseen['before']['accuracy']:.3f}")
    if cut := metrics["cut"]:
        lines.insert(2, f"cut to {max_tokens} tokens: {cut['rows']} rows, {cut['ends']} of them without the end of the answer")
    show(metrics, as_json, *lines)


@app.command("score")
def reward_score(
    file: Annotated[Path, typer.Argument(help="Pairs, or prompts with responses: JSONL, JSON, CSV or Parquet.")],
    model: Annotated[Path, typer.Option(help="A reward model: a run folder, or a folder that reward train made.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .jsonl or .csv.")],
    max_tokens: Annotated[int, typer.Option(min=8, help="Tokens of the longest dialogue; the oldest tokens are cut.")] = 256,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    as_json: Json = False,
) -> None:
    """Score pairs or responses with a reward model and write the rows again with their scores."""
    from charter.tasks.scored_files import score_file

    check_precision(precision)
    result = score_file(file, model, out, limit=max_tokens, precision=precision)
    lines = [f"left out: {count} x {reason}" for reason, count in result["left_out"].items()]
    if cut := result["cut"]:
        lines.append(f"cut to {max_tokens} tokens: {cut['rows']} rows, {cut['ends']} of them without the end of the answer")
    if (accuracy := result.get("accuracy")) is not None:
        lines.append(f"the better answer scores higher in {accuracy:.3f}{interval_words(result['ci'])} of {result['n']} pairs")
    if ties := result.get("ties"):
        lines.append(f"{ties} pairs are ties by their label, so neither answer is the better one")
    if (rho := result.get("spearman")) is not None:
        lines.append(f"Spearman's ρ with the ratings of the file: {rho:.3f} on {result['n']} responses")
    show(result, as_json, *lines, f"{result['scored']} of {result['rows']} {result['kind']} scored: {out}")


def check_precision(precision: str) -> None:
    """InputError for a precision that no model computes in."""
    if precision not in PRECISIONS:
        raise InputError(f"--precision: unknown precision {precision!r}; use {', '.join(PRECISIONS)}")


stage_command("run", "reward_model", "Train the reward model of a recipe, after the stages it needs.", app)
