"""The stages: each opens its folder, does its part through the modules that know how, and leaves files and figures.

A stage is a function of the files before it. Gates are checked where their evidence arises; a gate that says no raises
GateError unless the recipe overrides it, and either way the report tells.
"""

from __future__ import annotations

import gc
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from charter.config import ENDPOINT, DPOSettings, LoRASettings, PPOSettings, Recipe, RolloutSettings
from charter.constitution.categorise import categorise
from charter.constitution.constitution import Constitution, load_constitution, load_few_shots
from charter.constitution.revise import respond, revise_batch
from charter.errors import GateError, InputError
from charter.evaluation.harm import Scorer, judge_scorer, python_scorer, refusal_words
from charter.evaluation.measure import ARMS, BEST_OF, Arm, contrasts_of, measure_arm, samples_of
from charter.evaluation.statistics import clustered_proportion, expected_calibration_error, paired_difference
from charter.feedback.exports import export_preferences, export_sft, write_csv
from charter.feedback.gate import judge_gate
from charter.feedback.judge import LogProbJudge, comparisons_of, judgment, pairs_of
from charter.feedback.judgments import follow
from charter.feedback.pairs import read_pairs, split_pairs
from charter.feedback.people import FOLDER, TO_LABEL, Votes, agreement_with_people, sample_for_people, with_people
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.endpoint import EndpointSampler
from charter.models.load import pick_device
from charter.models.packing import Tokens
from charter.models.sampler import LocalSampler, Sampler
from charter.models.trunk import Scorers, Trunk, load_trunk
from charter.prompts import deduplicate, read_prompts, split_prompts, take_stratified
from charter.records import Judgment, Message, Pair, Prompt, Response, Revision, content_id, read_jsonl, write_jsonl
from charter.reward_sources import build_reward, check_sources, classifier_parts, source_of
from charter.run import Run, Stage, derive_seed, file_hash, track
from charter.team import team
from charter.training.dpo import train_dpo
from charter.training.grpo import train_grpo
from charter.training.online_dpo import train_online_dpo
from charter.training.ppo import train_ppo
from charter.training.reward_model import clip, reward_scores, score_pairs, train_reward_model
from charter.training.rewards import RewardShape, RewardSum
from charter.training.rloo import train_rloo
from charter.training.rollouts import RewardModelReward, reference_rewards
from charter.training.sft import sft_tokens, train_sft
from charter.training.watch import warnings_of

KINDS = ("red_team", "benign")


class Work:
    """What the stages of one run share: the run folder, the recipe, the constitution, the scorer, loaded models."""

    def __init__(self, run: Run, recipe: Recipe) -> None:
        self.run, self.recipe = run, recipe
        self.device = pick_device(recipe.device)
        self.divide = recipe.parallel == "fsdp" or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        if self.divide and any((recipe.sft.lora, recipe.reward_model.lora, getattr(recipe.rl, "lora", None))):
            raise InputError("fsdp divides weights that are all trained; take ddp with lora", field="parallel")
        self.constitution: Constitution = load_constitution(Path(recipe.constitution))
        self.gates: list[dict[str, Any]] = []
        self._trunks: dict[tuple[str, LoRASettings | None], Trunk] = {}
        self.endpoints = {
            name: EndpointSampler(name, settings, Path(settings.cache or run.folder / "endpoints" / name))
            for name, settings in recipe.endpoints.items()
        }
        self.scorer  # noqa: B018 - a scorer that does not exist is said before anything is computed
        check_sources(recipe.rl)

    @cached_property
    def model_hash(self) -> str:
        path = Path(self.recipe.model)
        return file_hash(path) if path.exists() else content_id(self.recipe.model)

    def trunk(self, path: str, lora: LoRASettings | None = None, *, writes: bool = True, trains: bool = False) -> Trunk:
        """The model of a folder without roles of its own; loaded once per stage. ``writes`` as in ``load_trunk``; ``trains``:
        it gets roles that learn, so that its weights may be divided."""
        key = (path, lora)
        if key not in self._trunks:
            self._trunks[key] = load_trunk(
                path,
                device=self.device,
                lora=lora,
                precision=self.recipe.precision,
                seed=self.recipe.seed,
                writes=writes,
                divide=trains and self.divide,
            )
        return self._trunks[key]

    def sampler(self, path: str, name: str) -> Sampler:
        """A model that only answers: of a folder, or behind an endpoint."""
        if path.startswith(ENDPOINT):
            return self.endpoints[path.removeprefix(ENDPOINT)]
        return LocalSampler(self.trunk(path), name)

    def folder_of(self, name: str, sft: Stage | None = None) -> str:
        """Where the model is that a recipe calls ``base`` or ``sft``; other names stay what they are."""
        own = {"base": self.recipe.model} | ({"sft": str(sft.path("model"))} if sft is not None else {})
        return own.get(name, name)

    def hash_of(self, name: str, sft: Stage | None = None) -> str:
        """What the answers of a named model depend on: its weights, or where they are asked for and how."""
        if name.startswith(ENDPOINT):
            return content_id(self.recipe.endpoints[name.removeprefix(ENDPOINT)].questions)
        if name == "sft" and sft is not None:
            return sft.output_hash
        return self.model_hash if name == "base" else file_hash(Path(name))

    def identity_of(self, name: str, sft: Stage | None = None) -> str:
        """Whose answers these are: an endpoint is the same judge however it is asked."""
        if name.startswith(ENDPOINT):
            return content_id(self.recipe.endpoints[name.removeprefix(ENDPOINT)].identity)
        return self.hash_of(name, sft)

    def release(self) -> None:
        """Forget the loaded models: the next stage loads what it needs."""
        self._trunks.clear()
        gc.collect()

    @cached_property
    def scorer(self) -> Scorer:
        spec = self.recipe.evaluation.scorer
        if spec.startswith("python:"):
            return python_scorer(spec)
        if spec == "refusal-words":
            return refusal_words()
        if spec.startswith("judge:"):
            path = spec.removeprefix("judge:")
            if path.startswith(ENDPOINT):
                return judge_scorer(self.sampler(path, path), self.identity_of(path))
            trunk = load_trunk(path, device=self.device, precision=self.recipe.precision)
            return judge_scorer(LocalSampler(trunk, Path(path).name), file_hash(Path(path)))
        raise InputError(
            "write python:module:function, judge:FOLDER, judge:endpoint:NAME or refusal-words",
            field="evaluation.scorer",
        )

    @property
    def scorer_hash(self) -> str:
        """What the scorer's verdicts depend on."""
        asked = self.recipe.evaluation.scorer.removeprefix("judge:")
        return self.hash_of(asked) if asked.startswith(ENDPOINT) else self.scorer.identity

    def gate(self, stage: Stage, name: str, passed: bool, message: str) -> None:
        """Record a gate's answer. GateError where it is no and the recipe does not override it."""
        overridden = not passed and self.recipe.gates.override
        gate = {"name": name, "stage": stage.name, "passed": passed, "overridden": overridden, "message": message}
        self.gates.append(gate)
        if overridden:
            self.run.say(f"  gate {name!r} says no and is overridden: {message}")
        if not passed and not overridden:
            raise GateError(f"gate {name!r}: {message} (gates.override: true goes on all the same)")

    def gates_of(self, stage: Stage) -> list[dict[str, Any]]:
        return [gate for gate in self.gates if gate["stage"] == stage.name]

    def recall_gates(self, stage: Stage) -> None:
        """Gates that a skipped stage met when it ran. GateError where one said no and is no longer overridden."""
        for gate in stage.result.get("gates", []):
            self.gate(stage, gate["name"], gate["passed"], gate["message"])


