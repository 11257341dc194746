"""Rubrics: criteria with points, each asked about a single response and answered with Yes or No.

The score of a response is Σ points · P(Yes) over the sum of the positive points (HealthBench, Arora et al. 2025): 1 at most,
below 0 where faults outweigh merits. A file is the rows that HealthBench publishes, or a constitution. A verdict that could not
be read is an abstention of the whole response, never a 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from charter.constitution.constitution import Principle, load_constitution
from charter.constitution.importers import import_constitution
from charter.errors import InputError
from charter.judging.judge import YES_NO, response_question, yes_over_no
from charter.models.sampling.sampler import Sampler, conversation_text, fill
from charter.records import Prompt

MAX_RUBRIC = 2**28  # bytes; HealthBench has 57 MB


@dataclass(frozen=True)
class Criterion:
    """A question about one response and the ``points`` of a Yes, below 0 for a fault; with ``by_no`` those of a No."""

    question: str
    points: float
    by_no: bool = False

    def value(self, margin: float) -> float:
        """Points times the probability of the answer that has them, by the log odds of Yes, nats; NaN without odds."""
        odds = -margin if self.by_no else margin
        return self.points / (1 + math.exp(-max(min(odds, 500.0), -500.0))) if math.isfinite(odds) else math.nan


@dataclass(frozen=True)
class Rubric:
    """Principles about every prompt to which they apply, and those about single prompts, by the prompt's id."""

    everywhere: tuple[Principle, ...]
    by_prompt: Mapping[str, tuple[Principle, ...]]

    def criteria(self, prompt: Prompt) -> list[Criterion]:
        """All that is asked about a response to the prompt."""
        principles = (*(p for p in self.everywhere if p.is_about(prompt)), *self.by_prompt.get(prompt.id, ()))
        return [criterion_of(principle) for principle in principles]

    @property
    def questions(self) -> float:
        """Questions about one response, as a mean over prompts."""
        return len(self.everywhere) + sum(map(len, self.by_prompt.values())) / max(len(self.by_prompt), 1)


def criterion_of(principle: Principle) -> Criterion:
    """With points, those of a Yes; without, the weight is that of the good answer. A principle without a question is asked
    whether its preference text would choose the response."""
    if principle.question is not None and principle.points is not None:
        return Criterion(principle.question, principle.points)
    by_no = principle.question is not None and principle.good_answer == "no"
    return Criterion(response_question(principle), principle.weight, by_no)


def best_score(criteria: Sequence[Criterion]) -> float:
    """The points of a response without a fault."""
    return sum(criterion.points for criterion in criteria if criterion.points > 0)


def read_rubric(path: Path) -> Rubric:
    """The rubric of a file: YAML is a constitution; JSON or JSON lines are criteria, those beside a prompt about this prompt
    alone. InputError where a principle can be asked nothing, or nothing gives positive points."""
    if path.suffix.lower() in (".yaml", ".yml"):
        rubric = Rubric(load_constitution(path).principles, {})
    else:
        rubric = _of_prompts(path)
    for principle in rubric.everywhere:
        if principle.question is None and principle.preference is None:
            raise InputError("has neither a question nor a preference to ask about a reply; add one", file=path,
                             field=principle.id)  # fmt: skip
    everywhere = [criterion_of(p) for p in rubric.everywhere]
    for criteria in [[*everywhere, *map(criterion_of, more)] for more in rubric.by_prompt.values()] or [everywhere]:
        if not best_score(criteria):
            about = "" if not rubric.by_prompt else " of one prompt"
            raise InputError(f"the criteria{about} have no positive points, by whose sum a score is divided; add one", file=path)
    return rubric


def _of_prompts(path: Path) -> Rubric:
    imported = import_constitution(path, max_bytes=MAX_RUBRIC)
    if imported.kind != "rubrics":
        raise InputError(f"it is a file of {imported.kind}, not of criteria with points; make it a constitution with charter "
                         "constitution import, and name that", file=path)  # fmt: skip
    everywhere: list[Principle] = []
    by_prompt: dict[str, list[Principle]] = {}
    for principle in imported.constitution.principles:
        if not principle.examples:
            everywhere.append(principle)
        for example in principle.examples:
            by_prompt.setdefault(Prompt(messages=example.prompt).id, []).append(principle)
    return Rubric(tuple(everywhere), {name: tuple(principles) for name, principles in by_prompt.items()})


def rubric_scores(sampler: Sampler, rubric: Rubric, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
    """The score of each response; None where no criterion with positive points is about its prompt, or an answer could not be
    read."""
    criteria_of = [rubric.criteria(prompt) for prompt in prompts]
    questions = [
        fill(YES_NO, conversation=conversation_text(prompt.messages), response=text, question=criterion.question)
        for prompt, text, criteria in zip(prompts, texts, criteria_of, strict=True)
        for criterion in criteria
    ]
    margins = iter(yes_over_no(sampler, questions))
    return [_score(criteria, [next(margins) for _ in criteria]) for criteria in criteria_of]


def _score(criteria: Sequence[Criterion], margins: Sequence[float]) -> float | None:
    best = best_score(criteria)
    if not best:
        return None
    score = sum(criterion.value(margin) for criterion, margin in zip(criteria, margins, strict=True)) / best
    return score if math.isfinite(score) else None
