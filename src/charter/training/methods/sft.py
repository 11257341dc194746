"""Supervised fine-tuning on responses; the prompt is masked."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from charter.errors import InputError
from charter.models.cut import Cut, answer_rows
from charter.models.packing import Tokens
from charter.models.trunk import Trunk
from charter.records import Message
from charter.run.hashes import derive_seed
from charter.run.run import Stage
from charter.run.team import team
from charter.stages.sft.settings import SFTSettings
from charter.training.batches import own_by_tokens, report_cut
from charter.training.checkpoints import Checkpoints
from charter.training.epochs import epochs_of
from charter.training.losses import sft_loss
from charter.training.optimizer import scaling_of


def sft_tokens(trunk: Trunk, examples: Sequence[tuple[Sequence[Message], str]], limit: int | None = None) -> list[Tokens]:
    """Conversations and the responses to learn, as ids, cut to ``limit`` tokens (:mod:`charter.models.cut`). InputError where
    there is nothing to learn."""
    if not examples:
        raise InputError("no examples to fine-tune on")
    return [row for messages, answer in examples for row in answer_rows(trunk.tokenizer, messages, [answer], limit)]


def train_sft(trunk: Trunk, rows: Sequence[Tokens], settings: SFTSettings, stage: Stage) -> Cut:
    """Train role ``policy`` of the trunk on the response tokens of ``rows``; returns what cutting them cost.

    The loss is the mean over all response tokens of a step, not a mean of means, so the split into micro-batches does not
    matter.
    """
    cut = Cut.of(rows)
    report_cut(stage, cut, max(map(len, rows)))
    trunk.add_role("policy")
    seed = derive_seed(stage.run.seed, stage.name)
    steps, optimizer = epochs_of(trunk, "policy", len(rows), settings.responses_per_step, settings, seed)
    checkpoints = Checkpoints(stage, {"policy": optimizer}, settings.checkpoint_every)
    stage.rewind("metrics.jsonl", checkpoints.first)
    for step in stage.progress(range(len(steps)), done=checkpoints.first):
        batch = [rows[i] for i in steps[step]]
        n_tokens = sum(len(row.response) for row in batch)
        total = 0.0
        for group in own_by_tokens(trunk, "policy", [len(row) for row in batch], settings.tokens_per_micro_batch):
            packed = trunk.pack([batch[i] for i in group])
            logprobs, _ = trunk.logprobs("policy", packed)
            loss = sft_loss(logprobs, packed.mask, n_tokens)
            torch.autograd.backward(loss)
            total += loss.item()
        (total,) = team().add_up(total)
        rate = optimizer.rate()
        norm = optimizer.step()
        stage.record(step, loss=total, tokens=n_tokens, learning_rate=rate, grad_norm=norm, **scaling_of(optimizer))
        checkpoints.after(step + 1)
    return cut
