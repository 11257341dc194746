"""What each principle of a constitution does on labelled pairs: how often the judge is right under it, how often it decides,
which principles want the opposite of each other, which do the same, and which never decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, TypeVar

from charter.constitution.check import Finding
from charter.constitution.constitution import Constitution
from charter.judging.gate import better_judge
from charter.judging.judge import Comparison, Judge, Preference, correctness, labelled_comparisons
from charter.judging.priorities import labelled_case, margin_noise, measure_rule
from charter.records import Pair
from charter.run.hashes import derive_seed
from charter.statistics import Estimate, clustered_share

J = TypeVar("J", bound=Judge)
SELDOM = 0.05  # a principle whose share of decided pairs has an interval below it never decides
ALIKE = 0.95  # two principles whose share of equal verdicts has an interval above it do the same
Answers = Sequence[tuple[Comparison, Preference]]


@dataclass(frozen=True)
class Figure:
    """A share of ``n`` pairs with its 95% interval, clustered by prompt."""

    share: float | None
    ci: tuple[float, float] | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float | None], prompts: Sequence[str], level: float = 0.95) -> Figure:
        estimate: Estimate = clustered_share(values, prompts, level)
        return cls(estimate.value, estimate.ci, estimate.n)

    def __str__(self) -> str:
        if self.share is None or self.ci is None:
            return "no pair"
        return f"{self.share:.0%} of {self.n} pairs (95% interval {self.ci[0]:.0%} to {self.ci[1]:.0%})"


@dataclass(frozen=True)
class Measured:
    """The figures of one principle. ``labelled``: accuracy on the pairs labelled with it. ``accuracy``: on all pairs to which it
    applies. ``decides``: the share of these whose margin exceeds the noise. ``rules``: how many pairs it decides where higher
    principles go first; None without ranks."""

    principle: str
    labelled: Figure
    accuracy: Figure
    decides: Figure
    rules: int | None


def measure_principles(
    judges: Mapping[str, J],
    pairs: Sequence[Pair],
    constitution: Constitution,
    *,
    seed: int,
    most: int,
    floor: float,
    batch_size: int,
) -> dict[str, Any]:
    """Ask the judge, of several the better one, about at most ``most`` pairs under every principle that applies to their prompts.

    The result: ``measured`` (:class:`Measured` of every principle with a preference, in JSON values), ``findings``, ``pairs``
    that were asked about, ``pairs_in_file``, ``ties`` among them, which are left out, ``without_principle``, ``noise_nats`` and
    the judge's ``card``, None where no principle applies to any pair. Two principles want the opposite where the interval of
    opposite verdicts lies above one half: verdicts of noise are opposite half the time. Its level is corrected for the number of
    such tests (Bonferroni). No principle is judged by a judge that is not shown to be better than chance. ``floor``: the least
    noise, nats."""
    pairs, n_file = [pair for pair in pairs if pair.weight != 0.5], len(pairs)  # a tie has no better answer
    drawn = sorted(range(len(pairs)), key=lambda number: derive_seed(seed, "check", number))[:most]
    pairs_asked = [pairs[number] for number in sorted(drawn)]
    judge, card = better_judge(judges, pairs_asked, constitution, seed=seed, batch_size=batch_size)
    comparisons = labelled_comparisons(pairs_asked, constitution, seed)
    flat = [c for i, comparison in enumerate(comparisons) for c in labelled_case(comparison, constitution, seed, i)]
    preferences = [p for i in range(0, len(flat), batch_size) for p in judge(flat[i : i + batch_size])]
    known = {key_of(c): p for c, p in zip(flat, preferences, strict=True)}
    # Under the principle of its label a pair has a right answer; under the opposite principle it would count as an error.
    noise = max(floor, margin_noise(comparisons, [known[key_of(c)] for c in comparisons]) or 0.0)
    rules = None
    if constitution.ranked:
        ruling = measure_rule(
            lambda batch: [known[key_of(c)] for c in batch], comparisons, constitution, noise, seed=seed, batch_size=batch_size
        )
        rules = ruling["decided"]
    by_principle = {
        p.id: [(c, known[key_of(c)]) for comparison in comparisons if key_of(c := replace(comparison, principle=p)) in known]
        for p in constitution.principles
        if p.preference is not None
    }
    labels = {(c.first.id, c.second.id): c.principle.id for c in comparisons}
    measured = [measured_of(name, rows, labels, noise, rules) for name, rows in by_principle.items()]
    findings = [*opposites(by_principle), *alikes(by_principle)]
    if card is not None and card["ci"] is None:
        findings = [Finding("warning", None, "the judge gave no verdict on these pairs, so no principle is judged; name another")]
    elif card is not None and card["ci"][0] <= 0.5:
        low, high = card["ci"]
        words = (
            f"the judge is right on {card['accuracy']:.0%} of the pairs (95% interval {low:.0%} to {high:.0%}), not shown to be "
            "better than chance, so no principle is judged; name a stronger judge"
        )
        findings = [Finding("warning", None, words)]
    else:
        findings += findings_of(measured)
    return {
        "measured": [asdict(row) for row in measured], "findings": findings, "pairs": len(comparisons),
        "pairs_in_file": n_file, "ties": n_file - len(pairs), "without_principle": len(pairs_asked) - len(comparisons),
        "noise_nats": noise, "card": card,
    }  # fmt: skip


def key_of(comparison: Comparison) -> tuple[str, str, str]:
    return comparison.first.id, comparison.second.id, comparison.principle.id


def measured_of(
    name: str, rows: Answers, labels: Mapping[tuple[str, str], str], noise: float, rules: Mapping[str, int] | None
) -> Measured:
    """The figures of one principle from the judge's answers under it."""

    def right(answers: Answers) -> Figure:
        return Figure.of([correctness(c, p) for c, p in answers], [c.prompt.id for c, _ in answers])

    decided = [None if p.margin is None else float(abs(p.margin) > noise) for _, p in rows]
    return Measured(
        name, right([(c, p) for c, p in rows if labels[c.first.id, c.second.id] == name]), right(rows),
        Figure.of(decided, [c.prompt.id for c, _ in rows]), None if rules is None else rules[name],
    )  # fmt: skip


