"""Settings: what a recipe may say, checked whole before anything loads.

Each stage has one class; the docstring of a field is its help text. ``recipe_files`` reads them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from charter.metrics import METRICS

Positive = Annotated[int, Field(gt=0, strict=True)]  # strict: no `yes`, no 1.5, no text that happens to be digits
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class LoRASettings(Settings):
    rank: Positive = 16
    """Rank of the adapters on every linear layer."""
    alpha: Positive = 32
    """Scale: the update is multiplied by alpha / rank."""


class TrainingSettings(Settings):
    """What every stage that trains shares."""

    lora: LoRASettings | None = None
    """Train adapters on the frozen base instead of all weights."""
    tokens_per_micro_batch: Positive = 8192
    """Tokens, padding included, that go through the model at once; memory, not learning, depends on it."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    checkpoint_every: Positive = 1
    """Optimizer steps between checkpoints: the most that a kill can lose."""


class EndpointSettings(Settings):
    """A model behind a server that speaks OpenAI's protocol: asked for texts and choices, never trained."""

    url: str
    """Where the server answers, up to and with `/v1`; without a user name, a key or a query."""
    more_urls: list[str] = []
    """Addresses of further servers with the same model: each request goes to whichever has the fewest under way. Answers are kept
    under `url`, so adding one changes nothing else."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name there."""
    api: Literal["chat", "completions"] = "chat"
    """`chat` sends messages; `completions` a transcript of them, for models without a chat template."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")] | None = None
    """Name of the environment variable that holds the key, in capitals. The key itself is never written anywhere."""
    logprobs: Literal["auto", "yes", "no"] = "auto"
    """Read choices from log-probabilities: `auto` where the server gives them, `yes` or an error, `no` from the text."""
    top_logprobs: Annotated[int, Field(ge=2, le=20, strict=True)] | None = None
    """Likeliest tokens to ask for where a choice is read; 20 with chat and 5 with completions unless given."""
    text_margin: Annotated[float, Field(gt=0)] = 3.0
    """Nats by which an option leads the others where it was written out and not read."""
    length_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the longest answer."""
    extra_body: dict[str, Any] = {}
    """Further fields of every request, as the server documents them."""
    concurrency: Positive = 8
    """Requests under way at once, at each server."""
    timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds until the last byte of an answer."""
    retries: Annotated[int, Field(ge=0, strict=True)] = 8
    """How often a request is sent again after the first failure."""
    backoff: Annotated[float, Field(gt=0)] = 1.0
    """Seconds before the first repetition; doubled each time, and shortened by up to half at random."""
    longest_wait: Annotated[float, Field(gt=0)] = 120.0
    """Seconds that are waited at most; a server that asks for more ends the run."""
    input_price: NonNegative | None = None
    """Money for a million tokens read."""
    output_price: NonNegative | None = None
    """Money for a million tokens written."""
    budget_tokens: Positive | None = None
    """Stop before more tokens than this, read and written, have been used."""
    budget_money: Annotated[float, Field(gt=0)] | None = None
    """Stop before more money than this has been spent; needs both prices."""
    cache: str | None = None
    """Folder of the answers, to be shared between runs; `endpoints/NAME` in the run folder unless given."""

    @field_validator("url", "more_urls")
    @classmethod
    def check_address(cls, urls: str | list[str]) -> str | list[str]:
        """Addresses and nothing secret in them."""
        for url in [urls] if isinstance(urls, str) else urls:
            if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", url):
                raise ValueError("write it as https://HOST/v1, without a user name, a key or a query")
        return urls

    @model_validator(mode="after")
    def check_that_options_are_read(self) -> EndpointSettings:
        """Money needs prices, and what Charter sends itself is not sent twice."""
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("give both input_price and output_price, or neither")
        if self.budget_money is not None and self.input_price is None:
            raise ValueError("budget_money needs input_price and output_price")
        if taken := sorted(RESERVED & self.extra_body.keys()):
            raise ValueError(f"extra_body may not hold {taken[0]!r}, which Charter sends itself")
        if self.logprobs == "no" and self.top_logprobs is not None:
            raise ValueError("top_logprobs is not read where logprobs is no")
        if len(set(self.servers)) < len(self.servers):
            raise ValueError("more_urls names a server that is already there")
        return self

    @property
    def servers(self) -> list[str]:
        """The addresses of all servers, the first one of them the endpoint's own."""
        return [url.rstrip("/") for url in (self.url, *self.more_urls)]

    @property
    def identity(self) -> list[str]:
        """Whose answers these are: what a judge and a scorer may not share."""
        return ["endpoint", self.url, self.model]

    @property
    def questions(self) -> list[Any]:
        """What the answers depend on: a change of these runs a stage again, a change of patience or budget does not."""
        how = (self.api, self.logprobs, self.top_logprobs, self.text_margin, self.length_key, self.extra_body)
        return [*self.identity, *how]


