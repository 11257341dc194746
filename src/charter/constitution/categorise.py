"""Sort prompts by the principle they touch. The answer is read from log-probabilities: every prompt gets one."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Sequence

from charter.constitution.constitution import Constitution
from charter.models.sampler import Sampler, fill
from charter.records import Message, Prompt

CATEGORISE = importlib.resources.files("charter.constitution").joinpath("prompts/categorise.txt").read_text(encoding="utf-8")
NONE = "none of these"


def categorise(prompts: Sequence[Prompt], constitution: Constitution, sampler: Sampler) -> list[Prompt]:
    """The prompts with ``principle`` set to the likeliest topic of the constitution, None for "none of these".

    A principle that the file already gave is kept. Without topics in the constitution the prompts come back as they are.
    """
    topics = constitution.topics()
    open_places = [i for i, prompt in enumerate(prompts) if prompt.principle is None]
    if not topics or not open_places:
        return list(prompts)
    titles = [*(topic.title for topic in topics), NONE]
    questions = [
        (Message(role="user", content=fill(CATEGORISE, prompt=prompts[i].last_turn, topics=", ".join(titles))),)
        for i in open_places
    ]
    logprobs = sampler.option_logprobs(questions, [titles] * len(questions))
    found = list(prompts)
    for i, row in zip(open_places, logprobs, strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        if best < len(topics) and math.isfinite(row[best]):
            found[i] = prompts[i].model_copy(update={"principle": topics[best].id})
    return found
