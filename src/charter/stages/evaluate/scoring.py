"""Who scores the answers of a run: the recipe's scorer and its measures, and whose hand they are."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from charter.evaluation.measures import Measure, measure_of
from charter.evaluation.scorers import Scorer, judge_scorer, python_scorer, refusal_words
from charter.records import content_id
from charter.stages.models import Models

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


class Scoring:
    """The scorer and the measures of one run; a model among them is loaded when it is first used."""

    def __init__(self, recipe: Recipe, models: Models) -> None:
        self.source, self.models = recipe.scorer, models
        self.settings = recipe.evaluation.measures if recipe.evaluation is not None else {}

    @cached_property
    def scorer(self) -> Scorer | None:
        """Who says what is harmful, refused and helpful; None where the recipe has no scorer."""
        if self.source is None:
            return None
        if self.source.kind == "python":
            return python_scorer(self.source)
        if self.source.kind == "built-in":
            return refusal_words()
        return judge_scorer(self.models.judge(self.source.model))

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """The recipe's own numbers."""
        return {
            name: measure_of(name, settings, self.models.judge, self.models.device) for name, settings in self.settings.items()
        }

    @property
    def hash(self) -> str:
        """What the verdicts depend on: models, questions, the text of a function."""
        return "" if self.source is None else self.models.hash_of(self.source)

    @property
    def measures_hash(self) -> str:
        """The same of the measures."""
        return content_id({name: self.models.hash_of(settings.source) for name, settings in self.settings.items()})

    @property
    def identity(self) -> str:
        """Whose hand writes the first number of the report: the scorer's, or the first measure's."""
        sources = [self.source] if self.source is not None else [settings.source for settings in self.settings.values()]
        return self.models.identity_of(sources[0]) if sources else ""