MEASURE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
RESERVED = frozenset({
    "model", "messages", "prompt", "stream", "n", "seed", "temperature", "max_tokens", "max_completion_tokens", "logprobs",
    "top_logprobs", "stop",
})  # fmt: skip
ENDPOINT = "endpoint:"
ENDPOINT_NAME = re.compile(r"[A-Za-z0-9_-]+")


class PromptSettings(Settings):
    files: list[str] = []
    """Prompt files: JSONL, JSON, CSV, text, parquet or hh-rlhf transcripts, plain or gzipped."""
    red_team: list[str] = []
    """The same, every prompt of which is tagged `red_team`: an answer may do harm."""
    benign: list[str] = []
    """The same, every prompt of which is tagged `benign`: to be answered and not refused."""
    tags: list[str] = []
    """Tags of your own, and `red_team` or `benign`, for every prompt of `files`."""
    first_words: Positive | None = None
    """Keep so many words of the last turn: beginnings of texts, for a model to go on from."""
    test_fraction: Rate = 0.2
    """Share held out, where the file does not say itself."""
    train: Positive | None = None
    """At most this many training prompts of each kind, stratified by principle."""
    test: Positive | None = None
    """At most this many held-out prompts of each kind, stratified by principle."""

    @model_validator(mode="after")
    def check_that_there_are_prompts(self) -> PromptSettings:
        if not self.sources:
            raise ValueError("prompts.files, red_team and benign are all empty; name a file")
        if self.tags and not self.files:
            raise ValueError("tags is about files, and there are none")
        return self

    @property
    def sources(self) -> list[tuple[str, list[str]]]:
        """(file, tags that its prompts get), in reading order."""
        given = [(file, self.tags) for file in self.files]
        own = ((self.red_team, ["red_team"]), (self.benign, ["benign"]))
        return given + [(file, tags) for files, tags in own for file in files]


class GateSettings(Settings):
    override: bool = False
    """Go on where a gate says no. The report records it."""
    min_base_harm: Share = 0.1
    """Stop unless the interval of the base model's harm rate reaches this: otherwise there is no room to improve."""
    max_unscored: Share = 0.2
    """Stop where the scorer cannot say of more than this share of the base model's answers: its rates are then of a few."""
    min_judge_accuracy: Share = 0.5
    """Stop unless the interval of the judge's accuracy on labelled pairs lies above this."""


class ReviseSettings(Settings):
    generator: str = "base"
    """Who gives the first answers and the helpful ones: `base`, the folder of another model, or `endpoint:NAME`."""
    critic: str = "base"
    """Who criticises and revises: `base`, the folder of another model, or `endpoint:NAME`."""
    rounds: Positive = 2
    """Critique and revision, this many times, a principle drawn for each."""
    context: str | None = None
    """Instead of critique and revision: the prompt is answered once more with these words before its last turn, and the answer is
    learned without them (context distillation, Askell et al. 2021)."""
    prompts: Positive = 400
    """Red-team prompts whose answers are revised."""
    temperature: NonNegative = 1.0
    """Of the first answers and the critiques."""
    revision_temperature: NonNegative = 0.7
    """Of the revisions."""
    max_new_tokens: Positive = 96
    """Longest answer, critique or revision, in tokens."""
    few_shots: str | None = None
    """YAML of worked examples put before the conversation."""


