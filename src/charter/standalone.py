"""Single stages on a user's own files, without a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from charter.config import RatingModelSettings, RewardModelSettings
from charter.errors import InputError
from charter.evaluation.statistics import mean_interval, paired_difference, spearman
from charter.feedback.pairs import read_pairs, split_pairs
from charter.feedback.ratings import read_ratings, split_ratings
from charter.models.generate import context_length
from charter.models.load import pick_device
from charter.models.trunk import load_trunk
from charter.records import Rating, content_id, write_json
from charter.run import Run, file_hash
from charter.stages import reward_accuracy
from charter.training.reward_model import (
    rating_scale,
    rating_tokens,
    score_rows,
    train_rating_model,
    train_reward_model,
)


def reward_from_file(
    file: Path,
    out: Path,
    *,
    model: str,
    settings: RewardModelSettings,
    limit: int,
    precision: str,
    seed: int,
    quiet: bool,
) -> dict[str, Any]:
    """Train a reward model on the pairs of a file and write ``out``/metrics.json: accuracy on held-out dialogues with a
    clustered 95% interval, beside the rule "shorter wins". Dialogues that share their opening are never on both sides.

    InputError where the file holds too few dialogues to train and to measure.
    """
    loaded = read_pairs(file)
    train, test = split_pairs(loaded.pairs, test_fraction=settings.test_fraction, seed=seed)
    check_sides(file, "pairs", len(loaded.pairs), len(train), len(test))
    model_hash = file_hash(Path(model)) if Path(model).exists() else content_id(model)
    inputs = {"pairs": file_hash(file), "model": model_hash, "precision": precision, "limit": str(limit)}
    with Run(out, seed=seed, quiet=quiet) as run:
        with run.stage("train", settings, inputs, ["models", "training", "feedback/pairs"]) as stage:
            if not stage.done:
                device = pick_device("auto")
                trunk = load_trunk(model, device=device, lora=settings.lora, precision=precision, seed=seed)
                room = min(limit, context_length(trunk.model) or limit)
                scorers = train_reward_model(trunk, train, settings, stage, limit=room)
                trunk.save_scorers(scorers, stage.path("model"))
                result = reward_accuracy(trunk, scorers, test, settings.tokens_per_micro_batch, room)
                stage.finish({**result, "train_pairs": len(train), "rows": loaded.n_rows, "excluded": loaded.excluded,
                              "trainable_share": trunk.trainable_share("reward")})  # fmt: skip
        metrics = {**stage.result, "model": str(stage.path("model")), "wall_s": round(stage.wall_s, 2)}
        write_json(out / "metrics.json", metrics)
    return metrics


def rating_model_from_file(
    file: Path,
    out: Path,
    *,
    model: str,
    settings: RatingModelSettings,
    limit: int,
    precision: str,
    seed: int,
    quiet: bool,
) -> dict[str, Any]:
    """Train a reward model on the ratings of a file and write ``out``/metrics.json: the mean absolute error on held-out
    dialogues, in units of the ratings, beside that of always saying the training mean, and the rank correlation.

    InputError where the file holds too few dialogues to train and to measure, or the ratings are all the same.
    """
    loaded = read_ratings(file)
    train, test = split_ratings(loaded.ratings, test_fraction=settings.test_fraction, seed=seed)
    check_sides(file, "ratings", len(loaded.ratings), len(train), len(test))
    if len({rating.score for rating in train}) < 2:
        raise InputError(
            "every rating to train on is the same number; there is nothing to learn", file=file, field="score"
        )
    model_hash = file_hash(Path(model)) if Path(model).exists() else content_id(model)
    inputs = {"ratings": file_hash(file), "model": model_hash, "precision": precision, "limit": str(limit)}
    with Run(out, seed=seed, quiet=quiet) as run:
        with run.stage("train", settings, inputs, ["models", "training", "feedback/ratings"]) as stage:
            if not stage.done:
                trunk = load_trunk(
                    model, device=pick_device("auto"), lora=settings.lora, precision=precision, seed=seed
                )
                room = min(limit, context_length(trunk.model) or limit)
                scorers = train_rating_model(trunk, train, settings, stage, limit=room)
                trunk.save_scorers(scorers, stage.path("model"))
                rows = [rating_tokens(trunk, rating, room) for rating in test]
                raw = torch.stack(
                    [score_rows(trunk, rows, settings.tokens_per_micro_batch, role) for role in scorers.roles]
                )
                scale = rating_scale(train)
                said = (scorers.together(raw) * scale.std + scale.mean).tolist()
                stage.finish({**rating_errors(said, test, scale.mean), "train_ratings": len(train), "rows": loaded.n_rows,
                              "excluded": loaded.excluded, "loss": settings.loss,
                              "trainable_share": trunk.trainable_share("reward")})  # fmt: skip
        metrics = {**stage.result, "model": str(stage.path("model")), "wall_s": round(stage.wall_s, 2)}
        write_json(out / "metrics.json", metrics)
    return metrics


def rating_errors(said: Sequence[float], ratings: Sequence[Rating], mean: float) -> dict[str, Any]:
    """Mean absolute error with a clustered interval, that of saying ``mean``, what is gained over it, and Spearman's ρ."""
    clusters = [rating.group_id for rating in ratings]
    wrong = [abs(s - rating.score) for s, rating in zip(said, ratings, strict=True)]
    baseline = [abs(mean - rating.score) for rating in ratings]
    error, gain = mean_interval(wrong, clusters), paired_difference(baseline, wrong, clusters)
    return {
        "mean_absolute_error": error.value, "ci": error.ci, "n": len(ratings), "n_clusters": len(set(clusters)),
        "baseline_mean": sum(baseline) / len(baseline), "change_from_baseline": gain.difference,
        "change_from_baseline_ci": gain.ci, "spearman": spearman(said, [rating.score for rating in ratings]),
    }  # fmt: skip


def check_sides(file: Path, what: str, n: int, train: int, test: int) -> None:
    """InputError where a split leaves a side with next to nothing."""
    if train < 2 or test < 2:
        raise InputError(
            f"{n} usable {what} give {train} to train and {test} to measure; at least 2 of each are needed, from different "
            "dialogues", file=file,
        )  # fmt: skip
