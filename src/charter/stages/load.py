"""What the plans of the stages are written in: the work of a stage in tokens, operations and memory, and what it follows from.

No stage that runs imports it: a changed plan repeats no stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from charter.endpoints.endpoint import SHORT_ANSWER
from charter.judging.protocols import REASON_TOKENS
from charter.judging.rubrics import read_rubric
from charter.models.formats.precision import DTYPES
from charter.models.llama.decode import READ_TOKENS as READ_TOGETHER
from charter.models.llama.weights import KEPT_ROLES
from charter.models.logprobs import BLOCK_ELEMENTS, CACHE_ELEMENTS, KEPT_ELEMENTS
from charter.models.sampling.sampler import READ_TOKENS
from charter.models.shape import FLOAT, Shape
from charter.reading.prompts import KINDS
from charter.recipe.recipe import Recipe
from charter.recipe.settings import LoRASettings, TrainingSettings
from charter.recipe.source import Source

# Bytes of Python, torch, transformers, compiled kernels, and a heap that keeps its holes, by `benchmarks/plan_memory.py`. On a
# CPU a kernel for sixteen-bit numbers is compiled for every shape, and decoding has many. On a GPU it was not measured.
PROGRAM = 560e6
DECODING = 160e6
PROGRAM_FLOAT32 = 450e6
DECODING_FLOAT32 = 50e6
PROGRAM_GPU = 850e6
PEFT = 55e6
TURNS = (("kv_cache",), ("activations", "layer_at_hand"), ("reading",), ("merged_copy",), ("saved_copy",))


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
    """Requests to endpoints, by name."""
    roles: int = 0
    """Roles of the trained trunk that compute."""
    idle: bool = False
    """Whether the base is held and computes nothing."""
    checkpoint: float = 0
    """Bytes of a checkpoint: parameters and two moments."""
    left_behind: float = 0
    """Bytes of the models that stay on the disk."""

    def ask(self, endpoint: Source, n: float, read: float, written: float) -> None:
        """``n`` requests to an endpoint, each with so many tokens read and written."""
        name = endpoint.name
        self.asked[name] = self.asked.get(name, Asked()) + Asked(n, n * read, n * written)

    def sample_from(self, name: Source, shapes: Shapes, n: int, prompt: float, new: int, rows: int) -> None:
        """``sample`` by a named model, or from an endpoint, a request for each text."""
        if name.kind == "endpoint":
            self.ask(name, n, prompt, new)
        else:
            self.sample(shapes[str(name)], n, prompt, new, rows)

    def choose_with(self, name: Source, shapes: Shapes, n: float, question: float, written: int) -> None:
        """``n`` questions whose answer, of two, is read by a named model, or asked of an endpoint that writes so many tokens."""
        if name.kind == "endpoint":
            self.ask(name, n, question, written)
        else:
            self.choose(shapes[str(name)], n, question, 2)

    def compare_with(self, counted: Counted, judge: Source, n: int, question: float) -> None:
        """``n`` questions to a judge by the protocol of the feedback; by ``reasoned`` the judge first writes its reasons."""
        feedback, shapes = counted.recipe.feedback, counted.shapes
        if feedback is not None and feedback.protocol == "reasoned":
            self.sample_from(judge, shapes, n, question, REASON_TOKENS, 2 * counted.recipe.batch_size)
            question += REASON_TOKENS
        self.choose_with(judge, shapes, n, question, counted.written(judge))

    def choose(self, shape: Shape, n: float, question: float, options: float) -> None:
        """``n`` questions that a model reads, a micro-batch of them at once, to choose among so many listed answers."""
        self.score(shape, n * question)
        read = min(n * question, max(READ_TOKENS, question))
        self.cache(shape, read=read, rows=round(read / max(question, 1) * options))

    def cache(self, shape: Shape, *, read: float, rows: int, new: int = 0) -> None:
        """Keys and values: of the tokens that are ``read`` at once, with the activations of a layer, or later of ``rows`` texts
        that have grown by ``new`` tokens, with the logits of the next token."""
        width = self.width if shape.fused else FLOAT
        at_once = min(read, READ_TOGETHER) if shape.fused else read
        kept, passing = 2 * shape.layers * shape.kv_width, 4 * shape.inner + 6 * shape.hidden
        choosing = rows * shape.vocabulary * (4 + 4 + 4)  # logits, scaled, probabilities
        most = max((read * kept + at_once * passing) * width, (read + rows * new) * kept * width + choosing)
        self.memory["kv_cache"] = max(self.memory.get("kv_cache", 0), most)

    def hold_named(self, counted: Counted, *names: Source) -> None:
        """The models of these names, each once; a model behind an endpoint takes no memory here, and without fine-tuning `sft` is
        the base in the first round."""
        same = {"sft": "base"} if counted.recipe.sft is None and counted.recipe.rounds == 1 else {}
        for name in sorted({same.get(str(name), str(name)) for name in names if name.kind != "endpoint"}):
            self.hold(counted.shapes[name], 1)

    def hold_classifiers(self, counted: Counted, sources: Iterable[Source]) -> None:
        """The classifiers among the sources of a reward or of measures, in float32."""
        for name in {source.name for source in sources if source.kind == "classifier"}:
            self.hold(replace(counted.shapes[name], quantized=False), 1)

    def ask_scorer(self, counted: Counted, n: float, row: float) -> None:
        """Two questions about each of ``n`` responses, where a model scores."""
        source = counted.recipe.scorer
        if source is not None and source.kind == "judge":
            written = counted.written(source.model)
            self.choose_with(source.model, counted.shapes, 2 * n, row + counted.lengths.question, written)

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

    def train(
        self, shape: Shape, lora: LoRASettings | None, roles: int, *, scores: bool = False, reference: bool = False
    ) -> None:
        """Trained roles: full copies or adapters, each with gradients and two Adam moments. ``scores``: of a reward model;
        ``reference``: the base computes too."""
        size = (shape.adapter(lora) if lora else shape.parameters) * FLOAT * roles
        self.lora, self.roles, self.idle = lora is not None, roles + reference, not reference
        self.memory["weights"] = self.memory.get("weights", 0) + size
        self.memory["gradients"] = size
        self.memory["adam"] = 2 * size
        self.checkpoint = 3 * size
        written = shape.parameters * (self.width if shape.quantized else FLOAT)
        self.left_behind = size if scores else written + (shape.adapter(lora) * FLOAT if lora else 0)
        if lora and not scores:
            # Adapters are merged into a copy of the base when the result is saved, of 4-bit weights beside the GPU.
            width = FLOAT if not shape.quantized else 0 if self.gpu else self.width
            self.memory["merged_copy"] = shape.parameters * width
        elif scores:  # a reward model is saved as what was trained, copied first
            self.memory["saved_copy"] = size

    def activate(
        self, shape: Shape, settings: TrainingSettings, rows: float, row: float, response: float, copies: int,
        read: float = 0, passes: int = 1, siblings: int = 1, projections: int = 1,
    ) -> None:  # fmt: skip
        """Memory that backward needs for a micro-batch of at most the ``rows`` of an update: per token and layer some vectors
        of the hidden, key-value and inner width, and the logits at the scored positions: once where they are computed in
        blocks, else ``copies`` of them. ``read``: tokens that are read first, without gradients, a micro-batch at once;
        ``passes``: roles that go forward before one backward pass through all; ``siblings``: responses to a prompt, which stands
        in a line once for all of them; ``projections``: matrices that each make logits in blocks."""
        whole = max(min(settings.tokens_per_micro_batch, rows * row), row)
        shared = siblings if shape.fused else 1
        tokens = whole * ((row - response) / shared + response) / max(row, 1)
        scored = whole * min(response / max(row, 1), 1) * shape.vocabulary if copies else 0
        table = shape.vocabulary * shape.hidden  # the matrix of the logits
        if not shape.fused or self.gpu:
            per_layer = 9 * shape.hidden + 3 * shape.kv_width + 3 * shape.inner
            layers = per_layer + shape.layers * shape.hidden if self.checkpointing else shape.layers * per_layer
            # Under autocast a product keeps its weights as they were cast; those of 4 bits are written out again.
            casts = self.width < FLOAT and not shape.quantized
            weights = sum(math.prod(size) for size in shape.linear) * self.width if casts else 0
            logits = scored * copies * FLOAT
            if shape.plain and copies:  # the matrix as it is cast, and its gradient
                logits = projections * min(scored, KEPT_ELEMENTS) * self.width + table * (self.width + FLOAT)
            again = shape.layers if self.checkpointing else 1
            self.memory["activations"] = passes * (tokens * layers * FLOAT + logits + weights / again)
            return
        # Two normed inputs, attended values, query, keys, values, gate and up, attention weights.
        numbers = 4 * shape.hidden + 2 * shape.kv_width + 2 * shape.inner + shape.heads * row / 2
        passing = 4 * shape.inner * self.width + 5 * shape.hidden * FLOAT
        kept = tokens * (numbers if self.checkpointing else shape.layers * numbers) + projections * min(scored, KEPT_ELEMENTS)
        inputs = tokens * shape.layers * shape.hidden * FLOAT if self.checkpointing else 0
        norms = 4 * CACHE_ELEMENTS * FLOAT
        unkept = max(scored - KEPT_ELEMENTS, 0)
        # The gradient of that matrix is added up in float32, a block's share in the precision of the products beside it.
        of_table = table * (FLOAT + self.width) if copies and not self.lora else 0
        self.memory["activations"] = passes * (kept * self.width + inputs)
        self.memory["layer_at_hand"] = tokens * passing + min(unkept, BLOCK_ELEMENTS) * self.width + norms + of_table
        reading = min(settings.tokens_per_micro_batch, read)
        self.memory["reading"] = reading * passing + min(scored * bool(read), BLOCK_ELEMENTS) * self.width + norms

    def cast(self, shape: Shape) -> None:
        """The copies of the weights in the precision of the products: of every model that computes, or of the last two roles of
        a trunk."""
        held = int(self.memory.get("weights", 0) // (shape.parameters * FLOAT))
        if shape.fused and not (self.gpu and self.trained and not self.generated):  # on a GPU for sampling alone
            models = min(self.roles, KEPT_ROLES) if self.lora else held - self.idle
            self.memory["cast_weights"] = models * shape.parameters * self.width

    @property
    def program(self) -> float:
        """Bytes of the process without models and their activations."""
        if self.gpu:
            return PROGRAM_GPU
        alone, decoding = (PROGRAM, DECODING) if self.width < FLOAT else (PROGRAM_FLOAT32, DECODING_FLOAT32)
        return alone + (decoding if "kv_cache" in self.memory else 0) + PEFT * self.lora

    @property
    def peak_bytes(self) -> float:
        """Sampling, training, reading and saving take turns: only the largest of their needs counts. Gradients count beside the
        activations that they are made from, also in one micro-batch: measured, their blocks do not fit into the holes."""
        turns = [sum(self.memory.get(key, 0) for key in turn) for turn in TURNS]
        among = {key for turn in TURNS for key in turn}
        return self.program + max(turns) + sum(value for key, value in self.memory.items() if key not in among)


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
    n_topics: int
    comparison: float
    question: float
    context: float
    stance: float
    applying: float
    """Not tokens: principles with a preference that apply to a prompt."""
    criteria: float
    """Not tokens: what the protocol `rubric` asks about a response under one of them."""
    protocols: int
    """Not tokens: protocols by which the judge answers the labelled pairs."""


@dataclass(frozen=True)
class Given:
    """What a recipe's files hold: how many rows, and mean tokens of a prompt and of a response, cut as the stage cuts them."""

    n: int = 0
    prompt: float = 0.0
    response: float = 0.0

    @property
    def row(self) -> float:
        return self.prompt + self.response


