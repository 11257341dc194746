"""Every model of the run on the held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from charter.constitution.constitution import load_constitution
from charter.errors import InputError
from charter.evaluation.arms import BEST_OF, Arm, measure_arm, primary_of, scored_arm, write_verdicts
from charter.evaluation.figures import figures_of
from charter.judging.adherence import adherence, adherence_hash, askable, principle_of
from charter.models.chat_template import encode_response
from charter.models.cut import answer_rows
from charter.models.reward_trunk import load_reward_trunk
from charter.reading.prompts import KINDS
from charter.recipe.settings import TrainingSettings
from charter.records import Prompt, content_id
from charter.run.hashes import derive_seed
from charter.run.run import Run, Stage
from charter.stages.answers import answer
from charter.stages.evaluate.scoring import Scoring
from charter.stages.evaluate.settings import EvaluationSettings
from charter.stages.models import Model, Models
from charter.stages.prompts.run import read_stage_prompts
from charter.stages.rl.gold import kept_for_gold
from charter.training.methods.reward_model import reward_scores

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


def evaluate(
    run: Run, recipe: Recipe, settings: EvaluationSettings, models: Models, scoring: Scoring, prompts: Stage,
    arms: Sequence[Model], controls: Sequence[Model], reward: Stage | None, rewarded: Model,
) -> Stage:  # fmt: skip
    """Every model of the run on the held-out prompts, the same seeds for all: rates, means and paired differences with
    intervals. The first of ``arms`` is the base; where the last is the policy, it was trained from the one before it, and so was
    each of the ``controls``. ``rewarded``: the model that the ``reward`` model was trained from."""
    inputs = {
        "prompts": prompts.output_hash, **{f"model {m.name}": m.hash for m in (*arms, *controls)}, "scorer": scoring.hash,
        "measures": scoring.measures_hash, "batch": str(recipe.batch_size), "precision": recipe.arithmetic,
    }  # fmt: skip
    if recipe.scorer is None:  # the first measure decides, and a hash of settings knows no order
        inputs["primary"] = next(iter(settings.measures))
    if recipe.rl is not None and recipe.rl.gold is not None:
        inputs["gold prompts"] = str(recipe.rl.gold.prompts)
    if settings.best_of is not None:
        if reward is None:
            raise InputError("needs a reward model, and this recipe trains none", field="evaluation.best_of")
        inputs["reward"] = reward.output_hash
    start, last = arms[-2] if arms[-1].name == "policy" else arms[-1], arms[-1].name
    asked_by, principles = settings.adherence, {}
    if asked_by is not None:
        principles = askable(load_constitution(Path(str(recipe.constitution))))
        inputs["adherence"] = content_id([models.hash_of(asked_by, start), adherence_hash(principles)])
    # Another judge of the win rates measures nothing again, and a model that stayed as it was answers nothing again.
    by_row = ("model ", "reward", "adherence", "primary")
    with run.stage("evaluate", settings.model_copy(update={"judge": None}), inputs, [__name__], by_row) as stage:
        if stage.done:
            return stage
        kept = kept_for_gold(recipe, prompts)
        test = [p for kind in KINDS for p in read_stage_prompts(prompts, "test", kind) if p.id not in kept]
        if not test:
            raise InputError("no held-out prompts; raise prompts.test_fraction or give a file with split: test")
        k = settings.samples_per_prompt
        repeated = [p for p in test for _ in range(k)]
        in_micro_batch = TrainingSettings() if recipe.rl is None else recipe.rl
        measured = {}
        for model in (*arms, *controls):
            responses = answer(
                stage, f"responses.{model.name}.jsonl", models.sampler(model), test, k=k, what="evaluate", label=model.name,
                batch_size=recipe.batch_size, seed=derive_seed(recipe.seed, "evaluate"), settings=settings,
                may_reuse=stage.earlier_inputs.get(f"model {model.name}") == model.hash,
            )  # fmt: skip
            references = {"kl": models.trunk(recipe.model)}
            if (model.name == "policy" or model in controls) and start.name != "base":
                references["kl_from_sft"] = models.trunk(start.folder)
            measured[model.name] = measure_arm(
                model.name, repeated, responses, scoring.scorer, scoring.measures, models.trunk(model.folder), references,
                tokens_per_micro_batch=in_micro_batch.tokens_per_micro_batch, temperature=settings.temperature or 1.0,
            )  # fmt: skip
            if model in controls:
                models.forget(model.folder)
        if reward is not None and settings.best_of is not None:
            measured[BEST_OF] = best_of_n(recipe, settings, models, scoring, stage, start, reward, rewarded, test)
        excluded, asked = {"kept for the gold curve": len(kept)}, {}
        if asked_by is not None:
            judge = models.answering(asked_by, start)
            for name, arm in measured.items():
                texts = [response.text for response in arm.responses]
                measured[name] = replace(arm, adherence=adherence(judge, principles, arm.prompts, texts))
            excluded["prompt without a principle: no adherence"] = sum(principle_of(p, principles) is None for p in test)
            asked["adherence"] = {"judge": judge.name, "independent": models.is_independent(asked_by, start, last)}
        for name, arm in measured.items():
            write_verdicts(stage.path(f"verdicts.{name}.jsonl"), arm)
        figures = figures_of(measured, primary_of(recipe, [model.name for model in arms]), settings)
        stage.finish({**figures, **asked, "excluded": excluded})
    return stage


def best_of_n(
    recipe: Recipe, settings: EvaluationSettings, models: Models, scoring: Scoring, stage: Stage, start: Model, reward: Stage,
    rewarded: Model, test: Sequence[Prompt],
) -> Arm:  # fmt: skip
    """The baseline that needs no RL: n answers of the SFT model, the one that the reward model scores highest.

    Its KL from the SFT model is at most log n - (n - 1)/n nats (Stiennon et al. 2020, appendix G); the report shows that bound.
    """
    n, k = settings.best_of or 1, settings.samples_per_prompt
    responses = answer(
        stage, f"responses.{BEST_OF}.jsonl", models.sampler(start), test, k=n * k, what=BEST_OF, label=f"best of {n}",
        batch_size=recipe.batch_size, seed=derive_seed(recipe.seed, BEST_OF), settings=settings,
        may_reuse=stage.earlier_inputs.get(f"model {start.name}") == start.hash,
    )  # fmt: skip
    trunk = load_reward_trunk(
        recipe.reward_model.model or rewarded.folder, device=models.device, lora=recipe.reward_model.lora, **recipe.loading
    )
    scorers = trunk.load_scorers(reward.path("model"))
    by_prompt = [p for p in test for _ in range(n * k)]
    rows = [row for p, r in zip(by_prompt, responses, strict=True)
            for row in answer_rows(trunk.tokenizer, p.messages, [r.text], trunk.room)]  # fmt: skip
    scores = reward_scores(trunk, scorers, rows, recipe.reward_model.tokens_per_micro_batch)
    best = scores.view(-1, n).argmax(dim=1).tolist()
    chosen = [responses[i * n + j] for i, j in enumerate(best)]
    repeated = [p for p in test for _ in range(k)]
    bound = {"kl_from_sft_bound": [math.log(n) - (n - 1) / n] * len(chosen)}
    writer = models.trunk(start.folder).tokenizer  # of the model that wrote, whichever scored
    tokens = [len(encode_response(writer, response.text, end=response.finish_reason == "stop")) for response in chosen]
    return scored_arm(BEST_OF, repeated, chosen, scoring.scorer, scoring.measures, bound, tokens)
