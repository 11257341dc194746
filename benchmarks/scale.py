"""What a whole run costs at 7B and 70B, on paper: python benchmarks/scale.py [--price 2.5].

The work of each stage is what `charter plan` counts (each stage's ``plan.py``) for a stated workload; the machine is the
constants below. Nothing here was measured at these sizes. docs/scale.md shows the output and says what follows from it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from charter.models.shape import Shape
from charter.plan.loads import loads_of
from charter.recipe.files import find_recipe, load_recipe
from charter.recipe.source import Source
from charter.stages.load import Counted, Given, Lengths, Load

# -- inputs --------------------------------------------------------------------------------------------------------------

BEGIN, END = "<!-- python benchmarks/scale.py --write docs/scale.md -->", "<!-- end -->"
BF16, FLOAT, MOMENTS = (2, 4, 8)  # bytes of a number: in products and on the wire, a weight or gradient, Adam's two moments


@dataclass(frozen=True)
class Machine:
    """One kind of GPU in nodes of eight. Rates are peaks from the data sheet; the shares of them are assumptions."""

    peak: float = 989e12
    """Floating-point operations a second in bfloat16, dense (H100 SXM)."""
    memory_rate: float = 3.35e12
    """Bytes a second from the GPU's memory."""
    memory: float = 80e9
    """Bytes of it."""
    node: int = 8
    nvlink: float = 450e9
    """Bytes a second into a GPU from the others of its node."""
    network: float = 400e9
    """Bytes a second into a node from other nodes: eight cards of 400 Gbit/s."""
    train_share: float = 0.40
    """Of the peak, in training."""
    read_share: float = 0.50
    """Of the peak, in prefill and scoring."""
    decode_share: float = 0.60
    """Of the memory's rate, in decoding."""
    rows: int = 128
    """Texts that one replica of the model decodes at once, at most."""
    micro: int = 8192
    """Tokens of a micro-batch on one GPU."""
    price: float = 2.50
    """Money for a GPU hour. An input, put in on 2026-11-21; replace it with an offer of your own."""


@dataclass(frozen=True)
class Size:
    """A Llama-2 shape, and how it is spread."""

    name: str
    layers: int
    hidden: int
    inner: int
    kv_width: int
    heads: int
    gpus: int
    replica: int
    """GPUs that hold one copy for decoding."""
    lora: bool = False

    def shape(self) -> Shape:
        """What the headers of its weight files would say."""
        h, kv, i = self.hidden, self.kv_width, self.inner
        tensors: dict[str, tuple[int, ...]] = {"embed": (32000, h), "lm_head": (32000, h), "norm": (h,)}
        for n in range(self.layers):
            layer = {"q": (h, h), "k": (kv, h), "v": (kv, h), "o": (h, h), "gate": (i, h), "up": (i, h), "down": (h, i)}
            tensors |= {f"{n}.{key}": shape for key, shape in layer.items()} | {f"{n}.norm1": (h,), f"{n}.norm2": (h,)}
        return Shape(tensors, self.layers, h, i, kv, 32000, 4096, self.heads, fused=True)


SMALL = Size("7B, all weights", 32, 4096, 11008, 4096, 32, gpus=8, replica=1)
LARGE = Size("70B, all weights", 80, 8192, 28672, 1024, 64, gpus=64, replica=4)
SIZES = (SMALL, LARGE, replace(LARGE, name="70B, LoRA 16", gpus=16, lora=True))

COUNTS = {"train red_team": 16_000, "train benign": 16_000, "test red_team": 2_000, "test benign": 2_000,
          "train task": 0, "test task": 0}  # fmt: skip
LENGTHS = Lengths(prompt=200, longest_prompt=1000, few_shots=0, stance=0, critique=60, revision=60, topic_question=300, topics=80,
                  n_topics=8, comparison=300, question=60, context=0, applying=1, criteria=0, protocols=1)  # fmt: skip
WORKLOAD = [
    "batch_size=4096", "revise.rounds=2", "revise.prompts=16000", "revise.max_new_tokens=300",
    "sft.epochs=3", "sft.helpful_fraction=0.5", "sft.responses_per_step=512",
    "feedback.prompts=32000", "feedback.responses_per_prompt=4", "feedback.max_new_tokens=300", "feedback.judge=base",
    "reward_model.epochs=1", "reward_model.pairs_per_step=512",
    "rl.steps=500", "rl.prompts_per_step=128", "rl.samples_per_prompt=4", "rl.max_new_tokens=300",
    "evaluation.max_new_tokens=300", "evaluation.best_of=4",
]  # fmt: skip
TOGETHER = {"sft": 512, "reward_model": 1024, "rl": 512}
"""Texts behind one update."""


