"""Implicit language Q-learning (Snell et al. 2022, arXiv:2206.11871) on pairs or rated responses: offline, nothing is sampled.

Every token of a response is an action, the text before it the state. Q and V are heads on the policy's hidden states, with the
losses of section 4. Q shifts the choice of every token, π ∝ π_ref · exp(β (Q - V)), and is saved as part of the vocabulary
projection, so the policy is a plain language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from charter.errors import GateError, InputError
from charter.models.cut import Cut
from charter.models.formats.precision import with_scaled_gradient
from charter.models.formats.quantize import is_quantized
from charter.models.heads import QHeads
from charter.models.logprobs import chosen_logprobs, is_plain_projection
from charter.models.packing import Packed, Tokens
from charter.models.trunk import Trunk
from charter.records import Pair, Rating
from charter.run.hashes import derive_seed
from charter.run.run import Stage
from charter.run.team import team
from charter.stages.rl.settings import ILQLSettings
from charter.training.advantages import gae
from charter.training.batches import own_by_tokens, report_cut
from charter.training.checkpoints import Checkpoints
from charter.training.epochs import epochs_of
from charter.training.gold import Gold, GoldCurve
from charter.training.losses import expectile_loss, masked_mean, sft_loss
from charter.training.methods.reward_model import pairs_that_differ, rating_scale, rating_tokens
from charter.training.optimizer import scaling_of
from charter.training.rewards import at_last_token


def train_ilql(
    trunk: Trunk, examples: Sequence[Pair] | Sequence[Rating], settings: ILQLSettings, stage: Stage, *,
    limit: int | None = None, gold: Gold | None = None,
) -> Cut:  # fmt: skip
    """Train role ``policy``, which must be on the trunk. Returns what cutting the rows cost; pairs whose rows are equal are left
    out. InputError where Q does not fit the model (``add_q_heads``)."""
    rows, rewards, groups, items, cut = with_rewards(trunk, examples, limit)
    report_cut(stage, cut, limit)
    if not rows:
        raise GateError("nothing to learn from" + (f": {cut.words(limit)}" if cut.figures else ""))
    heads = add_q_heads(trunk, settings.value_gradient)
    seed = derive_seed(stage.run.seed, stage.name)
    per_step = settings.pairs_per_step * 2 // len(items[0])  # as many responses of either kind
    steps, optimizer = epochs_of(trunk, "policy", len(items), per_step, settings, seed)
    checkpoints = Checkpoints(stage, {"policy": optimizer}, settings.checkpoint_every)
    stage.rewind("metrics.jsonl", checkpoints.first)
    if not checkpoints.first:
        stage.run.say(f"  {len(rows)} responses, {len(steps)} updates of {settings.pairs_per_step * 2}")

    shift(trunk, heads, settings.beta)
    curve, history = GoldCurve(trunk, settings, stage, gold, checkpoints.first), stage.metrics()
    for step in stage.progress(range(len(steps)), done=checkpoints.first):
        if curve.before(step, history, margin_of(history)):
            break
        batch = [row for i in steps[step] for row in items[i]]
        n = sum(len(rows[i].response) for i in batch)
        n_better = sum(len(rows[i].response) for i in batch if rewards[i] > 0)
        totals = dict.fromkeys(("loss", "q_loss", "value_loss", "cql_loss", "nll", "value", "q_better", "q_worse"), 0.0)
        for part in own_by_tokens(
            trunk, "policy", [len(rows[i]) for i in batch], settings.tokens_per_micro_batch, [groups[i] for i in batch]
        ):
            members = [batch[j] for j in part]
            packed = trunk.pack([rows[i] for i in members])
            mask, of = packed.mask, read_actions(trunk, heads, packed)
            # Credit: at λ = 0 r + γ V of the next state, 0 after the last token.
            paid = at_last_token(rewards[members], mask)
            _, targets = gae(paid, of.values.detach(), mask, settings.gamma, settings.td_lambda)
            # Learn.
            q_loss = torch.stack([masked_mean((q - targets) ** 2, mask, n) for q in of.q]).sum()
            value_loss = expectile_loss(of.values, of.slow_q, mask, settings.expectile, n)
            cql_loss = torch.stack([sft_loss(logprobs, mask, n) for logprobs in of.q_logprobs]).sum()
            nll = sft_loss(of.logprobs, mask, n)
            loss = q_loss + value_loss + settings.cql_coef * cql_loss + settings.sft_coef * nll
            torch.autograd.backward(loss)
            with torch.no_grad():
                of_rows, better = of.slow_q.sum(dim=1), rewards[members] > 0
                q_better, q_worse = of_rows[better].sum() / max(n_better, 1), of_rows[~better].sum() / max(n - n_better, 1)
                parts = (loss, q_loss, value_loss, cql_loss, nll, of.values.sum() / n, q_better, q_worse)
                totals = {name: total + float(more) for (name, total), more in zip(totals.items(), parts, strict=True)}
        totals = dict(zip(totals, team().add_up(*totals.values()), strict=True))
        rate = optimizer.rate()
        norm = optimizer.step()
        heads.follow(settings.target_share)
        shift(trunk, heads, settings.beta)
        row = stage.record(step, **scaling_of(optimizer), **totals, learning_rate=rate, grad_norm=norm, updates=1)
        history.append(row)
        checkpoints.after(step + 1)
    curve.finish(len(history), margin_of(history))
    shift(trunk, heads, settings.beta)  # gold may have put earlier heads back
    return cut


class Rewarded(NamedTuple):
    """Rows to learn from, with the reward that is paid at the last token of each (N,) and the name of each row's prompt; the
    places of the rows that a step takes together, both of a pair or one; and what cutting the rows cost."""

    rows: list[Tokens]
    rewards: Tensor
    groups: list[str]
    items: list[list[int]]
    cut: Cut


def with_rewards(trunk: Trunk, examples: Sequence[Pair] | Sequence[Rating], limit: int | None) -> Rewarded:
    """Ratings are rewards on mean 0 and standard deviation 1 of them all. Of a pair, whose chosen response is better with
    probability w = ``weight``, the rewards are those that +1 for the better and -1 for the other give on average: ±(2w - 1)."""
    if ratings := [example for example in examples if isinstance(example, Rating)]:
        rows = [rating_tokens(trunk, rating, limit) for rating in ratings]
        scores = rating_scale(ratings)(torch.tensor([rating.score for rating in ratings], device=trunk.device))
        return Rewarded(rows, scores, [r.group_id for r in ratings], [[i] for i in range(len(rows))], Cut.of(rows))
    pairs, both, cut = pairs_that_differ(trunk, [pair for pair in examples if isinstance(pair, Pair)], limit)
    signed = torch.tensor([sign * (2 * pair.weight - 1) for pair in pairs for sign in (1, -1)], device=trunk.device)
    groups, rows = [pair.group_id for pair in pairs for _ in range(2)], [row for sides in both for row in sides]
    return Rewarded(rows, signed, groups, [[2 * i, 2 * i + 1] for i in range(len(pairs))], cut)


def margin_of(history: Sequence[Mapping[str, float]]) -> float:
    """How much more Q gives the better responses of the last batch than the others, 0 before training."""
    return history[-1]["q_better"] - history[-1]["q_worse"] if history else 0.0


def add_q_heads(trunk: Trunk, gradient: float) -> QHeads:
    """Give role ``policy`` the heads of Q and V, and a vocabulary projection of its own, which Q is added to. ``gradient``: see
    ``ValueHead``. InputError where the logits of the model are more than one product with weights that can be changed, or
    processes divide its training."""
    if not is_plain_projection(trunk.model) or is_quantized(trunk.model):
        words = "ilql adds Q to the vocabulary projection, and this model's is in 4 bits or has a bias, a scale or a cap"
        raise InputError(f"{words}; use another rl.method", file=trunk.path or None)
    if trunk.divided or trunk.engines is not None:
        raise InputError("ilql does not train weights that several processes divide; use parallel: ddp", field="rl.method")
    torch.manual_seed(derive_seed(trunk.seed, "q heads"))
    vocabulary, hidden = language_projection(trunk).shape
    heads = QHeads(vocabulary, hidden, gradient).to(trunk.device)
    output = nn.Linear(hidden, vocabulary, bias=False, device=trunk.device)
    trunk.value_heads["policy"], trunk.projections["policy"] = heads, output.requires_grad_(False)
    return heads


def language_projection(trunk: Trunk) -> Tensor:
    """The vocabulary projection (V, H) of the language model under Q, which trains as the other weights do."""
    weight: Tensor = trunk.copies.get("policy", trunk.model).get_output_embeddings().weight
    return weight


@torch.no_grad()
def shift(trunk: Trunk, heads: QHeads, beta: float) -> None:
    """Let the policy write by Q as the heads are now."""
    trunk.projections["policy"].weight.copy_(heads.perturbed(language_projection(trunk), beta))


class Actions(NamedTuple):
    """What the policy and its heads say of each response token; 0 outside the mask."""

    values: Tensor
    """(R, T): V of the state before it, reward units."""
    q: tuple[Tensor, ...]
    """(R, T) of each Q head: of this token, reward units."""
    slow_q: Tensor
    """(R, T): the lower of the two slow heads, without gradient."""
    q_logprobs: tuple[Tensor, ...]
    """(R, T) of each Q head: log softmax of Q over the vocabulary. Its negative is the CQL term, log Σ exp Q - Q."""
    logprobs: Tensor
    """(R, T), nats: of the language model under Q."""


def read_actions(trunk: Trunk, heads: QHeads, packed: Packed) -> Actions:
    """One pass of the policy and all of its heads."""
    hidden = trunk.through("policy", lambda model: trunk.hidden(model, packed, packed.before[packed.mask]))  # (n, H)
    states, targets = heads.states(hidden), packed.targets[packed.mask]

    def spread(numbers: Tensor) -> Tensor:
        zeros = torch.zeros(packed.mask.shape, device=numbers.device)
        return zeros.masked_scatter(packed.mask, with_scaled_gradient(trunk.scalers.get("policy"), numbers))

    def logprobs(of: Tensor, weight: Tensor) -> Tensor:
        weight = weight[: trunk.vocabulary]
        return spread(chosen_logprobs(of, weight, weight.detach().to(trunk.dtype), targets, temperature=1, entropy=False)[0])

    return Actions(
        spread(heads(hidden)),
        tuple(spread((states * q[targets]).sum(dim=1)) for q in heads.q),
        spread((hidden.detach() * heads.slow[:, targets]).sum(dim=2).amin(dim=0)),
        tuple(logprobs(states, q) for q in heads.q),
        logprobs(hidden, language_projection(trunk)),
    )
