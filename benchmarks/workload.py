"""Models and data of the speed comparisons: six shapes with random weights, dialogues of the lengths of hh-rlhf.

python benchmarks/workload.py prints what one core reaches in products of these sizes.

A token is a word (`w0`, `w1`, …) and the end is `</s>`, so that both tools see the same ids whether they are given text or ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHAPES = {
    "S": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4},  # 5.0M
    "M": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},  # 27.4M
    "R": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
          "num_key_value_heads": 3, "vocab_size": 49152},  # SmolLM2-135M, 134.5M
    "Q": {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
          "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936},  # Qwen2.5-0.5B, 494.0M
    # For a GPU (gpu.py).
    "L": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
          "num_key_value_heads": 8, "vocab_size": 128256},  # Llama 3.2 1B, 1236M
    "P": {"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
          "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936},  # Qwen2.5-1.5B, 1544M
}  # fmt: skip
VOCAB, END = 4096, 4095  # ids of the data; a larger vocabulary is for the model alone
TEMPLATE = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %} </s>{% endif %}{% endfor %}"


def save_model(folder: Path, shape: str) -> Path:
    """A random model of the named shape with its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    size = {
        "model_type": "llama",
        "num_key_value_heads": SHAPES[shape]["num_attention_heads"],
        "vocab_size": VOCAB,
        **SHAPES[shape],
    }
    config = AutoConfig.for_model(**size, tie_word_embeddings=True, max_position_embeddings=1024, bos_token_id=None,
                                  eos_token_id=END, pad_token_id=END)  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = {f"w{i}": i for i in range(config.vocab_size) if i != END} | {"</s>": END}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", padding_side="left")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Dialogue:
    """A prompt with two responses, as ids; the end is not among them."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def dialogues(n: int, seed: int = 0) -> list[Dialogue]:
    """Random ids at the lengths of hh-rlhf's harmless-base dialogues: prompts of 132 tokens on average, responses of 45, widely
    spread, cut at 512 in all."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        prompt, chosen, rejected = (
            int(np.clip(rng.lognormal(np.log(mean) - 0.32, 0.8), 4, cap)) for mean, cap in ((138, 400), (47, 110), (47, 110))
        )
        found.append(Dialogue(*(rng.integers(0, END, size=size).tolist() for size in (prompt, chosen, rejected))))
    return found


def prompts(n: int, seed: int = 0) -> list[list[int]]:
    """Random ids, 64 to 128 of them."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, END, size=int(rng.integers(64, 129))).tolist() for _ in range(n)]


def text(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def alike(lengths: list[int], per_batch: int, seed: int = 0) -> list[int]:
    """An order in which neighbours in a batch are of like length and batches come at random: what grouping by length gives."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batches = [order[i : i + per_batch] for i in range(0, len(order), per_batch)]
    np.random.default_rng(seed).shuffle(batches)
    return [i for batch in batches for i in batch]


def operations(work: str, shape: str, new_tokens: int, group: int) -> float:
    """Billions of operations with weights that a unit of the work needs (a token of SFT or sampling, a pair, a completion): two
    for each weight and token forward, two for the gradient of the input, two for that of the weight; each prompt once."""
    size = SHAPES[shape]
    h, inner, heads = size["hidden_size"], size["intermediate_size"], size["num_attention_heads"]
    narrow = h // heads * size.get("num_key_value_heads", heads)
    layers = size["num_hidden_layers"] * h * (2 * h + 2 * narrow + 3 * inner)
    head = h * size.get("vocab_size", VOCAB)
    prompt = np.mean([len(p) for p in prompts(1000)]) / group
    sampled = 2 * ((prompt + new_tokens) * layers + new_tokens * head)
    rows = dialogues(1000)
    read, answered = (np.mean([len(d.chosen) + len(d.rejected) + extra * len(d.prompt) for d in rows]) for extra in (1, 0))
    by_work = {
        "sft": 6 * (layers + head),
        "sft-lora": 4 * (layers + head),
        "reward": 6 * read * layers,
        "dpo": 8 * (read * layers + answered * head),  # the reference forward, the policy forward and backward
        "sample": sampled / new_tokens,
        "rl": sampled + 8 * ((prompt + new_tokens) * layers + new_tokens * head),
        # the reward model and the reference forward, four epochs of the policy, and of a critic of its own
        "ppo-head": sampled + 26 * ((prompt + new_tokens) * layers + new_tokens * head) + 2 * (prompt + new_tokens) * layers,
    }
    by_work["ppo"] = by_work["ppo-head"] + 24 * (prompt + new_tokens) * layers
    return 1e-9 * float(by_work[work])


def product_rates(rows: int = 4096, inside: int = 256, out: int = 768, turns: int = 20) -> dict[str, float]:
    """GFLOP/s of one core in bfloat16 and float32 products of a training step's shape; the best of the turns."""
    import time

    import torch

    torch.set_num_threads(1)
    found = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        x, w = torch.randn(rows, inside).to(dtype), torch.randn(out, inside).to(dtype)
        seconds = []
        for _ in range(turns):
            began = time.process_time()
            x @ w.t()
            seconds.append(time.process_time() - began)
        found[name] = 2 * rows * inside * out / min(seconds) / 1e9
    return found


def logprob_rate(shape: str, rows: int = 256, turns: int = 2) -> float:
    """GFLOP/s of one core in log-probabilities of tokens and their gradients, in bfloat16: three products of that size;
    the best of the turns."""
    import time

    import torch

    from charter.models.logprobs import chosen_logprobs
    from charter.models.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    hidden, vocabulary = SHAPES[shape]["hidden_size"], SHAPES[shape].get("vocab_size", VOCAB)
    x = torch.randn(rows, hidden, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(vocabulary, hidden) * hidden**-0.5)
    cast, targets = weight.detach().bfloat16(), torch.randint(vocabulary, (rows,))
    seconds = []
    for _ in range(turns + 1):
        began = time.process_time()
        chosen_logprobs(x, weight, cast, targets, temperature=1.0, entropy=False)[0].sum().backward()
        seconds.append(time.process_time() - began)
        x.grad = weight.grad = None
    return 6 * rows * hidden * vocabulary / min(seconds[1:]) / 1e9


if __name__ == "__main__":
    for name, rate in product_rates().items():
        print(f"{name:10}{rate:>6.0f} GFLOP/s")
    for shape in SHAPES:
        print(f"log-probabilities, {shape}{logprob_rate(shape):>6.0f} GFLOP/s")
