"""The protocols by which a judge is read, beside ``letters`` and ``yes_no``.

``dialogue``: the principle's question follows the response in the conversation itself. A critique is asked in this way, so a
model that can criticise under a principle can judge by this protocol. Each response is read alone. With p the probability of the
good answer, P(first is better) = 1/2 + (p_first − p_second) / 2: if both are good, or both bad, a coin decides, and the principle
says nothing. The margin is the log odds of it.

``rubric``: the criteria of the principle are asked about each response (:mod:`charter.judging.rubrics`). The margin is that of
``dialogue`` for the weighted sums of the answers. A principle without criteria has its question as the only one.

``likelihood``: log P(response | principle, prompt) − log P(response | prompt), of the first less the second. Nothing is asked;
the likelihood without the principle takes away what makes a text likely in itself.

``reasoned``: the judge writes a few sentences about both responses, the likeliest ones, and then chooses A or B; both orders are
asked. Its reasons make it too sure, so the probability of a choice is clamped to .4 to .6 in each order (Bai et al. 2022,
section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from charter.constitution.constitution import Constitution
from charter.constitution.revise import asked_for
from charter.errors import InputError
from charter.judging.judge import (
    LETTERS,
    YES_NO,
    Comparison,
    LanguageModelJudge,
    LettersJudge,
    Preference,
    YesNoJudge,
    ask,
    prompt_file,
    question_about,
)
from charter.judging.rubrics import probability, questions_of, totals
from charter.models.sampling.sampler import LocalSampler, Sampler, fill
from charter.records import Message, Response

REASON_TOKENS = 96  # a few sentences
REASONED_MARGIN = math.log(0.6 / 0.4)  # nats
NO_REASON = "…"  # of a judge that wrote nothing: some servers refuse an empty turn
SUREST = 1 - 1e-9  # |p_first − p_second|: beyond it a margin would be infinite


class DialogueJudge(LanguageModelJudge):
    """A language model that is asked about each response where it stands in the conversation."""

    protocol, template = "dialogue", "{conversation}\nassistant: {response}\nuser: {question}"

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        sides = [(comparison, response) for comparison in comparisons for response in (comparison.first, comparison.second)]
        dialogues = [dialogue(comparison, response) for comparison, response in sides]
        rows = self.sampler.option_logprobs(dialogues, [("Yes", "No")] * len(dialogues))
        good = [
            probability((no - yes) if comparison.asks_for_no else (yes - no))
            for (comparison, _), (yes, no) in zip(sides, rows, strict=True)
        ]
        return [Preference(margin, margin) for margin in map(margin_between, good[0::2], good[1::2])]


def dialogue(comparison: Comparison, response: Response) -> tuple[Message, ...]:
    """The conversation, the response in it, and the principle's question about it."""
    turns = (Message(role="assistant", content=response.text), Message(role="user", content=question_about(comparison)))
    return (*comparison.prompt.messages, *turns)


def margin_between(first: float, second: float) -> float:
    """Log odds that the first of two responses is the better one, by the probabilities that each is good; NaN without them."""
    difference = max(min(first - second, SUREST), -SUREST)
    return math.log((1 + difference) / (1 - difference)) if math.isfinite(first - second) else math.nan


class RubricJudge(LanguageModelJudge):
    """A language model that answers every criterion of the principle about each response."""

    protocol, template = "rubric", f"criteria\n{YES_NO}"

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        cases = [
            (comparison.prompt, response.text, questions_of(comparison.principle))
            for comparison in comparisons
            for response in (comparison.first, comparison.second)
        ]
        shares = [
            total / sum(abs(question.points) for question in questions)
            for total, (_, _, questions) in zip(totals(self.sampler, cases), cases, strict=True)
        ]
        return [Preference(margin, margin) for margin in map(margin_between, shares[0::2], shares[1::2])]


