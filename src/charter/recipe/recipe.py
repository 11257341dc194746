"""A whole recipe: the settings of every stage, checked to fit together before anything loads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from charter.endpoints.settings import ENDPOINT_NAME, EndpointSettings
from charter.metrics import Control
from charter.recipe.settings import LoRASettings, Positive, Settings, Share, StageSettings, TrainingSettings
from charter.recipe.source import File, ModelName, Source
from charter.records import MinP, TopK, TopP
from charter.stages.evaluate.settings import EvaluationSettings
from charter.stages.feedback.settings import FeedbackSettings
from charter.stages.prompts.settings import PromptSettings
from charter.stages.revise.settings import ReviseSettings
from charter.stages.reward_model.settings import RewardModelSettings
from charter.stages.rl.settings import AnyRLSettings, PairSettings, RLOOSettings, RolloutSettings
from charter.stages.sft.settings import SFTSettings


class GateSettings(Settings):
    override: bool = False
    """Continue when a gate fails. The report records it."""
    min_base_harm: Share = 0.1
    """Stop unless the interval of the base model's harm rate reaches this: otherwise training has nothing to improve."""
    max_unscored: Share = 0.2
    """Stop if the scorer cannot judge more than this share of the base model's answers: the rates would come from too few."""
    min_judge_accuracy: Share = 0.5
    """Stop unless the interval of the judge's accuracy on labelled pairs lies above this."""


class SharedTraining(Settings):
    """For every stage that trains, unless the stage says otherwise."""

    lora: LoRASettings | None = None
    """Train adapters on the frozen base instead of all weights."""
    tokens_per_micro_batch: Positive | None = None
    """Tokens, padding included, that go through the model at once; memory, not learning, depends on it."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradients are clipped to this norm."""
    checkpoint_every: Positive | None = None
    """Optimizer steps between checkpoints. By default Charter writes checkpoints by time."""
    warmup: Share | None = None
    """Share of the steps over which the learning rate rises, where a method has a schedule."""


class SharedSampling(Settings):
    """For every stage that samples, unless the stage says otherwise."""

    temperature: Annotated[float, Field(gt=0)] | None = None
    """Temperature of critiques, responses, rollouts and answers."""
    max_new_tokens: Positive | None = None
    """Longest text, in tokens."""
    top_p: TopP | None = None
    """Draw among the fewest likeliest tokens that make up this probability. Rollouts are never filtered."""
    top_k: TopK | None = None
    """Draw among this many likeliest tokens. Rollouts are never filtered."""
    min_p: MinP | None = None
    """Draw among the tokens with at least this fraction of the likeliest token's probability. Rollouts are never filtered."""


