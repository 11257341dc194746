"""The judge protocol ``dialogue``: the principle's question follows the response in the conversation itself.

A critique is asked in this way, so a model that can criticise under a principle can judge by this protocol. Each response is
read alone. With p the probability of the good answer, P(first is better) = 1/2 + (p_first − p_second) / 2: if both are good, or
both bad, a coin decides, and the principle says nothing. The margin is the log odds of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from charter.judging.judge import PROTOCOLS, Comparison, LogProbJudge, Preference, question_about
from charter.models.sampling.sampler import Sampler
from charter.records import Message, Response

SUREST = 1 - 1e-9  # |p_first − p_second|: beyond it a margin would be infinite


class DialogueJudge:
    """A language model that is asked about each response where it stands in the conversation."""

    protocol = "dialogue"

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.name = sampler, sampler.name

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


def probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(-max(min(log_odds, 500.0), -500.0))) if math.isfinite(log_odds) else math.nan


def margin_between(first: float, second: float) -> float:
    """Log odds that the first of two responses is the better one, by the probabilities that each is good; NaN without them."""
    difference = max(min(first - second, SUREST), -SUREST)
    return math.log((1 + difference) / (1 - difference)) if math.isfinite(first - second) else math.nan


AnyJudge = LogProbJudge | DialogueJudge
WAYS_TO_JUDGE: dict[str, type[LogProbJudge] | type[DialogueJudge]] = {**PROTOCOLS, DialogueJudge.protocol: DialogueJudge}
"""Every protocol by which principles can be asked about pairs."""
