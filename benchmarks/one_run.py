"""One timed run of one work by one tool; prints a JSON line. Called by speed.py and gpu.py, each time in a process of its own.

python benchmarks/one_run.py {charter,trl} WORK {S,M,R,Q,L,P} [--profile]

With --profile it prints torch's kernels by their own time instead. DEVICE=cuda in the environment runs it on a GPU.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import workload

ROWS = 32  # dialogues or pairs behind an optimizer step
COMPLETIONS = 32  # of a step of reinforcement learning
NEW_TOKENS = 64
STEPS = {"sft": 6, "sft-lora": 6, "reward": 4, "dpo": 4, "grpo": 6, "rloo": 6, "ppo": 2, "ppo-head": 2,
         "sample": 2, "sample-groups": 2}  # fmt: skip
SLOW = {"S": 1, "M": 2, "R": 6, "Q": 6}  # fewer steps of the larger models


DEVICE = os.environ.get("DEVICE", "cpu")


def now() -> float:
    """Seconds of this process on a CPU; on a GPU, seconds by the clock once it has done all that it was given."""
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Clock:
    """Seconds (``now``) from the end of the first step, which warms up, to the end of the last. On a CPU both tools use one
    thread: on an idle core these are seconds; on a busy one the time of other processes does not count."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def __call__(self, *_: Any, **__: Any) -> None:
        self.marks.append(now())

    def rate(self, units: float) -> float:
        """Units per second, ``units`` being those of all steps after the first."""
        return units / (self.marks[-1] - self.marks[0])


# -- charter -----------------------------------------------------------------------------------------------------------


def charter_stage(place: Path, clock: Clock) -> Any:
    from charter.run.run import Run

    run = Run(place / "run", quiet=True)
    stage = run.stage("bench", {}, {}, []).__enter__()
    record = stage.record

    def timed(step: int, **values: Any) -> dict[str, Any]:
        clock()
        return record(step, **values)

    stage.record = timed  # type: ignore[method-assign]
    return stage


def charter_trunk(folder: Path, *, lora: bool = False) -> Any:
    from charter.models.trunk import load_trunk
    from charter.recipe.settings import LoRASettings

    return load_trunk(str(folder), precision="bfloat16", device=DEVICE, lora=LoRASettings() if lora else None)


def charter_sft(folder: Path, place: Path, steps: int, *, lora: bool = False) -> float:
    from charter.models.packing import Tokens
    from charter.stages.sft.settings import SFTSettings
    from charter.training.methods.sft import train_sft

    rows = []
    for d in workload.dialogues(ROWS * (steps + 1)):
        ids = [*d.prompt, *d.chosen, workload.END]
        rows.append(Tokens(ids[:1], ids[1:]))
    clock = Clock()
    stage = charter_stage(place, clock)
    settings = SFTSettings(epochs=1, responses_per_step=ROWS, checkpoint_every=10**6, tokens_per_micro_batch=MICRO)
    train_sft(charter_trunk(folder, lora=lora), rows, settings, stage)
    return clock.rate(sum(row["tokens"] for row in stage.metrics()[1:]))


def charter_pairs(n: int) -> list[Any]:
    from charter.records import Message, Pair, Prompt

    return [
        Pair(prompt=Prompt(messages=(Message(role="user", content=workload.text(d.prompt)),)), chosen=workload.text(d.chosen),
             rejected=workload.text(d.rejected), group_id=str(i))
        for i, d in enumerate(workload.dialogues(n))
    ]  # fmt: skip


def charter_reward(folder: Path, place: Path, steps: int) -> float:
    from charter.stages.reward_model.settings import RewardModelSettings
    from charter.training.methods.reward_model import train_reward_model

    clock = Clock()
    settings = RewardModelSettings(epochs=1, pairs_per_step=ROWS, checkpoint_every=10**6, tokens_per_micro_batch=MICRO)
    train_reward_model(charter_trunk(folder), charter_pairs(ROWS * (steps + 1)), settings, charter_stage(place, clock))
    return clock.rate(ROWS * steps)