class SFTSettings(TrainingSettings):
    data: list[str] = []
    """Files of examples to learn beside the revisions, or alone where `revise: null`: prompts with answers, whole
    dialogues, or the chosen side of preference pairs, as JSONL, JSON, CSV or Parquet; hh-rlhf as it is."""
    max_examples: Positive | None = None
    """At most this many examples of `data`, by a draw."""
    max_tokens: Positive | None = None
    """Longest row, prompt and response; of a longer one the oldest tokens of the prompt are left out."""
    epochs: Positive = 3
    """Passes over the data."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Peak; falls to zero by a half cosine after the warm-up."""
    warmup: Share = 0.1
    """Share of the steps over which the learning rate rises."""
    responses_per_step: Positive = 32
    """Responses behind one optimizer step."""
    helpful_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.4
    """Share of the data that is the model's own answers to benign prompts; 0 risks a model that only refuses."""
    use_revisions: Literal["last", "all"] = "last"
    """Train on the last revision of each prompt or on those of all rounds."""


class ContrastSettings(Settings):
    positive: str
    """Put before the last turn of the prompt to which the chosen response is sampled."""
    negative: str
    """The same for the rejected one."""


class FeedbackSettings(Settings):
    generator: str = "sft"
    """Who gives the responses that are compared: `base`, `sft`, the folder of another model, or `endpoint:NAME`."""
    raters: Literal["judge", "human", "mixed"] = "judge"
    """Who compares: the judge; people, on the page of `charter label RUN`; or the judge, with people checking some prompts."""
    human_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """With `mixed`: share of the prompts that people are asked about; there their votes replace the judge's."""
    prompts: Positive = 800
    """Prompts, red-team and benign together, to which responses are sampled and compared."""
    responses_per_prompt: Annotated[int, Field(ge=2, strict=True)] = 2
    """K: every pair of the K is compared."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the responses."""
    max_new_tokens: Positive = 96
    """Longest response, in tokens."""
    judge: str = "base"
    """Who compares: `base`, `sft`, the folder of another model, or `endpoint:NAME`."""
    abstain_below: NonNegative = 0.1
    """No pair is made where the judge's swap-averaged margin is smaller than this many nats."""
    calibration: Annotated[float, Field(gt=0)] = 1.0
    """Temperature that divides the judge's margin before it becomes a soft label."""
    labelled_pairs: str | None = None
    """Pairs with known answers on which the judge must do better than chance before it labels anything."""
    gate_pairs: Positive = 300
    """How many of the labelled pairs the gate reads."""
    contrast: ContrastSettings | None = None
    """Make pairs without comparing: the chosen response is asked for in one way and the rejected in another (RLCD)."""
    revisions: bool = False
    """Make pairs of the revise stage: the last usable revision is chosen over the answer that it began from."""
    pairs: list[str] = []
    """Take pairs from these files instead: nothing is sampled and nobody compares. Prompt, chosen and rejected, as JSONL, JSON,
    CSV or Parquet; hh-rlhf as it is."""
    max_pairs: Positive | None = None
    """At most this many pairs of the files, whole prompts by a draw."""

    @model_validator(mode="after")
    def check_that_options_are_read(self) -> FeedbackSettings:
        """Pairs by contrast are judged by nobody, people need no judge, and pairs from files need neither."""
        if self.pairs and (given := sorted(self.model_fields_set - {"pairs", "max_pairs", "labelled_pairs", "gate_pairs"})):
            raise ValueError(f"pairs are taken from files, so {given[0]} would not be read; leave it out")
        if self.revisions and (given := sorted(self.model_fields_set - {"revisions", "labelled_pairs", "gate_pairs"})):
            raise ValueError(f"pairs are made of revisions, so {given[0]} would not be read; leave it out")
        if self.max_pairs is not None and not self.pairs:
            raise ValueError("max_pairs is about the files in pairs; leave it out")
        unread = {"responses_per_prompt", "raters", "human_share", "judge", "abstain_below", "calibration", "labelled_pairs",
                  "gate_pairs"}  # fmt: skip
        if self.contrast is not None and (given := sorted(unread & self.model_fields_set)):
            raise ValueError(f"contrast makes pairs without a judge, so {given[0]} would not be read; leave it out")
        if self.raters != "mixed" and "human_share" in self.model_fields_set:
            raise ValueError("human_share is about raters: mixed; leave it out")
        unread = {"judge", "abstain_below", "calibration"}
        if self.raters == "human" and (given := sorted(unread & self.model_fields_set)):
            raise ValueError(f"with raters: human no judge is asked, so {given[0]} would not be read; leave it out")
        return self

    @property
    def asks_judge(self) -> bool:
        """Whether a judge compares responses."""
        return self.samples and self.contrast is None and self.raters != "human"

    @property
    def samples(self) -> bool:
        """Whether responses are sampled for it."""
        return not self.pairs and not self.revisions


