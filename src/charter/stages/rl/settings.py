"""Settings of the last training: one class for each method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from charter.recipe.settings import EpochSettings, NonNegative, Positive, Rate, Settings, Share, TrainingSettings
from charter.recipe.source import REWARD, File, GoldSource, ModelName, RewardSource, Source
from charter.records import Filters

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


BUILT_IN = {word: Source("built-in", word) for word in REWARD.words}


class RewardPart(Settings):
    source: RewardSource | None = None
    """`reward_model`, `length` (tokens), `random` (a fixed random number of the text), `judge:base|sft|FOLDER|endpoint:NAME`,
    `rubric:FILE` or `rubric:FILE:JUDGE`, `classifier:FOLDER:LABEL` or `python:module:function`; unless given, the name of the
    part."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Weight of this part in the sum."""


class CostSettings(Settings):
    part: str
    """Name of the part of the reward that is a cost. A multiplier holds it to the budget, and its weight is unused."""
    budget: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Largest allowed mean cost of a response."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of the multiplier, in log space."""
    initial: Annotated[float, Field(gt=0)] = 1.0
    """The multiplier at the start."""


class GoldSettings(Settings):
    source: GoldSource
    """`python:module:function` (a scorer or a number), `judge:FOLDER`, `judge:endpoint:NAME`, `rubric:FILE:JUDGE`,
    `classifier:FOLDER:LABEL`, or `reward_model`: a second reward model from half of the feedback, which the first reward model
    then does not see."""
    every: Positive = 10
    """Steps between two points of the curve."""
    prompts: Positive = 64
    """Number of held-out prompts, each answered once. The evaluation leaves them out."""
    max_new_tokens: Positive | None = None
    """Longest answer in tokens, for a method that does not sample; by default 64."""


class StopSettings(Settings):
    past_peak: bool = False
    """End where gold lies below its peak by more than its interval."""
    gold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """End where gold reaches this value."""
    kl: Annotated[float, Field(gt=0)] | None = None
    """End where the KL of a response exceeds this many nats."""
    reward: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """End where the mean reward of a step reaches this value."""


class PolicySettings(TrainingSettings):
    """What every method that trains a policy shares."""

    gold: GoldSettings | None = None
    """Every few steps another scorer measures what the training should improve; the report then shows whether the policy
    learns the task or only the reward."""
    stop: StopSettings | None = None
    """Rules that end the training before its last step."""
    keep: Literal["last", "best"] = "last"
    """Which model to keep: the last model, or the model at the peak of gold."""
    from_policy: ModelName | None = None
    """Folder of an earlier policy, `RUN/rl/model`; the policy starts with its weights, and the reference stays the same."""

    def check_in(self, recipe: Recipe) -> None:
        if self.from_policy is not None and recipe.rounds > 1:
            raise ValueError("rl.from_policy starts one training; a round starts from the one before it, so leave rounds out")

    @model_validator(mode="after")
    def check_that_gold_is_asked(self) -> PolicySettings:
        """A rule about gold needs a gold."""
        rules = self.stop is not None and (self.stop.past_peak or self.stop.gold is not None)
        if self.gold is None and (rules or self.keep == "best"):
            raise ValueError(f"{'stop' if rules else 'keep: best'} needs gold; name who is asked with gold.source")
        return self

    @property
    def gold_asks(self) -> dict[str, Source]:
        """The judge that gold asks, by the key that names it."""
        source = self.gold.source if self.gold is not None else None
        return {"gold.source": source.model} if source is not None and source.asks_model else {}


class VLLMSettings(Settings):
    """vLLM inside the process, for rollouts."""

    kv_cache_gb: Annotated[float, Field(gt=0)] = 4.0
    """GB of memory for the keys and values of the responses under way, besides a second copy of the policy's weights."""
    max_rows: Positive = 256
    """Responses under way at once."""
    eager: bool = False
    """Run without CUDA graphs: slower, but starts at once. On a CPU vLLM always runs without them."""
    importance_cap: Annotated[float, Field(ge=1)] = 2.0
    """Largest weight π_trainer / π_vllm of a token: the two programs compute the same model with different kernels."""