class LikelihoodJudge(LanguageModelJudge):
    """A language model of which only the likelihood of the responses is read."""

    protocol, template = "likelihood", prompt_file("likelihood")

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        """InputError if the model's likelihood of whole texts cannot be read."""
        if reads_tokens_alone(self.sampler):
            raise InputError(f"{self.name} answers behind a server, which gives no likelihood of whole responses; use another "
                             "protocol, or the model's folder")  # fmt: skip
        dialogues = [
            prompt.messages
            for comparison in comparisons
            for prompt in (asked_for(comparison.prompt, fill(self.template, principle=comparison.instruction)), comparison.prompt)
        ]
        texts = [(comparison.first.text, comparison.second.text) for comparison in comparisons for _ in range(2)]
        apart = [first - second for first, second in self.sampler.option_logprobs(dialogues, texts)]
        margins = [ruled - plain for ruled, plain in zip(apart[0::2], apart[1::2], strict=True)]
        return [Preference(margin, margin) for margin in margins]


class ReasonedJudge(LanguageModelJudge):
    """A language model that gives its reasons before it compares two responses: A or B? A question that leaves no room for the
    reasons gets no verdict."""

    protocol, template = "reasoned", prompt_file("reasoned")

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        compare, choose = self.template.split("\n---\n")
        asked = [ask(shown, compare) for comparison in comparisons for shown in (comparison, comparison.swap())]
        local = self.sampler if isinstance(self.sampler, LocalSampler) else None
        fits = [local is None or local.has_room(question, REASON_TOKENS) for question in asked]
        if not any(fits):
            return [Preference(math.nan, math.nan)] * len(comparisons)
        short = [question for question, fit in zip(asked, fits, strict=True) if fit]
        reasons = self.sampler.generate(short, [[0]] * len(short), temperature=0.0, max_new_tokens=REASON_TOKENS)
        last = Message(role="user", content=choose.strip())
        dialogues = [
            (*question, Message(role="assistant", content=group[0].text or NO_REASON), last)
            for question, group in zip(short, reasons, strict=True)
        ]
        read = iter(self.sampler.option_logprobs(dialogues, [LETTERS] * len(dialogues)))
        margins = [clamped(a - b) for a, b in (next(read) if fit else (math.nan, math.nan) for fit in fits)]
        return [Preference(a, -b) for a, b in zip(margins[0::2], margins[1::2], strict=True)]


def clamped(log_odds: float) -> float:
    """Log odds whose probability lies between .4 and .6; NaN without odds."""
    return log_odds if math.isnan(log_odds) else max(min(log_odds, REASONED_MARGIN), -REASONED_MARGIN)


PROTOCOLS: dict[str, type[LanguageModelJudge]] = {
    judge.protocol: judge for judge in (LettersJudge, YesNoJudge, DialogueJudge, RubricJudge, LikelihoodJudge, ReasonedJudge)
}
"""Every protocol by which principles can be asked about two responses."""


def reads_tokens_alone(sampler: Sampler) -> bool:
    """Whether an option counts by its first token, as behind a server."""
    return getattr(sampler, "first_token_alone", False)


def protocols_of(protocol: str, tokens_alone: bool, constitution: Constitution) -> list[str]:
    """The protocol itself; of `auto` all that fit: ``rubric`` needs criteria, ``likelihood`` a model with more than
    ``tokens_alone``. ``reasoned`` is not among them: it writes texts, which costs many times what reading does."""
    if protocol != "auto":
        return [protocol]
    criteria = any(principle.criteria for principle in constitution.principles)
    unfit = {"likelihood": tokens_alone, "rubric": not criteria, "reasoned": True}
    return [name for name in PROTOCOLS if not unfit.get(name)]


def judges_of(protocol: str, sampler: Sampler, constitution: Constitution) -> dict[str, LanguageModelJudge]:
    """The judge of a protocol, or those among which `auto` chooses, by protocol."""
    return {name: PROTOCOLS[name](sampler) for name in protocols_of(protocol, reads_tokens_alone(sampler), constitution)}
