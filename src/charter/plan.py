"""Tokens, memory and time of a recipe before anything heavy loads: config.json, safetensors headers, prompts, tokenizer.

Counts of prompts, rows and steps are those of the run, to within a few. Lengths are bounds: every sampled text is taken to
be as long as its settings allow, every comparison to make a pair. So tokens and memory are what a run needs at most; time
is a rough estimate, and the output says what it rests on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charter.config import (
    ENDPOINT,
    DPOSettings,
    GRPOSettings,
    LoRASettings,
    PPOSettings,
    Recipe,
    RolloutSettings,
    TrainingSettings,
    check_files,
)
from charter.constitution.categorise import CATEGORISE, NONE
from charter.constitution.constitution import Constitution, load_constitution, load_few_shots
from charter.errors import InputError
from charter.feedback.judge import QUESTIONS, ask, comparisons_of
from charter.feedback.pairs import read_pairs
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.endpoint import SHORT_ANSWER
from charter.models.llama_weights import KEPT_ROLES, LLAMA_LIKE
from charter.models.load import check_attention, check_folder, first_line, kind_of, load_tokenizer, pick_device
from charter.models.logprobs import BLOCK_ELEMENTS, KEPT_ELEMENTS
from charter.models.precision import DTYPES
from charter.models.quantize import BYTES as QUANTIZED_BYTES
from charter.models.quantize import check_bitsandbytes
from charter.models.sampler import fill
from charter.prompts import deduplicate, read_prompts, split_prompts
from charter.records import Generation, Message, Prompt, Response
from charter.reward_sources import uses_reward_model
from charter.stages import KINDS

FLOAT = 4  # bytes: weights, gradients and moments are float32 whatever the precision of the matrix products
PROGRAM = 850e6  # bytes of Python, torch, transformers, compiled kernels, and a heap that keeps its holes
EFFICIENCY = 0.4  # share of a bare matrix product's rate that a transformer reaches
STEP_PER_LAYER = 0.25e-3  # seconds of Python and small operations per layer and decoding step
TURNS = ("kv_cache", "activations", "merged_copy")
COUNTED_HERE = (
    "tokens of an endpoint are counted by the base model's tokenizer; requests that are sent again are left out"
)
SAMPLE = 200  # prompts whose tokens are counted

ASSUMPTIONS = (
    "every sampled text is as long as max_new_tokens allows, and every comparison makes a pair",
    "a forward pass costs 2 operations per weight and token, forward and backward 6 (4 with LoRA)",
    f"they run at {EFFICIENCY:.0%} of the rate of a matrix product measured here just now",
    f"a decoding step costs {STEP_PER_LAYER * 1e3:g} ms per layer and one product with all weights",
    "attention over long contexts, loading, and checkpoints are left out",
)


# -- the model, from its headers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What config.json and the headers of the weight files say of a model."""

    tensors: dict[str, tuple[int, ...]]
    layers: int
    hidden: int
    inner: int
    kv_width: int
    vocabulary: int
    positions: int | None
    heads: int = 1
    fused: bool = False
    """Whether its pass is written out: what is kept then is in the precision of the run."""
    quantized: bool = False
    """Whether its linear layers are held in 4 bits."""

    @cached_property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors.values())

    @cached_property
    def linear(self) -> list[tuple[int, ...]]:
        """Shapes of the linear layers but the output projection."""
        words = ("embed", "wte", "wpe", "lm_head", "shared", "relative_attention_bias")
        return [s for name, s in self.tensors.items() if len(s) == 2 and not any(word in name for word in words)]

    @property
    def bytes(self) -> float:
        """What its frozen weights take."""
        rounded = sum(math.prod(shape) for shape in self.linear) if self.quantized else 0
        return (self.parameters - rounded) * FLOAT + rounded * QUANTIZED_BYTES

    def adapter(self, lora: LoRASettings | None) -> int:
        """Parameters of one LoRA adapter on every linear layer but the output projection: rank x (in + out) each."""
        return sum(lora.rank * sum(shape) for shape in self.linear) if lora else 0


