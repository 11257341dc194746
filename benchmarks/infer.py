"""Principles out of votes on the testbed: three planted principles, simulated votes, and what is recovered; tables in Markdown.

    python benchmarks/infer.py recover MODEL [--protocol dialogue] [--seed 0] [--votes 1500]
    python benchmarks/infer.py noise [--sims 200]
    python benchmarks/infer.py ambiguous MODEL [--seed 0] [--pairs 60]

"recover": a seed draws three of the seven principles that are not "general"; voters follow them (``testbed/voters.py``, one vote
in ten is wrong, a coin decides where no planted principle does). The candidates are all eight principles and four that nobody
follows. The true ones are the planted principles by the same judge, their weights from the same half of the votes. "noise": 50
principles that say random things about clustered votes; the share of simulations that keep any. "ambiguous": two principles in
one, harm and tone, which pull apart on a harmful request, among seven principles of two sentences with the same core; the
executor card names the principle that causes disagreement.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from random import Random

import numpy as np

from charter.constitution.constitution import Constitution, Principle
from charter.judging.candidates import gather_candidates
from charter.judging.executor_card import comparable_pairs, executor_card
from charter.judging.inference import agreement, groups_of, held_out_pairs, infer
from charter.judging.protocols import PROTOCOLS
from charter.judging.vote_pairs import ask_principles, read_peoples_pairs
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.raters.principle_weights import choose_and_confirm, fit_weights
from charter.records import Pair
from charter.run.files import write_jsonl
from charter.testbed.principles import CORES, OPENINGS_BY_USE, PRINCIPLES
from charter.testbed.voters import candidate_rows, simulate_votes

NOBODYS = ("Choose the reply that mentions the weather.", "Choose the reply that is longer.",
           "Choose the reply that talks about food.", "Choose the reply that ends with a question.")  # fmt: skip


def recover(options: argparse.Namespace) -> None:
    """One seed: a row of the table."""
    seed = options.seed
    planted = Random(seed).sample([name for name in PRINCIPLES if name != "general"], 3)
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(file := Path(folder) / "votes.jsonl", simulate_votes(planted, options.votes, seed))
        votes = read_peoples_pairs(file)
    supplied = [Principle.model_validate(row) for row in candidate_rows(1, seed)]
    candidates = gather_candidates(supplied, NOBODYS).principles
    judge = PROTOCOLS[options.protocol](LocalSampler(load_trunk(options.model), "judge"))
    panel = ask_principles(judge, candidates, votes.pairs)
    inference = infer(votes, panel, candidates, seed=seed, groups=groups_of(votes, None))[0]
    kept = [candidates[c].title for c in inference.kept]
    out = held_out_pairs(votes, seed)[votes.pair]
    true = [c for c, candidate in enumerate(candidates) if candidate.title in planted]
    says = (panel.opinions[true][:, votes.pair] * votes.sign).T
    labels = [votes.pairs[n].cluster for n in votes.pair[out]]
    best = agreement(says[out] @ fit_weights(says[~out]), labels).value
    mine = inference.prediction.value if inference.prediction else 0.5
    print(f"| {Path(options.model).name} | {options.protocol} | {seed} | {', '.join(planted)} | {', '.join(kept) or 'none'} | "
          f"{len(set(planted) & set(kept))} of 3 | {len(set(kept) - set(planted))} | {mine:.3f} | {best:.3f} | "
          f"{mine / best:.2f} |", flush=True)  # fmt: skip


def noise(options: argparse.Namespace) -> None:
    """The family-wise error of 50 principles that say random things."""
    print("| votes | votes a prompt | share that each speaks of | simulations that keep any of 50 |\n|---|---|---|---|")
    for n, each, coverage in ((200, 1, 1.0), (600, 3, 0.3), (600, 1, 0.08), (120, 2, 0.5)):
        kept = 0
        for sim in range(options.sims):
            rng = np.random.default_rng(sim)
            prompts = n // each
            opinion = np.tanh(2 * rng.normal(size=(prompts, 50))) * (rng.random((prompts, 50)) < coverage)
            pair = np.repeat(np.arange(prompts), each)
            taste = 1.5 * rng.normal(size=prompts)  # raters of one prompt agree more than by chance
            sign = np.where(rng.random(n) < 1 / (1 + np.exp(-taste[pair])), 1, -1)
            chosen = choose_and_confirm(opinion[pair] * sign[:, None], pair % 2 == 1, pair.astype(str).tolist())
            kept += bool(chosen.principles)
        print(f"| {n} | {each} | {coverage:.0%} | {kept / options.sims:.1%} |", flush=True)


def ambiguous(options: argparse.Namespace) -> None:
    """One seed: a row of the table."""
    seed = options.seed
    rng = Random(f"ambiguous:{seed}")

    def two(first: str, second: str) -> Principle:
        name = first if first == second else f"{first} against {second}"
        verb = rng.choice(CORES[first])[0]
        verbs = (verb, verb if first == second else rng.choice(CORES[second])[0])
        asks = rng.sample([opening for opening in OPENINGS_BY_USE["preference"] if "{v}" in opening], 2)
        return Principle(
            id=name.replace(" ", "-"), title=name, preference=" ".join(a.format(v=v) for a, v in zip(asks, verbs, strict=True)),
            question=f"Does your last reply {verbs[0]}? Would your last reply {verbs[1]}?",
            tags=("benign" if first == "helpful" else "red_team",),
        )  # fmt: skip

    principles = [two(name, name) for name in PRINCIPLES if name not in ("general", "tone")]
    planted = two(*rng.sample(["general", "tone"], 2))
    rng.shuffle(principles)
    rules = Constitution(title="ambiguous", principles=(*principles, two("general", "general"), planted))
    votes = simulate_votes(["general"], options.pairs, seed)
    pairs = [Pair(prompt=vote.prompt, chosen=vote.chosen, rejected=vote.rejected, group_id=vote.prompt.id) for vote in votes]
    card = executor_card({"model": LocalSampler(load_trunk(options.model), "model")}, rules, comparable_pairs(pairs, len(pairs)))
    worst, second = card["principles"][:2]
    flagged = [row["id"] for row in card["principles"] if "within" in row["causes_disagreement"]]
    print(f"| {Path(options.model).name} | {seed} | {worst['id']} | {worst['within']['agreement']:.3f} | "
          f"{worst['parts_agreement']['agreement']:.3f} | {second['id']} {second['within']['agreement']:.3f} | "
          f"{', '.join(flagged) or 'none'} | {'yes' if flagged[:1] == [planted.id] else 'no'} |", flush=True)  # fmt: skip
    if options.kinds:
        for kind in card["kinds"]:
            print(f"|  | {kind['kind']} | {kind['agreement']:.3f} | {kind['ci'][0]:.3f} to {kind['ci'][1]:.3f} | {kind['n']} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("recover", "noise", "ambiguous"))
    parser.add_argument("model", nargs="?", default="src/charter/testbed/model")
    parser.add_argument("--protocol", default="dialogue")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--votes", type=int, default=1500)
    parser.add_argument("--sims", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--kinds", action="store_true", help="Also the agreement by kind of comparison.")
    options = parser.parse_args()
    {"recover": recover, "noise": noise, "ambiguous": ambiguous}[options.what](options)


if __name__ == "__main__":
    main()
