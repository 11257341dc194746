"""Reward models from ratings beside one from pairs, all from the same votes, on the same held-out pairs.

    python benchmarks/rated_rewards.py --seeds 3

The testbed's model answers each prompt four times. Nine simulated raters rank the answers by the oracle's worth plus Gumbel
noise; three of them see each prompt. From these votes come pairs (a row for each vote) and ratings (`charter ratings --of
responses`); from the pairs a reward model by Bradley-Terry, from the ratings two by the squared and the absolute distance, with
the same start, passes, prompts in a step and learning rate. The pairs that measure are of other prompts and have the oracle's
answer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from charter.constitution.revise import respond
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.raters.report_files import write_ratings
from charter.raters.reports import ratings_report
from charter.raters.vote_files import rated_texts, read_votes
from charter.reading.prompts import read_prompts
from charter.recipe.settings import SamplingSettings
from charter.recipe.source import locate
from charter.records import Judgment, Pair, Prompt, Response
from charter.run.files import read_json, read_jsonl, write_json, write_jsonl
from charter.stages.reward_model.settings import RatingModelSettings, RewardModelSettings
from charter.statistics import clustered_share, paired_difference
from charter.tasks.own_files import Start, rating_model_from_file, reward_from_file
from charter.tasks.scored_files import score_file
from charter.testbed.oracle import read
from charter.votes.exchange import export_feedback, selection_of
from charter.votes.judgments import follow

MODEL = locate("package:charter.testbed/model", Path.cwd())
K, RATERS, EACH = 4, 9, 3
PROMPTS_PER_STEP, EPOCHS, RATE, TEST = 8, 4, 5e-4, 0.1
METHODS = ("pairs", "squared", "absolute")


def worth(prompt: Prompt, response: Response) -> int:
    """The oracle's worth of a response, 0 to 4; an answer that it cannot read is worth nothing."""
    verdict = read(prompt.last_turn, response.text)
    level = verdict["gold"] if verdict["gold"] is not None else verdict["helpfulness_level"]
    return int(level or 0)


def sampled(prompts: Sequence[Prompt], seed: int) -> list[list[Response]]:
    """K answers of the testbed's model to each prompt."""
    settings, sampler = SamplingSettings(), LocalSampler(load_trunk(MODEL), "base")
    batches = [prompts[i : i + 32] for i in range(0, len(prompts), 32)]
    return [group for batch in batches for group in respond(sampler, batch, settings, seed=seed, what="rated", k=K)]


def votes(prompts: Sequence[Prompt], groups: Sequence[Sequence[Response]], seed: int, noise: float) -> list[Judgment]:
    """Rankings of the answers by three raters for each prompt."""
    rng = np.random.default_rng(seed)
    judgments: list[Judgment] = []
    for prompt, group in zip(prompts, groups, strict=True):
        worths = np.array([worth(prompt, response) for response in group], dtype=float)
        for rater in rng.choice(RATERS, EACH, replace=False):
            order = np.argsort(-(worths + noise * rng.gumbel(size=K)))
            shown = rng.permutation(K)
            judgments.append(follow(Judgment(
                id=f"{prompt.id}-{rater}", set_id=prompt.id, prompt_id=prompt.id, rater_id=f"rater-{rater}", rater_kind="human",
                order=tuple(group[i].id for i in shown), ranks={group[i].id: place for place, i in enumerate(order, start=1)},
            ), judgments[-1] if judgments else None))  # fmt: skip
    return judgments


def held_out(prompts: Sequence[Prompt], groups: Sequence[Sequence[Response]]) -> list[Pair]:
    """Every two answers of different worth."""
    pairs = []
    for prompt, group in zip(prompts, groups, strict=True):
        for a, b in combinations(group, 2):
            better, worse = (a, b) if worth(prompt, a) > worth(prompt, b) else (b, a)
            if worth(prompt, a) != worth(prompt, b):
                pairs.append(Pair(prompt=prompt, chosen=better.text, rejected=worse.text, group_id=prompt.id))
    return pairs


