"""What a judgment means for its responses: which beats which, by how much, and which are good or bad by themselves.

The one place for the rules that every dataset follows:

- the lower rank number wins, equal numbers are a tie, and a tie makes no pair;
- "F" (no answer at all) loses to every ranked response; two F make no pair;
- a response without a rank loses to every ranked one and to nothing else;
- under the direction ``more_harmful`` the first rank is the worst to train on, so the order is turned round. F does not measure
  harm, so such a response takes part in no pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

from charter.records import Judgment, Rank

MARGINS = {1: 0.0, 2: 1 / 3, 3: 2 / 3, 4: 1.0}
"""Margin of the loss by notches of strength: the four levels of Llama 2 (Touvron et al. 2023, section 3.2.2, small margins)."""
WEAKEST = 1


def oriented(judgment: Judgment) -> Judgment:
    """The judgment as one of direction ``better``: itself, or turned round where the rater was asked for harm.

    Ranks are numbered anew from 1, and strength and margins change sign. Edits are dropped (a rewrite under this direction need
    not be the better text), and so are responses with an F; of the one response that then remains nothing is said. A single
    harmful response (1) becomes an F; a single harmless response gets no rank, because it need not be good.
    """
    if judgment.direction != "more_harmful":
        return judgment
    order = tuple(response for response in judgment.order if judgment.ranks.get(response) != "F")
    ranked = {response: rank for response, rank in judgment.ranks.items() if rank != "F"}
    ranks: dict[str, Rank] = {}
    if len(judgment.order) == 1:
        ranks = dict.fromkeys(ranked, "F")
    elif ranked:
        levels = sorted(set(ranked.values()), reverse=True)
        unranked = [response for response in order if response not in ranked]
        ranks = {response: levels.index(rank) + (2 if unranked else 1) for response, rank in ranked.items()}
        ranks |= dict.fromkeys(unranked, 1)
    if len(order) == 1 < len(judgment.order):
        ranks = {}  # beside an F alone it beats nothing; a rank would read as a thumb up for the most harmful response
    turned = {
        "direction": "better", "order": order or judgment.order, "ranks": ranks, "edit": {},
        "strength": None if judgment.strength is None else -judgment.strength,
        "margin": None if judgment.margin is None else -judgment.margin,
        "margins_by_order": judgment.margins_by_order and tuple(-margin for margin in judgment.margins_by_order),
    }  # fmt: skip
    return judgment.model_copy(update=turned)


def wins(judgment: Judgment) -> list[tuple[str, str]]:
    """(chosen, rejected) response ids of every pair that the judgment decides, at most N choose 2, in the order shown."""
    judged = oriented(judgment)
    pairs = []
    for first, second in combinations(judged.order, 2):
        if _beats(judged.ranks, first, second):
            pairs.append((first, second))
        elif _beats(judged.ranks, second, first):
            pairs.append((second, first))
    return pairs


def ties(judgment: Judgment) -> list[tuple[str, str]]:
    """Pairs of responses with the same rank number, in the order shown."""
    judged = oriented(judgment)
    ranks = judged.ranks
    return [
        (first, second) for first, second in combinations(judged.order, 2)
        if isinstance(ranks.get(first), int) and ranks.get(first) == ranks.get(second)
    ]  # fmt: skip


def labels(judgment: Judgment) -> list[tuple[str, bool]]:
    """(response id, whether it is good) for training without pairs, in the order shown.

    A thumb up (a single response of rank 1) is good, an F is bad wherever it was given; of a ranking those are good that beat
    another and lose to none, and those bad that lose to another and beat none. What stands between says neither.
    """
    judged = oriented(judgment)
    decided = wins(judged)
    up, down = {winner for winner, _ in decided}, {loser for _, loser in decided}
    marks = []
    for response in judged.order:
        rank = judged.ranks.get(response)
        if rank == "F" or (response in down and response not in up):
            marks.append((response, False))
        elif (response in up and response not in down) or (rank == 1 and len(judged.order) == 1):
            marks.append((response, True))
    return marks


def notches(judgment: Judgment) -> int:
    """How strongly the better of two was preferred, 1 to 4; 0 without a strength."""
    return abs(judgment.strength or 0) if len(judgment.order) == 2 else 0


def contradicts_itself(judgment: Judgment) -> bool:
    """Whether strength or margin names the other of two responses than the ranks do."""
    judged = oriented(judgment)
    if len(judgment.order) != 2 or len(pairs := wins(judged)) != 1:
        return False
    sign = 1 if pairs[0][0] == judged.order[0] else -1
    return (judged.strength or 0) * sign < 0 or (judged.margin or 0) * sign < 0


def soft_label(margin: float | None, calibration: float = 1.0) -> float:
    """P(chosen is better) = sigma(\\|margin\\| / calibration) of a rater that stored a margin (nats), else 1.

    Twelve decimals, so that a label that went out and came back as a margin is the same number.
    """
    return 1.0 if margin is None else round(1 / (1 + math.exp(-abs(margin) / calibration)), 12)


def margin_of(weight: float) -> float | None:
    """The margin (nats) whose soft label this is; None for a certain one."""
    return None if weight >= 1 else math.log(weight / (1 - weight))


def _beats(ranks: Mapping[str, Rank], response: str, other: str) -> bool:
    rank, other_rank = ranks.get(response), ranks.get(other)
    return isinstance(rank, int) and (not isinstance(other_rank, int) or rank < other_rank)
