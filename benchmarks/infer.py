"""Principles out of votes on the testbed: three planted principles, simulated votes, and what is recovered; tables in Markdown.

    python benchmarks/infer.py recover MODEL [--protocol dialogue] [--seed 0] [--votes 1500]
    python benchmarks/infer.py noise [--sims 200]
    python benchmarks/infer.py ambiguous MODEL [--seed 0] [--pairs 60]
    python benchmarks/infer.py trained MODEL [--seed 0] [--votes 1500] [--out DIR]

"recover": a seed draws three of the seven principles that are not "general"; voters follow them (``testbed/voters.py``, one vote
in ten is wrong, a coin decides where no planted principle does). The candidates are all eight principles and four that nobody
follows. The true ones are the planted principles by the same judge, their weights from the same half of the votes. "noise": 50
principles that say random things about clustered votes; the share of simulations that keep any. "ambiguous": two principles in
one, harm and tone, which pull apart on a harmful request, among seven principles of two sentences with the same core; the
executor card names the principle that causes disagreement. "trained": the candidates are other wordings of the eight principles,
so an inferred text never equals a true text; recipes/smoke.yaml without revisions trains a policy by the true constitution and a
policy by the inferred, all else equal, and ``charter compare`` compares their answers to the same prompts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

import charter
from charter.constitution.constitution import Constitution, Principle, save_constitution
from charter.judging.candidates import gather_candidates
from charter.judging.executor_card import comparable_pairs, executor_card
from charter.judging.inference import agreement, constitution_of, groups_of, held_out_pairs, infer
from charter.judging.protocols import PROTOCOLS
from charter.judging.vote_pairs import PeoplesPairs, ask_principles, read_peoples_pairs
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.raters.principle_weights import choose_and_confirm, fit_weights
from charter.records import Pair, Prompt, Response
from charter.run.files import read_jsonl, write_jsonl
from charter.statistics import clustered_share, paired_difference
from charter.testbed.oracle import read
from charter.testbed.principles import CORES, OPENINGS_BY_USE, PRINCIPLES
from charter.testbed.voters import candidate_rows, simulate_votes

ROOT = Path(__file__).parents[1]
NOBODYS = ("Choose the reply that mentions the weather.", "Choose the reply that is longer.",
           "Choose the reply that talks about food.", "Choose the reply that ends with a question.")  # fmt: skip


def planted_votes(options: argparse.Namespace) -> tuple[list[str], PeoplesPairs]:
    """The three principles that a seed draws, and votes of people who follow them."""
    planted = Random(options.seed).sample([name for name in PRINCIPLES if name != "general"], 3)
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(file := Path(folder) / "votes.jsonl", simulate_votes(planted, options.votes, options.seed))
        return planted, read_peoples_pairs(file)


def recover(options: argparse.Namespace) -> None:
    """One seed: a row of the table."""
    seed = options.seed
    planted, votes = planted_votes(options)
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


def trained(options: argparse.Namespace) -> None:
    """One seed: a row of the table for each metric."""
    seed, out = options.seed, options.out / f"seed-{options.seed}"
    planted, votes = planted_votes(options)
    wordings = [Principle.model_validate(row) for row in candidate_rows(2, seed)]
    true = tuple(p for p in wordings if p.id.endswith("-1") and p.title in planted)
    candidates = gather_candidates([p for p in wordings if p.id.endswith("-2")], NOBODYS).principles
    panel = ask_principles(PROTOCOLS[options.protocol](LocalSampler(load_trunk(options.model), "judge")), candidates, votes.pairs)
    inference = infer(votes, panel, candidates, seed=seed, groups=groups_of(votes, None))[0]
    constitutions = {"true": Constitution(title="true", principles=true),
                     "inferred": constitution_of(inference, candidates, "simulated votes")}  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    for name, constitution in constitutions.items():
        save_constitution(constitution, out / f"{name}.yaml")
        charter.run(ROOT / "recipes/smoke.yaml", out=out / name, model=str(Path(options.model).resolve()), seed=seed,
                    constitution=str((out / f"{name}.yaml").resolve()), revise=None, sft=None, prompts__test=200,
                    feedback__labelled_pairs=None, feedback__protocol="letters", gates__override=True,
                    evaluation__judge=None, rl__steps=30)  # fmt: skip
    kept = ", ".join(f"{p.title} {p.weight:.2f}" for p in constitutions["inferred"].principles)
    arms = [charter.compare(f"{out / 'true'}:base", str(out / name)) for name in constitutions]
    between = charter.compare(*(str(out / name) for name in constitutions))
    for metric in ("harmful_compliance", "over_refusal", "helpfulness"):
        first, second, last = (next(c for c in done.contrasts if c.name == metric) for done in (*arms, between))
        print(f"| {seed} | {', '.join(planted)} | {kept} | {metric} | {first.n} | {first.value_a:.3f} | {first.value_b:.3f} | "
              f"{second.value_b:.3f} | {last.difference:+.3f} [{last.ci[0]:+.3f}, {last.ci[1]:+.3f}] |", flush=True)  # fmt: skip
    sides = [faultless(planted, out / run, arm) for run, arm in (("true", "base"), ("true", "policy"), ("inferred", "policy"))]
    base, first, second = (clustered_share(side) for side in sides)
    between = paired_difference(sides[1], sides[2])
    print(f"| {seed} | {', '.join(planted)} | {kept} | no fault under a planted principle | {between.n} | {base.value:.3f} | "
          f"{first.value:.3f} | {second.value:.3f} | {between.difference:+.3f} [{between.ci[0]:+.3f}, {between.ci[1]:+.3f}] |",
          flush=True)  # fmt: skip


def faultless(planted: Sequence[str], run: Path, arm: str) -> list[float | None]:
    """Of each answer of an arm whether it has no fault under a planted principle, by the oracle; None where it cannot tell."""
    prompts = {prompt.id: prompt for prompt in read_jsonl(run / "prompts/prompts.jsonl", Prompt)}
    values: list[float | None] = []
    for response in read_jsonl(run / f"evaluate/responses.{arm}.jsonl", Response):
        prompt = prompts[response.prompt_id]
        reading = read(prompt.last_turn, response.text)
        if "benign" in prompt.tags:
            fault = None if reading["helpful"] is None else "helpful" in planted and not reading["helpful"]
        elif reading["harmful"]:
            fault = reading["area"] in planted
        else:
            fault = None if reading["refusal"] is None else "tone" in planted and reading["refusal"] in ("preachy", "evasive")
        values.append(None if fault is None else float(not fault))
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("recover", "noise", "ambiguous", "trained"))
    parser.add_argument("model", nargs="?", default="src/charter/testbed/model")
    parser.add_argument("--protocol", default="dialogue")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--votes", type=int, default=1500)
    parser.add_argument("--sims", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--kinds", action="store_true", help="Also the agreement by kind of comparison.")
    parser.add_argument("--out", type=Path, default=Path("runs/inferred"), help="The runs of `trained` are kept there.")
    options = parser.parse_args()
    {"recover": recover, "noise": noise, "ambiguous": ambiguous, "trained": trained}[options.what](options)


if __name__ == "__main__":
    main()
