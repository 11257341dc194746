"""Settings of supervised fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from charter.recipe.settings import EpochSettings, Positive
from charter.recipe.source import File

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


class SFTSettings(EpochSettings):
    data: list[File] = []
    """Files of examples to learn with the revisions, or alone with `revise: null`: prompts with answers, whole dialogues, or
    the chosen side of preference pairs, as JSONL, JSON, CSV or Parquet; hh-rlhf is read as published."""
    max_examples: Positive | None = None
    """At most this many examples of `data`, drawn at random."""
    epochs: Positive = 3
    """Passes over the data."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate; it falls to zero by a half cosine after the warm-up."""
    responses_per_step: Positive = 32
    """Number of responses in one optimizer step."""
    helpful_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.4
    """Share of the data that is the model's own answers to benign prompts; 0 risks a model that only refuses."""
    use_revisions: Literal["last", "all"] = "last"
    """Train on the last revision of each prompt or on those of all rounds."""

    def check_in(self, recipe: Recipe) -> None:
        if recipe.revise is None:
            if not self.data:
                raise ValueError("sft has nothing to learn: give sft.data, or leave it out with sft: null")
            if unread := {"helpful_fraction", "use_revisions"} & self.model_fields_set:
                raise ValueError(f"sft.{min(unread)} is about revisions, and revise is null; leave it out")
        if self.max_examples is not None and not self.data:
            raise ValueError("sft.max_examples is about sft.data; leave it out")
