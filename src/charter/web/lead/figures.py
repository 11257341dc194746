"""What the lead sees of the votes while they come in: agreement, the table of raters, contested sets.

Agreement is that of `charter agreement`, which knows pairs of responses; of single responses (thumbs, edits) it is counted here.
Beside it stand shares and how many comparisons are behind them. This is the one place where the figures of the lead's pages
are made.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from charter.errors import InputError
from charter.raters.agreement import PAIR_AGREEMENT, WITHOUT_TIES, Figure, agreement_figures
from charter.raters.comparisons import single_orders, votes_of
from charter.raters.lines import RaterLine, rater_lines
from charter.raters.reliability import fit_raters
from charter.records import Judgment, LabelSet, Rank
from charter.votes.judgments import deciding
from charter.web.answers import agreement_with, relation
from charter.web.store import pairs_and_ties


@dataclass
class Count:
    """Hits of trials; ``share`` is None where there was no trial."""

    hits: float = 0.0
    n: int = 0

    def add(self, hit: float) -> None:
        self.hits += hit
        self.n += 1

    @property
    def share(self) -> float | None:
        return self.hits / self.n if self.n else None


@dataclass
class RaterFigures:
    """One rater's row. Shares are of pairs (ties), of responses (F) and of comparisons with other raters (agreement)."""

    rater_id: str
    votes: int = 0
    skips: int = 0
    ties: Count = field(default_factory=Count)
    nonsense: Count = field(default_factory=Count)
    agreement: Count = field(default_factory=Count)
    gold: Count = field(default_factory=Count)
    repeats: Count = field(default_factory=Count)
    seconds: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


@dataclass
class Figures:
    agreement: Figure | None = None
    """Of the pairs of votes of two raters on the same two responses (or on the same single one), the share that says the same,
    ties included; None while there is no such pair of votes."""
    without_ties: Figure | None = None
    """The same where neither rater said tie; None for single responses."""
    raters: list[RaterFigures] = field(default_factory=list)
    contested: list[tuple[LabelSet, list[Judgment], float]] = field(default_factory=list)
    """Sets on which raters contradict each other, with the share of their comparisons that do, the most first."""
    skipped: list[tuple[LabelSet, list[Judgment]]] = field(default_factory=list)
    measured: list[Figure] = field(default_factory=list)
    """Agreement with intervals clustered by prompt; empty while nobody judged what another judged."""
    decided: Counter[str] = field(default_factory=Counter)
    """Votes that name each principle as one that decided, by its id."""
    lines: dict[str, RaterLine] = field(default_factory=dict)
    """Each rater's β and γ with intervals."""


