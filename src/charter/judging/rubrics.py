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
from charter.constitution.importers import import_constitution, question_of
from charter.errors import InputError
from charter.judging.judge import YES_NO, response_question, yes_over_no
from charter.models.sampling.sampler import Sampler, conversation_text, fill
from charter.records import Prompt

MAX_RUBRIC = 2**28  # bytes; HealthBench has 57 MB


@dataclass(frozen=True)
class RubricQuestion:
    """A question about one response and the ``points`` of a Yes, below 0 for a fault; with ``by_no`` those of a No."""

    question: str
    points: float
    by_no: bool = False

    def value(self, margin: float) -> float:
        """Points times the probability of the answer that has them, by the log odds of Yes, nats; NaN without odds."""
        return self.points * probability(-margin if self.by_no else margin)


def probability(log_odds: float) -> float:
    """Of log odds in nats; NaN without odds."""
    return 1 / (1 + math.exp(-max(min(log_odds, 500.0), -500.0))) if math.isfinite(log_odds) else math.nan


@dataclass(frozen=True)
class Rubric:
    """Principles about every prompt to which they apply, and those about single prompts, by the prompt's id."""

    everywhere: tuple[Principle, ...]
    by_prompt: Mapping[str, tuple[Principle, ...]]

    def questions(self, prompt: Prompt) -> list[RubricQuestion]:
        """All that is asked about a response to the prompt, once where the prompt repeats a criterion of all prompts."""
        everywhere = [question for p in self.everywhere if p.is_about(prompt) for question in questions_of(p)]
        more = [question for p in self.by_prompt.get(prompt.id, ()) for question in questions_of(p)]
        return [*everywhere, *(question for question in more if question not in everywhere)]

    @property
    def mean_questions(self) -> float:
        """Questions about one response, as a mean over prompts."""
        everywhere = sum(len(questions_of(principle)) for principle in self.everywhere)
        return everywhere + sum(map(len, self.by_prompt.values())) / max(len(self.by_prompt), 1)


def questions_of(principle: Principle) -> list[RubricQuestion]:
    """The criteria of a principle, their points times its weight. Without criteria its question: with points those of a Yes,
    otherwise the weight for the good answer; without a question whether its preference text would choose the response."""
    if principle.criteria:
        return [RubricQuestion(question_of(c.criterion), c.points * principle.weight) for c in principle.criteria]
    if principle.question is not None and principle.points is not None:
        return [RubricQuestion(principle.question, principle.points)]
    by_no = principle.question is not None and principle.good_answer == "no"
    return [RubricQuestion(response_question(principle), principle.weight, by_no)]


def best_total(questions: Sequence[RubricQuestion]) -> float:
    """The points of a response without a fault."""
    return sum(question.points for question in questions if question.points > 0)


def read_rubric(path: Path) -> Rubric:
    """The rubric of a file: YAML is a constitution; JSON or JSON lines are criteria, those beside a prompt about this prompt
    alone. InputError if a principle can be asked nothing, or nothing gives positive points."""
    if path.suffix.lower() in (".yaml", ".yml"):
        rubric = Rubric(load_constitution(path).principles, {})
    else:
        rubric = _of_prompts(path)
    for principle in rubric.everywhere:
        if not principle.criteria and principle.question is None and principle.preference is None:
            raise InputError("has neither criteria nor a question nor a preference to ask about a reply; add one", file=path,
                             field=principle.id)  # fmt: skip
    for more in rubric.by_prompt.values() or [()]:
        if not best_total([question for p in (*rubric.everywhere, *more) for question in questions_of(p)]):
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
    """The score of each response; None if no criterion with positive points is about its prompt, or an answer could not be
    read."""
    cases = [(prompt, text, rubric.questions(prompt)) for prompt, text in zip(prompts, texts, strict=True)]
    best = [best_total(questions) for _, _, questions in cases]
    scores = [total / most if most else math.nan for total, most in zip(totals(sampler, cases), best, strict=True)]
    return [score if math.isfinite(score) else None for score in scores]


def totals(sampler: Sampler, cases: Sequence[tuple[Prompt, str, Sequence[RubricQuestion]]]) -> list[float]:
    """Σ points · P of each case: a response to a prompt and what is asked about it. NaN if an answer could not be read."""
    filled = [
        fill(YES_NO, conversation=conversation_text(prompt.messages), response=text, question=question.question)
        for prompt, text, questions in cases
        for question in questions
    ]
    margins = iter(yes_over_no(sampler, filled))
    return [sum(question.value(next(margins)) for question in questions) for _, _, questions in cases]
