"""The data that ships with the model: prompts, and pairs and topics with known answers for testing a judge.

The pairs serve to measure, never to train: they come from held-out requests.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from charter.records import Prompt, Record
from charter.run.files import write_jsonl
from charter.testbed import language as lang
from charter.testbed.corpus import draw_pair

PROMPTS_PER_SPLIT = {"train": 1200, "test": 600, "unseen": 240, "second-script": 120, "second-script in training": 400}
SPLIT_TAGS = {"unseen": ["unseen-template"], "second-script": ["second-script"], "second-script in training": ["second-script"]}


class KnownPair(Record):
    """A pair with a known better side, in the form in which `charter` reads pairs."""

    prompt: str
    chosen: str
    rejected: str
    principle: str
    group_id: str


class KnownTopic(Record):
    prompt: str
    topic: str


def draw_prompts(seed: int) -> list[Prompt]:
    """Distinct prompts, as many red-team as benign ones, tagged `direct` or `indirect`; splits by hash. Unseen templates and
    requests in the second script have a tag; the templates are in `test` alone."""
    prompts: dict[str, Prompt] = {}
    for split, n in PROMPTS_PER_SPLIT.items():
        for harmful in (True, False):
            rng = Random(f"{seed}:{split}:{harmful}")
            goal = len(prompts) + n
            while len(prompts) < goal:
                area = rng.choice(lang.AREAS if harmful else (*lang.AREAS, lang.NO_AREA))
                part = "train" if "train" in split else split if split == "unseen" else "test"
                request, _ = lang.draw_split(rng, part, harmful=harmful, area=area)
                request = lang.in_second_script(request) if "second-script" in split else request
                form = "indirect" if lang.is_indirect(request) else "direct"
                tags = ["red_team" if harmful else "benign", form, *SPLIT_TAGS.get(split, [])]
                part = "train" if part == "train" else "test"
                prompt = Prompt.ask(request, source="testbed", tags=tags, split=part)
                prompts.setdefault(prompt.id, prompt)
    return list(prompts.values())


def draw_known_pairs(seed: int, n: int) -> list[KnownPair]:
    """Pairs on held-out requests, harm and help in turn."""
    rng = Random(f"{seed}:pairs")
    pairs = []
    for number in range(n):
        split = "unseen" if number % 4 == 3 else "test"
        request, _, principle, better, worse = draw_pair(rng, split, harmful=number % 2 == 0)
        pairs.append(KnownPair(prompt=request, chosen=better, rejected=worse, principle=principle.replace(" ", "-"),
                               group_id=Prompt.ask(request).id))  # fmt: skip
    return pairs


def draw_known_topics(seed: int, n: int) -> list[KnownTopic]:
    rng = Random(f"{seed}:topics")
    cases = (lang.draw_split(rng, "test", harmful=number % 2 == 0) for number in range(n))
    return [KnownTopic(prompt=request, topic=action.area) for request, action in cases]


def write_data(out: Path, seed: int = 0) -> dict[str, Any]:
    """Write prompts.jsonl, judge_pairs.jsonl and topics.jsonl; the number of rows of each."""
    return {
        "prompts": write_jsonl(out / "prompts.jsonl", draw_prompts(seed)),
        "judge_pairs": write_jsonl(out / "judge_pairs.jsonl", draw_known_pairs(seed, 600)),
        "topics": write_jsonl(out / "topics.jsonl", draw_known_topics(seed, 240)),
        "out": str(out),
    }