class RolloutSettings(PolicySettings):
    """What every method that learns from sampled responses shares."""

    steps: Positive = 60
    """Rounds of sample, score, credit, learn, record."""
    prompts_per_step: Positive = 32
    """Number of prompts in one rollout."""
    samples_per_prompt: Positive = 4
    """Number of responses to each prompt."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate of the policy; constant."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the rollouts; all log-probabilities are taken at the same temperature."""
    max_new_tokens: Positive = 64
    """Longest response, in tokens."""
    missing_eos_penalty: NonNegative = 2.0
    """Subtracted from the score of a response that was cut off."""
    reward: Annotated[dict[str, RewardPart], Field(min_length=1)] = {"reward_model": RewardPart()}
    """Named parts of the reward, summed by weight; each has its own curve."""
    cost: CostSettings | None = None
    """Hold one part to a budget (Safe RLHF) in place of a fixed weight."""
    sigmoid_against: Positive | None = None
    """Score a response by sigmoid(r - r_ref); r_ref is the mean reward of this many answers of the reference to the same
    prompt."""
    reward_scale: bool = False
    """Divide scores by their running standard deviation, so that kl_coef means the same for every reward."""
    reward_clip: Annotated[float, Field(gt=0)] | None = None
    """Cut scores to plus or minus this, after scaling."""
    vllm: VLLMSettings | None = None
    """Sample with vLLM inside this process, which gets the policy's weights before every rollout; `{}` for its defaults."""

    @model_validator(mode="before")
    @classmethod
    def refuse_filters(cls, values: Any) -> Any:
        """Filters have a reason to be refused by name."""
        if isinstance(values, dict) and (named := [name for name in Filters.model_fields if name in values]):
            raise ValueError(
                f"rollouts are never filtered, so leave out {named[0]}: they are learned from by the log-probabilities of the "
                "distribution that they came from; filter the answers of other stages with sampling"
            )
        return values

    @property
    def reads_prompts(self) -> bool:
        return True

    def check_in(self, recipe: Recipe) -> None:
        super().check_in(recipe)
        shares_trunk = recipe.trains_reward_model and recipe.reward_model.model is None
        if shares_trunk and recipe.quantization is None and (self.lora is None) != (recipe.reward_model.lora is None):
            raise ValueError("rl.lora and reward_model.lora must both be given or both left out: they share one trunk")

    @property
    def sources(self) -> dict[str, Source]:
        """Where each part of the reward comes from, by its name."""
        return {name: part.source or BUILT_IN[name] for name, part in self.reward.items()}

    @property
    def asks(self) -> dict[str, Source]:
        judges = {f"reward.{name}.source": source.model for name, source in self.sources.items() if source.asks_model}
        return judges | self.gold_asks

    @model_validator(mode="after")
    def check_the_reward(self) -> RolloutSettings:
        """A part without a source is named after a built-in one; a cost is one of the parts."""
        for name, part in self.reward.items():
            if part.source is None and name not in BUILT_IN:
                raise ValueError(f"reward.{name}: the source is missing; add source: with {REWARD.choices}")
        if self.gold is not None and self.gold.max_new_tokens is not None:
            raise ValueError("gold.max_new_tokens is that of the rollouts here; leave it out")
        if (
            self.gold is not None
            and str(self.gold.source) in map(str, self.sources.values())
            and self.gold.source.kind != "built-in"
        ):
            raise ValueError(
                f"gold.source {str(self.gold.source)!r} is a part of the reward, so it shows nothing new; name another"
            )
        if self.cost is not None and self.cost.part not in self.reward:
            raise ValueError(f"cost.part: unknown part {self.cost.part!r}; name one of {', '.join(self.reward)}")
        if self.cost is not None and self.sigmoid_against is not None:
            raise ValueError("sigmoid_against: cost changes the reward as it goes, and r_ref is read once; leave one of them out")
        return self


MOST_KL_ERROR = 0.2
"""Largest relative distance from ``kl_target`` that a step moves ``kl_coef`` by."""


