"""Which principles of a constitution people follow, and where they part from the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charter.constitution.constitution import Constitution
from charter.judging.inference import agreement
from charter.judging.vote_pairs import Panel, PeoplesPairs
from charter.raters.principle_weights import fit_weights

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Parting:
    """A pair on which most people prefer another response than the judge does under ``principle`` (None: under all of them by
    their weights). ``margin``: the judge's for the response that the people did not choose, nats; of all principles the sum of
    their weights, each times its opinion from −1 to 1."""

    principle: str | None
    prompt: str
    people: str
    judge: str
    votes_people: int
    votes_judge: int
    margin: float

    def figures(self) -> dict[str, Any]:
        return dict(vars(self))


def explain(votes: PeoplesPairs, panel: Panel, constitution: Constitution, groups: Mapping[str, Mask]) -> dict[str, Any]:
    """For each group of votes (V,): agreement with every principle, its coverage, its weight beside the others, and the agreement
    with the judge under all principles by the constitution's weights."""
    return {"groups": [group_row(name, votes, panel, constitution, mask) for name, mask in groups.items()]}


def together(panel: Panel, constitution: Constitution) -> NDArray[np.float64]:
    """(N,) the opinion of all principles by their weights."""
    return np.array([p.weight for p in constitution.principles]) @ panel.opinions


def group_row(name: str, votes: PeoplesPairs, panel: Panel, constitution: Constitution, mask: Mask) -> dict[str, Any]:
    """The figures of one group. ``follows`` is yes or no where the interval, corrected for the number of principles, excludes
    one half."""
    pairs, sign = votes.pair[mask], votes.sign[mask]
    clusters = [votes.pairs[i].cluster for i in pairs]
    says = (panel.opinions[:, pairs] * sign).T
    weights = fit_weights(says)
    level = 1 - 0.05 / len(constitution.principles)
    rows = []
    for c, principle in enumerate(constitution.principles):
        speaks = says[:, c] != 0
        share = agreement(says[speaks, c], [cluster for cluster, said in zip(clusters, speaks, strict=True) if said], level)
        rows.append({
            "id": principle.id, "title": principle.title, "agreement": share.value, "ci": share.ci, "n": share.n,
            "coverage": float(speaks.mean()) if len(speaks) else 0.0, "weight": float(weights[c]), "follows": follows(share.ci),
        })  # fmt: skip
    whole = agreement(together(panel, constitution)[pairs] * sign, clusters)
    return {"group": name, "votes": len(pairs), "agreement": whole.value, "ci": whole.ci, "n": whole.n, "principles": rows}


def follows(ci: tuple[float, float] | None) -> str:
    if ci is None or ci[0] <= 0.5 <= ci[1]:
        return "not shown"
    return "yes" if ci[0] > 0.5 else "no, the opposite"


def partings(votes: PeoplesPairs, panel: Panel, constitution: Constitution, mask: Mask | None = None) -> list[Parting]:
    """The pairs on which most of the votes (V,) part from the judge: under all principles first, then under each, the surest
    judgments first."""
    balance = votes.balance(mask)
    counts = np.bincount(votes.pair if mask is None else votes.pair[mask], minlength=len(votes.pairs))
    views: list[tuple[str | None, NDArray[np.float64]]] = [(None, together(panel, constitution))]
    views += [(p.id, panel.margins[c]) for c, p in enumerate(constitution.principles)]
    rows = []
    for principle, opinion in views:
        apart = np.flatnonzero(balance * opinion < 0)
        for n in sorted(apart.tolist(), key=lambda n: (-abs(opinion[n]), n)):
            pair = votes.pairs[n]
            chosen, other = (pair.first, pair.second) if balance[n] > 0 else (pair.second, pair.first)
            total, side = int(counts[n]), abs(float(balance[n]))
            rows.append(Parting(principle, pair.prompt.last_turn, chosen.text, other.text, int((total + side) / 2),
                                int((total - side) / 2), float(abs(opinion[n]))))  # fmt: skip
    return rows


def parted_shares(parted: Sequence[Parting]) -> dict[str, int]:
    """How many pairs part under each principle."""
    counts: dict[str, int] = {}
    for row in parted:
        key = row.principle or "all principles together"
        counts[key] = counts.get(key, 0) + 1
    return counts