@dataclass(frozen=True)
class Counted:
    """What the loads of a recipe follow from. ``to_sort`` prompts have no principle yet; ``labelled`` pairs test the judge."""

    recipe: Recipe
    shapes: Shapes
    lengths: Lengths
    counts: Mapping[str, int]
    to_sort: int
    labelled: int
    examples: Given
    pairs: Given
    device: str = "cpu"

    @property
    def shape(self) -> Shape:
        """Of the recipe's model."""
        return self.shapes["base"]

    @property
    def reward_shape(self) -> Shape:
        """Of the model that the reward model starts from."""
        return self.shapes[self.recipe.reward_model.model or "sft"]

    def n_prompts(self, split: str) -> int:
        return sum(self.counts[f"{split} {kind}"] for kind in KINDS)

    def load(self, stage: str) -> Load:
        width, checkpointing = DTYPES[self.recipe.precision].itemsize, self.recipe.gradient_checkpointing
        return Load(stage, width=width, checkpointing=checkpointing, gpu=self.device == "cuda")

    def questions(self, source: Source) -> float:
        """Asked about one response: of a judge whether it helps and whether it harms; of a rubric its criteria."""
        return read_rubric(Path(source.name)).mean_questions if source.kind == "rubric" else 2

    def written(self, name: Source) -> int:
        """Tokens that a model writes to make a choice: an endpoint may have to write the answer out."""
        read = name.kind != "endpoint" or self.recipe.endpoints[name.name].logprobs != "no"
        return 1 if read else SHORT_ANSWER

    @property
    def n_revised(self) -> int:
        return min(self.recipe.revise.prompts, self.counts["train red_team"]) if self.recipe.revise is not None else 0

    @property
    def n_helpful(self) -> int:
        """Helpful answers that fine-tuning learns from as well as the revisions."""
        share = self.recipe.sft.helpful_fraction if self.recipe.sft is not None else 0.0
        return min(round(self.n_learned * share / (1 - share)), self.counts["train benign"])

    @property
    def n_learned(self) -> int:
        """Revisions that fine-tuning learns from: the last of each prompt, or those of all rounds."""
        sft, revise = self.recipe.sft, self.recipe.revise
        all_rounds = sft is not None and sft.use_revisions == "all" and revise is not None and revise.context is None
        return self.n_revised * (revise.rounds if all_rounds and revise is not None else 1)

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
