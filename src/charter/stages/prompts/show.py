"""The prompts that `charter show-tokens` shows."""

from __future__ import annotations

from charter.errors import InputError
from charter.models.trunk import Trunk
from charter.reading.prompts import KINDS
from charter.reading.spool import taken_prompts
from charter.recipe.recipe import Recipe
from charter.records import Prompt
from charter.stages.prompts.run import check_red_team, most_characters, prompts_of


def training_prompts(recipe: Recipe, trunk: Trunk) -> dict[str, list[Prompt]]:
    """The training prompts of each kind in the order of the prompt stage, not yet sorted by principle, which would take the
    model through all of them. InputError if a stage of the recipe needs a prompt and there is none."""
    settings = recipe.prompts
    if settings is None:
        return {kind: [] for kind in KINDS}
    with taken_prompts(
        prompts_of(settings), train=settings.train, test=settings.test, test_fraction=settings.test_fraction, seed=recipe.seed,
        shorter=most_characters(trunk.model),
    ) as taken:  # fmt: skip
        by_kind = {kind: taken.read("train", kind) for kind in KINDS}
    if recipe.revise is not None:
        check_red_team(taken.counts)
    readers = (recipe.feedback, recipe.rl)
    if not any(by_kind.values()) and any(stage is not None and stage.reads_prompts for stage in readers):
        raise InputError("no training prompt; lower prompts.test_fraction, or give a file of prompts without `split: test`")
    return by_kind
