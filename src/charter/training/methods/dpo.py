"""Direct preference optimisation and its family (Rafailov et al. 2023): pairs straight into the policy, nothing sampled.

The losses are in ``preference_losses``; this page feeds them. The reference's log-probabilities are computed once, before the
first update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from charter.errors import GateError
from charter.models.cut import Cut
from charter.models.packing import Tokens, clip
from charter.models.trunk import REFERENCE, Trunk
from charter.records import Pair
from charter.run.hashes import derive_seed
from charter.run.run import Stage
from charter.run.team import team
from charter.stages.rl.settings import DPOSettings
from charter.training.batches import own_by_tokens, report_cut
from charter.training.checkpoints import Checkpoints
from charter.training.epochs import epochs_of
from charter.training.gold import Gold, GoldCurve
from charter.training.losses import sft_loss
from charter.training.methods.reward_model import pairs_that_differ
from charter.training.optimizer import scaling_of
from charter.training.preference_losses import (
    LOSSES,
    PER_TOKEN,
    REFERENCE_FREE,
    PairLogprobs,
    PreferenceLoss,
    kto_loss,
    kto_reference_point,
    robust_loss,
    simpo_loss,
)


def train_dpo(
    trunk: Trunk, pairs: Sequence[Pair], settings: DPOSettings, stage: Stage, *, limit: int | None = None,
    gold: Gold | None = None,
) -> Cut:  # fmt: skip
    """Train role ``policy``, which must be on the trunk; the trunk's base is the reference. Every pair weighs the same. Returns
    what cutting the rows cost; pairs whose rows are equal are left out."""
    pairs, both, cut = pairs_that_differ(trunk, pairs, limit)
    report_cut(stage, cut, limit)
    if not pairs:
        raise GateError("no pairs to learn from" + (f": {cut.words(limit)}" if cut.figures else ""))
    seed = derive_seed(stage.run.seed, stage.name)
    rows = [row for sides in both for row in sides]  # chosen and rejected in turn
    tokens = torch.tensor([float(len(row.response)) for row in rows], device=trunk.device).view(-1, 2)
    weights = torch.tensor([pair.weight for pair in pairs], device=trunk.device)
    reference = torch.zeros(len(pairs), 2, device=trunk.device)
    if settings.loss not in REFERENCE_FREE:
        reference = sequence_logprobs(trunk, REFERENCE, rows, settings.tokens_per_micro_batch).view(-1, 2)
    steps, optimizer = epochs_of(trunk, "policy", len(pairs), settings.pairs_per_step, settings, seed)
    checkpoints = Checkpoints(stage, {"policy": optimizer}, settings.checkpoint_every)
    stage.rewind("metrics.jsonl", checkpoints.first)
    if not checkpoints.first:
        stage.run.say(f"  {len(pairs)} pairs, {len(steps)} updates of {settings.pairs_per_step}")

    curve, history = GoldCurve(trunk, settings, stage, gold, checkpoints.first), stage.metrics()
    for step in stage.progress(range(len(steps)), done=checkpoints.first):
        if curve.before(step, history, margin_of(history)):
            break
        batch = steps[step]
        n_chosen = int(tokens[batch, 0].sum())
        answers = [row for i in batch for row in rows[2 * i : 2 * i + 2]]
        point = reference_point(trunk, answers, settings) if settings.loss == "kto" else None
        totals = dict.fromkeys(("loss", "accuracy", "chosen", "rejected", "logprob_chosen", "logprob_rejected"), 0.0)
        lengths = [max(len(rows[2 * i]), len(rows[2 * i + 1])) for i in batch]
        for part in own_by_tokens(
            trunk, "policy", lengths, settings.tokens_per_micro_batch // 2, [pairs[i].group_id for i in batch]
        ):
            members = [batch[j] for j in part]
            packed = trunk.pack([rows[2 * i + side] for side in (0, 1) for i in members])
            logprobs, _ = trunk.logprobs("policy", packed)
            chosen, rejected = logprobs.sum(dim=1).chunk(2)
            pair = PairLogprobs(chosen, rejected, *reference[members].unbind(1), *tokens[members].unbind(1))
            losses = pair_losses(pair, weights[members], point, settings)
            loss = losses.sum() / len(batch) + settings.sft_coef * chosen_nll(logprobs, packed.mask, n_chosen)
            torch.autograd.backward(loss)
            with torch.no_grad():
                ratios = chosen - pair.reference_chosen, rejected - pair.reference_rejected
                if settings.loss in PER_TOKEN:
                    ratios = ratios[0] / pair.chosen_tokens, ratios[1] / pair.rejected_tokens
                totals["loss"] += loss.item()
                totals["accuracy"] += float((ratios[0] > ratios[1]).sum()) / len(batch)
                totals["chosen"] += settings.beta * float(ratios[0].sum()) / len(batch)
                totals["rejected"] += settings.beta * float(ratios[1].sum()) / len(batch)
                totals["logprob_chosen"] += float(chosen.sum()) / len(batch)
                totals["logprob_rejected"] += float(rejected.sum()) / len(batch)
        totals = dict(zip(totals, team().add_up(*totals.values()), strict=True))
        rate = optimizer.rate()
        norm = optimizer.step()
        row = stage.record(
            step,
            **scaling_of(optimizer),
            loss=totals["loss"],
            accuracy=totals["accuracy"],
            reward_chosen=totals["chosen"],
            reward_rejected=totals["rejected"],
            reward_margin=totals["chosen"] - totals["rejected"],
            logprob_chosen=totals["logprob_chosen"],
            logprob_rejected=totals["logprob_rejected"],
            learning_rate=rate,
            grad_norm=norm,
            updates=1,
        )
        history.append(row)
        checkpoints.after(step + 1)
    curve.finish(len(history), margin_of(history))
    return cut


def margin_of(history: Sequence[Mapping[str, float]]) -> float:
    """The mean margin of the last batch between chosen and rejected: what DPO raises in place of a reward, 0 before training."""
    return history[-1]["reward_margin"] if history else 0.0


def pair_losses(pairs: PairLogprobs, weight: Tensor, point: Tensor | None, settings: DPOSettings) -> Tensor:
    """The loss of each pair (B,) under the member of the family that the settings name; ``weight`` (B,) is the soft label. KTO
    takes the two responses of a pair as one good and one bad response; their losses are averaged."""
    if settings.loss == "kto":
        assert point is not None
        ratios = torch.cat([pairs.chosen - pairs.reference_chosen, pairs.rejected - pairs.reference_rejected])
        return kto_loss(ratios, torch.cat([weight, 1 - weight]), point, settings.beta).view(2, -1).mean(dim=0)
    share = settings.label_smoothing
    if settings.loss == "robust":
        return robust_loss(pairs, weight, settings.beta, share)
    loss: PreferenceLoss = LOSSES[settings.loss]
    if settings.loss == "simpo" and settings.gamma is not None:
        loss = partial(simpo_loss, gamma=settings.gamma)
    return loss(pairs, weight * (1 - share) + (1 - weight) * share, settings.beta)


def chosen_nll(logprobs: Tensor, mask: Tensor, n_tokens: int) -> Tensor:
    """Negative log-likelihood of the chosen half of a batch, nats per token of the optimizer batch's chosen responses."""
    half = len(logprobs) // 2
    return sft_loss(logprobs[:half], mask[:half], n_tokens)


