"""Rollouts: the responses a policy samples for a batch of prompts, and passes over them in micro-batches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from charter.errors import GateError
from charter.metrics import BY_PRINCIPLE
from charter.models.chat_template import decode_response, encode_prompt
from charter.models.cut import answer_rows
from charter.models.heads import Scorers
from charter.models.packing import Packed, Tokens
from charter.models.trunk import REFERENCE, PolicyPass, Trunk
from charter.records import Prompt, Rollout
from charter.run.hashes import derive_seed
from charter.run.run import Stage
from charter.run.team import team
from charter.stages.rl.settings import RolloutSettings
from charter.training.batches import even_by_tokens
from charter.training.methods.reward_model import raw_scores
from charter.training.rewards import RewardSum, SomeScores
from charter.training.vllm_rollouts import sample_role

T = TypeVar("T")


def prompt_batch(prompts: Sequence[Prompt], step: int, per_step: int, seed: int) -> list[Prompt]:
    """The prompts of one step: each pass goes through all of them in a new order. A function of its arguments."""
    batch = []
    for i in range(step * per_step, (step + 1) * per_step):
        lap, place = divmod(i, len(prompts))
        batch.append(prompts[np.random.default_rng(derive_seed(seed, "lap", lap)).permutation(len(prompts))[place]])
    return batch


def collect(
    trunk: Trunk, prompts: Sequence[Prompt], settings: RolloutSettings, seed: int, *, role: str = "policy", k: int | None = None
) -> Rollout:
    """Sample ``samples_per_prompt`` (or ``k``) responses of a role to each prompt; siblings are neighbours in the rows. Several
    processes take neighbouring prompts each, or parts of them."""
    tokenizer, k = trunk.tokenizer, k or settings.samples_per_prompt
    encoded = [encode_prompt(tokenizer, prompt.messages) for prompt in prompts]
    seeds = [[derive_seed(seed, i, prompt.id, j) for j in range(k)] for i, prompt in enumerate(prompts)]
    crew = team()
    shares = [(i, seeds[i][cut]) for i, cut in share_of_rows(len(prompts), k, crew.rank, crew.size)]
    # Also where a process has none: weights that are divided are made whole by all of them.
    groups = sample_role(trunk, role, [encoded[i] for i, _ in shares], [seeds_of_share for _, seeds_of_share in shares], settings)
    responses = crew.gather([response for group in groups for response in group])
    width = max(len(response.ids) for response in responses)
    mask = torch.tensor([[t < len(response.ids) for t in range(width)] for response in responses], device=trunk.device)
    ids = torch.zeros(mask.shape, dtype=torch.long, device=trunk.device)
    ids[mask] = torch.tensor([token for response in responses for token in response.ids], device=trunk.device)
    logprobs = torch.zeros(mask.shape, device=trunk.device)
    logprobs[mask] = torch.tensor([x for response in responses for x in response.logprobs], device=trunk.device)
    return Rollout(
        prompt_ids=tuple(tuple(row) for row in encoded for _ in range(k)),
        ids=ids,
        mask=mask,
        logprobs=logprobs,
        finished=torch.tensor([response.finished for response in responses], device=trunk.device),
        texts=tuple(decode_response(tokenizer, response.ids) for response in responses),
        prompts=tuple(prompt for prompt in prompts for _ in range(k)),
        n_tokens=sum(len(response.ids) for response in responses),
    )


def share_of_rows(n: int, k: int, rank: int, size: int) -> list[tuple[int, slice]]:
    """The prompts, of ``n``, that process ``rank`` of ``size`` samples, each with its share of ``k`` responses: whole prompts,
    or a part of one where there are fewer prompts than processes. By rank these are the rows in order."""
    if n >= size:
        return [(i, slice(0, k)) for i in range(n * rank // size, n * (rank + 1) // size)]
    mine = rank * n // size
    mates = [other for other in range(size) if other * n // size == mine]
    place = mates.index(rank)
    cut = slice(k * place // len(mates), k * (place + 1) // len(mates))
    return [(mine, cut)] if cut.stop > cut.start else []


def reference_rewards(
    trunk: Trunk, prompts: Sequence[Prompt], reward: RewardSum, settings: RolloutSettings, stage: Stage
) -> dict[str, float]:
    """r_ref of every prompt id: the mean reward of ``sigmoid_against`` answers that the reference gives to it. Read before the
    first step, so that a resumed run finds the same numbers."""
    k = settings.sigmoid_against or 1
    rewards: dict[str, float] = {}
    seed = derive_seed(stage.run.seed, stage.name, "reference")
    size = max(1, settings.prompts_per_step * settings.samples_per_prompt // k)
    for start in stage.progress(range(0, len(prompts), size)):
        batch = prompts[start : start + size]
        scores = reward.unshaped(collect(trunk, batch, settings, seed, role=REFERENCE, k=k))
        for prompt, values, kept in zip(batch, scores.total.view(-1, k), scores.kept.view(-1, k), strict=True):
            if not bool(kept.any()):
                raise GateError(f"the reward abstains from all {k} answers of the reference to prompt {prompt.id}; raise "
                                "rl.sigmoid_against or leave it out")  # fmt: skip
            rewards[prompt.id] = float(values[kept].mean())
    return rewards


class RewardModelReward:
    """A reward model as a reward function. It reads the *text* of a response under its own template, cut to its context as in its
    training: the ids a policy happened to sample may spell the same text in another way."""

    def __init__(self, trunk: Trunk, scorers: Scorers, tokens_per_micro_batch: int) -> None:
        self.trunk, self.scorers, self.tokens_per_micro_batch = trunk, scorers, tokens_per_micro_batch

    def __call__(self, rollout: Rollout) -> Tensor | SomeScores:
        device = self.trunk.device
        rows = [
            row
            for prompt, text in zip(rollout.prompts, rollout.texts, strict=True)
            for row in answer_rows(self.trunk.tokenizer, prompt.messages, [text], self.trunk.room)
        ]
        raw = raw_scores(self.trunk, self.scorers, rows, self.tokens_per_micro_batch)
        scores = self.scorers(raw).to(device)
        if len(raw) == 1:
            return scores
        return SomeScores(scores, torch.zeros_like(scores, dtype=torch.bool), self.scorers.disagreement(raw).to(device))


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a rollout that go through a model together. rows: (b,) indices; packed: the rows in line, prompts shared."""

    rows: Tensor
    packed: Packed

    def of(self, values: Tensor) -> Tensor:
        """This micro-batch's part (b, t) of a tensor (B, T) over the rollout."""
        return values[self.rows, : self.packed.mask.shape[1]]