def charter_dpo(folder: Path, place: Path, steps: int) -> float:
    from charter.stages.rl.settings import DPOSettings
    from charter.training.methods.dpo import train_dpo

    clock = Clock()
    trunk = charter_trunk(folder)
    trunk.add_role("policy")
    settings = DPOSettings(epochs=1, pairs_per_step=ROWS, checkpoint_every=10**6, tokens_per_micro_batch=MICRO)
    pairs, stage = charter_pairs(ROWS * (steps + 1)), charter_stage(place, clock)
    began = now()
    train_dpo(trunk, pairs, settings, stage)
    # The reference is read before the first step; its time counts for all pairs.
    return ROWS * (steps + 1) / (clock.marks[-1] - began)


def rows_of(rollout: Any) -> list[Any]:
    from charter.models.packing import Tokens

    return [Tokens(p, row[m].tolist()) for p, row, m in zip(rollout.prompt_ids, rollout.ids, rollout.mask, strict=True)]


def charter_rl(method: str, *, value: str = "own") -> Callable[[Path, Path, int], float]:
    def run(folder: Path, place: Path, steps: int) -> float:
        from charter.records import Message, Prompt
        from charter.stages.rl.settings import METHODS
        from charter.training.methods.grpo import train_grpo
        from charter.training.methods.ppo import train_ppo
        from charter.training.methods.reward_model import score_rows
        from charter.training.methods.rloo import train_rloo
        from charter.training.rewards import RewardSum

        group = {"grpo": 8, "rloo": 4, "ppo": 1}[method]
        clock = Clock()
        trunk = charter_trunk(folder)
        trunk.add_role("policy")
        if method == "ppo" and value == "own":
            trunk.add_role("value", head=True)
        elif method == "ppo":
            trunk.add_value_head("policy", 0.1)
        per_step = COMPLETIONS // group
        prompts = [Prompt(messages=(Message(role="user", content=workload.text(p)),))
                   for p in workload.prompts(per_step * (steps + 1))]  # fmt: skip
        more = {"ppo": {"epochs": 4, "minibatches": 1, "value": value}}.get(method, {})
        settings = METHODS[method](
            steps=steps + 1, prompts_per_step=per_step, samples_per_prompt=group, max_new_tokens=NEW_TOKENS,
            learning_rate=1e-6, checkpoint_every=10**6, tokens_per_micro_batch=ROLLOUT, kl_coef=KL[method], **more,
        )  # fmt: skip
        train = {"grpo": train_grpo, "rloo": train_rloo, "ppo": train_ppo}[method]
        reward = RewardSum({"first": (1.0, lambda rollout: rollout.ids[:, 0].float() % 7)})
        if method == "ppo":  # as in TRL, a reward model of the same size reads every response
            trunk.add_role("reward", head=True)
            reward = RewardSum({"reward": (1.0, lambda rollout: score_rows(trunk, rows_of(rollout), ROLLOUT))})
        train(trunk, prompts, reward, settings, charter_stage(place, clock))  # type: ignore[operator]
        return clock.rate(COMPLETIONS * steps)

    return run


KL = {"grpo": 0.04, "rloo": 0.05, "ppo": 0.05}


