"""Settings that stages share. Each stage has its own in `stages/STAGE/settings.py`; a field's docstring is its help text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe
    from charter.recipe.source import Source

Positive = Annotated[int, Field(gt=0, strict=True)]  # strict: no `yes`, no 1.5, no text that happens to be digits
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class StageSettings(Settings):
    """What a recipe as a whole asks of the settings of a stage."""

    @property
    def reads_prompts(self) -> bool:
        """Whether the stage reads the recipe's prompts."""
        return False

    @property
    def reads_principles(self) -> bool:
        """Whether the stage reads the constitution."""
        return False

    @property
    def asks(self) -> dict[str, Source]:
        """The models that only answer, by the key that names them."""
        return {}

    def check_in(self, recipe: Recipe) -> None:
        """ValueError where the stage does not fit the rest of the recipe."""

    def refuse_unread(self, unread: set[str], why: str, name: str = "") -> None:
        """ValueError where one of the settings ``unread`` was given: an option that nothing reads is a mistake."""
        if given := sorted(unread & self.model_fields_set):
            raise ValueError(f"{why}, so {name}{given[0]} would not be read; leave it out")


class LoRASettings(Settings):
    rank: Positive = 16
    """Rank of the adapters on every linear layer."""
    alpha: Positive = 32
    """Scale: the update is multiplied by alpha / rank."""


class TrainingSettings(StageSettings):
    """What every stage that trains shares."""

    lora: LoRASettings | None = None
    """Train adapters on the frozen base instead of all weights."""
    tokens_per_micro_batch: Positive = 8192
    """Tokens, padding included, that go through the model at once; memory, not learning, depends on it."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    checkpoint_every: Positive | None = None
    """Optimizer steps between checkpoints. Unless given Charter goes by time: checkpoints take at most 5% of a stage's, and the
    most that a kill can lose is printed at its start."""