class Recipe(Settings):
    """A whole run."""

    title: str = "Charter run"
    """Title of the report."""
    model: ModelName
    """Folder or hub name of the base model; `package:NAME/PATH` is a folder inside an installed package."""
    constitution: File | None = None
    """YAML file of principles; needed by critique and revision and by a judge that compares."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    """Seed of every draw of the run."""
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Precision of the matrix products in training and scoring; weights and log-probabilities stay in float32."""
    quantization: Literal["nf4"] | None = None
    """Hold the frozen weights of every model in 4 bits (QLoRA). Every stage that trains then needs `lora`; the extra is
    `[qlora]`."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    """Implementation of attention; `auto` is torch's own, with rows packed in one line where the model allows it."""
    gradient_checkpointing: bool = False
    """Keep only the input of each layer and compute the rest again for the gradient: less memory, about a third more time."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto takes an NVIDIA or AMD GPU if the machine has one; mps is the GPU of a Mac."""
    batch_size: Positive = 128
    """Number of responses generated at once."""
    parallel: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    """How several processes hold a model in training: each process holds the whole model, a part of it (FSDP2, full weights
    only), or the whole model and a part of the moments (DeepSpeed's ZeRO; the extra is `[deepspeed]`)."""
    endpoints: dict[str, EndpointSettings] = {}
    """Models behind servers, by names of your own; use `endpoint:NAME` wherever a model only answers."""
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = []
    """Trackers that also get the metrics of every step; Charter always writes metrics.jsonl."""
    training: SharedTraining | None = None
    sampling: SharedSampling | None = None
    prompts: PromptSettings | None = None
    gates: GateSettings = GateSettings()
    revise: ReviseSettings | None = ReviseSettings()
    sft: SFTSettings | None = SFTSettings()
    feedback: FeedbackSettings | None = FeedbackSettings()
    reward_model: RewardModelSettings = RewardModelSettings()
    rl: Annotated[AnyRLSettings | None, Field(discriminator="method")] = RLOOSettings()
    rounds: Positive = 1
    """Rounds of feedback and training; each round starts from the model of the round before (Yuan et al. 2024)."""
    controls: list[Control] = []
    """Arms that show what the training alone does. Each trains as `rl` does, from the same model: on the judgments with chosen
    and rejected exchanged; against random numbers; against the length of a response; on judgments under other topics."""
    evaluation: EvaluationSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def name_the_default_method(cls, values: Any) -> Any:
        """``rl`` without a method is RLOO, so that its settings can be changed without naming it."""
        if isinstance(values, dict) and isinstance(values.get("rl"), dict) and "method" not in values["rl"]:
            return {**values, "rl": {"method": "rloo", **values["rl"]}}
        return values

    @model_validator(mode="after")
    def share_settings(self) -> Recipe:
        """What ``training`` and ``sampling`` say holds for each stage that reads it and does not say otherwise."""
        shared = {key: value for block in (self.training, self.sampling) if block is not None
                  for key in block.model_fields_set if (value := getattr(block, key)) is not None}  # fmt: skip
        for stage in ("revise", "sft", "feedback", "reward_model", "rl", "evaluation") if shared else ():
            settings = getattr(self, stage)
            if settings is None:
                continue
            taken = {key: value for key, value in shared.items()
                     if key in type(settings).model_fields and key not in settings.model_fields_set}  # fmt: skip
            changed = settings.model_copy(update=taken)
            # A setting that the user did not write for this stage is not a mistake if the stage does not read it.
            object.__setattr__(changed, "__pydantic_fields_set__", set(settings.model_fields_set))
            object.__setattr__(self, stage, changed)
        return self

    @property
    def scorer(self) -> Source | None:
        """Who says what is harmful, None if nobody is asked."""
        return self.evaluation.scorer if self.evaluation is not None else None

    @property
    def stages(self) -> dict[str, StageSettings]:
        """The settings of the stages that the recipe has, by key, in running order."""
        parts = {"revise": self.revise, "sft": self.sft, "feedback": self.feedback, "rl": self.rl, "evaluation": self.evaluation}
        return {key: settings for key, settings in parts.items() if settings is not None}

    @model_validator(mode="after")
    def check_that_stages_fit_together(self) -> Recipe:
        """Each stage gets what it reads; a stage that is left out with `null` leaves no setting that nothing reads."""
        readers = [key for key, settings in self.stages.items() if settings.reads_prompts]
        if self.prompts is None and readers:
            raise ValueError(f"{readers[0]} needs prompts; give prompts.files, or leave it out with {readers[0]}: null")
        if not self.stages:
            raise ValueError("every stage is left out; nothing to run")
        if self.prompts is not None and not readers:
            raise ValueError("no stage reads prompts; leave them out")
        readers = [key for key, settings in self.stages.items() if settings.reads_principles]
        if self.constitution is None and readers:
            raise ValueError(f"{readers[0]} needs principles; give constitution, or leave it out with {readers[0]}: null")
        for settings in self.stages.values():
            settings.check_in(self)
        learns_from_pairs = isinstance(self.rl, PairSettings) and not getattr(self.rl, "ratings", [])
        if self.feedback is None and (learns_from_pairs or self.trains_reward_model):
            raise ValueError("rl learns from feedback, and feedback is null")
        if self.rounds > 1 and (self.rl is None or self.feedback is None or not self.feedback.samples):
            raise ValueError("rounds repeats feedback and rl; both must be there, and the feedback sampled anew")
        return self

    @model_validator(mode="after")
    def check_gold(self) -> Recipe:
        """A second reward model needs feedback of its own; weights that are divided are not kept twice."""
        if self.halves_the_feedback and self.feedback is None:
            raise ValueError("rl.gold.source: a second reward model learns from half of the feedback, and feedback is null")
        if self.rl is not None and self.rl.keep == "best" and self.parallel == "fsdp":
            raise ValueError("rl.keep: best keeps a second copy of whole weights, and parallel: fsdp divides them; use ddp")
        return self

    @model_validator(mode="after")
    def check_controls(self) -> Recipe:
        """A control repeats the last training with one thing changed, so that thing must be there."""
        if not self.controls:
            return self
        if self.rl is None or self.evaluation is None:
            raise ValueError("controls repeat rl and are shown by the evaluation, and one of them is null; leave controls out")
        if self.rounds > 1:
            raise ValueError("controls repeat one training, and rounds is more than 1; leave one of the two out")
        if twice := [name for name in self.controls if self.controls.count(name) > 1]:
            raise ValueError(f"controls names {twice[0]!r} twice; name it once")
        judged = self.feedback is not None and self.feedback.samples and self.feedback.asks_judge
        learns_from_pairs = isinstance(self.rl, PairSettings) or self.trains_reward_model
        if "shuffled" in self.controls and not (judged and learns_from_pairs):
            raise ValueError(
                "the control shuffled judges comparisons anew, and rl learns from none that a judge made; leave it out"
            )
        return self

    @property
    def trains_reward_model(self) -> bool:
        """Whether a reward model is learned from the feedback: rl is rewarded by it, or nothing else is to be made of it."""
        if self.feedback is None:
            return False
        if not isinstance(self.rl, RolloutSettings):
            return self.rl is None
        return any(str(source) == "reward_model" for source in self.rl.sources.values())

    @property
    def halves_the_feedback(self) -> bool:
        """Whether gold is a reward model from half of the feedback, which nothing else learns from."""
        return self.rl is not None and self.rl.gold is not None and str(self.rl.gold.source) == "reward_model"

    def samplers(self) -> dict[str, Source]:
        """The models that only answer, by the dotted key that names them."""
        return {f"{stage}.{key}": source for stage, settings in self.stages.items() for key, source in settings.asks.items()}

    @property
    def loading(self) -> dict[str, Any]:
        """How every model of the run is held and computed, as ``load_trunk`` takes it."""
        return {
            "precision": self.precision, "quantization": self.quantization, "attention": self.attention,
            "gradient_checkpointing": self.gradient_checkpointing,
        }  # fmt: skip

    @property
    def arithmetic(self) -> str:
        """The part of it on which results depend, but for the last bits."""
        return " ".join(filter(None, (self.precision, self.quantization)))

    @model_validator(mode="after")
    def check_quantization(self) -> Recipe:
        """Weights of 4 bits cannot move: what trains on them are adapters."""
        if self.quantization is None:
            return self
        for name, read in (("sft", True), ("reward_model", self.trains_reward_model), ("rl", True)):
            settings = getattr(self, name)
            if read and isinstance(settings, TrainingSettings) and settings.lora is None:
                raise ValueError(f"quantization: {self.quantization} freezes the weights, so set {name}.lora too")
        return self

    @model_validator(mode="after")
    def check_endpoints(self) -> Recipe:
        """An endpoint that is named exists, and one that exists is named."""
        used = {key: source.name for key, source in self.samplers().items() if source.kind == "endpoint"}
        for key, name in used.items():
            if name not in self.endpoints:
                known = f"the endpoints are {', '.join(self.endpoints)}" if self.endpoints else "describe it in endpoints"
                raise ValueError(f"{key} names the unknown endpoint {name!r}; {known}")
        for name in self.endpoints:
            if not ENDPOINT_NAME.fullmatch(name):
                raise ValueError(f"endpoints: invalid name {name!r}; use letters, digits, - and _")
            if name not in used.values():
                raise ValueError(f"endpoints.{name} is not used; name it with endpoint:{name}, or leave it out")
        return self