def charter_sample(folder: Path, k: int, steps: int) -> float:
    from charter.models.load import load_model
    from charter.models.sampling.generate import sample

    model, rates = load_model(str(folder)).to(DEVICE), []
    for turn in range(steps + 1):
        prompts = workload.prompts(64 // k, seed=turn)
        began = now()
        seeds = [[turn * 64 + i * k + j for j in range(k)] for i in range(len(prompts))]
        groups = sample(model, prompts, seeds, ends=[-1], max_new_tokens=NEW_TOKENS, temperature=1.0, dtype=torch.bfloat16)
        rates.append(sum(len(one.ids) for group in groups for one in group) / (now() - began))
    return sorted(rates[1:])[0]


# -- trl ---------------------------------------------------------------------------------------------------------------


def callback(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock()

    return Timer()


def in_order(trainer: Any) -> Any:
    """The data as it stands: it is already grouped by length."""
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)
    return trainer


def arguments(place: Path, **changes: Any) -> dict[str, Any]:
    return {"output_dir": str(place), "report_to": "none", "use_cpu": DEVICE == "cpu", "bf16": True,
            "gradient_checkpointing": False, "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8, "gradient_accumulation_steps": ROWS // 8, **changes}  # fmt: skip


def peer_model(folder: Path, kind: str = "AutoModelForCausalLM", **changes: Any) -> Any:
    import transformers

    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32, **changes)


def trl_sft(folder: Path, place: Path, steps: int, *, lora: bool = False) -> float:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [[*d.prompt, *d.chosen, workload.END] for d in workload.dialogues(ROWS * (steps + 1))]
    rows = [rows[i] for i in workload.alike([len(row) for row in rows], 8)]
    clock = Clock()
    trainer = SFTTrainer(
        model=peer_model(folder), args=SFTConfig(**arguments(place, max_length=None)),
        train_dataset=Dataset.from_list([{"input_ids": row} for row in rows]), callbacks=[callback(clock)],
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if lora else None,
    )  # fmt: skip
    in_order(trainer).train()
    return clock.rate(sum(len(row) for row in rows[ROWS:]))


def trl_reward(folder: Path, place: Path, steps: int) -> float:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    pairs = workload.dialogues(ROWS * (steps + 1))
    pairs = [pairs[i] for i in workload.alike([len(d.prompt) + max(len(d.chosen), len(d.rejected)) for d in pairs], 8)]
    rows = [{"chosen": workload.text([*d.prompt, *d.chosen]), "rejected": workload.text([*d.prompt, *d.rejected])} for d in pairs]
    clock = Clock()
    trainer = RewardTrainer(
        model=peer_model(folder, "AutoModelForSequenceClassification", num_labels=1),
        args=RewardConfig(**arguments(place, max_length=None)), train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[callback(clock)],
    )  # fmt: skip
    in_order(trainer).train()
    return clock.rate(ROWS * steps)


def trl_dpo(folder: Path, place: Path, steps: int) -> float:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    pairs = workload.dialogues(ROWS * (steps + 1))
    pairs = [pairs[i] for i in workload.alike([len(d.prompt) + max(len(d.chosen), len(d.rejected)) for d in pairs], 8)]
    rows = [{"prompt": workload.text(d.prompt) + " ", "chosen": workload.text(d.chosen), "rejected": workload.text(d.rejected)}
            for d in pairs]  # fmt: skip
    clock = Clock()
    trainer = DPOTrainer(
        model=peer_model(folder), ref_model=peer_model(folder), args=DPOConfig(**arguments(place, max_length=None)),
        train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[callback(clock)],
    )  # fmt: skip
    in_order(trainer).train()
    return clock.rate(ROWS * steps)


def first_token(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(ids[0] % 7) for ids in completion_ids]


def trl_rl(method: str) -> Callable[[Path, Path, int], float]:
    def run(folder: Path, place: Path, steps: int) -> float:
        import trl
        from datasets import Dataset
        from transformers import AutoTokenizer

        group = {"grpo": 8, "rloo": 4}[method]
        rows = [{"prompt": workload.text(p)} for p in workload.prompts(COMPLETIONS // group * (steps + 1))]
        kind = {"grpo": "GRPO", "rloo": "RLOO"}[method]
        config = getattr(trl, f"{kind}Config")(**arguments(
            place, per_device_train_batch_size=COMPLETIONS, gradient_accumulation_steps=1, num_generations=group,
            max_completion_length=NEW_TOKENS, beta=float(os.environ.get("TRL_BETA", KL[method])), temperature=1.0,
            top_k=0, max_steps=steps + 1, learning_rate=1e-6,
        ))  # fmt: skip
        clock = Clock()
        trainer = getattr(trl, f"{kind}Trainer")(
            model=peer_model(folder), reward_funcs=first_token, args=config, train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[callback(clock)],
        )  # fmt: skip
        trainer.train()
        return clock.rate(COMPLETIONS * steps)

    return run


def trl_ppo(folder: Path, place: Path, steps: int) -> float:
    """TRL 1.12, the last with a PPO trainer; put it before the newer one on PYTHONPATH."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    rows = [{"input_ids": p} for p in workload.prompts(COMPLETIONS * (steps + 1))]
    config = PPOConfig(**arguments(
        place, per_device_train_batch_size=COMPLETIONS, gradient_accumulation_steps=1, num_ppo_epochs=4, num_mini_batches=1,
        response_length=NEW_TOKENS, temperature=1.0, total_episodes=COMPLETIONS * (steps + 1), learning_rate=1e-6,
        num_sample_generations=0, local_rollout_forward_batch_size=COMPLETIONS,
    ))  # fmt: skip
    clock = Clock()
    scorer, value = (peer_model(folder, "AutoModelForSequenceClassification", num_labels=1) for _ in range(2))
    trainer = PPOTrainer(
        args=config, processing_class=AutoTokenizer.from_pretrained(folder), model=peer_model(folder),
        ref_model=peer_model(folder), reward_model=scorer, value_model=value, train_dataset=Dataset.from_list(rows),
        callbacks=[callback(clock)],
    )  # fmt: skip
    trainer.train()
    return clock.rate(COMPLETIONS * (len(clock.marks) - 1))


def trl_sample(folder: Path, k: int, steps: int) -> float:
    """transformers' own generate in its best setting for the shape: bfloat16 weights, dynamic cache, the malloc setting."""
    from charter.models.packing import left_pad

    model, rates = peer_model(folder).to(DEVICE).bfloat16().eval(), []
    for turn in range(steps + 1):
        ids, attention = left_pad([p for p in workload.prompts(64 // k, seed=turn) for _ in range(k)], torch.device(DEVICE))
        torch.manual_seed(turn)
        began = now()
        model.generate(ids, attention_mask=attention, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=NEW_TOKENS,
                       min_new_tokens=NEW_TOKENS, pad_token_id=workload.END)  # fmt: skip
        rates.append(64 * NEW_TOKENS / (now() - began))
    return sorted(rates[1:])[0]


MICRO = int(os.environ.get("MICRO", "6144"))
ROLLOUT = 6144  # tokens of a micro-batch that holds all rows of a step of reinforcement learning
WORKS: dict[str, dict[str, Callable[..., float]]] = {
    "charter": {
        "sft": charter_sft,
        "sft-lora": lambda *given: charter_sft(*given, lora=True),
        "reward": charter_reward,
        "dpo": charter_dpo,
        "grpo": charter_rl("grpo"),
        "rloo": charter_rl("rloo"),
        "ppo": charter_rl("ppo"),
        "ppo-head": charter_rl("ppo", value="head"),
        "sample": lambda folder, _, steps: charter_sample(folder, 1, steps),
        "sample-groups": lambda folder, _, steps: charter_sample(folder, 8, steps),
    },
    "trl": {
        "sft": trl_sft,
        "sft-lora": lambda *given: trl_sft(*given, lora=True),
        "reward": trl_reward,
        "dpo": trl_dpo,
        "grpo": trl_rl("grpo"),
        "rloo": trl_rl("rloo"),
        "ppo": trl_ppo,
        "ppo-head": trl_ppo,
        "sample": lambda folder, _, steps: trl_sample(folder, 1, steps),
        "sample-groups": lambda folder, _, steps: trl_sample(folder, 8, steps),
    },
}


def main(tool: str, work: str, shape: str, profile: str = "") -> None:
    warnings.simplefilter("ignore")
    if DEVICE == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, torch.profiler.profile() if profile else nullcontext() as found:
        folder = workload.save_model(Path(place) / "model", shape)
        steps = STEPS[work] if DEVICE != "cpu" else max(STEPS[work] // SLOW[shape], 1)
        rate = WORKS[tool][work](folder, Path(place), steps)
    if profile:
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=40))
        return
    on_cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = (on_cpu if DEVICE == "cpu" else torch.cuda.max_memory_allocated()) / 2**20
    print(json.dumps({"tool": tool, "work": work, "model": shape, "rate": rate, "peak_mb": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
