"""Single stages on the files of a user, without a recipe."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from charter.errors import InputError
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.cut import Cut
from charter.models.heads import Scorers
from charter.models.load import pick_device
from charter.models.packing import Tokens, clip
from charter.models.reward_trunk import load_reward_trunk, reward_folder
from charter.models.trunk import REWARD_CARD, REWARD_WEIGHTS, Trunk
from charter.raters.comparisons import Votes, as_comparisons
from charter.raters.groups import by_group
from charter.raters.personal import MIN_VOTES, HeldOut, final_heads, held_out
from charter.raters.vote_files import find, read_votes, text_files
from charter.reading.pairs import SAME_TOKENS, read_pairs, split_pairs
from charter.reading.places import naming_the_row
from charter.reading.ratings import read_ratings, split_ratings
from charter.recipe.settings import LoRASettings
from charter.recipe.source import locate
from charter.records import Prompt, Rating, Response
from charter.run.files import HEAD_CARD, folder_name, read_json, read_jsonl, write_json
from charter.run.hashes import file_hash, model_hash
from charter.run.run import Run, Stage
from charter.stages.reward_model.run import reward_accuracy, without_ties
from charter.stages.reward_model.settings import RatingModelSettings, RewardModelSettings, ScorerSettings
from charter.statistics import mean_interval, paired_difference, spearman
from charter.training.batches import by_tokens
from charter.training.methods.reward_model import (
    pairs_that_differ,
    rating_scale,
    rating_tokens,
    score_rows,
    train_rating_model,
    train_reward_model,
)
from charter.votes.evidence import new_folder

TOKENS_PER_PASS = 4096  # in one forward pass, where nothing is trained
Measured = Callable[[], dict[str, Any]]
Learned = tuple[Callable[[Path], None], Measured]
Learn = Callable[[Trunk, Stage, int], Learned]
"""Trains on a trunk, within a stage, on rows of at most so many tokens; what it returns saves and measures the result."""


@dataclass(frozen=True)
class Start:
    """The beginning of a training outside a recipe. ``limit``: tokens of a dialogue; the oldest go first."""

    model: str
    limit: int
    precision: str
    seed: int
    quiet: bool


def reward_from_file(file: Path, out: Path, settings: RewardModelSettings, start: Start) -> dict[str, Any]:
    """Train a reward model on the pairs of a file and write ``out``/metrics.json: accuracy on held-out dialogues with a
    clustered 95% interval, beside the rule "shorter wins". Dialogues that share their opening are never on both sides.

    InputError if the file has too few dialogues to train and to measure.
    """
    loaded = read_pairs(file)
    train, test = split_pairs(loaded.pairs, test_fraction=settings.test_fraction, seed=start.seed)
    check_sides(file, "pairs", len(loaded.pairs), len(train), len(test))

    def learn(trunk: Trunk, stage: Stage, room: int) -> Learned:
        with naming_the_row([file]):
            pairs, _, cut = pairs_that_differ(trunk, loaded.pairs, room)
        excluded = loaded.excluded | ({f"{SAME_TOKENS} {room}": cut.equal_pairs} if cut.equal_pairs else {})
        train, held_out = split_pairs(pairs, test_fraction=settings.test_fraction, seed=start.seed)
        test = without_ties(held_out)
        check_sides(file, f"pairs (left out: {excluded or 'none'})", len(pairs), len(train), len(test))
        scorers = train_reward_model(trunk, train, settings, stage, limit=room)
        counts = {"train_pairs": len(train), "rows": loaded.n_rows, "excluded": excluded, "cut": cut.figures,
                  "ties": len(held_out) - len(test)}  # fmt: skip
        return saver(
            trunk, scorers
        ), lambda: reward_accuracy(trunk, scorers, test, settings.tokens_per_micro_batch, room) | counts

    return train_and_measure(file, out, "pairs", settings, start, learn)


def rating_model_from_file(file: Path, out: Path, settings: RatingModelSettings, start: Start) -> dict[str, Any]:
    """Train a reward model on the ratings of a file and write ``out``/metrics.json: the mean absolute error on held-out
    dialogues, in units of the ratings, the error of always predicting the training mean, and the rank correlation.

    InputError if the file has too few dialogues to train and to measure, or all ratings are equal.
    """
    loaded = read_ratings(file)
    train, test = split_ratings(loaded.ratings, test_fraction=settings.test_fraction, seed=start.seed)
    check_sides(file, "ratings", len(loaded.ratings), len(train), len(test))
    if len({rating.score for rating in train}) < 2:
        raise InputError(
            "all ratings to train on are equal: nothing to learn; give ratings that differ", file=file, field="score"
        )

    def learn(trunk: Trunk, stage: Stage, room: int) -> Learned:
        with naming_the_row([file]):
            cut = Cut.of(rating_tokens(trunk, rating, room) for rating in loaded.ratings)
        scorers = train_rating_model(trunk, train, settings, stage, limit=room)

        def measured() -> dict[str, Any]:
            rows = [rating_tokens(trunk, rating, room) for rating in test]
            raw = torch.stack([score_rows(trunk, rows, settings.tokens_per_micro_batch, role) for role in scorers.roles])
            scale = rating_scale(train)
            predicted = (scorers.together(raw) * scale.std + scale.mean).tolist()
            return {**rating_errors(predicted, test, scale.mean), "train_ratings": len(train), "rows": loaded.n_rows,
                    "excluded": loaded.excluded, "cut": cut.figures, "loss": settings.loss}  # fmt: skip

        return saver(trunk, scorers), measured

    return train_and_measure(file, out, "ratings", settings, start, learn)


def saver(trunk: Trunk, scorers: Scorers) -> Callable[[Path], None]:
    """Writes a reward model into a folder."""
    return lambda folder: trunk.save_scorers(scorers, folder)


def train_and_measure(
    file: Path, out: Path, rows: str, settings: ScorerSettings, start: Start, learn: Learn, *,
    load: Callable[..., Trunk] = load_reward_trunk, inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The stage that all trainings share: skipped if it is done, else trained, saved and measured. ``inputs``: what it depends on
    beside the file and the start."""
    inputs = {rows: file_hash(file), "model": model_hash(start.model), "precision": start.precision, "limit": str(start.limit),
              **(inputs or {})}  # fmt: skip
    with Run(out, seed=start.seed, quiet=start.quiet) as run:
        with run.stage("train", settings, inputs, [__name__]) as stage:
            if not stage.done:
                trunk = load(
                    start.model, device=pick_device("auto"), lora=settings.lora, precision=start.precision, seed=start.seed,
                    say=run.say,
                )  # fmt: skip
                room = min(start.limit, trunk.room or start.limit)
                save, measured = learn(trunk, stage, room)
                save(stage.path("model"))
                stage.finish({**measured(), "trainable_share": trunk.trainable_share("reward")})
        metrics = {**stage.result, "model": str(stage.path("model")), "wall_s": round(stage.wall_s, 2)}
        write_json(out / "metrics.json", metrics)
    return metrics


