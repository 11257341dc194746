"""The commands that train reward models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from charter.commands.options import Json, Pairs, Quiet, Seed, show
from charter.commands.run import stage_command
from charter.errors import InputError

app = typer.Typer(help="Train reward models.", no_args_is_help=True)


@app.command("train")
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
    loss: Annotated[str, typer.Option(help="bradley_terry on pairs; squared or absolute on ratings.")] = "bradley_terry",
    ensemble: Annotated[int, typer.Option(min=1, help="Members; more than one needs --lora-rank.")] = 1,
    combine: Annotated[str, typer.Option(help="An ensemble's score: mean or worst.")] = "mean",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a reward model on pairs (or, with --loss squared or absolute, on ratings) and measure it on held-out dialogues."""
    from charter.commands.own_files import rating_model_from_file, reward_from_file
    from charter.recipe.files import as_settings
    from charter.recipe.source import locate
    from charter.stages.reward_model.settings import RatingModelSettings, RewardModelSettings

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
            raise InputError(f"--average {average} is about rankings, and --loss {loss} learns from ratings; leave it out")
        settings = as_settings(values | {"loss": loss, "ratings_per_step": per_step}, RatingModelSettings, "reward train")
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
    lines = [words, f"excluded: {metrics['excluded'] or 'none'}", f"metrics: {out / 'metrics.json'}"]
    if cut := metrics["cut"]:
        lines.insert(2, f"cut to {max_tokens} tokens: {cut['rows']} rows, {cut['ends']} of them without the end of the answer")
    show(metrics, as_json, *lines)


def interval(ci: Any) -> str:
    return f" [{ci[0]:.3f}, {ci[1]:.3f}]" if ci else ""


stage_command("run", "reward_model", "Train the reward model of a recipe, after the stages it needs.", app)
