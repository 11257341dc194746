"""Epsilon-greedy Q-learning on ``charter/Dialogue-v0``: which of four responses should the assistant give?

The tiny model of the testbed answers each prompt four times. The oracle of the testbed says what a response is worth, 0 to 1. Two
agents learn Q(prompt, response) by the same rule, Q ← Q + α (r - Q): an episode has one step, so no next value follows. The table
has a number for each prompt and response that it has tried. The network reads the words and so also knows prompts it never saw.

    python examples/dialogue_q_learning.py --seeds 5
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn

from charter.environments import WordsObservation
from charter.errors import GateError
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.reading.prompts import read_prompts
from charter.recipe.source import locate
from charter.run.hashes import derive_seed
from charter.testbed.oracle import read

K, SIZE = 4, 256


def worth(prompt: str, response: str) -> float | None:
    """The oracle's level of a response over the best one; None, an abstention, where the oracle cannot read the response."""
    verdict = read(prompt, response)
    level = verdict["helpfulness_level"] if verdict["gold"] is None else verdict["gold"]
    return None if level is None else level / 4


def sampled_candidates(split: str, n: int) -> list[dict[str, Any]]:
    """``n`` prompts of the testbed, half of them harmful requests, each with K responses of its model."""
    prompts = [p for p in read_prompts(Path(locate("package:charter.testbed/data/prompts.jsonl", Path.cwd())))
               if p.split == split and not {"second-script", "unseen-template"} & set(p.tags)]  # fmt: skip
    chosen = [p for kind in ("red_team", "benign") for p in [p for p in prompts if kind in p.tags][: n // 2]]
    sampler = LocalSampler(load_trunk(locate("package:charter.testbed/model", Path.cwd())), "testbed")
    seeds = [[derive_seed("candidates", p.id, k) for k in range(K)] for p in chosen]
    groups = sampler.generate([p.messages for p in chosen], seeds, temperature=1.0, max_new_tokens=64)
    return [{"prompt": p, "responses": [sample.text for sample in group]} for p, group in zip(chosen, groups, strict=True)]


def make(candidates: Sequence[dict[str, Any]]) -> gymnasium.Env[Any, Any]:
    """The environment; its observation is the words of the prompt and of the candidates, (1 + K, SIZE)."""
    return WordsObservation(gymnasium.make("charter/Dialogue-v0", candidates=candidates, scorer=worth), SIZE)


class Table:
    """Q of every prompt and response, 0 until it was tried."""

    def __init__(self) -> None:
        self.values: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(K))

    def q(self, _: np.ndarray, prompt: str) -> np.ndarray:
        return self.values[prompt]

    def learn(self, _: np.ndarray, prompt: str, action: int, reward: float) -> None:
        self.values[prompt][action] += 0.5 * (reward - self.values[prompt][action])


class Network:
    """Q of the words of a prompt and of a response, the same network for every response; it learns from a batch of all steps."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.net = nn.Sequential(nn.Linear(2 * SIZE, 64), nn.ReLU(), nn.Linear(64, 1))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        self.rng, self.inputs, self.rewards = rng, [], []

    def q(self, observation: np.ndarray, _: str) -> np.ndarray:
        pairs = np.concatenate([np.repeat(observation[:1], K, axis=0), observation[1:]], axis=1)
        with torch.no_grad():
            return self.net(torch.from_numpy(pairs)).squeeze(1).numpy()

    def learn(self, observation: np.ndarray, _: str, action: int, reward: float) -> None:
        self.inputs.append(np.concatenate([observation[0], observation[1 + action]]))
        self.rewards.append(reward)
        batch = self.rng.integers(0, len(self.rewards), 32)
        inputs = torch.from_numpy(np.stack([self.inputs[i] for i in batch]))
        rewards = torch.tensor([self.rewards[i] for i in batch], dtype=torch.float32)
        loss = nn.functional.mse_loss(self.net(inputs).squeeze(1), rewards)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def train(agent: Table | Network, env: gymnasium.Env[Any, Any], episodes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for episode in range(episodes):
        observation, info = env.reset(seed=seed if episode == 0 else None)
        epsilon = max(0.05, 1 - episode / (0.5 * episodes))
        greedy = int(agent.q(observation, info["prompt_id"]).argmax())
        action = int(rng.integers(K)) if rng.random() < epsilon else greedy
        _, reward, _, _, _ = env.step(action)
        agent.learn(observation, info["prompt_id"], action, float(reward))


def evaluate(choose: Callable[[np.ndarray, str], int], env: gymnasium.Env[Any, Any]) -> np.ndarray:
    """Reward of the choice, mean reward of the K candidates (a random choice), and the best, of every prompt that the scorer can
    judge: (n, 3)."""
    rows = []
    for index in range(len(env.unwrapped.rows)):
        try:
            observation, info = env.reset(options={"index": index})
        except GateError:  # the scorer abstains on a response to this prompt
            continue
        _, reward, _, _, after = env.step(choose(observation, info["prompt_id"]))
        rows.append((reward, after["rewards"].mean(), after["best"]))
    return np.array(rows)


def words(name: str, seed: int, rewards: np.ndarray) -> str:
    """One row of the table of results."""
    gain = rewards[:, 0] - rewards[:, 1]
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    mean, random, best = rewards.mean(axis=0)
    return (f"| {name} | {seed} | {len(gain)} | {random:.3f} | {mean:.3f} | {best:.3f} | {gain.mean():+.3f} | {error:.3f} | "
            f"{gain.mean() / max(error, 1e-9):.1f} |")  # fmt: skip


HEAD = "| agent | seed | prompts | random | agent's | best of 4 | gain | standard error | gain / error |\n|" + "---|" * 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_200, help="to learn from")
    parser.add_argument("--held-out", type=int, default=400, help="prompts to measure on")
    parser.add_argument("--episodes", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    seen, new = (make(sampled_candidates(split, n)) for split, n in (("train", args.prompts), ("test", args.held_out)))
    print(HEAD)
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        for agent in (Table(), Network(np.random.default_rng(seed))):
            train(agent, seen, args.episodes, seed)
            for part, env in (("seen prompts", seen), ("new prompts", new)):
                name = f"{type(agent).__name__.lower()}, {part}"
                print(words(name, seed, evaluate(lambda *state: int(agent.q(*state).argmax()), env)), flush=True)  # noqa: B023


if __name__ == "__main__":
    main()
