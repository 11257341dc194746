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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from charter.config import (
    ENDPOINT,
    AnyRLSettings,
    DPOSettings,
    LoRASettings,
    PPOSettings,
    PromptSettings,
    Recipe,
    RewardModelSettings,
    RolloutSettings,
    SFTSettings,
    TrainingSettings,
)
from charter.constitution.categorise import categorise
from charter.constitution.constitution import EMPTY, Constitution, load_constitution, load_few_shots
from charter.constitution.revise import answer_in_context, asked_for, respond, revise_batch
from charter.errors import GateError, InputError, MemoryFull
from charter.evaluation.harm import Scorer, judge_scorer, python_scorer, refusal_words
from charter.evaluation.measure import BEST_OF, Arm, contrasts_of, measure_arm, primary_of, samples_of, scored_arm
from charter.evaluation.measures import Measure, measure_of
from charter.evaluation.statistics import clustered_proportion, expected_calibration_error, paired_difference
from charter.feedback.demonstrations import read_demonstrations
from charter.feedback.exports import export_preferences, export_sft, write_csv
from charter.feedback.gate import judge_gate
from charter.feedback.judge import LogProbJudge, comparisons_of, judgment, pairs_of
from charter.feedback.judgments import follow
from charter.feedback.pairs import read_pairs, split_pairs
from charter.feedback.people import FOLDER, TO_LABEL, Votes, agreement_with_people, sample_for_people, with_people
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.classifier import classifier_parts
from charter.models.endpoint import EndpointSampler
from charter.models.load import pick_device
from charter.models.memory import is_out_of_memory, let_go
from charter.models.packing import Tokens, clip
from charter.models.sampler import LocalSampler, Sampler
from charter.models.trunk import Scorers, Trunk, load_trunk
from charter.prompt_stream import prepare_prompts as sort_and_split
from charter.prompts import KINDS, is_kind, read_prompts
from charter.records import Judgment, Message, Pair, Prompt, Response, Revision, content_id, read_jsonl, write_jsonl
from charter.reward_sources import build_reward, check_sources, source_of
from charter.run import Run, Stage, derive_seed, file_hash, track
from charter.team import team
from charter.training.dpo import train_dpo
from charter.training.grpo import train_grpo
from charter.training.online_dpo import train_online_dpo
from charter.training.ppo import train_ppo
from charter.training.reward_model import reward_scores, score_pairs, train_reward_model
from charter.training.rewards import RewardShape, RewardSum
from charter.training.rloo import train_rloo
from charter.training.rollouts import RewardModelReward, reference_rewards
from charter.training.sft import sft_tokens, train_sft
from charter.training.watch import warnings_of

S = TypeVar("S", bound=TrainingSettings)
T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """A model of the run under the name that the report gives it; ``hash`` is what its answers depend on."""

    name: str
    folder: str
    hash: str


