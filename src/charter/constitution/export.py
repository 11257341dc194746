"""The examples of a constitution as files that a recipe reads: labelled pairs, prompts to evaluate, worked examples.

A prompt with published answers goes to the pairs and worked examples, a prompt without to the evaluation: so no prompt of the
evaluation is one that a worked example has answered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from charter.constitution.constitution import PROMPT_TAGS, Answer, Constitution, Example, FewShots, Principle
from charter.records import Message, Pair, Prompt

TAG = "constitution"  # of the prompts, by which the report shows them apart


class Exported(NamedTuple):
    """What is written, and what is left out by reason."""

    rows: list[Any]
    left_out: dict[str, int]


def labelled_pairs(constitution: Constitution) -> Exported:
    """Every good answer of an example over every bad one, under the principle that the example explains, highest rank first."""
    pairs, left_out = [], Counter[str]()
    for principle, example in examples_of(constitution):
        if not (example.good and example.bad):
            left_out["example with answers of one side"] += bool(example.good or example.bad)
            continue
        if principle.preference is None:
            left_out["example of a principle without a preference"] += 1
            continue
        prompt = Prompt(messages=example.prompt, source=principle.source, tags=kinds_of(principle))
        for good, bad in ((good, bad) for good in example.good for bad in example.bad):
            if good.text == bad.text:
                left_out["good and bad answer are the same"] += 1
            else:
                pairs.append(Pair(prompt=prompt, chosen=good.text, rejected=bad.text, group_id=prompt.id, principle=principle.id))
    return Exported(pairs, dict(+left_out))


def evaluation_prompts(constitution: Constitution, tag: str = TAG) -> Exported:
    """The prompts without an answer, held out, with their principle and ``tag``. A prompt that stands twice, or that has answers
    elsewhere, is left out."""
    prompts: dict[str, Prompt] = {}
    answered = {Prompt(messages=e.prompt).id for _, e in examples_of(constitution) if e.good or e.bad}
    left_out = Counter[str]()
    for principle, example in examples_of(constitution):
        if example.good or example.bad:
            continue
        prompt = Prompt(
            messages=example.prompt,
            source=principle.source,
            principle=principle.id,
            tags=(*kinds_of(principle), tag),
            split="test",
        )
        if prompt.id in answered:
            left_out["prompt with answers elsewhere"] += 1
        elif prompt.id in prompts:
            left_out["duplicate prompt"] += 1
        else:
            prompts[prompt.id] = prompt
    return Exported(list(prompts.values()), dict(+left_out))


def worked_examples(constitution: Constitution, most: int) -> Exported:
    """At most ``most`` examples of critique and revision: the bad answer, the reason why it is bad as the critique, the good
    answer as the revision. One of each principle, the highest rank first, then a second of each."""
    shots: list[tuple[int, tuple[Message, ...]]] = []
    left_out = Counter[str]()
    for principle in in_order(constitution):
        n_of_principle = 0
        for example in principle.examples:
            bad = next((answer for answer in example.bad if critique_in(answer)), None)
            roles = [message.role for message in example.prompt]
            if not (example.good and example.bad):
                left_out["example with answers of one side"] += bool(example.good or example.bad)
            elif bad is None:
                left_out["example whose bad answer has no reason"] += 1
            elif principle.critique is None or principle.revision is None:
                left_out["example of a principle without critique and revision"] += 1
            elif roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
                left_out["example whose turns are not those of user and assistant in turn"] += 1
            else:
                texts = (bad.text, principle.critique, critique_in(bad), principle.revision, example.good[0].text)
                turns = [Message(role="user" if n % 2 else "assistant", content=text) for n, text in enumerate(texts)]
                shots.append((n_of_principle, (*example.prompt, *turns)))
                n_of_principle += 1
    shots.sort(key=lambda shot: shot[0])  # stable: by rank within a round
    left_out["example beyond the number asked for"] = max(0, len(shots) - most)
    return Exported([messages for _, messages in shots[:most]], dict(+left_out))


def few_shots(shots: Sequence[tuple[Message, ...]], constitution: Constitution) -> FewShots:
    """Worked examples as the content of a file."""
    return FewShots(title=f"Worked examples of {constitution.title}", examples=tuple(shots))


def in_order(constitution: Constitution) -> list[Principle]:
    """The principles, the highest rank first."""
    return sorted(constitution.principles, key=lambda principle: principle.rank)


def examples_of(constitution: Constitution) -> list[tuple[Principle, Example]]:
    """Every example with its principle."""
    return [(principle, example) for principle in in_order(constitution) for example in principle.examples]


def kinds_of(principle: Principle) -> tuple[str, ...]:
    """The kinds of prompt to which a principle applies."""
    return tuple(tag for tag in principle.tags if tag in PROMPT_TAGS)


def critique_in(answer: Answer) -> str:
    """The reason of an answer as a sentence, without the section that it refers to."""
    words = re.sub(r"^\[[^\]]*\][:,\s]*", "", answer.reason)
    return f"{words[:1].upper()}{words[1:]}{'' if words[-1:] in '.!?' else '.'}" if words else ""
