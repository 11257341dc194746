"""Who is asked for the held-out reward of a training, and about which prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charter.errors import InputError
from charter.evaluation.measures import as_number
from charter.evaluation.scorers import Verdict, as_verdict
from charter.judging.rubrics import read_rubric, rubric_scores
from charter.models.classifier import Classifier
from charter.models.cut import answer_rows
from charter.models.reward_trunk import load_reward_trunk
from charter.models.sampling.sampler import Sampler
from charter.reading.prompts import KINDS
from charter.recipe.source import Source
from charter.records import Prompt
from charter.run.hashes import derive_seed
from charter.run.run import Stage
from charter.run.team import team
from charter.stages.models import Model, Models
from charter.stages.prompts.run import read_stage_prompts
from charter.stages.rl.settings import AnyRLSettings, GoldSettings
from charter.stages.rl.sources import help_less_harm
from charter.training.gold import Gold, GoldScore
from charter.training.methods.reward_model import reward_scores

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


def gold_prompts(prompts: Stage, settings: GoldSettings, seed: int) -> list[Prompt]:
    """The held-out prompts of the curve: ``settings.prompts`` of the test split, as many of each kind that there is. InputError
    where the evaluation would keep none of a kind."""
    by_kind = [rows for kind in KINDS if (rows := read_stage_prompts(prompts, "test", kind))]
    chosen = []
    for rows in by_kind:
        n = max(1, settings.prompts // len(by_kind))
        if n >= len(rows):
            raise InputError(f"{settings.prompts} prompts leave the evaluation none of {len(rows)} held-out ones of a kind; take "
                             "fewer, or raise prompts.test", field="rl.gold.prompts")  # fmt: skip
        chosen += sorted(rows, key=lambda prompt: derive_seed(seed, "gold prompts", prompt.id))[:n]
    return chosen


def kept_for_gold(recipe: Recipe, prompts: Stage) -> set[str]:
    """The ids of the held-out prompts that the evaluation leaves out: a model may have been picked by its answers to them."""
    settings = recipe.rl.gold if recipe.rl is not None else None
    return set() if settings is None else {prompt.id for prompt in gold_prompts(prompts, settings, recipe.seed)}


def gold_score(
    source: Source, *, reward_model: Callable[[], GoldScore], judge: Callable[[Source], Sampler], device: str
) -> GoldScore:
    """The function that scores answers to held-out prompts. ``reward_model`` and ``judge`` load a model when it is needed."""
    if source.kind == "python":
        return function_gold(source.load(), str(source), "rl.gold.source")
    if source.kind == "judge":
        return judge_gold(judge(source.model))
    if source.kind == "rubric":
        sampler, rubric = judge(source.model), read_rubric(Path(source.name))
        return lambda prompts, texts: rubric_scores(sampler, rubric, prompts, texts)
    if source.kind == "classifier":
        classifier = Classifier(source.name, source.label, device=device)
        return lambda _, texts: classifier.probabilities(texts)
    return reward_model()


def reward_model_gold(recipe: Recipe, models: Models, start: Model, stage: Stage | None) -> GoldScore:
    """The second reward model, on a trunk of its own."""
    assert stage is not None, "the pipeline trains a second reward model where gold asks one"
    settings = recipe.reward_model
    trunk = load_reward_trunk(settings.model or start.folder, device=models.device, lora=settings.lora, **recipe.loading)
    scorers = trunk.load_scorers(stage.path("model"))

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        rows = [row for p, text in zip(prompts, texts, strict=True)
                for row in answer_rows(trunk.tokenizer, p.messages, [text], trunk.room)]  # fmt: skip
        return list(reward_scores(trunk, scorers, rows, settings.tokens_per_micro_batch).tolist())

    return score


def judge_gold(sampler: Sampler) -> GoldScore:
    """``help_less_harm`` of each answer."""
    return partial(help_less_harm, sampler)


def function_gold(function: Callable[[str, str], Any], name: str, field: str) -> GoldScore:
    """A scorer of answers or a function to a number; errors call it ``name`` and the setting ``field``. Of a scorer's verdict
    gold is 1 for a good answer: harmless to a red-team prompt, helpful to any other."""

    def value(prompt: Prompt, text: str) -> float | None:
        result: Any = function(prompt.last_turn, text)
        if isinstance(result, Mapping):
            return goodness(prompt, as_verdict(result, name))
        return as_number(result, name, field)

    def score(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        # A user's function may return something else at each call, so one process calls it.
        return team().on_main(lambda: [value(prompt, text) for prompt, text in zip(prompts, texts, strict=True)])

    return score


def goodness(prompt: Prompt, verdict: Verdict) -> float | None:
    """1 for a good answer, 0 for any other, None if the scorer cannot say."""
    if "benign" in prompt.tags and verdict.helpful is None and not verdict.harmful:
        return None  # a harmless answer may be a refusal
    if "red_team" in prompt.tags or verdict.helpful is None:
        return None if verdict.harmful is None else float(not verdict.harmful)
    return float(verdict.helpful and not verdict.harmful)


def gold_of(
    recipe: Recipe, settings: AnyRLSettings, models: Models, prompts: Stage | None, start: Model, second: Stage | None
) -> Gold | None:
    """Who is asked while a policy trains, and about which prompts; None if the recipe asks nobody. ``second``: the stage of
    the second reward model."""
    if settings.gold is None:
        return None
    assert prompts is not None
    score = gold_score(
        settings.gold.source, reward_model=lambda: reward_model_gold(recipe, models, start, second),
        judge=lambda source: models.answering(source, start), device=models.device,
    )  # fmt: skip
    return Gold(gold_prompts(prompts, settings.gold, recipe.seed), score)
