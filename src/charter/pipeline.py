"""The whole run, from a constitution to a report, top to bottom.

Each line is a stage: it reads the files of earlier stages, writes its own folder, and is skipped when its inputs, settings and
code are unchanged. The stages themselves are in ``stages``; this page is their order and what flows between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from charter.errors import GateError, InputError, MemoryFull
from charter.plan.fit import smaller
from charter.recipe.settings import Recipe
from charter.run.run import Run
from charter.run.team import team
from charter.run.trackers import check_trackers, tracked
from charter.stages.evaluate.run import evaluate
from charter.stages.feedback.run import gather_feedback
from charter.stages.prompts.run import prepare_prompts
from charter.stages.revise.run import revise_answers
from charter.stages.reward_model.run import train_reward
from charter.stages.rl.run import train_policy
from charter.stages.sft.run import train_supervised
from charter.stages.work import Model, Work
from charter.summary import write_run_report

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
            for stage in stages_in_order(work, until):
                work.release()
                if stage == until:
                    break
        except GateError as error:
            stopped = str(error)
            team().on_main(lambda: write_run_report(work, stopped=stopped))
            raise
        except MemoryFull as error:
            raise InputError(f"{error}; {smaller(recipe)}") from None
        finally:
            work.release()
        return team().on_main(lambda: write_run_report(work))


def stages_in_order(work: Work, until: str) -> Iterator[str]:
    """Yield the name of each stage when it is done, or left out by the recipe.

    ``models`` are those that the report compares; training goes on from the last of them. A second round begins again at the
    feedback, from the model that the first one trained.
    """
    recipe, models = work.recipe, [work.base]
    prompts = prepare_prompts(work) if recipe.prompts is not None else None
    yield "prompts"
    revisions = revise_answers(work, prompts) if recipe.revise is not None and prompts is not None else None
    yield "revise"
    if recipe.sft is not None:
        sft = train_supervised(work, prompts, revisions)
        models.append(Model("sft", str(sft.path("model")), sft.output_hash))
    yield "sft"
    start, feedback, reward = models[-1], None, None
    for work.round in range(1, recipe.rounds + 1):
        if recipe.feedback is not None:
            feedback = gather_feedback(work, prompts, revisions, start)
        yield "feedback"
        if feedback is not None and (recipe.trains_reward_model or until == "reward_model"):
            reward = train_reward(work, start, feedback)
        yield "reward_model"
        if recipe.rl is not None:
            policy = train_policy(work, prompts, start, feedback, reward)
            start = Model("policy", str(policy.path("model")), policy.output_hash)
        yield "rl"
    models += [start] if start.name == "policy" else []
    if recipe.evaluation is not None and prompts is not None:
        evaluate(work, prompts, models, reward)
    yield "evaluate"