class Work:
    """What the stages of one run share: the run folder, the recipe, the constitution, the scorer, loaded models."""

    def __init__(self, run: Run, recipe: Recipe) -> None:
        self.run, self.recipe, self.round = run, recipe, 1
        self.device = pick_device(recipe.device)
        self.divide = recipe.parallel == "fsdp" or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        if self.divide and any(getattr(one, "lora", None) for one in (recipe.sft, recipe.reward_model, recipe.rl)):
            raise InputError("fsdp divides weights that are all trained; take ddp with lora", field="parallel")
        self.constitution = load_constitution(Path(recipe.constitution)) if recipe.constitution else EMPTY
        self.gates: list[dict[str, Any]] = []
        self._trunks: dict[tuple[str, LoRASettings | None], Trunk] = {}
        self.endpoints = {
            name: EndpointSampler(name, settings, Path(settings.cache or run.folder / "endpoints" / name))
            for name, settings in recipe.endpoints.items()
        }
        self.scorer, self.measures  # noqa: B018 - a scorer that does not exist is said before anything is computed
        check_sources(recipe.rl)

    @cached_property
    def model_hash(self) -> str:
        path = Path(self.recipe.model)
        found = file_hash(path) if path.exists() else content_id(self.recipe.model)
        return content_id([found, self.recipe.quantization]) if self.recipe.quantization else found

    def trunk(self, path: str, lora: LoRASettings | None = None, *, writes: bool = True, trains: bool = False) -> Trunk:
        """The model of a folder without roles of its own; loaded once per stage. ``writes`` as in ``load_trunk``; ``trains``:
        it gets roles that learn, so that its weights may be divided."""
        key = (path, lora)
        if key not in self._trunks:
            self._trunks[key] = load_trunk(
                path,
                device=self.device,
                lora=lora,
                seed=self.recipe.seed,
                writes=writes,
                divide=trains and self.divide,
                say=self.run.say,
                **self.recipe.loading,
            )
        return self._trunks[key]

    def sampler(self, path: str, name: str) -> Sampler:
        """A model that only answers: of a folder, or behind an endpoint."""
        if path.startswith(ENDPOINT):
            return self.endpoints[path.removeprefix(ENDPOINT)]
        return LocalSampler(self.trunk(path), name)

    @property
    def base(self) -> Model:
        """The model as it came."""
        return Model("base", self.recipe.model, self.model_hash)

    def folder_of(self, name: str, start: Model | None = None) -> str:
        """Where the model is that a recipe calls ``base`` or ``sft``, the one that training starts from; other names stay what
        they are."""
        own = {"base": self.recipe.model} | ({"sft": start.folder} if start is not None else {})
        return own.get(name, name)

    def hash_of(self, name: str, start: Model | None = None) -> str:
        """What the answers of a named model depend on: its weights, or where they are asked for and how."""
        if name.startswith(ENDPOINT):
            return content_id(self.recipe.endpoints[name.removeprefix(ENDPOINT)].questions)
        if name == "sft" and start is not None:
            return start.hash
        return self.model_hash if name == "base" else file_hash(Path(name))

    def identity_of(self, name: str, start: Model | None = None) -> str:
        """Whose answers these are: an endpoint is the same judge however it is asked."""
        if name.startswith(ENDPOINT):
            return content_id(self.recipe.endpoints[name.removeprefix(ENDPOINT)].identity)
        return self.hash_of(name, start)

    def named(self, stage: str) -> str:
        """The stage of this round: `feedback`, then `feedback-2`, …"""
        return stage if self.round == 1 else f"{stage}-{self.round}"

    def release(self) -> None:
        """Forget the loaded models: the next stage loads what it needs."""
        self._trunks.clear()
        gc.collect()

    @cached_property
    def scorer(self) -> Scorer | None:
        """Who says what is harmful, refused and helpful; None where the recipe asks nobody."""
        spec = self.recipe.scorer
        if spec is None:
            return None
        if spec.startswith("python:"):
            return python_scorer(spec)
        if spec == "refusal-words":
            return refusal_words()
        if spec.startswith("judge:"):
            return judge_scorer(*self.judge_of(spec.removeprefix("judge:")))
        raise InputError(
            "write python:module:function, judge:FOLDER, judge:endpoint:NAME or refusal-words",
            field="evaluation.scorer",
        )

    @property
    def scorer_hash(self) -> str:
        """What the scorer's verdicts depend on."""
        asked = (self.recipe.scorer or "").removeprefix("judge:")
        return self.hash_of(asked) if asked.startswith(ENDPOINT) else self.scorer_identity

    @property
    def scorer_identity(self) -> str:
        """Whose hand writes the first number of the report: the scorer's, or the first measure's."""
        if self.scorer is not None:
            return self.scorer.identity
        return next((measure.identity for measure in self.measures.values()), "")

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """The recipe's own numbers; a classifier is loaded when it is first asked."""
        settings = self.recipe.evaluation.measures if self.recipe.evaluation is not None else {}
        return {name: measure_of(name, one, self.judge_of, self.device) for name, one in settings.items()}

    def judge_of(self, name: str) -> tuple[Sampler, str]:
        """A judge that no stage shares, of a folder or behind an endpoint, and whose hand it is."""
        if name.startswith(ENDPOINT):
            return self.sampler(name, name), self.identity_of(name)
        trunk = load_trunk(name, device=self.device, **self.recipe.loading)
        return LocalSampler(trunk, Path(name).name), file_hash(Path(name))

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


LEAST_TOKENS = 64  # smaller micro-batches than that save nothing: a row is not cut


