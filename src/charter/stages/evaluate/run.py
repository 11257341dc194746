"""Every model of the run on the held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from charter.constitution.revise import respond
from charter.errors import InputError
from charter.evaluation.arms import BEST_OF, Arm, contrasts_of, measure_arm, primary_of, samples_of, scored_arm, write_verdicts
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.packing import Tokens, clip
from charter.models.trunk import load_trunk
from charter.reading.prompts import KINDS
from charter.recipe.settings import TrainingSettings
from charter.records import Prompt, Response, content_id
from charter.run.hashes import derive_seed
from charter.run.run import Stage
from charter.stages.prompts.run import read_stage_prompts
from charter.stages.work import Model, Work
from charter.training.reward_model import reward_scores


def evaluate(work: Work, prompts: Stage, models: Sequence[Model], reward: Stage | None) -> Stage:
    """Every model of the run on the held-out prompts, the same seeds for all: rates, means and paired differences with
    intervals. The first of ``models`` is the base; where the last is the policy, the one before it is what it came from."""
    recipe, run = work.recipe, work.run
    settings = recipe.evaluation
    assert settings is not None
    inputs = {
        "prompts": prompts.output_hash, "models": content_id([[m.name, m.hash] for m in models]),
        "scorer": work.scorer_hash, "batch": str(recipe.batch_size),
        "measures": content_id({name: measure.identity for name, measure in work.measures.items()}),
    }  # fmt: skip
    if settings.best_of is not None:
        if reward is None:
            raise InputError("needs a reward model, and this recipe trains none", field="evaluation.best_of")
        inputs["reward"] = reward.output_hash
    with run.stage("evaluate", settings, inputs, [__name__]) as stage:
        if stage.done:
            return stage
        test = [p for kind in KINDS for p in read_stage_prompts(prompts, "test", kind)]
        if not test:
            raise InputError("no held-out prompts; raise prompts.test_fraction or give a file with split: test")
        k = settings.samples_per_prompt
        asked = [p for p in test for _ in range(k)]
        start = models[-2] if models[-1].name == "policy" else models[-1]
        in_micro_batch = TrainingSettings() if recipe.rl is None else recipe.rl
        measured = {}
        for model in models:
            sampler = work.sampler(model.folder, model.name)
            responses = stage.rows(f"responses.{model.name}.jsonl", Response).work(
                test,
                max(1, recipe.batch_size // k),
                lambda batch, sampler=sampler: [  # type: ignore[misc]
                    r
                    for group in respond(
                        sampler, batch, seed=derive_seed(recipe.seed, "evaluate"), what="evaluate", k=k,
                        temperature=settings.temperature, max_new_tokens=settings.max_new_tokens,
                    )
                    for r in group
                ],
                rows_per_item=k,
                label=f"evaluate: {model.name}",
                quiet=run.quiet,
            )  # fmt: skip
            references = {"kl": work.trunk(recipe.model)}
            if model.name == "policy" and start.name != "base":
                references["kl_from_sft"] = work.trunk(start.folder)
            measured[model.name] = measure_arm(
                model.name, asked, responses, work.scorer, work.measures, work.trunk(model.folder), references,
                tokens_per_micro_batch=in_micro_batch.tokens_per_micro_batch, temperature=settings.temperature or 1.0,
            )  # fmt: skip
        if reward is not None and settings.best_of is not None:
            measured[BEST_OF] = best_of_n(work, stage, start, reward, test)
        for name, arm in measured.items():
            write_verdicts(stage.path(f"verdicts.{name}.jsonl"), arm)
        stage.finish(
            {
                "metrics": [m.model_dump(mode="json") for arm in measured.values() for m in arm.metrics()],
                "contrasts": contrasts_of(measured, primary_of(recipe, [model.name for model in models])),
                "samples": samples_of(measured),
            }
        )
    return stage


def best_of_n(work: Work, stage: Stage, start: Model, reward: Stage, test: Sequence[Prompt]) -> Arm:
    """The baseline that needs no RL: n answers of the SFT model, the one that the reward model scores highest.

    Its KL from the SFT model is at most log n - (n - 1)/n nats (Stiennon et al. 2020, appendix G), which is what is shown.
    """
    recipe = work.recipe
    settings = recipe.evaluation
    assert settings is not None
    n, k = settings.best_of, settings.samples_per_prompt
    assert n is not None
    sampler = work.sampler(start.folder, start.name)
    responses = stage.rows(f"responses.{BEST_OF}.jsonl", Response).work(
        test,
        max(1, recipe.batch_size // (n * k)),
        lambda batch: [
            r
            for group in respond(
                sampler, batch, seed=derive_seed(recipe.seed, BEST_OF), what=BEST_OF, k=n * k,
                temperature=settings.temperature, max_new_tokens=settings.max_new_tokens,
            )
            for r in group
        ],
        rows_per_item=n * k,
        label=f"evaluate: best of {n}",
        quiet=work.run.quiet,
    )  # fmt: skip
    trunk = load_trunk(
        recipe.reward_model.model or start.folder, device=work.device, lora=recipe.reward_model.lora,
        writes=False, **recipe.loading,
    )  # fmt: skip
    scorers = trunk.load_scorers(reward.path("model"))
    by_prompt = [p for p in test for _ in range(n * k)]
    rows = [clip(Tokens(encode_prompt(trunk.tokenizer, p.messages), encode_response(trunk.tokenizer, r.text)), trunk.room)
            for p, r in zip(by_prompt, responses, strict=True)]  # fmt: skip
    scores = reward_scores(trunk, scorers, rows, recipe.reward_model.tokens_per_micro_batch)
    best = scores.view(-1, n).argmax(dim=1).tolist()
    chosen = [responses[i * n + j] for i, j in enumerate(best)]
    asked = [p for p in test for _ in range(k)]
    bound = {"kl_from_sft_bound": [math.log(n) - (n - 1) / n] * len(chosen)}
    own = work.trunk(start.folder).tokenizer  # of those who wrote, whoever scored
    tokens = [len(encode_response(own, one.text)) for one in chosen]
    return scored_arm(BEST_OF, asked, chosen, work.scorer, work.measures, bound, tokens)
