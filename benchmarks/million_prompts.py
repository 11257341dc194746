"""Peak memory of the prompt stage at ten thousand and at a million prompts:
python benchmarks/million_prompts.py [--rows 10000 1000000].

Each measurement is a process of its own, less the memory that it had before it began. One prompt in ten says what another says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KINDS = ("red_team", "benign")
SETTINGS = {"test_fraction": 0.2, "seed": 0}


def write_file(path: Path, n: int) -> None:
    """``n`` prompts of 30 words or so under twenty principles."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    recent: list[str] = []
    with open(path, "w", encoding="utf-8") as file:
        for i in range(n):
            new = len(recent) < 100 or draw.random() < 0.9
            text = " ".join(draw.choices(words, k=draw.randint(10, 50))) if new else draw.choice(recent).upper()
            if new:
                recent = [*recent[-99:], text]
            row = {"prompt": text, "tags": [KINDS[i % 2]], "principle": f"p{draw.randrange(20)}"}
            file.write(json.dumps(row) + "\n")


def measure(source: Path, out: Path) -> None:
    """Print unique rows, peak bytes and those above the start, seconds, and a hash of what was written."""
    from charter.reading.prompts import read_prompts
    from charter.reading.spool import prepare_prompts

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    result = prepare_prompts(read_prompts(source), out, train=None, test=None, **SETTINGS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.perf_counter() - start
    with open(out, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    rows = result["read"] - result["duplicates"]
    print(json.dumps({"rows": rows, "peak": peak * 1024, "above": (peak - before) * 1024, "seconds": seconds, "written": digest}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*map(Path, options.measure))
        return
    print(f"{'prompts':>10}{'file':>10}{'peak':>10}{'above':>10}{'a prompt':>12}{'time':>8}   written")
    with tempfile.TemporaryDirectory() as folder:
        for n in options.rows:
            source = Path(folder) / f"{n}.jsonl"
            write_file(source, n)
            command = [sys.executable, __file__, "--measure", str(source), str(Path(folder) / "out.jsonl")]
            measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            sizes = (source.stat().st_size, measured["peak"], measured["above"])
            mega = "".join(f"{size / 1e6:>7.0f} MB" for size in sizes)
            each = measured["above"] / n
            print(f"{n:>10}{mega}{each:>10.0f} B{measured['seconds']:>6.0f} s   {measured['written']}", flush=True)


if __name__ == "__main__":
    main()
