"""What the stages of a run share: models by name, gates, memory that does not suffice."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from charter.constitution.constitution import EMPTY, Constitution, load_constitution
from charter.constitution.revise import respond
from charter.endpoints.endpoint import EndpointSampler
from charter.errors import GateError, InputError, MemoryFull
from charter.evaluation.measures import Measure, measure_of
from charter.evaluation.scorers import Scorer, judge_scorer, python_scorer, refusal_words
from charter.models.load import pick_device
from charter.models.memory import is_out_of_memory, let_go
from charter.models.sampler import LocalSampler, Sampler
from charter.models.trunk import Trunk, load_trunk
from charter.recipe.settings import ENDPOINT, LoRASettings, Recipe, TrainingSettings
from charter.records import Prompt, Response, content_id
from charter.run.hashes import model_hash
from charter.run.run import Run, Stage
from charter.run.team import asked_of_launcher, launched, team
from charter.stages.rl.sources import check_sources
from charter.training.zero import settings_of_launcher

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
        self.parallel = asked_of_launcher() or recipe.parallel
        if self.parallel == "fsdp" and any(getattr(one, "lora", None) for one in (recipe.sft, recipe.reward_model, recipe.rl)):
            raise InputError("fsdp divides weights that are all trained; take ddp with lora", field="parallel")
        if self.parallel == "deepspeed" and (launched() or asked_of_launcher()):
            settings_of_launcher()
            if not launched():
                raise InputError("was started with DeepSpeed in one process; it divides things among two or more")
            if recipe.precision == "float16":
                raise InputError("deepspeed trains in bfloat16 or float32 here", field="precision")
            if self.device == "cpu" and pick_device("auto") != "cpu":
                raise InputError("deepspeed trains where the GPUs are; leave device out", field="device")
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
        found = model_hash(self.recipe.model)
        return content_id([found, self.recipe.quantization]) if self.recipe.quantization else found

    def trunk(self, path: str, lora: LoRASettings | None = None, *, writes: bool = True, trains: bool = False) -> Trunk:
        """The model of a folder without roles of its own; loaded once per stage. ``writes`` as in ``load_trunk``; ``trains``:
        it gets roles that learn, so that they may be divided."""
        key = (path, lora)
        if key not in self._trunks:
            self._trunks[key] = load_trunk(
                path,
                device=self.device,
                lora=lora,
                seed=self.recipe.seed,
                writes=writes,
                parallel=self.parallel if trains else "ddp",
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
        return self.model_hash if name == "base" else model_hash(name)

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
        for trunk in self._trunks.values():
            trunk.close()
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
        return LocalSampler(trunk, Path(name).name), model_hash(name)

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


def within_memory(stage: Stage, settings: S, train: Callable[[S], T], release: Callable[[], None] = lambda: None) -> T:
    """``train(settings)``; where memory does not suffice, once more with half the tokens in a micro-batch, from the last
    checkpoint; ``release`` forgets what was loaded. What is learned does not depend on it. MemoryFull where not even the
    smallest fits."""
    while True:
        try:
            return train(settings)
        except Exception as error:
            tokens = settings.tokens_per_micro_batch // 2
            # Several processes cannot go on when one of them has lost its place.
            if not is_out_of_memory(error) or team().size > 1:
                raise
        release()
        let_go()
        if tokens < LEAST_TOKENS:
            raise MemoryFull(f"{stage.name}: not even a micro-batch of one row fits into memory")
        settings = settings.model_copy(update={"tokens_per_micro_batch": tokens})
        stage.run.say(f"  out of memory: going on from the last checkpoint with {tokens} tokens in a micro-batch")


def answer(work: Work, stage: Stage, name: str, sampler: Sampler, prompts: Sequence[Prompt], k: int = 1) -> list[Response]:
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


def percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.0f}%"


def signed(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:+.0f} points"
