"""Single stages on a user's own files, without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from charter.config import RewardModelSettings
from charter.errors import InputError
from charter.feedback.pairs import read_pairs, split_pairs
from charter.models.generate import context_length
from charter.models.load import pick_device
from charter.models.trunk import load_trunk
from charter.records import content_id, write_json
from charter.run import Run, file_hash
from charter.stages import reward_accuracy
from charter.training.reward_model import pair_tokens, score_rows, train_reward_model


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
    if len(train) < 2 or len(test) < 2:
        raise InputError(
            f"{len(loaded.pairs)} usable pairs give {len(train)} to train and {len(test)} to measure; at least 2 of each "
            "are needed, from different dialogues", file=file,
        )  # fmt: skip
    model_hash = file_hash(Path(model)) if Path(model).exists() else content_id(model)
    inputs = {"pairs": file_hash(file), "model": model_hash, "precision": precision, "limit": str(limit)}
    with Run(out, seed=seed, quiet=quiet) as run:
        with run.stage("train", settings, inputs, ["models", "training", "feedback/pairs"]) as stage:
            if not stage.done:
                device = pick_device("auto")
                trunk = load_trunk(model, device=device, lora=settings.lora, precision=precision, seed=seed)
                room = min(limit, context_length(trunk.model) or limit)
                train_reward_model(trunk, train, settings, stage, limit=room)
                rows = [row for pair in train for row in pair_tokens(trunk, pair, room)]
                scores = score_rows(trunk, rows, settings.tokens_per_micro_batch)
                mean, std = float(scores.mean()), max(float(torch.std(scores)), 1e-6)
                trunk.save_scorer("reward", stage.path("model"), mean=mean, std=std)
                result = reward_accuracy(trunk, test, settings.tokens_per_micro_batch, room)
                stage.finish({**result, "train_pairs": len(train), "rows": loaded.n_rows, "excluded": loaded.excluded,
                              "trainable_share": trunk.trainable_share("reward")})  # fmt: skip
        metrics = {**stage.result, "model": str(stage.path("model")), "wall_s": round(stage.wall_s, 2)}
        write_json(out / "metrics.json", metrics)
    return metrics