class RLSettings(RolloutSettings):
    """What PPO, RLOO and GRPO share: a reward that is weighed against KL."""

    kl_coef: NonNegative = 0.05
    """Price of moving away from the reference, in reward units per nat."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """Steer the KL of a response to this many nats by changing kl_coef; without it kl_coef stays."""
    kl_horizon: Annotated[float, Field(gt=0)] = 10_000.0
    """Responses over which the controller acts."""

    @model_validator(mode="after")
    def check_minibatches(self) -> RLSettings:
        """An update without responses would move the weights by what is left in the moments."""
        if self.kl_target is None:
            self.refuse_unread({"kl_horizon"}, "kl_target is not set")
        n, rows = getattr(self, "minibatches", 1), self.prompts_per_step * self.samples_per_prompt
        if n > rows:
            raise ValueError(f"minibatches is {n}, and a step has {rows} responses; an update needs one of them at least")
        if self.kl_target is not None and self.kl_horizon <= MOST_KL_ERROR * rows:
            raise ValueError(
                f"kl_horizon is {self.kl_horizon:g}, and a step of {rows} responses could make kl_coef negative; use more than "
                f"{MOST_KL_ERROR * rows:g}"
            )
        return self


class PPOSettings(RLSettings):
    method: Literal["ppo"] = "ppo"
    """The algorithm."""
    epochs: Positive = 2
    """Passes over each batch of rollouts."""
    minibatches: Positive = 2
    """Optimizer steps per pass."""
    clip_coef: Annotated[float, Field(gt=0)] = 0.2
    """ε of the ratio against the policy that sampled."""
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    """How far a value may move from what it was at the rollout before its loss is clipped."""
    value_coef: NonNegative = 0.5
    """c1, the weight of the value loss."""
    entropy_coef: NonNegative = 0.0
    """c2, the weight of the entropy bonus."""
    value: Literal["own", "head"] = "own"
    """Estimator of the values: `own`, a separate critic, or `head`, two layers on the policy's states in the policy's pass."""
    value_gradient: Annotated[float, Field(ge=0, le=1)] = 0.1
    """With `value: head`: weight of the value loss in the layers that it shares with the policy; 0 keeps its gradient out of
    them."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Discount; 1 for text."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """λ of generalised advantage estimation."""
    value_learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Learning rate of the critic, or of the value head; constant."""
    whiten_advantages: Literal["unbiased", "biased", "none"] = "unbiased"
    """Advantages of a batch on mean 0 and variance 1 over its response tokens: divided by n - 1, by n, or left alone."""
    stop_kl: Annotated[float, Field(gt=0)] | None = None
    """Skip a batch's remaining updates once an update has moved the policy this far from the rollout: mean ½(log ρ)², nats a
    token."""

    @model_validator(mode="after")
    def check_who_reads_the_gradient(self) -> PPOSettings:
        """A critic of its own shares no layers."""
        if self.value == "own" and "value_gradient" in self.model_fields_set:
            raise ValueError("value_gradient is read with value: head alone; leave it out")
        return self


class RLOOSettings(RLSettings):
    method: Literal["rloo"] = "rloo"
    """The algorithm."""
    samples_per_prompt: Annotated[int, Field(ge=2, strict=True)] = 4
    """K: each response is measured against the mean of its K - 1 siblings."""


VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {"average": "response", "scale_by_std": True, "clip_coef_high": None},
    "dr_grpo": {"average": "constant", "scale_by_std": False, "clip_coef_high": None},
    "dapo": {"average": "token", "scale_by_std": True, "clip_coef_high": 0.28},
}
"""The published variants of GRPO: Shao et al. 2024; Liu et al. 2025; Yu et al. 2025."""


class GRPOSettings(RLSettings):
    method: Literal["grpo"] = "grpo"
    """The algorithm."""
    samples_per_prompt: Annotated[int, Field(ge=2, strict=True)] = 8
    """K: the size of the group that a response is measured against."""
    variant: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    """The published variant: sets `average`, `scale_by_std` and `clip_coef_high`, unless the recipe sets one of them itself."""
    epochs: Positive = 1
    """Passes over each batch of rollouts."""
    minibatches: Positive = 1
    """Optimizer steps per pass."""
    clip_coef: Annotated[float, Field(gt=0)] = 0.2
    """ε of the ratio against the policy that sampled."""
    clip_coef_high: Annotated[float, Field(gt=0)] | None = None
    """A separate upper ε (DAPO)."""
    average: Literal["response", "token", "constant"] = "response"
    """Weight of a token: GRPO's 1/length, one over all tokens (DAPO), or one over max_new_tokens (Dr. GRPO)."""
    scale_by_std: bool = True
    """Divide advantages by the group's standard deviation; Dr. GRPO does not."""
    stop_kl: Annotated[float, Field(gt=0)] | None = None
    """Skip a batch's remaining updates once an update has moved the policy this far from the rollout: mean ½(log ρ)², nats a
    token."""
    kl_estimator: Literal["weighted_k3", "k2", "forward_kl"] = "weighted_k3"
    """The KL term of the loss; forward_kl is the k3 of the paper, whose gradient is that of KL(π_ref ‖ π)."""

    @model_validator(mode="after")
    def fill_in_the_variant(self) -> GRPOSettings:
        """The parts that the recipe does not set are those of the variant."""
        for name, value in VARIANTS[self.variant].items():
            if name not in self.model_fields_set:
                object.__setattr__(self, name, value)
        return self


class PairSettings(PolicySettings, EpochSettings):
    """What every method shares that learns from the pairs themselves and samples nothing."""

    epochs: Positive = 1
    """Passes over the pairs."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate; it falls to zero by a half cosine after the warm-up."""
    pairs_per_step: Positive = 32
    """Number of pairs in one optimizer step."""

    @property
    def reads_prompts(self) -> bool:
        return self.gold is not None

    @property
    def asks(self) -> dict[str, Source]:
        return self.gold_asks

    @model_validator(mode="after")
    def check_that_rules_are_read(self) -> PairSettings:
        """Without sampled responses there is no reward, and a KL only of the answers of gold."""
        method = getattr(self, "method", "this method")
        if self.stop is not None and self.stop.reward is not None:
            raise ValueError(f"stop.reward: {method} samples no responses that a reward could score; leave it out")
        if self.stop is not None and self.stop.kl is not None and self.gold is None:
            raise ValueError(f"stop.kl: {method} knows its KL only from the answers of gold; name who is asked with gold.source")
        return self


