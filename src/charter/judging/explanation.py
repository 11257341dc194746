"""Which principles of a constitution people follow, and where they part from the judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charter.constitution.constitution import Constitution
from charter.judging.inference import agreement
from charter.judging.vote_pairs import Panel, PeoplesPairs
from charter.raters.principle_weights import FAMILY_ERROR, fit_weights, score_test

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


def together(panel: Panel, constitution: Constitution) -> NDArray[np.float64]:
    """(N,) the opinion of all principles by their weights."""
    return np.array([p.weight for p in constitution.principles]) @ panel.opinions


def explain_group(name: str, votes: PeoplesPairs, panel: Panel, constitution: Constitution, mask: Mask) -> dict[str, Any]:
    """What a group of votes (V,) says: agreement with every principle, its coverage, its weight beside the others, and the
    agreement with the judge under all principles by the constitution's weights.

    ``follows``: yes where the weight is above 0 (``p``, corrected for the number of principles); the opposite where the
    agreement, with an interval corrected likewise, is below one half.
    """
    pairs, sign = votes.pair[mask], votes.sign[mask]
    clusters = [votes.pairs[i].cluster for i in pairs]
    says = (panel.opinions[:, pairs] * sign).T
    weights = fit_weights(says)
    level = 1 - FAMILY_ERROR / len(constitution.principles)
    rows = []
    for c, principle in enumerate(constitution.principles):
        speaks = says[:, c] != 0
        p = min(1.0, len(weights) * score_test(says[:, c], np.delete(says, c, axis=1), clusters))
        share = agreement(says[speaks, c], [cluster for cluster, spoken in zip(clusters, speaks, strict=True) if spoken], level)
        rows.append({
            "id": principle.id, "title": principle.title, "agreement": share.value, "ci": share.ci, "n": share.n,
            "coverage": float(speaks.mean()) if len(speaks) else 0.0, "weight": float(weights[c]), "p": p,
            "follows": follows(p, share.ci),
        })  # fmt: skip
    whole = agreement(together(panel, constitution)[pairs] * sign, clusters)
    return {"group": name, "votes": len(pairs), "agreement": whole.value, "ci": whole.ci, "n": whole.n, "principles": rows}


def follows(p: float, ci: tuple[float, float] | None) -> str:
    if p <= FAMILY_ERROR:
        return "yes"
    return "no, the opposite" if ci is not None and ci[1] < 0.5 else "not shown"


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
