"""Rollouts: the responses a policy samples for a batch of prompts, and passes over them in micro-batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from charter.config import RLSettings
from charter.models.chat_template import decode_response, encode_prompt, encode_response
from charter.models.generate import sample
from charter.models.trunk import ScoreScale, Trunk
from charter.records import Prompt, Rollout
from charter.run import Stage, derive_seed
from charter.training.batches import Tokens, by_tokens, pad
from charter.training.reward_model import score_rows

RewardFn = Callable[[Rollout], Tensor]
"""Scores of the B responses of a rollout, (B,). A reward model, a classifier, a judge, a rule: any function."""


def prompt_batch(prompts: Sequence[Prompt], step: int, per_step: int, seed: int) -> list[Prompt]:
    """The prompts of one step: each pass goes through all of them in an order of its own. A function of its arguments."""
    batch = []
    for i in range(step * per_step, (step + 1) * per_step):
        lap, place = divmod(i, len(prompts))
        batch.append(prompts[np.random.default_rng(derive_seed(seed, "lap", lap)).permutation(len(prompts))[place]])
    return batch


def collect(trunk: Trunk, prompts: Sequence[Prompt], settings: RLSettings, seed: int) -> Rollout:
    """Sample ``samples_per_prompt`` responses from role ``policy`` to each prompt; siblings are neighbours in the rows."""
    tokenizer, k = trunk.tokenizer, settings.samples_per_prompt
    encoded = [encode_prompt(tokenizer, prompt.messages) for prompt in prompts]
    seeds = [[derive_seed(seed, i, prompt.id, j) for j in range(k)] for i, prompt in enumerate(prompts)]
    with trunk.as_role("policy") as model:
        groups = sample(
            model,
            encoded,
            seeds,
            eos_id=tokenizer.eos_token_id,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
        )
    rows = [Tokens(ids, one.ids) for ids, group in zip(encoded, groups, strict=True) for one in group]
    padded = pad(rows, trunk.device)
    logprobs = torch.zeros(padded.ids.shape, device=trunk.device)
    logprobs[padded.mask] = torch.tensor(
        [x for group in groups for one in group for x in one.logprobs], device=trunk.device
    )
    return Rollout(
        ids=padded.ids,
        attention=padded.attention,
        mask=padded.mask,
        logprobs=logprobs,
        finished=torch.tensor([one.finished for group in groups for one in group], device=trunk.device),
        texts=tuple(decode_response(tokenizer, one.ids) for group in groups for one in group),
        prompts=tuple(prompt for prompt in prompts for _ in range(k)),
    )


class RewardModelReward:
    """A reward model as a reward function. It reads the *text* of a response under its own template, as in its training:
    the ids a policy happened to sample may spell the same text in another way."""

    def __init__(self, trunk: Trunk, scale: ScoreScale, tokens_per_micro_batch: int) -> None:
        self.trunk, self.scale, self.tokens_per_micro_batch = trunk, scale, tokens_per_micro_batch

    def __call__(self, rollout: Rollout) -> Tensor:
        tokenizer = self.trunk.tokenizer
        rows = [
            Tokens(encode_prompt(tokenizer, prompt.messages), encode_response(tokenizer, text))
            for prompt, text in zip(rollout.prompts, rollout.texts, strict=True)
        ]
        return self.scale(score_rows(self.trunk, rows, self.tokens_per_micro_batch)).to(self.trunk.device)


MicroBatch = tuple[Tensor, int]
"""Row indices (b,) and the width that holds their longest row."""


def micro_batches(rollout: Rollout, rows: Sequence[int], tokens: int) -> list[MicroBatch]:
    """Cut rows of a rollout into micro-batches of like length. Every pass uses the same cut, so that equal weights give
    equal bits: the ratio of the first update is exactly 1."""
    lengths = rollout.attention.sum(dim=1).tolist()
    groups = by_tokens([lengths[row] for row in rows], tokens)
    return [(torch.tensor([rows[i] for i in group]), max(lengths[rows[i]] for i in group)) for group in groups]


@torch.no_grad()
def over_rollout(rollout: Rollout, cuts: Sequence[MicroBatch], compute: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``compute(ids, mask)`` on every micro-batch, put together to (B, T)."""
    out = torch.zeros(rollout.ids.shape, device=rollout.ids.device)
    for rows, width in cuts:
        out[rows, :width] = compute(*(x[rows, :width] for x in (rollout.ids, rollout.mask)))
    return out


def describe_rollout(rollout: Rollout, scores: Tensor, kl: Tensor) -> dict[str, float]:
    """What every RL method logs of a step. kl: (B, T), nats. Standard errors are over responses."""
    response_kl = kl.sum(dim=1)
    n = len(scores)
    return {
        "reward": float(scores.mean()),
        "reward_sem": float(scores.std() / n**0.5) if n > 1 else 0.0,
        "kl": float(response_kl.mean()),
        "kl_sem": float(response_kl.std() / n**0.5) if n > 1 else 0.0,
        "response_tokens": float(rollout.mask.sum() / n),
        "missing_eos": float((~rollout.finished).float().mean()),
    }


def log_rollout(stage: Stage, step: int, rollout: Rollout, scores: Tensor, kl: Tensor) -> None:
    """Append every response of a step with its score and KL to rollouts.jsonl."""
    rows = zip(rollout.prompts, rollout.texts, scores.tolist(), kl.sum(dim=1).tolist(), strict=True)
    with open(stage.path("rollouts.jsonl"), "a", encoding="utf-8") as file:
        for prompt, text, score, nats in rows:
            row = {"step": step, "prompt_id": prompt.id, "prompt": prompt.last_turn, "response": text, "reward": score,
                   "kl": nats}  # fmt: skip
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
