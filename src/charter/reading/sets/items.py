"""A test set as Charter asks it: its items, how they are asked, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from charter.reading.sets.prompts import BENIGN, RED_TEAM
from charter.records import Filters, Prompt

Protocol = Literal["answers", "options", "rewards"]
"""How a set is asked: the model writes an answer, weighs options by their log-probabilities, or scores given answers."""


@dataclass(frozen=True)
class Item:
    """One question. ``options``: the answers that are weighed or scored; ``facts``: what the set says of them; ``cluster``: items
    with one label are not independent; ``group``: the set's own class, by which figures are shown too."""

    id: str
    prompt: Prompt
    options: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    cluster: str | None = None
    group: str | None = None

    @property
    def is_judged(self) -> bool:
        """Whether a scorer says if the prompt was refused or answered: it has one of the two kinds."""
        return bool({RED_TEAM, BENIGN} & set(self.prompt.tags))


@dataclass(frozen=True)
class Sampling:
    """How the answers of a set are drawn: temperature, tokens of the longest, answers to each prompt, filters."""

    temperature: float = 0.0
    max_new_tokens: int = 256
    samples: int = 1
    filters: Filters = field(default_factory=Filters)


@dataclass(frozen=True)
class TestSet:
    """A file of a public set, or of prompts. ``kind``: which set; ``name``: in metrics and files, the kind unless two files are
    of one kind. ``items`` by the way in which they are asked; ``sha256`` of the file; ``left_out``:
    rows by the reason, for each way."""

    __test__ = False

    kind: str
    name: str
    title: str
    file: str
    sha256: str
    items: Mapping[Protocol, Sequence[Item]]
    n_rows: int
    left_out: Mapping[Protocol, Mapping[str, int]]
    sampling: Sampling = Sampling()
