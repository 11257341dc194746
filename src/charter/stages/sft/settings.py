"""Settings of supervised fine-tuning."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from charter.recipe.settings import LoRASettings, NonNegative, Positive, Rate, Settings, Share, StageSettings, TrainingSettings
from charter.recipe.source import Answerer, File, MeasureSource, ModelName, NewFolder, Responder, RewardSource, ScorerSource, Source

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


class SFTSettings(TrainingSettings):
    data: list[str] = []
    """Files of examples to learn beside the revisions, or alone where `revise: null`: prompts with answers, whole
    dialogues, or the chosen side of preference pairs, as JSONL, JSON, CSV or Parquet; hh-rlhf as it is."""
    max_examples: Positive | None = None
    """At most this many examples of `data`, by a draw."""
    max_tokens: Positive | None = None
    """Longest row, prompt and response; of a longer one the oldest tokens of the prompt are left out."""
    epochs: Positive = 3
    """Passes over the data."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Peak; falls to zero by a half cosine after the warm-up."""
    warmup: Share = 0.1
    """Share of the steps over which the learning rate rises."""
    responses_per_step: Positive = 32
    """Responses behind one optimizer step."""
    helpful_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.4
    """Share of the data that is the model's own answers to benign prompts; 0 risks a model that only refuses."""
    use_revisions: Literal["last", "all"] = "last"
    """Train on the last revision of each prompt or on those of all rounds."""