def within_memory(work: Work, stage: Stage, settings: S, train: Callable[[S], T]) -> T:
    """``train(settings)``; where memory does not suffice, once more with half the tokens in a micro-batch, from the last
    checkpoint. What is learned does not depend on it. MemoryFull where not even the smallest fits."""
    while True:
        try:
            return train(settings)
        except Exception as error:
            tokens = settings.tokens_per_micro_batch // 2
            # Several processes cannot go on when one of them has lost its place.
            if not is_out_of_memory(error) or team().size > 1:
                raise
        work.release()
        let_go()
        if tokens < LEAST_TOKENS:
            raise MemoryFull(f"{stage.name}: not even a micro-batch of one row fits into memory")
        settings = settings.model_copy(update={"tokens_per_micro_batch": tokens})
        work.run.say(f"  out of memory: going on from the last checkpoint with {tokens} tokens in a micro-batch")


# -- prompts -------------------------------------------------------------------------------------------------------------


def prepare_prompts(work: Work) -> Stage:
    """Read, de-duplicate, sort by principle, split. Leaves prompts.jsonl: train and test, red_team and benign."""
    recipe, run = work.recipe, work.run
    settings = recipe.prompts
    assert settings is not None
    inputs = {
        "files": content_id([file_hash(Path(file)) for file, _ in settings.sources]),
        "topics": content_id([(p.id, p.title) for p in work.constitution.topics()]),
        "model": work.model_hash,
    }
    with run.stage("prompts", settings, inputs, ["prompts", "prompt_stream", "constitution", "models"]) as stage:
        if stage.done:
            return stage

        def most_characters() -> int | None:
            limit = context_room(work)
            return 8 * limit if limit else None

        result = team().on_main(
            lambda: sort_and_split(
                prompts_of(settings), stage.path("prompts.jsonl"), train=settings.train, test=settings.test,
                test_fraction=settings.test_fraction, seed=recipe.seed, shorter=most_characters,
                sort=lambda batch: categorise(batch, work.constitution, work.sampler(recipe.model, "base")),
                progress=lambda steps: track(steps, "prompts: sorting by principle", unit=256, quiet=run.quiet),
            )
        )  # fmt: skip
        if recipe.revise is not None and not result["counts"].get("train red_team"):
            raise InputError("no training prompt is tagged red_team; tag the file's prompts or set prompts.tags")
        stage.finish(result)
    return stage


def prompts_of(settings: PromptSettings) -> Iterator[Prompt]:
    """The prompts of a recipe's files, in order, each with the tags of its file, cut to their first words where that is asked."""
    for file, tags in settings.sources:
        for prompt in read_prompts(Path(file), tags=tags):
            yield prompt if settings.first_words is None else beginning(prompt, settings.first_words)


def beginning(prompt: Prompt, n_words: int) -> Prompt:
    """The prompt with the first words of its last turn."""
    *before, last = prompt.messages
    cut = last.model_copy(update={"content": " ".join(last.content.split()[:n_words])})
    return Prompt(messages=(*before, cut), **prompt.model_dump(include={"source", "principle", "tags", "split"}))


