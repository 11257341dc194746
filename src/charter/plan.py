"""What a recipe will take, before anything loads: tokens, memory, time.

Parameters are counted from the headers of the safetensors files. Tokens of prompts are measured on a sample, tokens of answers
are taken at half of ``max_new_tokens``. Time is model FLOPs (2 N a token read or sampled, 6 N a token trained on; Kaplan et al.
2020, table 1) over the rate of a quick matrix product here, times a factor for everything that is not a matrix product. It is
rough: a factor of two either way is normal.
"""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import torch

from charter.config import PPOSettings, Recipe
from charter.constitution.constitution import load_constitution
from charter.errors import InputError
from charter.models.chat_template import encode_prompt
from charter.models.load import check_folder, load_tokenizer, pick_device
from charter.prompts import read_prompts
from charter.run import read_json
from charter.stages import existing

OVERHEAD = 4.0  # attention, norms, Python, padding: measured seconds over matrix-product seconds on the shipped model
CRITIQUE_TURNS = 3  # a revision reads the prompt, an answer and a critique


def count_parameters(folder: Path) -> int:
    """Parameters of a safetensors folder, read from the headers alone; a tied embedding is stored, and counted, once."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for n in tensor["shape"]:
                    size *= n
                total += size
    return total


def plan_recipe(recipe: Recipe) -> dict[str, Any]:
    """Tokens, peak memory (bytes) and seconds of each stage. InputError where model or prompts are missing."""
    check_folder(recipe.model)
    folder = Path(recipe.model)
    if not folder.exists():
        raise InputError(
            "the plan reads the model's headers, so it needs a local folder; download the model first", file=folder
        )
    n = count_parameters(folder)
    config = read_json(folder / "config.json")
    tokenizer = load_tokenizer(recipe.model)
    load_constitution(Path(recipe.constitution))
    prompts = [p for file in recipe.prompts.files for p in read_prompts(existing(file), tags=recipe.prompts.tags)]
    sample = prompts[:: max(len(prompts) // 200, 1)]
    prompt_tokens = sum(len(encode_prompt(tokenizer, p.messages)) for p in sample) / len(sample)
    rate = matmul_rate(pick_device(recipe.device), recipe.precision)
    stages = stage_tokens(recipe, len(prompts), prompt_tokens)
    for stage in stages:
        flops = n * (2 * (stage["sampled"] + stage["read"]) + 6 * stage["trained"])
        stage["seconds"] = OVERHEAD * flops / rate
        stage["peak_bytes"] = peak_bytes(recipe, stage, n, config)
    memory = total_memory(pick_device(recipe.device))
    peak = max(stage["peak_bytes"] for stage in stages)
    return {"parameters": n, "prompts": len(prompts), "prompt_tokens": prompt_tokens, "stages": stages, "peak_bytes": peak,
            "memory_bytes": memory, "fits": peak < 0.9 * memory, "flops_per_second": rate,
            "seconds": sum(stage["seconds"] for stage in stages)}  # fmt: skip


def stage_tokens(recipe: Recipe, n_prompts: int, prompt: float) -> list[dict[str, Any]]:
    """Tokens sampled, read (scored, no gradient) and trained on, stage by stage."""
    answer, half = recipe.revise.max_new_tokens / 2, recipe.feedback.max_new_tokens / 2
    revise, sft, feedback, reward, rl = recipe.revise, recipe.sft, recipe.feedback, recipe.reward_model, recipe.rl
    wanted = recipe.prompts.train
    red = min(revise.prompts, wanted or revise.prompts)
    examples = red / (1 - sft.helpful_fraction)
    k = feedback.responses_per_prompt
    pairs = feedback.prompts * k * (k - 1) / 2
    rollouts = rl.steps * rl.prompts_per_step * rl.samples_per_prompt
    row = prompt + rl.max_new_tokens / 2
    ppo = isinstance(rl, PPOSettings)
    held_out = min(n_prompts * recipe.prompts.test_fraction, 2 * (recipe.prompts.test or n_prompts))
    test = held_out * recipe.evaluation.samples_per_prompt
    passes = rl.epochs if isinstance(rl, PPOSettings) else 1
    rounds = revise.rounds
    rows = [
        ("prompts", 0, n_prompts * prompt * 1.5, 0),
        ("revise", red * answer * (1 + 2 * rounds) + (examples - red) * answer,
         red * (prompt + rounds * 2 * (prompt + CRITIQUE_TURNS * answer)), 0),
        ("sft", 0, 0, sft.epochs * examples * (prompt + answer)),
        ("feedback", feedback.prompts * k * half, feedback.prompts * prompt + pairs * 2 * (prompt + 2 * half + 30), 0),
        ("reward_model", 0, pairs * 2 * (prompt + half), reward.epochs * pairs * 2 * (prompt + half)),
        ("rl", rollouts * rl.max_new_tokens / 2, rollouts * row * (4 if ppo else 3), rollouts * row * passes * (2 if ppo else 1)),
        ("evaluate", 3 * test * recipe.evaluation.max_new_tokens / 2, 3 * test * row * 3, 0),
    ]  # fmt: skip
    return [{"name": name, "sampled": round(a), "read": round(b), "trained": round(c)} for name, a, b, c in rows]


def peak_bytes(recipe: Recipe, stage: dict[str, Any], n: int, config: dict[str, Any]) -> float:
    """Weights of every role in float32, gradients and two moments of what is trained, activations of one micro-batch, and the
    key-value cache of a batch of responses."""
    text = config.get("text_config", config)
    hidden = text.get("hidden_size") or text.get("n_embd") or 1
    layers = text.get("num_hidden_layers") or text.get("n_layer") or 1
    vocab = text.get("vocab_size") or 1
    settings = {"sft": recipe.sft, "reward_model": recipe.reward_model, "rl": recipe.rl}.get(stage["name"])
    weights = 4.0 * n
    if settings is not None:
        roles = {"rl": 3 if isinstance(recipe.rl, PPOSettings) else 2}.get(stage["name"], 1)
        trained_roles = 2 if stage["name"] == "rl" and isinstance(recipe.rl, PPOSettings) else 1
        share = (
            1.0 if settings.lora is None else 4.0 * settings.lora.rank / hidden
        )  # two factors on seven matrices a layer
        weights += 4.0 * n * (roles * share + 3 * trained_roles * share)
        tokens = settings.tokens_per_micro_batch
        weights += tokens * (layers * hidden * 34 + vocab * 8.0)
    if stage["sampled"]:
        length = recipe.revise.max_new_tokens * (CRITIQUE_TURNS + 1)
        weights += recipe.batch_size * length * layers * hidden * 8.0
    return weights + 350e6  # Python, torch and the tokenizer themselves


def matmul_rate(device: str, precision: str) -> float:
    """FLOPs a second of a matrix product of 512 x 1024 x 1024 here."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a = torch.ones(512, 1024, dtype=dtype, device=device)
    b = torch.ones(1024, 1024, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        (a @ b).sum().item()
        best = min(best, time.perf_counter() - started)
    return 2 * 512 * 1024 * 1024 / best


def total_memory(device: str) -> float:
    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def plan_table(figures: dict[str, Any]) -> list[str]:
    """The plan as lines of text."""
    lines = [
        f"{figures['parameters']:,} parameters, {figures['prompts']:,} prompts of {figures['prompt_tokens']:.0f} tokens",
        f"{'stage':14}{'sampled':>12}{'read':>12}{'trained on':>12}{'memory':>10}{'time':>9}",
    ]
    for s in figures["stages"]:
        lines.append(
            f"{s['name']:14}{s['sampled']:>12,}{s['read']:>12,}{s['trained']:>12,}"
            f"{s['peak_bytes'] / 2**30:>7.1f} GB{duration(s['seconds']):>9}"
        )
    verdict = "fits" if figures["fits"] else "does NOT fit: use lora, a smaller tokens_per_micro_batch or batch_size"
    lines.append(
        f"peak {figures['peak_bytes'] / 2**30:.1f} GB of {figures['memory_bytes'] / 2**30:.1f} GB: {verdict}; "
        f"about {duration(figures['seconds'])} in all"
    )
    lines.append(
        f"Tokens: answers taken at half of max_new_tokens. Time: rough, from {figures['flops_per_second'] / 1e9:.0f} GFLOP/s here; "
        "a factor of two either way is normal."
    )
    return lines


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
