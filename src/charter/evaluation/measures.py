"""A user's own numbers about each response, from a classifier, a judge or a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.evaluation.scorers import is_number, plain_scalar
from charter.judging.judge import QUESTIONS, yes_no_margins
from charter.judging.rubrics import read_rubric, rubric_scores
from charter.models.classifier import Classifier
from charter.models.sampling.sampler import Sampler
from charter.recipe.source import Source
from charter.records import Prompt
from charter.run.team import team
from charter.stages.evaluate.settings import MeasureSettings


@dataclass(frozen=True)
class Measure:
    """A named number of every answer. ``of(prompts, texts)``: one value each, None if there is none."""

    name: str
    unit: str
    of: Callable[[Sequence[Prompt], Sequence[str]], list[float | None]]


def measure_of(name: str, settings: MeasureSettings, judge: Callable[[Source], Sampler], device: str = "cpu") -> Measure:
    """The measure that a recipe describes; ``judge`` loads a model that is asked. InputError if the source is missing."""
    source = settings.source
    if source.kind == "python":
        function = source.load()

        def computed(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
            # A user's function may return something else at each call, so one process calls it.
            return team().on_main(
                lambda: [
                    as_number(function(p.last_turn, text), str(source), f"evaluation.measures.{name}.source")
                    for p, text in zip(prompts, texts, strict=True)
                ]
            )

        return Measure(name, settings.unit, computed)
    if source.kind == "classifier":
        load = lru_cache(maxsize=1)(lambda: Classifier(source.name, source.label, device=device))
        return Measure(name, settings.unit, lambda _, texts: load().probabilities(texts))
    if source.kind == "rubric":
        reader, rubric = judge(source.model), read_rubric(Path(source.name))
        return Measure(name, settings.unit, lambda prompts, texts: rubric_scores(reader, rubric, prompts, texts))
    sampler, question = judge(source.model), name if name in QUESTIONS else "helpful"

    def judged(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        margins = yes_no_margins(sampler, question, prompts, texts)
        return [1 / (1 + math.exp(-max(min(m, 500), -500))) if math.isfinite(m) else None for m in margins]

    return Measure(name, settings.unit, judged)


def as_number(value: Any, function: str, field: str) -> float | None:
    """What a user's function returned, as a float: a truth value as 0 or 1. InputError if it is neither a finite number nor
    None."""
    value = plain_scalar(value)
    if value is not None and not is_number(value):
        raise InputError(f"{function!r} returned {value!r:.80}; return a finite number, True, False or None", field=field)
    return None if value is None else float(value)
