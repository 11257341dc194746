"""The whole run, from a constitution to a report, top to bottom.

Each line is a stage: it reads the files of earlier stages, writes its own folder, and is skipped when its inputs, settings and
code are unchanged. The stages themselves are in ``stages``; this page is their order and what flows between them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from charter.config import Recipe
from charter.errors import GateError, InputError
from charter.reward_sources import uses_reward_model
from charter.run import Run
from charter.stages import (
    Work,
    evaluate,
    gather_feedback,
    prepare_prompts,
    revise_answers,
    train_policy,
    train_reward,
    train_supervised,
)
from charter.summary import write_run_report
from charter.trackers import check_trackers, tracked

STAGES = ("prompts", "revise", "sft", "feedback", "reward_model", "rl", "evaluate")


def run_recipe(recipe: Recipe, folder: Path, *, until: str = STAGES[-1], quiet: bool = False) -> dict[str, Any]:
    """Run the stages up to ``until`` and write the report of what there is. Returns the report.

    A gate that says no ends the run: the report with its reason is written, then GateError is raised.
    """
    if until not in STAGES:
        raise InputError(f"no stage {until!r}; the stages are {', '.join(STAGES)}")
    check_trackers(recipe.trackers)
    config = recipe.model_dump(mode="json")
    with Run(folder, seed=recipe.seed, quiet=quiet) as run, tracked(run, recipe.trackers, config):
        work = Work(run, recipe)
        try:
            for _ in stages_in_order(work, until):
                work.release()
        except GateError as error:
            write_run_report(work, stopped=str(error))
            raise
        return write_run_report(work)


def stages_in_order(work: Work, until: str) -> Any:
    """Yield after each stage, the last one being ``until``."""
    prompts = prepare_prompts(work)
    yield prompts
    if until == "prompts":
        return
    revisions = revise_answers(work, prompts)
    yield revisions
    if until == "revise":
        return
    sft = train_supervised(work, prompts, revisions)
    yield sft
    if until == "sft":
        return
    feedback = gather_feedback(work, prompts, sft)
    yield feedback
    if until == "feedback":
        return
    reward = None
    if uses_reward_model(work.recipe.rl) or until == "reward_model":
        reward = train_reward(work, sft, feedback)
        yield reward
    if until == "reward_model":
        return
    policy = train_policy(work, prompts, sft, feedback, reward)
    yield policy
    if until == "rl":
        return
    yield evaluate(work, prompts, sft, reward, policy)
