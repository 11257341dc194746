"""Sort prompts by topic: several ways to score the topics of a message, and the choice among them by measured accuracy.

A small model names the topic that its training text names most, whatever the message says. So each way that asks the model has a
rival: the log-probability of the message under each topic (the question turned round), and the topic's own words counted.
"""

from __future__ import annotations

import importlib.resources
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from charter.constitution.constitution import Constitution, Principle
from charter.errors import InputError
from charter.models.sampling.sampler import Sampler, fill
from charter.records import Message, Prompt, content_id
from charter.statistics import wilson

_PROMPTS = importlib.resources.files("charter.constitution").joinpath("prompts")
CATEGORISE = _PROMPTS.joinpath("categorise.txt").read_text(encoding="utf-8")
MESSAGE = _PROMPTS.joinpath("message.txt").read_text(encoding="utf-8")
NONE = "none of these"
EVERYDAY = "everyday things, such as food, hobbies, feelings, health, news or general knowledge"
WORD_NATS = 3.0  # what one word of a topic weighs beside the log-probability of the message
TOGETHER = 16  # messages behind one topic in a pass
Way = Literal["title", "message", "words", "message_and_words"]


def _ask(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def by_title(messages: Sequence[str], topics: Sequence[Principle], sampler: Sampler) -> list[list[float]]:
    """log P(title of the topic | message), nats: (messages, topics + 1), the last for none of them."""
    titles = [*(topic.title for topic in topics), NONE]
    questions = [_ask(fill(CATEGORISE, prompt=message, topics=", ".join(titles))) for message in messages]
    return sampler.option_logprobs(questions, [titles] * len(questions))


def by_message(messages: Sequence[str], topics: Sequence[Principle], sampler: Sampler) -> list[list[float]]:
    """log P(message | topic), nats: the question turned round, so that no topic gains from being common."""
    parts = [list(messages[i : i + TOGETHER]) for i in range(0, len(messages), TOGETHER)]
    columns = []
    for words in [*(topic.about or topic.title for topic in topics), EVERYDAY]:
        question = _ask(fill(MESSAGE, topic=words))
        columns.append([value for row in sampler.option_logprobs([question] * len(parts), parts) for value in row])
    return [list(row) for row in zip(*columns, strict=True)]


def by_words(messages: Sequence[str], topics: Sequence[Principle], _: Sampler | None = None) -> list[list[float]]:
    """How many words of ``about`` the message has; half a word for none of the topics, so that one word is enough."""
    words_of = [stems(topic.about or topic.title) for topic in topics]
    return [[*(float(len(stems(message) & words)) for words in words_of), 0.5] for message in messages]


def by_message_and_words(messages: Sequence[str], topics: Sequence[Principle], sampler: Sampler) -> list[list[float]]:
    """log P(message | topic), and ``WORD_NATS`` for each word of the topic in the message."""
    logprobs, counts = by_message(messages, topics, sampler), by_words(messages, topics)
    return [[a + WORD_NATS * b for a, b in zip(*rows, strict=True)] for rows in zip(logprobs, counts, strict=True)]


WAYS: dict[Way, Callable[[Sequence[str], Sequence[Principle], Sampler], list[list[float]]]] = {
    "title": by_title, "message": by_message, "words": by_words, "message_and_words": by_message_and_words,
}  # fmt: skip


UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # Thai, Lao, Japanese, Chinese, Korean


def stems(text: str) -> set[str]:
    """The words of four letters or more, in small letters and without the commonest English endings; of scripts without spaces
    every two neighbouring characters."""
    words: set[str] = set()
    for word in re.findall(r"[^\W\d_]+", text.casefold()):
        if UNSPACED.search(word):
            words |= {word[i : i + 2] for i in range(len(word) - 1)}
        elif len(word) >= 4:
            words.add(re.sub(r"(?:ing|ed|es|s|ers?|ion)$", "", word))
    return words


@dataclass(frozen=True)
class Sorting:
    """How prompts are sorted, and how well. ``accuracy``: of ``way`` on the ``n`` labelled prompts that did not choose it, with
    ``ci``; ``majority``: the share of their commonest topic. ``tried``: accuracy of each way on the prompts that chose."""

    way: Way
    n: int = 0
    accuracy: float | None = None
    ci: tuple[float, float] | None = None
    majority: float | None = None
    tried: dict[Way, float] | None = None

    @property
    def useless(self) -> bool:
        """Whether always naming the commonest topic is not shown to be worse."""
        return self.ci is not None and self.majority is not None and self.ci[0] <= self.majority

    def figures(self) -> dict[str, Any]:
        return {**asdict(self), "useless": self.useless, "words": self.words()}

    def words(self) -> str:
        if self.ci is None or self.accuracy is None or self.majority is None:
            return f"sorted by {self.way}; accuracy not measured: name labelled prompts in prompts.labelled"
        text = f"sorting by {self.way} is right on {self.accuracy:.0%} of {self.n} labelled prompts (95% interval "
        text += f"{self.ci[0]:.0%} to {self.ci[1]:.0%}); the commonest topic alone is right on {self.majority:.0%}"
        return text + ("; no topic is assigned, since sorting is not shown to be better" if self.useless else "")


def usual_way(topics: Sequence[Principle]) -> Way:
    """The way without labelled prompts: by words, which costs nothing, if all topics say what they are about; else by title."""
    return "words" if all(topic.about for topic in topics) else "title"


def choose_way(labelled: Sequence[Prompt], constitution: Constitution, sampler: Sampler) -> Sorting:
    """The way that sorts one half of the labelled prompts best, measured on the other half. A prompt without a principle is
    labelled "none of these". InputError where a label is not a topic, or fewer than 20 prompts are labelled."""
    topics = constitution.topics()
    names = [*(topic.id for topic in topics), None]
    if wrong := next((p for p in labelled if p.principle not in names), None):
        ids = ", ".join(topic.id for topic in topics)
        raise InputError(f"{wrong.principle!r} is not a topic of the constitution; use {ids}, or nothing for none of these",
                         field="prompts.labelled")  # fmt: skip
    if len(labelled) < 20:
        raise InputError(f"{len(labelled)} labelled prompts are too few to choose by; give at least 20", field="prompts.labelled")
    in_order = sorted(labelled, key=lambda prompt: content_id("labelled", prompt.id))
    half = len(in_order) // 2
    answers = [names.index(prompt.principle) for prompt in in_order]
    texts = [prompt.last_turn for prompt in in_order]
    right = {
        way: [float(likeliest(row) == answer) for row, answer in zip(score(texts, topics, sampler), answers, strict=True)]
        for way, score in WAYS.items()
    }
    tried = {way: sum(values[:half]) / half for way, values in right.items()}
    best: Way = max(WAYS, key=tried.__getitem__)
    n = len(in_order) - half
    share = max(answers[half:].count(i) for i in range(len(names))) / n
    hits = sum(right[best][half:])
    return Sorting(best, n, hits / n, wilson(hits, n), share, tried)


def likeliest(row: Sequence[float]) -> int:
    """The number of the highest score; the last, for none, where a score is not a number."""
    return max(range(len(row)), key=row.__getitem__) if all(map(math.isfinite, row)) else len(row) - 1


def categorise(
    prompts: Sequence[Prompt], constitution: Constitution, sampler: Sampler, sorting: Sorting | None = None
) -> list[Prompt]:
    """The prompts with ``principle`` set to the likeliest topic of the constitution, None for "none of these".

    A principle from the file is kept. Without topics in the constitution, or with a useless ``sorting``, the prompts are returned
    unchanged.
    """
    topics = constitution.topics()
    unsorted = [i for i, prompt in enumerate(prompts) if prompt.principle is None]
    if not topics or not unsorted or (sorting is not None and sorting.useless):
        return list(prompts)
    way = usual_way(topics) if sorting is None else sorting.way
    rows = WAYS[way]([prompts[i].last_turn for i in unsorted], topics, sampler)
    categorised = list(prompts)
    for i, row in zip(unsorted, rows, strict=True):
        if (best := likeliest(row)) < len(topics):
            categorised[i] = prompts[i].model_copy(update={"principle": topics[best].id})
    return categorised
