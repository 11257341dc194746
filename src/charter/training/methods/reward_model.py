"""A reward model on the shared trunk: from pairs by Bradley-Terry with soft labels and margins, or from ratings by regression;
one, or an ensemble of adapters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import compress, groupby
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from charter.errors import GateError
from charter.models.cut import Cut, answer_rows
from charter.models.heads import Scorers, ScoreScale
from charter.models.packing import Packed, Tokens
from charter.models.trunk import Trunk
from charter.records import Pair, Rating
from charter.run.hashes import derive_seed
from charter.run.run import Stage
from charter.run.team import team
from charter.stages.reward_model.settings import RatingModelSettings, RewardModelSettings, ScorerSettings
from charter.training.batches import own_by_tokens, report_cut
from charter.training.checkpoints import Checkpoints
from charter.training.epochs import epochs_of
from charter.training.losses import bradley_terry_loss, rating_loss
from charter.training.optimizer import scaling_of

SCALE_ROWS = 500  # pairs whose scores set the scale; more would not change it


def pair_tokens(trunk: Trunk, pair: Pair, limit: int | None = None) -> tuple[Tokens, Tokens]:
    """Chosen and rejected as ids after the same prompt, each closed by the end-of-turn token; cut to ``limit`` tokens
    (:mod:`charter.models.cut`)."""
    chosen, rejected = answer_rows(trunk.tokenizer, pair.prompt.messages, [pair.chosen, pair.rejected], limit)
    return chosen, rejected


def pairs_that_differ(
    trunk: Trunk, pairs: Sequence[Pair], limit: int | None
) -> tuple[list[Pair], list[tuple[Tokens, Tokens]], Cut]:
    """The pairs whose two rows are different tokens once they are cut, those rows, and what the cutting cost."""
    rows = [pair_tokens(trunk, pair, limit) for pair in pairs]
    differ = [chosen.response != rejected.response for chosen, rejected in rows]
    cut = Cut.of((row for both in rows for row in both), differ.count(False))
    return list(compress(pairs, differ)), list(compress(rows, differ)), cut


def by_group(pairs: Sequence[Pair]) -> list[list[int]]:
    """Indices of the pairs of each group: the pairs of one ranking are one element of a batch (Ouyang et al. 2022, 3.5)."""
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i].group_id, i))
    return [list(group) for _, group in groupby(order, key=lambda i: pairs[i].group_id)]


def pair_shares(groups: Sequence[str], average: Literal["pairs", "rankings"]) -> Tensor:
    """What each pair (N,) of a batch counts for in its loss, 1 in all: the same for every pair, or for every ranking."""
    size = Counter(groups)
    weights = torch.tensor([1.0 if average == "pairs" else 1 / size[group] for group in groups])
    return weights / weights.sum()


def members(settings: ScorerSettings) -> tuple[str, ...]:
    """The roles that are trained: ``reward``, and for an ensemble ``reward_2`` and so on."""
    return ("reward", *(f"reward_{i}" for i in range(2, settings.ensemble + 1)))


def train_reward_model(
    trunk: Trunk, pairs: Sequence[Pair], settings: RewardModelSettings, stage: Stage, *, limit: int | None = None
) -> Scorers:
    """Train role ``reward`` of the trunk on pairs, or all members of an ensemble. The loss is a mean over pairs, or a
    mean over rankings of the mean over their pairs (Ouyang et al. 2022, eq. 1). A response that stands in several pairs of a
    ranking goes through the model once (ibid., 3.5). Pairs whose rows are equal are left out."""
    pairs, rows, cut = pairs_that_differ(trunk, pairs, limit)
    report_cut(stage, cut, limit)
    if not pairs:
        raise GateError("no pairs to learn from" + (f": {cut.words(limit)}" if cut.figures else ""))
    groups = by_group(pairs)
    lengths = [max(len(row) for row in both) for both in rows]

    def learn(role: str, batch: list[int]) -> tuple[float, float]:
        total = correct = 0.0
        shares = pair_shares([pairs[i].group_id for i in batch], settings.average).to(trunk.device)
        for part in own_by_tokens(
            trunk, role, [lengths[i] for i in batch], settings.tokens_per_micro_batch // 2, [pairs[i].group_id for i in batch]
        ):
            rows_here = [batch[j] for j in part]
            packed, places = pack_once(trunk, [rows[i][side] for side in (0, 1) for i in rows_here])
            chosen, rejected = trunk.scores(role, packed)[places].chunk(2)
            weight = torch.tensor([pairs[i].weight for i in rows_here], device=trunk.device)
            margin = torch.tensor([pairs[i].margin for i in rows_here], device=trunk.device)
            loss = bradley_terry_loss(chosen, rejected, weight, margin, settings.centering) @ shares[part]
            torch.autograd.backward(loss)
            total += loss.item()
            correct += float((chosen > rejected).sum()) / len(batch)
        return total, correct

    per_step = max(1, round(settings.pairs_per_step * len(groups) / len(pairs)))
    train_members(trunk, settings, stage, len(groups), per_step, lambda role, batch: learn(
        role, [i for g in batch for i in groups[g]]), ("loss", "accuracy"))  # fmt: skip
    some = rows[:: max(1, len(rows) // SCALE_ROWS)]
    return with_scales(trunk, settings, [row for pair in some for row in pair])


def train_rating_model(
    trunk: Trunk, ratings: Sequence[Rating], settings: RatingModelSettings, stage: Stage, *, limit: int | None = None
) -> Scorers:
    """Train the same roles on ratings of single responses: the score is pulled to the rating, both on mean 0 and standard
    deviation 1 of the training ratings, by the squared or the absolute distance. The loss is a mean over responses."""
    rows = [rating_tokens(trunk, rating, limit) for rating in ratings]
    report_cut(stage, Cut.of(rows), limit)
    scale = rating_scale(ratings)
    targets = scale(torch.tensor([rating.score for rating in ratings], device=trunk.device))

    def learn(role: str, batch: list[int]) -> tuple[float]:
        total = 0.0
        for part in own_by_tokens(trunk, role, [len(rows[i]) for i in batch], settings.tokens_per_micro_batch):
            rows_here = [batch[j] for j in part]
            scores = trunk.scores(role, trunk.pack([rows[i] for i in rows_here]))
            loss = rating_loss(scores, targets[rows_here], settings.loss).sum() / len(batch)
            torch.autograd.backward(loss)
            total += loss.item()
        return (total,)

    train_members(trunk, settings, stage, len(rows), settings.ratings_per_step, learn, ("loss",))
    return with_scales(trunk, settings, rows[:: max(1, len(rows) // (2 * SCALE_ROWS))])


def train_members(
    trunk: Trunk,
    settings: ScorerSettings,
    stage: Stage,
    n: int,
    per_step: int,
    learn: Callable[[str, list[int]], tuple[float, ...]],
    names: tuple[str, ...],
    *,
    head: bool = True,
) -> None:
    """Train every member on all n items, each from its own start and in an order of its own: what tells them apart. Without a
    ``head`` the roles are language models."""
    roles = members(settings)
    if trunk.stored_head is not None:
        stage.run.say(f"  training starts from the reward head of {trunk.path}")
    for role in roles:
        trunk.add_role(role, head=head)
    seed = derive_seed(stage.run.seed, stage.name)
    seeds = {role: seed if role == "reward" else derive_seed(seed, role) for role in roles}
    trainings = {role: epochs_of(trunk, role, n, per_step, settings, seeds[role]) for role in roles}
    orders = [order for order, _ in trainings.values()]
    optimizers = {role: optimizer for role, (_, optimizer) in trainings.items()}
    checkpoints = Checkpoints(stage, optimizers, settings.checkpoint_every)
    stage.rewind("metrics.jsonl", checkpoints.first)
    for step in stage.progress(range(len(orders[0])), done=checkpoints.first):
        measures = []
        for role, order in zip(roles, orders, strict=True):
            measured = team().add_up(*learn(role, order[step]))
            rate = optimizers[role].rate()
            measures.append((*measured, optimizers[role].step(), rate))
        *means, norm, rate = np.mean(np.array(measures), axis=0).tolist()  # over the members
        stage.record(
            step, **dict(zip(names, means, strict=True)), grad_norm=norm, learning_rate=rate, **scaling_of(*optimizers.values())
        )
        checkpoints.after(step + 1)


def pack_once(trunk: Trunk, rows: Sequence[Tokens]) -> tuple[Packed, Tensor]:
    """Rows in line with every different row once, and for each row given its place among them (N,)."""
    places: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    index = [places.setdefault((tuple(row.prompt), tuple(row.response)), len(places)) for row in rows]
    return trunk.pack([Tokens(*row) for row in places]), torch.tensor(index, device=trunk.device)


def rating_tokens(trunk: Trunk, rating: Rating, limit: int | None) -> Tokens:
    """Prompt and response of a rating as ids, closed by the end of turn, at most ``limit`` of them."""
    (row,) = answer_rows(trunk.tokenizer, rating.prompt.messages, [rating.response], limit)
    return row


def rating_scale(ratings: Sequence[Rating]) -> ScoreScale:
    """Mean and standard deviation of ratings."""
    values = np.array([rating.score for rating in ratings])
    return ScoreScale(float(values.mean()), max(float(values.std()), 1e-6))


def with_scales(trunk: Trunk, settings: ScorerSettings, rows: Sequence[Tokens]) -> Scorers:
    """The trained roles with the scale of each: mean and standard deviation of its scores of ``rows``."""
    roles = members(settings)
    scales = []
    for role in roles:
        scores = score_rows(trunk, rows, settings.tokens_per_micro_batch, role)
        scales.append(ScoreScale(float(scores.mean()), max(float(scores.std()), 1e-6)))
    return Scorers(roles, tuple(scales), settings.combine)


@torch.no_grad()
def score_rows(trunk: Trunk, rows: Sequence[Tokens], tokens_per_micro_batch: int, role: str = "reward") -> Tensor:
    """Raw scores (N,) of prompt-response rows by one role, on the CPU."""
    scores = torch.zeros(len(rows))
    for group in own_by_tokens(
        trunk, role, [len(row) for row in rows], tokens_per_micro_batch, [tuple(row.prompt) for row in rows]
    ):
        scores[torch.tensor(group)] = trunk.scores(role, trunk.pack([rows[i] for i in group])).cpu()
    return team().sum_(scores)


def reward_scores(
    trunk: Trunk, scorers: Scorers, rows: Sequence[Tokens], tokens_per_micro_batch: int, *, standardise: bool = True
) -> Tensor:
    """What a reward model scores rows, its members combined: (N,), on the CPU."""
    return scorers(raw_scores(trunk, scorers, rows, tokens_per_micro_batch), standardise=standardise)


def raw_scores(trunk: Trunk, scorers: Scorers, rows: Sequence[Tokens], tokens_per_micro_batch: int) -> Tensor:
    """Raw scores (members, N) of rows, on the CPU."""
    return torch.stack([score_rows(trunk, rows, tokens_per_micro_batch, role) for role in scorers.roles])


def score_pairs(
    trunk: Trunk, scorers: Scorers, pairs: Sequence[Pair], tokens_per_micro_batch: int, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the chosen and of the rejected responses, whose difference is in log odds: two arrays (N,)."""
    rows = [row for pair in pairs for row in pair_tokens(trunk, pair, limit)]
    scores = reward_scores(trunk, scorers, rows, tokens_per_micro_batch, standardise=False).view(-1, 2).numpy()
    return scores[:, 0], scores[:, 1]
