"""Settings that stages share. Each stage has its own in `stages/STAGE/settings.py`; a field's docstring is its help text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from charter.records import Filters, MinP, TopK, TopP

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe
    from charter.recipe.source import Source

Positive = Annotated[int, Field(gt=0, strict=True)]  # strict: no `yes`, no 1.5, no text that happens to be digits
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def truth_is_no_number(cls, values: Any) -> Any:
        """YAML's yes and no would count as the numbers 1.0 and 0.0; as texts they are refused under the name of their key."""
        if not isinstance(values, dict):
            return values
        numbers = {name for name, field in cls.model_fields.items() if "float" in str(field.annotation)}
        return {key: str(value) if isinstance(value, bool) and key in numbers else value for key, value in values.items()}


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
        """ValueError if the stage does not fit the rest of the recipe."""

    def refuse_unread(self, unread: set[str], why: str, name: str = "") -> None:
        """ValueError if one of the settings ``unread`` was given: an option that nothing reads is a mistake."""
        if given := sorted(unread & self.model_fields_set):
            raise ValueError(f"{why}, so {name}{given[0]} would not be read; leave it out")


class SamplingSettings(StageSettings):
    """What every stage shares that samples texts which are not trained on by their own log-probabilities."""

    temperature: NonNegative = 1.0
    """Temperature of the texts; 0 takes the likeliest token."""
    max_new_tokens: Positive = 96
    """Longest text, in tokens."""
    top_p: TopP | None = None
    """Draw among the fewest likeliest tokens that make up this probability."""
    top_k: TopK | None = None
    """Draw among this many likeliest tokens."""
    min_p: MinP | None = None
    """Draw among the tokens with at least this fraction of the likeliest token's probability."""

    @property
    def filters(self) -> Filters:
        return Filters(**{name: getattr(self, name) for name in Filters.model_fields})

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Of all texts of the stage."""
        return (self.temperature,)

    @model_validator(mode="after")
    def check_that_filters_are_read(self) -> SamplingSettings:
        on = set(self.filters.model_dump(exclude_none=True))
        if not any(self.temperatures):
            self.refuse_unread(on, "temperature 0 takes the likeliest token")
        return self


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
    """Optimizer steps between checkpoints. By default Charter writes checkpoints by time: they take at most 5% of a stage, and
    the stage prints at its start the most that a kill can lose."""


class EpochSettings(TrainingSettings):
    """What every stage shares that goes through given rows, epoch by epoch."""

    max_tokens: Positive | None = None
    """Longest row, prompt and response together; a longer row loses the oldest tokens of its prompt first."""
    warmup: Share = 0.1
    """Share of the steps over which the learning rate rises."""