def hash_of_principles(constitution: Constitution, *fields: str) -> str:
    """Hash of the named fields of the principles: what a stage reads of the constitution, so that a change of the rest does
    not run it again."""
    return content_id([[getattr(p, field) for field in ("id", *fields)] for p in constitution.principles])


# -- prompts -------------------------------------------------------------------------------------------------------------


def prepare_prompts(work: Work) -> Stage:
    """Read, de-duplicate, sort by principle, split. Leaves prompts.jsonl: train and test, red_team and benign."""
    recipe, run = work.recipe, work.run
    settings = recipe.prompts
    inputs = {
        "files": content_id([file_hash(path) for path in map(existing, settings.files)]),
        "topics": content_id([(p.id, p.title) for p in work.constitution.topics()]),
        "model": work.model_hash,
    }
    with run.stage("prompts", settings, inputs, ["prompts", "constitution", "models"]) as stage:
        if stage.done:
            return stage
        found = [p for file in settings.files for p in read_prompts(Path(file), tags=settings.tags)]
        unique, n_duplicates = deduplicate(found)
        sampler = work.sampler(recipe.model, "base")
        limit = context_room(work)
        fitting = [p for p in unique if sum(len(m.content) for m in p.messages) < 8 * limit] if limit else unique
        with_principle = [
            p
            for batch in track(chunks(fitting, 256), "prompts: sorting by principle", unit=256, quiet=run.quiet)
            for p in categorise(batch, work.constitution, sampler)
        ]
        split = split_prompts(with_principle, test_fraction=settings.test_fraction, seed=recipe.seed)
        chosen = []
        for part, wanted in (("train", settings.train), ("test", settings.test)):
            for kind in KINDS:
                pool = [p for p in split if p.split == part and kind in p.tags]
                n = min(wanted, len(pool)) if wanted else len(pool)
                chosen += take_stratified(pool, n, seed=recipe.seed, by=("principle", "tags"))
        if not any("red_team" in p.tags and p.split == "train" for p in chosen):
            raise InputError("no training prompt is tagged red_team; tag the file's prompts or set prompts.tags")
        write_jsonl(stage.path("prompts.jsonl"), chosen)
        counts = Counter(f"{p.split} {kind}" for p in chosen for kind in KINDS if kind in p.tags)
        by_principle = Counter(p.principle or "none of these" for p in chosen)
        stage.finish(
            {"read": len(found), "duplicates": n_duplicates, "too_long": len(unique) - len(fitting),
             "counts": dict(counts), "principles": dict(by_principle)}
        )  # fmt: skip
    return stage


def chunks(prompts: Sequence[Prompt], size: int) -> list[Sequence[Prompt]]:
    return [prompts[i : i + size] for i in range(0, len(prompts), size)]


def existing(file: str) -> Path:
    path = Path(file)
    if not path.exists():
        raise InputError("no such prompt file", file=path, field="prompts.files")
    return path


