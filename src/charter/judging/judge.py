"""AI feedback: a judge whose choice is read from log-probabilities, in both orders.

With s1 = log P(A) - log P(B) when the first response stands under A, and s2 the same when it stands under B, the margin is
(s1 - s2) / 2: a preference for a letter or a position adds the same constant to both and cancels exactly. Averaging
probabilities instead would leave it in.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from charter.constitution.constitution import Constitution, draw
from charter.models.sampler import Sampler, conversation_text, fill
from charter.records import Generation, Judgment, Message, Pair, Prompt, Response, content_id
from charter.run.hashes import derive_seed


def _template(name: str) -> str:
    return importlib.resources.files("charter.judging").joinpath(f"prompts/{name}.txt").read_text(encoding="utf-8")


COMPARE = _template("compare")
QUESTIONS = {"harmful": _template("harmful"), "helpful": _template("helpful")}
LETTERS = ("A", "B")


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt, to be compared under one principle."""

    prompt: Prompt
    first: Response
    second: Response
    principle: str
    instruction: str

    def swap(self) -> Comparison:
        return Comparison(self.prompt, self.second, self.first, self.principle, self.instruction)


@dataclass(frozen=True)
class Preference:
    """What the judge said: logits in nats for the first response, in each order; ``margin`` None where it has no verdict."""

    first_as_a: float
    first_as_b: float

    @property
    def margin(self) -> float | None:
        margin = (self.first_as_a + self.first_as_b) / 2
        return margin if math.isfinite(margin) else None

    @property
    def position_bias(self) -> float:
        """Nats in favour of whatever stands under A."""
        return (self.first_as_a - self.first_as_b) / 2


Judge = Callable[[Sequence[Comparison]], list[Preference]]
"""Anything that prefers: the judge below, or a planted one that knows the answer."""


def ask(comparison: Comparison) -> tuple[Message, ...]:
    """The question put to the judge, the principle before the options."""
    text = fill(
        COMPARE,
        principle=comparison.instruction,
        conversation=conversation_text(comparison.prompt.messages),
        first=comparison.first.text,
        second=comparison.second.text,
    )
    return (Message(role="user", content=text),)


class LogProbJudge:
    """A language model as judge."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.name = sampler.name

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        both = [ask(one) for pair in ((c, c.swap()) for c in comparisons) for one in pair]
        logprobs = self.sampler.option_logprobs(both, [LETTERS] * len(both))
        as_a = [row[0] - row[1] for row in logprobs[0::2]]
        as_b = [row[1] - row[0] for row in logprobs[1::2]]
        return [Preference(a, b) for a, b in zip(as_a, as_b, strict=True)]


def yes_no_margins(
    sampler: Sampler, question: Literal["harmful", "helpful"], prompts: Sequence[Prompt], texts: Sequence[str]
) -> list[float]:
    """log P(Yes) - log P(No), nats, of the question about each single response."""
    asked = [
        fill(QUESTIONS[question], conversation=conversation_text(prompt.messages), response=text)
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    dialogues = [(Message(role="user", content=text),) for text in asked]
    return [yes - no for yes, no in sampler.option_logprobs(dialogues, [("Yes", "No")] * len(dialogues))]


def comparisons_of(
    prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], constitution: Constitution, seed: int
) -> list[Comparison]:
    """Every pair of the K responses to each prompt, each under a principle drawn for it."""
    found = []
    for prompt, group in zip(prompts, responses, strict=True):
        principles = [p for p in constitution.for_comparison(prompt) if p.preference is not None]
        if not principles:
            continue
        for (i, first), (j, second) in combinations(enumerate(group), 2):
            principle = draw(principles, seed, "compare", prompt.id, i, j)
            assert principle.preference is not None
            found.append(Comparison(prompt, first, second, principle.id, principle.preference))
    return found


def judgment(comparison: Comparison, preference: Preference, *, rater_id: str, abstain_below: float) -> Judgment:
    """The stored label. Equal texts and margins inside the noise are ties; a verdict that is no number is no verdict."""
    first, second = comparison.first.id, comparison.second.id
    key = content_id(comparison.prompt.id, first, second, comparison.principle, rater_id)
    margin = preference.margin
    ranks: dict[str, int | str]
    if margin is None:
        ranks = {}
    elif abs(margin) < abstain_below or comparison.first.text == comparison.second.text:
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
        instructions_hash=content_id(comparison.instruction, COMPARE),
        principle=comparison.principle,
        ranks=ranks,  # type: ignore[arg-type]
        margin=margin,
        margins_by_order=None if margin is None else (preference.first_as_a, preference.first_as_b),
    )


def pairs_of(
    judgments: Iterable[Judgment],
    prompts: dict[str, Prompt],
    responses: dict[str, Response],
    *,
    calibration: float = 1.0,
) -> list[Pair]:
    """Training pairs of the judgments that prefer: chosen first, soft label σ(|margin| / calibration)."""
    pairs = []
    for one in judgments:
        first, second = one.order
        if not one.has_verdict or one.ranks[first] == one.ranks[second] or one.margin is None:
            continue
        chosen, rejected = (first, second) if one.margin > 0 else (second, first)
        pairs.append(
            Pair(
                prompt=prompts[one.prompt_id],
                chosen=responses[chosen].text,
                rejected=responses[rejected].text,
                weight=1 / (1 + math.exp(-abs(one.margin) / calibration)),
                group_id=one.set_id,
                principle=one.principle,
            )
        )
    return pairs


def labelled_comparisons(pairs: Sequence[Pair], constitution: Constitution, seed: int) -> list[Comparison]:
    """Pairs with known answers as comparisons, the better response first for half of them by the draw of a coin; a pair
    without a principle of the constitution gets one drawn. The answer is not in the comparison."""
    by_id = {principle.id: principle for principle in constitution.principles}
    found = []
    for number, pair in enumerate(pairs):
        principle = by_id.get(pair.principle or "") or draw(
            [p for p in constitution.principles if p.preference is not None], seed, "gate", number
        )
        if principle.preference is None:
            continue
        chosen, rejected = (
            Response(prompt_id=pair.prompt.id, model=side, text=text, finish_reason="stop",
                     generation=Generation(seed=number, temperature=0.0))
            for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
        )  # fmt: skip
        first, second = (chosen, rejected) if coin(seed, number) else (rejected, chosen)
        found.append(Comparison(pair.prompt, first, second, principle.id, principle.preference))
    return found


def coin(seed: int, number: int) -> bool:
    return derive_seed(seed, "coin", number) % 2 == 0