def rating_errors(predicted: Sequence[float], ratings: Sequence[Rating], mean: float) -> dict[str, Any]:
    """Mean absolute error with a clustered interval, the error of predicting ``mean``, the gain over it, and Spearman's ρ."""
    clusters = [rating.group_id for rating in ratings]
    wrong = [abs(p - rating.score) for p, rating in zip(predicted, ratings, strict=True)]
    baseline = [abs(mean - rating.score) for rating in ratings]
    error, gain = mean_interval(wrong, clusters), paired_difference(baseline, wrong, clusters)
    return {
        "mean_absolute_error": error.value, "ci": error.ci, "n": len(ratings), "n_clusters": len(set(clusters)),
        "baseline_mean": sum(baseline) / len(baseline), "change_from_baseline": gain.difference,
        "change_from_baseline_ci": gain.ci, "spearman": spearman(predicted, [rating.score for rating in ratings]),
    }  # fmt: skip


def response_features(
    reward: Path, model: str | None, prompts: Mapping[str, Prompt], responses: Sequence[Response], *, limit: int = 512
) -> NDArray[np.float64]:
    """The last hidden state (N, H) of a trained reward model at the end of each response: the input of its head.

    ``reward``: a run folder, the folder that `charter reward train` made, or a folder with reward_model.json. ``model``: the
    model that the reward model was trained from; of a run by default its fine-tuned model. InputError if the reward model or
    the prompt of a response is missing.
    """
    folder = reward_folder(reward)
    if model is None:
        of_run = reward / "sft" / "model"
        model = str(of_run) if of_run.is_dir() else locate("package:charter.testbed/model", Path.cwd())
    missing = next((response for response in responses if response.prompt_id not in prompts), None)
    if missing is not None:
        raise InputError(
            f"the prompt {missing.prompt_id!r} of response {missing.id!r} is missing; give the file with all prompts as --prompts"
        )
    card = read_json(folder / REWARD_CARD)
    lora = LoRASettings(**card["lora"]) if isinstance(card, dict) and card.get("lora") else None
    trunk = load_reward_trunk(model, device=pick_device("auto"), lora=lora)
    scorers = trunk.load_scorers(folder)
    room = min(limit, trunk.room or limit)
    return features_of(trunk, scorers.roles[0], [(prompts[r.prompt_id], r.text) for r in responses], room)[0]


