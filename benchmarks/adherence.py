"""How well a judge tells single answers that follow a principle from those that do not; a table in Markdown.

    python benchmarks/adherence.py MODEL [--constitution FILE] [--pairs FILE] [--most N]

Pairs and constitution are those of benchmarks/protocols.py: each chosen answer is good and each rejected one bad under the
principle of its pair. ``yes_no`` shows a transcript, ``dialogue`` asks in the conversation itself; "less prior": the log odds of
the same question about the answer "N/A" to the prompt "N/A" are taken away. The last row is what ``evaluation.adherence`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from protocols import drawn_pairs, options
from scipy.stats import rankdata

from charter.constitution.constitution import Principle
from charter.judging.adherence import CONTENT_FREE
from charter.judging.judge import YES_NO, response_question
from charter.models.sampling.sampler import LocalSampler, conversation_text, fill
from charter.models.trunk import load_trunk
from charter.recipe.source import locate
from charter.records import Message, Prompt

Case = tuple[Prompt, str, Principle]


def log_odds(sampler: LocalSampler, cases: Sequence[Case], protocol: str) -> np.ndarray:
    """Of a Yes to the principle's question about each answer, nats, (N,)."""
    asked = []
    for prompt, text, principle in cases:
        question, shown = response_question(principle), conversation_text(prompt.messages)
        turns = (*prompt.messages, Message(role="assistant", content=text), Message(role="user", content=question))
        told = Message(role="user", content=fill(YES_NO, conversation=shown, response=text, question=question))
        asked.append((told,) if protocol == "yes_no" else turns)
    return np.array([yes - no for yes, no in sampler.option_logprobs(asked, [("Yes", "No")] * len(asked))])


def main() -> None:
    given = options(__doc__).parse_args()
    rules, pairs = drawn_pairs(given)
    principles = {principle.id: principle for principle in rules.principles}
    mine = [(pair, principles[pair.principle]) for pair in pairs if pair.principle in principles]
    cases = [(pair.prompt, text, principle) for pair, principle in mine for text in (pair.chosen, pair.rejected)]
    good = np.arange(len(cases)) % 2 == 0
    sampler = LocalSampler(load_trunk(locate(given.model, Path.cwd())), "judge")
    print(f"| {len(cases)} answers | area under the ROC curve | right at .5 | chosen above rejected | Brier score |")
    print("|---" * 5 + "|")
    sign = np.array([-1 if p.question and p.good_answer == "no" else 1 for *_, p in cases])
    free = [(Prompt.ask(CONTENT_FREE), CONTENT_FREE, principle) for principle in principles.values()]
    for protocol in ("yes_no", "dialogue"):
        margins = log_odds(sampler, cases, protocol)
        prior = dict(zip(principles, log_odds(sampler, free, protocol), strict=True))
        for words, taken in (("", 0.0), (" less prior", np.array([prior[p.id] for *_, p in cases]))):
            value = sign * (margins - taken)
            area = (rankdata(value)[good].sum() - good.sum() * (good.sum() + 1) / 2) / (good.sum() * (~good).sum())
            above, p = (value[0::2] > value[1::2]).mean(), 1 / (1 + np.exp(-value))
            cells = (area, ((value > 0) == good).mean(), above, ((p - good) ** 2).mean())
            print(f"| {protocol}{words} | {' | '.join(f'{cell:.3f}' for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