def reference_point(trunk: Trunk, rows: Sequence[Tokens], settings: DPOSettings) -> Tensor:
    """KTO's z from the responses of a batch, good and bad, put behind the next other prompt, in policy and reference; 0 where
    all prompts are equal. Every row stays at most as long as the longest of the batch, which fits the model."""
    longest, n = max(map(len, rows)), len(rows)
    mismatched = []
    for i, row in enumerate(rows):
        others = (rows[(i + step) % n].prompt for step in range(1, n))
        prompt = next((other for other in others if list(other) != list(row.prompt)), None)
        mismatched += [clip(Tokens(prompt, row.response), longest)] if prompt is not None else []
    if not mismatched:
        return torch.zeros((), device=trunk.device)
    policy, base = (sequence_logprobs(trunk, role, mismatched, settings.tokens_per_micro_batch) for role in ("policy", REFERENCE))
    return kto_reference_point(policy - base)


@torch.no_grad()
def sequence_logprobs(trunk: Trunk, role: str, rows: Sequence[Tokens], tokens_per_micro_batch: int) -> Tensor:
    """log π(response | prompt) of each row, nats: (N,)."""
    sums = torch.zeros(len(rows), device=trunk.device)
    for group in own_by_tokens(
        trunk, role, [len(row) for row in rows], tokens_per_micro_batch, [tuple(row.prompt) for row in rows]
    ):
        logprobs, _ = trunk.logprobs(role, trunk.pack([rows[i] for i in group]))
        sums[torch.tensor(group)] = logprobs.sum(dim=1)
    return team().sum_(sums)
