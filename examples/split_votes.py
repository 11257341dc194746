"""Splits pairs of hh-rlhf by dialogue, for the recipes smollm2-hh and smollm2-hh-dpo.

    python examples/split_votes.py hh-rlhf/harmless-base/test.jsonl.gz --out data/hh

votes.jsonl and second-votes.jsonl have 45% of the dialogues each, as they were. prompts.jsonl has the first question of every
dialogue of the first part as training prompts, and those of the remaining 10% as held-out prompts, which neither part has.
Dialogues that begin with the same question stay together.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from charter.records import content_id
from charter.run.files import read_lines

FIRST, SECOND = 0.45, 0.9


def first_question(dialogue: str) -> str:
    """What the person says first in a transcript of hh-rlhf."""
    return dialogue.split("\n\nAssistant:")[0].removeprefix("\n\nHuman:").strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="JSON Lines with chosen and rejected, plain or gzipped")
    parser.add_argument("--out", type=Path, required=True, help="folder for the three files")
    args = parser.parse_args()
    parts: dict[str, list[str]] = {"votes": [], "second-votes": [], "held-out": []}
    prompts: dict[str, dict[str, str]] = {}
    for file in args.files:
        for _, line in read_lines(file):
            question = first_question(json.loads(line)["chosen"])
            share = int(content_id(question), 16) / 16**16
            part = "votes" if share < FIRST else "second-votes" if share < SECOND else "held-out"
            parts[part].append(line)
            if question and part != "second-votes":
                prompts[question] = {"prompt": question, "split": "train" if part == "votes" else "test"}
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("votes", "second-votes"):
        (args.out / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in parts[name]), encoding="utf-8")
    rows = [json.dumps(prompt, ensure_ascii=False) for prompt in prompts.values()]
    (args.out / "prompts.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    splits = Counter(prompt["split"] for prompt in prompts.values())
    print(
        f"{len(parts['votes'])} and {len(parts['second-votes'])} votes; {splits['train']} prompts and {splits['test']} held out"
    )


if __name__ == "__main__":
    main()
