"""An agent of stable-baselines3 on ``charter/Dialogue-v0``: the environment, candidates and rewards of `dialogue_q_learning.py`.

The library's networks read numbers, so ``WordsObservation`` gives them the words of the prompt and of the K responses.
`DQN` reads all of them at once and has one output for each response. Needs `pip install "charter-align[gym]" stable-baselines3`.

    python examples/dialogue_sb3.py --seeds 3
"""

from __future__ import annotations

import argparse

from dialogue_q_learning import HEAD, evaluate, make, sampled_candidates, words
from stable_baselines3 import DQN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_200, help="to learn from")
    parser.add_argument("--held-out", type=int, default=400, help="prompts to measure on")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    seen, new = (make(sampled_candidates(split, n)) for split, n in (("train", args.prompts), ("test", args.held_out)))
    print(HEAD)
    for seed in range(args.seeds):
        agent = DQN(
            "MlpPolicy", seen, seed=seed, gamma=0.0, learning_rate=5e-4, batch_size=64, train_freq=4, learning_starts=500,
            exploration_fraction=0.5, exploration_final_eps=0.05, buffer_size=args.steps, device="cpu",
        )  # fmt: skip
        agent.learn(args.steps)
        for part, env in (("seen prompts", seen), ("new prompts", new)):
            rewards = evaluate(lambda observation, _: int(agent.predict(observation, deterministic=True)[0]), env)  # noqa: B023
            print(words(f"DQN, {part}", seed, rewards), flush=True)


if __name__ == "__main__":
    main()
