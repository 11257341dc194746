"""Peak memory of PPO with policy, reference, reward and value model as adapters on one trunk, against four separate models.

python benchmarks/memory.py [S|M]

Each in a process of its own, on the same rollouts. Shown are the peak of the process and what lies above the peak of a process
that has only imported the libraries and loaded the model's tokenizer.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import workload

MICRO = 512  # tokens: the more, the more of the peak is activations, which are the same for both


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(kind: str, shape: str) -> None:
    """Two PPO steps; prints the peak."""
    from charter.models.packing import Tokens
    from charter.models.trunk import load_trunk
    from charter.recipe.settings import LoRASettings
    from charter.records import Message, Prompt
    from charter.run.run import Run
    from charter.stages.rl.settings import PPOSettings
    from charter.training.methods.ppo import train_ppo
    from charter.training.methods.reward_model import score_rows
    from charter.training.rewards import RewardSum

    with tempfile.TemporaryDirectory() as place:
        folder = workload.save_model(Path(place) / "model", shape)
        if kind != "libraries":
            trunk = load_trunk(str(folder), precision="bfloat16", lora=LoRASettings() if kind == "one trunk" else None)
            for role in ("policy", "reward", "value"):
                trunk.add_role(role, head=role != "policy")
            settings = PPOSettings(steps=2, prompts_per_step=16, samples_per_prompt=1, max_new_tokens=64, minibatches=1,
                                   learning_rate=1e-6, tokens_per_micro_batch=MICRO, checkpoint_every=10,
                                   lora=trunk.lora)  # fmt: skip
            prompts = [Prompt(messages=(Message(role="user", content=workload.text(p)),)) for p in workload.prompts(16)]

            def reward(rollout):  # type: ignore[no-untyped-def]
                rows = [Tokens(p, row[m].tolist()) for p, row, m in zip(rollout.prompt_ids, rollout.ids, rollout.mask,
                                                                        strict=True)]  # fmt: skip
                return score_rows(trunk, rows, MICRO)

            with Run(Path(place) / "run", quiet=True) as run, run.stage("ppo", {}, {}, []) as stage:
                train_ppo(trunk, prompts, RewardSum({"reward": (1.0, reward)}), settings, stage)
        else:
            import peft  # noqa: F401

            from charter.models.load import load_tokenizer

            load_tokenizer(str(folder))
    print(json.dumps(peak_mb()))


def main(shape: str) -> None:
    peaks = {}
    for kind in ("libraries", "one trunk", "four models"):
        done = subprocess.run([sys.executable, __file__, "--one", kind, shape], capture_output=True, text=True, check=True)
        peaks[kind] = json.loads(done.stdout.splitlines()[-1])
        print(f"{kind:12}{peaks[kind]:>8.0f} MB")
    above = [peaks[kind] - peaks["libraries"] for kind in ("one trunk", "four models")]
    print(f"ratio {peaks['one trunk'] / peaks['four models']:.2f}; without the libraries {above[0] / above[1]:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3])
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "M")