class DPOSettings(PairSettings):
    method: Literal["dpo"] = "dpo"
    """The algorithm: preferences straight into the policy, no reward model and no sampling."""
    loss: Literal["dpo", "robust", "ipo", "ipo_per_token", "hinge", "simpo", "kto"] = "dpo"
    """Which loss of the DPO family."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Price of moving away from the reference, as kl_coef in RL."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels believed to be wrong; with `dpo` this is cDPO."""
    gamma: NonNegative | None = None
    """Target margin of `simpo`; by default 0.5."""
    sft_coef: NonNegative = 0.0
    """Weight of the negative log-likelihood of the chosen response, per token: supports the chosen response, whose probability
    DPO alone may lower."""

    @model_validator(mode="after")
    def check_that_options_are_read(self) -> DPOSettings:
        """An option that the chosen loss does not read is a mistake."""
        if self.gamma is not None and self.loss != "simpo":
            raise ValueError(f"gamma is read by simpo alone, and loss is {self.loss}")
        if self.loss == "kto" and self.label_smoothing:
            raise ValueError("label_smoothing is about pairs, and kto reads single responses")
        if self.loss == "robust" and not self.label_smoothing:
            raise ValueError("robust corrects for a known share of wrong labels; set label_smoothing")
        return self


class ILQLSettings(PairSettings):
    method: Literal["ilql"] = "ilql"
    """The algorithm: Q-learning on the tokens of the pairs, offline; the learned Q shifts the choice of every token."""
    ratings: list[File] = []
    """Learn from the rated responses of these files in place of the pairs: prompt, response and score. `pairs_per_step` then
    counts two rated responses as a pair."""
    beta: Annotated[float, Field(gt=0)] = 4.0
    """How much Q counts when a token is drawn: π ∝ π_ref · exp(β (Q - V)). β is part of the saved model."""
    expectile: Rate = 0.7
    """τ of the value V: at ½ V is the mean over the responses in the data, near 1 the value of the best of them."""
    cql_coef: NonNegative = 0.1
    """Weight of the term that keeps Q low for tokens that no response has."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Discount per token; the reward, +1 for the chosen response and -1 for the rejected response, is paid at the last
    token."""
    td_lambda: Share = 0.95
    """λ of the target of Q: at 0 reward and value of the next state, as published; at 1 the reward of the whole response."""
    target_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the way that the slow copy of Q follows at each update; targets and samples come from the slow copy."""
    sft_coef: NonNegative = 1.0
    """Weight of the negative log-likelihood of all responses, per token: the language model under Q stays that of the data."""
    value_gradient: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Weight of the losses of Q and V in the layers that they share with the language model; 0 keeps their gradient out of
    them."""
    value_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of the heads of Q and V; peak, as learning_rate."""

    def check_in(self, recipe: Recipe) -> None:
        super().check_in(recipe)
        if self.ratings and (recipe.feedback is not None or recipe.controls):
            raise ValueError(
                "rl.ratings takes the place of the feedback and its controls; set feedback: null, leave controls out"
            )
        if recipe.quantization is not None or recipe.parallel in ("fsdp", "deepspeed"):
            raise ValueError(
                "rl.method: ilql changes the whole vocabulary projection; leave out quantization, and use parallel: ddp"
            )


class OnlineDPOSettings(RolloutSettings):
    method: Literal["online_dpo"] = "online_dpo"
    """The algorithm: of K fresh responses the best and the worst by the reward are a pair for the DPO loss."""
    samples_per_prompt: Annotated[int, Field(ge=2, strict=True)] = 2
    """K: responses sampled to each prompt."""
    loss: Literal["dpo", "ipo", "hinge"] = "dpo"
    """Which loss of the DPO family."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Price of moving away from the reference, as kl_coef in RL."""

    @model_validator(mode="after")
    def check_that_weights_are_read(self) -> OnlineDPOSettings:
        """A pair has no weight for each token."""
        if self.vllm is not None and "importance_cap" in self.vllm.model_fields_set:
            raise ValueError("online_dpo weighs no tokens, so vllm.importance_cap would not be read; leave it out")
        return self


METHODS: dict[str, type[TrainingSettings]] = {
    "ppo": PPOSettings,
    "rloo": RLOOSettings,
    "grpo": GRPOSettings,
    "dpo": DPOSettings,
    "ilql": ILQLSettings,
    "online_dpo": OnlineDPOSettings,
}


AnyRLSettings = PPOSettings | RLOOSettings | GRPOSettings | DPOSettings | ILQLSettings | OnlineDPOSettings
