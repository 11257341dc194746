"""AI feedback: a judge whose choice is read from log-probabilities. Two protocols; the others: :mod:`charter.judging.protocols`.

``letters``: both responses are shown, in both orders. ``first_as_a`` is log P(A) - log P(B) with the first response under A,
``first_as_b`` is log P(B) - log P(A) with the first response under B. The margin is (first_as_a + first_as_b) / 2: a preference
for a letter or a position adds a constant to one and takes it from the other, so it cancels exactly. Averaging probabilities
instead would leave it in.

``yes_no``: each response is shown alone, and the margin is the difference of the two answers. There are no letters and no
positions, so a model too small to compare can still judge.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from charter.constitution.constitution import Constitution, Principle, draw
from charter.models.sampling.sampler import Sampler, conversation_text, fill
from charter.records import Generation, Judgment, Message, Pair, Prompt, Response, content_id
from charter.run.hashes import derive_seed


def prompt_file(name: str) -> str:
    """The text of prompts/NAME.txt."""
    return importlib.resources.files("charter.judging").joinpath(f"prompts/{name}.txt").read_text(encoding="utf-8")


COMPARE, YES_NO = prompt_file("compare"), prompt_file("yes_no")
QUESTIONS = {name: prompt_file(name) for name in ("harmful", "helpful", "honest")}
"""The yes-or-no questions about one response: a name here and its text in prompts/NAME.txt."""
LETTERS = ("A", "B")


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt, to be compared under one principle, which has a preference text."""

    prompt: Prompt
    first: Response
    second: Response
    principle: Principle

    @property
    def instruction(self) -> str:
        """What the principle asks of a comparison."""
        assert self.principle.preference is not None
        return self.principle.preference

    @property
    def asks_for_no(self) -> bool:
        """Whether No is the good answer to the question about one response."""
        return self.principle.question is not None and self.principle.good_answer == "no"

    def swap(self) -> Comparison:
        return Comparison(self.prompt, self.second, self.first, self.principle)


@dataclass(frozen=True)
class Preference:
    """The judge's answer: log odds, in nats, of the first response in each order; ``margin`` is None if there is no verdict."""

    first_as_a: float
    first_as_b: float

    @property
    def margin(self) -> float | None:
        margin = (self.first_as_a + self.first_as_b) / 2
        return margin if math.isfinite(margin) else None

    @property
    def position_bias(self) -> float:
        """Nats in favour of the response under A, whichever it is."""
        return (self.first_as_a - self.first_as_b) / 2


Judge = Callable[[Sequence[Comparison]], list[Preference]]
"""Anything that compares: the judge below, or a planted judge that knows the answer."""


def ask(comparison: Comparison, template: str = COMPARE) -> tuple[Message, ...]:
    """The question to the judge, the principle before the options."""
    text = fill(
        template,
        principle=comparison.instruction,
        conversation=conversation_text(comparison.prompt.messages),
        first=comparison.first.text,
        second=comparison.second.text,
    )
    return (Message(role="user", content=text),)


class LanguageModelJudge:
    """A model that is read by a ``protocol``, and its name. ``template``: what it is told beside the texts, for the hash of its
    instructions."""

    protocol: ClassVar[str]
    template: ClassVar[str]

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.name = sampler.name

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        """The margin of each comparison, nats."""
        raise NotImplementedError


class LettersJudge(LanguageModelJudge):
    """A language model that compares two responses: A or B?"""

    protocol, template = "letters", COMPARE

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        both_orders = [ask(shown) for comparison in comparisons for shown in (comparison, comparison.swap())]
        logprobs = self.sampler.option_logprobs(both_orders, [LETTERS] * len(both_orders))
        first_as_a = [row[0] - row[1] for row in logprobs[0::2]]
        first_as_b = [row[1] - row[0] for row in logprobs[1::2]]
        return [Preference(a, b) for a, b in zip(first_as_a, first_as_b, strict=True)]


class YesNoJudge(LanguageModelJudge):
    """A language model that reads each response alone and answers the principle's question about it, or, where the principle has
    none, whether it would choose the response by its preference text."""

    protocol, template = "yes_no", YES_NO

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        sides = [(comparison, response) for comparison in comparisons for response in (comparison.first, comparison.second)]
        margins = yes_over_no(self.sampler, [ask_about(comparison, response) for comparison, response in sides])
        signs = [-1 if c.asks_for_no else 1 for c in comparisons]
        differences = [sign * (a - b) for sign, a, b in zip(signs, margins[0::2], margins[1::2], strict=True)]
        return [Preference(margin, margin) for margin in differences]


def ask_about(comparison: Comparison, response: Response) -> str:
    """The question about one of the responses, with the conversation before it."""
    conversation = conversation_text(comparison.prompt.messages)
    return fill(YES_NO, conversation=conversation, response=response.text, question=question_about(comparison))


def question_about(comparison: Comparison) -> str:
    """What is asked about one response: the principle's question, or one made of its preference text."""
    return response_question(comparison.principle)


def response_question(principle: Principle) -> str:
    """The question of a principle about one response; of one without a question a Yes is good."""
    return principle.question or f"{principle.preference} Would you choose the assistant's last reply?"


def yes_over_no(sampler: Sampler, questions: Sequence[str]) -> list[float]:
    """log P(Yes) - log P(No), nats, of each question; NaN if the answer could not be read."""
    dialogues = [(Message(role="user", content=question),) for question in questions]
    return [yes - no for yes, no in sampler.option_logprobs(dialogues, [("Yes", "No")] * len(dialogues))]


