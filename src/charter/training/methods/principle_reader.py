"""A reward model that reads the principle: a language model whose log P(Yes) − log P(No) is the score of a response.

Principle, prompt and response are one question, as the protocol ``yes_no`` and rubrics put it, so one model serves any
constitution (Wang et al. 2025, arXiv:2509.21319). It learns from pairs under a principle by Bradley-Terry on these margins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from charter.errors import GateError
from charter.models.chat_template import encode_prompt
from charter.models.packing import Tokens
from charter.models.sampling.sampler import encode_options
from charter.models.trunk import Trunk
from charter.records import Message, Pair
from charter.run.run import Stage
from charter.stages.reward_model.settings import RewardModelSettings
from charter.training.batches import own_by_tokens
from charter.training.losses import bradley_terry_loss
from charter.training.methods.reward_model import train_members


@dataclass(frozen=True)
class ReadPair:
    """A pair, the question about its chosen and about its rejected response, and the answer, Yes or No, that is good."""

    pair: Pair
    chosen: str
    rejected: str
    by_no: bool


def answers_to(trunk: Trunk, question: str) -> list[Tokens]:
    """The question as a prompt, followed by Yes and by No."""
    prompt = encode_prompt(trunk.tokenizer, [Message(role="user", content=question)])
    return [Tokens(prompt, ids) for ids in encode_options(trunk.tokenizer, ("Yes", "No"))]


def train_principle_reader(trunk: Trunk, pairs: Sequence[ReadPair], settings: RewardModelSettings, stage: Stage) -> None:
    """Train role ``reward`` of the trunk, a language model, on pairs; every pair weighs the same. GateError without pairs."""
    if not pairs:
        raise GateError("no pairs to learn from")
    rows = [[*answers_to(trunk, pair.chosen), *answers_to(trunk, pair.rejected)] for pair in pairs]
    lengths = [max(map(len, four)) for four in rows]

    def learn(role: str, batch: list[int]) -> tuple[float, float]:
        total = correct = 0.0
        for part in own_by_tokens(trunk, role, [lengths[i] for i in batch], settings.tokens_per_micro_batch // 4):
            members = [batch[j] for j in part]
            logprobs, _ = trunk.logprobs(role, trunk.pack([row for i in members for row in rows[i]]))
            yes, no = logprobs.sum(dim=1).view(-1, 2, 2).unbind(2)
            sign = torch.tensor([-1.0 if pairs[i].by_no else 1.0 for i in members], device=trunk.device)
            chosen, rejected = ((yes - no) * sign[:, None]).unbind(1)
            weight = torch.tensor([pairs[i].pair.weight for i in members], device=trunk.device)
            margin = torch.tensor([pairs[i].pair.margin for i in members], device=trunk.device)
            loss = bradley_terry_loss(chosen, rejected, weight, margin, settings.centering).sum() / len(batch)
            torch.autograd.backward(loss)
            total += loss.item()
            correct += float((chosen > rejected).sum()) / len(batch)
        return total, correct

    train_members(trunk, settings, stage, len(pairs), settings.pairs_per_step, learn, ("loss", "accuracy"), head=False)
