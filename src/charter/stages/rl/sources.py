"""The parts of a reward: a recipe's words turned into functions from a rollout to scores.

The trainer knows only such functions. A judge reaches reinforcement learning here and nowhere else, as a number for each
response (Lee et al. 2023, direct RLAIF).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path

import torch
from torch import Tensor

from charter.errors import InputError
from charter.judging.judge import yes_no_margins
from charter.judging.rubrics import Rubric, read_rubric, rubric_scores
from charter.models.classifier import Classifier
from charter.models.sampling.sampler import Sampler
from charter.recipe.source import Source
from charter.records import Prompt, Rollout
from charter.run.team import team
from charter.stages.rl.settings import RolloutSettings
from charter.training.rewards import RewardFn, RewardSum, SomeScores, random_number, response_length

RULES: dict[str, RewardFn] = {"length": response_length, "random": random_number}


def build_reward(
    settings: RolloutSettings, *, reward_model: Callable[[], RewardFn], judge: Callable[[Source], Sampler], device: str
) -> RewardSum:
    """The reward that a recipe describes. ``reward_model`` and ``judge`` load a model when it is needed."""

    def part_of(source: Source) -> RewardFn:
        if source.kind == "judge":
            return judge_reward(judge(source.model))
        if source.kind == "rubric":
            return rubric_reward(judge(source.model), read_rubric(Path(source.name)))
        if source.kind == "classifier":
            return ClassifierReward(source.name, source.label, device=device)
        if source.kind == "python":
            return rule_reward(source.load(), str(source))
        return reward_model() if source.name == "reward_model" else RULES[source.name]

    parts = {name: (settings.reward[name].weight, part_of(source)) for name, source in settings.sources.items()}
    return RewardSum(parts, settings.cost)


def rule_reward(rule: Callable[[str, str], float | None], source: str) -> RewardFn:
    """A function of (prompt text, response text) to a number, as a reward; None abstains."""

    def values(rollout: Rollout) -> list[float | None]:
        numbers: list[float | None] = []
        for prompt, text in zip(rollout.prompts, rollout.texts, strict=True):
            value = rule(prompt.last_turn, text)
            if isinstance(value, bool) or not (value is None or isinstance(value, Real)):
                raise InputError(f"{source!r} returned {value!r}; return a number, or None to abstain", field="rl.reward")
            numbers.append(None if value is None else float(value))
        return numbers

    # A user's function may answer differently at each call, so one process calls it.
    return lambda rollout: some_scores(team().on_main(lambda: values(rollout)), rollout)


def rubric_reward(sampler: Sampler, rubric: Rubric) -> RewardFn:
    """The score of each response by a rubric whose questions the judge answers; an answer that could not be read abstains."""
    return lambda rollout: some_scores(rubric_scores(sampler, rubric, rollout.prompts, rollout.texts), rollout)


def some_scores(numbers: Sequence[float | None], rollout: Rollout) -> SomeScores:
    """Numbers of the B responses; None abstains."""
    device = rollout.ids.device
    return SomeScores(torch.tensor([number or 0.0 for number in numbers], device=device),
                      torch.tensor([number is None for number in numbers], device=device))  # fmt: skip


def judge_reward(sampler: Sampler) -> RewardFn:
    """``help_less_harm`` of each response: direct RLAIF. An answer that could not be read abstains."""
    return lambda rollout: some_scores(help_less_harm(sampler, rollout.prompts, rollout.texts), rollout)


def help_less_harm(sampler: Sampler, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
    """log P(Yes) - log P(No) of "does it help?" less that of "is it harmful?", nats, read by the judge; None if unread."""
    helpful, harmful = (yes_no_margins(sampler, name, prompts, texts) for name in ("helpful", "harmful"))
    return [good - bad if math.isfinite(good - bad) else None for good, bad in zip(helpful, harmful, strict=True)]


class ClassifierReward:
    """The logit of one named label of a sequence classifier, read on the response alone.

    The raw logit and not its probability: near 0 and 1 a probability no longer tells one response from another.
    """

    def __init__(self, folder: str, label: str, *, device: str = "cpu") -> None:
        self.classifier = Classifier(folder, label, device=device)

    def __call__(self, rollout: Rollout) -> Tensor:
        return by_share(self.classifier.logits, rollout.texts, self.classifier.batch_size).to(rollout.ids.device)


def by_share(read: Callable[[Sequence[str]], Tensor], texts: Sequence[str], batch_size: int) -> Tensor:
    """``read(texts)`` (N,), each process reading its share of the batches."""
    logits = torch.zeros(len(texts))
    starts = range(0, len(texts), batch_size)
    for start in team().share(starts, [1] * len(starts)):
        share = texts[start : start + batch_size]
        logits[start : start + len(share)] = read(share)
    return team().sum_(logits)
