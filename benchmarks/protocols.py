"""Every protocol of a judge on labelled pairs, and what `auto` chooses on one half and gets on the other; a table in Markdown.

    python benchmarks/protocols.py MODEL [--constitution FILE] [--pairs FILE] [--most N] [--seeds N] [--out DIR]
    python benchmarks/protocols.py chance

Without --pairs the pairs are those in the examples of the constitution. Without --constitution it is constitutions/demo.yaml,
each principle with two criteria in the testbed's words: its critique as a question, and whether the reply avoids useless answers.
"chance": how often `auto` falls below the lower end of the better of two protocols that are equally right, by luck alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from charter.constitution.constitution import Constitution, Criterion, load_constitution
from charter.constitution.export import labelled_pairs
from charter.judging.gate import better_judge
from charter.judging.judge import Comparison, LanguageModelJudge, Preference
from charter.judging.protocols import judges_of
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.reading.pairs import read_pairs
from charter.recipe.source import locate
from charter.records import Pair
from charter.run.files import write_json
from charter.run.hashes import derive_seed
from charter.statistics import wilson

ROOT = Path(__file__).parents[1]
GOOD_BY_YES = ("without", "avoid", "free of")


class Remembered:
    """A judge that answers each comparison once and keeps the answers in a file: all seeds halve the same pairs."""

    def __init__(self, judge: LanguageModelJudge, file: Path) -> None:
        self.judge, self.protocol, self.file = judge, judge.protocol, file
        stored = json.loads(file.read_text()) if file.exists() else []
        self.known = {tuple(key): Preference(*margins) for key, margins in stored}

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        keys = [(c.principle.id, c.prompt.id, *sorted((c.first.text, c.second.text))) for c in comparisons]
        new = {key: c for key, c in zip(keys, comparisons, strict=True) if key not in self.known}
        ordered = [c if c.first.text < c.second.text else c.swap() for c in new.values()]
        self.known |= dict(zip(new, self.judge(ordered) if ordered else [], strict=True))
        if new:
            write_json(self.file, [[key, [p.first_as_a, p.first_as_b]] for key, p in self.known.items()])
        answers = [(c, self.known[key]) for c, key in zip(comparisons, keys, strict=True)]
        return [p if c.first.text < c.second.text else Preference(-p.first_as_b, -p.first_as_a) for c, p in answers]


def with_criteria(rules: Constitution) -> Constitution:
    """Principles that ask their critique, and weigh it against help."""
    principles = []
    for principle in rules.principles:
        question = principle.critique or ""
        good = any(word in question for word in GOOD_BY_YES)
        criteria = (
            Criterion(criterion=question, points=3 if good else -3),
            Criterion(criterion="Does your last reply avoid useless answers?", points=1),
        )
        update = {"question": question, "good_answer": "yes" if good else "no", "criteria": criteria}
        principles.append(principle.model_copy(update=update))
    return rules.model_copy(update={"principles": tuple(principles)})


def chance(n_simulations: int = 20_000) -> None:
    """A row for each number of pairs in the half that did not choose."""
    print("| pairs | both right on | auto below the lower end of the better one |\n|---|---|---|")
    for n, share in ((17, 0.7), (17, 0.8), (100, 0.7), (100, 0.8)):
        right = np.random.default_rng(0).binomial(n, share, (n_simulations, 2)).tolist()
        missed = sum(mine / n < wilson(max(mine, other), n)[0] for mine, other in right)
        print(f"| {n} | {share} | {missed / n_simulations:.3f} |", flush=True)


def options(description: str | None) -> argparse.ArgumentParser:
    """Of the judge and its pairs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--constitution", type=Path)
    parser.add_argument("--pairs")
    parser.add_argument("--most", type=int, default=300)
    return parser


def drawn_pairs(given: argparse.Namespace) -> tuple[Constitution, list[Pair]]:
    """The constitution, and the pairs in an order by hash, the most that were asked for."""
    file = given.constitution
    rules = load_constitution(file) if file else with_criteria(load_constitution(ROOT / "constitutions/demo.yaml"))
    pairs = read_pairs(Path(locate(given.pairs, Path.cwd()))).pairs if given.pairs else labelled_pairs(rules).rows
    return rules, sorted(pairs, key=lambda pair: derive_seed("protocols", pair.prompt.id, pair.chosen))[: given.most]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/protocols"), help="answers are kept there")
    given = parser.parse_args()
    if given.model == "chance":
        chance()
        return
    out = given.out / f"{Path(given.model).name}-{given.constitution.stem if given.constitution else 'demo'}"
    out.mkdir(parents=True, exist_ok=True)
    rules, drawn = drawn_pairs(given)
    sampler = LocalSampler(load_trunk(locate(given.model, Path.cwd())), "judge")
    judges = {name: Remembered(judge, out / f"{name}.json") for name, judge in judges_of("auto", sampler, rules).items()}
    print(f"| seed, {len(drawn)} pairs | {' | '.join(judges)} | auto | best of the others less its interval |")
    print("|---" * (len(judges) + 3) + "|")
    for seed in range(given.seeds):
        _, card = better_judge(judges, drawn, rules, seed=seed, batch_size=8)
        assert card is not None
        rows = {row["protocol"]: row for row in card["protocols"]}
        best = max(rows.values(), key=lambda row: row["accuracy"])
        cells = [f"{row['accuracy']:.3f}" + (" *" if row["chosen"] else "") for row in rows.values()]
        print(f"| {seed} | {' | '.join(cells)} | {card['accuracy']:.3f} [{card['ci'][0]:.3f}, {card['ci'][1]:.3f}] | "
              f"{best['ci'][0]:.3f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
