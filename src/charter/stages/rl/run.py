"""The policy, trained against a reward or on the pairs themselves."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from charter.errors import InputError
from charter.models.classifier import classifier_parts
from charter.models.trunk import Trunk
from charter.reading.prompts import KINDS
from charter.recipe.settings import AnyRLSettings, DPOSettings, PPOSettings, RolloutSettings
from charter.records import Pair, Prompt, content_id
from charter.run.files import read_jsonl
from charter.run.hashes import model_hash
from charter.run.run import Stage
from charter.run.team import team
from charter.stages.prompts.run import read_stage_prompts
from charter.stages.reward_model.run import reward_trunk
from charter.stages.rl.sources import build_reward, source_of
from charter.stages.work import Model, Work, within_memory
from charter.training.rewards import RewardShape, RewardSum
from charter.training.rollouts import RewardModelReward, reference_rewards
from charter.training.vllm_rollouts import engine_for
from charter.training.watch import warnings_of
from charter.votes.exports import write_csv


def page_of(method: str) -> str:
    """The module of a method. A run loads its own method's and no other: a change of one page trains no other method anew."""
    return f"charter.training.{method}"


def trainer_of(method: str) -> Callable[..., None]:
    """`train_NAME` on the method's page."""
    train: Callable[..., None] = getattr(importlib.import_module(page_of(method)), f"train_{method}")
    return train


def train_policy(work: Work, prompts: Stage | None, start: Model, feedback: Stage | None, reward: Stage | None) -> Stage:
    """The model that training starts from, trained on by the method of the recipe: against a reward, or on the pairs themselves.
    Leaves model/, and rl_log.csv where responses were sampled."""
    recipe = work.recipe
    settings = recipe.rl
    assert settings is not None
    inputs = {"sft": start.hash, "precision": recipe.arithmetic}
    if reward is not None:
        inputs["reward"] = reward.output_hash
    if isinstance(settings, DPOSettings):
        assert feedback is not None
        inputs["feedback"] = feedback.output_hash
    else:
        assert prompts is not None
        inputs["prompts"] = prompts.output_hash
        inputs["reward parts"] = content_id([hash_of_source(work, start, name) for name in settings.reward])
    with work.run.stage(work.named("rl"), settings, inputs, [__name__, page_of(settings.method)]) as stage:
        if stage.done:
            work.recall_gates(stage)
            return stage
        if isinstance(settings, RolloutSettings) and any(
            identity_of_source(work, start, name) == work.scorer_identity for name in settings.reward
        ):
            work.gate(stage, "independent scorer", False, "a part of the reward would also score the report")
        shared = reward is not None and recipe.reward_model.model is None  # one trunk for policy and reward model
        if shared and (settings.lora is None) != (recipe.reward_model.lora is None):
            raise InputError("rl.lora and reward_model.lora must both be given or both left out: they share one trunk")

        def learn(settings: AnyRLSettings) -> Trunk:
            trunk = work.trunk(start.folder, settings.lora, trains=True)
            trunk.add_role("policy")
            if isinstance(settings, DPOSettings):
                assert feedback is not None
                pairs = list(read_jsonl(feedback.path("pairs.jsonl"), Pair))
                trainer_of(settings.method)(trunk, pairs, settings, stage, limit=settings.max_tokens or trunk.room)
            else:
                assert prompts is not None
                rewards = build_reward(
                    settings,
                    reward_model=lambda: reward_model_reward(
                        trunk if shared else reward_trunk(work, start), reward, settings.tokens_per_micro_batch
                    ),
                    judge=lambda name: work.sampler(work.folder_of(name, start), name),
                    device=work.device,
                )
                chosen = [p for kind in KINDS for p in read_stage_prompts(prompts, "train", kind)]
                with engine_for(trunk, chosen, settings):
                    rewards.shape = shape_of(trunk, chosen, rewards, settings, stage)
                    if isinstance(settings, PPOSettings):
                        trunk.add_role("value", head=True, start_from="reward" if shared else None)
                    trainer_of(settings.method)(trunk, chosen, rewards, settings, stage)
                team().on_main(lambda: export_rollouts(stage, work.run.folder / f"{work.named('rl_log')}.csv"))
            return trunk

        trunk = within_memory(stage, settings, learn, work.release)
        trunk.save_language_model("policy", stage.path("model"))
        metrics = stage.metrics()
        first, last = metrics[0], metrics[-1]
        result = {"method": settings.method, "gates": work.gates_of(stage), "steps": len(metrics),
                  "updates": sum(m["updates"] for m in metrics), "trainable_share": trunk.trainable_share("policy")}  # fmt: skip
        if isinstance(settings, DPOSettings):
            result |= {"loss": settings.loss, "first_loss": first["loss"], "last_loss": last["loss"]}
        else:
            result |= {"first_kl": first["kl"], "first_ratio": first["first_ratio"], "first_reward": first["reward"],
                       "last_reward": last["reward"], "warnings": list(warnings_of(metrics).values()), "completions":
                       len(metrics) * settings.prompts_per_step * settings.samples_per_prompt}  # fmt: skip
        stage.finish(result)
    return stage


def shape_of(
    trunk: Trunk, prompts: Sequence[Prompt], rewards: RewardSum, settings: RolloutSettings, stage: Stage
) -> RewardShape | None:
    """How the settings want the summed reward shaped, None where they leave it alone."""
    if settings.sigmoid_against is None:
        return RewardShape(settings) if settings.reward_scale or settings.reward_clip else None
    return RewardShape(settings, reference_rewards(trunk, prompts, rewards, settings, stage))


def reward_model_reward(trunk: Trunk, reward: Stage | None, tokens_per_micro_batch: int) -> RewardModelReward:
    """The trained reward model as role ``reward`` of its trunk."""
    assert reward is not None, "the pipeline trains a reward model where a recipe uses one"
    return RewardModelReward(trunk, trunk.load_scorers(reward.path("model")), tokens_per_micro_batch)


def hash_of_source(work: Work, start: Model, name: str) -> str:
    """What a part of the reward depends on besides its settings: a judge, or the weights of a classifier."""
    assert isinstance(work.recipe.rl, RolloutSettings)
    source = source_of(name, work.recipe.rl.reward[name])
    if source.startswith("judge:"):
        return work.hash_of(source.removeprefix("judge:"), start)
    if source.startswith("classifier:"):
        folder, _ = classifier_parts(source, f"rl.reward.{name}.source")
        return model_hash(folder)
    return source


def identity_of_source(work: Work, start: Model, name: str) -> str:
    """Whose hand a part of the reward is."""
    assert isinstance(work.recipe.rl, RolloutSettings)
    source = source_of(name, work.recipe.rl.reward[name])
    judged = source.startswith("judge:")
    return work.identity_of(source.removeprefix("judge:"), start) if judged else hash_of_source(work, start, name)


def export_rollouts(stage: Stage, path: Path) -> None:
    """rl_log.csv: every response of the run with its reward and KL."""
    rows = (json.loads(line) for line in stage.path("rollouts.jsonl").read_text(encoding="utf-8").splitlines())
    columns = ("step", "prompt", "response", "reward", "kl")
    write_csv(path, columns, ([row[c] for c in columns] for row in rows))
