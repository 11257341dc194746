"""The reward model, and how often it is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charter.errors import GateError
from charter.models.cut import Cut
from charter.models.heads import Scorers
from charter.models.marks import FLIPPED, mark_flipped, model_folder
from charter.models.trunk import Trunk
from charter.reading.pairs import clusters_of, read_pairs, split_pairs
from charter.reading.places import naming_the_row
from charter.reading.prompts import KINDS
from charter.records import Pair
from charter.run.files import read_jsonl
from charter.run.hashes import derive_seed
from charter.run.run import Run, Stage
from charter.run.team import team
from charter.stages.models import Model, Models, within_memory
from charter.stages.reward_model.settings import RewardModelSettings
from charter.statistics import clustered_share, expected_calibration_error, paired_difference
from charter.training.methods.reward_model import pairs_that_differ, score_pairs, train_reward_model

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


def train_reward(
    run: Run, recipe: Recipe, models: Models, start: Model, feedback: Stage, name: str = "reward_model",
    half: int | None = None,
) -> Stage:  # fmt: skip
    """A reward model on the fine-tuned trunk, from the pairs; some prompts are held out to measure it. ``half``: of the pairs, as
    ``half_of`` cuts them."""
    settings = recipe.reward_model
    inputs = {
        "feedback": feedback.output_hash, "precision": recipe.arithmetic,
        "sft": start.hash if settings.model is None else settings.model.contents(),
    }  # fmt: skip
    inputs |= {} if half is None else {"half": f"{half} {recipe.seed}"}
    labelled = recipe.feedback.labelled_pairs if recipe.feedback is not None else None
    with run.stage(name, settings, inputs, [__name__]) as stage:
        if stage.done:
            return stage
        files = recipe.feedback.pairs if recipe.feedback is not None else []
        pairs = half_of(list(read_jsonl(feedback.path("pairs.jsonl"), Pair)), half, recipe.seed)

        def learn(settings: RewardModelSettings) -> tuple[Trunk, Scorers, list[Pair], int, Cut]:
            trunk = reward_trunk(recipe, models, start)
            limit = settings.max_tokens or trunk.room
            with naming_the_row([Path(file) for file in files]):
                differ, _, cut = pairs_that_differ(trunk, pairs, limit)
            train, held_out = split_pairs(differ, test_fraction=settings.test_fraction, seed=recipe.seed)
            if not train or not without_ties(held_out):
                raise GateError(f"{len(differ)} usable pairs are too few to train and to measure on: {cut.words(limit)}")
            return trunk, train_reward_model(trunk, train, settings, stage, limit=limit), held_out, len(train), cut

        trunk, scorers, held_out, n_train, cut = within_memory(stage, settings, learn, models.release)
        test = without_ties(held_out)
        ties = {"excluded": {"held-out pair that is a tie": len(held_out) - len(test)}} if len(test) < len(held_out) else {}
        limit = settings.max_tokens or trunk.room
        folder = stage.path(model_folder(name))
        trunk.save_scorers(scorers, folder)
        if name.endswith(FLIPPED):
            team().on_main(lambda: mark_flipped(folder))
        result = reward_accuracy(trunk, scorers, test, settings.tokens_per_micro_batch, limit)
        if recipe.feedback is not None and labelled:
            with naming_the_row([Path(labelled)]):
                known, _, _ = pairs_that_differ(trunk, read_pairs(Path(labelled)).pairs[: recipe.feedback.gate_pairs], limit)
            if known := without_ties(known):
                result["labelled"] = reward_accuracy(trunk, scorers, known, settings.tokens_per_micro_batch, limit)
        stage.finish({**result, "train_pairs": n_train, "cut": cut.figures, "trainable_share": trunk.trainable_share("reward"),
                      **ties})  # fmt: skip
    return stage


def without_ties(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs of which one answer is the better one: the others can measure nothing."""
    return [pair for pair in pairs if pair.weight != 0.5]


def half_of(pairs: list[Pair], half: int | None, seed: int) -> list[Pair]:
    """Half 0 or 1 of the pairs, those of a prompt or a group together; all where ``half`` is None."""
    if half is None:
        return pairs
    return [pair for pair, cluster in zip(pairs, clusters_of(pairs), strict=True)
            if derive_seed(seed, "half of the feedback", cluster) % 2 == half]  # fmt: skip


def reward_trunk(recipe: Recipe, models: Models, start: Model) -> Trunk:
    """The trunk that the reward model is trained on: the fine-tuned model, or one of its own."""
    settings = recipe.reward_model
    return models.trunk(settings.model or start.folder, settings.lora, writes=False, trains=True)


def reward_accuracy(
    trunk: Trunk, scorers: Scorers, pairs: Sequence[Pair], tokens_per_micro_batch: int, limit: int | None = None
) -> dict[str, Any]:
    """How often the chosen response scores higher, clustered by prompt, beside the rules "shorter wins" and "longer wins";
    calibration of σ(score difference); accuracy by kind of prompt. A tied score is half right, a tied length half a win."""
    chosen, rejected = score_pairs(trunk, scorers, pairs, tokens_per_micro_batch, limit)
    differences = (chosen - rejected).tolist()
    clusters = [pair.group_id for pair in pairs]
    right = [0.5 if d == 0 else float(d > 0) for d in differences]
    accuracy = share_with_interval(right, clusters)
    shorter = [(0.5 if a == b else float(a < b)) for a, b in ((len(p.chosen), len(p.rejected)) for p in pairs)]
    baseline = share_with_interval(shorter, clusters)
    gain = paired_difference(shorter, right, clusters)
    calibration = expected_calibration_error(*both_sides(differences))
    kinds = [next((kind for kind in KINDS if kind in pair.prompt.tags), pair.principle or "all") for pair in pairs]
    groups = {
        kind: share_with_interval(
            [r for r, value in zip(right, kinds, strict=True) if value == kind],
            [c for c, value in zip(clusters, kinds, strict=True) if value == kind],
        )
        for kind in sorted(set(kinds))
    }
    margins = [f"{pair.margin:.2f}" for pair in pairs]
    by_margin = {
        margin: share_with_interval(
            [r for r, value in zip(right, margins, strict=True) if value == margin],
            [c for c, value in zip(clusters, margins, strict=True) if value == margin],
        )
        for margin in sorted(set(margins))
    }
    return {
        **accuracy, "n_clusters": len(set(clusters)), "baseline_shorter_wins": baseline["accuracy"],
        "baseline_shorter_wins_ci": baseline["ci"],
        "baseline_longer_wins": None if baseline["accuracy"] is None else 1 - baseline["accuracy"],
        "gain_over_shorter": gain.difference, "gain_over_shorter_ci": gain.ci,
        "ece": calibration.ece, "reliability": [dict(row) for row in calibration.rows], "groups": groups,
        "by_margin": by_margin if len(by_margin) > 1 else {},
    }  # fmt: skip


def share_with_interval(values: Sequence[float], clusters: Sequence[str]) -> dict[str, Any]:
    estimate = clustered_share(values, clusters)
    return {"accuracy": estimate.value, "ci": estimate.ci, "n": estimate.n}


def both_sides(differences: Sequence[float]) -> tuple[list[float], list[float]]:
    """Predicted probability that a response of the pair wins and whether it does, from alternating sides: the side that is
    asked about must not give the answer away."""

    predicted, outcome = [], []
    for number, difference in enumerate(differences):
        sign = 1 if number % 2 == 0 else -1
        predicted.append(1 / (1 + math.exp(-max(min(sign * difference, 500), -500))))
        outcome.append(float(sign > 0))
    return predicted, outcome
