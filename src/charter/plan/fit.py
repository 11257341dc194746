"""What fits: a recipe against the memory there is, and the mildest changes that make it fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from charter.errors import InputError
from charter.models.load import check_attention, kind_of, pick_device
from charter.models.quantize import check_bitsandbytes
from charter.models.vllm_engine import check_vllm
from charter.plan.loads import Counted, Load, count, loads_of
from charter.plan.machine import free_memory
from charter.plan.shape import held, shapes_of
from charter.plan.table import size
from charter.plan.texts import Given, Lengths
from charter.reading.prompts import KINDS
from charter.recipe.recipe import Recipe
from charter.recipe.settings import LoRASettings, TrainingSettings

CERTAIN = (
    "weights",
    "cast_weights",
    "gradients",
    "adam",
    "merged_copy",
    "saved_copy",
)  # whatever the texts turn out to be


SMALL_BATCH, LEAST_BATCH, SMALL_MICRO_BATCH = 16, 4, 1024


NO_TEXTS = Lengths(*[0] * len(fields(Lengths)))


def certain_bytes(load: Load) -> float:
    """What a stage holds at least."""
    return sum(load.memory.get(key, 0) for key in CERTAIN)


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with settings changed: `key` or `stage.key` to value."""
    for key, value in changes.items():
        name, _, leaf = key.partition(".")
        new = getattr(recipe, name).model_copy(update={leaf: value}) if leaf else value
        recipe = recipe.model_copy(update={name: new})
    return recipe


def savings(recipe: Recipe) -> list[dict[str, Any]]:
    """Changes of a recipe that save memory, the mildest first. Only smaller batches change nothing of what is learned."""
    stages = ("sft", "reward_model", "rl") if recipe.trains_reward_model else ("sft", "rl")
    trained = [name for name in stages if isinstance(getattr(recipe, name), TrainingSettings)]
    batches: dict[str, Any] = {"batch_size": min(recipe.batch_size, SMALL_BATCH)}
    for name in trained:
        own = getattr(recipe, name).tokens_per_micro_batch
        batches[f"{name}.tokens_per_micro_batch"] = min(own, SMALL_MICRO_BATCH)
    lora = {f"{name}.lora": LoRASettings() for name in trained if getattr(recipe, name).lora is None}
    least = {"batch_size": min(recipe.batch_size, LEAST_BATCH)}
    return [batches, least, {"gradient_checkpointing": True}, lora, {"quantization": "nf4"}]


def what_fits(recipe: Recipe, needs: Callable[[Recipe], float], room: float) -> str:
    """The mildest changes with which ``needs`` is within ``room`` bytes, as words for the command line; what the smallest still
    needs where none is."""
    taken: list[dict[str, Any]] = []
    for change in savings(recipe):
        taken.append(change)
        if needs(changed(recipe, merged(taken))) <= room:
            break
    else:
        least = size(needs(changed(recipe, merged(taken))))
        return f"the smallest that Charter can make of it needs {least}; take a smaller model"
    for change in taken[:-1]:
        fewer = [one for one in taken if one is not change]
        # 4 bits are trained through adapters alone, whatever they save.
        if ("quantization" not in taken[-1] or not any(key.endswith(".lora") for key in change)) and needs(
            changed(recipe, merged(fewer))
        ) <= room:
            taken = fewer
    words = " ".join(f"--set {said(key, value)}" for key, value in merged(taken).items() if differs(recipe, key, value))
    return f"{words} needs {size(needs(changed(recipe, merged(taken))))}"


def merged(changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for change in changes for key, value in change.items()}


def differs(recipe: Recipe, key: str, value: Any) -> bool:
    name, _, leaf = key.partition(".")
    own = getattr(recipe, name)
    return bool((getattr(own, leaf) if leaf else own) != value)


def said(key: str, value: Any) -> str:
    """A change as `--set` takes it."""
    return f"{key}.rank={value.rank}" if isinstance(value, LoRASettings) else f"{key}={str(value).lower()}"


def check_machine(recipe: Recipe) -> None:
    """InputError where a package that the recipe needs is missing; or where the weights, gradients and moments of a stage alone
    are more than the memory that is free, with what would fit. Nothing is loaded for it; a model that is not here yet is let
    pass."""
    device = pick_device(recipe.device)
    if recipe.quantization:
        check_bitsandbytes()
    if getattr(recipe.rl, "vllm", None) is not None:
        check_vllm()
    try:
        shapes = shapes_of(recipe)
    except InputError:  # the run itself says what is missing, or gets it
        return
    check_attention(recipe.attention, kind_of(recipe.model), device, recipe.precision)
    counts = {f"{split} {kind}": 0 for split in ("train", "test") for kind in KINDS}

    def stages(variant: Recipe) -> list[Load]:
        own = {name: held(shape, variant) for name, shape in shapes.items()}
        return loads_of(Counted(variant, own["base"], own, NO_TEXTS, counts, 0, 0, Given(), Given(), device))

    def needs(variant: Recipe) -> float:
        return max(certain_bytes(load) for load in stages(variant))

    free = free_memory(device)
    largest = max(stages(recipe), key=certain_bytes)
    if certain_bytes(largest) > free:
        raise InputError(
            f"{largest.stage} holds at least {size(certain_bytes(largest))} of weights, gradients and moments, and {size(free)} "
            f"of {'GPU ' if device == 'cuda' else ''}memory are free; {what_fits(recipe, needs, free)}", file=recipe.model,
        )  # fmt: skip


def smaller(recipe: Recipe) -> str:
    """The mildest changes with which a run that ran out of memory needs less than is free, and a third less than it did."""
    device = pick_device(recipe.device)
    counted = count(recipe, shapes_of(recipe), device)
    room = min(free_memory(device), counted.needs(recipe) * 2 / 3)
    return what_fits(recipe, counted.needs, room)
