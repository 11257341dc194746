"""Rewards: what a response scores, where the score goes, what it costs to move, and who sets the prices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from charter.errors import GateError
from charter.records import Rollout
from charter.run.hashes import derive_seed
from charter.stages.rl.settings import MOST_KL_ERROR, CostSettings, RLSettings, RolloutSettings

if TYPE_CHECKING:
    from charter.training.gold import Gold


@dataclass(frozen=True)
class SomeScores:
    """What a part of a reward gives that may abstain. values: (B,); abstained: (B,), bool, where the value means nothing;
    disagreement: (B,), of the members of an ensemble, for the log."""

    values: Tensor
    abstained: Tensor
    disagreement: Tensor | None = None


FARTHEST = 20.0
"""Largest |log λ| of a cost: farther out reward or cost is nothing to the other, and λ would not find back."""
RewardFn = Callable[[Rollout], Tensor | SomeScores]
"""Scores of the B responses of a rollout, (B,). A reward model, a classifier, a judge, a rule: any function."""


@dataclass(frozen=True)
class Scores:
    """The scores of a rollout's responses. parts: name to (B,); total: (B,), their weighted sum, less the cost; kept: (B,), bool,
    the responses that every part scored. Numbers of the others mean nothing."""

    parts: Mapping[str, Tensor]
    total: Tensor
    kept: Tensor

    def means(self) -> dict[str, float]:
        """One curve per part for the log, over the responses that are kept."""
        return {f"reward/{name}": float(part[self.kept].mean()) for name, part in self.parts.items()}

    @property
    def rows(self) -> list[int]:
        """The responses that are kept."""
        return [row for row, kept in enumerate(self.kept.tolist()) if kept]


class RewardShape:
    """The steps between the sum and the credit, in this order; each only where the settings name it.

    - σ(r - r_ref), r_ref being the mean reward of the reference's own answers to the prompt (Fu et al. 2025): bounded, ½ for an
      answer no better than the reference's, and flat where a reward model is far out of what it was trained on.
    - division by the running standard deviation of all scores so far (Engstrom et al. 2020), the batch at hand included.
    - clipping to ± ``reward_clip``.
    """

    def __init__(self, settings: RolloutSettings, references: Mapping[str, float] | None = None) -> None:
        self.settings, self.references = settings, references
        if settings.sigmoid_against is not None and references is None:
            raise ValueError("sigmoid_against needs the rewards of the reference's answers")
        self.count, self.mean, self.spread = 0.0, 0.0, 0.0  # spread: sum of squared distances from the mean

    def __call__(self, scores: Tensor, rollout: Rollout, kept: Tensor | None = None) -> Tensor:
        """Shaped scores (B,) of scores (B,), of which ``kept`` (B,) mean something; all of them unless given."""
        if self.references is not None:
            references = [self.references[prompt.id] for prompt in rollout.prompts]
            scores = torch.sigmoid(scores - torch.tensor(references, device=scores.device))
        if self.settings.reward_scale:
            self.see(scores if kept is None else scores[kept])
            deviation = math.sqrt(self.spread / self.count)
            scores = scores / deviation if deviation > 1e-6 else scores  # scores that are all equal so far have no scale
        clip = self.settings.reward_clip
        return scores if clip is None else scores.clamp(-clip, clip)

    def see(self, scores: Tensor) -> None:
        """Add a batch to the running variance (Chan et al. 1983)."""
        n, mean = len(scores), float(scores.mean())
        spread = float(((scores - mean) ** 2).sum())
        total, shift = self.count + n, mean - self.mean
        self.spread += spread + shift**2 * self.count * n / total
        self.mean += shift * n / total
        self.count = total

    def state(self) -> dict[str, float]:
        """Values for the checkpoint."""
        if not self.settings.reward_scale:
            return {}
        return {"score_count": self.count, "score_mean": self.mean, "score_spread": self.spread}

    def restore(self, state: Mapping[str, float]) -> None:
        self.count, self.mean = state.get("score_count", 0.0), state.get("score_mean", 0.0)
        self.spread = state.get("score_spread", 0.0)


class RewardSum:
    """A reward that is a named sum of parts, with a cost held to a budget where one is named.

    Without a cost the total is Σ w r. With one it is (Σ w r - λ c) / (1 + λ), and λ rises while the mean cost of a step is
    above the budget: log λ ← log λ + lr (mean c - budget), dual ascent in log space (Dai et al. 2024, Safe RLHF, eq. 10 and
    appendix B).
    """

    def __init__(
        self, parts: Mapping[str, tuple[float, RewardFn]], cost: CostSettings | None = None, shape: RewardShape | None = None
    ) -> None:
        self.parts, self.cost, self.shape = dict(parts), cost, shape
        self.gold: Gold | None = None
        self.multiplier = cost.initial if cost else 0.0

    def __call__(self, rollout: Rollout) -> Scores:
        """GateError where a part abstains from every response, and as ``unshaped``."""
        scores = self.unshaped(rollout)
        if not scores.rows:
            raise GateError(f"the reward abstains from all {len(scores.kept)} responses of a batch, so nothing can be learned; "
                            "look at rollouts.jsonl and at the parts of the reward")  # fmt: skip
        if self.shape is None:
            return scores
        return Scores(scores.parts, self.shape(scores.total, rollout, scores.kept), scores.kept)

    def unshaped(self, rollout: Rollout) -> Scores:
        """Parts and their sum before it is shaped. GateError where a part is not finite."""
        parts: dict[str, Tensor] = {}
        kept = torch.ones(len(rollout.texts), dtype=torch.bool, device=rollout.ids.device)
        for name, (_, score) in self.parts.items():
            scores = score(rollout)
            if isinstance(scores, SomeScores):
                if scores.disagreement is not None:
                    parts[f"{name}/disagreement"] = scores.disagreement
                kept, scores = kept & ~scores.abstained, scores.values
            parts[name] = scores
            if not bool(torch.isfinite(parts[name]).all()):
                raise GateError(f"the reward part {name!r} is not finite; a failed score is an error, not a number")
        rewards = [weight * parts[name] for name, (weight, _) in self.parts.items()
                   if self.cost is None or name != self.cost.part]  # fmt: skip
        total = torch.stack(rewards).sum(dim=0) if rewards else torch.zeros(len(rollout.texts))
        if self.cost is not None:
            total = (total - self.multiplier * parts[self.cost.part]) / (1 + self.multiplier)
        return Scores(parts, total, kept)

    def update(self, scores: Scores) -> None:
        """Move the multiplier by the mean cost of a step; nothing to do without a cost."""
        if self.cost is not None:
            excess = float(scores.parts[self.cost.part][scores.kept].mean()) - self.cost.budget
            moved = math.log(self.multiplier) + self.cost.learning_rate * excess
            self.multiplier = math.exp(min(max(moved, -FARTHEST), FARTHEST))

    def state(self) -> dict[str, float]:
        """Values for the checkpoint."""
        cost = {"cost_multiplier": self.multiplier} if self.cost is not None else {}
        return cost | (self.shape.state() if self.shape is not None else {})

    def restore(self, state: Mapping[str, float]) -> None:
        self.multiplier = state.get("cost_multiplier", self.multiplier)
        if self.shape is not None:
            self.shape.restore(state)


def response_length(rollout: Rollout) -> Tensor:
    """Length of each response in tokens, its end included: (B,). With a negative weight, a price on words."""
    return rollout.mask.sum(dim=1).float()


def random_number(rollout: Rollout) -> Tensor:
    """A number of the standard normal distribution for each response, (B,), always the same one for the same text. It says
    nothing about a response, so whatever a policy gains under it comes from the training alone."""
    uniform = [(derive_seed("random reward", text) % 2**52 + 0.5) / 2**52 for text in rollout.texts]
    numbers: Tensor = torch.special.ndtri(torch.tensor(uniform, dtype=torch.float64))
    return numbers.float().to(rollout.ids.device)


def last_token(mask: Tensor) -> Tensor:
    """Index of the last response token of each row: (B,). Found by position, never by comparing ids with the pad id."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)


