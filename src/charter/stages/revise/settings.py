"""Settings of critique and revision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from charter.recipe.settings import NonNegative, Positive, SamplingSettings
from charter.recipe.source import Answerer, File, Source

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


class ReviseSettings(SamplingSettings):
    generator: Answerer = Source("run", "base")
    """Model that writes the first answers and the helpful answers: `base`, the folder of another model, or `endpoint:NAME`."""
    critic: Answerer = Source("run", "base")
    """Model that criticises and revises: `base`, the folder of another model, or `endpoint:NAME`."""
    rounds: Positive = 2
    """Rounds of critique and revision; each round draws a principle."""
    context: str | None = None
    """Instead of critique and revision, the model answers the prompt once more with these words before its last turn, and
    learns the answer without the words (context distillation, Askell et al. 2021)."""
    prompts: Positive = 400
    """Number of red-team prompts whose answers are revised."""
    temperature: NonNegative = 1.0
    """Temperature of the first answers and the critiques."""
    revision_temperature: NonNegative = 0.7
    """Temperature of the revisions."""
    few_shots: File | None = None
    """YAML of worked examples put before the conversation."""

    @property
    def temperatures(self) -> tuple[float, ...]:
        return (self.temperature,) if self.context is not None else (self.temperature, self.revision_temperature)

    @property
    def reads_prompts(self) -> bool:
        return True

    @property
    def reads_principles(self) -> bool:
        return self.context is None

    @property
    def asks(self) -> dict[str, Source]:
        return {"generator": self.generator} | ({"critic": self.critic} if self.context is None else {})

    def check_in(self, recipe: Recipe) -> None:
        if self.context is not None:
            unread = {"rounds", "critic", "few_shots", "revision_temperature"}
            self.refuse_unread(unread, "revise.context asks for no critique", "revise.")
        if recipe.scorer is None:
            raise ValueError("revise measures whether revisions are safer; name evaluation.scorer")