class ScorerSettings(TrainingSettings):
    """What reward models share, whatever they learn from."""

    epochs: Positive = 2
    """Passes over the pairs or ratings."""
    max_tokens: Positive | None = None
    """Longest row, prompt and response; of a longer one the oldest tokens of the prompt are left out."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Peak; falls to zero by a half cosine after the warm-up."""
    warmup: Share = 0.1
    """Share of the steps over which the learning rate rises."""
    test_fraction: Rate = 0.15
    """Share of the prompts whose pairs or ratings measure and are not trained on."""
    ensemble: Positive = 1
    """Members, each an adapter and a head of its own on the one trunk; more than one needs `lora`."""
    combine: Literal["mean", "worst"] = "mean"
    """What an ensemble scores: the mean of its members, or the lowest of them."""

    @model_validator(mode="after")
    def check_ensemble(self) -> ScorerSettings:
        """Whole copies of a model are no ensemble that fits a machine; one member has nothing to combine."""
        if self.ensemble > 1 and self.lora is None:
            raise ValueError("an ensemble is one of adapters; set lora too")
        if self.ensemble == 1 and self.combine != "mean":
            raise ValueError("combine is about an ensemble, and ensemble is 1")
        return self


class RewardModelSettings(ScorerSettings):
    model: str | None = None
    """Folder of the model that it starts from, an encoder or of another family if you like; the fine-tuned one unless given."""
    pairs_per_step: Positive = 32
    """Pairs behind one optimizer step; pairs of one prompt stay together."""
    average: Literal["pairs", "rankings"] = "pairs"
    """What weighs the same in a step: every pair, or every ranking, whatever number of pairs it gives."""
    centering: NonNegative = 0.01
    """Pulls the mean score of a pair to zero (coefficient of (s_w + s_l)²)."""


class RatingModelSettings(ScorerSettings):
    """A reward model from ratings of single responses."""

    ratings_per_step: Positive = 32
    """Ratings behind one optimizer step."""
    loss: Literal["squared", "absolute"] = "squared"
    """Distance between score and rating."""


class RewardPart(Settings):
    source: str | None = None
    """`reward_model`, `length` (tokens), `judge:base|sft|FOLDER|endpoint:NAME`, `classifier:FOLDER:LABEL` or
    `python:module:function`; unless given, the name of the part."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """What one unit of it counts for in the sum."""


class CostSettings(Settings):
    part: str
    """The part of the reward that is a cost: held to a budget by a multiplier, its weight unused."""
    budget: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """The mean cost of a response that is allowed."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Of the multiplier, in log space."""
    initial: Annotated[float, Field(gt=0)] = 1.0
    """The multiplier at the start."""


class VLLMSettings(Settings):
    """vLLM inside the process, for rollouts."""

    kv_cache_gb: Annotated[float, Field(gt=0)] = 4.0
    """Memory for the keys and values of what is under way, beside a second copy of the policy's weights."""
    max_rows: Positive = 256
    """Responses under way at once."""
    eager: bool = False
    """Without CUDA graphs: slower, starts at once. On a CPU it is always so."""
    importance_cap: Annotated[float, Field(ge=1)] = 2.0
    """A token weighs π_trainer / π_vllm, up to this: the two compute the same weights with other kernels."""


