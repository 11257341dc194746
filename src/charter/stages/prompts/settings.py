"""Settings of the prompt stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import model_validator

from charter.recipe.settings import Positive, Rate, Settings
from charter.recipe.source import File

if TYPE_CHECKING:
    pass


class PromptSettings(Settings):
    files: list[File] = []
    """Prompt files: JSONL, JSON, CSV, text, parquet or hh-rlhf transcripts, plain or gzipped."""
    red_team: list[File] = []
    """Prompt files; every prompt gets the tag `red_team`: an answer may do harm."""
    benign: list[File] = []
    """Prompt files; every prompt gets the tag `benign`: a good answer does not refuse."""
    tags: list[str] = []
    """Tags of your own, and `red_team` or `benign`, for every prompt of `files`."""
    first_words: Positive | None = None
    """Keep only this many words of the last turn: beginnings of texts, for a model to continue."""
    labelled: File | None = None
    """Prompts whose `principle` a person gave (null: none of the topics). Charter chooses the way of sorting on half of them
    and measures it on the other half."""
    test_fraction: Rate = 0.2
    """Share of the prompts to hold out, where the file gives no `split`."""
    train: Positive | None = None
    """At most this many training prompts of each kind, stratified by principle."""
    test: Positive | None = None
    """At most this many held-out prompts of each kind, stratified by principle."""

    @model_validator(mode="after")
    def check_that_there_are_prompts(self) -> PromptSettings:
        if not self.sources:
            raise ValueError("prompts.files, red_team and benign are all empty; name a file")
        if self.tags and not self.files:
            raise ValueError("tags applies to files; name files or leave out tags")
        return self

    @property
    def sources(self) -> list[tuple[File, list[str]]]:
        """(file, tags that its prompts get), in reading order."""
        given = [(file, self.tags) for file in self.files]
        own = ((self.red_team, ["red_team"]), (self.benign, ["benign"]))
        return given + [(file, tags) for files, tags in own for file in files]
