"""Sort prompts by topic. The choice is read from log-probabilities, so every prompt gets one."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Sequence

from charter.constitution.constitution import Constitution
from charter.models.sampling.sampler import Sampler, fill
from charter.records import Message, Prompt

CATEGORISE = importlib.resources.files("charter.constitution").joinpath("prompts/categorise.txt").read_text(encoding="utf-8")
NONE = "none of these"


def categorise(prompts: Sequence[Prompt], constitution: Constitution, sampler: Sampler) -> list[Prompt]:
    """The prompts with ``principle`` set to the likeliest topic of the constitution, None for "none of these".

    A principle from the file is kept. Without topics in the constitution the prompts are returned unchanged.
    """
    topics = constitution.topics()
    unsorted = [i for i, prompt in enumerate(prompts) if prompt.principle is None]
    if not topics or not unsorted:
        return list(prompts)
    titles = [*(topic.title for topic in topics), NONE]
    questions = [
        (Message(role="user", content=fill(CATEGORISE, prompt=prompts[i].last_turn, topics=", ".join(titles))),) for i in unsorted
    ]
    logprobs = sampler.option_logprobs(questions, [titles] * len(questions))
    categorised = list(prompts)
    for i, row in zip(unsorted, logprobs, strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        if best < len(topics) and math.isfinite(row[best]):
            categorised[i] = prompts[i].model_copy(update={"principle": topics[best].id})
    return categorised
