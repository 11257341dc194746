"""People as raters of a run: the questions to them, the open ones, their votes, and how far a judge agrees with them.

The feedback stage of a run writes the responses for people to compare into ``to_label.jsonl``; ``charter label RUN`` opens the
page, which keeps its votes in ``RUN/label``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from charter.records import Judgment, Pair, Response
from charter.run.hashes import derive_seed, file_hash
from charter.statistics import clustered_proportion
from charter.votes.evidence import Evidence
from charter.votes.rankings import wins
from charter.votes.training_rows import Selection, Tally, aggregated_rows

TO_LABEL = "to_label.jsonl"
FOLDER = "label"  # in the run
VOTES = "votes"
"""The input of a stage that people's votes are: later ones, and forgotten ones, run it again, with the responses that it has."""


def votes_hash(run: Path) -> str:
    """The hash of the votes on the label page of a run, empty before the first."""
    file = run / FOLDER / "judgments.jsonl"
    return file_hash(file) if file.is_file() else ""


def sample_for_people(groups: Sequence[Sequence[Response]], share: float, seed: int) -> list[list[Response]]:
    """The groups of responses for people to compare: all that differ, or a share of them (at least one), drawn by seed."""
    differing = [list(group) for group in groups if len({response.text for response in group}) > 1]
    order = sorted(range(len(differing)), key=lambda i: derive_seed(seed, "people", differing[i][0].prompt_id))
    kept = set(order[: max(1, round(share * len(differing)))])
    return [group for i, group in enumerate(differing) if i in kept]


class PeoplesVotes:
    """The votes of people so far, in a label project, about some groups of responses."""

    def __init__(self, folder: Path, groups: Sequence[Sequence[Response]]) -> None:
        self.groups, self.folder = groups, folder
        self.responses = {response.id: response for group in groups for response in group}
        self.judgments: list[Judgment] = []
        self.sets: dict[str, list[str]] = {}  # prompt id: ids of its comparison sets
        if (folder / "judgments.jsonl").is_file():
            with Evidence(folder / "judgments.jsonl") as evidence:
                for task in (evidence.sets or {}).values():
                    if task.role == "work" and all(key in self.responses for key in task.response_ids):
                        self.sets.setdefault(task.prompt_id, []).append(task.id)
                known = {key for keys in self.sets.values() for key in keys}
                self.judgments = [
                    vote for vote in evidence.judgments.in_order()
                    if vote.set_id in known and vote.rater_kind == "human" and (vote.has_verdict or vote.edit)
                ]  # fmt: skip

    @property
    def open(self) -> int:
        """Prompts with an unanswered question."""
        answered = {vote.set_id for vote in self.judgments}
        done = {prompt for prompt, sets in self.sets.items() if set(sets) <= answered}
        return sum(group[0].prompt_id not in done for group in self.groups)

    def pairs(self) -> list[Pair]:
        """One training pair for each two responses between which the raters of a set decide; the soft label is their share."""
        return self.decided()[0]

    def decided(self) -> tuple[list[Pair], dict[str, int]]:
        """The pairs, and how many votes or pairs decide nothing, by reason."""
        if not self.judgments:
            return [], {}
        of_run, tally = {vote.id for vote in self.judgments}, Tally()
        with Evidence(self.folder / "judgments.jsonl") as evidence:
            rows = list(aggregated_rows(evidence, Selection(soft="share"), tally, of_run))
        pairs = [
            Pair(prompt=row.prompt, chosen=row.chosen, rejected=row.rejected, weight=row.weight, margin=row.margin,
                 group_id=row.group_id)
            for row in rows
        ]  # fmt: skip
        return pairs, {f"people's votes: {reason}": count for reason, count in (+tally.left_out).items()}


def agreement_with_people(judged: Iterable[Judgment], people: Iterable[Judgment]) -> dict[str, Any]:
    """How often a judge prefers the response that a person prefers: over pairs of responses that both decide, each vote of a
    person one comparison; 95 % interval clustered by prompt (Wilson). ``undecided`` counts pairs that a person decides and the
    judge does not."""
    by_judge = {frozenset(pair): pair for label in judged for pair in wins(label)}
    same: list[bool] = []
    prompts: list[str] = []
    undecided = 0
    for vote in people:
        for pair in wins(vote):
            preferred = by_judge.get(frozenset(pair))
            if preferred is None:
                undecided += 1
            else:
                same.append(preferred == pair)
                prompts.append(vote.prompt_id)
    share = clustered_proportion(same, prompts)
    return {"agreement": share.value, "ci": share.ci, "n": share.n, "prompts": len(set(prompts)), "undecided": undecided}


def with_people(by_judge: Sequence[Pair], votes: PeoplesVotes) -> tuple[list[Pair], dict[str, int]]:
    """The judge's pairs; where people voted on a prompt, theirs replace them, and a person's tie makes no pair. What of people's
    votes gives no pair is counted by reason."""
    voted = {vote.prompt_id for vote in votes.judgments}
    pairs, left_out = votes.decided()
    return [pair for pair in by_judge if pair.prompt.id not in voted] + pairs, left_out
