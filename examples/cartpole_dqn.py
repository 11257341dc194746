"""CartPole by deep Q-learning: an epsilon-greedy policy, a replay buffer and a target network, from scratch (Mnih et al. 2015).

The agent pushes a cart left or right and gets 1 for every step in which the pole stays up, 500 at most. 475 on average over 100
episodes counts as solved. Q(s, a) is the return the agent expects if it takes action a in state s and the best action ever after.
Needs gymnasium (`pip install "charter-align[gym]"`).

    python examples/cartpole_dqn.py --seeds 5 --picture docs/cartpole-dqn.png
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

GAMMA = 0.99
BATCH = 128
LEARNING_RATE = 1e-3
WARM_UP = 1_000  # steps of random actions before the first update
EPSILON_END, EPSILON_STEPS = 0.05, 10_000  # the share of random actions falls from 1 to its end over so many steps
TAU = 0.005  # of the way that the target network moves towards the learner after an update


def network() -> nn.Sequential:
    """Q of both actions, (B, 2), of states (B, 4)."""
    return nn.Sequential(nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))


class Replay:
    """The last ``size`` transitions. Drawn at random, neighbours in a batch do not come from one episode."""

    def __init__(self, size: int) -> None:
        self.states, self.next_states = torch.zeros(size, 4), torch.zeros(size, 4)
        self.actions = torch.zeros(size, dtype=torch.long)
        self.rewards, self.fell = torch.zeros(size), torch.zeros(size)
        self.size, self.count = size, 0

    def add(self, state: np.ndarray, action: int, reward: float, next_state: np.ndarray, fell: bool) -> None:
        i = self.count % self.size
        self.states[i], self.next_states[i] = torch.from_numpy(state), torch.from_numpy(next_state)
        self.actions[i], self.rewards[i], self.fell[i] = action, reward, float(fell)
        self.count += 1

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        i = torch.from_numpy(rng.integers(0, min(self.count, self.size), n))
        return self.states[i], self.actions[i], self.rewards[i], self.next_states[i], self.fell[i]


@torch.no_grad()
def greedy(q: nn.Module, state: np.ndarray) -> int:
    return int(q(torch.from_numpy(state)).argmax())


def q_loss(q: nn.Module, target: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Distance of Q(s, a) from r + γ max Q_target(s', ·). A fallen pole has no next state; an episode that ends at 500 steps has
    one, which the clock hides."""
    states, actions, rewards, next_states, fell = batch
    with torch.no_grad():
        aims = rewards + GAMMA * (1 - fell) * target(next_states).max(dim=1).values
    return nn.functional.smooth_l1_loss(q(states).gather(1, actions[:, None]).squeeze(1), aims)


def train(seed: int, steps: int, check_every: int = 2_500) -> tuple[nn.Module, list[tuple[int, float]]]:
    """The best network of the checks, each on 20 episodes, and the (step, mean return) of every check. Training ends with the
    first perfect check."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pole, replay, q = gymnasium.make("CartPole-v1"), Replay(50_000), network()
    target, best, best_return, curve = copy.deepcopy(q), copy.deepcopy(q), -1.0, []
    optimizer = torch.optim.Adam(q.parameters(), lr=LEARNING_RATE)
    state, _ = pole.reset(seed=seed)
    for step in range(1, steps + 1):
        epsilon = 1 + (EPSILON_END - 1) * min(step / EPSILON_STEPS, 1)
        action = int(rng.integers(2)) if rng.random() < epsilon else greedy(q, state)
        next_state, reward, fell, out_of_time, _ = pole.step(action)
        replay.add(state, action, float(reward), next_state, fell)
        state = pole.reset()[0] if fell or out_of_time else next_state
        if step > WARM_UP:
            loss = q_loss(q, target, replay.draw(BATCH, rng))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(target.parameters(), q.parameters(), strict=True):
                    slow.lerp_(fast, TAU)
        if step % check_every == 0:
            curve.append((step, float(np.mean(returns(q, 20, seed=10_000 + seed)))))
            if curve[-1][1] > best_return:
                best, best_return = copy.deepcopy(q), curve[-1][1]
            if best_return == 500:
                break
    return best, curve


@torch.no_grad()
def returns(q: nn.Module, n: int, seed: int) -> np.ndarray:
    """Returns of ``n`` new episodes under the greedy policy, (n,)."""
    poles = gymnasium.make_vec("CartPole-v1", num_envs=n, vectorization_mode="vector_entry_point")
    states, _ = poles.reset(seed=seed)
    total, alive = np.zeros(n), np.ones(n, dtype=bool)
    while alive.any():
        states, rewards, fell, out_of_time, _ = poles.step(q(torch.from_numpy(states)).argmax(dim=1).numpy())
        total += rewards * alive
        alive &= ~(fell | out_of_time)
    return total


def draw_picture(curves: list[list[tuple[int, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    for seed, curve in enumerate(curves):
        axes.plot(*zip(*curve, strict=True), marker=".", label=f"seed {seed}")
    axes.axhline(475, color="grey", linestyle=":")
    axes.set(xlabel="steps in the environment", ylabel="mean return of 20 greedy episodes", ylim=(0, 510))
    axes.legend()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60_000, help="at most, in the environment")
    parser.add_argument("--episodes", type=int, default=100, help="of the last evaluation")
    parser.add_argument("--picture", type=Path, help="file for the learning curves")
    args = parser.parse_args()
    curves = []
    for seed in range(args.seeds):
        q, curve = train(seed, args.steps)
        curves.append(curve)
        ends = returns(q, args.episodes, seed=20_000 + seed)
        print(f"seed {seed}: {curve[-1][0]:,} steps, mean return {ends.mean():.1f} of {args.episodes} episodes, "
              f"worst {ends.min():.0f}", flush=True)  # fmt: skip
    if args.picture:
        draw_picture(curves, args.picture)


if __name__ == "__main__":
    main()
