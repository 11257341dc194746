"""Tokens and memory of the last training: of pairs that are read and learned from, or of rollouts."""

from __future__ import annotations

import math

from charter.models.shape import FLOAT, Shape
from charter.stages.load import Counted, Load
from charter.stages.rl.settings import (
    AnyRLSettings,
    DPOSettings,
    GRPOSettings,
    ILQLSettings,
    PairSettings,
    PPOSettings,
    RolloutSettings,
)


def load(counted: Counted, settings: AnyRLSettings) -> Load:
    work, shape, lengths = counted.load("rl"), counted.shape, counted.lengths
    work.hold(shape, 1)
    if settings.gold is not None:
        ask_gold(counted, settings, work)
    if isinstance(settings, PairSettings):
        row, response = counted.pair_row
        reads_reference = isinstance(settings, DPOSettings)
        work.train(shape, settings.lora, roles=1, reference=reads_reference)
        read = counted.n_pairs * 2 * row * reads_reference  # once
        work.activate(
            shape, settings, 2 * min(settings.pairs_per_step, counted.n_pairs), row, response, copies=3, read=read, siblings=2,
            projections=1 if reads_reference else 3,
        )  # fmt: skip
        work.score(shape, read)
        work.learn(shape, settings.epochs * counted.n_pairs * 2 * row)
        if isinstance(settings, ILQLSettings):
            learn_q(work, shape, settings.epochs * counted.n_pairs * 2 * response)
        return work
    n_steps, n_rollouts = settings.steps, settings.prompts_per_step * settings.samples_per_prompt
    row = lengths.prompt + settings.max_new_tokens
    critic = isinstance(settings, PPOSettings) and settings.value == "own"
    epochs, minibatches = (settings.epochs, settings.minibatches) if isinstance(settings, (PPOSettings, GRPOSettings)) else (1, 1)
    work.train(shape, settings.lora, roles=2 if critic else 1, reference=True)
    if counted.recipe.trains_reward_model:  # only read
        reward, scored_by = counted.recipe.reward_model, counted.reward_shape
        if reward.model is not None:
            work.hold(scored_by, 1)
        work.memory["weights"] += (scored_by.adapter(reward.lora) or scored_by.parameters) * FLOAT
    work.activate(
        shape, settings, n_rollouts / minibatches, row, settings.max_new_tokens, copies=5, passes=2 if critic else 1,
        siblings=settings.samples_per_prompt if minibatches == 1 else 1,
    )  # fmt: skip
    work.sample(shape, n_steps * n_rollouts, lengths.prompt, settings.max_new_tokens, n_rollouts)
    if settings.vllm is not None:  # a copy of the policy and a cache of its own
        work.memory.pop("kv_cache", None)
        work.memory["vllm"] = shape.parameters * work.width + settings.vllm.kv_cache_gb * 2**30
    # Reward, policy and reference read every rollout, and a critic of its own too.
    work.score(shape, n_steps * n_rollouts * row * (4 if critic else 3))
    work.learn(shape, n_steps * n_rollouts * row * epochs * (2 if critic else 1))
    work.hold_classifiers(counted, settings.sources.values())
    anew = (settings.sigmoid_against or 0) * counted.n_prompts("train")
    for source in settings.sources.values():
        judge = source.model
        if judge.kind == "endpoint":
            n = counted.questions(source) * (n_steps * n_rollouts + anew)
            work.ask(judge, n, row + lengths.question, counted.written(judge))
    return work


def learn_q(work: Load, shape: Shape, tokens: float) -> None:
    """Two Q heads that learn from so many tokens of responses, their slow copies, and the projection with Q in it."""
    table = shape.vocabulary * shape.hidden * FLOAT
    work.memory["q_heads"] = 5 * table
    work.memory["gradients"] += 2 * table
    work.memory["adam"] += 4 * table
    work.checkpoint += (3 * 2 + 2) * table
    work.left_behind += table  # beside the embedding, where the two were one matrix
    work.operations += 2 * 6 * shape.vocabulary * shape.hidden * tokens


def ask_gold(counted: Counted, settings: AnyRLSettings, work: Load) -> None:
    """The answers of the gold curve, read by policy and reference, and by who is asked."""
    assert settings.gold is not None
    rollouts = isinstance(settings, RolloutSettings)
    steps = settings.steps if isinstance(settings, RolloutSettings) else (
        settings.epochs * counted.n_pairs / settings.pairs_per_step)  # fmt: skip
    new = settings.max_new_tokens if isinstance(settings, RolloutSettings) else settings.gold.max_new_tokens or 64
    n = settings.gold.prompts
    points = math.ceil(steps / settings.gold.every) + 1
    work.sample(counted.shape, points * n, counted.lengths.prompt, new, n)
    work.score(counted.shape, points * n * (counted.lengths.prompt + new) * (3 if rollouts else 2))
    work.hold_classifiers(counted, [settings.gold.source])
    if settings.gold.source.model.kind == "endpoint":
        judge, row = settings.gold.source.model, counted.lengths.prompt + new + counted.lengths.question
        work.ask(judge, counted.questions(settings.gold.source) * points * n, row, counted.written(judge))
