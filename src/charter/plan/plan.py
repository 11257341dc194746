"""The plan of a recipe, in JSON values."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from charter.models.load import pick_device
from charter.plan.fit import what_fits
from charter.plan.labels import Rates, labels_of, money_of
from charter.plan.loads import count, loads_of
from charter.plan.machine import EFFICIENCY, STEP_PER_LAYER, memory_of, probe, seconds_of
from charter.plan.shorter import shortened
from charter.recipe.files import check_files
from charter.recipe.recipe import Recipe
from charter.stages.load import Asked, Counted, Load
from charter.stages.rl.settings import RolloutSettings

COUNTED_HERE = "tokens of an endpoint are counted by the base model's tokenizer; requests that are sent again are left out"
ASSUMPTIONS = (
    "every sampled text is as long as max_new_tokens allows, and every comparison makes a pair",
    "a forward pass costs 2 operations per weight and token, forward and backward 6 (4 with LoRA)",
    f"they run at {EFFICIENCY:.0%} of the rate of a matrix product measured here just now",
    f"a decoding step costs {STEP_PER_LAYER * 1e3:g} ms per layer and one product with all weights",
    "attention over long contexts, loading, and checkpoints are left out",
)

HOLES = (
    "memory is that of the first steps; on a CPU a training that samples grows with its steps, by holes between freed blocks: "
    "at 135 million parameters its peak after 50 steps was 1.4 to 1.7 times the plan"
)


def plan_recipe(recipe: Recipe, hours: float = 1.0, rates: Rates | None = None) -> dict[str, Any]:
    """What a run of the recipe will take, in JSON values: tokens as counts, memory and disk in bytes, time in seconds; where that
    is more than ``hours``, what would take less (:func:`charter.plan.shorter.shortened`); with ``rates``, what its labels cost.

    InputError if the model, a file or the GPU it asks for is missing.
    """
    device = pick_device(recipe.device)
    counted, loads, figures = work_of(recipe, device)
    speed = probe(counted.shape, recipe.precision, device)
    for stage, load in zip(figures["stages"], loads, strict=True):
        stage["seconds"] = round(seconds_of(load, counted.shape, speed), 1)
    labels = labels_of(counted, rates, lambda load: seconds_of(load, counted.shape, speed)) if rates is not None else None
    grows = device == "cpu" and isinstance(recipe.rl, RolloutSettings)
    available, seconds = memory_of(device), sum(stage["seconds"] for stage in figures["stages"])
    fits = figures["peak_bytes"] < available
    shorter = None
    if seconds > hours * 3600:
        shorter = shortened(counted, hours * 3600, lambda load: seconds_of(load, counted.shape, speed))
    return figures | {
        "memory_bytes": available,
        "fits": fits,
        "would_fit": None if fits else what_fits(counted, available),
        "seconds": round(seconds, 1),
        "limit_seconds": round(hours * 3600, 1),
        "shorter": shorter,
        "labels": labels,
        "free_disk_bytes": shutil.disk_usage(".").free,
        "operations_per_second": round(speed.operations),
        "assumptions": [*ASSUMPTIONS, *([COUNTED_HERE] if recipe.endpoints else []), *([HOLES] if grows else [])],
    }


def work_of(recipe: Recipe, device: str) -> tuple[Counted, list[Load], dict[str, Any]]:
    """What the files of a recipe hold, the load of each stage, and the part of a plan that depends on no machine. ``device`` is
    where the run would be, `cpu` or `cuda`, and need not be here. InputError if the model or a file is missing."""
    check_files(recipe)
    counted = count(recipe, device)
    shape, loads = counted.shape, loads_of(counted)
    trainings = (recipe.rl, recipe.sft, recipe.reward_model if recipe.trains_reward_model else None)
    lora = next((settings.lora for settings in trainings if settings is not None and settings.lora is not None), None)
    stages: list[dict[str, Any]] = [
        {
            "stage": load.stage,
            "generated": round(load.generated),
            "scored": round(load.scored),
            "trained": round(load.trained),
            "requests": {name: round(asked.requests) for name, asked in load.asked.items()},
            "memory": {"program": round(load.program)} | {key: round(value) for key, value in load.memory.items()},
            "peak_bytes": round(load.peak_bytes),
        }
        for load in loads
    ]
    peak = max(stages, key=lambda stage: stage["peak_bytes"])
    return counted, loads, {
        "title": recipe.title,
        "model": recipe.model,
        "parameters": shape.parameters,
        "quantization": recipe.quantization,
        "adapter_parameters": shape.adapter(lora),
        "layers": shape.layers,
        "hidden_size": shape.hidden,
        "vocabulary": shape.vocabulary,
        "prompts": {key: n for key, n in counted.counts.items() if n},
        "prompt_tokens": {"mean": round(counted.lengths.prompt, 1), "longest": counted.lengths.longest_prompt},
        "examples": counted.examples.n,
        "pairs": counted.pairs.n // 2,
        "row_tokens": {"examples": round(counted.examples.row, 1), "pairs": round(counted.pairs.row, 1)},
        "device": device,
        "stages": stages,
        "peak_bytes": peak["peak_bytes"],
        "peak_stage": peak["stage"],
        "disk": disk_of(loads),
        "endpoints": {name: endpoint_plan(recipe, name, loads) for name in recipe.endpoints},
    }  # fmt: skip


def disk_of(loads: Sequence[Load]) -> dict[str, int]:
    """Bytes on the disk: models that stay, the largest checkpoint, and the most at once. A checkpoint replaces the one before
    when it is whole, so for a moment there are two; the last is removed when the stage's model is written."""
    models = most = 0.0
    for load in loads:
        most = max(most, models + max(2 * load.checkpoint, load.checkpoint + load.left_behind))
        models += load.left_behind
    checkpoint = max((load.checkpoint for load in loads), default=0)
    return {"models": round(models), "checkpoint": round(checkpoint), "most": round(max(most, models))}


def endpoint_plan(recipe: Recipe, name: str, loads: Sequence[Load]) -> dict[str, Any]:
    """What would be sent to an endpoint in all, what it would cost where prices are given, and which budget is too small."""
    settings = recipe.endpoints[name]
    total = sum((load.asked.get(name, Asked()) for load in loads), Asked())
    money = money_of(settings, total.read, total.written)
    short = [
        key for key, need, have in (
            ("budget_tokens", total.read + total.written, settings.budget_tokens), ("budget_money", money, settings.budget_money)
        ) if need is not None and have is not None and need > have
    ]  # fmt: skip
    return {
        "model": settings.model, "url": settings.url, "requests": round(total.requests), "input_tokens": round(total.read),
        "output_tokens": round(total.written), "money": None if money is None else round(money, 4), "too_small": short,
    }  # fmt: skip
