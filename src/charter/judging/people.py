"""People as raters of a run: what they are asked, what is still open, what they said, and how far a judge agrees with them.

The responses of a run that people are to compare stand in ``to_label.jsonl`` of its feedback stage; ``charter label RUN`` opens
the page, whose votes lie in ``RUN/label``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from charter.records import Judgment, Pair, Response
from charter.run.hashes import derive_seed
from charter.statistics import clustered_proportion
from charter.votes.evidence import Evidence
from charter.votes.rankings import wins
from charter.votes.training_rows import Selection, Tally, aggregated_rows

TO_LABEL = "to_label.jsonl"
FOLDER = "label"  # in the run


def sample_for_people(groups: Sequence[Sequence[Response]], share: float, seed: int) -> list[list[Response]]:
    """The groups of responses that people are asked about: all that differ, or a share of them (at least one) by a draw."""
    asked = [list(group) for group in groups if len({one.text for one in group}) > 1]
    order = sorted(range(len(asked)), key=lambda i: derive_seed(seed, "people", asked[i][0].prompt_id))
    kept = set(order[: max(1, round(share * len(asked)))])
    return [group for i, group in enumerate(asked) if i in kept]


class Votes:
    """What people said so far in a label project about some groups of responses."""

    def __init__(self, folder: Path, groups: Sequence[Sequence[Response]]) -> None:
        self.groups, self.folder = groups, folder
        self.texts = {one.id: one for group in groups for one in group}
        self.judgments: list[Judgment] = []
        self.sets: dict[str, list[str]] = {}  # prompt id: what its people are asked
        if (folder / "judgments.jsonl").is_file():
            with Evidence(folder / "judgments.jsonl") as evidence:
                for one in (evidence.sets or {}).values():
                    if one.role == "work" and all(key in self.texts for key in one.response_ids):
                        self.sets.setdefault(one.prompt_id, []).append(one.id)
                known = {key for keys in self.sets.values() for key in keys}
                self.judgments = [
                    one for one in evidence.judgments.in_order()
                    if one.set_id in known and one.rater_kind == "human" and (one.has_verdict or one.edit)
                ]  # fmt: skip

    @property
    def open(self) -> int:
        """Prompts with a question that nobody has answered."""
        answered = {one.set_id for one in self.judgments}
        done = {prompt for prompt, sets in self.sets.items() if set(sets) <= answered}
        return sum(group[0].prompt_id not in done for group in self.groups)

    def pairs(self) -> list[Pair]:
        """One training pair for each two responses that the raters of a set decide; the soft label is the share of them."""
        if not self.judgments:
            return []
        of_run = {one.id for one in self.judgments}
        with Evidence(self.folder / "judgments.jsonl") as evidence:
            rows = list(aggregated_rows(evidence, Selection(soft="share"), Tally(), of_run))
        return [
            Pair(prompt=row.prompt, chosen=row.chosen, rejected=row.rejected, weight=row.weight, margin=row.margin,
                 group_id=row.group_id)
            for row in rows
        ]  # fmt: skip


def agreement_with_people(judged: Iterable[Judgment], people: Iterable[Judgment]) -> dict[str, Any]:
    """How often a judge prefers what a person prefers: over pairs of responses that both decide, every person's vote one
    comparison; 95 % interval clustered by prompt (Wilson). ``undecided`` counts pairs that a person decides and the judge does
    not."""
    by_judge = {frozenset(pair): pair for one in judged for pair in wins(one)}
    same: list[bool] = []
    prompts: list[str] = []
    undecided = 0
    for one in people:
        for pair in wins(one):
            said = by_judge.get(frozenset(pair))
            if said is None:
                undecided += 1
            else:
                same.append(said == pair)
                prompts.append(one.prompt_id)
    found = clustered_proportion(same, prompts)
    return {
        "agreement": found.value,
        "ci": found.ci,
        "n": found.n,
        "prompts": len(set(prompts)),
        "undecided": undecided,
    }


def with_people(by_judge: Sequence[Pair], votes: Votes) -> list[Pair]:
    """The judge's pairs, and where people have spoken of a prompt theirs in place of them: a person's tie is no pair."""
    spoken = {one.prompt_id for one in votes.judgments}
    return [pair for pair in by_judge if pair.prompt.id not in spoken] + votes.pairs()
