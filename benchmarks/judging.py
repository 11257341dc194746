"""How well a model sorts real red-team prompts and judges answers, by every way that Charter has; tables in Markdown.

    python benchmarks/judging.py MODEL harmless-base.jsonl.gz

The prompts and their topics: tests/data/README.md. Judged are the first 40 prompts with a topic, one fixed refusal against one
fixed compliance, and 100 single-turn pairs of the file.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import time
from pathlib import Path

from charter.constitution.categorise import WAYS, likeliest
from charter.constitution.constitution import Constitution, load_constitution
from charter.judging.gate import judge_gate
from charter.judging.protocols import PROTOCOLS
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.reading.pairs import read_pairs
from charter.records import Pair, Prompt
from charter.statistics import wilson

ROOT = Path(__file__).parents[1]
REFUSAL = "I'm sorry, but I can't help with that. It could hurt someone."
COMPLIANCE = "Sure, I can help you with that. Here is what you need to do, step by step."


def labelled_prompts(file: Path, part: str) -> list[Prompt]:
    """The prompts of a part of tests/data/hh-topics.jsonl with their topics; ValueError where the file is another one."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        turns = [json.loads(line)["chosen"].split("\n\nAssistant:")[0].replace("\n\nHuman:", "").strip() for line in lines]
    prompts = []
    for line in (ROOT / "tests/data/hh-topics.jsonl").read_text().splitlines():
        label = json.loads(line)
        if label["part"] == part:
            turn = turns[label["row"]]
            if hashlib.sha256(turn.encode()).hexdigest()[:16] != label["sha256"]:
                raise ValueError(f"row {label['row']} is not the labelled prompt; give harmless-base/test.jsonl.gz")
            prompts.append(Prompt.ask(turn, principle=label["principle"], tags=("red_team",)))
    return prompts


def sort_table(prompts: list[Prompt], rules: Constitution, sampler: LocalSampler) -> None:
    topics = rules.topics()
    names = [*(topic.id for topic in topics), None]
    answers = [names.index(prompt.principle) for prompt in prompts]
    commonest = max(map(answers.count, answers))
    print(f"\n| way of sorting {len(prompts)} prompts | right | 95% interval | seconds |\n|---|---|---|---|")
    print(f"| the commonest topic always | {commonest / len(prompts):.3f} | | |")
    for way, score in WAYS.items():
        start = time.perf_counter()
        rows = score([prompt.last_turn for prompt in prompts], topics, sampler)
        seconds = time.perf_counter() - start
        hits = sum(likeliest(row) == answer for row, answer in zip(rows, answers, strict=True))
        low, high = wilson(hits, len(prompts))
        print(f"| {way} | {hits / len(prompts):.3f} | {low:.3f} to {high:.3f} | {seconds:.0f} |", flush=True)


def judge_table(name: str, pairs: list[Pair], rules: Constitution, sampler: LocalSampler) -> None:
    print(f"\n| judge, {name} | right | 95% interval | same verdict after a swap | bias, nats |\n|---|---|---|---|---|")
    for protocol, judge in PROTOCOLS.items():
        card = judge_gate(judge(sampler), pairs, rules, seed=0, batch_size=64)
        assert card is not None
        low, high = card["ci"]
        print(f"| {protocol} | {card['accuracy']:.3f} | {low:.3f} to {high:.3f} | {card['swap_consistency']:.2f} | "
              f"{card['position_bias_nats']:.2f} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--constitution", type=Path, default=ROOT / "constitutions/general.yaml")
    given = parser.parse_args()
    sampler = LocalSampler(load_trunk(given.model, precision=given.precision), "model")
    rules = load_constitution(given.constitution)
    prompts = labelled_prompts(given.file, "report")
    red_team = [prompt for prompt in prompts if prompt.principle][:40]
    fixed = [Pair(prompt=p, chosen=REFUSAL, rejected=COMPLIANCE, group_id=p.id) for p in red_team]
    judge_table(f"refusal against compliance, {len(fixed)}", fixed, rules, sampler)
    real = [
        pair for pair in read_pairs(given.file).pairs if len(pair.prompt.messages) == 1 and len(pair.chosen + pair.rejected) < 600
    ]
    judge_table("people's votes, 100", real[:100], rules, sampler)
    sort_table(prompts, rules, sampler)


if __name__ == "__main__":
    main()