def micro_batches(trunk: Trunk, rollout: Rollout, rows: Sequence[int], tokens: int) -> list[MicroBatch]:
    """Cut rows of a rollout into micro-batches, siblings together. Every pass uses the same cut, so that equal weights give
    equal bits: the ratio of the first update is exactly 1."""
    of_response = rollout.mask.sum(dim=1).tolist()
    lengths = [len(rollout.prompt_ids[row]) + of_response[row] for row in rows]
    groups = even_by_tokens(lengths, tokens, [rollout.prompt_ids[row] for row in rows])
    batches = []
    for group in groups:
        members = [rows[i] for i in group]
        texts = [Tokens(rollout.prompt_ids[row], rollout.ids[row, : of_response[row]].tolist()) for row in members]
        batches.append(MicroBatch(torch.tensor(members, device=rollout.ids.device), trunk.pack(texts)))
    return batches


def cut_minibatches(
    trunk: Trunk, rollout: Rollout, n: int, tokens: int, seed: int, rows: Sequence[int] | None = None
) -> list[list[MicroBatch]]:
    """The rows, all of them unless given, dealt at random into ``n`` minibatches, one optimizer step each, and those cut into
    micro-batches."""
    rows = range(len(rollout.texts)) if rows is None else rows
    order = [rows[place] for place in np.random.default_rng(seed).permutation(len(rows))]
    return [micro_batches(trunk, rollout, sorted(order[i::n]), tokens) for i in range(n)]


def cut_to_learn(
    trunk: Trunk, rollout: Rollout, n: int, tokens: int, seed: int, rows: Sequence[int]
) -> tuple[list[list[MicroBatch]], list[MicroBatch]]:
    """``cut_minibatches`` of the rows that the reward scored, and the others, which are read and not learned from. GateError
    where the rows are fewer than the minibatches."""
    if len(rows) < n:
        raise GateError(
            f"the reward abstains from all but {len(rows)} of {len(rollout.texts)} responses, too few for {n} minibatches; "
            "lower rl.minibatches or look at the parts of the reward"
        )
    others = sorted({*range(len(rollout.texts))} - {*rows})
    return cut_minibatches(trunk, rollout, n, tokens, seed, rows), micro_batches(trunk, rollout, others, tokens)


def own_cuts(trunk: Trunk, cuts: Sequence[MicroBatch], *roles: str) -> Iterator[MicroBatch]:
    """The micro-batches that fall to this process, each for a pass of the named roles (see ``Trunk.turns``)."""
    return trunk.turns(cuts, [len(cut.packed.ids) for cut in cuts], *roles)


def is_kept(trunk: Trunk, cuts: Sequence[MicroBatch]) -> bool:
    """Whether the pass that reads a rollout can be the first update's own: it is one micro-batch, and this process's."""
    return len(cuts) == 1 and not trunk.divided and bool(team().share(cuts, [1]))


