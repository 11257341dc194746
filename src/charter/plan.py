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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charter.config import (
    ENDPOINT,
    AnyRLSettings,
    DPOSettings,
    EvaluationSettings,
    FeedbackSettings,
    GRPOSettings,
    LoRASettings,
    PPOSettings,
    Recipe,
    ReviseSettings,
    RolloutSettings,
    SFTSettings,
    TrainingSettings,
    check_files,
)
from charter.constitution.categorise import CATEGORISE, NONE
from charter.constitution.constitution import EMPTY, Constitution, load_constitution, load_few_shots
from charter.errors import InputError
from charter.feedback.demonstrations import read_demonstrations
from charter.feedback.judge import QUESTIONS, ask, comparisons_of
from charter.feedback.pairs import read_pairs
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.endpoint import SHORT_ANSWER
from charter.models.llama_weights import FUSED_BYTES, KEPT_ROLES, LLAMA_LIKE
from charter.models.load import check_attention, check_folder, first_line, kind_of, load_tokenizer, pick_device
from charter.models.logprobs import BLOCK_ELEMENTS, KEPT_ELEMENTS
from charter.models.packing import Tokens, clip
from charter.models.precision import DTYPES
from charter.models.quantize import BYTES as QUANTIZED_BYTES
from charter.models.quantize import check_bitsandbytes
from charter.models.sampler import READ_TOKENS, fill
from charter.prompts import KINDS, deduplicate, is_kind, split_prompts
from charter.records import Generation, Message, Prompt, Response
from charter.stages.prompts import prompts_of

FLOAT = 4  # bytes: weights, gradients and moments are float32 whatever the precision of the matrix products
PROGRAM = 850e6  # bytes of Python, torch, transformers, compiled kernels, and a heap that keeps its holes
EFFICIENCY = 0.4  # share of a bare matrix product's rate that a transformer reaches
STEP_PER_LAYER = 0.25e-3  # seconds of Python and small operations per layer and decoding step
SHAPED = ("logit_scale", "logits_scaling", "final_logit_softcapping")  # what else is done to logits
TURNS = ("kv_cache", "activations", "merged_copy", "saved_copy")
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
    """Whether its pass is written out, on a GPU for sampling alone: what is kept then is in the precision of the run."""
    quantized: bool = False
    """Whether its linear layers are held in 4 bits."""
    plain: bool = False
    """Whether its logits are one product with one matrix, so that they are looked at in blocks."""

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
        plain=not config.is_encoder_decoder
        and not any(name.endswith("head.bias") for name in tensors)
        and all(getattr(config, name, None) is None for name in SHAPED),
    )


def shapes_of(recipe: Recipe) -> dict[str, Shape]:
    """The shapes of the models that a recipe names, `base` and `sft` among them."""
    named = {name for key, name in recipe.samplers().items() if key[:2] != "rl" and not name.startswith(ENDPOINT)}
    named |= {recipe.reward_model.model} if recipe.reward_model.model and recipe.trains_reward_model else set()
    shape = read_shape(recipe.model)
    found = {"base": shape, "sft": shape} | {name: read_shape(name) for name in sorted(named - {"base", "sft"})}
    rewards = recipe.rl.reward.values() if isinstance(recipe.rl, RolloutSettings) else ()
    measures = recipe.evaluation.measures.values() if recipe.evaluation is not None else ()
    classifiers = {classifier_of(one.source or "") for one in (*rewards, *measures)} - {None}
    found |= {name: read_shape(name) for name in sorted(filter(None, classifiers))}
    return {name: held(one, recipe) for name, one in found.items()}


def classifier_of(source: str) -> str | None:
    """The model of `classifier:FOLDER:LABEL`, None for other sources."""
    kind, _, rest = source.partition(":")
    return rest.rpartition(":")[0] or None if kind == "classifier" else None


def held(shape: Shape, recipe: Recipe) -> Shape:
    """The shape as the recipe has it held: in 4 bits nothing is written out, nor where a second copy is too large."""
    if recipe.quantization:
        return replace(shape, fused=False, quantized=True)
    fits = shape.parameters * DTYPES[recipe.precision].itemsize <= FUSED_BYTES
    return replace(shape, fused=shape.fused and fits, quantized=False)


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
    context: float


