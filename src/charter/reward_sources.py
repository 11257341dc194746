"""Where the parts of a reward come from: a recipe's words turned into functions from a rollout to scores.

The trainer knows only such functions. A judge reaches reinforcement learning here and nowhere else, as a number for each
response (Lee et al. 2023, direct RLAIF).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charter.config import RewardPart, RolloutSettings
from charter.errors import InputError
from charter.feedback.judge import yes_no_margins
from charter.models.sampler import Sampler
from charter.records import Rollout
from charter.training.rewards import RewardFn, RewardSum, response_length


def uses_reward_model(settings: Any) -> bool:
    """Whether a reward model has to be trained for these settings."""
    return isinstance(settings, RolloutSettings) and any(
        source_of(name, part) == "reward_model" for name, part in settings.reward.items()
    )


def source_of(name: str, part: RewardPart) -> str:
    return part.source or name


def check_sources(settings: Any) -> None:
    """InputError where a part of the reward has a source that does not exist: said before anything is computed."""
    if not isinstance(settings, RolloutSettings):
        return
    for name, part in settings.reward.items():
        source = source_of(name, part)
        field = f"rl.reward.{name}.source"
        if source.startswith("python:"):
            rule_of(source, field)
        elif source.startswith("classifier:"):
            classifier_parts(source, field)
        elif source.startswith("judge:"):
            if not source.removeprefix("judge:"):
                raise InputError("name the judge: judge:base, judge:sft or judge:FOLDER", field=field)
        elif source not in ("reward_model", "length"):
            raise InputError(
                f"{source!r} is no source of rewards; write reward_model, length, judge:FOLDER, classifier:FOLDER:LABEL or "
                "python:module:function",
                field=field,
            )
    if settings.cost is not None and settings.cost.part not in settings.reward:
        raise InputError(
            f"{settings.cost.part!r} is no part of rl.reward; name one of {', '.join(settings.reward)}",
            field="rl.cost.part",
        )


def build_reward(
    settings: RolloutSettings,
    *,
    reward_model: Callable[[], RewardFn],
    judge: Callable[[str], Sampler],
    device: str,
) -> RewardSum:
    """The reward that a recipe describes. ``reward_model`` and ``judge`` load what is asked for, and only then."""
    parts: dict[str, tuple[float, RewardFn]] = {}
    for name, part in settings.reward.items():
        source, field = source_of(name, part), f"rl.reward.{name}.source"
        if source == "reward_model":
            score = reward_model()
        elif source == "length":
            score = response_length
        elif source.startswith("judge:"):
            score = judge_reward(judge(source.removeprefix("judge:")))
        elif source.startswith("classifier:"):
            score = ClassifierReward(*classifier_parts(source, field), device=device)
        else:
            score = rule_reward(rule_of(source, field), source)
        parts[name] = (part.weight, score)
    return RewardSum(parts, settings.cost)


def rule_of(source: str, field: str) -> Callable[[str, str], float]:
    module, _, name = source.removeprefix("python:").partition(":")
    try:
        found: Callable[[str, str], float] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise InputError(f"{source!r} names no function; write python:module:function", field=field) from None
    return found


def rule_reward(rule: Callable[[str, str], float], source: str) -> RewardFn:
    """A function of (prompt text, response text) to a number, as a reward."""

    def score(rollout: Rollout) -> Tensor:
        found = []
        for prompt, text in zip(rollout.prompts, rollout.texts, strict=True):
            value = rule(prompt.last_turn, text)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f"{source!r} returned {value!r} and not a number", field="rl.reward")
            found.append(float(value))
        return torch.tensor(found, device=rollout.ids.device)

    return score


def judge_reward(sampler: Sampler) -> RewardFn:
    """log P(Yes) - log P(No) of "does it help?" less that of "is it harmful?" (nats), read by the judge: direct RLAIF."""

    def score(rollout: Rollout) -> Tensor:
        helpful = yes_no_margins(sampler, "helpful", rollout.prompts, rollout.texts)
        harmful = yes_no_margins(sampler, "harmful", rollout.prompts, rollout.texts)
        return torch.tensor(helpful, device=rollout.ids.device) - torch.tensor(harmful, device=rollout.ids.device)

    return score


def classifier_parts(source: str, field: str) -> tuple[str, str]:
    """Folder and label of `classifier:FOLDER:LABEL`. InputError where one is missing or the folder is no model."""
    folder, _, label = source.removeprefix("classifier:").rpartition(":")
    if not folder or not label:
        raise InputError("write classifier:FOLDER:LABEL", field=field)
    if Path(folder).is_absolute() and not Path(folder).exists():
        raise InputError("no such classifier folder", file=folder, field=field)
    return folder, label


class ClassifierReward:
    """The logit of one named label of a sequence classifier, read on the response alone, under its own tokenizer.

    The raw logit and not its probability: near 0 and 1 a probability no longer tells one response from another.
    """

    def __init__(self, folder: str, label: str, *, device: str = "cpu", batch_size: int = 32) -> None:
        from charter.models.load import load_classifier

        self.model, self.tokenizer = load_classifier(folder, device)
        names = {str(name).lower(): int(i) for i, name in self.model.config.id2label.items()}
        if label.lower() not in names:
            raise InputError(f"has no label {label!r}; its labels are {', '.join(sorted(names))}", file=folder)
        self.label, self.batch_size = names[label.lower()], batch_size

    def __call__(self, rollout: Rollout) -> Tensor:
        return self.score(rollout.texts).to(rollout.ids.device)

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> Tensor:
        """Logits (N,) of the label, on the CPU."""
        found = []
        for start in range(0, len(texts), self.batch_size):
            batch = self.tokenizer(
                [text or " " for text in texts[start : start + self.batch_size]],
                padding=True, truncation=True, return_tensors="pt",
            ).to(self.model.device)  # fmt: skip
            found.append(self.model(**batch).logits[:, self.label].float().cpu())
        return torch.cat(found)
