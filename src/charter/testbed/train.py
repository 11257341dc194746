"""Train the tiny model from scratch: tokenizer, Llama-architecture weights, a Hugging Face folder at the end.

The corpus is endless and numbered, so a stopped training needs its position there, the weights and the moments, and no more.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from charter.models.chat_template import encode_prompt, encode_response
from charter.models.llama.train import hidden_states
from charter.models.llama.weights import weights_of
from charter.models.logprobs import chosen_logprobs
from charter.models.packing import Tokens, pack
from charter.records import Message
from charter.run.files import atomic_path
from charter.testbed import language as lang
from charter.testbed.corpus import Example, corpus, draw_case
from charter.testbed.standins import byte_level_bpe

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHECKPOINT_CHUNKS = 8  # a chunk is about 100,000 tokens
CHUNK = 1024  # examples that are drawn, sorted by length and cut into batches together
USER_WEIGHT = 0.1  # of the loss on turns of the user: enough to learn the words


@dataclass(frozen=True)
class TestbedConfig:
    """Size and length of a training: for each course the mix of examples, the tokens and the peak learning rate. Tokens and not
    time decide where it ends, so that a seed gives one model."""

    __test__ = False  # not a test class, in spite of its name

    hidden: int = 192
    layers: int = 4
    heads: int = 4
    feed_forward: int = 512
    vocab: int = 2240
    mixes: tuple[int, ...] = (0, 1, 2, 3, 4)
    tokens: tuple[int, ...] = (8_000_000, 11_000_000, 5_000_000, 2_500_000, 3_000_000)
    tokens_per_step: int = 4096
    learning_rates: tuple[float, ...] = (3e-3, 2e-3, 1.5e-3, 2e-3, 1.5e-3)
    seed: int = 0


TESTBED_PRESETS = {
    "full": TestbedConfig(),
    "small": TestbedConfig(
        hidden=96, layers=2, heads=2, feed_forward=256, vocab=1600, mixes=(0,), tokens=(2_000_000,), learning_rates=(5e-3,)
    ),
}


def train_testbed(config: TestbedConfig, out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Train and save to ``out``/model; resumes a killed training from its checkpoint. Returns tokens, loss, seconds."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from charter.models.load import save_model
    from charter.models.memory import keep_freed_memory

    keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(config)
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.hidden, intermediate_size=config.feed_forward, num_hidden_layers=config.layers,
            num_attention_heads=config.heads, num_key_value_heads=config.heads, vocab_size=len(tokenizer),
            max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    model.train()
    checkpoint = out / "training.safetensors"
    started, total = time.monotonic(), sum(config.tokens)
    course, place = restore(checkpoint, model)
    with token_bar(total, sum(config.tokens[:course]) + place.seen, quiet) as advance:
        for number in range(course, len(config.tokens)):
            place = train_course(model, tokenizer, config, number, place, checkpoint, advance)
            place = Place(loss=place.loss)
            # The next course starts from the rounded weights, as the model ships.
            model.half().float()
    model.eval().half()
    save_model(model, tokenizer, out / "model")
    checkpoint.unlink(missing_ok=True)
    seconds = time.monotonic() - started
    return {"tokens": total, "loss": place.loss, "seconds": seconds, "out": str(out / "model"),
            "parameters": model.num_parameters()}  # fmt: skip


@dataclass
class Place:
    """The position in a course: the next chunk, tokens and updates so far, running loss, moments to put back."""

    chunk: int = 0
    seen: int = 0
    step: int = 0
    loss: float = 0.0
    moments: dict[str, Tensor] = field(default_factory=dict)


def train_course(
    model: Any,
    tokenizer: Any,
    config: TestbedConfig,
    course: int,
    place: Place,
    checkpoint: Path,
    advance: Callable[[int, float], None],
) -> Place:
    """Train on one course of the corpus, from ``place`` on."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=0.0, betas=(0.9, 0.98),
        fused=True,
    )  # fmt: skip
    put_back(optimizer, model, place.moments)
    before, tokens = sum(config.tokens[:course]), config.tokens[course]
    while place.seen < tokens:
        for rows in chunk_batches(tokenizer, config, place.chunk, config.mixes[course]):
            rate = learning_rate(config.learning_rates[course], place.seen / tokens, place.step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, n = learn(model, optimizer, rows)
            place.seen, place.step = place.seen + n, place.step + 1
            place.loss = 0.98 * place.loss + 0.02 * loss if place.loss else loss
            advance(before + place.seen, place.loss)
            if place.seen >= tokens:
                break
        place.chunk += 1
        if place.chunk % CHECKPOINT_CHUNKS == 0 and place.seen < tokens:
            save_state(checkpoint, model, optimizer, course, place)
    return place


def make_tokenizer(config: TestbedConfig) -> Any:
    """A byte-level BPE tokenizer trained on the corpus, with the chat template and roles as special tokens."""
    from transformers import PreTrainedTokenizerFast

    texts = [turn.content for example in corpus(config.seed + 10_000, 6000) for turn in example]
    # Rare words are as frequent here as others, so that a word is a token and no kind of reply is longer by its spelling.
    texts += [space + phrase for phrase in lang.all_phrases() for space in ("", " ")] * 60
    # Of the second script the words of requests only.
    rng = Random(config.seed + 10_000)
    texts += [lang.in_second_script(draw_case(rng)[0]) for _ in range(6000)]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(texts, config.vocab, SPECIAL),
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[1],
        padding_side="left",
        model_max_length=512,
    )
    fast.chat_template = TEMPLATE
    return fast


