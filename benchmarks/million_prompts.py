"""Peak memory of the prompt stage at ten thousand and at a million prompts, on lists and streamed:
python benchmarks/million_prompts.py [--rows 10000 1000000] [--how lists stream].

Each measurement is a process of its own; what it held before it began is taken off. One prompt in ten says what another says.
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


def on_lists(source: Path, out: Path) -> int:
    """The stage as a sequence of lists."""
    from charter.reading.dealing import deduplicate, split_prompts, take_stratified
    from charter.reading.prompts import read_prompts
    from charter.run.files import write_jsonl

    unique, _ = deduplicate(list(read_prompts(source)))
    split = split_prompts(unique, **SETTINGS)
    chosen = []
    for part in ("train", "test"):
        for kind in KINDS:
            pool = [p for p in split if p.split == part and kind in p.tags]
            chosen += take_stratified(pool, len(pool), seed=0, by=("principle", "tags"))
    return write_jsonl(out, chosen)


def streamed(source: Path, out: Path) -> int:
    from charter.reading.prompts import read_prompts
    from charter.reading.spool import prepare_prompts

    result = prepare_prompts(read_prompts(source), out, train=None, test=None, **SETTINGS)
    return int(result["read"] - result["duplicates"])


def measure(how: str, source: Path, out: Path) -> None:
    """Print rows written, peak and own bytes, seconds, and a hash of what was written."""
    import charter.reading.spool  # noqa: F401 - both hold the same modules

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    n = {"lists": on_lists, "stream": streamed}[how](source, out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.perf_counter() - start
    with open(out, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    print(json.dumps({"rows": n, "peak": peak * 1024, "own": (peak - before) * 1024, "seconds": seconds, "written": digest}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--how", nargs="+", default=["lists", "stream"])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        how, source, out = options.measure
        measure(how, Path(source), Path(out))
        return
    print(f"{'prompts':>10}{'file':>10}{'':>4}{'how':8}{'peak':>10}{'own':>10}{'a prompt':>12}{'time':>8}   written")
    with tempfile.TemporaryDirectory() as folder:
        for n in options.rows:
            source = Path(folder) / f"{n}.jsonl"
            write_file(source, n)
            for how in options.how:
                command = [sys.executable, __file__, "--measure", how, str(source), str(Path(folder) / "out.jsonl")]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                mega = {key: f"{value / 1e6:.0f} MB" for key, value in
                        {"file": source.stat().st_size, "peak": found["peak"], "own": found["own"]}.items()}  # fmt: skip
                print(f"{n:>10}{mega['file']:>10}{'':>4}{how:8}{mega['peak']:>10}{mega['own']:>10}{found['own'] / n:>10.0f} B"
                      f"{found['seconds']:>6.0f} s   {found['written']}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
