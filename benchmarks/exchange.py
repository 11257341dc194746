"""Time and peak memory of importing, exporting and merging many judgments: `python benchmarks/exchange.py --judgments 1000000`.

The judgments are pairs in TRL's columns with texts of a few hundred characters, one prompt for every four of them. Each step is a
process of its own, so that its peak is its own; memory is the largest resident set that the system saw.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

WORDS = [
    "lamp",
    "door",
    "letter",
    "boat",
    "fence",
    "paint",
    "mend",
    "clean",
    "move",
    "river",
    "stone",
    "window",
    "garden",
    "bread",
    "kettle",
    "ladder",
]


def write_pairs(path: Path, n: int) -> None:
    """A file of ``n`` pairs."""
    draw = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(n):
            prompt = f"How do I {WORDS[number // 4 % len(WORDS)]} number {number // 4}?"
            chosen, rejected = (" ".join(draw.choices(WORDS, k=40)) for _ in "ab")
            row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "strength": number % 3 + 2,
                   "rater_id": f"r{number % 20}", "rater_kind": "human"}  # fmt: skip
            file.write(json.dumps(row) + "\n")


def measured(*arguments: str) -> tuple[float, float]:
    """Seconds of processor time and peak MiB of a charter command; other work on the machine does not count."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    command = [sys.executable, "-m", "charter", *arguments]
    child = os.posix_spawn(sys.executable, command, os.environ, file_actions=quiet)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"charter {' '.join(arguments)} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judgments", type=int, default=1_000_000)
    n = parser.parse_args().judgments
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_pairs(place / "pairs.jsonl", n)
        steps = {
            "import": ("import", f"{place}/pairs.jsonl", "--out", f"{place}/f"),
            "export trl": ("export", f"{place}/f", "--to", "trl", "--out", f"{place}/o.jsonl"),
            "export parquet": ("export", f"{place}/f", "--to", "parquet", "--out", f"{place}/o.parquet"),
            "merge of two copies": ("merge", f"{place}/f", f"{place}/f", "--out", f"{place}/m"),
        }
        print(f"| {n} judgments | seconds | peak MiB |\n|---|---|---|", flush=True)
        for name, arguments in steps.items():
            seconds, peak = measured(*arguments, "--json")
            print(f"| {name} | {seconds:.0f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
