"""Trains with every method at tiny size, and samples and judges: run by tests/test_team.py in one process and in two.

torchrun --nproc-per-node 2 tests/together.py MODEL WAY=OUT …
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from charter.constitution.categorise import categorise
from charter.constitution.constitution import Constitution, Principle
from charter.constitution.revise import respond
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import Trunk, load_trunk
from charter.reading.spool import prepare_prompts
from charter.recipe.settings import LoRASettings, SamplingSettings
from charter.records import Message, Pair, Prompt, Response
from charter.run.run import Run, Stage
from charter.run.team import disband, team
from charter.stages.reward_model.settings import RewardModelSettings
from charter.stages.rl.settings import (
    DPOSettings,
    GRPOSettings,
    ILQLSettings,
    OnlineDPOSettings,
    PPOSettings,
    RLOOSettings,
    VLLMSettings,
)
from charter.stages.sft.settings import SFTSettings
from charter.training.methods.dpo import train_dpo
from charter.training.methods.grpo import train_grpo
from charter.training.methods.ilql import train_ilql
from charter.training.methods.online_dpo import train_online_dpo
from charter.training.methods.ppo import train_ppo
from charter.training.methods.reward_model import train_reward_model
from charter.training.methods.rloo import train_rloo
from charter.training.methods.sft import sft_tokens, train_sft
from charter.training.rewards import RewardSum
from charter.training.rollouts import RewardModelReward
from charter.training.vllm_rollouts import engine_for

WORDS = ("red", "green", "blue", "a long word", "yes", "no", "not at all", "why")
TEXTS = [f"Say {first} and then {second}." for first in WORDS for second in WORDS[:3]]
PROMPTS = [Prompt(messages=(Message(role="user", content=text),)) for text in TEXTS]
PAIRS = [
    Pair(prompt=prompt, chosen=WORDS[i % 8] * (1 + i % 3), rejected=WORDS[(i + 3) % 8], group_id=f"g{i // 2}")
    for i, prompt in enumerate(PROMPTS)
]  # fmt: skip
TOPICS = Constitution(title="colours", principles=[
    Principle(id=word, title=word, preference=f"Which reply says {word}?") for word in ("red", "green")
])  # fmt: skip
ROLLOUTS: dict[str, Any] = {"steps": 3, "prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 10,
                            "tokens_per_micro_batch": 128, "learning_rate": 1e-3}  # fmt: skip


def sft(trunk: Trunk, stage: Stage) -> None:
    """In steps of 23 and of 1, so that one of two processes has nothing to learn from in some."""
    rows = sft_tokens(trunk, [(prompt.messages, WORDS[i % 8]) for i, prompt in enumerate(PROMPTS)])
    train_sft(trunk, rows, SFTSettings(epochs=2, responses_per_step=23, tokens_per_micro_batch=96), stage)


def dpo(trunk: Trunk, stage: Stage) -> None:
    trunk.add_role("policy")
    settings = DPOSettings(method="dpo", epochs=1, pairs_per_step=8, tokens_per_micro_batch=256, learning_rate=1e-3)
    train_dpo(trunk, PAIRS, settings, stage)


def rloo(trunk: Trunk, stage: Stage) -> None:
    settings = RewardModelSettings(epochs=1, pairs_per_step=8, tokens_per_micro_batch=256, learning_rate=1e-3)
    with stage.run.stage(f"{stage.name}.reward", {}, {}, []) as own:
        scorers = train_reward_model(trunk, PAIRS, settings, own)
    trunk.add_role("policy")
    reward = RewardSum({"reward_model": (1.0, RewardModelReward(trunk, scorers, 256))})
    train_rloo(trunk, PROMPTS, reward, RLOOSettings(method="rloo", **ROLLOUTS), stage)


def odd_letters(rollout: Any) -> Any:
    return (rollout.ids * rollout.mask % 7).sum(dim=1).float() / 7


def grpo(trunk: Trunk, stage: Stage) -> None:
    trunk.add_role("policy")
    settings = GRPOSettings(method="grpo", minibatches=2, epochs=2, **ROLLOUTS)
    train_grpo(trunk, PROMPTS, RewardSum({"odd": (1.0, odd_letters)}), settings, stage)


def ppo(trunk: Trunk, stage: Stage) -> None:
    trunk.add_role("policy")
    trunk.add_role("value", head=True)
    settings = PPOSettings(method="ppo", epochs=2, minibatches=2, stop_kl=0.5, **ROLLOUTS)
    train_ppo(trunk, PROMPTS, RewardSum({"odd": (1.0, odd_letters)}), settings, stage)


def single(trunk: Trunk, stage: Stage, **more: Any) -> None:
    """One response a step, so that one of two processes samples none; values come from a head on the policy."""
    trunk.add_role("policy")
    trunk.add_value_head("policy", 0.5)
    rollouts = {**ROLLOUTS, "value": "head", "prompts_per_step": 1, "samples_per_prompt": 1, "minibatches": 1, **more}
    with engine_for(trunk, PROMPTS, settings := PPOSettings(method="ppo", **rollouts)):
        train_ppo(trunk, PROMPTS, RewardSum({"odd": (1.0, odd_letters)}), settings, stage)


def five(trunk: Trunk, stage: Stage, **more: Any) -> None:
    """Five responses to one prompt, so that two processes share it."""
    trunk.add_role("policy")
    rollouts = {**ROLLOUTS, "prompts_per_step": 1, "samples_per_prompt": 5, **more}
    with engine_for(trunk, PROMPTS, settings := RLOOSettings(method="rloo", **rollouts)):
        train_rloo(trunk, PROMPTS, RewardSum({"odd": (1.0, odd_letters)}), settings, stage)


def nine(trunk: Trunk, stage: Stage) -> None:
    """Three responses to each of three prompts, which two processes cannot share evenly."""
    trunk.add_role("policy")
    rollouts = {**ROLLOUTS, "prompts_per_step": 3, "samples_per_prompt": 3}
    train_rloo(trunk, PROMPTS, RewardSum({"odd": (1.0, odd_letters)}), RLOOSettings(method="rloo", **rollouts), stage)


def online(trunk: Trunk, stage: Stage) -> None:
    trunk.add_role("policy")
    settings = OnlineDPOSettings(method="online_dpo", **ROLLOUTS)
    train_online_dpo(trunk, PROMPTS, RewardSum({"odd": (1.0, odd_letters)}), settings, stage)


def ilql(trunk: Trunk, stage: Stage) -> None:
    """Not among ``PARTS``: weights and moments that are divided are refused."""
    trunk.add_role("policy")
    settings = ILQLSettings(pairs_per_step=8, tokens_per_micro_batch=128, learning_rate=1e-3, value_learning_rate=1e-2)
    train_ilql(trunk, PAIRS, settings, stage)


def lora_ppo(trunk: Trunk, stage: Stage) -> None:
    """Five adapters on one trunk: two of a reward model, policy, value."""
    settings = RewardModelSettings(epochs=1, pairs_per_step=8, tokens_per_micro_batch=256, learning_rate=1e-3, ensemble=2,
                                   lora=trunk.lora)  # fmt: skip
    with stage.run.stage(f"{stage.name}.reward", {}, {}, []) as own:
        scorers = train_reward_model(trunk, PAIRS, settings, own)
    trunk.add_role("policy")
    trunk.add_role("value", head=True)
    reward = RewardSum({"reward_model": (1.0, RewardModelReward(trunk, scorers, 256)), "odd": (1.0, odd_letters)})
    train_ppo(trunk, PROMPTS, reward, PPOSettings(method="ppo", **ROLLOUTS), stage)


def vllm_single(trunk: Trunk, stage: Stage) -> None:
    single(trunk, stage, vllm=VLLMSettings(kv_cache_gb=0.05, max_rows=16))


def vllm_five(trunk: Trunk, stage: Stage) -> None:
    five(trunk, stage, vllm=VLLMSettings(kv_cache_gb=0.05, max_rows=16))


def answers(trunk: Trunk, stage: Stage) -> None:
    """Texts and prompts to sort, claimed batch by batch, and weighed options, dealt."""
    sampler = LocalSampler(trunk, "tiny", tokens_per_micro_batch=64)
    stage.rows("responses.jsonl", Response).work(
        PROMPTS, 5,
        lambda batch: [one for group in respond(sampler, batch, SamplingSettings(max_new_tokens=8), seed=0, what="test", k=2)
                       for one in group],
        rows_per_item=2,
    )  # fmt: skip
    weighed = sampler.option_logprobs([prompt.messages for prompt in PROMPTS], [("yes", "no", "red")] * len(PROMPTS))
    for number, row in enumerate(weighed):
        stage.record(number, options=row)
    many = [Prompt.ask(f"{text} {number}") for number in range(25) for text in TEXTS]
    prepare_prompts(many, stage.path("prompts.jsonl"), train=None, test=None, test_fraction=0.2, seed=0,
                    sort=lambda batch: categorise(batch, TOPICS, sampler))  # fmt: skip


PARTS = (sft, dpo, rloo, grpo, ppo, online, single, five, nine)
WAYS = {
    "ddp": ("ddp", (*PARTS, lora_ppo, ilql, answers)), "fsdp": ("fsdp", PARTS), "deepspeed": ("deepspeed", (*PARTS, lora_ppo)),
    "offloaded": ("deepspeed", (sft, ppo, lora_ppo)), "vllm": ("ddp", (vllm_single, vllm_five)),
    "vllm_fsdp": ("fsdp", (vllm_single, vllm_five)),
}  # fmt: skip


def train_all(model: Path, out: Path, way: str = "ddp") -> None:
    """Every part in a stage of its own under ``out``."""
    parallel, parts = WAYS[way]
    os.environ["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] = "cpu" if way == "offloaded" else "none"
    with Run(out, quiet=True) as run:
        for part in parts:
            with run.stage(part.__name__, {}, {}, []) as stage:
                lora = LoRASettings(rank=4, alpha=8) if part.__name__.startswith("lora") else None
                trunk = load_trunk(str(model), parallel=parallel, lora=lora)
                part(trunk, stage)
                trunk.close()
                stage.metrics()


if __name__ == "__main__":
    for told in sys.argv[2:]:
        way, out = told.split("=", 1)
        train_all(Path(sys.argv[1]), Path(out), way)
    assert team().size == 2
    disband()
