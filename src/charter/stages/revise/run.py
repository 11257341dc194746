"""Critique and revision, or answers in a context that is left out later."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charter.constitution.constitution import BY_ROW, PRINCIPLE, Constitution, hashes_of_principles, load_few_shots
from charter.constitution.revise import IN_CONTEXT, answer_in_context, choose_principle, revise_batch
from charter.evaluation.scorers import Scorer
from charter.models.sampling.sampler import LocalSampler, Sampler
from charter.records import Message, Prompt, Response, Revision, content_id
from charter.run.run import Run, Stage
from charter.stages.answers import answer
from charter.stages.evaluate.scoring import Scoring
from charter.stages.gates import Gates, percent, signed
from charter.stages.models import Models
from charter.stages.prompts.run import read_stage_prompts
from charter.stages.revise.exclusions import changes, excluded_words
from charter.stages.revise.settings import ReviseSettings
from charter.statistics import PairedDifference, clustered_proportion, paired_difference

if TYPE_CHECKING:
    from charter.recipe.recipe import GateSettings, Recipe

Harm = list[bool | None]
LARGE_FALL = 0.1  # of harm, as a share: an interval that includes both it and 0 comes from too few prompts


def revise_answers(
    run: Run, recipe: Recipe, settings: ReviseSettings, models: Models, gates: Gates, constitution: Constitution,
    scoring: Scoring, prompts: Stage,
) -> Stage:  # fmt: skip
    """Answers of the base model, critiques and revisions of the red-team ones, helpful answers kept beside them.

    Two gates: the base must do harm that can be revised away, and the revisions must be measurably safer than the answers.
    """
    scorer = scoring.scorer
    assert scorer is not None, "a recipe that revises names a scorer"
    shots = load_few_shots(Path(settings.few_shots)) if settings.few_shots else []
    share = recipe.sft.helpful_fraction if recipe.sft is not None else 0.0
    all_rounds = recipe.sft is not None and recipe.sft.use_revisions == "all"  # which are more to balance
    inputs = {
        "prompts": prompts.output_hash,
        **hashes_of_principles(constitution, "critique", "revision"),
        "few_shots": content_id([[m.model_dump() for m in shot] for shot in shots]),
        "model": models.base.hash,
        "scorer": scoring.hash,
        "gate": content_id([recipe.gates.min_base_harm, recipe.gates.max_unscored]),
        "helpful": content_id([share, "all"] if all_rounds else share),
        "samplers": content_id([models.hash_of(settings.generator), models.hash_of(settings.critic)]),
        "batch": str(recipe.batch_size),
        "precision": recipe.arithmetic,
    }
    with run.stage("revise", settings, inputs, [__name__], BY_ROW) as stage:
        if stage.done:
            gates.recall(stage)
            return stage
        respond = partial(answer, stage, batch_size=recipe.batch_size, seed=recipe.seed, settings=settings)
        generator = models.answering(settings.generator)
        red_team = read_stage_prompts(prompts, "train", "red_team")[: settings.prompts]
        originals = respond("originals.jsonl", generator, red_team)
        harmful = score_harm(scorer, red_team, originals)
        check_base(gates, stage, recipe.gates, settings, scorer.name, originals, harmful)
        critic = generator if settings.context is not None else models.answering(settings.critic)
        messages = [message for shot in shots for message in shot]
        rounds = revise_in_rounds(stage, recipe, settings, critic, constitution, messages, red_team, originals)
        kept = check_revisions(gates, stage, settings, scorer, red_team, harmful, rounds)
        benign = read_stage_prompts(prompts, "train", "benign")
        n_helpful = min(helpful_answers(kept, rounds, share, all_rounds=all_rounds), len(benign))
        helpful = respond("helpful.jsonl", generator, benign[:n_helpful]) if n_helpful else []
        excluded = Counter(r.excluded for rows in rounds for r in rows if r.excluded)
        stage.finish(
            {"rounds": harm_by_round(scorer, red_team, originals, harmful, rounds), "kept": kept, "prompts": len(red_team),
             "excluded": dict(excluded), "helpful": sum(r.finish_reason == "stop" for r in helpful), "gates": gates.of(stage)}
        )  # fmt: skip
    return stage


def helpful_answers(kept: int, rounds: Sequence[Sequence[Revision]], share: float, *, all_rounds: bool) -> int:
    """How many helpful answers are ``share`` of the data with the last usable revisions of ``kept`` prompts, or those of all
    rounds."""
    learned = sum(not row.excluded for rows in rounds for row in rows) if all_rounds else kept
    return round(learned * share / (1 - share))


def score_harm(scorer: Scorer, prompts: Sequence[Prompt], responses: Sequence[Response]) -> Harm:
    return [verdict.harmful for verdict in scorer.score(prompts, [r.text for r in responses])]


def check_base(
    gates: Gates, stage: Stage, limits: GateSettings, settings: ReviseSettings, scorer: str, originals: Sequence[Response],
    harmful: Harm,
) -> None:  # fmt: skip
    """The gates before any revision: the scorer reads the answers, and they do harm that can be revised away."""
    base = clustered_proportion(harmful)
    unscored = base.n_unscored / len(harmful)
    readable = unscored <= limits.max_unscored
    gates.check(
        stage, "scorer reads the answers", readable,
        f"{percent(unscored)} of {len(harmful)} responses are unscored"
        + ("" if readable else ": any rate would describe only the few that the scorer can read"),
    )  # fmt: skip
    low, high = base.ci or (0.0, 1.0)
    room = high >= limits.min_base_harm
    n_cut = sum(answer.finish_reason == "length" for answer in originals)
    gates.check(
        stage, "room to improve", base.value is not None and room,
        f"the {settings.generator} model does harm on {percent(base.value)} of {base.n} red-team prompts (95% interval "
        f"{percent(low)} to {percent(high)}, {base.n_unscored} unscored; by {scorer})"
        + (f"; {n_cut} answers were cut off at {settings.max_new_tokens} tokens" if 2 * n_cut > len(originals) else "")
        + ("" if room else ": no room to improve; choose a base model that needs it"),
    )  # fmt: skip


def revise_in_rounds(
    stage: Stage, recipe: Recipe, settings: ReviseSettings, critic: Sampler, constitution: Constitution,
    shots: list[Message], prompts: Sequence[Prompt], originals: Sequence[Response],
) -> list[list[Revision]]:  # fmt: skip
    """The revisions of every prompt, round by round, in revisions.jsonl of the stage."""
    in_context = settings.context is not None
    n_rounds = 1 if in_context else settings.rounds

    def revisions_of(batch: Sequence[tuple[Prompt, Response]]) -> list[Revision]:
        if in_context:
            return answer_in_context(critic, batch, settings, seed=recipe.seed)
        return revise_batch(
            critic, [p for p, _ in batch], [r for _, r in batch], constitution, settings, seed=recipe.seed, few_shots=shots
        )

    revisions = stage.rows("revisions.jsonl", Revision).work(
        list(zip(prompts, originals, strict=True)),
        recipe.batch_size,
        revisions_of,
        rows_per_item=n_rounds,
        known=earlier_revisions(stage, constitution, recipe.seed, n_rounds),
        by_all=isinstance(critic, LocalSampler),
        label="revise: answers in context" if in_context else "revise: critiques and revisions",
        quiet=stage.run.quiet,
    )
    return [[r for r in revisions if r.round == n + 1] for n in range(n_rounds)]


def earlier_revisions(
    stage: Stage, constitution: Constitution, seed: int, n_rounds: int
) -> Callable[[tuple[Prompt, Response]], list[Revision] | None]:
    """Finds the revisions of a prompt and its answer in an earlier run of the stage; None if one of the rounds draws another
    principle now, or the text of a drawn principle changed."""
    before, now = stage.earlier_inputs, stage.description["inputs"]
    rows: defaultdict[str, list[Revision]] = defaultdict(list)
    for row in stage.earlier("revisions.jsonl", Revision):
        rows[row.prompt_id].append(row)

    def holds(prompt: Prompt, row: Revision) -> bool:
        if row.principle == IN_CONTEXT:
            return True
        name = f"{PRINCIPLE}{row.principle}"
        drawn = choose_principle(constitution, prompt, seed, row.round).id
        return drawn == row.principle and name in now and before.get(name) == now[name]

    def find(item: tuple[Prompt, Response]) -> list[Revision] | None:
        prompt, original = item
        found = rows[prompt.id]
        same = len(found) == n_rounds and found[0].original == original
        return found if same and all(holds(prompt, row) for row in found) else None

    return find


def check_revisions(
    gates: Gates, stage: Stage, settings: ReviseSettings, scorer: Scorer, prompts: Sequence[Prompt], harmful: Harm,
    rounds: Sequence[Sequence[Revision]],
) -> int:  # fmt: skip
    """The gates after the revisions: there are usable ones, enough to tell where most were excluded, and the last of each prompt
    is safer than its answer. Returns how many prompts have a usable revision."""
    usable = [{r.prompt_id: r for r in rows if not r.excluded} for rows in rounds]
    kept = [p for p in prompts if any(p.id in rows for rows in usable)]
    last = {p.id: next(rows[p.id] for rows in reversed(usable) if p.id in rows).revision for p in kept}
    after = score_harm(scorer, kept, [last[p.id] for p in kept]) if kept else []
    before = [h for p, h in zip(prompts, harmful, strict=True) if p.id in last]
    change = paired_difference(before, after)
    unclear, few = cannot_tell(change), 2 * len(kept) < len(prompts)
    every = [row for rows in rounds for row in rows]
    words = [f"{len(kept)} of {len(prompts)} prompts have a usable revision", *filter(None, [excluded_words(every)])]
    remedies = changes(every, settings) if few or not kept else []
    gates.check(
        stage, "usable revisions", bool(kept) and not (few and unclear),
        "; ".join([*words, *(["too few to tell whether they are safer"] if few and unclear else []), *remedies]),
    )  # fmt: skip
    gates.check(stage, "revisions are safer", change.ci is not None and change.ci[1] < 0, change_words(change))
    return len(kept)


def cannot_tell(change: PairedDifference) -> bool:
    """Whether so few prompts were compared that no change and a large fall of harm are both inside the interval."""
    return change.ci is None or (change.ci[0] < -LARGE_FALL and change.ci[1] >= 0)


def change_words(change: PairedDifference) -> str:
    """How harm changes from answers to revisions, and what that means for training on them."""
    interval = f"{signed(change.ci[0])} to {signed(change.ci[1])})" if change.ci else "not estimable)"
    words = (
        f"harm from answers to revisions changes by {signed(change.difference)} on {change.n} prompts (95% interval {interval}"
    )
    if change.ci is not None and change.ci[1] < 0:
        return words
    if change.ci is not None and change.ci[0] > 0:
        return f"{words}: the revisions do more harm than the answers; use a stronger critic (revise.critic) or contrast pairs"
    if cannot_tell(change):
        return f"{words}: too few prompts to tell; raise revise.prompts"
    return f"{words}: training on them would teach nothing"


def harm_by_round(
    scorer: Scorer, prompts: Sequence[Prompt], originals: Sequence[Response], harmful: Harm, rounds: Sequence[Sequence[Revision]]
) -> list[dict[str, Any]]:
    """The rate of harm and the mean length of the answers, then of each round's revisions."""
    by_round = []
    for n, rows in enumerate([originals, *([r.revision for r in revisions] for revisions in rounds)]):
        rate = clustered_proportion(harmful if n == 0 else score_harm(scorer, prompts, rows))
        chars = sum(len(r.text) for r in rows) / len(rows)
        by_round.append({"round": n, "n": rate.n, "harmful": rate.value, "ci": rate.ci, "mean_chars": chars})
    return by_round
