"""The policy, trained against a reward or on the pairs themselves."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charter.errors import InputError
from charter.models.continued import start_from
from charter.models.marks import FLIPPED, mark_flipped, model_folder
from charter.models.trunk import Trunk
from charter.reading.places import naming_the_row
from charter.reading.prompts import KINDS
from charter.reading.ratings import read_ratings
from charter.records import Pair, Prompt, Rating, content_id
from charter.run.files import json_rows, read_json, read_jsonl
from charter.run.run import Run, Stage
from charter.run.team import team
from charter.stages.gates import Gates
from charter.stages.models import Model, Models, within_memory
from charter.stages.prompts.run import read_stage_prompts
from charter.stages.reward_model.run import half_of, reward_trunk
from charter.stages.rl.gold import gold_of
from charter.stages.rl.settings import AnyRLSettings, DPOSettings, PairSettings, PPOSettings, RolloutSettings
from charter.stages.rl.sources import build_reward
from charter.training.curve import best_row
from charter.training.gold import CURVE, STOPPED
from charter.training.rewards import RewardShape, RewardSum
from charter.training.rollouts import RewardModelReward, reference_rewards
from charter.training.vllm_rollouts import engine_for
from charter.training.watch import warnings_of
from charter.votes.exports import write_csv

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


def page_of(method: str) -> str:
    """The module of a method. A run loads the module of its method only: a change of one method re-runs no other."""
    return f"charter.training.methods.{method}"


def trainer_of(method: str) -> Callable[..., Any]:
    """`train_NAME` on the method's page."""
    train: Callable[..., Any] = getattr(importlib.import_module(page_of(method)), f"train_{method}")
    return train


def train_policy(
    run: Run, recipe: Recipe, settings: AnyRLSettings, models: Models, gates: Gates, scorer_identity: str,
    prompts: Stage | None, start: Model, feedback: Stage | None, reward: Stage | None, name: str = "rl",
    second: Stage | None = None,
) -> Stage:  # fmt: skip
    """The model that training starts from, trained on by the method of the recipe: against a reward, or on the pairs themselves.
    Leaves model/, and rl_log.csv where responses were sampled. ``second``: the reward model that gold asks."""
    inputs = {"sft": start.hash, "precision": recipe.arithmetic}
    check_origin(run, settings)
    if reward is not None:
        inputs["reward"] = reward.output_hash
    if isinstance(settings, PairSettings):
        inputs |= {"feedback": feedback.output_hash} if feedback is not None else {}
    else:
        assert prompts is not None
        inputs["prompts"] = prompts.output_hash
        inputs["reward parts"] = content_id([models.hash_of(source, start) for source in settings.sources.values()])
    if settings.gold is not None:
        assert prompts is not None
        inputs |= {"prompts": prompts.output_hash, "gold": models.hash_of(settings.gold.source, start)}
        inputs |= {"second reward": second.output_hash} if second is not None else {}
    with run.stage(name, settings, inputs, [__name__, page_of(settings.method)]) as stage:
        sources = settings.sources.values() if isinstance(settings, RolloutSettings) else ()
        scores_report = any(models.identity_of(source, start) == scorer_identity for source in sources)
        gates.check_scorer(stage, scores_report, "a part of the reward would also score the report")
        if stage.done:
            gates.recall(stage)
            return stage
        shared = reward is not None and recipe.reward_model.model is None  # one trunk for policy and reward model
        cut: dict[str, int] = {}
        examples, excluded = examples_of(settings, feedback, None if second is None else 0, recipe.seed)

        def learn(settings: AnyRLSettings) -> Trunk:
            trunk = models.trunk(start.folder, settings.lora, trains=True)
            trunk.add_role("policy")
            gold = gold_of(recipe, settings, models, prompts, start, second)
            if settings.from_policy is not None:
                start_from(trunk, "policy", Path(settings.from_policy))
            if isinstance(settings, PairSettings):
                files = recipe.feedback.pairs if recipe.feedback is not None else getattr(settings, "ratings", [])
                with naming_the_row([Path(file) for file in files]):
                    limit = settings.max_tokens or trunk.room
                    lost = trainer_of(settings.method)(trunk, examples, settings, stage, limit=limit, gold=gold)
                cut.update(lost.figures)
                return trunk
            assert prompts is not None
            rewards = build_reward(
                settings,
                reward_model=lambda: reward_model_reward(
                    trunk if shared else reward_trunk(recipe, models, start), reward, settings.tokens_per_micro_batch
                ),
                judge=lambda source: models.answering(source, start),
                device=models.device,
            )
            chosen = [p for kind in KINDS for p in read_stage_prompts(prompts, "train", kind)]
            with engine_for(trunk, chosen, settings):
                rewards.gold = gold
                rewards.shape = shape_of(trunk, chosen, rewards, settings, stage)
                if isinstance(settings, PPOSettings) and settings.value == "head":
                    trunk.add_value_head("policy", settings.value_gradient)
                elif isinstance(settings, PPOSettings):
                    trunk.add_role("value", head=True, start_from="reward" if shared else None)
                trainer_of(settings.method)(trunk, chosen, rewards, settings, stage)
            team().on_main(lambda: export_rollouts(stage, stage.export(f"{name.replace('rl', 'rl_log')}.csv")))
            return trunk

        trunk = within_memory(stage, settings, learn, models.release)
        folder = stage.path(model_folder(name))
        trunk.save_language_model("policy", folder)
        if name.endswith(FLIPPED):
            team().on_main(lambda: mark_flipped(folder))
        share = trunk.trainable_share("policy")
        stage.finish({"method": settings.method, "gates": gates.of(stage), "trainable_share": share, "cut": cut,
                      **outcome_of(stage, settings), **({"excluded": excluded} if excluded else {})})  # fmt: skip
    return stage


