"""Settings of reward models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from charter.recipe.settings import EpochSettings, NonNegative, Positive, Rate
from charter.recipe.source import ModelName


class ScorerSettings(EpochSettings):
    """What reward models share, whatever they learn from."""

    epochs: Positive = 2
    """Passes over the pairs or ratings."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate; it falls to zero by a half cosine after the warm-up."""
    test_fraction: Rate = 0.15
    """Share of the prompts to hold out: their pairs or ratings measure the reward model."""
    ensemble: Positive = 1
    """Number of members, each an adapter and a head of its own on one trunk; more than one member needs `lora`."""
    combine: Literal["mean", "worst"] = "mean"
    """Score of an ensemble: the mean of its members' scores, or the lowest of them."""

    @model_validator(mode="after")
    def check_ensemble(self) -> ScorerSettings:
        """An ensemble is of adapters: whole copies of a model do not fit a machine. One member has nothing to combine."""
        if self.ensemble > 1 and self.lora is None:
            raise ValueError("an ensemble is one of adapters; set lora too")
        if self.ensemble == 1 and self.combine != "mean":
            raise ValueError("combine is about an ensemble, and ensemble is 1")
        return self


class RewardModelSettings(ScorerSettings):
    model: ModelName | None = None
    """Folder of the model to start from: any family, an encoder, or a reward model to continue; by default the fine-tuned
    model."""
    pairs_per_step: Positive = 32
    """Number of pairs in one optimizer step; pairs of one prompt stay together."""
    average: Literal["pairs", "rankings"] = "pairs"
    """Unit of equal weight in a step: every pair, or every ranking, whatever its number of pairs."""
    centering: NonNegative = 0.01
    """Pulls the mean score of a pair to zero (coefficient of (s_w + s_l)²)."""


class RatingModelSettings(ScorerSettings):
    """A reward model from ratings of single responses."""

    ratings_per_step: Positive = 32
    """Number of ratings in one optimizer step."""
    loss: Literal["squared", "absolute"] = "squared"
    """Distance between score and rating."""
