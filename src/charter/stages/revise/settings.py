"""Settings of critique and revision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from charter.recipe.settings import LoRASettings, NonNegative, Positive, Rate, Settings, Share, StageSettings, TrainingSettings
from charter.recipe.source import Answerer, File, MeasureSource, ModelName, NewFolder, Responder, RewardSource, ScorerSource, Source

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


class ReviseSettings(Settings):
    generator: str = "base"
    """Who gives the first answers and the helpful ones: `base`, the folder of another model, or `endpoint:NAME`."""
    critic: str = "base"
    """Who criticises and revises: `base`, the folder of another model, or `endpoint:NAME`."""
    rounds: Positive = 2
    """Critique and revision, this many times, a principle drawn for each."""
    context: str | None = None
    """Instead of critique and revision: the prompt is answered once more with these words before its last turn, and the answer is
    learned without them (context distillation, Askell et al. 2021)."""
    prompts: Positive = 400
    """Red-team prompts whose answers are revised."""
    temperature: NonNegative = 1.0
    """Of the first answers and the critiques."""
    revision_temperature: NonNegative = 0.7
    """Of the revisions."""
    max_new_tokens: Positive = 96
    """Longest answer, critique or revision, in tokens."""
    few_shots: str | None = None
    """YAML of worked examples put before the conversation."""