def read_shape(name: str) -> Shape:
    """The shape of a model folder, or of a hub model that was downloaded before. No weight is read. InputError where there
    is none or where its files are not what they seem."""
    check_folder(name)
    folder = Path(name) if Path(name).exists() else downloaded(name)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"config.json does not load: {first_line(error)}", file=folder) from None
    heads = int(getattr(config, "num_attention_heads", 0) or 1)
    hidden = int(getattr(config, "hidden_size", 0) or 0)
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    if not hidden or not layers:
        raise InputError("config.json names no hidden_size or no num_hidden_layers", file=folder)
    head = int(getattr(config, "head_dim", None) or hidden // heads)
    tensors: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= read_header(file)
    return Shape(
        tensors=tensors,
        layers=layers,
        hidden=hidden,
        inner=int(getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden),
        kv_width=head * int(getattr(config, "num_key_value_heads", None) or heads),
        vocabulary=int(config.vocab_size),
        positions=getattr(config, "max_position_embeddings", None),
        heads=heads,
        fused=config.model_type in LLAMA_LIKE and config.hidden_act == "silu",
    )


def shapes_of(recipe: Recipe) -> dict[str, Shape]:
    """The shapes of the models that a recipe names, `base` and `sft` among them."""
    named = {name for key, name in recipe.samplers().items() if key[:2] != "rl" and not name.startswith(ENDPOINT)}
    named |= {recipe.reward_model.model} if recipe.reward_model.model else set()
    shape = read_shape(recipe.model)
    found = {"base": shape, "sft": shape} | {name: read_shape(name) for name in sorted(named - {"base", "sft"})}
    return {name: held(one, recipe) for name, one in found.items()}


def held(shape: Shape, recipe: Recipe) -> Shape:
    """The shape as the recipe has it held: in 4 bits nothing is written out."""
    return replace(shape, fused=False, quantized=True) if recipe.quantization else replace(shape, quantized=False)


def read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors file: eight bytes of length, then JSON."""
    try:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > 100 * 2**20:
                raise ValueError("header too long")
            header = json.loads(stream.read(length))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        raise InputError("is no safetensors file: its header does not read", file=file) from None


def downloaded(name: str) -> Path:
    """The local copy of a hub model."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception:  # the hub client raises whatever its cache and its checks raise
        raise InputError(
            f"is not downloaded yet, so its size is not known; `hf download {name}` gets it", file=name
        ) from None


# -- what a run reads ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of what the stages read, from a sample of the prompts."""

    prompt: float
    longest_prompt: int
    few_shots: float
    critique: float
    revision: float
    topic_question: float
    topics: float
    comparison: float
    question: float


def measure_lengths(recipe: Recipe, constitution: Constitution, prompts: Sequence[Prompt], tokenizer: Any) -> Lengths:
    """Tokens of prompts, requests and questions under the model's own template."""
    sample = list(prompts)[:: max(1, len(prompts) // SAMPLE)][:SAMPLE]
    encoded = [len(encode_prompt(tokenizer, prompt.messages)) for prompt in sample]

    def turn(text: str) -> int:
        return len(encode_prompt(tokenizer, [Message(role="user", content=text)]))

    titles = [*(topic.title for topic in constitution.topics()), NONE]
    questions = [fill(CATEGORISE, prompt=p.last_turn, topics=", ".join(titles)) for p in sample[:20]]
    shots = load_few_shots(Path(recipe.revise.few_shots)) if recipe.revise.few_shots else []
    shot_messages = [message for shot in shots for message in shot]
    revisers = [p for p in constitution.principles if p.critique is not None and p.revision is not None]
    empty = [
        [Response(prompt_id=p.id, model="", text="", finish_reason="stop", generation=Generation(seed=j, temperature=0.0))
         for j in range(2)] for p in sample[:20]
    ]  # fmt: skip
    asked = [ask(comparison) for comparison in comparisons_of(sample[:20], empty, constitution, recipe.seed)]
    return Lengths(
        prompt=mean(encoded),
        longest_prompt=max(encoded),
        few_shots=sum(len(encode_response(tokenizer, message.content)) for message in shot_messages),
        critique=mean([turn(p.critique or "") for p in revisers]),
        revision=mean([turn(p.revision or "") for p in revisers]),
        topic_question=mean([turn(question) for question in questions]),
        topics=sum(len(encode_response(tokenizer, title, end=False)) for title in titles) if len(titles) > 1 else 0,
        comparison=mean([len(encode_prompt(tokenizer, question)) for question in asked]),
        question=mean([turn(text) for text in QUESTIONS.values()]),
    )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def count_prompts(recipe: Recipe) -> tuple[list[Prompt], dict[str, int], int]:
    """Training prompts; counts by split and kind as the prompt stage will choose them; prompts that it sorts by principle."""
    settings = recipe.prompts
    found = [p for file in settings.files for p in read_prompts(Path(file), tags=settings.tags)]
    unique, _ = deduplicate(found)
    split = split_prompts(unique, test_fraction=settings.test_fraction, seed=recipe.seed)
    counts = {}
    for part, wanted in (("train", settings.train), ("test", settings.test)):
        for kind in KINDS:
            n = sum(p.split == part and kind in p.tags for p in split)
            counts[f"{part} {kind}"] = min(n, wanted) if wanted else n
    if not counts["train red_team"]:
        raise InputError("no training prompt is tagged red_team; tag the file's prompts or set prompts.tags")
    return [p for p in split if p.split == "train"], counts, sum(p.principle is None for p in unique)


# -- what each stage does ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Requests to an endpoint, and the tokens they read and write."""

    requests: float = 0
    read: float = 0
    written: float = 0

    def __add__(self, other: Asked) -> Asked:
        return Asked(self.requests + other.requests, self.read + other.read, self.written + other.written)


Shapes = Mapping[str, Shape]
"""Of the models that a recipe names, `base` and `sft` among them."""


@dataclass
class Load:
    """The work of one stage. Tokens: sampled; read without gradients (prompts of sampled texts included); trained on, once
    per pass and trained role; and the floating-point operations of both. ``batches``: decoding runs as (rows, new tokens,
    number of batches). Memory in bytes by what it is for."""

    stage: str
    generated: float = 0
    scored: float = 0
    trained: float = 0
    operations: float = 0
    batches: list[tuple[int, int, int]] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    lora: bool = False
    width: int = FLOAT
    """Bytes of a number in matrix products."""
    checkpointing: bool = False
    """Whether a layer keeps its input alone."""
    gpu: bool = False
    asked: dict[str, Asked] = field(default_factory=dict)
    """What is sent to endpoints, by name."""

    def ask(self, endpoint: str, n: float, read: float, written: float) -> None:
        """``n`` requests to ``endpoint:NAME``, each with so many tokens read and written."""
        name = endpoint.removeprefix(ENDPOINT)
        self.asked[name] = self.asked.get(name, Asked()) + Asked(n, n * read, n * written)

    def sample_from(self, name: str, shapes: Shapes, n: int, prompt: float, new: int, rows: int) -> None:
        """``sample`` by a named model, or from an endpoint, a request for each text."""
        if name.startswith(ENDPOINT):
            self.ask(name, n, prompt, new)
        else:
            self.sample(shapes[name], n, prompt, new, rows)

    def choose_with(self, name: str, shapes: Shapes, n: float, question: float, written: int) -> None:
        """``n`` questions whose answer is read by a named model, or asked of an endpoint that writes so many tokens."""
        if name.startswith(ENDPOINT):
            self.ask(name, n, question, written)
        else:
            self.score(shapes[name], n * question)

    def hold_named(self, shapes: Shapes, *names: str) -> None:
        """The models of these names, each once; what is behind an endpoint takes no memory here."""
        for name in sorted({name for name in names if not name.startswith(ENDPOINT)}):
            self.hold(shapes[name], 1)

    def score(self, shape: Shape, tokens: float) -> None:
        """Tokens that are read without gradients by a model."""
        self.scored += tokens
        self.operations += 2 * shape.parameters * tokens

    def learn(self, shape: Shape, tokens: float) -> None:
        """Tokens that are read and learned from; with LoRA no gradient of the base's weights is computed, with checkpointing
        every layer once more."""
        self.trained += tokens
        self.operations += ((4 if self.lora else 6) + 2 * self.checkpointing) * shape.parameters * tokens

    def sample(self, shape: Shape, n: int, prompt: float, new: int, rows: int) -> None:
        """``n`` texts of ``new`` tokens after prompts of ``prompt`` tokens, ``rows`` at once."""
        rows = max(1, min(rows, n))
        self.generated += n * new
        self.score(shape, n * prompt)
        self.batches.append((rows, new, math.ceil(n / rows)))
        cache = rows * (prompt + new) * 2 * shape.layers * shape.kv_width * (self.width if shape.fused else FLOAT)
        choosing = rows * shape.vocabulary * (4 + 4 + 4)  # logits, scaled, probabilities
        self.memory["kv_cache"] = max(self.memory.get("kv_cache", 0), cache + choosing)

    def hold(self, shape: Shape, models: int) -> None:
        """Whole models in memory that are not trained."""
        self.memory["weights"] = self.memory.get("weights", 0) + models * shape.bytes

    def train(self, shape: Shape, lora: LoRASettings | None, roles: int) -> None:
        """Trained roles: full copies or adapters, each with gradients and two Adam moments."""
        size = (shape.adapter(lora) if lora else shape.parameters) * FLOAT * roles
        self.lora = lora is not None
        self.memory["weights"] = self.memory.get("weights", 0) + size
        self.memory["gradients"] = size
        self.memory["adam"] = 2 * size
        if (
            lora
        ):  # adapters are merged into a copy of the base when the result is saved, of 4-bit weights beside the GPU
            width = FLOAT if not shape.quantized else 0 if self.gpu else self.width
            self.memory["merged_copy"] = shape.parameters * width

    def activate(self, shape: Shape, settings: TrainingSettings, row: float, response: float, copies: int) -> None:
        """What backward needs of a micro-batch: per token and layer some vectors of the hidden, key-value and inner width,
        and the logits at the positions that are scored: once where the pass is written out, else ``copies`` of them."""
        tokens = max(settings.tokens_per_micro_batch, row)
        scored = tokens * min(response / row, 1) * shape.vocabulary if copies else 0
        if not shape.fused:
            per_layer = 9 * shape.hidden + 3 * shape.kv_width + 3 * shape.inner
            layers = per_layer + shape.layers * shape.hidden if self.checkpointing else shape.layers * per_layer
            self.memory["activations"] = (tokens * layers + scored * copies) * FLOAT
            return
        # Two normed inputs, attended values, query, keys, values, gate and up, attention weights.
        numbers = 4 * shape.hidden + 2 * shape.kv_width + 2 * shape.inner + shape.heads * row / 2
        passing = tokens * (4 * shape.inner * self.width + 5 * shape.hidden * FLOAT)
        kept = tokens * (numbers if self.checkpointing else shape.layers * numbers) + min(scored, KEPT_ELEMENTS)
        inputs = tokens * shape.layers * shape.hidden * FLOAT if self.checkpointing else 0
        self.memory["activations"] = kept * self.width + inputs
        self.memory["layer_at_hand"] = passing + 3 * BLOCK_ELEMENTS * FLOAT

    def cast(self, shape: Shape) -> None:
        """The copy of the weights in the precision of the products: of every model, or of the two roles last used of a trunk."""
        models = self.memory.get("weights", 0) // (shape.parameters * FLOAT)
        if shape.fused:
            self.memory["cast_weights"] = (
                (min(models + 1, KEPT_ROLES) if self.lora else models) * shape.parameters * self.width
            )

    @property
    def peak_bytes(self) -> float:
        """Sampling, training and saving take turns: of what they need for themselves the largest counts."""
        turns = [self.memory.get(key, 0) for key in TURNS]
        return PROGRAM + max(turns) + sum(value for key, value in self.memory.items() if key not in TURNS)


def loads_of(
    recipe: Recipe,
    shape: Shape,
    shapes: Shapes,
    lengths: Lengths,
    counts: dict[str, int],
    *,
    to_sort: int,
    labelled: int,
) -> list[Load]:
    """The work of each stage in running order. ``to_sort`` prompts have no principle yet; ``labelled`` pairs test the judge."""

    def written(name: str) -> int:
        """Tokens that an endpoint writes to make a choice."""
        read = not name.startswith(ENDPOINT) or recipe.endpoints[name.removeprefix(ENDPOINT)].logprobs != "no"
        return 1 if read else SHORT_ANSWER

    rows, reply = recipe.batch_size, recipe.revise.max_new_tokens
    stage = partial(
        Load,
        width=DTYPES[recipe.precision].itemsize,
        checkpointing=recipe.gradient_checkpointing,
        gpu=recipe.device != "cpu" and torch.cuda.is_available(),
    )

    def within(tokens: float) -> float:
        return min(tokens, shape.positions) if shape.positions else tokens

    prompts = stage("prompts")
    prompts.hold(shape, 1)
    if lengths.topics:
        prompts.score(shape, to_sort * (lengths.topic_question + lengths.topics))

    revise = stage("revise")
    settings = recipe.revise
    revise.hold_named(shapes, settings.generator, settings.critic)
    n_red = min(settings.prompts, counts["train red_team"])
    share = recipe.sft.helpful_fraction
    n_helpful = min(round(n_red * share / (1 - share)), counts["train benign"])
    revise.sample_from(settings.generator, shapes, n_red + n_helpful, lengths.prompt, reply, rows)
    criticised = lengths.few_shots + lengths.prompt + reply + lengths.critique
    for _ in range(settings.rounds):
        revise.sample_from(settings.critic, shapes, n_red, within(criticised), reply, rows)
        revise.sample_from(settings.critic, shapes, n_red, within(criticised + reply + lengths.revision), reply, rows)

    sft = stage("sft")
    n_examples = n_red * (settings.rounds if recipe.sft.use_revisions == "all" else 1) + n_helpful
    row = lengths.prompt + reply + 1
    sft.hold(shape, 1)
    sft.train(shape, recipe.sft.lora, roles=1)
    sft.activate(shape, recipe.sft, row, reply + 1, copies=3)
    sft.learn(shape, recipe.sft.epochs * n_examples * row)

    feedback = stage("feedback")
    own = recipe.feedback
    n_asked = sum(min(own.prompts // len(KINDS), counts[f"train {kind}"]) for kind in KINDS)
    k = own.responses_per_prompt
    n_pairs = n_asked * len(list(combinations(range(k), 2)))
    judged = own.contrast is None and own.raters != "human"
    feedback.hold_named(shapes, own.generator, *((own.judge,) if judged else ()))
    feedback.sample_from(own.generator, shapes, n_asked * k, lengths.prompt, own.max_new_tokens, max(1, rows // k) * k)
    if judged:
        question = lengths.comparison + 2 * own.max_new_tokens
        # Each comparison in both orders.
        feedback.choose_with(own.judge, shapes, 2 * (n_pairs + labelled), question, written(own.judge))

    reward = stage("reward_model")
    reward_settings = recipe.reward_model
    row = lengths.prompt + own.max_new_tokens + 1
    n_train = round(n_pairs * (1 - reward_settings.test_fraction))
    scored_by = shapes[reward_settings.model or "sft"]
    reward.hold(scored_by, 1)
    reward.train(scored_by, reward_settings.lora, roles=reward_settings.ensemble)
    reward.activate(scored_by, reward_settings, row, 0, copies=0)
    reward.learn(scored_by, reward_settings.ensemble * reward_settings.epochs * n_train * 2 * row)
    reward.score(scored_by, reward_settings.ensemble * (n_pairs + labelled) * 2 * row)

    rl = stage("rl")
    policy = recipe.rl
    rl.hold(shape, 1)
    if isinstance(policy, DPOSettings):
        row = lengths.prompt + own.max_new_tokens + 1
        rl.train(shape, policy.lora, roles=1)
        rl.activate(shape, policy, row, own.max_new_tokens + 1, copies=3)
        rl.score(shape, n_pairs * 2 * row)  # the reference, once
        rl.learn(shape, policy.epochs * n_pairs * 2 * row)
    else:
        n_steps, n_rollouts = policy.steps, policy.prompts_per_step * policy.samples_per_prompt
        row = lengths.prompt + policy.max_new_tokens
        ppo = isinstance(policy, PPOSettings)
        epochs = policy.epochs if isinstance(policy, (PPOSettings, GRPOSettings)) else 1
        rl.train(shape, policy.lora, roles=2 if ppo else 1)
        if uses_reward_model(policy):  # only read
            if reward_settings.model is not None:
                rl.hold(scored_by, 1)
            rl.memory["weights"] += (scored_by.adapter(reward_settings.lora) or scored_by.parameters) * FLOAT
        rl.activate(shape, policy, row, policy.max_new_tokens, copies=5)
        if ppo:  # policy and value hold their activations until one backward pass through both
            rl.memory["activations"] *= 2
        rl.sample(shape, n_steps * n_rollouts, lengths.prompt, policy.max_new_tokens, n_rollouts)
        # Reward, policy and reference read every rollout, with PPO the value model too.
        rl.score(shape, n_steps * n_rollouts * row * (4 if ppo else 3))
        rl.learn(shape, n_steps * n_rollouts * row * epochs * (2 if ppo else 1))
        anew = (policy.sigmoid_against or 0) * (counts["train red_team"] + counts["train benign"])
        for judge in judges_of(policy):
            if judge.startswith(ENDPOINT):  # two questions about each response
                rl.ask(judge, 2 * (n_steps * n_rollouts + anew), row + lengths.question, written(judge))

    evaluate = stage("evaluate")
    arms = recipe.evaluation
    n_test = sum(counts[f"test {kind}"] for kind in KINDS) * arms.samples_per_prompt
    row = lengths.prompt + arms.max_new_tokens + 1
    evaluate.hold(shape, 3)
    for _ in range(3):
        evaluate.sample(shape, n_test, lengths.prompt, arms.max_new_tokens, rows)
    if arms.best_of is not None:
        evaluate.sample(shape, n_test * arms.best_of, lengths.prompt, arms.max_new_tokens, rows)
        evaluate.score(shape, n_test * arms.best_of * row)
    evaluate.score(shape, 7 * n_test * row)  # each arm under itself and the base, the policy under the SFT model too

    rewarding = [reward] if uses_reward_model(policy) else []
    loads = [prompts, revise, sft, feedback, *rewarding, rl, evaluate]
    for load in loads:
        load.cast(shape)
    if arms.scorer.startswith("judge:"):  # loaded from beginning to end, and asked two questions about each response
        scorer = arms.scorer.removeprefix("judge:")
        for load in loads:
            load.hold_named(shapes, scorer)
        asked = lengths.prompt + reply + lengths.question
        n_arms = 3 + (arms.best_of is not None)
        revise.choose_with(scorer, shapes, 2 * n_red * (settings.rounds + 1), asked, written(scorer))
        evaluate.choose_with(scorer, shapes, 2 * n_arms * n_test, row + lengths.question, written(scorer))
    return loads


def judges_of(settings: RolloutSettings) -> list[str]:
    """The judges among the sources of a reward."""
    sources = [part.source or name for name, part in settings.reward.items()]
    return [source.removeprefix("judge:") for source in sources if source.startswith("judge:")]


# -- time and machine ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """Measured on this machine: operations per second of a large product, and seconds per weight of a product of so
    many rows."""

    operations: float
    seconds_per_weight: Callable[[int], float]


def probe(shape: Shape, precision: str, device: str) -> Speed:
    """Time products of the model's own sizes, well below a second for each of the few that a plan needs."""
    weight = torch.randn(shape.hidden, shape.inner, device=device)
    measured: dict[int, float] = {}

    def per_weight(rows: int) -> float:
        if rows not in measured:
            measured[rows] = product_seconds(rows, weight, torch.float32) / weight.numel()
        return measured[rows]

    large = 2048
    return Speed(2 * large * weight.numel() / product_seconds(large, weight, DTYPES[precision]), per_weight)


def product_seconds(rows: int, weight: Tensor, dtype: torch.dtype, budget: float = 0.1) -> float:
    """Shortest time of (rows, H) @ weight: what else runs on the machine only ever adds to it. On a CPU also on one thread,
    because threads that have to wait for a busy core can take a hundred times as long as one alone."""
    a, b = torch.randn(rows, weight.shape[0], device=weight.device).to(dtype), weight.to(dtype)
    out = a @ b
    threads = torch.get_num_threads()
    times = []
    for n in {1, threads} if weight.device.type == "cpu" else {threads}:
        torch.set_num_threads(n)
        begin = time.monotonic()
        for tried in range(200):
            start = time.perf_counter()
            torch.matmul(a, b, out=out)
            if weight.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            if tried > 2 and time.monotonic() - begin > budget:
                break
    torch.set_num_threads(threads)
    return min(times)


def seconds_of(load: Load, shape: Shape, speed: Speed) -> float:
    """Rough seconds of a stage."""
    decoding = sum(
        batches * new * (shape.layers * STEP_PER_LAYER + shape.parameters * speed.seconds_per_weight(rows))
        for rows, new, batches in load.batches
    )
    return load.operations / (speed.operations * EFFICIENCY) + decoding


def free_memory(device: str) -> int:
    """Bytes that are free now on the GPU, or on this machine within what its control group allows."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux: what there is at all
        return memory_of(device)
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no limit is the word max
        allowed, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, allowed - used)
    return free


def memory_of(device: str) -> int:
    """Bytes of the GPU, or of this machine."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# -- what fits -----------------------------------------------------------------------------------------------------------

CERTAIN = ("weights", "cast_weights", "gradients", "adam", "merged_copy")  # whatever the texts turn out to be
SMALL_BATCH, SMALL_MICRO_BATCH = 16, 1024
NO_TEXTS = Lengths(*[0] * 9)


def certain_bytes(load: Load) -> float:
    """What a stage holds at least."""
    return sum(load.memory.get(key, 0) for key in CERTAIN)


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with settings changed: `key` or `stage.key` to value."""
    for key, value in changes.items():
        name, _, leaf = key.partition(".")
        new = getattr(recipe, name).model_copy(update={leaf: value}) if leaf else value
        recipe = recipe.model_copy(update={name: new})
    return recipe


def savings(recipe: Recipe) -> list[dict[str, Any]]:
    """Changes of a recipe that save memory, the mildest first. Only smaller batches change nothing of what is learned."""
    trained = [name for name in ("sft", "reward_model", "rl") if isinstance(getattr(recipe, name), TrainingSettings)]
    batches: dict[str, Any] = {"batch_size": min(recipe.batch_size, SMALL_BATCH)}
    for name in trained:
        own = getattr(recipe, name).tokens_per_micro_batch
        batches[f"{name}.tokens_per_micro_batch"] = min(own, SMALL_MICRO_BATCH)
    lora = {f"{name}.lora": LoRASettings() for name in trained if getattr(recipe, name).lora is None}
    return [batches, {"gradient_checkpointing": True}, lora, {"quantization": "nf4"}]


def what_fits(recipe: Recipe, needs: Callable[[Recipe], float], room: float) -> str:
    """The mildest changes with which ``needs`` is within ``room`` bytes, as words for the command line; what the smallest still
    needs where none is."""
    taken: list[dict[str, Any]] = []
    for change in savings(recipe):
        taken.append(change)
        if needs(changed(recipe, merged(taken))) <= room:
            break
    else:
        least = size(needs(changed(recipe, merged(taken))))
        return f"the smallest that Charter can make of it needs {least}; take a smaller model"
    for change in taken[:-1]:
        fewer = [one for one in taken if one is not change]
        # 4 bits are trained through adapters alone, whatever they save.
        if ("quantization" not in taken[-1] or not any(key.endswith(".lora") for key in change)) and needs(
            changed(recipe, merged(fewer))
        ) <= room:
            taken = fewer
    words = " ".join(f"--set {said(key, value)}" for key, value in merged(taken).items() if differs(recipe, key, value))
    return f"{words} needs {size(needs(changed(recipe, merged(taken))))}"


def merged(changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for change in changes for key, value in change.items()}


def differs(recipe: Recipe, key: str, value: Any) -> bool:
    name, _, leaf = key.partition(".")
    own = getattr(recipe, name)
    return bool((getattr(own, leaf) if leaf else own) != value)


def said(key: str, value: Any) -> str:
    """A change as `--set` takes it."""
    return f"{key}.rank={value.rank}" if isinstance(value, LoRASettings) else f"{key}={str(value).lower()}"


def check_machine(recipe: Recipe) -> None:
    """InputError where a package that the recipe needs is missing; or where the weights, gradients and moments of a stage alone
    are more than the memory that is free, with what would fit. Nothing is loaded for it; a model that is not here yet is let
    pass."""
    device = pick_device(recipe.device)
    if recipe.quantization:
        check_bitsandbytes()
    try:
        shapes = shapes_of(recipe)
    except InputError:  # the run itself says what is missing, or gets it
        return
    check_attention(recipe.attention, kind_of(recipe.model), device, recipe.precision)
    counts = {f"{split} {kind}": 0 for split in ("train", "test") for kind in KINDS}

    def stages(variant: Recipe) -> list[Load]:
        own = {name: held(shape, variant) for name, shape in shapes.items()}
        return loads_of(variant, own["base"], own, NO_TEXTS, counts, to_sort=0, labelled=0)

    def needs(variant: Recipe) -> float:
        return max(certain_bytes(load) for load in stages(variant))

    free = free_memory(device)
    largest = max(stages(recipe), key=certain_bytes)
    if certain_bytes(largest) > free:
        raise InputError(
            f"{largest.stage} holds at least {size(certain_bytes(largest))} of weights, gradients and moments, and {size(free)} "
            f"of {'GPU ' if device == 'cuda' else ''}memory are free; {what_fits(recipe, needs, free)}", file=recipe.model,
        )  # fmt: skip


# -- the plan ------------------------------------------------------------------------------------------------------------


def plan_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a run of the recipe will take, in JSON values: tokens as counts, memory in bytes, time in seconds.

    InputError where the model, a file or the GPU it asks for is missing.
    """
    check_files(recipe)
    device = pick_device(recipe.device)
    shapes = shapes_of(recipe)
    shape = shapes["base"]
    constitution = load_constitution(Path(recipe.constitution))
    train, counts, to_sort = count_prompts(recipe)
    lengths = measure_lengths(recipe, constitution, train, load_tokenizer(recipe.model))
    pairs = recipe.feedback.labelled_pairs
    labelled = min(len(read_pairs(Path(pairs)).pairs), recipe.feedback.gate_pairs) if pairs else 0
    loads = loads_of(recipe, shape, shapes, lengths, counts, to_sort=to_sort, labelled=labelled)
    speed = probe(shape, recipe.precision, device)
    stages: list[dict[str, Any]] = [
        {
            "stage": load.stage,
            "generated": round(load.generated),
            "scored": round(load.scored),
            "trained": round(load.trained),
            "requests": {name: round(asked.requests) for name, asked in load.asked.items()},
            "memory": {"program": round(PROGRAM)} | {key: round(value) for key, value in load.memory.items()},
            "peak_bytes": round(load.peak_bytes),
            "seconds": round(seconds_of(load, shape, speed), 1),
        }
        for load in loads
    ]
    peak = max(stages, key=lambda stage: stage["peak_bytes"])
    available = memory_of(device)

    def needs(variant: Recipe) -> float:
        own = {name: held(one, variant) for name, one in shapes.items()}
        loads = loads_of(variant, own["base"], own, lengths, counts, to_sort=to_sort, labelled=labelled)
        return max(load.peak_bytes for load in loads)

    fits = peak["peak_bytes"] < available
    return {
        "title": recipe.title,
        "model": recipe.model,
        "parameters": shape.parameters,
        "quantization": recipe.quantization,
        "adapter_parameters": shape.adapter(recipe.rl.lora),
        "layers": shape.layers,
        "hidden_size": shape.hidden,
        "vocabulary": shape.vocabulary,
        "prompts": counts,
        "prompt_tokens": {"mean": round(lengths.prompt, 1), "longest": lengths.longest_prompt},
        "device": device,
        "memory_bytes": available,
        "stages": stages,
        "peak_bytes": peak["peak_bytes"],
        "peak_stage": peak["stage"],
        "fits": fits,
        "would_fit": None if fits else what_fits(recipe, needs, available),
        "seconds": round(sum(stage["seconds"] for stage in stages), 1),
        "operations_per_second": round(speed.operations),
        "endpoints": {name: endpoint_plan(recipe, name, loads) for name in recipe.endpoints},
        "assumptions": [*ASSUMPTIONS, *([COUNTED_HERE] if recipe.endpoints else [])],
    }


def endpoint_plan(recipe: Recipe, name: str, loads: Sequence[Load]) -> dict[str, Any]:
    """What would be sent to an endpoint in all, what it would cost where prices are given, and which budget is too small."""
    settings = recipe.endpoints[name]
    asked = sum((load.asked.get(name, Asked()) for load in loads), Asked())
    money = None
    if settings.input_price is not None and settings.output_price is not None:
        money = (asked.read * settings.input_price + asked.written * settings.output_price) / 1e6
    short = [
        key for key, need, have in (
            ("budget_tokens", asked.read + asked.written, settings.budget_tokens), ("budget_money", money, settings.budget_money)
        ) if need is not None and have is not None and need > have
    ]  # fmt: skip
    return {
        "model": settings.model, "url": settings.url, "requests": round(asked.requests), "input_tokens": round(asked.read),
        "output_tokens": round(asked.written), "money": None if money is None else round(money, 4), "too_small": short,
    }  # fmt: skip


def plan_table(figures: dict[str, Any]) -> list[str]:
    """The plan as lines for people."""
    counts, tokens = figures["prompts"], figures["prompt_tokens"]
    lines = [
        figures["title"],
        f"model     {amount(figures['parameters'])} parameters, {figures['layers']} layers, hidden size "
        f"{figures['hidden_size']}, vocabulary {figures['vocabulary']}"
        + (f"; LoRA trains {amount(figures['adapter_parameters'])}" if figures["adapter_parameters"] else ""),
        f"prompts   to train on: {counts['train red_team']} red-team, {counts['train benign']} benign; held out: "
        f"{counts['test red_team']} and {counts['test benign']}; {tokens['mean']:.0f} tokens on average, at most "
        f"{tokens['longest']} in a sample",
        f"machine   {figures['device']}, {size(figures['memory_bytes'])}, "
        f"{figures['operations_per_second'] / 1e9:.0f} billion operations a second",
        "",
        f"{'tokens:':12}{'generated':>12}{'scored':>12}{'trained on':>12}{'peak memory':>14}{'time':>10}",
    ]
    for stage in figures["stages"]:
        lines.append(
            f"{stage['stage']:12}{amount(stage['generated']):>12}{amount(stage['scored']):>12}"
            f"{amount(stage['trained']):>12}{size(stage['peak_bytes']):>14}{duration(stage['seconds']):>10}"
        )
    peak = next(stage for stage in figures["stages"] if stage["stage"] == figures["peak_stage"])
    parts = ", ".join(f"{key.replace('_', ' ')} {size(value)}" for key, value in peak["memory"].items())
    lines += [
        f"{'all':12}{'':36}{size(figures['peak_bytes']):>14}{duration(figures['seconds']):>10}",
        "",
        f"peak      {size(figures['peak_bytes'])} in {figures['peak_stage']} ({parts})",
        f"          {'fits into' if figures['fits'] else 'does NOT fit into'} the {size(figures['memory_bytes'])} of "
        + ("this GPU" if figures["device"] == "cuda" else "this machine")
        + ("" if figures["fits"] else f"; {figures['would_fit']}"),
        *(endpoint_line(name, asked) for name, asked in figures["endpoints"].items()),
        "",
        "Time is a rough estimate. It and the rest assume:",
        *(f"  - {words}" for words in figures["assumptions"]),
    ]
    return lines


def endpoint_line(name: str, asked: Mapping[str, Any]) -> str:
    money = "no prices given" if asked["money"] is None else f"money {asked['money']:.4g}"
    short = f"; more than {' and '.join(asked['too_small'])} allows" if asked["too_small"] else ""
    return (
        f"endpoint  {name}: at most {asked['requests']} requests to {asked['model']} at {asked['url']}, "
        f"{amount(asked['input_tokens'])} tokens read, {amount(asked['output_tokens'])} written, {money}{short}"
    )


def amount(n: float) -> str:
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if n >= scale:
            return f"{n / scale:.1f}{unit}"
    return f"{n:.0f}"


def size(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