def measure_lengths(recipe: Recipe, constitution: Constitution, prompts: Sequence[Prompt], tokenizer: Any) -> Lengths:
    """Tokens of prompts, requests and questions under the model's own template. Where nothing is sampled the prompts are those of
    the examples and pairs."""
    sample = list(prompts)[:: max(1, len(prompts) // SAMPLE)][:SAMPLE]
    encoded = [len(encode_prompt(tokenizer, prompt.messages)) for prompt in sample]

    def turn(text: str) -> int:
        return len(encode_prompt(tokenizer, [Message(role="user", content=text)]))

    titles = [*(topic.title for topic in constitution.topics()), NONE]
    questions = [fill(CATEGORISE, prompt=p.last_turn, topics=", ".join(titles)) for p in sample[:20]]
    few_shots = recipe.revise.few_shots if recipe.revise is not None else None
    shots = load_few_shots(Path(few_shots)) if few_shots else []
    shot_messages = [message for shot in shots for message in shot]
    revisers = [p for p in constitution.principles if p.critique is not None and p.revision is not None]
    empty = [
        [Response(prompt_id=p.id, model="", text="", finish_reason="stop", generation=Generation(seed=j, temperature=0.0))
         for j in range(2)] for p in sample[:20]
    ]  # fmt: skip
    asked = [ask(comparison) for comparison in comparisons_of(sample[:20], empty, constitution, recipe.seed)]
    return Lengths(
        prompt=mean(encoded),
        longest_prompt=max(encoded, default=0),
        few_shots=sum(len(encode_response(tokenizer, message.content)) for message in shot_messages),
        critique=mean([turn(p.critique or "") for p in revisers]),
        revision=mean([turn(p.revision or "") for p in revisers]),
        topic_question=mean([turn(question) for question in questions]),
        topics=sum(len(encode_response(tokenizer, title, end=False)) for title in titles) if len(titles) > 1 else 0,
        comparison=mean([len(encode_prompt(tokenizer, question)) for question in asked]),
        question=mean([turn(text) for text in QUESTIONS.values()]),
        context=turn(recipe.revise.context) if recipe.revise is not None and recipe.revise.context else 0.0,
    )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def count_prompts(recipe: Recipe) -> tuple[list[Prompt], dict[str, int], int]:
    """Training prompts; counts by split and kind as the prompt stage will choose them; prompts that it sorts by principle."""
    settings = recipe.prompts
    counts = {f"{part} {kind}": 0 for part in ("train", "test") for kind in KINDS}
    if settings is None:
        return [], counts, 0
    unique, _ = deduplicate(prompts_of(settings))
    split = split_prompts(unique, test_fraction=settings.test_fraction, seed=recipe.seed)
    for part, wanted in (("train", settings.train), ("test", settings.test)):
        for kind in KINDS:
            n = sum(p.split == part and is_kind(p.tags, kind) for p in split)
            counts[f"{part} {kind}"] = min(n, wanted) if wanted else n
    if recipe.revise is not None and not counts["train red_team"]:
        raise InputError("no training prompt is tagged red_team; tag the file's prompts or set prompts.tags")
    return [p for p in split if p.split == "train"], counts, sum(p.principle is None for p in unique)


@dataclass(frozen=True)
class Given:
    """What a recipe's files hold: how many rows, and mean tokens of a prompt and of a response, cut as the stage cuts them."""

    n: int = 0
    prompt: float = 0.0
    response: float = 0.0
    longest: int = 0

    @property
    def row(self) -> float:
        return self.prompt + self.response


def measure_rows(rows: Sequence[tuple[Prompt, str]], tokenizer: Any, limit: int | None) -> Given:
    """Tokens of a sample of prompts and responses."""
    sample = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    cut = [
        clip(Tokens(encode_prompt(tokenizer, prompt.messages), encode_response(tokenizer, text)), limit)
        for prompt, text in sample
    ]
    return Given(
        len(rows), mean([len(one.prompt) for one in cut]), mean([len(one.response) for one in cut]),
        max((len(one) for one in cut), default=0),
    )  # fmt: skip


def read_given(recipe: Recipe, tokenizer: Any, positions: int | None) -> tuple[Given, Given]:
    """Examples of `sft.data` and, both sides counted as one row each, pairs of `feedback.pairs`."""
    examples, pairs = Given(), Given()
    if recipe.sft is not None and recipe.sft.data:
        found = [one for file in recipe.sft.data for one in read_demonstrations(Path(file))]
        examples = measure_rows(found[: recipe.sft.max_examples], tokenizer, recipe.sft.max_tokens or positions)
    if recipe.feedback is not None and recipe.feedback.pairs:
        read = [pair for file in recipe.feedback.pairs for pair in read_pairs(Path(file)).pairs]
        sides = [(p.prompt, text) for p in read[: recipe.feedback.max_pairs] for text in (p.chosen, p.rejected)]
        own = recipe.rl.max_tokens if isinstance(recipe.rl, DPOSettings) else recipe.reward_model.max_tokens
        pairs = measure_rows(sides, tokenizer, own or positions)
    return examples, pairs


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
            self.choose(shapes[name], n, question)

    def choose(self, shape: Shape, n: float, question: float) -> None:
        """``n`` questions that a model reads, a micro-batch of them at once, to choose among given answers."""
        self.score(shape, n * question)
        self.cache(shape, read=min(n * question, max(READ_TOKENS, question)), rows=0)

    def cache(self, shape: Shape, *, read: float, rows: int, new: int = 0) -> None:
        """Keys and values of the tokens that are ``read`` at once, with what a layer makes of them on the way, or then of
        ``rows`` texts that have grown by ``new`` tokens, with what the next one is chosen from."""
        width = self.width if shape.fused else FLOAT
        kept, passing = 2 * shape.layers * shape.kv_width, 4 * shape.inner + 6 * shape.hidden
        choosing = rows * shape.vocabulary * (4 + 4 + 4)  # logits, scaled, probabilities
        most = max(read * (kept + passing) * width, (read + rows * new) * kept * width + choosing)
        self.memory["kv_cache"] = max(self.memory.get("kv_cache", 0), most)

    def hold_named(self, shapes: Shapes, *names: str) -> None:
        """The models of these names, each once; what is behind an endpoint takes no memory here."""
        for name in sorted({name for name in names if not name.startswith(ENDPOINT)}):
            self.hold(shapes[name], 1)

    def hold_classifiers(self, counted: Counted, sources: Iterable[str]) -> None:
        """The classifiers among the sources of a reward or of measures, in float32."""
        for name in {one for source in sources if (one := classifier_of(source))}:
            self.hold(replace(counted.shapes[name], quantized=False), 1)

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
        self.cache(shape, read=rows * prompt, rows=rows, new=new)

    def hold(self, shape: Shape, models: int) -> None:
        """Whole models in memory that are not trained."""
        self.memory["weights"] = self.memory.get("weights", 0) + models * shape.bytes

    def train(self, shape: Shape, lora: LoRASettings | None, roles: int, *, scores: bool = False) -> None:
        """Trained roles: full copies or adapters, each with gradients and two Adam moments. ``scores``: of a reward model."""
        size = (shape.adapter(lora) if lora else shape.parameters) * FLOAT * roles
        self.lora = lora is not None
        self.memory["weights"] = self.memory.get("weights", 0) + size
        self.memory["gradients"] = size
        self.memory["adam"] = 2 * size
        if lora and not scores:
            # Adapters are merged into a copy of the base when the result is saved, of 4-bit weights beside the GPU.
            width = FLOAT if not shape.quantized else 0 if self.gpu else self.width
            self.memory["merged_copy"] = shape.parameters * width
        elif scores:  # a reward model is saved as what was trained, copied first
            self.memory["saved_copy"] = size

    def activate(self, shape: Shape, settings: TrainingSettings, row: float, response: float, copies: int) -> None:
        """What backward needs of a micro-batch: per token and layer some vectors of the hidden, key-value and inner width,
        and the logits at the positions that are scored: once where they are looked at in blocks, else ``copies`` of them."""
        tokens = max(settings.tokens_per_micro_batch, row)
        scored = tokens * min(response / max(row, 1), 1) * shape.vocabulary if copies else 0
        if not shape.fused or self.gpu:
            per_layer = 9 * shape.hidden + 3 * shape.kv_width + 3 * shape.inner
            layers = per_layer + shape.layers * shape.hidden if self.checkpointing else shape.layers * per_layer
            # Under autocast a product keeps its weights as they were cast; those of 4 bits are written out again.
            casts = self.width < FLOAT and not shape.quantized
            weights = sum(math.prod(one) for one in shape.linear) * self.width if casts else 0
            logits = scored * copies * FLOAT
            if shape.plain and copies:  # the matrix as it is cast, and its gradient
                logits = min(scored, KEPT_ELEMENTS) * self.width + shape.vocabulary * shape.hidden * (
                    self.width + FLOAT
                )
            again = shape.layers if self.checkpointing else 1
            self.memory["activations"] = tokens * layers * FLOAT + logits + weights / again
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
        if shape.fused and not (self.gpu and self.trained and not self.generated):  # on a GPU for sampling alone
            self.memory["cast_weights"] = (
                (min(models + 1, KEPT_ROLES) if self.lora else models) * shape.parameters * self.width
            )

    @property
    def peak_bytes(self) -> float:
        """Sampling, training and saving take turns: of what they need for themselves the largest counts."""
        turns = [self.memory.get(key, 0) for key in TURNS]
        return PROGRAM + max(turns) + sum(value for key, value in self.memory.items() if key not in TURNS)


@dataclass(frozen=True)
class Counted:
    """What the loads of a recipe follow from. ``to_sort`` prompts have no principle yet; ``labelled`` pairs test the judge."""

    recipe: Recipe
    shape: Shape
    shapes: Shapes
    lengths: Lengths
    counts: Mapping[str, int]
    to_sort: int
    labelled: int
    examples: Given
    pairs: Given
    device: str = "cpu"

    def load(self, stage: str) -> Load:
        return Load(
            stage,
            width=DTYPES[self.recipe.precision].itemsize,
            checkpointing=self.recipe.gradient_checkpointing,
            gpu=self.device == "cuda",
        )

    def written(self, name: str) -> int:
        """Tokens that an endpoint writes to make a choice."""
        read = not name.startswith(ENDPOINT) or self.recipe.endpoints[name.removeprefix(ENDPOINT)].logprobs != "no"
        return 1 if read else SHORT_ANSWER

    def within(self, tokens: float) -> float:
        return min(tokens, self.shape.positions) if self.shape.positions else tokens

    @property
    def n_revised(self) -> int:
        return min(self.recipe.revise.prompts, self.counts["train red_team"]) if self.recipe.revise is not None else 0

    @property
    def n_helpful(self) -> int:
        """Helpful answers that go into fine-tuning beside the revisions."""
        share = self.recipe.sft.helpful_fraction if self.recipe.sft is not None else 0.0
        return min(round(self.n_revised * share / (1 - share)), self.counts["train benign"])

    @property
    def n_asked(self) -> int:
        """Prompts whose responses are compared."""
        settings = self.recipe.feedback
        if settings is None or not settings.samples:
            return 0
        there = [n for kind in KINDS if (n := self.counts[f"train {kind}"])]
        return sum(min(settings.prompts // len(there), n) for n in there)

    @property
    def n_pairs(self) -> int:
        settings = self.recipe.feedback
        if settings is None or settings.pairs:
            return self.pairs.n // 2
        if settings.revisions:
            return self.n_revised
        return self.n_asked * math.comb(settings.responses_per_prompt, 2)

    @property
    def pair_row(self) -> tuple[float, float]:
        """Tokens of one side of a pair, and of its response."""
        settings = self.recipe.feedback
        if settings is None or settings.pairs:
            return self.pairs.row, self.pairs.response
        new = settings.max_new_tokens
        if settings.revisions and self.recipe.revise is not None:
            new = self.recipe.revise.max_new_tokens
        return self.lengths.prompt + new + 1, new + 1

    def needs(self, variant: Recipe) -> float:
        """Peak bytes of the recipe with some settings changed."""
        own = {name: held(shape, variant) for name, shape in self.shapes.items()}
        return max(load.peak_bytes for load in loads_of(replace(self, recipe=variant, shape=own["base"], shapes=own)))

    @property
    def n_arms(self) -> int:
        return 1 + (self.recipe.sft is not None) + (self.recipe.rl is not None)


def loads_of(counted: Counted) -> list[Load]:
    """The work of each stage in running order."""
    recipe = counted.recipe
    loads = []
    if recipe.prompts is not None:
        loads.append(prompts_load(counted))
    if recipe.revise is not None:
        loads.append(revise_load(counted, recipe.revise))
    if recipe.sft is not None:
        loads.append(sft_load(counted, recipe.sft))
    for number in range(1, recipe.rounds + 1):
        again = [feedback_load(counted, recipe.feedback)] if recipe.feedback is not None else []
        again += [reward_load(counted)] if recipe.trains_reward_model else []
        again += [rl_load(counted, recipe.rl)] if recipe.rl is not None else []
        for load in again:
            load.stage += f"-{number}" if number > 1 else ""
        loads += again
    if recipe.evaluation is not None:
        loads.append(evaluate_load(counted, recipe.evaluation))
    for load in loads:
        load.cast(counted.shape)
        if recipe.scorer is not None and recipe.scorer.startswith("judge:"):  # loaded from beginning to end
            load.hold_named(counted.shapes, recipe.scorer.removeprefix("judge:"))
    return loads


def prompts_load(counted: Counted) -> Load:
    load, lengths = counted.load("prompts"), counted.lengths
    load.hold(counted.shape, 1)
    if lengths.topics:
        load.choose(counted.shape, counted.to_sort, lengths.topic_question + lengths.topics)
    return load


def revise_load(counted: Counted, settings: ReviseSettings) -> Load:
    load, lengths, shapes = counted.load("revise"), counted.lengths, counted.shapes
    rows, reply, n = counted.recipe.batch_size, settings.max_new_tokens, counted.n_revised
    load.sample_from(settings.generator, shapes, n + counted.n_helpful, lengths.prompt, reply, rows)
    n_rounds = settings.rounds if settings.context is None else 1
    if settings.context is not None:
        load.hold_named(shapes, settings.generator)
        load.sample_from(settings.generator, shapes, n, lengths.prompt + lengths.context, reply, rows)
    else:
        load.hold_named(shapes, settings.generator, settings.critic)
        criticised = lengths.few_shots + lengths.prompt + reply + lengths.critique
        revised = criticised + reply + lengths.revision
        for _ in range(settings.rounds):
            load.sample_from(settings.critic, shapes, n, counted.within(criticised), reply, rows)
            load.sample_from(settings.critic, shapes, n, counted.within(revised), reply, rows)
    ask_scorer(load, counted, n * (n_rounds + 1), lengths.prompt + reply)
    return load


def sft_load(counted: Counted, settings: SFTSettings) -> Load:
    load, lengths, revise = counted.load("sft"), counted.lengths, counted.recipe.revise
    n, row, response = counted.examples.n, counted.examples.row, counted.examples.response
    tokens = n * row
    if revise is not None:
        own = lengths.prompt + revise.max_new_tokens + 1
        all_of_them = settings.use_revisions == "all" and revise.context is None
        tokens += (counted.n_revised * (revise.rounds if all_of_them else 1) + counted.n_helpful) * own
        row, response = max(row, own), max(response, revise.max_new_tokens + 1)
    load.hold(counted.shape, 1)
    load.train(counted.shape, settings.lora, roles=1)
    load.activate(counted.shape, settings, row, response, copies=3)
    load.learn(counted.shape, settings.epochs * tokens)
    return load


def feedback_load(counted: Counted, settings: FeedbackSettings) -> Load:
    load, lengths, shapes = counted.load("feedback"), counted.lengths, counted.shapes
    if not settings.samples:
        return load
    n_asked, k = counted.n_asked, settings.responses_per_prompt
    together = max(1, counted.recipe.batch_size // k) * k
    load.hold_named(shapes, settings.generator, *((settings.judge,) if settings.asks_judge else ()))
    load.sample_from(settings.generator, shapes, n_asked * k, lengths.prompt, settings.max_new_tokens, together)
    if settings.asks_judge:
        question = lengths.comparison + 2 * settings.max_new_tokens
        n = 2 * (counted.n_pairs + counted.labelled)  # each comparison in both orders
        load.choose_with(settings.judge, shapes, n, question, counted.written(settings.judge))
    return load


def reward_load(counted: Counted) -> Load:
    load, settings = counted.load("reward_model"), counted.recipe.reward_model
    shape, n_pairs = counted.shapes[settings.model or "sft"], counted.n_pairs
    row, _ = counted.pair_row
    n_train = round(n_pairs * (1 - settings.test_fraction))
    load.hold(shape, 1)
    load.train(shape, settings.lora, roles=settings.ensemble, scores=True)
    load.activate(shape, settings, row, 0, copies=0)
    load.learn(shape, settings.ensemble * settings.epochs * n_train * 2 * row)
    load.score(shape, settings.ensemble * (n_pairs + counted.labelled) * 2 * row)
    return load


def rl_load(counted: Counted, settings: AnyRLSettings) -> Load:
    load, shape, lengths = counted.load("rl"), counted.shape, counted.lengths
    load.hold(shape, 1)
    if isinstance(settings, DPOSettings):
        row, response = counted.pair_row
        load.train(shape, settings.lora, roles=1)
        load.activate(shape, settings, row, response, copies=3)
        load.score(shape, counted.n_pairs * 2 * row)  # the reference, once
        load.learn(shape, settings.epochs * counted.n_pairs * 2 * row)
        return load
    n_steps, n_rollouts = settings.steps, settings.prompts_per_step * settings.samples_per_prompt
    row = lengths.prompt + settings.max_new_tokens
    ppo = isinstance(settings, PPOSettings)
    epochs = settings.epochs if isinstance(settings, (PPOSettings, GRPOSettings)) else 1
    load.train(shape, settings.lora, roles=2 if ppo else 1)
    if counted.recipe.trains_reward_model:  # only read
        reward = counted.recipe.reward_model
        scored_by = counted.shapes[reward.model or "sft"]
        if reward.model is not None:
            load.hold(scored_by, 1)
        load.memory["weights"] += (scored_by.adapter(reward.lora) or scored_by.parameters) * FLOAT
    load.activate(shape, settings, row, settings.max_new_tokens, copies=5)
    if ppo:  # policy and value hold their activations until one backward pass through both
        load.memory["activations"] *= 2
    load.sample(shape, n_steps * n_rollouts, lengths.prompt, settings.max_new_tokens, n_rollouts)
    # Reward, policy and reference read every rollout, with PPO the value model too.
    load.score(shape, n_steps * n_rollouts * row * (4 if ppo else 3))
    load.learn(shape, n_steps * n_rollouts * row * epochs * (2 if ppo else 1))
    load.hold_classifiers(counted, (part.source or "" for part in settings.reward.values()))
    anew = (settings.sigmoid_against or 0) * sum(counted.counts[f"train {kind}"] for kind in KINDS)
    for judge in judges_of(settings):
        if judge.startswith(ENDPOINT):  # two questions about each response
            load.ask(judge, 2 * (n_steps * n_rollouts + anew), row + lengths.question, counted.written(judge))
    return load


def evaluate_load(counted: Counted, settings: EvaluationSettings) -> Load:
    load, shape, lengths = counted.load("evaluate"), counted.shape, counted.lengths
    n_test = sum(counted.counts[f"test {kind}"] for kind in KINDS) * settings.samples_per_prompt
    row, n_arms = lengths.prompt + settings.max_new_tokens + 1, counted.n_arms
    load.hold(shape, n_arms)
    load.hold_classifiers(counted, (measure.source for measure in settings.measures.values()))
    for _ in range(n_arms):
        load.sample(shape, n_test, lengths.prompt, settings.max_new_tokens, counted.recipe.batch_size)
    if settings.best_of is not None:
        load.hold(counted.shapes[counted.recipe.reward_model.model or "sft"], 1)  # the reward model's own
        load.sample(
            shape, n_test * settings.best_of, lengths.prompt, settings.max_new_tokens, counted.recipe.batch_size
        )
        load.score(shape, n_test * settings.best_of * row)
    # Each arm under itself and the base, the policy under the SFT model too.
    load.score(shape, (2 * n_arms + (n_arms == 3)) * n_test * row)
    ask_scorer(load, counted, (n_arms + (settings.best_of is not None)) * n_test, row)
    return load


def ask_scorer(load: Load, counted: Counted, n: float, row: float) -> None:
    """Two questions about each of ``n`` responses, where a model scores."""
    if counted.recipe.scorer is not None and counted.recipe.scorer.startswith("judge:"):
        scorer = counted.recipe.scorer.removeprefix("judge:")
        load.choose_with(scorer, counted.shapes, 2 * n, row + counted.lengths.question, counted.written(scorer))


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

CERTAIN = (
    "weights",
    "cast_weights",
    "gradients",
    "adam",
    "merged_copy",
    "saved_copy",
)  # whatever the texts turn out to be
SMALL_BATCH, LEAST_BATCH, SMALL_MICRO_BATCH = 16, 4, 1024
NO_TEXTS = Lengths(*[0] * len(fields(Lengths)))


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
    stages = ("sft", "reward_model", "rl") if recipe.trains_reward_model else ("sft", "rl")
    trained = [name for name in stages if isinstance(getattr(recipe, name), TrainingSettings)]
    batches: dict[str, Any] = {"batch_size": min(recipe.batch_size, SMALL_BATCH)}
    for name in trained:
        own = getattr(recipe, name).tokens_per_micro_batch
        batches[f"{name}.tokens_per_micro_batch"] = min(own, SMALL_MICRO_BATCH)
    lora = {f"{name}.lora": LoRASettings() for name in trained if getattr(recipe, name).lora is None}
    least = {"batch_size": min(recipe.batch_size, LEAST_BATCH)}
    return [batches, least, {"gradient_checkpointing": True}, lora, {"quantization": "nf4"}]


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
        return loads_of(Counted(variant, own["base"], own, NO_TEXTS, counts, 0, 0, Given(), Given(), device))

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


def count(recipe: Recipe, shapes: Shapes, device: str) -> Counted:
    """Read what the loads of a recipe on a device follow from: its files, and their tokens."""
    constitution = load_constitution(Path(recipe.constitution)) if recipe.constitution else EMPTY
    train, counts, to_sort = count_prompts(recipe)
    tokenizer, shape = load_tokenizer(recipe.model), shapes["base"]
    lengths = measure_lengths(recipe, constitution, train, tokenizer)
    known = recipe.feedback.labelled_pairs if recipe.feedback is not None else None
    most = recipe.feedback.gate_pairs if recipe.feedback is not None else 0
    labelled = min(len(read_pairs(Path(known)).pairs), most) if known else 0
    given = read_given(recipe, tokenizer, shape.positions)
    return Counted(recipe, shape, shapes, lengths, counts, to_sort, labelled, *given, device)


def smaller(recipe: Recipe) -> str:
    """The mildest changes with which a run that ran out of memory needs less than is free, and a third less than it did."""
    device = pick_device(recipe.device)
    counted = count(recipe, shapes_of(recipe), device)
    room = min(free_memory(device), counted.needs(recipe) * 2 / 3)
    return what_fits(recipe, counted.needs, room)


def plan_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a run of the recipe will take, in JSON values: tokens as counts, memory in bytes, time in seconds.

    InputError where the model, a file or the GPU it asks for is missing.
    """
    device = pick_device(recipe.device)
    counted, loads, figures = work_of(recipe, device)
    speed = probe(counted.shape, recipe.precision, device)
    for stage, load in zip(figures["stages"], loads, strict=True):
        stage["seconds"] = round(seconds_of(load, counted.shape, speed), 1)
    available = memory_of(device)
    fits = figures["peak_bytes"] < available
    return figures | {
        "memory_bytes": available,
        "fits": fits,
        "would_fit": None if fits else what_fits(recipe, counted.needs, available),
        "seconds": round(sum(stage["seconds"] for stage in figures["stages"]), 1),
        "operations_per_second": round(speed.operations),
        "assumptions": [*ASSUMPTIONS, *([COUNTED_HERE] if recipe.endpoints else [])],
    }


def work_of(recipe: Recipe, device: str) -> tuple[Counted, list[Load], dict[str, Any]]:
    """What the files of a recipe hold, the load of each stage, and what a plan says that no machine has a part in. ``device`` is
    where the run would be, `cpu` or `cuda`, and need not be here. InputError where the model or a file is missing."""
    check_files(recipe)
    shapes = shapes_of(recipe)
    shape = shapes["base"]
    counted = count(recipe, shapes, device)
    loads = loads_of(counted)
    stages: list[dict[str, Any]] = [
        {
            "stage": load.stage,
            "generated": round(load.generated),
            "scored": round(load.scored),
            "trained": round(load.trained),
            "requests": {name: round(asked.requests) for name, asked in load.asked.items()},
            "memory": {"program": round(PROGRAM)} | {key: round(value) for key, value in load.memory.items()},
            "peak_bytes": round(load.peak_bytes),
        }
        for load in loads
    ]
    peak = max(stages, key=lambda stage: stage["peak_bytes"])
    return counted, loads, {
        "title": recipe.title,
        "model": recipe.model,
        "parameters": shape.parameters,
        "quantization": recipe.quantization,
        "adapter_parameters": shape.adapter(next((one.lora for one in trainings(recipe) if one.lora), None)),
        "layers": shape.layers,
        "hidden_size": shape.hidden,
        "vocabulary": shape.vocabulary,
        "prompts": {key: n for key, n in counted.counts.items() if n},
        "prompt_tokens": {"mean": round(counted.lengths.prompt, 1), "longest": counted.lengths.longest_prompt},
        "examples": counted.examples.n,
        "pairs": counted.pairs.n // 2,
        "row_tokens": {"examples": round(counted.examples.row, 1), "pairs": round(counted.pairs.row, 1)},
        "device": device,
        "stages": stages,
        "peak_bytes": peak["peak_bytes"],
        "peak_stage": peak["stage"],
        "endpoints": {name: endpoint_plan(recipe, name, loads) for name in recipe.endpoints},
    }  # fmt: skip


def trainings(recipe: Recipe) -> list[TrainingSettings]:
    """The settings of what a recipe trains."""
    own = [recipe.rl, recipe.sft, recipe.reward_model if recipe.trains_reward_model else None]
    return [settings for settings in own if settings is not None]


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
    lines = [
        figures["title"],
        f"model     {amount(figures['parameters'])} parameters, {figures['layers']} layers, hidden size "
        f"{figures['hidden_size']}, vocabulary {figures['vocabulary']}"
        + (f"; LoRA trains {amount(figures['adapter_parameters'])}" if figures["adapter_parameters"] else ""),
        *data_lines(figures),
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


def data_lines(figures: Mapping[str, Any]) -> list[str]:
    """What the recipe's files hold."""
    counts, tokens, lines = figures["prompts"], figures["prompt_tokens"], []
    if counts:
        there = [kind for kind in KINDS if f"train {kind}" in counts or f"test {kind}" in counts]
        trained, held = (", ".join(f"{counts.get(f'{part} {kind}', 0)} {kind.replace('_', '-')}" for kind in there)
                         for part in ("train", "test"))  # fmt: skip
        lines.append(f"prompts   to train on: {trained}; held out: {held}; {tokens['mean']:.0f} tokens on average, at most "
                     f"{tokens['longest']} in a sample")  # fmt: skip
    for name, title in (("examples", "examples"), ("pairs", "pairs")):
        if figures[name]:
            lines.append(
                f"{title:9} {figures[name]} from files, {figures['row_tokens'][name]:.0f} tokens a row on average"
            )
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
