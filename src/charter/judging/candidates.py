"""Candidates for principles that may explain votes: from files, or written by a model from pairs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from charter.constitution.check import IMPORTED, check, opposed
from charter.constitution.constitution import Constitution, Principle, load_constitution
from charter.constitution.importers import import_constitution
from charter.constitution.published import PREFERENCE
from charter.judging.judge import prompt_file
from charter.judging.vote_pairs import ResponsePair
from charter.models.sampling.sampler import Sampler, conversation_text, fill
from charter.records import Message
from charter.run.hashes import derive_seed
from charter.votes.annotated_pairs import principle_texts

PROPOSE = prompt_file("propose")
LIKE = 0.85  # shared words over all words: from here on two candidates are the same
LONGEST = 300  # characters of a proposal; a longer text is not a rule
SHORTEST = 3  # words
NEW_TOKENS = 60
WARMTH = 0.7
NO_PREFERENCE = "no preference text"
UNUSABLE = "a text that a judge could not use"


@dataclass(frozen=True)
class Candidates:
    """What is asked. ``proposed``: texts that a model wrote; ``duplicates``: left out as repeats; ``left_out``: others, by
    reason."""

    principles: tuple[Principle, ...]
    proposed: int
    duplicates: int
    left_out: dict[str, int]


def gather_candidates(supplied: Sequence[Principle], written: Sequence[str]) -> Candidates:
    """The supplied principles, then the texts that a model wrote, without those that a judge cannot use and without repeats."""
    left_out: Counter[str] = Counter()
    kept: list[Principle] = []
    duplicates = 0
    sentences = [sentence for text in written if (sentence := rule_of(text)) is not None]
    left_out[UNUSABLE] += len(written) - len(sentences)
    taken = {principle.id for principle in supplied}
    names = (name for number in range(1, 10**6) if (name := f"proposed-{number:02}") not in taken)
    for principle in [*supplied, *(as_principle(next(names), sentence) for sentence in sentences)]:
        if principle.preference is None:
            left_out[NO_PREFERENCE] += 1
        elif has_errors(principle):
            left_out[UNUSABLE] += 1
        elif any(alike(principle, other) for other in kept):
            duplicates += 1
        else:
            kept.append(principle)
    return Candidates(tuple(kept), len(written), duplicates, {reason: n for reason, n in sorted(left_out.items()) if n})


def read_candidates(path: Path) -> list[Principle]:
    """The principles of a constitution, of a list or file that ``charter constitution import`` reads, or those that annotated
    a file of annotated pairs."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return list(load_constitution(path).principles)
    if path.suffix.lower() == ".json" and (texts := principle_texts(path)) is not None:
        return [as_principle(f"annotator-{number:02}", text) for number, text in enumerate(texts, start=1)]
    return list(import_constitution(path).constitution.principles)


def propose(sampler: Sampler, pairs: Sequence[tuple[ResponsePair, float]], *, n: int, seed: int) -> list[str]:
    """``n`` texts, each of one pair with the votes for its first response less those for its second, in an order by seed."""
    order = sorted(pairs, key=lambda item: derive_seed(seed, "propose", item[0].first.id, item[0].second.id))[:n]
    questions = [ask_for_rule(pair, balance) for pair, balance in order]
    seeds = [[derive_seed(seed, "rule", number)] for number in range(len(questions))]
    return [group[0].text for group in sampler.generate(questions, seeds, temperature=WARMTH, max_new_tokens=NEW_TOKENS)]


def ask_for_rule(pair: ResponsePair, balance: float) -> tuple[Message, ...]:
    """The question for the rule behind a vote."""
    chosen, rejected = (pair.first, pair.second) if balance > 0 else (pair.second, pair.first)
    text = fill(PROPOSE, conversation=conversation_text(pair.prompt.messages), chosen=chosen.text, rejected=rejected.text)
    return (Message(role="user", content=text),)


def rule_of(text: str) -> str | None:
    """The rule in a model's answer: its first line with words, without list marks and quotes; None where that is not a rule."""
    line = next((line.strip() for line in text.splitlines() if re.search(r"\w", line)), "")
    line = re.sub(r"^(?:[-*•]|\d+[.)])\s+", "", line).strip(" \"'`*")
    line = " ".join("".join(c if c.isprintable() else " " for c in line).split())
    return line if len(line) <= LONGEST and len(words_of(line)) >= SHORTEST else None


def as_principle(name: str, sentence: str) -> Principle:
    """A sentence as a principle for comparisons."""
    chooses = re.match(r"(?:choose|pick|prefer|select|which)\b", sentence, re.IGNORECASE)
    title = sentence if len(sentence) <= 60 else sentence[:59].rsplit(" ", 1)[0] + "…"
    return Principle(id=name, title=title, preference=sentence if chooses else PREFERENCE.format(sentence))


def has_errors(principle: Principle) -> bool:
    """Whether ``charter constitution check`` would refuse it."""
    alone = Constitution(title="candidate", principles=(principle,))
    return any(finding.severity == "error" and finding.principle == principle.id for finding in check(alone))


def alike(principle: Principle, other: Principle) -> bool:
    """Whether two principles ask the same in nearly the same words, those of the template apart: not more and less of a thing."""
    texts = [tuple(IMPORTED.sub("", getattr(p, field) or "") for p in (principle, other)) for field in ("preference", "question")]
    return all(likeness(*pair) >= LIKE and not opposed(*pair) for pair in texts)


def likeness(text: str, other: str) -> float:
    """Shared words over all words; 1 for two texts without any."""
    first, second = words_of(text), words_of(other)
    return len(first & second) / len(first | second) if first | second else 1.0


def words_of(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))
