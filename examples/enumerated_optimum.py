"""PPO, RLOO and DPO on a world small enough to know the answer: nine responses of two tokens, all of them enumerated.

The best policy at KL price β is π*(y) ∝ π_ref(y) exp(r(y)/β), in closed form. Three methods start from the same reference and
see the same rewards: PPO and RLOO as a number for each sampled response, DPO as the preferences that a Bradley-Terry judge with
these rewards would state. All three must end at π*. The picture also shows best-of-n with its analytic distribution, which is a
different policy.

    python examples/enumerated_optimum.py OUT.png
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from charter.training.advantages import gae, rloo_advantages
from charter.training.losses import clipped_policy_loss, clipped_value_loss, reinforce_loss, token_kl
from charter.training.preference_losses import PairLogprobs, dpo_loss

VOCABULARY, LENGTH, BETA = 3, 2, 0.5
ANSWERS = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))  # (9, 2)
REWARDS = torch.tensor([0.0, 0.7, -0.4, 1.0, 0.2, 0.5, -0.8, 0.9, 0.3], dtype=torch.float64)  # (9,)


class TablePolicy(nn.Module):
    """One row of logits for the first token and one for the second after each first: every distribution over the nine."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(0.5 * torch.randn(1, VOCABULARY, generator=generator, dtype=torch.float64))
        self.second = nn.Parameter(0.5 * torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64))

    def forward(self, answers: Tensor) -> Tensor:
        """Log-probabilities (N, 2), nats, of the tokens of ``answers`` (N, 2)."""
        first = torch.log_softmax(self.first[0], 0)[answers[:, 0]]
        second = torch.log_softmax(self.second, 1)[answers[:, 0], answers[:, 1]]
        return torch.stack([first, second], dim=1)

    def distribution(self) -> Tensor:
        """Probabilities (9,) of the answers."""
        return self(ANSWERS).sum(dim=1).exp()


def optimum(reference: Tensor, rewards: Tensor = REWARDS, beta: float = BETA) -> Tensor:
    """π*(y) ∝ π_ref(y) exp(r(y)/β): (9,)."""
    return torch.softmax(reference.log() + rewards / beta, 0)


def objective(policy: Tensor, reference: Tensor, rewards: Tensor = REWARDS, beta: float = BETA) -> Tensor:
    """J = E r - β KL(π ‖ π_ref), what all of them maximise."""
    return (policy * (rewards - beta * (policy / reference).log())).sum()


def best_of_n(reference: Tensor, n: int) -> Tensor:
    """The distribution (9,) of the best of n samples from the reference: P(y) = F(y)ⁿ - F(<y)ⁿ, F by reward."""
    order = REWARDS.argsort()
    cumulative = reference[order].cumsum(0).clamp(max=1)
    before = torch.cat([cumulative.new_zeros(1), cumulative[:-1]])
    probabilities = torch.zeros_like(reference)
    probabilities[order] = cumulative**n - before**n
    return probabilities


@dataclass
class Draws:
    """Sampled answers by index (N,), and the log-probabilities (N, 2) they were sampled with."""

    index: Tensor
    logprobs: Tensor

    @property
    def mask(self) -> Tensor:
        return torch.ones(self.logprobs.shape, dtype=torch.bool)


def draw(policy: TablePolicy, n: int, generator: torch.Generator) -> Draws:
    with torch.no_grad():
        index = torch.multinomial(policy.distribution(), n, replacement=True, generator=generator)
        return Draws(index, policy(ANSWERS[index]))


def train_rloo(reference: TablePolicy, steps: int = 300, n: int = 4096, k: int = 4, seed: int = 0) -> Tensor:
    policy, generator = TablePolicy(), torch.Generator().manual_seed(seed)
    policy.load_state_dict(reference.state_dict())
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        batch = draw(policy, n, generator)
        with torch.no_grad():
            kl = token_kl(batch.logprobs, reference(ANSWERS[batch.index]), batch.mask)
        rewards = REWARDS[batch.index] - BETA * kl.sum(dim=1)
        advantages = rloo_advantages(rewards.view(-1, k)).view(-1)
        optimizer.zero_grad()
        reinforce_loss(policy(ANSWERS[batch.index]), advantages, batch.mask).backward()
        optimizer.step()
    return policy.distribution().detach()