def findings_of(measured: Sequence[Measured]) -> list[Finding]:
    """Principles that never decide, and principles under which the judge is wrong more often than right."""
    findings = []
    for row in measured:
        if row.decides.ci is None:
            findings.append(Finding("warning", row.principle, "applies to none of these pairs, so nothing is known of it"))
        elif row.decides.ci[1] < SELDOM:
            words = f"never decides: its margin exceeds the noise on {row.decides}; make it say more, or remove it"
            findings.append(Finding("warning", row.principle, words))
        elif row.rules == 0:
            words = (f"decides none of {row.decides.n} pairs by priority: a higher principle decides first, or none; "
                     "rank it higher or reword it")  # fmt: skip
            findings.append(Finding("warning", row.principle, words))
        if row.labelled.ci is not None and row.labelled.ci[1] < 0.5:
            words = f"the judge is right on only {row.labelled} that are labelled with it; reword it, or check the labels"
            findings.append(Finding("warning", row.principle, words))
    return findings


def opposites(by_principle: Mapping[str, Answers]) -> list[Finding]:
    """Two principles that prefer opposite answers on the same pairs more often than not."""
    two = list(combinations(by_principle, 2))
    findings = []
    for one, other in two:
        rows = [row for row in shared(by_principle[one], by_principle[other]) if row[1] * row[2] != 0]
        values, prompts = [float(a * b < 0) for _, a, b in rows], [c.prompt.id for c, _, _ in rows]
        strict = Figure.of(values, prompts, 1 - 0.05 / len(two))
        if strict.ci is not None and strict.ci[0] > 0.5:
            opposite = Figure.of(values, prompts)
            words = f"contradicts {one!r}: prefers the opposite answer on {opposite}; reword one, or rank them"
            findings.append(Finding("warning", other, words))
    return findings


def alikes(by_principle: Mapping[str, Answers]) -> list[Finding]:
    """Groups of principles under which the judge gives the same verdicts: a finding for each group, under its first principle."""
    group_of = {name: {name} for name in by_principle}
    for one, other in combinations(by_principle, 2):
        rows = shared(by_principle[one], by_principle[other])
        figure = Figure.of([float(a * b > 0 or a == b) for _, a, b in rows], [c.prompt.id for c, _, _ in rows])
        if figure.ci is not None and figure.ci[0] > ALIKE and group_of[one] is not group_of[other]:
            group_of[one] |= group_of[other]
            group_of |= dict.fromkeys(group_of[other], group_of[one])
    groups = list({id(group): group for group in group_of.values() if len(group) > 1}.values())
    findings = []
    for group in groups:
        first, *others = (name for name in by_principle if name in group)
        words = (
            f"this judge does not tell it from {', '.join(others)}: the same verdicts on more than {ALIKE:.0%} of the pairs "
            "(95% interval); if they should differ, name a stronger judge or pairs that part them"
        )
        findings.append(Finding("warning", first, words))
    return findings


def shared(one: Answers, other: Answers) -> list[tuple[Comparison, float, float]]:
    """The margins of two principles on the pairs to which both apply."""
    margins = {(c.first.id, c.second.id): p.margin for c, p in other}
    rows = []
    for comparison, preference in one:
        a, b = preference.margin, margins.get((comparison.first.id, comparison.second.id))
        if a is not None and b is not None:
            rows.append((comparison, a, b))
    return rows
