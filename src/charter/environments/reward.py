"""What an environment's reward comes from: a function, or one of the sources that recipes name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from charter.errors import GateError, InputError
from charter.evaluation.scorers import refusal_words
from charter.models.classifier import Classifier
from charter.models.cut import answer_rows
from charter.models.load import pick_device
from charter.models.reward_trunk import load_reward_model, reward_folder
from charter.models.sampling.sampler import READ_TOKENS, LocalSampler
from charter.models.trunk import load_trunk
from charter.recipe.source import Accepts, Source
from charter.records import Prompt
from charter.stages.rl.gold import function_gold, goodness, judge_gold
from charter.training.gold import GoldScore
from charter.training.methods.reward_model import reward_scores

SCORER = Accepts("scorer", ("judge", "classifier", "python", "model"), words=("refusal-words",))


@dataclass(frozen=True)
class Reward:
    """Rewards of answers to prompts; None if the scorer cannot say. ``steady``: equal answers always score the same."""

    score: GoldScore
    steady: bool

    def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        """The reward of each text. GateError if one is not finite."""
        rewards = self.score([prompt] * len(texts), texts)
        if not all(reward is None or math.isfinite(reward) for reward in rewards):
            raise GateError("the reward is not finite; a failed score is an error, not a number")
        return rewards


def reward_of(scorer: str | Path | Callable[[str, str], Any]) -> Reward:
    """The reward of an environment. ``scorer``: a function of the texts of prompt and answer that returns a number, None or a
    scorer's verdict; or `python:module:function`, `classifier:FOLDER:LABEL` (the logit), `judge:FOLDER`, `refusal-words`, or the
    folder of a reward model. InputError if the source is unknown or missing."""
    if callable(scorer):
        return Reward(function_gold(scorer, getattr(scorer, "__name__", repr(scorer)), "scorer"), steady=False)
    try:
        source = SCORER.parse(str(scorer)).located(Path.cwd())
    except ValueError as error:
        raise InputError(str(error), field="scorer") from None
    if source.kind == "python":
        return Reward(function_gold(source.load(), str(source), "scorer"), steady=False)
    if {source.kind, source.model.kind} & {"endpoint", "run"}:
        raise InputError(f"{str(source)!r} is named in a recipe, and an environment has none; use judge:FOLDER", field="scorer")
    if source.kind == "model":
        source = replace(source, name=str(reward_folder(Path(source.name))))
    return Reward(model_score(source, source.content_hash()), steady=True)


@lru_cache(maxsize=4)
def model_score(source: Source, _: str) -> GoldScore:
    """The score that a model or a rule gives. Environments of one process share the model, as long as its files are the same."""
    device = pick_device("auto")
    if source.kind == "built-in":
        rule = refusal_words()
        return lambda prompts, texts: [goodness(*pair) for pair in zip(prompts, rule.score(prompts, texts), strict=True)]
    if source.kind == "classifier":
        classifier = Classifier(source.name, source.label, device=device)
        return lambda _, texts: list(classifier.logits(texts).tolist())
    if source.kind == "model":
        return reward_model_score(source.name, device)
    judge = judge_gold(LocalSampler(load_trunk(source.model.name, device=device), source.model.name))
    return lambda prompts, texts: [value if math.isfinite(value or 0) else None for value in judge(prompts, texts)]


def reward_model_score(name: str, device: str) -> GoldScore:
    """Scores of a reward model of Charter, on mean 0 and deviation 1 of the responses that it was trained on. InputError if
    a conversation is longer than it reads."""
    trunk, scorers = load_reward_model(Path(name), device=device)

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        rows = [row for prompt, text in zip(prompts, texts, strict=True)
                for row in answer_rows(trunk.tokenizer, prompt.messages, [text], trunk.room)]  # fmt: skip
        if any(row.lost for row in rows):
            raise InputError(
                f"a conversation is longer than the {trunk.room} tokens that the reward model reads; shorten it", file=name
            )
        return list(reward_scores(trunk, scorers, rows, READ_TOKENS).tolist())

    return score
