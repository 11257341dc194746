"""The models of a run: found by the names that a recipe gives them, loaded once a stage, let go between two."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from charter.endpoints.endpoint import EndpointSampler
from charter.errors import InputError, MemoryFull
from charter.models.load import pick_device
from charter.models.memory import is_out_of_memory, let_go
from charter.models.reward_trunk import load_reward_trunk
from charter.models.sampling.sampler import LocalSampler, Sampler
from charter.models.trunk import Trunk, load_trunk
from charter.recipe.settings import LoRASettings, TrainingSettings
from charter.recipe.source import Source
from charter.records import content_id
from charter.run.hashes import model_hash
from charter.run.run import Run, Stage
from charter.run.team import asked_of_launcher, launched, team
from charter.stages.rl.settings import RolloutSettings
from charter.training.zero import settings_of_launcher

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe

S = TypeVar("S", bound=TrainingSettings)
T = TypeVar("T")
LEAST_TOKENS = 64  # a row is never cut, so a smaller micro-batch saves nothing


@dataclass(frozen=True)
class Model:
    """A model of the run under the name that the report gives it; ``hash`` is what its answers depend on."""

    name: str
    folder: str
    hash: str


class Models:
    """Trunks and samplers of one run. ``start``, where a method takes it, is the model that `sft` stands for."""

    def __init__(self, run: Run, recipe: Recipe) -> None:
        self.recipe, self.say = recipe, run.say
        self.device = pick_device(recipe.device)
        self.parallel = how_parallel(recipe, self.device)
        self._trunks: dict[tuple[str, LoRASettings | None], Trunk] = {}
        self.endpoints = {
            name: EndpointSampler(name, settings, Path(settings.cache or run.folder / "endpoints" / name))
            for name, settings in recipe.endpoints.items()
        }

    @cached_property
    def base(self) -> Model:
        """The model as it came."""
        weights, quantization = model_hash(self.recipe.model), self.recipe.quantization
        return Model("base", self.recipe.model, content_id([weights, quantization]) if quantization else weights)

    def trunk(self, path: str, lora: LoRASettings | None = None, *, writes: bool = True, trains: bool = False) -> Trunk:
        """The model of a folder without roles of its own; loaded once per stage. ``writes``: it is not
        only a reward model; ``trains``: it gets roles that learn, so several processes may divide it."""
        key = (path, lora)
        if key not in self._trunks:
            self._trunks[key] = (load_trunk if writes else load_reward_trunk)(
                path, device=self.device, lora=lora, seed=self.recipe.seed, parallel=self.parallel if trains else "ddp",
                say=self.say, **self.recipe.loading,
            )  # fmt: skip
        return self._trunks[key]

    def sampler(self, model: Model) -> Sampler:
        """A model of the run that answers."""
        return LocalSampler(self.trunk(model.folder), model.name)

    def answering(self, source: Source, start: Model | None = None) -> Sampler:
        """The model that a recipe names, in a folder or behind an endpoint, sharing its trunk with the stage."""
        if source.kind == "endpoint":
            return self.endpoints[source.name]
        return LocalSampler(self.trunk(self.folder_of(source, start)), str(source))

    def judge(self, source: Source) -> Sampler:
        """A judge with a trunk of its own, which no stage shares or lets go; or behind an endpoint."""
        if source.kind == "endpoint":
            return self.endpoints[source.name]
        return LocalSampler(load_trunk(source.name, device=self.device, **self.recipe.loading), Path(source.name).name)

    def folder_of(self, source: Source, start: Model | None = None) -> str:
        """The folder, or hub name, of a model."""
        if source.kind != "run":
            return source.name
        return start.folder if source.name == "sft" and start is not None else self.recipe.model

    def hash_of(self, source: Source, start: Model | None = None) -> str:
        """What the answers of a source depend on: weights, code, or how an endpoint is asked."""
        model = source.model
        if model.kind == "endpoint":
            answers = content_id(self.recipe.endpoints[model.name].questions)
        elif model.kind == "run":
            answers = start.hash if model.name == "sft" and start is not None else self.base.hash
        else:
            answers = model.content_hash()
        return content_id([source.content_hash(), answers]) if source.kind == "rubric" else answers

    def identity_of(self, source: Source, start: Model | None = None) -> str:
        """Who answers: an endpoint is the same judge however it is asked, a classifier the same for every label."""
        model = source.model
        if model.kind == "endpoint":
            return content_id(self.recipe.endpoints[model.name].identity)
        if model.kind == "classifier":
            return model_hash(model.name)
        if model.kind in ("python", "built-in"):
            return str(model)
        answers = self.hash_of(model, start)  # of the base its quantization too, of its folder the weights alone
        return model_hash(self.recipe.model) if answers == self.base.hash else answers

    def is_independent(self, judge: Source, start: Model | None, last: str) -> bool:
        """Whether a judge gave neither the feedback nor the reward of the training that made the model named ``last``."""
        feedback, rl = self.recipe.feedback, self.recipe.rl
        teachers = [feedback.judge] if feedback is not None and feedback.asks_judge else []
        teachers += rl.sources.values() if last == "policy" and isinstance(rl, RolloutSettings) else []
        return self.identity_of(judge, start) not in {self.identity_of(source, start) for source in teachers}

    def forget(self, path: str) -> None:
        """Let go of the model of a folder."""
        for key in [key for key in self._trunks if key[0] == path]:
            self._trunks.pop(key).close()
        gc.collect()

    def release(self) -> None:
        """Forget the loaded models: the next stage loads what it needs."""
        for trunk in self._trunks.values():
            trunk.close()
        self._trunks.clear()
        gc.collect()


def how_parallel(recipe: Recipe, device: str) -> str:
    """What several processes hold of a model in training. InputError if the recipe cannot be trained that way."""
    parallel = asked_of_launcher() or recipe.parallel
    trained = (recipe.sft, recipe.reward_model, recipe.rl)
    if parallel == "fsdp" and any(getattr(settings, "lora", None) for settings in trained):
        raise InputError("fsdp divides weights that are all trained; use ddp with lora", field="parallel")
    if parallel == "deepspeed" and (launched() or asked_of_launcher()):
        settings_of_launcher()
        if not launched():
            raise InputError("was started with DeepSpeed in one process; it divides things among two or more")
        if recipe.precision == "float16":
            raise InputError("deepspeed trains in bfloat16 or float32 here", field="precision")
        if device == "cpu" and pick_device("auto") != "cpu":
            raise InputError("deepspeed trains where the GPUs are; leave device out", field="device")
    return parallel


def within_memory(stage: Stage, settings: S, train: Callable[[S], T], release: Callable[[], None] = lambda: None) -> T:
    """``train(settings)``; out of memory, once more with half the tokens in a micro-batch, from the last checkpoint; ``release``
    forgets what was loaded. What is learned does not depend on it. MemoryFull where not even the smallest fits."""
    while True:
        try:
            return train(settings)
        except Exception as error:
            tokens = settings.tokens_per_micro_batch // 2
            # Several processes cannot resume when one of them has lost its place.
            if not is_out_of_memory(error) or team().size > 1:
                raise
        release()
        let_go()
        if tokens < LEAST_TOKENS:
            raise MemoryFull(f"{stage.name}: not even a micro-batch of one row fits into memory")
        settings = settings.model_copy(update={"tokens_per_micro_batch": tokens})
        stage.run.say(f"  out of memory: resuming from the last checkpoint with {tokens} tokens in a micro-batch")