def examples_of(
    settings: AnyRLSettings, feedback: Stage | None, half: int | None, seed: int
) -> tuple[list[Pair] | list[Rating], dict[str, int]]:
    """What a method that samples nothing learns from: the pairs of the feedback, one ``half_of`` them where gold learned from the
    other, or the ratings of files; and how many rows of the files were left out, by reason."""
    if isinstance(settings, PairSettings) and feedback is not None:
        return half_of(list(read_jsonl(feedback.path("pairs.jsonl"), Pair)), half, seed), {}
    files = [read_ratings(Path(file)) for file in getattr(settings, "ratings", [])]
    excluded = sum((Counter(file.excluded) for file in files), Counter[str]())
    return [rating for file in files for rating in file.ratings], dict(excluded)


def outcome_of(stage: Stage, settings: AnyRLSettings) -> dict[str, Any]:
    """The figures of a finished training, from its logs: its first and last step, why it ended, and which model was kept."""
    metrics = stage.metrics()
    first, last = metrics[0], metrics[-1]
    result: dict[str, Any] = {"steps": len(metrics), "updates": sum(m["updates"] for m in metrics)}
    if isinstance(settings, PairSettings):
        result |= {"loss": settings.loss} if isinstance(settings, DPOSettings) else {}
        result |= {"first_loss": first["loss"], "last_loss": last["loss"]}
    else:
        result |= {"first_kl": first["kl"], "first_ratio": first["first_ratio"], "first_reward": first["reward"],
                   "last_reward": last["reward"], "warnings": list(warnings_of(metrics).values()), "completions":
                   len(metrics) * settings.prompts_per_step * settings.samples_per_prompt,
                   "excluded": {"responses that the reward abstained from": sum(m["abstained"] for m in metrics)}}  # fmt: skip
    if settings.stop is not None:
        result["stopped"] = (read_json(stage.path(STOPPED)) or {}).get("reason")  # None if all steps were made
    if settings.gold is not None:
        kept = best_row(json_rows(stage.path(CURVE)))["step"] if settings.keep == "best" else len(metrics)
        result |= {"gold": str(settings.gold.source), "kept_step": kept}
    return result


def check_origin(run: Run, settings: AnyRLSettings) -> None:
    """InputError if the run would overwrite the policy that it starts from."""
    folder = settings.from_policy
    if folder is not None and Path(folder).resolve().is_relative_to(run.folder.resolve()):
        raise InputError(f"{folder} is in this run folder, whose RL would overwrite it; choose another --out",
                         field="rl.from_policy")  # fmt: skip


def shape_of(
    trunk: Trunk, prompts: Sequence[Prompt], rewards: RewardSum, settings: RolloutSettings, stage: Stage
) -> RewardShape | None:
    """The shape of the summed reward; None if the settings leave the sum as it is."""
    if settings.sigmoid_against is None:
        return RewardShape(settings) if settings.reward_scale or settings.reward_clip else None
    return RewardShape(settings, reference_rewards(trunk, prompts, rewards, settings, stage))


def reward_model_reward(trunk: Trunk, reward: Stage | None, tokens_per_micro_batch: int) -> RewardModelReward:
    """The trained reward model as role ``reward`` of its trunk."""
    assert reward is not None, "the pipeline trains a reward model where a recipe uses one"
    return RewardModelReward(trunk, trunk.load_scorers(reward.path(model_folder(reward.name))), tokens_per_micro_batch)


def export_rollouts(stage: Stage, path: Path) -> None:
    """rl_log.csv: every response of the run with its reward and KL."""
    columns = ("step", "prompt", "response", "reward", "kl")
    write_csv(path, columns, ([row[c] for c in columns] for row in json_rows(stage.path("rollouts.jsonl"))))
