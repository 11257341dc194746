"""Precision, checkpointing and 4 bits on the testbed's model: python benchmarks/precision.py

The same LoRA fine-tuning on the shipped pairs' chosen responses in each setting: CPU seconds of this process, bytes that a
micro-batch keeps for its backward pass, and the loss on held-out responses. Then what rounding a fine-tuned model to 4 bits a
second time costs.
"""

import tempfile
import time
from pathlib import Path

import torch

from charter.models.formats.quantize import STACK
from charter.models.trunk import load_trunk
from charter.reading.pairs import read_pairs, split_pairs
from charter.recipe.settings import LoRASettings
from charter.recipe.source import locate
from charter.run.run import Run
from charter.stages.sft.settings import SFTSettings
from charter.training.methods.sft import sft_tokens, train_sft

MODEL = locate("package:charter.testbed/model", None)
PAIRS = locate("package:charter.testbed/data/judge_pairs.jsonl", None)
LORA = LoRASettings(rank=16)
SETTINGS = SFTSettings(epochs=1, learning_rate=2e-3, lora=LORA, tokens_per_micro_batch=4096)
VARIANTS = [
    {"precision": "float32"}, {"precision": "bfloat16"}, {"precision": "float16"},
    {"precision": "bfloat16", "gradient_checkpointing": True}, {"precision": "bfloat16", "quantization": "nf4"},
    {"precision": "bfloat16", "quantization": "nf4", "gradient_checkpointing": True},
]  # fmt: skip


def loss_of(trunk, rows, role="reference"):
    with torch.no_grad():
        packed = trunk.pack(rows)
        return float(-trunk.logprobs(role, packed)[0].sum() / packed.mask.sum())


def kept_bytes(trunk, rows):
    """Of a micro-batch, weights left out: they are there anyway."""
    weights = {p.data_ptr() for p in trunk.model.parameters()}
    found = {}

    def count(tensor):
        if tensor.data_ptr() not in weights:
            found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        trunk.logprobs("policy", trunk.pack(rows))
    return sum(found.values())


def main() -> None:
    torch.set_num_threads(1)
    train, test = split_pairs(read_pairs(Path(PAIRS)).pairs, test_fraction=0.3, seed=0)
    train, test = train[:256], test[:128]
    print(f"{len(train)} responses to learn, {len(test)} held out; before: loss ", end="")
    print(f"{loss_of(load_trunk(MODEL), sft_tokens(load_trunk(MODEL), texts(test))):.4f}")
    with tempfile.TemporaryDirectory() as place:
        for number, variant in enumerate(VARIANTS):
            trunk = load_trunk(MODEL, lora=LORA, **variant)
            rows, held_out = sft_tokens(trunk, texts(train)), sft_tokens(trunk, texts(test))
            start = time.process_time()
            with Run(Path(place) / str(number), quiet=True) as run, run.stage("sft", {}, {}, []) as stage:
                train_sft(trunk, rows, SETTINGS, stage)
                seconds = time.process_time() - start
                trunk.save_language_model("policy", stage.path("model"))
            words = " ".join(str(value) for key, value in variant.items() if key != "gradient_checkpointing")
            words += ", checkpointing" if "gradient_checkpointing" in variant else ""
            kept = kept_bytes(trunk, rows[:64])
            print(f"{words:30} {seconds:6.1f} CPU s, {kept / 1e6:6.1f} MB kept, loss {loss_of(trunk, held_out, 'policy'):.4f}")
        saved = Path(place) / str(4) / "sft/model"
        ways = {"written out": {}, "adapter on the same 4 bits": {"quantization": "nf4"}}
        for name, more in ways.items():
            print(f"nf4, read back, {name}: loss {loss_of(load_trunk(str(saved), **more), held_out):.4f}")
        (saved / STACK).unlink()
        print(f"nf4, read back, rounded twice: loss {loss_of(load_trunk(str(saved), quantization='nf4'), held_out):.4f}")


def texts(pairs):
    return [(pair.prompt.messages, pair.chosen) for pair in pairs]


if __name__ == "__main__":
    main()