def features_of(
    trunk: Trunk, role: str, answers: Sequence[tuple[Prompt, str]], room: int | None
) -> tuple[NDArray[np.float64], int]:
    """The last hidden state (N, H) of a role at the end of each answer to a prompt, and how many were cut to ``room`` tokens."""
    encoded = [
        Tokens(encode_prompt(trunk.tokenizer, prompt.messages), encode_response(trunk.tokenizer, text))
        for prompt, text in answers
    ]
    rows = [clip(row, room) for row in encoded]
    features = np.zeros((len(rows), trunk.model.config.get_text_config().hidden_size))
    with torch.no_grad(), trunk.as_role(role) as model:
        for group in by_tokens([len(row) for row in rows], TOKENS_PER_PASS, [tuple(row.prompt) for row in rows]):
            packed = trunk.pack([rows[i] for i in group])
            features[group] = trunk.hidden(model, packed, packed.last).double().cpu().numpy()
    return features, sum(row.lost is not None for row in rows)


def heads_from_files(
    file: Path, reward: Path, *, model: str | None, prompts: Path | None, responses: Path | None, seed: int,
    groups: Mapping[str, str] | None = None, out: Path | None = None,
) -> tuple[HeldOut, Votes]:  # fmt: skip
    """The votes of every rater of a file of judgments, or with ``groups`` of every group, as heads predict them that have not
    seen them, on features from ``reward``. ``out``: a new folder for a reward model with each head (:func:`write_heads`). By
    default prompts and responses are read from the folder of the judgments, then from the run of the reward model. InputError
    names the missing file."""
    prompt_file, response_file = text_files(file, prompts, responses, reward)
    votes = read_votes(find(file, "judgments.jsonl"), response_file, models=True)
    by_id = {response.id: response for response in read_jsonl(response_file, Response)}
    prompts_by_id = {prompt.id: prompt for prompt in read_jsonl(prompt_file, Prompt)}
    features = response_features(reward, model, prompts_by_id, [by_id[name] for name in votes.responses])
    comparisons = as_comparisons(votes) if groups is None else by_group(as_comparisons(votes), groups)
    predicted = held_out(comparisons, features, seed=seed)
    if out is not None:
        write_heads(predicted, features, reward, out, "rater" if groups is None else "group")
    return predicted, votes


def write_heads(predicted: HeldOut, features: NDArray[np.float64], reward: Path, out: Path, whose: str) -> None:
    """Write a reward model for each head into a new folder: ``reward`` with its head replaced, and the scores of these responses
    scaled to mean 0 and deviation 1. ``head.json`` beside it names the rater or the group (``whose``). All share the weights of
    the trunk. InputError where ``reward`` is an ensemble, or nobody has enough votes."""
    from safetensors.torch import load_file, save_file

    source = reward_folder(reward)
    card = read_json(source / REWARD_CARD)
    if not isinstance(card, dict) or len(card["members"]) != 1:
        raise InputError("heads need a single reward model of Charter as their trunk; name one", file=source)
    heads = final_heads(predicted, features)
    if not heads:
        raise InputError(f"nobody has {MIN_VOTES} decided votes, so no head can be fitted; give more votes")
    weights, role = load_file(source / REWARD_WEIGHTS), card["members"][0]["role"]
    with new_folder(out) as folder:
        for name, head in heads.items():
            place = folder / folder_name(name)
            shutil.copytree(source, place, ignore=shutil.ignore_patterns(REWARD_WEIGHTS))
            stored = weights[f"{role}/head.weight"]
            save_file({**weights, f"{role}/head.weight": torch.tensor(head, dtype=stored.dtype)[None]}, place / REWARD_WEIGHTS)
            scores = features @ head
            scale = {"role": role, "mean": float(scores.mean()), "std": float(scores.std()) or 1.0}
            write_json(place / REWARD_CARD, {**card, "members": [scale]})
            votes = int((predicted.votes.rater == predicted.votes.raters.index(name)).sum())
            write_json(place / HEAD_CARD, {whose: name, "votes": votes, "trunk": str(source)})


def check_sides(file: Path, rows: str, n: int, train: int, test: int) -> None:
    """InputError if a split leaves a side with next to nothing."""
    if train < 2 or test < 2:
        raise InputError(f"{n} usable {rows} give {train} to train and {test} to measure; both need at least 2, from different "
                         "dialogues", file=file)  # fmt: skip
