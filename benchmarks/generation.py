"""Sampling against transformers' own generate: same model, same prompts, temperature 1, alternating runs, one process.

python benchmarks/generation.py [MODEL FOLDER]
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch

from charter.config import locate
from charter.models.chat_template import encode_prompt
from charter.models.generate import sample
from charter.models.layout import left_pad
from charter.models.load import load_model, load_tokenizer
from charter.prompts import read_prompts

BATCH, NEW_TOKENS, RUNS = 64, 64, 5


def main(folder: str) -> None:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    file = Path(locate("package:charter.testbed/data/prompts.jsonl", Path.cwd()))
    prompts = [encode_prompt(tokenizer, p.messages) for p in list(read_prompts(file))[:BATCH]]
    ids, attention = left_pad(prompts, "cpu")

    def ours(seed: int) -> int:
        groups = sample(model, prompts, [[seed * BATCH + i] for i in range(BATCH)], eos_id=tokenizer.eos_token_id,
                        max_new_tokens=NEW_TOKENS, temperature=1.0)  # fmt: skip
        return sum(len(one.ids) for group in groups for one in group)

    def theirs(seed: int) -> int:
        torch.manual_seed(seed)
        out = model.generate(ids, attention_mask=attention, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=NEW_TOKENS,
                             pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)  # fmt: skip
        return int((out[:, ids.shape[1] :] != tokenizer.pad_token_id).sum())

    rates: dict[str, list[float]] = {"charter": [], "transformers": []}
    for seed in range(RUNS + 1):
        for name, run in (("charter", ours), ("transformers", theirs)):
            started = time.perf_counter()
            tokens = run(seed)
            if seed:  # the first run of each warms up
                rates[name].append(tokens / (time.perf_counter() - started))
    for name, values in rates.items():
        print(f"{name:14}{statistics.median(values):>10.0f} tokens/s  ({min(values):.0f} to {max(values):.0f})")
    ratios = [a / b for a, b in zip(rates["charter"], rates["transformers"], strict=True)]
    print(
        f"ratio         {statistics.median(ratios):>10.2f}  ({min(ratios):.2f} to {max(ratios):.2f}), {RUNS} alternating runs"
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else locate("package:charter.testbed/model", Path.cwd()))
