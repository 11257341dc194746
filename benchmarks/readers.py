"""A reward model that reads the principle against Bradley-Terry on the same pairs, and on a principle that it never learned.

    python benchmarks/readers.py [--hold-out privacy] [--seed 0] [--epochs 1] [--learning-rate 0.0005]

The pairs are the testbed's labelled ones, the principles those of constitutions/demo.yaml. Of the principle held out no pair is
trained on. Both models start from the testbed's model and learn from the same pairs in as many steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from charter.constitution.constitution import load_constitution
from charter.models.reward_trunk import load_reward_trunk
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.reading.pairs import read_pairs, split_pairs
from charter.recipe.source import locate
from charter.run.run import Run
from charter.stages.reward_model.settings import RewardModelSettings
from charter.statistics import clustered_share, paired_difference
from charter.tasks.principle_reader import readable_pairs, right_of
from charter.training.methods.principle_reader import ReadPair, train_principle_reader
from charter.training.methods.reward_model import score_pairs, train_reward_model

ROOT = Path(__file__).parents[1]
TESTBED = "package:charter.testbed/"
ROOM = 256


def show(name: str, right: Sequence[float], pairs: Sequence[ReadPair], more: str = "") -> None:
    """A row of the table."""
    share = clustered_share(right, [pair.pair.group_id for pair in pairs])
    low, high = share.ci or (0.0, 1.0)
    print(f"| {name} | {share.value:.3f} [{low:.3f}, {high:.3f}] | {share.n} | {more} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hold-out", default="privacy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/readers"), help="a training that was stopped resumes there")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    given = parser.parse_args()
    rules = load_constitution(ROOT / "constitutions/demo.yaml")
    settings = RewardModelSettings(epochs=given.epochs, learning_rate=given.learning_rate, pairs_per_step=32, checkpoint_every=2)
    model = locate(f"{TESTBED}model", Path.cwd())
    labelled = read_pairs(Path(locate(f"{TESTBED}data/judge_pairs.jsonl", Path.cwd()))).pairs
    trunk = load_trunk(model, seed=given.seed)
    pairs, _ = readable_pairs(trunk, labelled, rules, ROOM)
    unseen = [pair for pair in pairs if pair.pair.principle == given.hold_out]
    seen = [pair.pair for pair in pairs if pair.pair.principle != given.hold_out]
    sides = split_pairs(seen, test_fraction=0.3, seed=given.seed)
    train, test = (readable_pairs(trunk, side, rules, ROOM)[0] for side in sides)
    print(f"| {len(train)} pairs to learn from, seed {given.seed} | right | pairs | |\n|---|---|---|---|", flush=True)
    with Run(given.out / f"{given.hold_out}-{given.seed}", seed=given.seed, quiet=True) as run:
        with run.stage("reader", settings, {}, []) as stage:
            train_principle_reader(trunk, train, settings, stage)
        other = load_reward_trunk(model, seed=given.seed)
        with run.stage("bradley-terry", settings, {}, []) as stage:
            scorers = train_reward_model(other, [pair.pair for pair in train], settings, stage, limit=ROOM)
    reader, base = LocalSampler(trunk, "reader", role="reward"), LocalSampler(trunk, "base")
    show(f"reads the principle, on `{given.hold_out}`", right_of(reader, unseen), unseen, "never trained on")
    by_reader = right_of(reader, test)
    show("reads the principle", by_reader, test)
    chosen, rejected = score_pairs(other, scorers, [pair.pair for pair in test], 4096, ROOM)
    right = [0.5 if d == 0 else float(d > 0) for d in (chosen - rejected).tolist()]
    apart = paired_difference(right, by_reader, [pair.pair.group_id for pair in test])
    low, high = apart.ci or (-1.0, 1.0)
    show("Bradley-Terry", right, test, f"reader less this: {apart.difference:+.3f} [{low:+.3f}, {high:+.3f}]")
    show(f"the base, read alike, on `{given.hold_out}`", right_of(base, unseen), unseen)
    show("the base, read alike", right_of(base, test), test)


if __name__ == "__main__":
    main()