def loads(size: Size, *more: str) -> list[Load]:
    """The work of each stage, as `charter plan` counts it."""
    lora = [f"{stage}.lora={{rank: 16}}" for stage in ("sft", "reward_model", "rl")] if size.lora else []
    recipe = load_recipe(find_recipe("demo-rloo"), [*WORKLOAD, *lora, *more])
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"scorer": Source("judge", "base")})})
    shapes = dict.fromkeys(("base", "sft"), size.shape())
    return loads_of(Counted(recipe, shapes, LENGTHS, COUNTS, 36_000, 300, Given(), Given(), "cuda"))


# -- formulas ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of one stage. Operations; bytes; seconds on all GPUs of its size."""

    stage: str
    read: float
    trained: float
    decoded: float
    from_memory: float
    network: float
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Stages take turns: sample, read, train. Gathers run beside the products, so the longer of the two counts."""
        s = self.seconds
        return s["sample"] + s["read"] + max(s["train"], s["network"]) + s["sync"]

    @property
    def bottleneck(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)


def cost(load: Load, size: Size, machine: Machine) -> Cost:
    """P parameters, G GPUs, T tokens of a micro-batch on a GPU, c rows decoded at once by a replica of k GPUs."""
    shape, gpus = size.shape(), size.gpus
    p = shape.parameters
    trained = (4 if size.lora else 6) * p * load.trained
    read = load.operations - trained
    decoded = 2 * p * load.generated
    # Decoding: every step reads the weights once for c rows, and the keys and values of each row.
    replicas, steps, rows_of_cache = gpus / size.replica, 0.0, 0.0
    for rows, new, batches in load.batches:
        together = rows if load.stage == "rl" else rows * batches  # only RL waits for a batch before it goes on
        c = max(1.0, min(machine.rows, together / replicas))
        steps += rows * batches * new / c
        rows_of_cache += rows * batches * new * (LENGTHS.prompt + new / 2)
    cache = 2 * shape.layers * shape.kv_width * BF16
    from_memory = steps * p * BF16 + rows_of_cache * cache
    sample = max(from_memory / (gpus * machine.memory_rate * machine.decode_share),
                 decoded / (gpus * machine.peak * machine.read_share))  # fmt: skip
    # FSDP: all weights are gathered for the forward and for the backward pass of every micro-batch, gradients scattered.
    # An update is one micro-batch at least, however few tokens of it a GPU gets.
    row = LENGTHS.prompt + (load.batches[0][1] if load.stage == "rl" else 300)
    an_update = TOGETHER.get(load.stage, 1) * row
    micro_batches = load.trained / an_update * max(1.0, an_update / (machine.micro * gpus))
    a_pass = p * (2 * BF16 + (0 if size.lora else FLOAT))
    wire = micro_batches * a_pass
    nodes = gpus / machine.node
    into_a_gpu = wire * (gpus - 1) / gpus / machine.nvlink
    into_a_node = wire * (nodes - 1) / nodes / machine.network if nodes > 1 else 0.0
    # After each update of RL the samplers get the policy: all of it, or its adapters.
    updates = load.batches[0][2] if load.stage == "rl" else 0
    policy = (shape.adapter(load_lora(size)) if size.lora else p) * BF16
    sync = updates * policy / (machine.network if nodes > 1 else machine.nvlink)
    seconds = {
        "sample": sample, "read": read / (gpus * machine.peak * machine.read_share),
        "train": trained / (gpus * machine.peak * machine.train_share), "network": max(into_a_gpu, into_a_node), "sync": sync,
    }  # fmt: skip
    return Cost(load.stage, read, trained, decoded, from_memory, wire + updates * policy, seconds)


def load_lora(size: Size):
    return load_recipe(find_recipe("demo-rloo"), ["training.lora={rank: 16}"]).rl.lora if size.lora else None


def states(size: Size) -> tuple[float, float]:
    """Bytes of weights, gradients and moments of the policy in training, and of its checkpoint."""
    p = size.shape().parameters
    if not size.lora:
        return p * (FLOAT + FLOAT + MOMENTS), p * (FLOAT + MOMENTS)
    adapter = size.shape().adapter(load_lora(size))
    return p * FLOAT + adapter * (FLOAT + FLOAT + MOMENTS), adapter * (FLOAT + MOMENTS)


def hides_the_network(machine: Machine, bytes_a_weight: int, operations: int) -> float:
    """Tokens of a micro-batch on each GPU from which the products take as long as the gathers between nodes; P cancels."""
    return bytes_a_weight * machine.peak * machine.train_share / (operations * machine.network)


# -- output --------------------------------------------------------------------------------------------------------------


def table(size: Size, machine: Machine) -> list[str]:
    """One size as a Markdown table."""
    trained, checkpoint = states(size)
    lines = [
        f"**{size.name}**, {size.shape().parameters / 1e9:.2f} billion weights, {size.gpus} GPUs: states "
        f"{trained / 1e9:.0f} GB, {trained / size.gpus / 1e9:.1f} GB a GPU; a checkpoint {checkpoint / 1e9:.1f} GB.",
        "",
        "| stage | written, M tokens | read | trained on | EFLOP | memory, PB | network, TB | sample, h | read, h | train, h | "
        "gathers, h | all, h | longest | price |",
        "|---" * 14 + "|",
    ]
    total = spent = 0.0
    for load in loads(size):
        stage = cost(load, size, machine)
        hours = {key: value / 3600 for key, value in stage.seconds.items()}
        price = stage.total / 3600 * size.gpus * machine.price
        total, spent = total + stage.total / 3600, spent + price
        lines.append(
            f"| {load.stage} | {load.generated / 1e6:.0f} | {load.scored / 1e6:.0f} | {load.trained / 1e6:.0f} | "
            f"{(stage.read + stage.trained + stage.decoded) / 1e18:.0f} | {stage.from_memory / 1e15:.1f} | "
            f"{stage.network / 1e12:.0f} | "
            + " | ".join(f"{hours[key]:.2f}" for key in ("sample", "read", "train", "network"))
            + f" | {stage.total / 3600:.2f} | {stage.bottleneck if stage.total else ''} | {price:.0f} |"
        )
    return [*lines, f"| all | | | | | | | | | | | {total:.1f} | | {spent:.0f} |", ""]


def moves(machine: Machine) -> list[str]:
    """How the share of each part of RL changes with one thing at a time."""
    lines = ["| RL of | sample | read | train | gathers | hours |", "|---|---|---|---|---|---|"]

    def line(words: str, size: Size, kind: Machine, *more: str) -> None:
        stage = cost(next(load for load in loads(size, *more) if load.stage == "rl"), size, kind)
        shares = " | ".join(f"{stage.seconds[key] / stage.total:.0%}" for key in ("sample", "read", "train", "network"))
        lines.append(f"| {words} | {shares} | {stage.total / 3600:.2f} |")

    line("7B on 8 GPUs", SMALL, machine)
    line("7B on 64 GPUs, the same 512 rollouts a step", replace(SMALL, gpus=64), machine)
    line("7B on 8 GPUs, answers of 2,000 tokens", SMALL, machine, "rl.max_new_tokens=2000")
    line("7B on 8 GPUs, PPO with four epochs", SMALL, machine, "rl.method=ppo", "rl.epochs=4")
    line("70B on 64 GPUs", LARGE, machine)
    line("70B on 64 GPUs, one card of 100 Gbit/s a node", LARGE, replace(machine, network=12.5e9))
    line("the same with micro-batches of 2,048 tokens", LARGE, replace(machine, network=12.5e9, micro=2048))
    return lines


def report(machine: Machine) -> str:
    slow = replace(machine, network=12.5e9)
    lines = [line for size in SIZES for line in table(size, machine)] + moves(machine)
    full, lora = [[hides_the_network(cards, *kind) for cards in (machine, slow)] for kind in ((8, 6), (4, 4))]
    lines += ["", f"Gathers hide behind the products from {full[0]:,.0f} tokens a GPU on (400 GB/s into a node) or "
              f"{full[1]:,.0f} (12.5 GB/s); with LoRA {lora[0]:,.0f} or {lora[1]:,.0f}."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--price", type=float, default=Machine.price, help="Money for a GPU hour.")
    parser.add_argument("--network", type=float, default=Machine.network, help="Bytes a second into a node.")
    parser.add_argument("--rows", type=int, default=Machine.rows, help="Texts that a replica decodes at once.")
    parser.add_argument("--write", type=Path, help="Put the output in place of the one in this page.")
    options = parser.parse_args()
    text = report(Machine(price=options.price, network=options.network, rows=options.rows))
    if options.write is None:
        print(text)
    else:
        before, rest = options.write.read_text(encoding="utf-8").split(BEGIN)
        options.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