def encode(tokenizer: Any, example: Example) -> tuple[list[int], list[float]]:
    """Ids and loss weights of an example. A turn of the assistant has its own weight, the end of turn included."""
    ids: list[int] = []
    weights: list[float] = []
    for number, turn in enumerate(example):
        if turn.role == "assistant":
            new = encode_response(tokenizer, turn.content)
            ids += new
            weights += [turn.weight if turn.first is None else turn.first, *[turn.weight] * (len(new) - 1)]
        else:
            # This turn and the marker of the assistant, as the pipeline renders them.
            new = encode_prompt(tokenizer, [Message(role=turn.role, content=turn.content)])  # type: ignore[arg-type]
            ids += new
            long = number == 0 and len(new) > 80  # a judge's question repeats texts that are learned elsewhere
            weights += [0.0 if long else USER_WEIGHT] * len(new)
    return ids, weights


WeightedRow = tuple[list[int], list[float]]


def chunk_batches(tokenizer: Any, config: TestbedConfig, chunk: int, mix: int = 0) -> list[list[WeightedRow]]:
    """The batches of one chunk of the corpus: rows of like length together, in a shuffled order."""
    rows = sorted(
        (encode(tokenizer, example) for example in corpus(config.seed, CHUNK, chunk * CHUNK, mix)), key=lambda row: len(row[0])
    )
    batches: list[list[WeightedRow]] = [[]]
    for row in rows:
        if batches[-1] and (len(batches[-1]) + 1) * len(row[0]) > config.tokens_per_step:
            batches.append([])
        batches[-1].append(row)
    Random(f"{config.seed}:{chunk}").shuffle(batches)
    return batches


def learn(model: Any, optimizer: torch.optim.Optimizer, rows: Sequence[WeightedRow]) -> tuple[float, int]:
    """One update; the weighted mean loss (nats per token) and the number of tokens without padding."""
    packed = pack([Tokens(ids[:1], ids[1:]) for ids, _ in rows], share=False)
    weights = torch.zeros(packed.mask.shape)
    weights[packed.mask] = torch.tensor([weight for _, row in rows for weight in row[1:]])
    counted = weights > 0  # four tokens in ten have weight 0; their logits are not computed
    hidden = hidden_states(model, packed, packed.before[counted], torch.bfloat16)
    cast = weights_of(model, torch.bfloat16).lm_head.weight
    logprobs, _ = chosen_logprobs(hidden, model.lm_head.weight, cast, packed.targets[counted], temperature=1.0, entropy=False)
    loss = -(logprobs * weights[counted]).sum() / weights.sum().clamp(min=1e-6)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item(), len(packed.ids)


def learning_rate(peak: float, progress: float, step: int) -> float:
    """100 steps of warm-up, then a half cosine over the course down to 2%."""
    decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * min(1.0, (step + 1) / 100) * decay


def save_state(path: Path, model: Any, optimizer: torch.optim.Optimizer, course: int, place: Place) -> None:
    """Weights, moments and the place in the course, atomically."""
    from safetensors.torch import save_file

    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}#{key}"] = value
    card = {"course": course, "chunk": place.chunk, "seen": place.seen, "step": place.step, "loss": place.loss}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"place": json.dumps(card)})


def restore(path: Path, model: Any) -> tuple[int, Place]:
    """Put the weights back; returns the course and the place in it, the beginning without a checkpoint."""
    from safetensors import safe_open

    if not path.exists():
        return 0, Place()
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["place"])
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - no mapping, only keys()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
    moments = {key: value for key, value in tensors.items() if "#" in key}
    return card["course"], Place(card["chunk"], card["seen"], card["step"], card["loss"], moments)


def put_back(optimizer: torch.optim.Optimizer, model: Any, moments: dict[str, Tensor]) -> None:
    """Put back the moments of a checkpoint; there are none at the beginning of a course."""
    for name, parameter in model.named_parameters():
        if f"{name}#step" in moments:
            optimizer.state[parameter] = {key: moments[f"{name}#{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}


@contextlib.contextmanager
def token_bar(total: int, done: int, quiet: bool) -> Iterator[Callable[[int, float], None]]:
    """A progress bar in tokens, with loss, rate and remaining time; gives the function that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("testbed: training"), BarColumn(), TextColumn("{task.percentage:.0f}%"),
               TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("", total=total, completed=done, note="")

        def advance(seen: int, loss: float) -> None:
            rate = (seen - done) / max(time.monotonic() - started, 1e-9)
            progress.update(task, completed=seen, note=f"loss {loss:.3f}, {rate / 1000:.1f}k tokens/s")

        yield advance
