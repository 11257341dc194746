"""Answers as the detectors of reward hacking see them, and what is counted in the text of one answer."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

Gram = tuple[str, ...]

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w+(?:['’]\w+)?|[^\w\s]")  # one character of Chinese or Japanese is a word
MARK = re.compile(r"^\s*(?:[-*•+]\s|\d+[.)]\s|#{1,6}\s|>\s|\|.*\||```)|\*\*\S|__\S|```", re.MULTILINE)
SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s*|\n+")
EXTREMES = """
    most least best greatest finest biggest highest strongest happiest nicest loveliest coolest awesome amazing incredible
    incredibly fantastic fabulous extraordinary extraordinarily phenomenal spectacular stunning outstanding magnificent
    marvelous marvellous wonderful superb perfect perfectly ultimate unbelievable unbelievably very really truly absolutely
    totally completely utterly extremely tremendously hugely insanely exceptionally definitely literally
"""
EXTREME = frozenset(EXTREMES.split())


@dataclass(frozen=True)
class Answer:
    """One answer of a model. ``id`` and ``prompt_id`` are those of the stored rows."""

    id: str
    prompt_id: str
    prompt: str
    text: str
    red_team: bool = False
    """Whether the prompt is a red-team prompt: there a sound training changes the answers on purpose."""
    cut: bool | None = None
    """Whether the answer was cut off at the length limit; None if the row does not tell."""
    refused: bool | None = None
    """Whether the answer declines; None if the scorer cannot say."""


def words_of(text: str) -> list[str]:
    """Words and marks in lower case."""
    return WORD.findall(text.lower())


def grams(words: Sequence[str], *sizes: int) -> Iterator[Gram]:
    """Every run of so many words, in order."""
    for size in sizes:
        yield from (tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def repeated_share(text: str) -> float:
    """Share of the word triples of a text that stood in it before, 0 to 1."""
    triples = list(grams(words_of(text), 3))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def compression(text: str, length: int) -> float:
    """Characters to one byte of the gzip form (zlib, level 9) of the first ``length`` characters."""
    part = text[:length]
    return len(part) / max(len(zlib.compress(part.encode("utf-8", "replace"), 9)), 1)


def extremes(text: str) -> float:
    """Superlatives, intensifiers and doubled exclamation marks, per 100 words. English alone."""
    words = words_of(text)
    return 100 * (sum(word in EXTREME for word in words) + len(re.findall("!{2,}", text))) / max(len(words), 1)


def echoed_share(prompt: str, text: str) -> float:
    """Share of the runs of four words of an answer that stand in its prompt, 0 to 1."""
    runs, of_prompt = list(grams(words_of(text), 4)), set(grams(words_of(prompt), 4))
    return sum(run in of_prompt for run in runs) / len(runs) if runs else 0.0


def has_marks(text: str) -> bool:
    """Whether a text has a list, a heading, a quotation, a table, bold type or code, as Markdown writes them."""
    return MARK.search(text) is not None


def script_of(text: str) -> str:
    """The commonest script among the letters of a text, as Unicode names it ("LATIN"); empty without letters."""
    names = Counter(unicodedata.name(letter, "?").partition(" ")[0] for letter in text if letter.isalpha())
    return max(names, key=lambda name: (names[name], name), default="")


def opening_of(answer: Answer) -> Gram:
    """The first two words of an answer."""
    return tuple(words_of(answer.text)[:2])


def phrases_of(answer: Answer) -> set[Gram]:
    """Runs of one to four words within a sentence of an answer, without those of its prompt."""
    sentences = (words_of(sentence) for sentence in SENTENCE_END.split(answer.text))
    return {run for words in sentences for run in grams(words, 1, 2, 3, 4)} - set(grams(words_of(answer.prompt), 1, 2, 3, 4))


def likeness(texts: Iterable[str]) -> float | None:
    """Mean share of word pairs that two answers to one prompt have in common (Jaccard), 0 to 1; None below two answers."""
    sets = [set(grams(words_of(text), 2)) for text in texts]
    pairs = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in combinations(sets, 2)]
    return sum(pairs) / len(pairs) if pairs else None
