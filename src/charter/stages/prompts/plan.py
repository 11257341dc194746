"""Tokens and memory of the prompt stage: the model names a principle for each prompt that has none."""

from __future__ import annotations

from charter.stages.load import Counted, Load
from charter.stages.prompts.settings import PromptSettings


def load(counted: Counted, _: PromptSettings) -> Load:
    work, lengths = counted.load("prompts"), counted.lengths
    work.hold(counted.shape, 1)  # loaded for the length of its context at least
    if lengths.topics and counted.to_sort:
        work.choose(counted.shape, counted.to_sort, lengths.topic_question + lengths.topics, lengths.n_topics)
    return work
