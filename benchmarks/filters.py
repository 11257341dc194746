"""What top-p, top-k and min-p cost: the choice of a token for 64 rows, and with a model's folder as argument whole texts.

`OMP_NUM_THREADS=1 python benchmarks/filters.py [MODEL]`. Rows fall off like rank^-s, s from 1.1 to 3 (Zipf and steeper).
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from charter.models.sampling.filters import ALL_TOKENS
from charter.models.sampling.generate import pick
from charter.records import Filters, Message

ROWS, REPEATS, TOKENS = 64, 7, 16
CASES = {"off": ALL_TOKENS, "top_p 0.9": Filters(top_p=0.9), "top_k 50": Filters(top_k=50), "min_p 0.05": Filters(min_p=0.05),
         "top_k 50, top_p 0.9": Filters(top_k=50, top_p=0.9)}  # fmt: skip


def best(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some calls, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def choice_of_a_token(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(0)
    slopes = torch.linspace(1.1, 3.0, ROWS).unsqueeze(1)
    ranks = torch.stack([torch.randperm(vocabulary, generator=generator) for _ in range(ROWS)]) + 1
    logits, uniform = -slopes * ranks.log(), torch.rand(ROWS, generator=generator, dtype=torch.float64)
    for name, filters in CASES.items():
        milliseconds = 1000 * best(lambda filters=filters: pick(logits, uniform, 0.9, filters), REPEATS)  # type: ignore[misc]
        print(f"vocabulary {vocabulary}, {ROWS} rows, {name}: {milliseconds:.1f} ms")


def whole_texts(folder: str) -> None:
    from charter.models.sampling.sampler import LocalSampler
    from charter.models.trunk import load_trunk

    sampler = LocalSampler(load_trunk(folder, precision="bfloat16"), "model")
    asked = [[Message(role="user", content=f"Write a sentence about the number {n}.")] for n in range(ROWS)]
    for temperature in (0.7, 1.0):
        for name in ("off", "top_p 0.9", "top_k 50, top_p 0.9"):
            how = {"temperature": temperature, "max_new_tokens": TOKENS, "filters": CASES[name]}
            seconds = best(lambda how=how: sampler.generate(asked, [[n] for n in range(ROWS)], **how), 2)  # type: ignore[misc]
            print(f"{Path(folder).name}, {ROWS} rows of {TOKENS} tokens, temperature {temperature}, {name}: {seconds:.2f} CPU s")


if __name__ == "__main__":
    for size in (49_152, 151_936):
        choice_of_a_token(size)
    for path in sys.argv[1:]:
        whole_texts(path)