def at_last_token(scores: Tensor, mask: Tensor) -> Tensor:
    """scores (B,) placed at the last response token of each row, 0 elsewhere: (B, T). A row without tokens gets nothing."""
    rewards = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device)
    rewards[torch.arange(len(scores)), last_token(mask)] = scores
    return torch.where(mask, rewards, 0.0)


def apply_missing_eos_penalty(scores: Tensor, finished: Tensor, penalty: float) -> Tensor:
    """scores - penalty where the response was cut off before it ended (B,). Without it a policy learns to ramble on."""
    return torch.where(finished, scores, scores - penalty)


@dataclass
class KLController:
    """The price of KL in reward units per nat: ``coef``. Without a ``target`` it stays; with one it steers the KL of a response
    (nats) there (Ziegler et al. 2019, section 2.2).

    e = clip(KL / target - 1, ±0.2);  coef ← coef (1 + e n / horizon), n being the responses of the step.
    """

    coef: float
    target: float | None
    horizon: float

    def update(self, kl: float, n: int) -> None:
        if self.target is not None:
            error = min(max(kl / self.target - 1, -MOST_KL_ERROR), MOST_KL_ERROR)
            self.coef *= 1 + error * n / self.horizon


def make_kl_controller(settings: RLSettings, state: Mapping[str, float]) -> KLController:
    """The controller that the settings describe, at the price in a checkpoint's ``state``."""
    return KLController(state.get("kl_coef", settings.kl_coef), settings.kl_target, settings.kl_horizon)
