"""Principles out of votes: which candidates predict votes that nobody chose them by.

Half of the prompts, by a hash of the seed, choose the candidates and their weights (:mod:`charter.raters.principle_weights`); the
votes on the other half confirm each of them and measure everything that is reported. No dialogue opening is on both sides. Only
pairs of the first half are shown to a model that proposes candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charter.constitution.constitution import Constitution, Principle
from charter.judging.vote_pairs import Panel, PeoplesPairs
from charter.raters.principle_weights import FAMILY_ERROR, Chosen, choose_and_confirm
from charter.records import content_id
from charter.statistics import Estimate, clustered_share

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
LEAST_PROMPTS = 10  # on each side; fewer give no interval worth the name
EVERYONE = "all votes"
NO_GROUP = "without a group"


def held_out_pairs(votes: PeoplesPairs, seed: int) -> Mask:
    """(N,) True for the pairs whose votes confirm: those of half of the dialogue openings."""
    clusters = votes.clusters
    order = sorted(set(clusters), key=lambda cluster: content_id(seed, cluster))
    confirming = set(order[len(order) // 2 :])
    return np.array([cluster in confirming for cluster in clusters])


@dataclass(frozen=True)
class Inference:
    """What the votes of a group of raters say about C candidates. ``kept``: numbers of the candidates, with their ``weights``;
    ``problem``: why nothing could be inferred."""

    group: str
    n_votes: int
    n_held_out: int
    kept: list[int]
    weights: list[float]
    rows: list[dict[str, Any]]
    prediction: Estimate | None
    problem: str | None = None

    def figures(self) -> dict[str, Any]:
        """As JSON values."""
        p = self.prediction
        return {
            "group": self.group, "votes": self.n_votes, "held_out_votes": self.n_held_out, "problem": self.problem,
            "kept": [row["id"] for row in self.rows if row["kept"]], "principles": self.rows,
            "accuracy": p and p.value, "ci": p and p.ci, "n": p.n if p else 0,
        }  # fmt: skip


def infer(
    votes: PeoplesPairs, panel: Panel, candidates: Sequence[Principle], *, seed: int, groups: Mapping[str, Mask]
) -> list[Inference]:
    """For each group of votes (V,) the candidates that they follow."""
    held_out = held_out_pairs(votes, seed)
    return [infer_group(name, votes, mask, panel, candidates, held_out) for name, mask in groups.items()]


def groups_of(votes: PeoplesPairs, by: str | None, group_of_rater: Mapping[str, str] | None = None) -> dict[str, Mask]:
    """All votes, then by ``rater`` those of each rater, or by ``group`` those of each group of the table; raters without a group
    are one. A single rater or group is everyone."""
    everyone = {EVERYONE: np.ones(len(votes.pair), dtype=bool)}
    if by is None:
        return everyone
    names = [name if by == "rater" else (group_of_rater or {}).get(name, NO_GROUP) for name in votes.raters]
    mine = np.array(names, dtype=object)[votes.rater]
    several = sorted(set(names)) if len(set(names)) > 1 else []
    return everyone | {name: mine == name for name in several}


def infer_group(
    name: str, votes: PeoplesPairs, mask: Mask, panel: Panel, candidates: Sequence[Principle], held_out: Mask
) -> Inference:
    """What one group of votes (V,) says."""
    says = (panel.opinions[:, votes.pair] * votes.sign).T[mask]
    pairs = votes.pair[mask]
    confirms = held_out[pairs]
    clusters = [votes.pairs[i].cluster for i in pairs]
    sides = [len({c for c, out in zip(clusters, confirms, strict=True) if out == side}) for side in (False, True)]
    if min(sides) < LEAST_PROMPTS:
        words = f"votes on {sides[0]} and {sides[1]} prompts; at least {LEAST_PROMPTS} must choose and as many confirm"
        return Inference(name, len(pairs), int(confirms.sum()), [], [], [], None, words)
    chosen = choose_and_confirm(says, confirms, clusters)
    labels = [cluster for cluster, out in zip(clusters, confirms, strict=True) if out]
    rows = [candidate_row(c, says[confirms], labels, candidates, chosen) for c in range(len(candidates))]
    prediction = agreement(says[confirms][:, chosen.principles] @ chosen.weights, labels)
    return Inference(name, len(pairs), int(confirms.sum()), chosen.principles, chosen.weights.tolist(), rows,
                     prediction if chosen.principles else None)  # fmt: skip


def agreement(says: Floats, clusters: Sequence[str], level: float = 0.95) -> Estimate:
    """The share of votes (V,) with which signed opinions agree, a half where they say nothing."""
    return clustered_share(np.where(says == 0, 0.5, says > 0).tolist(), clusters, level)


def candidate_row(
    c: int, says: Floats, clusters: Sequence[str], candidates: Sequence[Principle], chosen: Chosen
) -> dict[str, Any]:
    """What held-out votes (V, C) say about a candidate: its accuracy where it says something, with an interval that holds for all
    candidates together, its coverage, and why it was not kept."""
    mine = says[:, c]
    speaks = mine != 0
    level = 1 - FAMILY_ERROR / len(candidates)
    right = agreement(mine[speaks], [cluster for cluster, spoken in zip(clusters, speaks, strict=True) if spoken], level)
    kept = c in chosen.principles
    place = chosen.principles.index(c) if kept else None
    p = chosen.p[place] if place is not None else chosen.refused.get(c)
    return {
        "id": candidates[c].id, "title": candidates[c].title, "kept": kept, "accuracy": right.value, "ci": right.ci,
        "n": right.n, "coverage": float(speaks.mean()), "weight": None if place is None else float(chosen.weights[place]),
        "p": p, "reason": None if kept else reason_of(c, says, candidates, chosen),
    }  # fmt: skip


def reason_of(c: int, says: Floats, candidates: Sequence[Principle], chosen: Chosen) -> str:
    """Why a candidate was not kept."""
    if c in chosen.refused:
        return "chosen, and not confirmed by the held-out votes"
    if not says[:, c].any():
        return "says nothing about these pairs"
    likeness = {kept: float((np.sign(says[:, c]) == np.sign(says[:, kept])).mean()) for kept in chosen.principles}
    nearest = max(likeness, key=likeness.__getitem__, default=None)
    if nearest is not None and likeness[nearest] >= 0.9:
        return f"says the same as {candidates[nearest].id} about {likeness[nearest]:.0%} of the votes"
    return "adds too little to what is kept" if chosen.principles else "does not predict the votes that choose"


def constitution_of(inference: Inference, candidates: Sequence[Principle], source: str) -> Constitution:
    """The kept candidates as a constitution; the mean of their weights is 1. ``source``: where the votes come from."""
    mean = sum(inference.weights) / len(inference.weights)
    principles = []
    for c, weight in sorted(zip(inference.kept, inference.weights, strict=True), key=lambda item: -item[1]):
        row = inference.rows[c]
        figures = f"{row['accuracy']:.0%} of {row['n']} held-out votes" if row["accuracy"] is not None else "no held-out vote"
        words = f"{candidates[c].source}; " if candidates[c].source else ""
        update = {"weight": min(max(round(weight / mean, 4), 1e-4), 1e6), "source": f"{words}inferred from {source}: {figures}"}
        principles.append(candidates[c].model_copy(update=update))
    return Constitution(
        title=f"Inferred from {source}", description=f"{inference.group}: {inference.n_votes} votes", principles=tuple(principles)
    )