class RolloutSettings(TrainingSettings):
    """What every method that learns from sampled responses shares."""

    steps: Positive = 60
    """Rounds of sample, score, credit, learn, record."""
    prompts_per_step: Positive = 32
    """Prompts of one rollout."""
    samples_per_prompt: Positive = 4
    """Responses to each of them."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Of the policy; constant."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the rollouts; log-probabilities everywhere are taken at the same temperature."""
    max_new_tokens: Positive = 64
    """Longest response, in tokens."""
    missing_eos_penalty: NonNegative = 2.0
    """Subtracted from the score of a response that was cut off."""
    reward: Annotated[dict[str, RewardPart], Field(min_length=1)] = {"reward_model": RewardPart()}
    """Named parts of the reward, summed by weight; each has its own curve."""
    cost: CostSettings | None = None
    """Hold one part to a budget (Safe RLHF) in place of a fixed weight."""
    sigmoid_against: Positive | None = None
    """Score a response by sigmoid(r - r_ref), r_ref the mean reward of so many answers of the reference to its prompt."""
    reward_scale: bool = False
    """Divide scores by their running standard deviation, so that kl_coef means the same for every reward."""
    reward_clip: Annotated[float, Field(gt=0)] | None = None
    """Cut scores to plus or minus this, after scaling."""
    vllm: VLLMSettings | None = None
    """Sample with vLLM inside this process, which gets the policy's weights before every rollout; `{}` for its defaults."""


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
        n, rows = getattr(self, "minibatches", 1), self.prompts_per_step * self.samples_per_prompt
        if n > rows:
            raise ValueError(f"minibatches is {n}, and a step has {rows} responses; an update needs one of them at least")
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
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Discount; 1 for text."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """λ of generalised advantage estimation."""
    value_learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Of the critic; constant."""
    whiten_advantages: Literal["unbiased", "biased", "none"] = "unbiased"
    """Advantages of a batch on mean 0 and variance 1 over its response tokens: divided by n - 1, by n, or left alone."""
    stop_kl: Annotated[float, Field(gt=0)] | None = None
    """Skip the rest of a batch's updates once one moved the policy this far from the rollout: mean ½(log ρ)², nats a token."""


class RLOOSettings(RLSettings):
    method: Literal["rloo"] = "rloo"
    """The algorithm."""
    samples_per_prompt: Annotated[int, Field(ge=2, strict=True)] = 4
    """K: each response is measured against the mean of its K - 1 siblings."""


class GRPOSettings(RLSettings):
    method: Literal["grpo"] = "grpo"
    """The algorithm."""
    samples_per_prompt: Annotated[int, Field(ge=2, strict=True)] = 8
    """K: the size of the group that a response is measured against."""
    epochs: Positive = 1
    """Passes over each batch of rollouts."""
    minibatches: Positive = 1
    """Optimizer steps per pass."""
    clip_coef: Annotated[float, Field(gt=0)] = 0.2
    """ε of the ratio against the policy that sampled."""
    clip_coef_high: Annotated[float, Field(gt=0)] | None = None
    """An upper ε of its own (DAPO)."""
    average: Literal["response", "token", "constant"] = "response"
    """What a token weighs: GRPO's 1/length, one over all tokens (DAPO), or one over max_new_tokens (Dr. GRPO)."""
    scale_by_std: bool = True
    """Divide advantages by the group's standard deviation; Dr. GRPO does not."""
    stop_kl: Annotated[float, Field(gt=0)] | None = None
    """Skip the rest of a batch's updates once one moved the policy this far from the rollout: mean ½(log ρ)², nats a token."""
    kl_estimator: Literal["weighted_k3", "k2", "forward_kl"] = "weighted_k3"
    """The KL term of the loss; forward_kl is the k3 of the paper, whose gradient is that of KL(π_ref ‖ π)."""


