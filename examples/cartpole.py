"""CartPole with the losses and advantages of language: PPO with GAE, and REINFORCE with a leave-one-out baseline.

A pole stays up for at most 500 steps; 475 on average counts as solved. An episode is one response, a step one token. Needs
gymnasium (`pip install charter-align[gym]`).

    python examples/cartpole.py ppo
"""

from __future__ import annotations

import sys

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from charter.training.advantages import gae, rloo_advantages, whiten
from charter.training.losses import clipped_policy_loss, clipped_value_loss, reinforce_loss

LIMIT = 500


class Episodes:
    """Finished episodes side by side: observations (B, T, 4), actions, rewards, logprobs and mask (B, T)."""

    def __init__(self, observations: Tensor, actions: Tensor, logprobs: Tensor, mask: Tensor) -> None:
        self.observations, self.actions, self.logprobs, self.mask = observations, actions, logprobs, mask
        self.rewards = mask.float()
        self.lengths = mask.sum(dim=1)


def network(outputs: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))
    nn.init.zeros_(layers[-1].weight)
    return layers


@torch.no_grad()
def play(policy: nn.Module, n: int, seed: int, greedy: bool = False) -> Episodes:
    """``n`` episodes at once, each from its own start."""
    poles = gymnasium.make_vec("CartPole-v1", num_envs=n, vectorization_mode="vector_entry_point")
    state, _ = poles.reset(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    alive = np.ones(n, dtype=bool)
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    while alive.any() and len(rows) < LIMIT:
        seen = torch.from_numpy(state).float()
        logprobs = torch.log_softmax(policy(seen), dim=1)
        action = logprobs.argmax(1) if greedy else torch.multinomial(logprobs.exp(), 1, generator=generator).squeeze(1)
        rows.append((seen, action, logprobs.gather(1, action[:, None]).squeeze(1), torch.from_numpy(alive.copy())))
        state, _, fell, cut, _ = poles.step(action.numpy())
        alive &= ~(fell | cut)
    poles.close()
    return Episodes(*(torch.stack(column, dim=1) for column in zip(*rows, strict=True)))


def action_logprobs(policy: nn.Module, episodes: Episodes) -> Tensor:
    logprobs = torch.log_softmax(policy(episodes.observations), dim=2)
    return logprobs.gather(2, episodes.actions.unsqueeze(2)).squeeze(2)


def train_ppo(seed: int = 0, steps: int = 60, n: int = 16, epochs: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    policy, critic = network(2), network(1)
    optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=3e-3, eps=1e-5)
    for step in range(steps):
        batch = play(policy, n, seed * 10_000 + step)
        with torch.no_grad():
            old_values = critic(batch.observations).squeeze(2)
        advantages, returns = gae(batch.rewards, old_values, batch.mask, gamma=0.99, gae_lambda=0.95)
        advantages = whiten(advantages, batch.mask)
        for _ in range(epochs):
            loss, _ = clipped_policy_loss(action_logprobs(policy, batch), batch.logprobs, advantages, batch.mask, 0.2)
            values = critic(batch.observations).squeeze(2)
            loss = loss + 0.5 * clipped_value_loss(values, old_values, returns, batch.mask, clip_range=10.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if batch.lengths.float().mean() >= 495:
            break
    return policy


def train_rloo(seed: int = 0, steps: int = 150, n: int = 32) -> nn.Module:
    """The whole episode is one action, and every episode is measured against the mean of the others."""
    torch.manual_seed(seed)
    policy = network(2)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for step in range(steps):
        batch = play(policy, n, seed * 10_000 + step)
        advantages = rloo_advantages(batch.lengths.float()[None])[0]
        loss = reinforce_loss(action_logprobs(policy, batch), advantages / LIMIT, batch.mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if batch.lengths.float().mean() >= 495:
            break
    return policy


def mean_length(policy: nn.Module, n: int = 100, seed: int = 123) -> float:
    """Mean number of steps over ``n`` new episodes, the likelier action taken."""
    return float(play(policy, n, seed, greedy=True).lengths.float().mean())


if __name__ == "__main__":
    method = sys.argv[1] if len(sys.argv) > 1 else "ppo"
    trained = {"ppo": train_ppo, "rloo": train_rloo}[method]()
    print(f"{method}: the pole stays up for {mean_length(trained):.0f} of {LIMIT} steps on average")
