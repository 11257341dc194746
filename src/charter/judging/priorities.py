"""Judging by priority: the higher principle is applied first, and the judgment names the one that decided.

The principles that apply are asked by rank; those of one rank in an order drawn by weight. A principle decides where its margin
exceeds the noise of the judge's margins, and the next is asked only where it does not. A missing margin gives no verdict: a
lower principle never answers for a higher one that could not be read. Where no principle decides, the comparison is a tie.

The noise is measured on labelled pairs (:func:`margin_noise`), in the same way for every protocol.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from charter.constitution.constitution import Constitution, by_rank
from charter.judging.judge import Comparison, Judge, Preference, correctness, instructions_hash, judgment, two_by_two
from charter.records import Judgment, Prompt, Response, content_id
from charter.statistics import clustered_share, fit_temperature

Case = tuple[Comparison, ...]
"""One comparison under every principle that applies, in the order in which they are asked."""


@dataclass(frozen=True)
class Ruling:
    """The answers under the principles that were asked, in order, and whether the last of them decided."""

    preferences: tuple[Preference, ...]
    decided: bool


def margin_noise(comparisons: Sequence[Comparison], preferences: Sequence[Preference]) -> float | None:
    """The scale of the noise of the margins (nats): the temperature T at which σ(margin / T) fits the answers of labelled pairs
    best. A margin of T is right with probability σ(1) = .73. None without a verdict."""
    verdicts = [(p.margin, c) for c, p in zip(comparisons, preferences, strict=True) if p.margin is not None]
    outcomes = [float(c.first.model == "chosen") for _, c in verdicts]
    return fit_temperature([margin for margin, _ in verdicts], outcomes) if verdicts else None


def cases_of(
    prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], constitution: Constitution, seed: int
) -> list[Case]:
    """Every pair of the K responses to each prompt under every principle that applies, by rank."""
    return [
        tuple(Comparison(prompt, first, second, p) for p in by_rank(principles, seed, "compare", prompt.id, i, j))
        for prompt, first, second, principles, (i, j) in two_by_two(prompts, responses, constitution)
    ]


def rule(judge: Judge, cases: Sequence[Case], noise: float) -> list[Ruling]:
    """The ruling of each case; the principles of one place are asked together."""
    answers: list[list[Preference]] = [[] for _ in cases]
    undecided, place = list(range(len(cases))), 0
    while undecided:
        for i, preference in zip(undecided, judge([cases[i][place] for i in undecided]), strict=True):
            answers[i].append(preference)
        place += 1
        undecided = [i for i in undecided if len(cases[i]) > place and within(answers[i][-1], noise)]
    return [Ruling(tuple(asked), asked[-1].margin is not None and not within(asked[-1], noise)) for asked in answers]


def within(preference: Preference, noise: float) -> bool:
    """Whether there is a margin and it does not exceed the noise."""
    return preference.margin is not None and abs(preference.margin) <= noise


def ruled(case: Case, ruling: Ruling, noise: float, *, rater_id: str, template: str) -> Judgment:
    """The stored label. ``principle`` is the one that decided, None where none did; ``comment`` names those asked before it with
    their margins."""
    place = len(ruling.preferences) - 1
    unread = ruling.preferences[place].margin is None
    label = judgment(
        case[place], ruling.preferences[place], rater_id=rater_id, template=template,
        abstain_below=0.0 if ruling.decided or unread else math.inf,
    )  # fmt: skip
    before = [f"{c.principle.id} {p.margin:+.3f}" for c, p in zip(case[:place], ruling.preferences[:place], strict=True)]
    first = f"asked first: {', '.join(before)}; " if before else ""
    outcome = "decides" if ruling.decided else "has no verdict" if unread else "does not decide"
    return label.model_copy(
        update={
            "principle": case[place].principle.id if ruling.decided or unread else None,
            "instructions_hash": case_hash(case, noise, template),
            "comment": f"{first}{case[place].principle.id} {outcome} (noise {noise:.3f} nats)",
        }
    )


def case_hash(case: Case, noise: float, template: str) -> str:
    """Of all that the judge may be told about a case, and of the noise below which the next principle is asked."""
    return content_id([[c.principle.id, instructions_hash(c, template)] for c in case], noise)


def earlier_ruling(judgments: Iterable[Judgment], noise: float, template: str) -> Callable[[Case], list[Judgment] | None]:
    """Finds, among judgments of the same judge under the same settings, the one of a case, as a list; None where the responses,
    their order, a principle, its text, its place or the noise differ."""
    by_key = {(row.order, row.instructions_hash): row for row in judgments}

    def find(case: Case) -> list[Judgment] | None:
        row = by_key.get(((case[0].first.id, case[0].second.id), case_hash(case, noise, template)))
        return None if row is None else [row]

    return find


def measure_rule(
    judge: Judge, comparisons: Sequence[Comparison], constitution: Constitution, noise: float, *, seed: int, batch_size: int
) -> dict[str, Any]:
    """How good the rule is on labelled pairs: accuracy where a principle decided, with an interval clustered by prompt; how many
    were ``undecided`` or without verdict; how many each principle decided."""
    cases = [labelled_case(comparison, constitution, seed, number) for number, comparison in enumerate(comparisons)]
    rulings = [r for i in range(0, len(cases), batch_size) for r in rule(judge, cases[i : i + batch_size], noise)]
    right = [
        correctness(case[0], ruling.preferences[-1]) if ruling.decided else None
        for case, ruling in zip(cases, rulings, strict=True)
    ]
    share = clustered_share(right, [case[0].prompt.id for case in cases])
    deciders = Counter(
        case[len(ruling.preferences) - 1].principle.id for case, ruling in zip(cases, rulings, strict=True) if ruling.decided
    )
    return {
        "noise_nats": noise, "accuracy": share.value, "ci": share.ci, "n": share.n, "undecided": share.n_unscored,
        "questions_per_comparison": sum(len(r.preferences) for r in rulings) / max(len(rulings), 1),
        "decided": {p.id: deciders[p.id] for p in constitution.principles if p.preference is not None},
    }  # fmt: skip


def labelled_case(comparison: Comparison, constitution: Constitution, seed: int, number: int) -> Case:
    """The comparison under every principle that applies to its prompt, the principle of its label included."""
    principles = {p.id: p for p in (*constitution.for_comparison(comparison.prompt), comparison.principle)}
    return tuple(replace(comparison, principle=p) for p in by_rank(tuple(principles.values()), seed, "gate", number))