def live_figures(judgments: Sequence[Judgment], sets: Mapping[str, LabelSet]) -> Figures:
    """Figures of the judgments that nothing superseded."""
    figures = Figures()
    rows: dict[str, RaterFigures] = {}
    by_set: dict[str, list[Judgment]] = defaultdict(list)
    first: dict[tuple[str, str, frozenset[str]], Judgment] = {}
    repeats: list[Judgment] = []
    skipped: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        label_set = sets.get(judgment.set_id)
        if label_set is None:
            continue
        marks = judgment.flags.get(judgment.set_id, [])
        if "withdrawn" in marks:
            continue
        row = rows.setdefault(judgment.rater_id, RaterFigures(judgment.rater_id))
        if not judgment.has_verdict:
            row.skips += 1
            skipped[judgment.set_id].append(judgment)
            continue
        row.votes += 1
        figures.decided.update(deciding(judgment))
        for rank in judgment.ranks.values():
            row.nonsense.add(rank == "F")
        n_pairs, n_ties = pairs_and_ties(judgment.ranks)  # as on the page of the rater
        row.ties = Count(row.ties.hits + n_ties, row.ties.n + n_pairs)
        if (seconds := judgment.timings.get("active_s")) is not None:
            row.seconds.append(seconds)
        if label_set.role == "gold" and label_set.gold:
            row.gold.add(agreement_with(judgment.ranks, label_set.gold))
        elif label_set.role == "repeat":
            repeats.append(judgment)
        elif label_set.role == "work":
            by_set[judgment.set_id].append(judgment)
            first[judgment.rater_id, judgment.prompt_id, frozenset(judgment.order)] = judgment
    for judgment in repeats:
        if (before := first.get((judgment.rater_id, judgment.prompt_id, frozenset(judgment.order)))) is not None:
            earlier = {key: before.ranks.get(key) for key in before.order}  # a partial ranking leaves some out
            rows[judgment.rater_id].repeats.add(agreement_with(judgment.ranks, earlier))
    on_one, prompts_of_one = Count(), set()  # of single responses
    for set_id, votes in by_set.items():
        against = Count()
        for judgment, other in combinations(votes, 2):
            for same, opposite in compared(judgment.ranks, other.ranks, judgment.order):
                rows[judgment.rater_id].agreement.add(same)
                rows[other.rater_id].agreement.add(same)
                against.add(opposite)
                if len(judgment.order) == 1:
                    on_one.add(same)
                    prompts_of_one.add(judgment.prompt_id)
        if against.hits:
            figures.contested.append((sets[set_id], votes, against.share or 0.0))
    figures.contested.sort(key=lambda row: (-row[2], row[0].id))
    figures.skipped = [(sets[key], who) for key, who in skipped.items()]
    figures.measured, figures.lines = measured(by_set)
    by_name = {judgment.name: judgment for judgment in figures.measured if judgment.n}
    figures.agreement = by_name.get(PAIR_AGREEMENT)
    figures.without_ties = by_name.get(WITHOUT_TIES)
    if figures.agreement is None and on_one.n:
        figures.agreement = Figure("agreement on a response", on_one.share, None, on_one.n, "pairs of votes", len(prompts_of_one))
    figures.raters = sorted(rows.values(), key=lambda row: (-row.votes, row.rater_id))
    return figures


def measured(by_set: Mapping[str, Sequence[Judgment]]) -> tuple[list[Figure], dict[str, RaterLine]]:
    """Agreement and raters of the sets that several people answered, each rater's β and γ estimated from all votes."""
    votes = votes_of([judgment for votes in by_set.values() for judgment in votes])
    try:
        figures = agreement_figures(votes)
    except InputError:  # one rater, or no set that two of them judged
        return [], {}
    if not len(votes.x):
        return figures, {}
    return figures, {line.rater: line for line in rater_lines(votes, fit_raters(single_orders(votes)))}


def compared(first: Mapping[str, Rank], second: Mapping[str, Rank], ids: Sequence[str]) -> list[tuple[bool, bool]]:
    """For each two responses that both raters order: whether they say the same, whether opposites. A single response is compared
    by its mark."""
    if len(ids) == 1:
        same = first.get(ids[0]) == second.get(ids[0])
        return [(same, not same)]
    results = []
    for a, b in combinations(ids, 2):
        x, y = relation(first, a, b), relation(second, a, b)
        if x is not None and y is not None:
            results.append((x == y, x * y < 0))
    return results


def as_rows(figures: Figures) -> list[dict[str, Any]]:
    """The table of raters as plain values, for its CSV."""
    return [
        {
            "rater": row.rater_id, "votes": row.votes, "skips": row.skips, "tie_share": row.ties.share,
            "nonsense_share": row.nonsense.share, "median_seconds": row.median_s, "agreement": row.agreement.share,
            "agreement_n": row.agreement.n, "gold": row.gold.share, "gold_n": row.gold.n, "repeats": row.repeats.share,
            "repeats_n": row.repeats.n, **line_values(figures.lines.get(row.rater_id)),
        }
        for row in figures.raters
    ]  # fmt: skip


def line_values(line: RaterLine | None) -> dict[str, Any]:
    """β and γ of a rater with their intervals; empty cells where there is no overlap with others."""
    if line is None or line.overlap < 2:
        return dict.fromkeys(("beta", "beta_low", "beta_high", "gamma", "gamma_low", "gamma_high", "words"))
    return {
        "beta": line.beta, "beta_low": line.beta_ci[0], "beta_high": line.beta_ci[1], "gamma": line.gamma,
        "gamma_low": line.gamma_ci[0], "gamma_high": line.gamma_ci[1], "words": ", ".join(line.words),
    }  # fmt: skip
