"""The whole run, from a constitution to a report, top to bottom.

Each line is a stage: it reads the files of earlier stages, writes its own folder, and is skipped when its inputs, settings and
code are unchanged. The stages themselves are in ``stages``; this page is their order and what flows between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from charter.comparing.before import keep_before
from charter.constitution.constitution import EMPTY, load_constitution
from charter.errors import GateError, InputError, MemoryFull
from charter.evaluation.arms import BEST_OF
from charter.plan.fit import smaller
from charter.recipe.files import check_files
from charter.recipe.recipe import Recipe
from charter.run.run import Run
from charter.run.team import team
from charter.run.trackers import check_trackers, tracked
from charter.stages.controls import train_control
from charter.stages.evaluate.run import evaluate
from charter.stages.evaluate.scoring import Scoring
from charter.stages.evaluate.wins import compare_arms
from charter.stages.feedback.run import NO_LABELLED_PAIRS, gather_feedback
from charter.stages.gates import Gates
from charter.stages.models import Model, Models
from charter.stages.prompts.run import choose_prompts
from charter.stages.revise.run import revise_answers
from charter.stages.reward_model.run import train_reward
from charter.stages.rl.run import train_policy
from charter.stages.sft.run import train_supervised
from charter.summary import Parts, write_run_report

STAGES = ("prompts", "revise", "sft", "feedback", "reward_model", "rl", "evaluate")


def run_recipe(recipe: Recipe, folder: Path, *, until: str = STAGES[-1], quiet: bool = False) -> dict[str, Any]:
    """Run the stages up to ``until`` and write the report of what there is. Returns the report.

    A gate that fails ends the run: the report with its reason is written, then GateError is raised.
    """
    if until not in STAGES:
        raise InputError(f"unknown stage {until!r}; the stages are {', '.join(STAGES)}")
    check_trackers(recipe.trackers)
    check_files(recipe)
    config = recipe.model_dump(mode="json")
    with Run(folder, seed=recipe.seed, quiet=quiet) as run, tracked(run, recipe.trackers, config):
        parts = parts_of(run, recipe)
        models = parts.models
        if recipe.constitution:
            team().on_main(lambda: keep_before(folder, parts.constitution.hash))
        try:
            for stage in stages_in_order(parts, until):
                models.release()
                if stage == until:
                    break
        except GateError as error:
            stopped = str(error)
            team().on_main(lambda: write_run_report(parts, stopped=stopped))
            raise
        except MemoryFull as error:
            raise InputError(f"{error}; {smaller(recipe)}") from None
        finally:
            models.release()
        return team().on_main(lambda: write_run_report(parts))


def parts_of(run: Run, recipe: Recipe) -> Parts:
    """What the stages of a run read. Nothing is loaded yet; InputError if a scorer or measure is missing."""
    models = Models(run, recipe)
    constitution = load_constitution(Path(recipe.constitution)) if recipe.constitution else EMPTY
    scoring = Scoring(recipe, models)
    return Parts(run, recipe, models, Gates(run, override=recipe.gates.override), constitution, scoring)


def stages_in_order(parts: Parts, until: str) -> Iterator[str]:
    """Yield the name of each stage when it is done, or left out by the recipe.

    ``arms`` are the models that the report compares; training starts from the last of them. A second round begins again at the
    feedback, from the model that the first one trained; `rl` is done after the last one. ``controls`` repeat the last training,
    from the model that it began from.
    """
    run, recipe, models, gates = parts.run, parts.recipe, parts.models, parts.gates
    constitution, scoring = parts.constitution, parts.scoring
    prompts, revisions, feedback, reward, second = None, None, None, None, None
    arms, controls = [models.base], []
    if recipe.prompts is not None:
        prompts = choose_prompts(run, recipe, recipe.prompts, models, constitution)
    untested = recipe.feedback is not None and recipe.feedback.asks_judge and recipe.feedback.labelled_pairs is None
    if untested and not recipe.gates.override and STAGES.index(until) >= STAGES.index("feedback"):  # now, not hours later
        words = f"gate 'judge beats chance': {NO_LABELLED_PAIRS} (--until sft stops before; gates.override: true goes through)"
        raise GateError(words)
    yield "prompts"
    if recipe.revise is not None and prompts is not None:
        revisions = revise_answers(run, recipe, recipe.revise, models, gates, constitution, scoring, prompts)
    yield "revise"
    if recipe.sft is not None:
        sft = train_supervised(run, recipe, recipe.sft, models, prompts, revisions)
        arms.append(Model("sft", str(sft.path("model")), sft.output_hash))
    yield "sft"
    start, scorer = arms[-1], scoring.identity
    for number in range(1, recipe.rounds + 1):
        rewarded = start
        again = "" if number == 1 else f"-{number}"  # `feedback`, then `feedback-2`, …
        if recipe.feedback is not None:
            feedback = gather_feedback(
                run, recipe, recipe.feedback, models, gates, constitution, scorer, prompts, revisions, start, f"feedback{again}"
            )
        yield "feedback"
        if feedback is not None and recipe.halves_the_feedback:
            second = train_reward(run, recipe, models, start, feedback, f"reward_model{again}-gold", half=1)
        if feedback is not None and (recipe.trains_reward_model or until == "reward_model"):
            half = 0 if recipe.halves_the_feedback else None
            reward = train_reward(run, recipe, models, start, feedback, f"reward_model{again}", half)
        yield "reward_model"
        if recipe.rl is not None:
            policy = train_policy(
                run, recipe, recipe.rl, models, gates, scorer, prompts, start, feedback, reward, f"rl{again}", second
            )  # fmt: skip
            start = Model("policy", str(policy.path("model")), policy.output_hash)
        for control in recipe.controls:
            models.release()
            controls.append(train_control(control, run, recipe, models, gates, constitution, prompts, arms[-1], feedback))
        yield "rl" if number == recipe.rounds else f"rl of round {number}"
    arms += [start] if start.name == "policy" else []
    if recipe.evaluation is not None and prompts is not None:
        evaluated = evaluate(run, recipe, recipe.evaluation, models, scoring, prompts, arms, controls, reward, rewarded)
        if recipe.evaluation.judge is not None:
            best_of = [] if recipe.evaluation.best_of is None else [BEST_OF]
            others = [*(model.name for model in arms[:-1]), *best_of, *(model.name for model in controls)]
            before = arms[-2] if arms[-1].name == "policy" else arms[-1]
            compare_arms(run, recipe, recipe.evaluation.judge, models, constitution, prompts, evaluated, others, arms[-1].name,
                         before, feedback)  # fmt: skip
    yield "evaluate"
