"""Who scores the answers of a run: the recipe's scorer and its measures, and whose hand they are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charter.errors import InputError
from charter.evaluation.measures import Measure, measure_of
from charter.evaluation.scorer_card import VERDICTS, read_card
from charter.evaluation.scorers import Scorer, judge_scorer, python_scorer, refusal_words
from charter.judging.rubrics import read_rubric
from charter.recipe.source import Source, named_in
from charter.records import content_id
from charter.run.code import code_hash
from charter.stages.models import Models

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


def answers_hash(source: Source) -> str:
    """What the answers of a scorer depend on, by which its card is known: weights, label, the text of a function or a rule."""
    rule = code_hash(["charter.evaluation.refusals"]) if source.kind == "built-in" else ""
    return content_id([(source if source.kind == "rubric" else source.model).content_hash(), rule])


def check_rubrics(recipe: Recipe) -> None:
    """InputError for a rubric of the recipe that cannot be read: before the first stage."""
    for _, source in named_in(recipe):
        if isinstance(source, Source) and source.kind == "rubric":
            read_rubric(Path(source.name))


class Scoring:
    """The scorer and the measures of one run; a model among them is loaded when it is first used."""

    def __init__(self, recipe: Recipe, models: Models) -> None:
        self.source, self.models = recipe.scorer, models
        check_rubrics(recipe)
        self.settings = recipe.evaluation.measures if recipe.evaluation is not None else {}
        self.cards = self.matched([Path(file) for file in recipe.evaluation.cards] if recipe.evaluation is not None else [])

    @cached_property
    def scorer(self) -> Scorer | None:
        """Who says what is harmful, refused and helpful; None if the recipe has no scorer."""
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

    def matched(self, files: list[Path]) -> list[Mapping[str, Any]]:
        """The cards of the files, each once for every number that its scorer gives: ``of`` is `scorer` or the name of a measure.
        InputError if a card is of another scorer, or of other weights or code than the recipe names."""
        sources = {"scorer": self.source} if self.source is not None and files else {}
        sources |= {name: settings.source for name, settings in self.settings.items() if files}
        hashes = {name: answers_hash(source) for name, source in sources.items()}
        cards: list[Mapping[str, Any]] = []
        for file in files:
            card = read_card(file)
            names = [name for name, value in hashes.items() if value == card.get("hash")]
            measures = {str(row["measure"]) for row in card["measures"]}
            names = [name for name in names if measures & ({name} if name != "scorer" else set(VERDICTS))] or names
            if not names:
                raise InputError(f"the card is of {card.get('scorer')!r}, which is neither the scorer nor a measure here; "
                                 "write it again with charter scorer card", file=file, field="evaluation.cards")  # fmt: skip
            if "scorer" in names and card.get("threshold") not in (None, 0.5):
                raise InputError(f"the card was made with --threshold {card['threshold']:g}, and the scorer decides at 0.5; "
                                 "write it again without --threshold", file=file, field="evaluation.cards")  # fmt: skip
            cards += [{"of": name, **card, "scorer": str(sources[name])} for name in names]
        return cards
