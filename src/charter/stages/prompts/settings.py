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
    """The same, every prompt of which is tagged `red_team`: an answer may do harm."""
    benign: list[File] = []
    """The same, every prompt of which is tagged `benign`: to be answered and not refused."""
    tags: list[str] = []
    """Tags of your own, and `red_team` or `benign`, for every prompt of `files`."""
    first_words: Positive | None = None
    """Keep so many words of the last turn: beginnings of texts, for a model to continue."""
    labelled: File | None = None
    """Prompts whose `principle` a person gave, or none: the way of sorting is chosen on half of them and measured on the rest."""
    test_fraction: Rate = 0.2
    """Share held out, where the file does not say itself."""
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
