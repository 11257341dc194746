"""A whole recipe: the settings of every stage, checked to fit together before anything loads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from charter.recipe.settings import LoRASettings, NonNegative, Positive, Rate, Settings, Share, StageSettings, TrainingSettings
from charter.recipe.source import Answerer, File, MeasureSource, ModelName, NewFolder, Responder, RewardSource, ScorerSource, Source

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


class GateSettings(Settings):
    override: bool = False
    """Go on where a gate says no. The report records it."""
    min_base_harm: Share = 0.1
    """Stop unless the interval of the base model's harm rate reaches this: otherwise there is no room to improve."""
    max_unscored: Share = 0.2
    """Stop where the scorer cannot say of more than this share of the base model's answers: its rates are then of a few."""
    min_judge_accuracy: Share = 0.5
    """Stop unless the interval of the judge's accuracy on labelled pairs lies above this."""


class Recipe(Settings):
    """A whole run."""

    title: str = "Charter run"
    """Stands at the head of the report."""
    model: str
    """Folder or hub name of the base model; `package:NAME/PATH` is a folder inside an installed package."""
    constitution: str | None = None
    """YAML file of principles; needed by critique and revision and by a judge that compares."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    """Every draw of the run comes from it."""
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the matrix products in training and scoring; weights and log-probabilities stay in float32."""
    quantization: Literal["nf4"] | None = None
    """Hold the frozen weights of every model in 4 bits (QLoRA). What is trained then needs `lora`; the extra is `[qlora]`."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    """Which attention the models compute with; `auto` is torch's own with rows packed in one line where the model allows it."""
    gradient_checkpointing: bool = False
    """Keep the input of each layer alone and compute it again for its gradient: less memory, about a third more time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    batch_size: Positive = 128
    """Responses generated at once."""
    parallel: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    """What several processes hold of a model in training: each all of it, each a part (FSDP2, full weights only), or each a part
    of the moments (DeepSpeed's ZeRO; the extra is `[deepspeed]`)."""
    endpoints: dict[str, EndpointSettings] = {}
    """Models behind servers, by names of your own; `endpoint:NAME` stands for one wherever a model only answers."""
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = []
    """Send the metrics of every step there too; metrics.jsonl is always written."""
    prompts: PromptSettings | None = None
    gates: GateSettings = GateSettings()
    revise: ReviseSettings | None = ReviseSettings()
    sft: SFTSettings | None = SFTSettings()
    feedback: FeedbackSettings | None = FeedbackSettings()
    reward_model: RewardModelSettings = RewardModelSettings()
    rl: Annotated[AnyRLSettings | None, Field(discriminator="method")] = RLOOSettings()
    rounds: Positive = 1
    """Feedback and training, so many times: each round starts from the model of the one before it (Yuan et al. 2024)."""
    evaluation: EvaluationSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def name_the_default_method(cls, values: Any) -> Any:
        """``rl`` without a method is RLOO, so that its settings can be changed without naming it."""
        if isinstance(values, dict) and isinstance(values.get("rl"), dict) and "method" not in values["rl"]:
            return {**values, "rl": {"method": "rloo", **values["rl"]}}
        return values

    @property
    def scorer(self) -> str | None:
        """Who says what is harmful, None where nobody is asked."""
        return self.evaluation.scorer if self.evaluation is not None else None

    @model_validator(mode="after")
    def check_that_stages_fit_together(self) -> Recipe:
        """Each stage gets what it reads; a stage that is left out with `null` leaves no setting that nothing reads."""
        revise, sft, feedback, rl = self.revise, self.sft, self.feedback, self.rl
        rollouts = isinstance(rl, RolloutSettings)
        needs_prompts = {
            "revise": revise is not None, "feedback": feedback is not None and feedback.samples, "rl": rollouts,
            "evaluation": self.evaluation is not None,
        }  # fmt: skip
        if self.prompts is None and (asking := [name for name, needs in needs_prompts.items() if needs]):
            raise ValueError(f"{asking[0]} needs prompts; give prompts.files, or leave it out with {asking[0]}: null")
        if not any((revise, sft, feedback, rl, self.evaluation)):
            raise ValueError("every stage is left out; there is nothing to run")
        if self.prompts is not None and not any(needs_prompts.values()):
            raise ValueError("no stage reads prompts; leave them out")
        needs_principles = {
            "revise": revise is not None and revise.context is None,
            "feedback": feedback is not None and feedback.asks_judge,
        }  # fmt: skip
        if self.constitution is None and (asking := [name for name, needs in needs_principles.items() if needs]):
            raise ValueError(f"{asking[0]} needs principles; give constitution, or leave it out with {asking[0]}: null")
        if revise is not None and revise.context is not None:
            unread = {"rounds", "critic", "few_shots", "revision_temperature"} & revise.model_fields_set
            if unread:
                raise ValueError(f"revise.context asks for no critique, so revise.{min(unread)} would not be read; leave it out")
        if revise is not None and self.scorer is None:
            raise ValueError("revise measures whether revisions are safer; name evaluation.scorer")
        if sft is not None and revise is None:
            if not sft.data:
                raise ValueError("sft has nothing to learn: give sft.data, or leave it out with sft: null")
            if unread := {"helpful_fraction", "use_revisions"} & sft.model_fields_set:
                raise ValueError(f"sft.{min(unread)} is about revisions, and revise is null; leave it out")
        if sft is not None and sft.max_examples is not None and not sft.data:
            raise ValueError("sft.max_examples is about sft.data; leave it out")
        if feedback is None and (isinstance(rl, DPOSettings) or self.trains_reward_model):
            raise ValueError("rl learns from feedback, and feedback is null")
        if feedback is not None and feedback.revisions and revise is None:
            raise ValueError("feedback.revisions makes pairs of the revise stage, and revise is null")
        if self.rounds > 1 and (rl is None or feedback is None or not feedback.samples):
            raise ValueError("rounds repeats feedback and rl; both must be there, and the feedback sampled anew")
        if self.rounds > 1 and feedback is not None and feedback.raters != "judge":
            raise ValueError("rounds asks the judge anew each time; people are asked in a run of one round")
        return self

    @property
    def trains_reward_model(self) -> bool:
        """Whether a reward model is learned from the feedback: rl is rewarded by it, or nothing else is to be made of it."""
        if self.feedback is None:
            return False
        if not isinstance(self.rl, RolloutSettings):
            return self.rl is None
        return any((part.source or name) == "reward_model" for name, part in self.rl.reward.items())

    def samplers(self) -> dict[str, str]:
        """Where a recipe names a model that only answers: dotted key to what it names."""
        named = {}
        if self.revise is not None:
            named["revise.generator"] = self.revise.generator
            if self.revise.context is None:
                named["revise.critic"] = self.revise.critic
        if self.feedback is not None and self.feedback.samples:
            named["feedback.generator"] = self.feedback.generator
            if self.feedback.asks_judge:
                named["feedback.judge"] = self.feedback.judge
        if isinstance(self.rl, RolloutSettings):
            sources = {f"rl.reward.{name}.source": part.source or name for name, part in self.rl.reward.items()}
            named |= {key: source.removeprefix("judge:") for key, source in sources.items() if source[:6] == "judge:"}
        if self.scorer is not None and self.scorer.startswith("judge:"):
            named["evaluation.scorer"] = self.scorer.removeprefix("judge:")
        for name, measure in (self.evaluation.measures if self.evaluation is not None else {}).items():
            if measure.source.startswith("judge:"):
                named[f"evaluation.measures.{name}.source"] = measure.source.removeprefix("judge:")
        return named

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
        used = {key: name.removeprefix(ENDPOINT) for key, name in self.samplers().items() if name.startswith(ENDPOINT)}
        for key, name in used.items():
            if name not in self.endpoints:
                known = f"the endpoints are {', '.join(self.endpoints)}" if self.endpoints else "describe it in endpoints"
                raise ValueError(f"{key} names the endpoint {name!r}, which is not there; {known}")
        for name in self.endpoints:
            if not ENDPOINT_NAME.fullmatch(name):
                raise ValueError(f"endpoints: {name!r} is no name; use letters, digits, - and _")
            if name not in used.values():
                raise ValueError(f"endpoints.{name} is used by nothing; name it with endpoint:{name}, or leave it out")
        return self
