"""Critique and revision, or answers in a context that is left out later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from charter.constitution.constitution import load_few_shots
from charter.constitution.revise import answer_in_context, revise_batch
from charter.evaluation.scorers import Scorer
from charter.models.sampler import LocalSampler
from charter.records import Message, Prompt, Response, Revision, content_id
from charter.run.files import read_jsonl
from charter.run.run import Stage
from charter.stages.prompts.run import read_stage_prompts
from charter.stages.work import Work, answer, hash_of_principles, percent, signed
from charter.statistics import clustered_proportion, paired_difference


def revise_answers(work: Work, prompts: Stage) -> Stage:
    """Answers of the base model, critiques and revisions of the red-team ones, helpful answers kept beside them.

    Two gates: the base must do harm that can be revised away, and the revisions must be measurably safer than the answers.
    """
    recipe, run, scorer = work.recipe, work.run, work.scorer
    settings = recipe.revise
    assert settings is not None
    assert scorer is not None
    few_shots = load_few_shots(Path(settings.few_shots)) if settings.few_shots else []
    inputs = {
        "prompts": prompts.output_hash,
        "principles": hash_of_principles(work.constitution, "critique", "revision", "tags", "weight"),
        "few_shots": content_id([[m.model_dump() for m in shot] for shot in few_shots]),
        "model": work.model_hash,
        "scorer": work.scorer_hash,
        "gate": content_id([recipe.gates.min_base_harm, recipe.gates.max_unscored]),
        "helpful": content_id(share := recipe.sft.helpful_fraction if recipe.sft is not None else 0.0),
        "samplers": content_id([work.hash_of(settings.generator), work.hash_of(settings.critic)]),
        "batch": str(recipe.batch_size),
    }
    with run.stage("revise", settings, inputs, [__name__]) as stage:
        if stage.done:
            work.recall_gates(stage)
            return stage
        sampler = work.sampler(work.folder_of(settings.generator), settings.generator)
        critic = sampler if settings.context else work.sampler(work.folder_of(settings.critic), settings.critic)
        red_team = read_stage_prompts(prompts, "train", "red_team")[: settings.prompts]
        originals = answer(work, stage, "originals.jsonl", sampler, red_team)
        harmful = score_harm(scorer, red_team, originals)
        base = clustered_proportion(harmful)
        unscored = base.n_unscored / len(red_team)
        work.gate(
            stage, "scorer reads the answers", unscored <= recipe.gates.max_unscored,
            f"the scorer cannot say of {percent(unscored)} of {len(red_team)} answers whether they do harm"
            + ("" if unscored <= recipe.gates.max_unscored else ": any rate would be of the few it can read"),
        )  # fmt: skip
        low, high = base.ci or (0.0, 1.0)
        work.gate(
            stage, "room to improve", base.value is not None and high >= recipe.gates.min_base_harm,
            f"the {settings.generator} model does harm on {percent(base.value)} of {base.n} red-team prompts (95% interval "
            f"{percent(low)} to {percent(high)}, {base.n_unscored} unscored)"
            + ("" if high >= recipe.gates.min_base_harm else ": no room to improve; choose a base model that needs it"),
        )  # fmt: skip
        n_rounds = settings.rounds if settings.context is None else 1
        shots: list[Message] = [message for shot in few_shots for message in shot]
        revisions = stage.rows("revisions.jsonl", Revision).work(
            list(zip(red_team, originals, strict=True)),
            recipe.batch_size,
            lambda batch: (
                answer_in_context(sampler, batch, settings, seed=recipe.seed)
                if settings.context is not None
                else revise_batch(
                    critic, [p for p, _ in batch], [r for _, r in batch], work.constitution, settings,
                    seed=recipe.seed, few_shots=shots,
                )
            ),
            rows_per_item=n_rounds,
            by_all=isinstance(critic, LocalSampler),
            label="revise: critiques and revisions" if settings.context is None else "revise: answers in context",
            quiet=run.quiet,
        )  # fmt: skip
        rounds = [[r for r in revisions if r.round == n + 1] for n in range(n_rounds)]
        usable = [{r.prompt_id: r for r in rows if not r.excluded} for rows in rounds]
        by_round = []
        for n, rows in enumerate([originals, *([r.revision for r in rows] for rows in rounds)]):
            harm = harmful if n == 0 else score_harm(scorer, red_team, rows)
            rate = clustered_proportion(harm)
            chars = sum(len(r.text) for r in rows) / len(rows)
            by_round.append({"round": n, "n": rate.n, "harmful": rate.value, "ci": rate.ci, "mean_chars": chars})
        kept = [p for p in red_team if any(p.id in rows for rows in usable)]
        last = {p.id: next(rows[p.id] for rows in reversed(usable) if p.id in rows).revision for p in kept}
        work.gate(stage, "usable revisions", bool(kept), f"{len(kept)} of {len(red_team)} prompts have a usable revision")
        after = score_harm(scorer, kept, [last[p.id] for p in kept])
        before = [h for p, h in zip(red_team, harmful, strict=True) if p.id in last]
        change = paired_difference(before, after)
        safer = change.ci is not None and change.ci[1] < 0
        work.gate(
            stage, "revisions are safer", safer,
            f"harm from answers to revisions changes by {signed(change.difference)} on {change.n} prompts (95% interval "
            + (f"{signed(change.ci[0])} to {signed(change.ci[1])})" if change.ci else "not estimable)")
            + ("" if safer else ": training on them would teach nothing"),
        )  # fmt: skip
        benign = read_stage_prompts(prompts, "train", "benign")
        n_helpful = min(round(len(kept) * share / (1 - share)), len(benign))
        helpful = answer(work, stage, "helpful.jsonl", sampler, benign[:n_helpful]) if n_helpful else []
        excluded = Counter(r.excluded for r in revisions if r.excluded)
        stage.finish(
            {"rounds": by_round, "kept": len(kept), "prompts": len(red_team), "excluded": dict(excluded),
             "helpful": sum(r.finish_reason == "stop" for r in helpful), "gates": work.gates_of(stage)}
        )  # fmt: skip
    return stage


def score_harm(scorer: Scorer, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[bool | None]:
    return [verdict.harmful for verdict in scorer.score(prompts, [r.text for r in responses])]


def usable_revisions(revise: Stage) -> list[Revision]:
    """Revisions that are fit to be learned."""
    rows = list(read_jsonl(revise.path("revisions.jsonl"), Revision))
    fit = [r for r in rows if not r.excluded]
    # Without any only behind an overridden "usable revisions" gate, which the report names.
    return fit or [r for r in rows if r.revision.text.strip()]
