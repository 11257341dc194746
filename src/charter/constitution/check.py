"""What is wrong with a constitution, as far as its words tell: repeated and contradicting texts, leaks of the protocol."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from charter.constitution.constitution import PROMPT_TAGS, TOPIC, Constitution, Principle

LONG_TEXT = 1000  # characters; longer than that, small models lose the question


@dataclass(frozen=True)
class Finding:
    """A weakness of a valid constitution. ``principle`` is None if it concerns the whole."""

    severity: Literal["error", "warning"]
    principle: str | None
    words: str


PROTOCOL = re.compile(r"\b(?:Critique ?Request|Revision ?Request|Critique|Revision|Human|Assistant|Options):")
IMPORTED = re.compile(r"\A.*?\bthis (?:principle|criterion): ")  # what an import puts before every sentence
OPTIONS = re.compile(r"\([A-D]\)|\boptions?\s+\(?[A-D]\b", re.IGNORECASE)


def check(constitution: Constitution) -> list[Finding]:
    """The weaknesses of a constitution: text that repeats, leaks the protocol or names options, and uncovered prompts."""
    findings: list[Finding] = []
    median = statistics.median(p.weight for p in constitution.principles)
    for p in constitution.principles:
        texts = _texts(p)
        for field, text in texts.items():
            if match := PROTOCOL.search(text):
                findings.append(Finding("error", p.id, f"{field} contains protocol text {match[0]!r}; remove it"))
            if len(text) > LONG_TEXT:
                findings.append(Finding("warning", p.id, f"{field} has {len(text)} characters, and a judge reads it before "
                                        "every answer; shorten it"))  # fmt: skip
        if match := OPTIONS.search(texts.get("preference", "")):
            findings.append(Finding("error", p.id, f"preference names {match[0]!r}, but a judge sees answers in both "
                                    "orders; remove the letter"))  # fmt: skip
        if not median / 10 <= p.weight <= median * 10:
            findings.append(Finding("warning", p.id, f"weight {p.weight:g} is far from the median {median:g}, so it is "
                                    "drawn almost always or almost never; bring it nearer"))  # fmt: skip

    for first, second in combinations(constitution.principles, 2):
        findings += _clashes(first, second)
        for field in sorted(_texts(first).keys() & _texts(second).keys()):
            likeness = _likeness(_texts(first)[field], _texts(second)[field])
            if opposed(_texts(first)[field], _texts(second)[field]):
                if field == "preference" and _meet(first, second):
                    words = f"preference asks for the opposite of {first.id!r} in the same words; remove one, or rank them"
                    findings.append(Finding("warning", second.id, words))
            elif likeness == 1:
                findings.append(Finding("error", second.id, f"{field} is the same as that of {first.id!r}; remove one"))
            elif likeness >= 0.85:
                findings.append(
                    Finding(
                        "warning",
                        second.id,
                        f"{field} is nearly the same as that of {first.id!r}; remove one or make them differ",
                    )
                )

    for kind, use in (("red_team", "revision"), ("red_team", "preference"), ("benign", "preference")):
        if not any(getattr(p, use) is not None and p.applies_to((kind,)) for p in constitution.principles):
            findings.append(Finding("warning", None, f"no principle has a {use} for {kind} prompts; add one"))
    return findings


def _clashes(first: Principle, second: Principle) -> list[Finding]:
    """Contradictions of two principles that can be read from their examples and questions."""
    findings = []
    if first.question is not None and first.question == second.question and first.good_answer != second.good_answer:
        words = f"has the question of {first.id!r} with the other good_answer; change one of the two"
        findings.append(Finding("error", second.id, words))
    sides = [
        {(e.prompt, answer.text) for e in p.examples for answer in getattr(e, side)}
        for p, side in ((first, "good"), (second, "bad"), (first, "bad"), (second, "good"))
    ]
    if n := len(sides[0] & sides[1]) + len(sides[2] & sides[3]):
        words = f"{n} answer{'s' * (n != 1)} to the same prompt good here and bad in {first.id!r}, or the other way round"
        findings.append(Finding("warning", second.id, f"{words}; change the examples, or rank the two principles"))
    return findings


def _meet(first: Principle, second: Principle) -> bool:
    """Whether both can apply to the same prompt."""
    kinds = [PROMPT_TAGS.intersection(p.tags) or PROMPT_TAGS for p in (first, second)]
    return bool(kinds[0] & kinds[1]) and not (TOPIC in first.tags and TOPIC in second.tags)


NEGATIVE = frozenset(
    ("not", "no", "never", "without", "avoid", "avoids", "less", "fewer", "least", "worse", "worst", "free", "lacks")
)
FILLING = frozenset({"more", "most", "better", "best", "do", "does", "is", "are", "has", "with", "of", "that", "which"})


def opposed(text: str, other: str) -> bool:
    """Whether two texts have the same words but for an odd number of words that turn the meaning round. Of English only."""
    words = [re.findall(r"\w+", re.sub(r"n['’]t\b", " not", t.casefold())) for t in (text, other)]
    content = [set(w) - NEGATIVE - FILLING for w in words]
    n_negative = [sum(word in NEGATIVE for word in w) for w in words]
    return bool(content[0]) and content[0] == content[1] and (n_negative[0] - n_negative[1]) % 2 == 1


def _texts(principle: Principle) -> dict[str, str]:
    texts = {use: getattr(principle, use) for use in ("critique", "revision", "preference")}
    return {use: text for use, text in texts.items() if text is not None}


def _likeness(text: str, other: str) -> float:
    """Shared words over all words (Jaccard), in [0, 1]; 1 only if the words also have the same order."""
    first, second = (re.findall(r"\w+", IMPORTED.sub("", text).casefold()) for text in (text, other))
    if first == second:
        return 1.0
    return min(len(set(first) & set(second)) / len(set(first) | set(second)), 0.99)