def yes_no_margins(sampler: Sampler, question: str, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """log P(Yes) - log P(No), nats, of one of ``QUESTIONS`` about each single response."""
    filled = [
        fill(QUESTIONS[question], conversation=conversation_text(prompt.messages), response=text)
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    return yes_over_no(sampler, filled)


def comparisons_of(
    prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], constitution: Constitution, seed: int
) -> list[Comparison]:
    """Every pair of the K responses to each prompt, each under a principle drawn for it."""
    return [
        Comparison(prompt, first, second, draw(principles, seed, "compare", prompt.id, i, j))
        for prompt, first, second, principles, (i, j) in two_by_two(prompts, responses, constitution)
    ]


def two_by_two(
    prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], constitution: Constitution
) -> Iterator[tuple[Prompt, Response, Response, tuple[Principle, ...], tuple[int, int]]]:
    """Every pair of the K responses to each prompt to which a principle applies, with all that apply and the numbers of the
    two."""
    for prompt, group in zip(prompts, responses, strict=True):
        if principles := constitution.for_comparison(prompt):
            for (i, first), (j, second) in combinations(enumerate(group), 2):
                yield prompt, first, second, principles, (i, j)


def instructions_hash(comparison: Comparison, template: str) -> str:
    """Of all that the judge is told beside the conversation and the responses."""
    principle = comparison.principle
    question = [] if template == COMPARE else [principle.question, principle.good_answer]
    criteria = [criterion.model_dump() for criterion in principle.criteria] if template != COMPARE else []
    return content_id(comparison.instruction, template, *question, *([criteria] if criteria else []))


def earlier_judgment(judgments: Iterable[Judgment], template: str) -> Callable[[Comparison], list[Judgment] | None]:
    """Finds, among judgments of the same judge under the same settings, the one of a comparison, as a list; None where the
    responses, their order, the principle or its text differ."""
    by_key = {(row.order, row.principle, row.instructions_hash): row for row in judgments}

    def find(comparison: Comparison) -> list[Judgment] | None:
        order = (comparison.first.id, comparison.second.id)
        row = by_key.get((order, comparison.principle.id, instructions_hash(comparison, template)))
        return None if row is None else [row]

    return find


def judgment(
    comparison: Comparison, preference: Preference, *, rater_id: str, abstain_below: float, template: str = COMPARE
) -> Judgment:
    """The stored label; ``template`` is the question that was asked. Equal texts, a margin of 0 and margins below
    ``abstain_below`` (nats) are ties; a missing margin gives no verdict."""
    first, second = comparison.first.id, comparison.second.id
    key = content_id(comparison.prompt.id, first, second, comparison.principle.id, rater_id)
    margin = preference.margin
    ranks: dict[str, int | str]
    if margin is None:
        ranks = {}
    elif margin == 0 or abs(margin) < abstain_below or comparison.first.text == comparison.second.text:
        ranks = {first: 1, second: 1}
    else:
        ranks = {first: 1 if margin > 0 else 2, second: 2 if margin > 0 else 1}
    return Judgment(
        id=key,
        set_id=comparison.prompt.id,
        prompt_id=comparison.prompt.id,
        rater_id=rater_id,
        rater_kind="judge",
        order=(first, second),
        instructions_hash=instructions_hash(comparison, template),
        principle=comparison.principle.id,
        ranks=ranks,  # type: ignore[arg-type]
        margin=margin,
        margins_by_order=None if margin is None else (preference.first_as_a, preference.first_as_b),
    )


def pairs_of(
    judgments: Iterable[Judgment], prompts: dict[str, Prompt], responses: dict[str, Response], *, calibration: float = 1.0
) -> list[Pair]:
    """Training pairs of the judgments that prefer: chosen first, soft label σ(|margin| / calibration)."""
    pairs = []
    for label in judgments:
        first, second = label.order
        if not label.has_verdict or label.ranks[first] == label.ranks[second] or label.margin is None:
            continue
        chosen, rejected = (first, second) if label.margin > 0 else (second, first)
        pairs.append(
            Pair(
                prompt=prompts[label.prompt_id],
                chosen=responses[chosen].text,
                rejected=responses[rejected].text,
                weight=1 / (1 + math.exp(-abs(label.margin) / calibration)),
                group_id=label.set_id,
                principle=label.principle,
            )
        )
    return pairs


def labelled_comparisons(pairs: Sequence[Pair], constitution: Constitution, seed: int) -> list[Comparison]:
    """Pairs with known answers as comparisons, the better response first for half of them by the draw of a coin. A pair without
    a principle of the constitution gets one that is drawn as in ``comparisons_of``; a pair to which none applies is left out, and
    so is a tie, which has no better response.
    The answer is not in the comparison."""
    by_id = {principle.id: principle for principle in constitution.principles if principle.preference is not None}
    comparisons = []
    for number, pair in enumerate(pairs):
        principles = [by_id[pair.principle]] if pair.principle in by_id else constitution.for_comparison(pair.prompt)
        if not principles or pair.weight == 0.5:
            continue
        chosen, rejected = (
            Response(prompt_id=pair.prompt.id, model=side, text=text, finish_reason="stop",
                     generation=Generation(seed=number, temperature=0.0))
            for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
        )  # fmt: skip
        first, second = (chosen, rejected) if coin(seed, number) else (rejected, chosen)
        comparisons.append(Comparison(pair.prompt, first, second, draw(principles, seed, "gate", number)))
    return comparisons


def correctness(comparison: Comparison, preference: Preference) -> float | None:
    """1 where the judge prefers the chosen response, 0 where it prefers the other, 0.5 where neither; None without a verdict."""
    if preference.margin is None:
        return None
    margin = preference.margin if comparison.first.model == "chosen" else -preference.margin
    return 0.5 if margin == 0 else float(margin > 0)


def coin(seed: int, number: int) -> bool:
    return derive_seed(seed, "coin", number) % 2 == 0