def context_room(work: Work) -> int | None:
    """Tokens left for a prompt beside the longest thing said about it, None where the model names no limit."""
    from charter.models.generate import context_length

    limit = context_length(work.trunk(work.recipe.model).model)
    return None if limit is None else max(limit // 8, 16)


def read_stage_prompts(stage: Stage, split: str, kind: str) -> list[Prompt]:
    return [p for p in read_jsonl(stage.path("prompts.jsonl"), Prompt) if p.split == split and kind in p.tags]


# -- critique and revision -----------------------------------------------------------------------------------------------


def revise_answers(work: Work, prompts: Stage) -> Stage:
    """Answers of the base model, critiques and revisions of the red-team ones, helpful answers kept beside them.

    Two gates: the base must do harm that can be revised away, and the revisions must be measurably safer than the answers.
    """
    recipe, run = work.recipe, work.run
    settings = recipe.revise
    few_shots = load_few_shots(Path(settings.few_shots)) if settings.few_shots else []
    inputs = {
        "prompts": prompts.output_hash,
        "principles": hash_of_principles(work.constitution, "critique", "revision", "tags", "weight"),
        "few_shots": content_id([[m.model_dump() for m in shot] for shot in few_shots]),
        "model": work.model_hash,
        "scorer": work.scorer_hash,
        "gate": content_id([recipe.gates.min_base_harm, recipe.gates.max_unscored]),
        "helpful": content_id(recipe.sft.helpful_fraction),
        "samplers": content_id([work.hash_of(settings.generator), work.hash_of(settings.critic)]),
        "batch": str(recipe.batch_size),
    }
    with run.stage("revise", settings, inputs, ["constitution", "models", "evaluation/harm"]) as stage:
        if stage.done:
            work.recall_gates(stage)
            return stage
        sampler = work.sampler(work.folder_of(settings.generator), settings.generator)
        critic = work.sampler(work.folder_of(settings.critic), settings.critic)
        red_team = read_stage_prompts(prompts, "train", "red_team")[: settings.prompts]
        originals = answer(work, stage, "originals.jsonl", sampler, red_team)
        harmful = score_harm(work.scorer, red_team, originals)
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
        shots: list[Message] = [message for shot in few_shots for message in shot]
        revisions = stage.rows("revisions.jsonl", Revision).work(
            list(zip(red_team, originals, strict=True)),
            recipe.batch_size,
            lambda batch: revise_batch(
                critic, [p for p, _ in batch], [r for _, r in batch], work.constitution, settings,
                seed=recipe.seed, few_shots=shots,
            ),
            rows_per_item=settings.rounds,
            by_all=isinstance(critic, LocalSampler),
            label="revise: critiques and revisions",
            quiet=run.quiet,
        )  # fmt: skip
        rounds = [[r for r in revisions if r.round == n + 1] for n in range(settings.rounds)]
        usable = [{r.prompt_id: r for r in rows if not r.excluded} for rows in rounds]
        by_round = []
        for n, rows in enumerate([originals, *([r.revision for r in rows] for rows in rounds)]):
            harm = harmful if n == 0 else score_harm(work.scorer, red_team, rows)
            rate = clustered_proportion(harm)
            chars = sum(len(r.text) for r in rows) / len(rows)
            by_round.append({"round": n, "n": rate.n, "harmful": rate.value, "ci": rate.ci, "mean_chars": chars})
        kept = [p for p in red_team if any(p.id in rows for rows in usable)]
        last = {p.id: next(rows[p.id] for rows in reversed(usable) if p.id in rows).revision for p in kept}
        work.gate(
            stage, "usable revisions", bool(kept), f"{len(kept)} of {len(red_team)} prompts have a usable revision"
        )
        after = score_harm(work.scorer, kept, [last[p.id] for p in kept])
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
        share = recipe.sft.helpful_fraction
        n_helpful = min(round(len(kept) * share / (1 - share)), len(benign))
        helpful = answer(work, stage, "helpful.jsonl", sampler, benign[:n_helpful]) if n_helpful else []
        excluded = Counter(r.excluded for r in revisions if r.excluded)
        stage.finish(
            {"rounds": by_round, "kept": len(kept), "prompts": len(red_team), "excluded": dict(excluded),
             "helpful": sum(r.finish_reason == "stop" for r in helpful), "gates": work.gates_of(stage)}
        )  # fmt: skip
    return stage


def answer(
    work: Work, stage: Stage, name: str, sampler: Sampler, prompts: Sequence[Prompt], k: int = 1
) -> list[Response]:
    """K responses to each prompt, in a file of the stage, prompt by prompt."""
    settings = work.recipe.revise if stage.name == "revise" else work.recipe.feedback
    return stage.rows(name, Response).work(
        list(prompts),
        max(1, work.recipe.batch_size // k),
        lambda batch: [
            response
            for group in respond(
                sampler, batch, seed=work.recipe.seed, what=stage.name, k=k, temperature=settings.temperature,
                max_new_tokens=settings.max_new_tokens,
            )
            for response in group
        ],
        rows_per_item=k,
        by_all=isinstance(sampler, LocalSampler),
        label=f"{stage.name}: {name.removesuffix('.jsonl')}",
        quiet=work.run.quiet,
    )  # fmt: skip


def score_harm(scorer: Scorer, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[bool | None]:
    return [verdict.harmful for verdict in scorer.score(prompts, [r.text for r in responses])]


def percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.0f}%"


def signed(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:+.0f} points"


# -- supervised fine-tuning ----------------------------------------------------------------------------------------------


def sft_examples(work: Work, prompts: Stage, revise: Stage) -> list[tuple[Prompt, str]]:
    """Revisions that are fit, the last or all of each prompt, and the helpful answers that ended by themselves."""
    by_id = {p.id: p for p in read_jsonl(prompts.path("prompts.jsonl"), Prompt)}
    rows = list(read_jsonl(revise.path("revisions.jsonl"), Revision))
    revisions = [r for r in rows if not r.excluded]
    if not revisions:  # only behind an overridden "usable revisions" gate, which the report names
        revisions = [r for r in rows if r.revision.text.strip()]
    if work.recipe.sft.use_revisions == "last":
        revisions = list({r.prompt_id: r for r in sorted(revisions, key=lambda r: r.round)}.values())
    helpful_file = revise.path("helpful.jsonl")
    helpful = (
        [r for r in read_jsonl(helpful_file, Response) if r.finish_reason == "stop"] if helpful_file.exists() else []
    )
    examples = [(by_id[r.prompt_id], r.revision.text) for r in revisions]
    return examples + [(by_id[r.prompt_id], r.text) for r in helpful]


def train_supervised(work: Work, prompts: Stage, revise: Stage) -> Stage:
    """The base model fine-tuned on revisions and helpful answers. Leaves model/, a plain Hugging Face folder."""
    recipe = work.recipe
    inputs = {"revise": revise.output_hash, "model": work.model_hash, "precision": recipe.precision}
    with work.run.stage("sft", recipe.sft, inputs, ["models", "training"]) as stage:
        if stage.done:
            return stage
        examples = sft_examples(work, prompts, revise)
        export_sft(work.run.folder / "sft.csv", examples)
        trunk = work.trunk(recipe.model, recipe.sft.lora, trains=True)
        rows = sft_tokens(trunk, [(prompt.messages, text) for prompt, text in examples])
        train_sft(trunk, rows, recipe.sft, stage)
        trunk.save_language_model("policy", stage.path("model"))
        losses = [row["loss"] for row in stage.metrics()]
        stage.finish(
            {"examples": len(rows), "updates": len(losses), "first_loss": losses[0], "last_loss": losses[-1],
             "trainable_share": trunk.trainable_share("policy")}
        )  # fmt: skip
    return stage


# -- AI feedback ---------------------------------------------------------------------------------------------------------


def gather_feedback(work: Work, prompts: Stage, sft: Stage) -> Stage:
    """K responses per prompt, compared by the judge under drawn principles, by people, or by both: judgments, then pairs.

    Gates: before any label the judge must beat chance on pairs whose answer is known; people must have answered.
    """
    recipe, run = work.recipe, work.run
    settings = recipe.feedback
    if settings.contrast is not None:
        return pair_by_contrast(work, prompts, sft)
    judged = settings.raters != "human"
    labelled = read_pairs(Path(settings.labelled_pairs)).pairs[: settings.gate_pairs] if settings.labelled_pairs else []
    inputs = {
        "prompts": prompts.output_hash,
        "sft": sft.output_hash,
        "judge": work.hash_of(settings.judge, sft) if judged else "",
        "generator": work.hash_of(settings.generator, sft),
        "principles": hash_of_principles(work.constitution, "preference", "tags", "weight"),
        "labelled": content_id([pair.model_dump(mode="json") for pair in labelled]),
        "gate": content_id(recipe.gates.min_judge_accuracy),
        "batch": str(recipe.batch_size),
    }  # fmt: skip
    code = ["constitution", "feedback", "models"]
    with run.stage("feedback", settings, inputs, code) as stage:
        if stage.done:
            work.recall_gates(stage)
            return stage
        judge = LogProbJudge(work.sampler(work.folder_of(settings.judge, sft), settings.judge)) if judged else None
        card = None if judge is None else gate_judge(work, stage, sft, judge, labelled)
        chosen = [
            p for kind in KINDS for p in read_stage_prompts(prompts, "train", kind)[-(settings.prompts // len(KINDS)) :]
        ]
        k = settings.responses_per_prompt
        generator = work.sampler(work.folder_of(settings.generator, sft), settings.generator)
        responses = answer(work, stage, "responses.jsonl", generator, chosen, k)
        groups = [responses[i : i + k] for i in range(0, len(responses), k)]
        pairs: list[Pair] = []
        result: dict[str, Any] = {}
        judgments: list[Judgment] = []
        if judge is not None:
            judgments = judge_groups(work, stage, judge, chosen, groups)
            by_id = {p.id: p for p in chosen}
            pairs = pairs_of(judgments, by_id, {r.id: r for r in responses}, calibration=settings.calibration)
            verdicts = sum(j.has_verdict for j in judgments)
            result = {"comparisons": len(judgments), "verdicts": verdicts, "ties": verdicts - len(pairs), "judge": card}
        if settings.raters != "judge":
            votes = ask_people(work, stage, groups)
            result |= {"votes": len(votes.judgments), "people": len({one.rater_id for one in votes.judgments})}
            if card is not None:
                card["people"] = agreement_with_people(judgments, votes.judgments)
            pairs = team().on_main(lambda: with_people(pairs, votes))
        if len({pair.group_id for pair in pairs}) < 4:
            raise GateError(f"a response was preferred in only {len(pairs)} comparisons: too few to train on")
        write_jsonl(stage.path("pairs.jsonl"), pairs)
        export_preferences(run.folder / "preferences.csv", pairs)
        stage.finish({**result, "pairs": len(pairs), "gates": work.gates_of(stage)})
    return stage


def gate_judge(work: Work, stage: Stage, sft: Stage, judge: LogProbJudge, labelled: Sequence[Pair]) -> Any:
    """The judge's card on pairs whose answer is known, None where there are none; the gates on what it says."""
    recipe = work.recipe
    if work.scorer.identity == work.identity_of(recipe.feedback.judge, sft):
        work.gate(stage, "independent scorer", False, "the judge that gives the reward would also score the report")
    card = judge_gate(judge, labelled, work.constitution, seed=recipe.seed, batch_size=recipe.batch_size)
    if card is None:
        words = "no labelled pairs to test the judge on; set feedback.labelled_pairs"
        work.gate(stage, "judge beats chance", False, words)
        return None
    floor = recipe.gates.min_judge_accuracy
    good = card["ci"] is not None and card["ci"][0] > floor
    interval = f"{percent(card['ci'][0])} to {percent(card['ci'][1])}" if card["ci"] else "not estimable"
    work.gate(
        stage, "judge beats chance", good,
        f"the judge is right on {percent(card['accuracy'])} of {card['n']} labelled pairs (95% interval {interval})"
        + ("" if good else f", not clearly above {percent(floor)}: these labels are noise"),
    )  # fmt: skip
    return card


def judge_groups(
    work: Work, stage: Stage, judge: LogProbJudge, prompts: Sequence[Prompt], groups: Sequence[Sequence[Response]]
) -> list[Judgment]:
    """The judge's chained judgments of every pair of the responses to each prompt, in judgments.jsonl of the stage."""
    recipe = work.recipe
    comparisons = comparisons_of(prompts, groups, work.constitution, recipe.seed)
    if not comparisons:
        raise InputError("no principle with a preference text applies to these prompts", file=recipe.constitution)
    return stage.rows("judgments.jsonl", Judgment).work(
        comparisons,
        recipe.batch_size,
        lambda batch: (
            judgment(comparison, preference, rater_id=judge.name, abstain_below=recipe.feedback.abstain_below)
            for comparison, preference in zip(batch, judge(batch), strict=True)
        ),
        follow=follow,
        by_all=isinstance(judge.sampler, LocalSampler),
        label="feedback: judgments",
        quiet=work.run.quiet,
    )


def ask_people(work: Work, stage: Stage, groups: Sequence[Sequence[Response]]) -> Votes:
    """What people said of the responses that they are asked about. GateError with the page's command while some are open."""
    settings, folder = work.recipe.feedback, work.run.folder
    share = settings.human_share if settings.raters == "mixed" else 1.0
    asked = sample_for_people(groups, share, work.recipe.seed)
    write_jsonl(stage.path(TO_LABEL), (one for group in asked for one in group))
    votes = team().on_main(lambda: Votes(folder / FOLDER, asked))
    words = f"people have compared the answers to {len(asked) - votes.open} of {len(asked)} prompts"
    if votes.open:
        words += f", {votes.open} are open: `charter label {folder}` opens the page, and the same command as now goes on after it"
    work.gate(stage, "people have answered", not votes.open, words)
    return votes


def pair_by_contrast(work: Work, prompts: Stage, sft: Stage) -> Stage:
    """Pairs without a judge (Yang et al. 2023, RLCD): each prompt is answered twice, once asked for a good answer and once for a
    bad one; the answers are stored behind the prompt as it was. Identical answers make no pair and count as ties."""
    recipe = work.recipe
    settings = recipe.feedback
    assert settings.contrast is not None
    inputs = {
        "prompts": prompts.output_hash, "sft": sft.output_hash, "batch": str(recipe.batch_size),
        "generator": work.hash_of(settings.generator, sft),
    }  # fmt: skip
    with work.run.stage("feedback", settings, inputs, ["constitution", "feedback", "models"]) as stage:
        if stage.done:
            return stage
        chosen = [
            p for kind in KINDS for p in read_stage_prompts(prompts, "train", kind)[-(settings.prompts // len(KINDS)) :]
        ]
        sampler = work.sampler(work.folder_of(settings.generator, sft), settings.generator)
        sides = [
            answer(work, stage, f"responses.{name}.jsonl", sampler, [asked_for(p, words) for p in chosen], 1)
            for name, words in (("positive", settings.contrast.positive), ("negative", settings.contrast.negative))
        ]
        pairs = [
            Pair(prompt=prompt, chosen=better.text, rejected=worse.text, group_id=prompt.id)
            for prompt, better, worse in zip(chosen, *sides, strict=True)
            if better.text != worse.text
        ]
        if len(pairs) < 4:
            raise GateError(f"only {len(pairs)} prompts got two different answers: too few to train on")
        write_jsonl(stage.path("pairs.jsonl"), pairs)
        export_preferences(work.run.folder / "preferences.csv", pairs)
        stage.finish({"comparisons": len(chosen), "verdicts": len(pairs), "pairs": len(pairs), "judge": None,
                      "ties": len(chosen) - len(pairs), "gates": []})  # fmt: skip
    return stage


def asked_for(prompt: Prompt, words: str) -> Prompt:
    """The prompt with ``words`` before its last turn."""
    *before, last = prompt.messages
    asked = last.model_copy(update={"content": f"{words} {last.content}"})
    return Prompt(messages=(*before, asked), principle=prompt.principle, tags=prompt.tags, split=prompt.split)


# -- reward model --------------------------------------------------------------------------------------------------------


def train_reward(work: Work, sft: Stage, feedback: Stage) -> Stage:
    """A reward model on the fine-tuned trunk, from the pairs; some prompts are held out to measure it."""
    recipe = work.recipe
    settings = recipe.reward_model
    inputs = {
        "feedback": feedback.output_hash, "precision": recipe.precision,
        "sft": sft.output_hash if settings.model is None else work.hash_of(settings.model),
    }  # fmt: skip
    with work.run.stage("reward_model", settings, inputs, ["models", "training", "evaluation/statistics"]) as stage:
        if stage.done:
            return stage
        pairs = list(read_jsonl(feedback.path("pairs.jsonl"), Pair))
        train, test = split_pairs(pairs, test_fraction=settings.test_fraction, seed=recipe.seed)
        trunk = reward_trunk(work, sft)
        scorers = train_reward_model(trunk, train, settings, stage, limit=trunk.room)
        trunk.save_scorers(scorers, stage.path("model"))
        result = reward_accuracy(trunk, scorers, test, settings.tokens_per_micro_batch, trunk.room)
        labelled = recipe.feedback.labelled_pairs
        if labelled:
            known = read_pairs(Path(labelled)).pairs[: recipe.feedback.gate_pairs]
            result["labelled"] = reward_accuracy(trunk, scorers, known, settings.tokens_per_micro_batch, trunk.room)
        stage.finish({**result, "train_pairs": len(train), "trainable_share": trunk.trainable_share("reward")})
    return stage


def reward_trunk(work: Work, sft: Stage) -> Trunk:
    """The trunk that the reward model is trained on: the fine-tuned model, or one of its own."""
    settings = work.recipe.reward_model
    return work.trunk(settings.model or str(sft.path("model")), settings.lora, writes=False, trains=True)


def reward_accuracy(
    trunk: Trunk, scorers: Scorers, pairs: Sequence[Pair], tokens_per_micro_batch: int, limit: int | None = None
) -> dict[str, Any]:
    """How often the chosen response scores higher, clustered by prompt, beside the rules "shorter wins" and "longer wins";
    calibration of σ(score difference); accuracy by kind of prompt. A tied score is half right, a tied length half a win."""
    chosen, rejected = score_pairs(trunk, scorers, pairs, tokens_per_micro_batch, limit)
    differences = (chosen - rejected).tolist()
    clusters = [pair.group_id for pair in pairs]
    right = [0.5 if d == 0 else float(d > 0) for d in differences]
    accuracy = mean_with_interval(right, clusters)
    shorter = [(0.5 if a == b else float(a < b)) for a, b in ((len(p.chosen), len(p.rejected)) for p in pairs)]
    baseline = mean_with_interval(shorter, clusters)
    gain = paired_difference(shorter, right, clusters)
    calibration = expected_calibration_error(*both_sides(differences))
    kinds = [next((kind for kind in KINDS if kind in pair.prompt.tags), pair.principle or "all") for pair in pairs]
    groups = {
        kind: mean_with_interval(
            [r for r, own in zip(right, kinds, strict=True) if own == kind],
            [c for c, own in zip(clusters, kinds, strict=True) if own == kind],
        )
        for kind in sorted(set(kinds))
    }
    margins = [f"{pair.margin:.2f}" for pair in pairs]
    by_margin = {
        margin: mean_with_interval(
            [r for r, own in zip(right, margins, strict=True) if own == margin],
            [c for c, own in zip(clusters, margins, strict=True) if own == margin],
        )
        for margin in sorted(set(margins))
    }
    return {
        **accuracy, "n_clusters": len(set(clusters)), "baseline_shorter_wins": baseline["accuracy"],
        "baseline_shorter_wins_ci": baseline["ci"],
        "baseline_longer_wins": None if baseline["accuracy"] is None else 1 - baseline["accuracy"],
        "gain_over_shorter": gain.difference, "gain_over_shorter_ci": gain.ci,
        "ece": calibration.ece, "reliability": [dict(row) for row in calibration.rows], "groups": groups,
        "by_margin": by_margin if len(by_margin) > 1 else {},
    }  # fmt: skip


def mean_with_interval(values: Sequence[float], clusters: Sequence[str]) -> dict[str, Any]:
    from charter.evaluation.statistics import mean_interval

    estimate = mean_interval(values, clusters)
    return {"accuracy": estimate.value, "ci": estimate.ci, "n": estimate.n}


def both_sides(differences: Sequence[float]) -> tuple[list[float], list[float]]:
    """Predicted probability that a response of the pair wins and whether it does, from alternating sides: the side that is
    asked about must not give the answer away."""
    import math

    predicted, outcome = [], []
    for number, difference in enumerate(differences):
        sign = 1 if number % 2 == 0 else -1
        predicted.append(1 / (1 + math.exp(-max(min(sign * difference, 500), -500))))
        outcome.append(float(sign > 0))
    return predicted, outcome


# -- the policy ------------------------------------------------------------------------------------------------------------

ROLLOUT_METHODS = {"ppo": train_ppo, "rloo": train_rloo, "grpo": train_grpo, "online_dpo": train_online_dpo}
"""Methods that sample and are rewarded. What learns from pairs (`dpo`) needs neither."""


def train_policy(work: Work, prompts: Stage, sft: Stage, feedback: Stage, reward: Stage | None) -> Stage:
    """The fine-tuned model trained on by the method of the recipe: against a reward, or on the pairs themselves. Leaves
    model/, and rl_log.csv where responses were sampled."""
    recipe = work.recipe
    settings = recipe.rl
    inputs = {"prompts": prompts.output_hash, "sft": sft.output_hash, "precision": recipe.precision}
    if reward is not None:
        inputs["reward"] = reward.output_hash
    if isinstance(settings, DPOSettings):
        inputs["feedback"] = feedback.output_hash
    else:
        inputs["reward parts"] = content_id([hash_of_source(work, sft, name) for name in settings.reward])
    with work.run.stage("rl", settings, inputs, ["models", "training", "reward_sources", "feedback/judge"]) as stage:
        if stage.done:
            work.recall_gates(stage)
            return stage
        if isinstance(settings, RolloutSettings) and any(
            identity_of_source(work, sft, name) == work.scorer.identity for name in settings.reward
        ):
            work.gate(stage, "independent scorer", False, "a part of the reward would also score the report")
        shared = reward is not None and recipe.reward_model.model is None  # one trunk for policy and reward model
        if shared and (settings.lora is None) != (recipe.reward_model.lora is None):
            raise InputError("rl.lora and reward_model.lora must both be given or both left out: they share one trunk")
        trunk = work.trunk(str(sft.path("model")), settings.lora, trains=True)
        trunk.add_role("policy")
        if isinstance(settings, DPOSettings):
            train_dpo(trunk, list(read_jsonl(feedback.path("pairs.jsonl"), Pair)), settings, stage)
        else:
            rewards = build_reward(
                settings,
                reward_model=lambda: reward_model_reward(
                    trunk if shared else reward_trunk(work, sft), reward, settings.tokens_per_micro_batch
                ),
                judge=lambda name: work.sampler(work.folder_of(name, sft), name),
                device=work.device,
            )
            chosen = [p for kind in KINDS for p in read_stage_prompts(prompts, "train", kind)]
            rewards.shape = shape_of(trunk, chosen, rewards, settings, stage)
            if isinstance(settings, PPOSettings):
                trunk.add_role("value", head=True, start_from="reward" if shared else None)
            ROLLOUT_METHODS[settings.method](trunk, chosen, rewards, settings, stage)  # type: ignore[operator]
            team().on_main(lambda: export_rollouts(stage, work.run.folder / "rl_log.csv"))
        trunk.save_language_model("policy", stage.path("model"))
        metrics = stage.metrics()
        first, last = metrics[0], metrics[-1]
        result = {"method": settings.method, "gates": work.gates_of(stage), "steps": len(metrics),
                  "updates": sum(m["updates"] for m in metrics), "trainable_share": trunk.trainable_share("policy")}  # fmt: skip
        if isinstance(settings, DPOSettings):
            result |= {"loss": settings.loss, "first_loss": first["loss"], "last_loss": last["loss"]}
        else:
            result |= {"first_kl": first["kl"], "first_ratio": first["first_ratio"], "first_reward": first["reward"],
                       "last_reward": last["reward"], "warnings": list(warnings_of(metrics).values()), "completions":
                       len(metrics) * settings.prompts_per_step * settings.samples_per_prompt}  # fmt: skip
        stage.finish(result)
    return stage


def shape_of(
    trunk: Trunk, prompts: Sequence[Prompt], rewards: RewardSum, settings: RolloutSettings, stage: Stage
) -> RewardShape | None:
    """How the settings want the summed reward shaped, None where they leave it alone."""
    if settings.sigmoid_against is None:
        return RewardShape(settings) if settings.reward_scale or settings.reward_clip else None
    return RewardShape(settings, reference_rewards(trunk, prompts, rewards, settings, stage))


def reward_model_reward(trunk: Trunk, reward: Stage | None, tokens_per_micro_batch: int) -> RewardModelReward:
    """The trained reward model as role ``reward`` of its trunk."""
    assert reward is not None, "the pipeline trains a reward model where a recipe uses one"
    return RewardModelReward(trunk, trunk.load_scorers(reward.path("model")), tokens_per_micro_batch)


def hash_of_source(work: Work, sft: Stage, name: str) -> str:
    """What a part of the reward depends on besides its settings: a judge, or the weights of a classifier."""
    assert isinstance(work.recipe.rl, RolloutSettings)
    source = source_of(name, work.recipe.rl.reward[name])
    if source.startswith("judge:"):
        return work.hash_of(source.removeprefix("judge:"), sft)
    if source.startswith("classifier:"):
        folder, _ = classifier_parts(source, f"rl.reward.{name}.source")
        return file_hash(Path(folder))
    return source


def identity_of_source(work: Work, sft: Stage, name: str) -> str:
    """Whose hand a part of the reward is."""
    assert isinstance(work.recipe.rl, RolloutSettings)
    source = source_of(name, work.recipe.rl.reward[name])
    judged = source.startswith("judge:")
    return work.identity_of(source.removeprefix("judge:"), sft) if judged else hash_of_source(work, sft, name)


def export_rollouts(stage: Stage, path: Path) -> None:
    """rl_log.csv: every response of the run with its reward and KL."""
    rows = (json.loads(line) for line in stage.path("rollouts.jsonl").read_text(encoding="utf-8").splitlines())
    columns = ("step", "prompt", "response", "reward", "kl")
    write_csv(path, columns, ([row[c] for c in columns] for row in rows))


# -- evaluation ----------------------------------------------------------------------------------------------------------


def evaluate(work: Work, prompts: Stage, sft: Stage, reward: Stage | None, policy: Stage) -> Stage:
    """Every arm on the held-out prompts, the same seeds for all: rates, means and paired differences with intervals."""
    recipe, run = work.recipe, work.run
    settings = recipe.evaluation
    inputs = {
        "prompts": prompts.output_hash, "model": work.model_hash, "sft": sft.output_hash,
        "rl": policy.output_hash, "scorer": work.scorer_hash, "batch": str(recipe.batch_size),
    }  # fmt: skip
    if settings.best_of is not None:
        if reward is None:
            raise InputError("needs a reward model, and this recipe trains none", field="evaluation.best_of")
        inputs["reward"] = reward.output_hash
    with run.stage("evaluate", settings, inputs, ["models", "evaluation", "constitution/revise"]) as stage:
        if stage.done:
            return stage
        test = [p for kind in KINDS for p in read_stage_prompts(prompts, "test", kind)]
        if not test:
            raise InputError("no held-out prompts; raise prompts.test_fraction or give a file with split: test")
        folders = dict(zip(ARMS, (recipe.model, str(sft.path("model")), str(policy.path("model"))), strict=True))
        k = settings.samples_per_prompt
        asked = [p for p in test for _ in range(k)]
        measured = {}
        for arm, folder in folders.items():
            sampler = work.sampler(folder, arm)
            responses = stage.rows(f"responses.{arm}.jsonl", Response).work(
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
                label=f"evaluate: {arm}",
                quiet=run.quiet,
            )  # fmt: skip
            references = {"kl": work.trunk(recipe.model)}
            if arm == "policy":
                references["kl_from_sft"] = work.trunk(folders["sft"])
            measured[arm] = measure_arm(
                arm, asked, responses, work.scorer, work.trunk(folder), references,
                tokens_per_micro_batch=recipe.rl.tokens_per_micro_batch, temperature=settings.temperature or 1.0,
            )  # fmt: skip
        if reward is not None and settings.best_of is not None:
            measured[BEST_OF] = best_of_n(work, stage, sft, reward, test)
        stage.finish(
            {
                "metrics": [m.model_dump(mode="json") for arm in measured.values() for m in arm.metrics()],
                "contrasts": contrasts_of(measured),
                "samples": samples_of(measured),
            }
        )
    return stage


def best_of_n(work: Work, stage: Stage, sft: Stage, reward: Stage, test: Sequence[Prompt]) -> Arm:
    """The baseline that needs no RL: n answers of the SFT model, the one that the reward model scores highest.

    Its KL from the SFT model is at most log n - (n - 1)/n nats (Stiennon et al. 2020, appendix G), which is what is shown.
    """
    recipe = work.recipe
    settings = recipe.evaluation
    n, k = settings.best_of, settings.samples_per_prompt
    assert n is not None
    sampler = work.sampler(str(sft.path("model")), "sft")
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
        recipe.reward_model.model or str(sft.path("model")), device=work.device, lora=recipe.reward_model.lora,
        precision=recipe.precision, writes=False,
    )  # fmt: skip
    scorers = trunk.load_scorers(reward.path("model"))
    by_prompt = [p for p in test for _ in range(n * k)]
    rows = [clip(Tokens(encode_prompt(trunk.tokenizer, p.messages), encode_response(trunk.tokenizer, r.text)), trunk.room)
            for p, r in zip(by_prompt, responses, strict=True)]  # fmt: skip
    scores = reward_scores(trunk, scorers, rows, recipe.reward_model.tokens_per_micro_batch)
    best = scores.view(-1, n).argmax(dim=1).tolist()
    chosen = [responses[i * n + j] for i, j in enumerate(best)]
    asked = [p for p in test for _ in range(k)]
    verdicts = work.scorer.score(asked, [r.text for r in chosen])
    bound = {"kl_from_sft_bound": [math.log(n) - (n - 1) / n] * len(chosen)}
    own = work.trunk(str(sft.path("model"))).tokenizer  # of those who wrote, whoever scored
    tokens = [len(encode_response(own, one.text)) for one in chosen]
    return Arm(BEST_OF, asked, chosen, verdicts, work.scorer.name, bound, tokens)