def train_ppo(reference: TablePolicy, steps: int = 300, n: int = 4096, epochs: int = 2, seed: int = 0) -> Tensor:
    policy, generator = TablePolicy(), torch.Generator().manual_seed(seed)
    policy.load_state_dict(reference.state_dict())
    start = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    after = nn.Parameter(torch.zeros(VOCABULARY, dtype=torch.float64))
    optimizer = torch.optim.Adam([*policy.parameters(), start, after], lr=0.05)

    def values(index: Tensor) -> Tensor:
        return torch.stack([start.expand(len(index)), after[ANSWERS[index, 0]]], dim=1)

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        batch = draw(policy, n, generator)
        with torch.no_grad():
            rewards = -BETA * token_kl(batch.logprobs, reference(ANSWERS[batch.index]), batch.mask)
            rewards[:, -1] += REWARDS[batch.index]
            old_values = values(batch.index)
        advantages, returns = gae(rewards, old_values, batch.mask, gamma=1.0, gae_lambda=0.95)
        for _ in range(epochs):
            loss, _ = clipped_policy_loss(policy(ANSWERS[batch.index]), batch.logprobs, advantages, batch.mask, clip_coef=0.2)
            loss = loss + clipped_value_loss(values(batch.index), old_values, returns, batch.mask, clip_range=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return policy.distribution().detach()


def train_dpo(reference: TablePolicy, steps: int = 800) -> Tensor:
    """On all 36 pairs, each labelled with the probability that the judge prefers its first."""
    policy = TablePolicy()
    policy.load_state_dict(reference.state_dict())
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    first, second = (torch.tensor(side) for side in zip(*itertools.combinations(range(9), 2), strict=True))
    weight = torch.sigmoid(REWARDS[first] - REWARDS[second])
    with torch.no_grad():
        base = reference(ANSWERS).sum(dim=1)
    tokens = torch.full_like(weight, LENGTH)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        logprobs = policy(ANSWERS).sum(dim=1)
        pairs = PairLogprobs(logprobs[first], logprobs[second], base[first], base[second], tokens, tokens)
        optimizer.zero_grad()
        dpo_loss(pairs, weight, BETA).mean().backward()
        optimizer.step()
    return policy.distribution().detach()


def sample_best_of_n(reference: TablePolicy, n: int, trials: int = 40_000, seed: int = 0) -> Tensor:
    draws = draw(reference, trials * n, torch.Generator().manual_seed(seed)).index.view(trials, n)
    best = draws.gather(1, REWARDS[draws].argmax(dim=1, keepdim=True)).squeeze(1)
    return torch.bincount(best, minlength=9).double() / trials


def distance(a: Tensor, b: Tensor) -> float:
    """Total variation: half the sum of absolute differences, 0 the same, 1 disjoint."""
    return float(0.5 * (a - b).abs().sum())


def main(out: str) -> None:
    import matplotlib.pyplot as plt

    reference = TablePolicy()
    base = reference.distribution().detach()
    goal = optimum(base)
    trained = {"PPO": train_ppo(reference), "RLOO": train_rloo(reference), "DPO": train_dpo(reference)}
    best, analytic = sample_best_of_n(reference, 4), best_of_n(base, 4)
    for name, probabilities in trained.items():
        print(f"{name:12} distance to the optimum {distance(probabilities, goal):.4f}, J {objective(probabilities, base):.4f}")
    print(f"{'best of 4':12} distance to its own distribution {distance(best, analytic):.4f}, "
          f"J {objective(analytic, base):.4f}")  # fmt: skip
    print(f"{'optimum':12} J {objective(goal, base):.4f}")
    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    x = np.arange(9)
    bars = {"reference": base, **trained, "best of 4": best}
    colours = ["#bbbbbb", "#4477aa", "#66ccee", "#228833", "#ccbb44"]
    for i, (name, probabilities) in enumerate(bars.items()):
        axes.bar(x + 0.16 * (i - 2), probabilities.numpy(), 0.16, label=name, color=colours[i])
    axes.hlines(goal.numpy(), x - 0.32, x + 0.24, color="black", linewidth=1.5, label="optimum π*")
    axes.hlines(analytic.numpy(), x + 0.24, x + 0.4, color="#aa3377", linewidth=1.5, label="best of 4, analytic")
    labels = [f"{a}{b}\nr={reward:+.1f}" for (a, b), reward in zip(ANSWERS.tolist(), REWARDS.tolist(), strict=True)]
    axes.set_xticks(x, labels)
    axes.set_ylabel("probability of the answer")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=2, frameon=False, fontsize=8)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "enumerated_optimum.png")