@torch.no_grad()
def over_rollout(
    trunk: Trunk, role: str, rollout: Rollout, cuts: Sequence[MicroBatch], compute: Callable[[Packed], Tensor], *depth: int
) -> Tensor:
    """``compute(packed)`` (b, t, *depth), a pass of the role, of every micro-batch, put together to (B, T, *depth)."""
    out = torch.zeros((*rollout.mask.shape, *depth), device=rollout.mask.device)
    for cut in own_cuts(trunk, cuts, role):
        values = compute(cut.packed)
        out[cut.rows, : values.shape[1]] = values
    return team().sum_(out)


@dataclass
class FirstPass(Generic[T]):
    """A pass over a rollout before its first update: ``values`` (B, T), and what a pass with gradient gives an update.

    A batch that is one micro-batch keeps its graph: the pass that reads it is then the first update's own, and the ratio of
    that update is 1 because it is the same number.
    """

    values: Tensor
    learn: Callable[[Packed], T]
    kept: T | None
    of_head: Tensor
    """(B, T): the values of a value head, which the same pass computes; empty without one."""

    def of(self, cut: MicroBatch) -> T:
        """A micro-batch's part with gradient, for an update: the kept one once."""
        kept, self.kept = self.kept, None
        return self.learn(cut.packed) if kept is None else kept


def policy_pass(trunk: Trunk, rollout: Rollout, cuts: Sequence[MicroBatch], temperature: float) -> FirstPass[PolicyPass]:
    """Log-probabilities of a rollout under the policy, as training computes them, and the values of its head; for an update the
    entropies too, (b, t)."""
    kept, has_head = None, "policy" in trunk.value_heads

    def learn(packed: Packed) -> PolicyPass:
        return trunk.outputs("policy", packed, temperature=temperature, entropy=True)

    def read(packed: Packed) -> Tensor:
        outputs = kept or trunk.outputs("policy", packed, temperature=temperature)
        parts = (outputs.logprobs, outputs.values) if has_head else (outputs.logprobs,)
        return torch.stack([part.detach() for part in parts], dim=-1)

    if is_kept(trunk, cuts):
        kept = learn(cuts[0].packed)
    numbers = over_rollout(trunk, "policy", rollout, cuts, read, 1 + has_head)
    logprobs, *of_head = (part.contiguous() for part in numbers.unbind(dim=-1))
    return FirstPass(logprobs, learn, kept, of_head[0] if of_head else logprobs.new_empty(0))


def value_pass(trunk: Trunk, rollout: Rollout, cuts: Sequence[MicroBatch]) -> FirstPass[Tensor]:
    """The critic's values before each token of a rollout."""
    kept: Tensor | None = None

    def learn(packed: Packed) -> Tensor:
        return trunk.values("value", packed)

    def read(packed: Packed) -> Tensor:
        return learn(packed) if kept is None else kept.detach()

    if is_kept(trunk, cuts):
        kept = learn(cuts[0].packed)
    values = over_rollout(trunk, "value", rollout, cuts, read)
    return FirstPass(values, learn, kept, values.new_empty(0))


def describe_rollout(rollout: Rollout, scores: Tensor, kept: Tensor, kl: Tensor) -> dict[str, float]:
    """The figures that every RL method logs of a step. scores: (B,), of which ``kept`` count; kl: (B, T), nats. Standard errors
    are over responses. A principle without a scored response in the step has no mean."""
    response_kl = kl.sum(dim=1)
    n, rewards = len(scores), scores[kept]
    by_principle: dict[str, list[float]] = {}
    for prompt, score, is_kept in zip(rollout.prompts, scores.tolist(), kept.tolist(), strict=True):
        if prompt.principle is not None and is_kept:
            by_principle.setdefault(prompt.principle, []).append(score)
    return {
        "reward": float(rewards.mean()),
        "reward_sem": float(rewards.std() / len(rewards) ** 0.5) if len(rewards) > 1 else 0.0,
        "abstained": n - len(rewards),
        "kl": float(response_kl.mean()),
        "kl_sem": float(response_kl.std() / n**0.5) if n > 1 else 0.0,
        "response_tokens": float(rollout.mask.sum() / n),
        "missing_eos": float((~rollout.finished).float().mean()),
        **{f"{BY_PRINCIPLE}{name}": math.fsum(part) / len(part) for name, part in sorted(by_principle.items())},
    }


def log_rollout(stage: Stage, step: int, rollout: Rollout, scores: Sequence[float | None], kl: Tensor) -> None:
    """Append every response of a step with its score, None where the reward abstained, and its KL to rollouts.jsonl."""
    rows = zip(rollout.prompts, rollout.texts, scores, kl.sum(dim=1).tolist(), strict=True)
    if not team().is_main:
        return
    with open(stage.path("rollouts.jsonl"), "a", encoding="utf-8") as file:
        for prompt, text, score, nats in rows:
            row = {"step": step, "prompt_id": prompt.id, "prompt": prompt.last_turn, "response": text, "reward": score,
                   "kl": nats}  # fmt: skip
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
