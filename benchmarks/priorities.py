"""Comparisons judged by priority and under one drawn principle, on the testbed; a table in Markdown.

    python benchmarks/priorities.py

The principles are those of constitutions/demo.yaml, `tone` ranked below the topics and `helpful` last.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe

ROOT = Path(__file__).parents[1]
TESTBED = "package:charter.testbed/"
RECIPE: dict[str, Any] = {
    "model": f"{TESTBED}model", "constitution": "ranked.yaml", "precision": "float32",
    "prompts": {"files": [f"{TESTBED}data/prompts.jsonl"], "train": 60, "test": 20},
    "revise": None, "sft": None, "rl": None, "evaluation": None,
}  # fmt: skip
FEEDBACK = {
    "generator": "base", "prompts": 120, "labelled_pairs": f"{TESTBED}data/judge_pairs.jsonl", "gate_pairs": 150,
    "max_new_tokens": 48,
}  # fmt: skip


def result_of(folder: Path, priorities: bool) -> dict[str, Any]:
    """The result of the feedback stage."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"feedback": FEEDBACK | {"priorities": priorities}}))
    run_recipe(load_recipe(folder / "recipe.yaml"), folder / "run", until="feedback")
    result: dict[str, Any] = json.loads((folder / "run/feedback/manifest.json").read_text())["result"]
    return result


def accuracy(card: dict[str, Any]) -> str:
    return f"{card['accuracy']:.0%} [{card['ci'][0] * 100:.0f}, {card['ci'][1] * 100:.0f}] of {card['n']}"


if __name__ == "__main__":
    constitution = yaml.safe_load((ROOT / "constitutions/demo.yaml").read_text())
    for principle in constitution["principles"]:
        principle["priority"] = {"tone": 2, "helpful": 3}.get(principle["id"], 1)
    with TemporaryDirectory() as name:
        (Path(name) / "ranked.yaml").write_text(yaml.safe_dump(constitution))
        ranked, drawn = (result_of(Path(name), priorities) for priorities in (True, False))
    rule = ranked["judge"]["priorities"]
    print("| 120 comparisons of the base model's answers | `priorities: true` | `false` |\n|---|---|---|")
    right = f"{accuracy(rule)}, {rule['undecided']} undecided | {accuracy(drawn['judge'])}"
    print(f"| right on labelled pairs, 95% interval | {right} |")
    print(f"| noise, nats | {rule['noise_nats']:.2f} | |\n| ties | {ranked['ties']} | {drawn['ties']} |")
    print(f"| questions for each labelled comparison | {rule['questions_per_comparison']:.1f} | 1 |")
    print(f"| decided by | {', '.join(f'{p} {n}' for p, n in ranked['decided'].items())} | the drawn principle |")
