"""Settings of the evaluation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, SerializationInfo, field_serializer, model_validator

from charter.metrics import METRICS
from charter.recipe.settings import NonNegative, Positive, SamplingSettings, Settings, Share
from charter.recipe.source import File, MeasureSource, Responder, ScorerSource, Source
from charter.run.hashes import CONTENTS

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe

MEASURE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class MeasureSettings(Settings):
    source: MeasureSource
    """`classifier:FOLDER:LABEL`, the classifier's probability of the label for the response alone; `judge:FOLDER` or
    `judge:endpoint:NAME`, the judge's probability that the response helps; `rubric:FILE:JUDGE`, the score by criteria with
    points; or `python:module:function`, a function of the prompt's and the response's text that returns a number or None."""
    better: Literal["lower", "higher"]
    """Direction of the aim."""
    margin: NonNegative | None = None
    """Makes the measure a guard-rail: the largest loss with which the verdict can still be "worked"; declared before the
    run."""
    unit: str = "share"
    """Unit beside the number in the report."""


class EvaluationSettings(SamplingSettings):
    scorer: ScorerSource | None = None
    """Scorer that decides what is harmful, refused and helpful: `python:module:function`, `judge:FOLDER`,
    `judge:endpoint:NAME` or `refusal-words`."""
    measures: dict[str, MeasureSettings] = {}
    """Numbers of your own, by name, for every answer of every arm. Without a scorer the first measure decides the verdict."""
    judge: Responder | None = None
    """Judge that compares the last model's answers with those of every other arm, in both orders: `base`, `sft`, a folder or
    `endpoint:NAME`. The report then has win rates, raw and at equal length."""
    adherence: Responder | None = None
    """Judge of whether each answer follows the principle under which its prompt is sorted, in the forms of `judge`. The report
    then has the adherence of every arm by principle, beside harm."""
    samples_per_prompt: Positive = 1
    """Number of answers of each arm to each prompt."""
    best_of: Annotated[int, Field(ge=2, strict=True)] | None = None
    """Measure one more arm: the answer that the reward model scores highest among this many answers of the SFT model."""
    over_refusal_margin: Share = 0.05
    """Largest rise of over-refusal with which the verdict can still be "worked"; declared before the run."""
    helpfulness_margin: Share = 0.03
    """Largest fall of helpfulness with which the verdict can still be "worked"; declared before the run."""

    cards: list[File] = []
    """Cards of scorers (NAME.card.json); the report prints each beside the figures of its scorer or measure."""

    @field_serializer("cards")
    def outside_the_fingerprint(self, cards: list[File], info: SerializationInfo) -> list[str]:
        """Only the report reads the cards, so a new card evaluates nothing again."""
        return [] if info.context == CONTENTS else [str(file) for file in cards]

    @model_validator(mode="after")
    def check_that_something_is_measured(self) -> EvaluationSettings:
        if self.scorer is None and not self.measures:
            raise ValueError("name a scorer, measures, or both")
        for name in self.measures:
            if not MEASURE_NAME.fullmatch(name) or name in METRICS:
                why = "is a built-in metric" if name in METRICS else "is not a name of letters, digits and _"
                raise ValueError(f"measures: {name!r} {why}; choose another name")
        return self

    @property
    def reads_prompts(self) -> bool:
        return True

    def check_in(self, recipe: Recipe) -> None:
        if self.adherence is not None and recipe.constitution is None:
            raise ValueError("evaluation.adherence asks about principles; give constitution, or leave adherence out")

    @property
    def asks(self) -> dict[str, Source]:
        sources = {name: source for name in ("scorer", "judge", "adherence") if (source := getattr(self, name)) is not None}
        sources |= {f"measures.{name}.source": measure.source for name, measure in self.measures.items()}
        return {key: source.model for key, source in sources.items() if source.asks_model or key in ("judge", "adherence")}
