"""A reward model from pairs: Bradley-Terry with soft labels and margins, on the shared trunk."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from charter.config import RewardModelSettings
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.packing import Tokens
from charter.models.trunk import Trunk
from charter.records import Pair
from charter.run import Stage, derive_seed
from charter.training.batches import by_tokens, epoch_batches
from charter.training.losses import bradley_terry_loss
from charter.training.optimizer import Optimizer, load_checkpoint, save_checkpoint


def pair_tokens(trunk: Trunk, pair: Pair, limit: int | None = None) -> tuple[Tokens, Tokens]:
    """Chosen and rejected as ids, each closed by the end-of-turn token. With ``limit`` the oldest prompt tokens are dropped
    until a row fits; a response longer than the limit loses its own end."""
    prompt = encode_prompt(trunk.tokenizer, pair.prompt.messages)
    return tuple(  # type: ignore[return-value]
        clip(Tokens(prompt, encode_response(trunk.tokenizer, text)), limit) for text in (pair.chosen, pair.rejected)
    )


def clip(row: Tokens, limit: int | None) -> Tokens:
    """At most ``limit`` tokens: the oldest of the prompt go first, then the end of the response."""
    if limit is None or len(row) <= limit:
        return row
    response = row.response[: limit - 1]
    return Tokens(row.prompt[len(row.prompt) - (limit - len(response)) :], response)


def by_group(pairs: Sequence[Pair]) -> list[list[int]]:
    """Indices of the pairs of each group: the pairs of one ranking are one element of a batch (Ouyang et al. 2022, 3.5)."""
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i].group_id, i))
    return [list(group) for _, group in groupby(order, key=lambda i: pairs[i].group_id)]


def train_reward_model(
    trunk: Trunk, pairs: Sequence[Pair], settings: RewardModelSettings, stage: Stage, *, limit: int | None = None
) -> None:
    """Train role ``reward`` of the trunk on pairs. The loss is a mean over pairs, each weighing the same."""
    trunk.add_role("reward", head=True)
    rows = [pair_tokens(trunk, pair, limit) for pair in pairs]
    groups = by_group(pairs)
    per_step = max(1, round(settings.pairs_per_step * len(groups) / len(pairs)))
    seed = derive_seed(stage.run.seed, stage.name)
    steps = epoch_batches(len(groups), per_step, settings.epochs, seed)
    optimizer = Optimizer(
        trunk.parameters("reward"),
        settings.learning_rate,
        len(steps),
        warmup=settings.warmup,
        max_grad_norm=settings.max_grad_norm,
    )
    checkpoint = stage.path("checkpoint.safetensors")
    first, _ = load_checkpoint(checkpoint, {"reward": optimizer})
    stage.rewind("metrics.jsonl", first)
    for step in stage.progress(range(len(steps)), done=first):
        batch = [i for g in steps[step] for i in groups[g]]
        total = correct = 0.0
        lengths = [max(len(row) for row in rows[i]) for i in batch]
        for part in by_tokens(lengths, settings.tokens_per_micro_batch // 2, [pairs[i].group_id for i in batch]):
            members = [batch[j] for j in part]
            packed = trunk.pack([rows[i][side] for side in (0, 1) for i in members])
            chosen, rejected = trunk.scores("reward", packed).chunk(2)
            weight = torch.tensor([pairs[i].weight for i in members], device=trunk.device)
            margin = torch.tensor([pairs[i].margin for i in members], device=trunk.device)
            loss = bradley_terry_loss(chosen, rejected, weight, margin, settings.centering).sum() / len(batch)
            torch.autograd.backward(loss)
            total += loss.item()
            correct += float((chosen > rejected).sum())
        rate = optimizer.rate()
        norm = optimizer.step()
        stage.record(step, loss=total, accuracy=correct / len(batch), learning_rate=rate, grad_norm=norm)
        if (step + 1) % settings.checkpoint_every == 0:
            save_checkpoint(checkpoint, step + 1, {"reward": optimizer}, {})


@torch.no_grad()
def score_rows(trunk: Trunk, rows: Sequence[Tokens], tokens_per_micro_batch: int, role: str = "reward") -> Tensor:
    """Raw scores (N,) of prompt-response rows, on the CPU."""
    scores = torch.zeros(len(rows))
    for group in by_tokens([len(row) for row in rows], tokens_per_micro_batch, [tuple(row.prompt) for row in rows]):
        scores[torch.tensor(group)] = trunk.scores(role, trunk.pack([rows[i] for i in group])).cpu()
    return scores


def score_pairs(
    trunk: Trunk, pairs: Sequence[Pair], tokens_per_micro_batch: int, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Raw scores of the chosen and of the rejected responses: two arrays (N,)."""
    both = [pair_tokens(trunk, pair, limit) for pair in pairs]
    scores = score_rows(trunk, [row for pair in both for row in pair], tokens_per_micro_batch).view(-1, 2).numpy()
    return scores[:, 0], scores[:, 1]