class DPOSettings(TrainingSettings):
    method: Literal["dpo"] = "dpo"
    """The algorithm: preferences straight into the policy, no reward model and no sampling."""
    loss: Literal["dpo", "robust", "ipo", "ipo_per_token", "hinge", "simpo", "kto"] = "dpo"
    """Which member of the family."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Price of moving away from the reference, as kl_coef in RL."""
    max_tokens: Positive | None = None
    """Longest row, prompt and response; of a longer one the oldest tokens of the prompt are left out."""
    epochs: Positive = 1
    """Passes over the pairs."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak; falls to zero by a half cosine after the warm-up."""
    warmup: Share = 0.1
    """Share of the steps over which the learning rate rises."""
    pairs_per_step: Positive = 32
    """Pairs behind one optimizer step."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels believed to be wrong: with `dpo` that is cDPO."""
    gamma: NonNegative | None = None
    """Target margin of `simpo`; 0.5 unless given."""
    sft_coef: NonNegative = 0.0
    """Weight of the negative log-likelihood of the chosen response, per token: holds up what DPO alone lets fall."""

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


class OnlineDPOSettings(RolloutSettings):
    method: Literal["online_dpo"] = "online_dpo"
    """The algorithm: of K fresh responses the best and the worst by the reward are a pair for the DPO loss."""
    samples_per_prompt: Annotated[int, Field(ge=2, strict=True)] = 2
    """K: responses sampled to each prompt."""
    loss: Literal["dpo", "ipo", "hinge"] = "dpo"
    """Which member of the family."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Price of moving away from the reference, as kl_coef in RL."""


METHODS: dict[str, type[TrainingSettings]] = {
    "ppo": PPOSettings,
    "rloo": RLOOSettings,
    "grpo": GRPOSettings,
    "dpo": DPOSettings,
    "online_dpo": OnlineDPOSettings,
}


AnyRLSettings = PPOSettings | RLOOSettings | GRPOSettings | DPOSettings | OnlineDPOSettings


class MeasureSettings(Settings):
    source: str
    """`classifier:FOLDER:LABEL`, its probability of the label for the response alone; `judge:FOLDER` or `judge:endpoint:NAME`,
    the probability of a yes to whether the response helps; or `python:module:function`, called with the prompt's and the
    response's text, returning a number or None."""
    better: Literal["lower", "higher"]
    """Which way is the aim."""
    margin: NonNegative | None = None
    """As a price and not an aim: it may get worse by this much before the verdict is spoilt; declared before the run."""
    unit: str = "share"
    """Stands beside the number in the report."""


class EvaluationSettings(Settings):
    scorer: str | None = None
    """Who says what is harmful, refused and helpful: `python:module:function`, `judge:FOLDER`, `judge:endpoint:NAME` or
    `refusal-words`."""
    measures: dict[str, MeasureSettings] = {}
    """Numbers of your own, by name, of every answer of every arm. Without a scorer the first of them decides the verdict."""
    samples_per_prompt: Positive = 1
    """Answers of each arm to each prompt."""
    temperature: NonNegative = 1.0
    """Of the answers."""
    max_new_tokens: Positive = 96
    """Longest answer, in tokens."""
    best_of: Annotated[int, Field(ge=2, strict=True)] | None = None
    """Measure one arm more: of so many answers of the SFT model the one that the reward model scores highest."""
    over_refusal_margin: Share = 0.05
    """Over-refusal may rise by this much before the verdict is spoilt; declared before the run."""
    helpfulness_margin: Share = 0.03
    """Helpfulness may fall by this much before the verdict is spoilt; declared before the run."""

    @model_validator(mode="after")
    def check_that_something_is_measured(self) -> EvaluationSettings:
        if self.scorer is None and not self.measures:
            raise ValueError("name a scorer, measures, or both")
        for name in self.measures:
            if not MEASURE_NAME.fullmatch(name) or name in METRICS:
                why = "is a built-in metric" if name in METRICS else "is not a name of letters, digits and _"
                raise ValueError(f"measures: {name!r} {why}; choose another name")
        return self


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
