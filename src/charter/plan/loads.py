"""The work of a whole recipe: a loop over the plans of its stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from charter.constitution.constitution import EMPTY, load_constitution
from charter.models.formats.precision import DTYPES
from charter.models.llama.weights import FUSED_BYTES
from charter.models.load import load_tokenizer
from charter.models.shape import Shape, read_shape
from charter.plan.texts import count_prompts, measure_lengths, read_given
from charter.reading.pairs import read_pairs
from charter.recipe.recipe import Recipe
from charter.recipe.settings import Settings
from charter.recipe.source import Source, named_in
from charter.stages.controls import learns_from_pairs
from charter.stages.evaluate import plan as evaluate
from charter.stages.feedback import plan as feedback
from charter.stages.load import Counted, Load
from charter.stages.prompts import plan as prompts
from charter.stages.revise import plan as revise
from charter.stages.reward_model import plan as reward_model
from charter.stages.rl import plan as rl
from charter.stages.sft import plan as sft

Plan = tuple[Callable[[Counted, Any], Load], Settings | None]  # a stage's settings are None if the recipe leaves it out


def loads_of(counted: Counted) -> list[Load]:
    """The work of each stage in running order; a later round has its number in the name, a control arm its name."""
    recipe = counted.recipe
    reward = recipe.reward_model if recipe.trains_reward_model else None
    first: list[Plan] = [(prompts.load, recipe.prompts), (revise.load, recipe.revise), (sft.load, recipe.sft)]
    each: list[Plan] = [(feedback.load, recipe.feedback), (reward_model.load, reward), (rl.load, recipe.rl)]
    planned = [("", plan) for plan in first]
    planned += [("" if number == 1 else f"-{number}", plan) for number in range(1, recipe.rounds + 1) for plan in each]
    planned += [(f"-{control}", plan) for control in recipe.controls for plan in plans_of_control(control, recipe, reward)]
    planned.append(("", (evaluate.load, recipe.evaluation)))
    loads: list[Load] = []
    for suffix, (load_of, settings) in planned:
        if settings is None:
            continue
        load = load_of(counted, settings)
        if recipe.scorer is not None and recipe.scorer.kind == "judge":  # loaded from beginning to end
            load.hold_named(counted, recipe.scorer.model)
        load.cast(counted.shape)
        load.stage += suffix
        loads.append(load)
    return loads


def plans_of_control(control: str, recipe: Recipe, reward: Settings | None) -> list[Plan]:
    """What a control arm does beside the stages that it shares."""
    if not learns_from_pairs(recipe, control):
        return [(rl.load, recipe.rl)]
    pairs = feedback.load_judgments if control == "shuffled" else feedback.load_exchanged
    return [(pairs, recipe.feedback), (reward_model.load, reward), (rl.load, recipe.rl)]


def loads_with(counted: Counted, recipe: Recipe) -> list[Load]:
    """The loads of a recipe that differs in some settings from the counted one, or takes fewer rows; its files are not read
    again."""
    shapes = {name: as_loaded(shape, recipe) for name, shape in counted.shapes.items()}
    counts, examples, pairs = dict(counted.counts), counted.examples, counted.pairs
    if recipe.prompts is not None and (most := recipe.prompts.test) is not None:
        counts |= {key: min(n, most) for key, n in counts.items() if key.startswith("test ")}
    if recipe.sft is not None and recipe.sft.max_examples is not None:
        examples = replace(examples, n=min(examples.n, recipe.sft.max_examples))
    if recipe.feedback is not None and recipe.feedback.max_pairs is not None:
        pairs = replace(pairs, n=min(pairs.n, 2 * recipe.feedback.max_pairs))
    return loads_of(replace(counted, recipe=recipe, shapes=shapes, counts=counts, examples=examples, pairs=pairs))


def count(recipe: Recipe, device: str) -> Counted:
    """Read what the loads of a recipe on a device follow from: its models' shapes, its files, and their tokens. InputError if
    the model or a file is missing."""
    shapes = shapes_of(recipe)
    constitution = load_constitution(Path(recipe.constitution)) if recipe.constitution else EMPTY
    train, counts, to_sort = count_prompts(recipe)
    tokenizer = load_tokenizer(recipe.model)
    lengths = measure_lengths(recipe, constitution, train, tokenizer)
    known = recipe.feedback.labelled_pairs if recipe.feedback is not None else None
    most = recipe.feedback.gate_pairs if recipe.feedback is not None else 0
    labelled = min(len(read_pairs(Path(known)).pairs), most) if known else 0
    examples, pairs = read_given(recipe, tokenizer, shapes["base"].positions)
    return Counted(recipe, shapes, lengths, counts, to_sort, labelled, examples, pairs, device)


def shapes_of(recipe: Recipe) -> dict[str, Shape]:
    """The shapes of the models that a recipe names, `base` and `sft` among them."""
    shape = read_shape(recipe.model)
    shapes = {"base": shape, "sft": shape}
    named = {str(source) for key, source in recipe.samplers().items() if key[:2] != "rl" and source.kind == "model"}
    if recipe.reward_model.model is not None and recipe.trains_reward_model:
        named.add(recipe.reward_model.model)
    stages = (recipe.rl, recipe.evaluation)
    named |= {source.name for stage in stages if stage is not None for _, source in named_in(stage)
              if isinstance(source, Source) and source.kind == "classifier"}  # fmt: skip
    shapes |= {name: read_shape(name) for name in sorted(named)}
    return {name: as_loaded(shape, recipe) for name, shape in shapes.items()}


def as_loaded(shape: Shape, recipe: Recipe) -> Shape:
    """The shape as a run of the recipe loads it. Charter does not compute its pass itself in 4 bits, nor where a second copy of
    the weights is too large."""
    if recipe.quantization:
        return replace(shape, fused=False, quantized=True)
    fits = shape.parameters * DTYPES[recipe.precision].itemsize <= FUSED_BYTES
    return replace(shape, fused=shape.fused and fits, quantized=False)