def one_seed(folder: Path, seed: int, n_train: int, n_test: int, noise: float) -> tuple[list[str], dict[str, list[float]]]:
    """The prompt of each held-out pair, and for each method whether the better answer scores higher (ties half)."""
    every = list(read_prompts(Path(locate("package:charter.testbed/data/prompts.jsonl", Path.cwd()))))
    chosen = [every[i] for i in np.random.default_rng(seed).permutation(len(every))[: n_train + n_test]]
    groups = sampled(chosen, seed)
    train, test = chosen[:n_train], chosen[n_train:]
    write_jsonl(folder / "prompts.jsonl", train)
    write_jsonl(folder / "responses.jsonl", [response for group in groups[:n_train] for response in group])
    write_jsonl(folder / "judgments.jsonl", votes(train, groups[:n_train], seed, noise))
    pairs = held_out(test, groups[n_train:])
    write_jsonl(folder / "held-out.jsonl", pairs)

    export_feedback(folder, folder / "pairs.jsonl", "trl", selection_of({}))
    report, _ = ratings_report(read_votes(folder), "responses")
    rated = [(prompt["prompt"], row["response"]) for prompt in report["prompts_rated"] for row in prompt["responses"]]
    write_ratings(report, folder, rated_texts(folder, None, None, rated))

    start = Start(MODEL, 256, "bfloat16", seed, quiet=True)
    shared = {"epochs": EPOCHS, "learning_rate": RATE, "test_fraction": TEST}
    per_step = PROMPTS_PER_STEP * EACH * K * (K - 1) // 2
    reward_from_file(folder / "pairs.jsonl", folder / "by-pairs", RewardModelSettings(**shared, pairs_per_step=per_step), start)
    for loss in ("squared", "absolute"):
        settings = RatingModelSettings(**shared, loss=loss, ratings_per_step=PROMPTS_PER_STEP * K)
        rating_model_from_file(folder / "ratings.csv", folder / f"by-{loss}", settings, start)
    right = {}
    for method in METHODS:
        out = folder / f"scored-{method}.jsonl"
        score_file(folder / "held-out.jsonl", folder / f"by-{method}", out, limit=256, precision="bfloat16")
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        differences = [row["reward_chosen"] - row["reward_rejected"] for row in rows]
        right[method] = [0.5 if d == 0 else float(d > 0) for d in differences]
    return [pair.prompt.id for pair in read_jsonl(folder / "held-out.jsonl", Pair)], right


def cell(value: float | None, ci: tuple[float, float] | None, sign: str = "") -> str:
    """`.812 (.790 to .833)`."""
    low, high = ci or (float("nan"),) * 2
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})".replace("0.", ".")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/rated-rewards"), help="a seed that is done here is not run again")
    parser.add_argument("--train", type=int, default=100, help="prompts whose answers are voted on")
    parser.add_argument("--test", type=int, default=80, help="prompts of the held-out pairs")
    parser.add_argument("--noise", type=float, default=1.0, help="scale of the raters' Gumbel noise, in levels of worth")
    given = parser.parse_args()
    clusters: list[str] = []
    everything: dict[str, list[float]] = {method: [] for method in METHODS}
    print("| seed | pairs | " + " | ".join(METHODS) + " |\n|---|---|---|---|---|")
    for seed in range(given.seeds):
        stored = given.out / f"seed-{seed}-{given.train}-{given.test}-{given.noise}.json"
        if not stored.exists():
            with tempfile.TemporaryDirectory() as folder:
                write_json(stored, one_seed(Path(folder), seed, given.train, given.test, given.noise))
        ids, right = read_json(stored)
        shares = [clustered_share(right[method], ids) for method in METHODS]
        print(f"| {seed} | {len(ids)} | " + " | ".join(cell(share.value, share.ci) for share in shares) + " |", flush=True)
        clusters += ids
        for method in METHODS:
            everything[method] += right[method]
    shares = [clustered_share(everything[method], clusters) for method in METHODS]
    print(f"| all | {len(clusters)} | " + " | ".join(cell(share.value, share.ci) for share in shares) + " |\n")
    print("| over pairs | difference, 95% interval |\n|---|---|")
    for method in METHODS[1:]:
        change = paired_difference(everything["pairs"], everything[method], clusters)
        print(f"| {method} | {cell(change.difference, change.ci, '+')} |")


if __name__ == "__main__":
    main()
