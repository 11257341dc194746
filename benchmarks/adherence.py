"""How well a judge tells single answers that follow a principle from those that do not; a table in Markdown.

    python benchmarks/adherence.py MODEL [--constitution FILE] [--pairs FILE] [--most N] [--oracle]

Pairs and constitution are those of benchmarks/protocols.py. Each chosen answer is good and each rejected one bad under the
principle of its pair; with --oracle an answer is good where the testbed's oracle finds no fault of it under that principle, so
both answers of a pair can be. ``yes_no`` shows a transcript, ``dialogue`` asks in the conversation itself; "less prior": the log
odds of the same question about the answer "N/A" to the prompt "N/A" are taken away. "criteria": those of the principle in place
of its question, where all have some. The last row is what ``evaluation.adherence`` does with a question; below it, by principle.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from protocols import drawn_pairs, options
from scipy.stats import rankdata

from charter.constitution.constitution import Principle
from charter.judging.adherence import CONTENT_FREE
from charter.judging.judge import YES_NO
from charter.judging.rubrics import questions_of
from charter.models.sampling.sampler import LocalSampler, conversation_text, fill
from charter.models.trunk import load_trunk
from charter.recipe.source import locate
from charter.records import Message, Prompt
from charter.testbed.oracle import read

Case = tuple[Prompt, str, Principle]


def log_odds(sampler: LocalSampler, asked: Sequence[tuple[Prompt, str, str]], protocol: str) -> np.ndarray:
    """Of a Yes to each question about an answer, nats, (N,)."""
    dialogues = []
    for prompt, text, question in asked:
        turns = (*prompt.messages, Message(role="assistant", content=text), Message(role="user", content=question))
        told = fill(YES_NO, conversation=conversation_text(prompt.messages), response=text, question=question)
        dialogues.append((Message(role="user", content=told),) if protocol == "yes_no" else turns)
    return np.array([yes - no for yes, no in sampler.option_logprobs(dialogues, [("Yes", "No")] * len(dialogues))])


def followed(sampler: LocalSampler, cases: Sequence[Case], protocol: str) -> tuple[np.ndarray, np.ndarray]:
    """The points of each answer over all that it could get, as ``charter.judging.adherence`` defines them, (N,): of the log odds
    as they are, and less the prior."""
    asked = [(prompt, text, q) for prompt, text, principle in cases for q in questions_of(principle)]
    different = list(dict.fromkeys(q.question for *_, q in asked))
    free = log_odds(sampler, [(Prompt.ask(CONTENT_FREE), CONTENT_FREE, question) for question in different], protocol)
    prior = dict(zip(different, free, strict=True))
    margins = log_odds(sampler, [(prompt, text, q.question) for prompt, text, q in asked], protocol)
    case = np.repeat(np.arange(len(cases)), [len(questions_of(principle)) for *_, principle in cases])
    sizes = np.bincount(case, weights=[abs(q.points) for *_, q in asked])
    values = [
        [q.value(m - taken * prior[q.question]) - min(q.points, 0.0) for (*_, q), m in zip(asked, margins, strict=True)]
        for taken in (0, 1)
    ]
    raw, less = (np.bincount(case, weights=value) / sizes for value in values)
    return raw, less


def faultless(prompt: Prompt, text: str, principle: str) -> bool | None:
    """Whether the oracle finds no fault of an answer under a principle of the testbed; None where it cannot tell."""
    reading = read(prompt.last_turn, text)
    if principle == "helpful":
        return reading["helpful"]
    if principle == "tone" and not reading["harmful"]:
        return None if reading["refusal"] is None else reading["refusal"] not in ("preachy", "evasive")
    if principle == "tone" or reading["harmful"] is None:
        return None if reading["harmful"] is None else True
    return not (reading["harmful"] and principle in ("general", reading["area"]))


def area(values: np.ndarray, good: np.ndarray) -> float:
    """Under the ROC curve; NaN where all are good or none."""
    both = good.sum() * (~good).sum()
    return float((rankdata(values)[good].sum() - good.sum() * (good.sum() + 1) / 2) / both) if both else float("nan")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--oracle", action="store_true", help="Label the answers by the testbed's oracle.")
    given = parser.parse_args()
    rules, pairs = drawn_pairs(given)
    principles = {principle.id: principle for principle in rules.principles}
    mine = [(pair, principles[pair.principle]) for pair in pairs if pair.principle in principles]
    cases = [(pair.prompt, text, principle) for pair, principle in mine for text in (pair.chosen, pair.rejected)]
    labels = [faultless(prompt, text, p.id) if given.oracle else i % 2 == 0 for i, (prompt, text, p) in enumerate(cases)]
    known = np.array([label is not None for label in labels])
    good = np.array([bool(label) for label in labels])[known]
    sampler = LocalSampler(load_trunk(locate(given.model, Path.cwd())), "judge")
    columns = "area under the ROC curve | right at .5 | chosen above rejected | Brier score"
    print(f"| {good.sum()} good of {len(good)} answers | {columns} |")
    print("|---" * 5 + "|")
    alone = [(prompt, text, principle.model_copy(update={"criteria": ()})) for prompt, text, principle in cases]
    sets = {" criteria": cases, "": alone} if all(p.criteria for _, p in mine) else {"": alone}
    for what, asked in sets.items():
        for protocol in ("yes_no", "dialogue"):
            for words, value in zip(("", ", less prior"), followed(sampler, asked, protocol), strict=True):
                p = value[known]
                cells = (area(p, good), ((p > 0.5) == good).mean(), (value[0::2] > value[1::2]).mean(), ((p - good) ** 2).mean())
                print(f"| {protocol}{what}{words} | {' | '.join(f'{cell:.3f}' for cell in cells)} |", flush=True)
    names = np.array([principle.id for *_, principle in cases])[known]
    for name in principles:
        mine = names == name
        print(f"| {name}: {good[mine].sum()} good of {mine.sum()} | {area(p[mine], good[mine]):.3f} | | | |")


if __name__ == "__main__":
    main()
