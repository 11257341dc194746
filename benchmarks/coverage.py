"""How often the intervals of ``charter compare`` hold the true difference, and how often its words are false, by simulation.

    python benchmarks/coverage.py intervals | words | families | speed   [--sims 10000] [--seed 0]

Every simulation draws a population of its own (how hard the items are, how far the models differ), then n items of it, and
asks the code of the command itself (``comparing.paired.pair``), nothing written for this page. Items are harder or easier for
both models; with clusters (n = 12, 30, 100, 300 in 6, 10, 25, 60 of unequal sizes) half of an item's difficulty is its
cluster's, and each model is better in some clusters than in others. Graded scores of the second model have skewed noise.
"words": both models are equal, so better and worse are false; "families": 10 metrics on the same 100 items, corrected by
Holm; "speed": 10,000 items of five models.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from charter.comparing.compare import word_of
from charter.comparing.paired import corrected, pair

CLUSTERS = {12: 6, 30: 10, 100: 25, 300: 60}
GRID = norm.ppf((np.arange(400) + 0.5) / 400)  # a standard normal, for the mean of expit over it
DIFFICULTY, TASTE, NOISE = 1.5, 0.8, 0.6  # standard deviations: of items (logits), of a model by cluster, of a graded score


class Population:
    """The items of one simulation: n difficulties, with or without clusters, and what the two models make of them."""

    def __init__(self, rng: np.random.Generator, n: int, clustered: bool) -> None:
        self.rng, self.n, self.labels = rng, n, None
        self.item = rng.normal(size=n)
        self.taste = np.zeros((2, n))
        if clustered:
            groups = CLUSTERS[n]
            sizes = 1 + rng.multinomial(n - groups, rng.dirichlet(np.full(groups, 1.5)))
            self.labels = np.repeat(np.arange(groups), sizes)
            self.item = np.sqrt(0.5) * self.item + np.sqrt(0.5) * rng.normal(size=groups)[self.labels]
            self.taste = TASTE * rng.normal(size=(2, groups))[:, self.labels]

    def scores(self, binary: bool, equal: bool) -> tuple[list[float], list[float], float]:
        """Scores of both models and the true difference of their means."""
        rng = self.rng
        change = 0.0 if equal else rng.normal(0, 0.7)
        if not binary:
            second = rng.normal(0, NOISE, self.n) if equal else NOISE * (rng.exponential(size=self.n) - 1)
            a = self.item + self.taste[0] + rng.normal(0, NOISE, self.n)
            return a.tolist(), (self.item + self.taste[1] + change + second).tolist(), change
        level = rng.normal()
        logits = level + DIFFICULTY * self.item + self.taste
        a, b = rng.random(self.n) < expit(logits[0]), rng.random(self.n) < expit(logits[1] + change)
        spread = np.sqrt(DIFFICULTY**2 + (TASTE**2 if self.labels is not None else 0)) * GRID
        return (
            a.astype(float).tolist(),
            b.astype(float).tolist(),
            float((expit(level + change + spread) - expit(level + spread)).mean()),
        )

    def pair(self, binary: bool, equal: bool = False):
        a, b, truth = self.scores(binary, equal)
        return pair(a, b, None if self.labels is None else self.labels.tolist()), truth


def settings():
    return [(binary, clustered, n) for binary in (True, False) for clustered in (False, True) for n in CLUSTERS]


def name(binary: bool, clustered: bool) -> str:
    return f"{'0 or 1' if binary else 'graded'}, {'clusters' if clustered else 'no clusters'}"


def intervals(sims: int, seed: int) -> None:
    for binary, clustered, n in settings():
        rng = np.random.default_rng([seed, binary, clustered, n])
        hits = width = 0.0
        for _ in range(sims):
            result, truth = Population(rng, n, clustered).pair(binary)
            low, high = result.ci
            hits, width = hits + (low <= truth <= high), width + high - low
        print(f"| {name(binary, clustered)} | {n} | {100 * hits / sims:.1f}% | {width / sims:.3f} |", flush=True)


def verdict(result, p: float | None) -> str:
    return word_of({"ci": result.ci, "margin": None, "better": "higher", "equivalence_ci": None}, p)


def words(sims: int, seed: int) -> None:
    for binary, clustered, n in settings():
        rng = np.random.default_rng([seed + 1, binary, clustered, n])
        false = 0
        for _ in range(sims):
            result, _ = Population(rng, n, clustered).pair(binary, equal=True)
            false += verdict(result, result.p) != "no evidence"
        print(f"| {name(binary, clustered)} | {n} | {100 * false / sims:.1f}% |", flush=True)


def families(sims: int, seed: int) -> None:
    for clustered in (False, True):
        rng = np.random.default_rng([seed + 2, clustered])
        false = 0
        for _ in range(sims):
            population = Population(rng, 100, clustered)
            results = [population.pair(binary, equal=True)[0] for binary in [True] * 5 + [False] * 5]
            ps = corrected([result.p for result in results], "holm")
            false += any(verdict(result, p) != "no evidence" for result, p in zip(results, ps, strict=True))
        print(f"| 10 metrics, {'clusters' if clustered else 'no clusters'} | {100 * false / sims:.1f}% |", flush=True)


def speed(seed: int) -> None:
    """The whole command, with its start, from files of 10,000 rows of five models; the least of three."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"model-{m}.jsonl" for m in range(5)]
        for m, file in enumerate(files):
            scores = rng.random(10_000) < 0.5 + 0.02 * m
            file.write_text("".join(json.dumps({"id": f"q{i}", "score": int(s)}) + "\n" for i, s in enumerate(scores)))
        walls, works = [], []
        for _ in range(3):
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [sys.executable, "-m", "charter", "compare", *map(str, files), "--json"], check=True, capture_output=True
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            walls.append(time.perf_counter() - start)
            works.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(f"10,000 items, 5 models, 10 contrasts: {min(walls):.2f} s by the clock, {min(works):.2f} s of processor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["intervals", "words", "families", "speed"])
    parser.add_argument("--sims", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.part == "speed":
        speed(arguments.seed)
    else:
        {"intervals": intervals, "words": words, "families": families}[arguments.part](arguments.sims, arguments.seed)


if __name__ == "__main__":
    main()
