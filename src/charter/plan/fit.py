"""What fits: a recipe against the memory there is, and the mildest changes that make it fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

from charter.errors import InputError
from charter.models.formats.quantize import check_bitsandbytes
from charter.models.load import check_attention, kind_of, pick_device
from charter.models.sampling.vllm_engine import check_vllm
from charter.plan.loads import count, loads_with, shapes_of
from charter.plan.machine import free_memory
from charter.reading.prompts import KINDS
from charter.recipe.recipe import Recipe
from charter.recipe.settings import LoRASettings, TrainingSettings
from charter.run.progress import size
from charter.stages.load import Counted, Given, Lengths, Load
from charter.stages.rl.settings import ILQLSettings

CERTAIN = ("weights", "cast_weights", "gradients", "adam", "q_heads", "merged_copy", "saved_copy")  # whatever the texts are
SMALL_BATCH, LEAST_BATCH, SMALL_MICRO_BATCH = 16, 4, 1024
PEAK: Callable[[Load], float] = attrgetter("peak_bytes")
NO_TEXTS = Lengths(*[0] * len(fields(Lengths)))


def certain_bytes(load: Load) -> float:
    """The least that a stage needs."""
    return sum(load.memory.get(key, 0) for key in CERTAIN)


def bytes_needed(counted: Counted, recipe: Recipe, bytes_of: Callable[[Load], float] = PEAK) -> float:
    """Bytes of the largest stage of the recipe, some settings of which differ from those that were counted."""
    return max(bytes_of(load) for load in loads_with(counted, recipe))


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with settings changed: `key` or `stage.key` to value."""
    for key, value in changes.items():
        name, _, leaf = key.partition(".")
        new = getattr(recipe, name).model_copy(update={leaf: value}) if leaf else value
        recipe = recipe.model_copy(update={name: new})
    return recipe


def savings(recipe: Recipe) -> list[dict[str, Any]]:
    """Changes of a recipe that save memory, the mildest first. Only smaller batches change nothing of what is learned."""
    trained = stages_that_train(recipe)
    batches: dict[str, Any] = {"batch_size": min(recipe.batch_size, SMALL_BATCH)}
    for name in trained:
        batches[f"{name}.tokens_per_micro_batch"] = min(getattr(recipe, name).tokens_per_micro_batch, SMALL_MICRO_BATCH)
    least = {"batch_size": min(recipe.batch_size, LEAST_BATCH)}
    changes = [batches, least, {"gradient_checkpointing": True}, lora_everywhere(recipe)]
    return changes if isinstance(recipe.rl, ILQLSettings) else [*changes, {"quantization": "nf4"}]


def stages_that_train(recipe: Recipe) -> list[str]:
    stages = ("sft", "reward_model", "rl") if recipe.trains_reward_model else ("sft", "rl")
    return [name for name in stages if isinstance(getattr(recipe, name), TrainingSettings)]


def lora_everywhere(recipe: Recipe) -> dict[str, Any]:
    """Adapters in every stage that trains all weights."""
    return {f"{name}.lora": LoRASettings() for name in stages_that_train(recipe) if getattr(recipe, name).lora is None}


def what_fits(counted: Counted, room: float, bytes_of: Callable[[Load], float] = PEAK) -> str:
    """The mildest changes with which every stage needs at most ``room`` bytes, as words for the command line; where there are
    none, what the smallest recipe still needs."""
    recipe = counted.recipe

    def needed(changes: Sequence[Mapping[str, Any]]) -> float:
        return bytes_needed(counted, with_changes(recipe, merged(changes)), bytes_of)

    taken: list[dict[str, Any]] = []
    for change in savings(recipe):
        taken.append(change)
        if needed(taken) <= room:
            break
    else:
        return f"the smallest recipe that Charter can make of this one needs {size(needed(taken))}; take a smaller model"
    for change in taken[:-1]:
        fewer = [other for other in taken if other is not change]
        # 4 bits are trained through adapters alone, whatever they save.
        frees_base = "quantization" in taken[-1] and any(key.endswith(".lora") for key in change)
        if not frees_base and needed(fewer) <= room:
            taken = fewer
    words = " ".join(set_option(key, value) for key, value in merged(taken).items() if differs(recipe, key, value))
    return f"{words} needs {size(needed(taken))}"


def merged(changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for change in changes for key, value in change.items()}


def differs(recipe: Recipe, key: str, value: Any) -> bool:
    return with_changes(recipe, {key: value}) != recipe


def set_option(key: str, value: Any) -> str:
    """A change as the command line takes it."""
    return f"--set {key}.rank={value.rank}" if isinstance(value, LoRASettings) else f"--set {key}={str(value).lower()}"


def check_machine(recipe: Recipe) -> None:
    """InputError if a package that the recipe needs is missing; or where the weights, gradients and moments of a stage alone
    are more than the memory that is free, with what would fit. Nothing is loaded for it, and a model that is not on this machine
    is not checked."""
    device = pick_device(recipe.device)
    if recipe.quantization:
        check_bitsandbytes()
    if getattr(recipe.rl, "vllm", None) is not None:
        check_vllm()
    try:
        shapes = shapes_of(recipe)
    except InputError:  # the run itself reports what is missing, or downloads it
        return
    check_attention(recipe.attention, kind_of(recipe.model), device, recipe.precision)
    counts = {f"{split} {kind}": 0 for split in ("train", "test") for kind in KINDS}
    counted = Counted(recipe, shapes, NO_TEXTS, counts, 0, 0, Given(), Given(), device)
    free = free_memory(device)
    largest = max(loads_with(counted, recipe), key=certain_bytes)
    if certain_bytes(largest) > free:
        memory = "GPU memory" if device == "cuda" else "memory"
        raise InputError(
            f"{largest.stage} needs at least {size(certain_bytes(largest))} for weights, gradients and moments, and {size(free)} "
            f"of {memory} are free; {what_fits(counted, free, certain_bytes)}", file=recipe.model,
        )  # fmt: skip


def smaller(recipe: Recipe) -> str:
    """The mildest changes with which a run that ran out of memory needs less than is free, and a third less than it did."""
    device = pick_device(recipe.device)
    counted = count(recipe, device)
    return what_fits(counted, min(free_memory(device), bytes_needed(counted, recipe) * 2 / 3))