def context_room(work: Work) -> int | None:
    """Tokens left for a prompt beside the longest thing said about it, None where the model names no limit."""
    from charter.models.generate import context_length

    limit = context_length(work.trunk(work.recipe.model).model)
    return None if limit is None else max(limit // 8, 16)


def read_stage_prompts(stage: Stage, split: str, kind: str) -> list[Prompt]:
    return [p for p in read_jsonl(stage.path("prompts.jsonl"), Prompt) if p.split == split and is_kind(p.tags, kind)]


def prompts_to_compare(prompts: Stage, n: int) -> list[Prompt]:
    """``n`` training prompts, as many of each kind that there is, from the end of the file: revision began at its start."""
    by_kind = [found for kind in KINDS if (found := read_stage_prompts(prompts, "train", kind))]
    return [p for found in by_kind for p in found[-(n // len(by_kind)) :]]


# -- critique and revision -----------------------------------------------------------------------------------------------


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
    with run.stage("revise", settings, inputs, ["constitution", "models", "evaluation/harm"]) as stage:
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
        work.gate(
            stage, "usable revisions", bool(kept), f"{len(kept)} of {len(red_team)} prompts have a usable revision"
        )
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


def answer(
    work: Work, stage: Stage, name: str, sampler: Sampler, prompts: Sequence[Prompt], k: int = 1
) -> list[Response]:
    """K responses to each prompt, in a file of the stage, prompt by prompt."""
    settings = work.recipe.revise if stage.name == "revise" else work.recipe.feedback
    assert settings is not None
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


def usable_revisions(revise: Stage) -> list[Revision]:
    """Revisions that are fit to be learned."""
    rows = list(read_jsonl(revise.path("revisions.jsonl"), Revision))
    fit = [r for r in rows if not r.excluded]
    # Without any only behind an overridden "usable revisions" gate, which the report names.
    return fit or [r for r in rows if r.revision.text.strip()]


def sft_examples(work: Work, prompts: Stage | None, revise: Stage | None) -> list[tuple[Prompt, str]]:
    """Revisions that are fit, the last or all of each prompt, the helpful answers that ended by themselves, and the examples of
    the recipe's files."""
    settings = work.recipe.sft
    assert settings is not None
    data = [example for file in settings.data for example in read_demonstrations(Path(file))]
    if settings.max_examples is not None and len(data) > settings.max_examples:
        drawn = np.random.default_rng(derive_seed(work.recipe.seed, "sft data")).permutation(len(data))
        data = [data[i] for i in sorted(drawn[: settings.max_examples].tolist())]
    if revise is None or prompts is None:
        return data
    by_id = {p.id: p for p in read_jsonl(prompts.path("prompts.jsonl"), Prompt)}
    revisions = usable_revisions(revise)
    if settings.use_revisions == "last":
        revisions = list({r.prompt_id: r for r in sorted(revisions, key=lambda r: r.round)}.values())
    helpful_file = revise.path("helpful.jsonl")
    helpful = (
        [r for r in read_jsonl(helpful_file, Response) if r.finish_reason == "stop"] if helpful_file.exists() else []
    )
    examples = [(by_id[r.prompt_id], r.revision.text) for r in revisions]
    return examples + [(by_id[r.prompt_id], r.text) for r in helpful] + data


def train_supervised(work: Work, prompts: Stage | None, revise: Stage | None) -> Stage:
    """The base model fine-tuned on revisions and helpful answers, on examples from files, or on both. Leaves model/, a plain
    Hugging Face folder."""
    recipe, settings = work.recipe, work.recipe.sft
    assert settings is not None
    inputs = {"model": work.model_hash, "precision": recipe.arithmetic}
    if revise is not None:
        inputs["revise"] = revise.output_hash
    if settings.data:
        inputs["data"] = content_id([file_hash(Path(file)) for file in settings.data])
    with work.run.stage("sft", settings, inputs, ["models", "training", "feedback/demonstrations"]) as stage:
        if stage.done:
            return stage
        examples = sft_examples(work, prompts, revise)
        export_sft(work.run.folder / "sft.csv", examples)

        def learn(settings: SFTSettings) -> Trunk:
            trunk = work.trunk(recipe.model, settings.lora, trains=True)
            limit = settings.max_tokens or trunk.room
            rows = sft_tokens(trunk, [(prompt.messages, text) for prompt, text in examples], limit)
            train_sft(trunk, rows, settings, stage)
            return trunk

        trunk = within_memory(work, stage, settings, learn)
        trunk.save_language_model("policy", stage.path("model"))
        losses = [row["loss"] for row in stage.metrics()]
        stage.finish(
            {"examples": len(examples), "updates": len(losses), "first_loss": losses[0], "last_loss": losses[-1],
             "trainable_share": trunk.trainable_share("policy")}
        )  # fmt: skip
    return stage


# -- AI feedback ---------------------------------------------------------------------------------------------------------


def gather_feedback(work: Work, prompts: Stage | None, revisions: Stage | None, start: Model) -> Stage:
    """K responses per prompt, compared by the judge under drawn principles, by people, or by both: judgments, then pairs.

    Gates: before any label the judge must beat chance on pairs whose answer is known; people must have answered.
    """
    recipe, run = work.recipe, work.run
    settings = recipe.feedback
    assert settings is not None
    if settings.pairs:
        return take_pairs(work)
    assert prompts is not None
    if settings.revisions:
        assert revisions is not None
        return pair_revisions(work, prompts, revisions)
    if settings.contrast is not None:
        return pair_by_contrast(work, prompts, start)
    judged = settings.asks_judge
    labelled = read_pairs(Path(settings.labelled_pairs)).pairs[: settings.gate_pairs] if settings.labelled_pairs else []
    inputs = {
        "prompts": prompts.output_hash,
        "sft": start.hash,
        "judge": work.hash_of(settings.judge, start) if judged else "",
        "generator": work.hash_of(settings.generator, start),
        "principles": hash_of_principles(work.constitution, "preference", "tags", "weight"),
        "labelled": content_id([pair.model_dump(mode="json") for pair in labelled]),
        "gate": content_id(recipe.gates.min_judge_accuracy),
        "batch": str(recipe.batch_size),
    }  # fmt: skip
    code = ["constitution", "feedback", "models"]
    with run.stage(work.named("feedback"), settings, inputs, code) as stage:
        if stage.done:
            work.recall_gates(stage)
            return stage
        judge = LogProbJudge(work.sampler(work.folder_of(settings.judge, start), settings.judge)) if judged else None
        card = None if judge is None else gate_judge(work, stage, start, judge, labelled)
        chosen = prompts_to_compare(prompts, settings.prompts)
        k = settings.responses_per_prompt
        generator = work.sampler(work.folder_of(settings.generator, start), settings.generator)
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
        export_preferences(run.folder / f"{work.named('preferences')}.csv", pairs)
        stage.finish({**result, "pairs": len(pairs), "gates": work.gates_of(stage)})
    return stage


def gate_judge(work: Work, stage: Stage, start: Model, judge: LogProbJudge, labelled: Sequence[Pair]) -> Any:
    """The judge's card on pairs whose answer is known, None where there are none; the gates on what it says."""
    recipe = work.recipe
    assert recipe.feedback is not None
    if work.scorer_identity == work.identity_of(recipe.feedback.judge, start):
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
    recipe, settings = work.recipe, work.recipe.feedback
    assert settings is not None
    comparisons = comparisons_of(prompts, groups, work.constitution, recipe.seed)
    if not comparisons:
        raise InputError(
            "no principle with a preference text applies to these prompts", file=recipe.constitution or "constitution"
        )
    return stage.rows("judgments.jsonl", Judgment).work(
        comparisons,
        recipe.batch_size,
        lambda batch: (
            judgment(comparison, preference, rater_id=judge.name, abstain_below=settings.abstain_below)
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
    assert settings is not None
    share = settings.human_share if settings.raters == "mixed" else 1.0
    asked = sample_for_people(groups, share, work.recipe.seed)
    write_jsonl(stage.path(TO_LABEL), (one for group in asked for one in group))
    votes = team().on_main(lambda: Votes(folder / FOLDER, asked))
    words = f"people have compared the answers to {len(asked) - votes.open} of {len(asked)} prompts"
    if votes.open:
        words += f", {votes.open} are open: `charter label {folder}` opens the page, and the same command as now goes on after it"
    work.gate(stage, "people have answered", not votes.open, words)
    return votes


def take_pairs(work: Work) -> Stage:
    """Pairs from the recipe's files, as they are or a draw of whole groups."""
    settings = work.recipe.feedback
    assert settings is not None
    inputs = {"pairs": content_id([file_hash(Path(file)) for file in settings.pairs]), "seed": str(work.recipe.seed)}
    with work.run.stage("feedback", settings, inputs, ["feedback/pairs"]) as stage:
        if stage.done:
            return stage
        files = [read_pairs(Path(file)) for file in settings.pairs]
        pairs = [pair for file in files for pair in file.pairs]
        n_read, most = len(pairs), settings.max_pairs
        if most is not None and n_read > most:
            groups: dict[str, list[Pair]] = {}
            for pair in pairs:
                groups.setdefault(pair.group_id, []).append(pair)
            order = sorted(groups, key=lambda group: derive_seed(work.recipe.seed, "pairs", group))
            pairs = [pair for group in order for pair in groups[group]][:most]
        write_jsonl(stage.path("pairs.jsonl"), pairs)
        excluded = sum((Counter(file.excluded) for file in files), Counter[str]())
        stage.finish({"read": n_read, "excluded": dict(excluded), "pairs": len(pairs), "gates": []})
    return stage


def pair_revisions(work: Work, prompts: Stage, revisions: Stage) -> Stage:
    """The last usable revision of each prompt over the answer that it began from; nobody compares."""
    settings = work.recipe.feedback
    assert settings is not None
    inputs = {"prompts": prompts.output_hash, "revise": revisions.output_hash}
    with work.run.stage("feedback", settings, inputs, ["feedback"]) as stage:
        if stage.done:
            return stage
        by_id = {p.id: p for p in read_jsonl(prompts.path("prompts.jsonl"), Prompt)}
        first = {row.prompt_id: row.original.text for row in read_jsonl(revisions.path("revisions.jsonl"), Revision)
                 if row.round == 1}  # fmt: skip
        last = {
            row.prompt_id: row.revision.text for row in sorted(usable_revisions(revisions), key=lambda row: row.round)
        }
        pairs = [
            Pair(prompt=by_id[key], chosen=text, rejected=first[key], group_id=key)
            for key, text in last.items()
            if text != first[key]
        ]
        if len(pairs) < 4:
            raise GateError(f"only {len(pairs)} revisions differ from their answers: too few to train on")
        write_jsonl(stage.path("pairs.jsonl"), pairs)
        export_preferences(work.run.folder / "preferences.csv", pairs)
        stage.finish({"pairs": len(pairs), "gates": []})
    return stage


def pair_by_contrast(work: Work, prompts: Stage, start: Model) -> Stage:
    """Pairs without a judge (Yang et al. 2023, RLCD): each prompt is answered twice, once asked for a good answer and once for a
    bad one; the answers are stored behind the prompt as it was. Identical answers make no pair and count as ties."""
    recipe = work.recipe
    settings = recipe.feedback
    assert settings is not None
    assert settings.contrast is not None
    inputs = {
        "prompts": prompts.output_hash, "sft": start.hash, "batch": str(recipe.batch_size),
        "generator": work.hash_of(settings.generator, start),
    }  # fmt: skip
    with work.run.stage(work.named("feedback"), settings, inputs, ["constitution", "feedback", "models"]) as stage:
        if stage.done:
            return stage
        chosen = prompts_to_compare(prompts, settings.prompts)
        sampler = work.sampler(work.folder_of(settings.generator, start), settings.generator)
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
        export_preferences(work.run.folder / f"{work.named('preferences')}.csv", pairs)
        stage.finish({"comparisons": len(chosen), "verdicts": len(pairs), "pairs": len(pairs), "judge": None,
                      "ties": len(chosen) - len(pairs), "gates": []})  # fmt: skip
    return stage


# -- reward model --------------------------------------------------------------------------------------------------------


def train_reward(work: Work, start: Model, feedback: Stage) -> Stage:
    """A reward model on the fine-tuned trunk, from the pairs; some prompts are held out to measure it."""
    recipe = work.recipe
    settings = recipe.reward_model
    inputs = {
        "feedback": feedback.output_hash, "precision": recipe.arithmetic,
        "sft": start.hash if settings.model is None else work.hash_of(settings.model),
    }  # fmt: skip
    with work.run.stage(
        work.named("reward_model"), settings, inputs, ["models", "training", "evaluation/statistics"]
    ) as stage:
        if stage.done:
            return stage
        pairs = list(read_jsonl(feedback.path("pairs.jsonl"), Pair))
        train, test = split_pairs(pairs, test_fraction=settings.test_fraction, seed=recipe.seed)

        def learn(settings: RewardModelSettings) -> tuple[Trunk, Scorers]:
            trunk = reward_trunk(work, start)
            return trunk, train_reward_model(trunk, train, settings, stage, limit=settings.max_tokens or trunk.room)

        trunk, scorers = within_memory(work, stage, settings, learn)
        limit = settings.max_tokens or trunk.room
        trunk.save_scorers(scorers, stage.path("model"))
        result = reward_accuracy(trunk, scorers, test, settings.tokens_per_micro_batch, limit)
        if recipe.feedback is not None and recipe.feedback.labelled_pairs:
            known = read_pairs(Path(recipe.feedback.labelled_pairs)).pairs[: recipe.feedback.gate_pairs]
            result["labelled"] = reward_accuracy(trunk, scorers, known, settings.tokens_per_micro_batch, limit)
        stage.finish({**result, "train_pairs": len(train), "trainable_share": trunk.trainable_share("reward")})
    return stage


def reward_trunk(work: Work, start: Model) -> Trunk:
    """The trunk that the reward model is trained on: the fine-tuned model, or one of its own."""
    settings = work.recipe.reward_model
    return work.trunk(settings.model or start.folder, settings.lora, writes=False, trains=True)


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


def train_policy(
    work: Work, prompts: Stage | None, start: Model, feedback: Stage | None, reward: Stage | None
) -> Stage:
    """The model that training starts from, trained on by the method of the recipe: against a reward, or on the pairs themselves.
    Leaves model/, and rl_log.csv where responses were sampled."""
    recipe = work.recipe
    settings = recipe.rl
    assert settings is not None
    inputs = {"sft": start.hash, "precision": recipe.arithmetic}
    if reward is not None:
        inputs["reward"] = reward.output_hash
    if isinstance(settings, DPOSettings):
        assert feedback is not None
        inputs["feedback"] = feedback.output_hash
    else:
        assert prompts is not None
        inputs["prompts"] = prompts.output_hash
        inputs["reward parts"] = content_id([hash_of_source(work, start, name) for name in settings.reward])
    with work.run.stage(
        work.named("rl"), settings, inputs, ["models", "training", "reward_sources", "feedback/judge"]
    ) as stage:
        if stage.done:
            work.recall_gates(stage)
            return stage
        if isinstance(settings, RolloutSettings) and any(
            identity_of_source(work, start, name) == work.scorer_identity for name in settings.reward
        ):
            work.gate(stage, "independent scorer", False, "a part of the reward would also score the report")
        shared = reward is not None and recipe.reward_model.model is None  # one trunk for policy and reward model
        if shared and (settings.lora is None) != (recipe.reward_model.lora is None):
            raise InputError("rl.lora and reward_model.lora must both be given or both left out: they share one trunk")

        def learn(settings: AnyRLSettings) -> Trunk:
            trunk = work.trunk(start.folder, settings.lora, trains=True)
            trunk.add_role("policy")
            if isinstance(settings, DPOSettings):
                assert feedback is not None
                pairs = list(read_jsonl(feedback.path("pairs.jsonl"), Pair))
                train_dpo(trunk, pairs, settings, stage, limit=settings.max_tokens or trunk.room)
            else:
                assert prompts is not None
                rewards = build_reward(
                    settings,
                    reward_model=lambda: reward_model_reward(
                        trunk if shared else reward_trunk(work, start), reward, settings.tokens_per_micro_batch
                    ),
                    judge=lambda name: work.sampler(work.folder_of(name, start), name),
                    device=work.device,
                )
                chosen = [p for kind in KINDS for p in read_stage_prompts(prompts, "train", kind)]
                rewards.shape = shape_of(trunk, chosen, rewards, settings, stage)
                if isinstance(settings, PPOSettings):
                    trunk.add_role("value", head=True, start_from="reward" if shared else None)
                ROLLOUT_METHODS[settings.method](trunk, chosen, rewards, settings, stage)  # type: ignore[operator]
                team().on_main(lambda: export_rollouts(stage, work.run.folder / f"{work.named('rl_log')}.csv"))
            return trunk

        trunk = within_memory(work, stage, settings, learn)
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


def hash_of_source(work: Work, start: Model, name: str) -> str:
    """What a part of the reward depends on besides its settings: a judge, or the weights of a classifier."""
    assert isinstance(work.recipe.rl, RolloutSettings)
    source = source_of(name, work.recipe.rl.reward[name])
    if source.startswith("judge:"):
        return work.hash_of(source.removeprefix("judge:"), start)
    if source.startswith("classifier:"):
        folder, _ = classifier_parts(source, f"rl.reward.{name}.source")
        return file_hash(Path(folder))
    return source


def identity_of_source(work: Work, start: Model, name: str) -> str:
    """Whose hand a part of the reward is."""
    assert isinstance(work.recipe.rl, RolloutSettings)
    source = source_of(name, work.recipe.rl.reward[name])
    judged = source.startswith("judge:")
    return work.identity_of(source.removeprefix("judge:"), start) if judged else hash_of_source(work, start, name)


def export_rollouts(stage: Stage, path: Path) -> None:
    """rl_log.csv: every response of the run with its reward and KL."""
    rows = (json.loads(line) for line in stage.path("rollouts.jsonl").read_text(encoding="utf-8").splitlines())
    columns = ("step", "prompt", "response", "reward", "kl")
    write_csv(path, columns, ([row[c] for c in columns] for row in rows))


# -- evaluation ----------------------------------------------------------------------------------------------------------


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
    with run.stage("evaluate", settings, inputs, ["models", "evaluation", "constitution/revise"]) as stage:
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
