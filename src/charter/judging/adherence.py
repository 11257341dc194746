"""Does an answer follow its principle? A judge is asked about single answers, where each stands in its conversation.

The probability is that of the good answer to the principle's question; of a principle with criteria the points that the answer
gets over all that it could get, from 0 to 1. What is asked is as in :mod:`charter.judging.rubrics`, in the form of the protocol
``dialogue``. From the log odds of a Yes those of the same question about a content-free answer are taken away, so that a judge
that likes to say Yes does not (contextual calibration, Zhao et al. 2021, arXiv:2102.09690).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from charter.constitution.constitution import Constitution, Principle
from charter.judging.rubrics import questions_of
from charter.models.sampling.sampler import Sampler
from charter.records import Message, Prompt, content_id

CONTENT_FREE = "N/A"  # as prompt and as answer


def askable(constitution: Constitution) -> dict[str, Principle]:
    """By id, the principles about which a judge can be asked: those with criteria, a question or a preference text."""
    return {p.id: p for p in constitution.principles if p.criteria or p.question or p.preference}


def adherence_hash(principles: Mapping[str, Principle]) -> str:
    """Of all that the judge is asked beside the answers."""
    return content_id({name: [p.tags, *(vars(question) for question in questions_of(p))] for name, p in principles.items()})


def principle_of(prompt: Prompt, principles: Mapping[str, Principle]) -> Principle | None:
    """The principle under which a prompt is sorted, if it applies to prompts of this kind."""
    principle = principles.get(prompt.principle or "")
    return principle if principle is not None and principle.applies_to(prompt.tags) else None


def adherence(
    sampler: Sampler, principles: Mapping[str, Principle], prompts: Sequence[Prompt], texts: Sequence[str]
) -> dict[int, float | None]:
    """By row, of the prompts that have a principle: the probability that the answer follows it, None if an answer of the judge
    could not be read."""
    of_row = {i: principle_of(prompt, principles) for i, prompt in enumerate(prompts)}
    asked = {i: questions_of(principle) for i, principle in of_row.items() if principle is not None}
    different = list(dict.fromkeys(question.question for group in asked.values() for question in group))
    cases = [(Prompt.ask(CONTENT_FREE), CONTENT_FREE, question) for question in different]
    cases += [(prompts[i], texts[i], question.question) for i, group in asked.items() for question in group]
    dialogues = [
        (*prompt.messages, Message(role="assistant", content=text), Message(role="user", content=question))
        for prompt, text, question in cases
    ]
    read = sampler.option_logprobs(dialogues, [("Yes", "No")] * len(cases)) if cases else []
    margins = [yes - no for yes, no in read]
    prior, of_answers = dict(zip(different, margins, strict=False)), iter(margins[len(different) :])
    followed = {
        i: sum(q.value(next(of_answers) - prior[q.question]) - min(q.points, 0.0) for q in group)
        / sum(abs(q.points) for q in group)
        for i, group in asked.items()
    }
    return {i: value if math.isfinite(value) else None for i, value in followed.items()}
