"""What fits a time: a recipe against a limit, and the changes with which its slowest stages take less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from charter.plan.fit import differs, lora_everywhere, merged, set_option, with_changes
from charter.plan.loads import loads_with
from charter.reading.prompts import KINDS
from charter.recipe.recipe import Recipe
from charter.stages.load import Counted, Load

Change = dict[str, Any]
"""`key` or `stage.key` to value."""
LEAST = {
    "revise.prompts": 50, "revise.rounds": 1, "revise.max_new_tokens": 32, "sft.epochs": 1, "sft.max_examples": 250,
    "feedback.prompts": 100, "feedback.responses_per_prompt": 2, "feedback.max_new_tokens": 32, "feedback.max_pairs": 250,
    "reward_model.epochs": 1, "rl.prompts_per_step": 8, "rl.steps": 10, "rl.max_new_tokens": 32, "rl.samples_per_prompt": 2,
    "rl.epochs": 1, "prompts.test": 50, "evaluation.max_new_tokens": 32, "evaluation.samples_per_prompt": 1,
    "evaluation.best_of": 2,
}  # fmt: skip
"""Settings that a stage's time depends on, and the least that still is a run; fewer would show nothing."""
PAIRS = ("feedback.max_pairs", "feedback.prompts")
SETTINGS_OF = {
    "revise": ("revise.prompts", "revise.rounds", "revise.max_new_tokens"),
    "sft": ("lora", "sft.max_examples", "sft.epochs"),
    "feedback": ("feedback.prompts", "feedback.responses_per_prompt", "feedback.max_new_tokens"),
    "reward_model": ("lora", "reward_model.epochs", *PAIRS),
    "rl": ("rl.prompts_per_step", "lora", "rl.steps", "rl.max_new_tokens", "rl.samples_per_prompt", "rl.epochs", *PAIRS),
    "evaluate": ("prompts.test", "evaluation.max_new_tokens", "evaluation.samples_per_prompt", "evaluation.best_of"),
}
"""What shortens a stage, the first first."""


def shortened(counted: Counted, limit: float, seconds_of: Callable[[Load], float]) -> dict[str, Any]:
    """Changes with which all stages take at most ``limit`` seconds in all, or as little as Charter can propose: `set`, the
    settings as the command line takes them; `seconds`; `peak_bytes`; and `fits`, whether that is within the limit.

    The slowest stage that can be shortened gets half of a setting, the settings in turn, until the time suffices. Changes that
    turn out not to be needed are taken back."""

    def total(changes: Sequence[Change]) -> float:
        return sum(map(seconds_of, loads_with(counted, with_changes(counted.recipe, merged(changes)))))

    taken: list[Change] = []
    turns: Counter[str] = Counter()
    while total(taken) > limit:
        recipe = with_changes(counted.recipe, merged(taken))
        loads = sorted(loads_with(counted, recipe), key=seconds_of, reverse=True)
        change = next(filter(None, (less_of(counted, recipe, load.stage.partition("-")[0], turns) for load in loads)), None)
        if change is None:
            break
        taken.append(change)
    for change in list(taken):
        fewer = [other for other in taken if other is not change]
        if total(fewer) <= limit:
            taken = fewer
    changes = merged(taken)
    recipe = with_changes(counted.recipe, changes)
    loads = loads_with(counted, recipe)
    return {
        "set": [set_option(key, value).removeprefix("--set ") for key, value in changes.items()
                if differs(counted.recipe, key, value)],
        "seconds": round(total(taken), 1),
        "peak_bytes": round(max(load.peak_bytes for load in loads)),
        "fits": total(taken) <= limit,
    }  # fmt: skip


def less_of(counted: Counted, recipe: Recipe, stage: str, turns: Counter[str]) -> Change | None:
    """The next change that shortens a stage, None if there is none; the settings that had fewest ``turns`` first."""
    for key in sorted(SETTINGS_OF.get(stage, ()), key=lambda key: turns[key]):
        if key == "lora":
            change = lora_everywhere(recipe)
        else:
            value, least = value_of(counted, recipe, key), least_of(recipe, key)
            change = {key: max(value // 2, least)} if value is not None and value > least else {}
        if change:
            turns[key] += 1
            return change
    return None


def least_of(recipe: Recipe, key: str) -> int:
    """The least of a setting; an update of RL needs a response for each minibatch."""
    other = {"rl.prompts_per_step": "samples_per_prompt", "rl.samples_per_prompt": "prompts_per_step"}.get(key)
    minibatches = getattr(recipe.rl, "minibatches", 1)
    return LEAST[key] if other is None else max(LEAST[key], -(-minibatches // getattr(recipe.rl, other, 1)))


def value_of(counted: Counted, recipe: Recipe, key: str) -> int | None:
    """What a setting is now, a limit that the recipe does not set being all there is; None if the recipe does not read it."""
    name, _, leaf = key.partition(".")
    settings, feedback = getattr(recipe, name), recipe.feedback
    if settings is None or leaf not in type(settings).model_fields:
        return None
    unread = {
        "revise.rounds": recipe.revise is not None and recipe.revise.context is not None,
        "sft.max_examples": recipe.sft is not None and not recipe.sft.data,
        "feedback.max_pairs": feedback is not None and not feedback.pairs,
        "feedback.prompts": feedback is not None and not feedback.samples,
        "feedback.responses_per_prompt": feedback is not None and (not feedback.samples or feedback.contrast is not None),
        "feedback.max_new_tokens": feedback is not None and not feedback.samples,
    }
    if unread.get(key):
        return None
    everything = {
        "sft.max_examples": counted.examples.n,
        "feedback.max_pairs": counted.pairs.n // 2,
        "prompts.test": max(counted.counts[f"test {kind}"] for kind in KINDS),
    }
    value: int | None = getattr(settings, leaf)
    if key not in everything:
        return value
    return everything[key] if value is None else min(value, everything[key])
