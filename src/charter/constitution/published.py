"""What an import brings: principles, how much of what arrived, and what was left out for which reason."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from charter.constitution.constitution import Constitution, Example

TITLE = 60  # characters of a title made of a sentence
# The three uses of a plain sentence; it comes last, so that its own punctuation closes the text.
CRITIQUE = "Say specifically where the assistant's last reply goes against this principle: {}"
REVISION = "Rewrite the assistant's last reply so that it keeps this principle: {}"
PREFERENCE = "Choose the reply that better keeps this principle: {}"


@dataclass
class Gathered:
    """Principles as keyword arguments, still without their source. ``counts``: what arrived besides principles. ``left_out``:
    what did not, by reason."""

    kind: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    title: str | None = None
    description: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Imported:
    """A constitution that was read, the kind of its file, and the counts of :class:`Gathered`."""

    constitution: Constitution
    kind: str
    counts: dict[str, int]
    left_out: dict[str, int]


def counts_of(examples: list[Example]) -> Counter[str]:
    """Comparisons, good and bad answers, the comparisons that have both, and prompts without an answer."""
    compared = [example for example in examples if example.good or example.bad]
    return Counter({
        "comparisons": len(compared), "good answers": sum(len(e.good) for e in compared),
        "bad answers": sum(len(e.bad) for e in compared), "two-sided comparisons": sum(bool(e.good and e.bad) for e in compared),
        "prompts": len(examples) - len(compared),
    })  # fmt: skip


def of_sentence(name: str, sentence: str, title: str | None = None) -> dict[str, Any]:
    """A principle of which a sentence is all that is published, in its three uses."""
    sentence = " ".join(sentence.split())
    return {
        "id": name,
        "title": title or shortened(sentence),
        # An empty sentence stays empty, so that it is refused instead of hidden inside a template.
        "critique": sentence and CRITIQUE.format(sentence),
        "revision": sentence and REVISION.format(sentence),
        "preference": sentence and PREFERENCE.format(sentence),
    }


def shortened(sentence: str) -> str:
    """The sentence, or its first whole words and an ellipsis."""
    return sentence if len(sentence) <= TITLE else sentence[: TITLE - 1].rsplit(" ", 1)[0] + "…"


def slug(text: str, taken: set[str], otherwise: str) -> str:
    """An id made of the text, or of ``otherwise`` where no letter of it can be in one; unlike those ``taken``, to which it is
    added."""
    name = re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-._")[:56] or otherwise
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    taken.add(unique)
    return unique
