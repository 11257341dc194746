"""Time of ratings from arrays and from files: `python benchmarks/ratings.py`. Votes are drawn from the model; seed 0."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from charter.raters.comparisons import Comparisons, as_comparisons
from charter.raters.leaderboard import leaderboard
from charter.raters.responses import rate_responses
from charter.raters.vote_files import read_votes


def votes(n_models: int, size: int, raters: int, seed: int = 0) -> Comparisons:
    """Votes with ties on pairs of models drawn evenly, each on a prompt of its own."""
    rng = np.random.default_rng(seed)
    s = rng.normal(size=n_models)
    a = rng.integers(0, n_models, size)
    b = (a + rng.integers(1, n_models, size)) % n_models
    x, y = np.minimum(a, b), np.maximum(a, b)
    d = s[x] - s[y]
    p = np.exp(np.stack([d / 2, np.full(size, -0.5), -d / 2]))
    p = np.cumsum(p / p.sum(axis=0), axis=0)
    u = rng.random(size)
    every = np.arange(size)
    return Comparisons(
        tuple(f"model-{i:03}" for i in range(n_models)), tuple(f"rater-{i:02}" for i in range(raters)), x, y,
        np.where(u < p[0], 1, np.where(u < p[1], 0, -1)), np.where(a < b, 1, -1), rng.integers(0, raters, size), every, every,
        np.ones(size),
    )  # fmt: skip


def rankings(prompts: int, k: int, each: int, raters: int, seed: int = 0) -> Comparisons:
    """``each`` rankings of k responses to every prompt."""
    rng = np.random.default_rng(seed)
    s = 1.5 * rng.normal(size=(prompts, k))
    every, columns = np.arange(prompts), []
    for number in range(each):
        who, seen = rng.integers(0, raters, prompts), s + rng.gumbel(size=(prompts, k))
        for i in range(k):
            for j in range(i + 1, k):
                better = np.where(seen[:, i] > seen[:, j], 1, -1)
                columns.append((every * k + i, every * k + j, better, who, every, every + number * prompts))
    x, y, outcome, rater, prompt, ballot = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return Comparisons(
        tuple(map(str, range(prompts * k))),
        tuple(map(str, range(raters))),
        x,
        y,
        outcome,
        np.zeros_like(x),
        rater,
        prompt,
        ballot,
        np.ones(len(x)),
    )


def table(path: Path, found: Comparisons) -> None:
    words = {1: "model_a", 0: "tie", -1: "model_b"}
    with open(path, "w", encoding="utf-8") as file:
        file.write("model_a,model_b,winner,rater\n")
        for x, y, outcome, rater in zip(
            found.x.tolist(), found.y.tolist(), found.outcome.tolist(), found.rater.tolist(), strict=True
        ):
            file.write(f"{found.items[x]},{found.items[y]},{words[outcome]},{found.raters[rater]}\n")


def timed(work: Callable[[], Any], runs: int) -> dict[str, float]:
    """Seconds on the clock, and of the processor, which do not count what other programs took: medians of some runs."""
    wall, own = [], []
    for _ in range(runs):
        start, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        own.append(time.process_time() - used)
    return {"wall": round(statistics.median(wall), 2), "processor": round(statistics.median(own), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    leaderboard(votes(5, 100, 1))  # what is imported and allocated once
    million, arena = votes(100, 1_000_000, 1), votes(64, 161_000, 1)
    raters, crowd = votes(64, 161_000, 25), votes(100, 1_000_000, 25)
    many = rankings(20_000, 4, 3, 20)
    names = tuple(map(str, range(20_000)))
    rows: dict[str, Callable[[], Any]] = {
        "1,000,000 votes, 100 models": lambda: leaderboard(million),
        "161,000 votes, 64 models": lambda: leaderboard(arena),
        "161,000 votes, 64 models, 25 raters with effects": lambda: leaderboard(raters),
        "1,000,000 votes, 100 models, 25 raters with effects": lambda: leaderboard(crowd),
        "360,000 pairs of 80,000 responses, 20 raters": lambda: rate_responses(many, names),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "votes.csv"
        table(path, arena)
        rows["161,000 votes, 64 models, read from CSV"] = lambda: leaderboard(as_comparisons(read_votes(path), "models"))
        for name, work in rows.items():
            print(json.dumps({"what": name, "seconds": timed(work, runs), "cores": len(os.sched_getaffinity(0))}), flush=True)


if __name__ == "__main__":
    main()
