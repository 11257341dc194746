"""A model behind an OpenAI-compatible server as a ``Sampler``: texts by the seed, choices from the likeliest first tokens.

A choice is read from log-probabilities if the server sends them. If not, the model writes its choice, and the text counts only if
it is one of the options and nothing else. An unreadable choice is a missing verdict: a row of NaN, never a score.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from charter.endpoints.answers import ServerAnswer
from charter.endpoints.client import Client, RefusedByServer
from charter.endpoints.settings import EndpointSettings
from charter.errors import InputError
from charter.models.sampling.filters import ALL_TOKENS
from charter.models.sampling.sampler import Conversation, Sample, Seeds
from charter.records import Filters
from charter.run.team import team

UNREADABLE = math.nan
LEAST_REST = 1e-4  # of the probability, for tokens that are not listed: servers round
SHORT_ANSWER = 16  # tokens for a choice that is written out
ORNAMENT = " \t\r\n\"'`()[]*_.:,;!"  # allowed around an option
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


class EndpointSampler:
    """An endpoint of a recipe. ``unread`` counts missing verdicts. Of several processes the main one sends all requests and tells
    the others: the server's limits, the budget and the cache belong to one client."""

    first_token_alone = True  # of an option; the likelihood of a whole text cannot be read

    def __init__(self, name: str, settings: EndpointSettings, cache: Path) -> None:
        """InputError if the key is missing in the environment."""
        self.settings, self.name = settings, settings.model
        self.client = Client(name, settings, cache)
        self.gives_logprobs = {"yes": True, "no": False, "auto": None}[settings.logprobs]
        self.top = settings.top_logprobs or (20 if settings.api == "chat" else 5)
        self.unread = 0

    def generate(
        self, conversations: Sequence[Conversation], seeds: Seeds, *, temperature: float, max_new_tokens: int,
        filters: Filters = ALL_TOKENS,
    ) -> list[list[Sample]]:  # fmt: skip
        """One text per seed for each conversation, a request for each. Seeds are sent as 31 bits, which every server accepts, and
        filters under the names that vLLM gives them. A text that the server withheld counts as cut off, so that nothing is
        trained on it."""
        sent = filters.model_dump(exclude_none=True)
        bodies = [
            {**self._body(conversation, max_new_tokens, temperature), **sent, "seed": seed % 2**31}
            for conversation, row in zip(conversations, seeds, strict=True)
            for seed in row
        ]
        answers = iter(team().on_main(lambda: self.client.ask(bodies)))
        return [[as_sample(next(answers), self.settings.api) for _ in row] for row in seeds]

    def option_logprobs(self, conversations: Sequence[Conversation], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each conversation the log-probability of each option, nats; NaN for all options without a verdict.

        A read option counts by its first token; an option that is not among the likeliest tokens counts as the least likely of
        them, or by what they leave of the probability if that is less, so that a margin is never overstated. A written option
        leads by ``text_margin``.
        """
        return team().on_main(lambda: self._weigh(conversations, options))

    def _weigh(self, conversations: Sequence[Conversation], options: Sequence[Sequence[str]]) -> list[list[float]]:
        rows: list[list[float]] = []
        while self.gives_logprobs is None and len(rows) < len(conversations):
            rows.append(self._try(conversations[len(rows)], options[len(rows)]))
        conversations, options = conversations[len(rows) :], options[len(rows) :]
        if self.gives_logprobs:
            answers = self.client.ask([self._reading(conversation) for conversation in conversations])
            rows += [self._read(answer, choices) for answer, choices in zip(answers, options, strict=True)]
        elif conversations:
            rows += self._written(conversations, options)
        self.unread += sum(math.isnan(row[0]) for row in rows)
        return rows

    # -- choices -------------------------------------------------------------------------------------------------------

    def _try(self, conversation: Conversation, options: Sequence[str]) -> list[float]:
        """The first choice, which shows whether the server sends log-probabilities."""
        try:
            answer = self.client.ask([self._reading(conversation)])[0]
        except RefusedByServer as error:
            if error.status not in (400, 404, 422, 501) or "logprob" not in error.message.lower():
                raise
            if fewer := [n for n in map(int, re.findall(r"\b\d{1,2}\b", error.message)) if 2 <= n < self.top]:
                self.top = max(fewer)  # the most that this server lists
                return self._try(conversation, options)
            self.gives_logprobs = False
        else:
            if answer.finish_reason == "content_filter":
                return [UNREADABLE] * len(options)
            self.gives_logprobs = answer.first is not None
        return self._read(answer, options) if self.gives_logprobs else self._written([conversation], [options])[0]

    def _read(self, answer: ServerAnswer, options: Sequence[str]) -> list[float]:
        if answer.first is None:
            if self.settings.logprobs == "yes" and answer.finish_reason != "content_filter":
                raise InputError(f"the endpoint {self.client.name!r} sends no log-probabilities; set its logprobs to auto or no")
            return [UNREADABLE] * len(options)
        return read_choice(answer.first, options)

    def _written(self, conversations: Sequence[Conversation], options: Sequence[Sequence[str]]) -> list[list[float]]:
        bodies = [
            self._body(conversation, max(SHORT_ANSWER, *map(len, choices)), 0.0)
            for conversation, choices in zip(conversations, options, strict=True)
        ]
        rows = []
        for answer, choices in zip(self.client.ask(bodies), options, strict=True):
            chosen = None if answer.finish_reason == "content_filter" else written_choice(answer.text, choices)
            lead = [0.0 if i == chosen else -self.settings.text_margin for i in range(len(choices))]
            rows.append([UNREADABLE] * len(choices) if chosen is None else lead)
        return rows

    # -- requests ------------------------------------------------------------------------------------------------------

    def _body(self, conversation: Conversation, max_new_tokens: int, temperature: float) -> dict[str, Any]:
        body: dict[str, Any] = {"temperature": temperature, self.settings.length_key: max_new_tokens}
        if self.settings.api == "chat":
            return body | {"messages": [message.model_dump() for message in conversation]}
        return body | {"prompt": hh_transcript(conversation), "stop": [HUMAN]}

    def _reading(self, conversation: Conversation) -> dict[str, Any]:
        body = self._body(conversation, 1, 0.0)
        if self.settings.api == "chat":
            return body | {"logprobs": True, "top_logprobs": self.top}
        return body | {"logprobs": self.top}


def as_sample(answer: ServerAnswer, api: str) -> Sample:
    text = answer.text.removeprefix(" ") if api == "completions" else answer.text
    return Sample(text, "stop" if answer.finish_reason == "stop" else "length")


def hh_transcript(conversation: Conversation) -> str:
    """A conversation as Bai et al. (2022) write it, up to where the assistant begins."""
    heads: dict[str, Callable[[str], str]] = {
        "user": lambda text: f"{HUMAN} {text}",
        "assistant": lambda text: f"{ASSISTANT} {text}",
        "system": lambda text: f"\n\n{text}",
    }
    return "".join(heads[message.role](message.content) for message in conversation) + ASSISTANT


def read_choice(first: Sequence[tuple[str, float]], options: Sequence[str]) -> list[float]:
    """Log-probabilities of the options among the likeliest first tokens; NaN for all if no token stands for an option.

    A token stands for the option that it spells, without ornament, or for the only option that begins with it.
    """
    mass: list[list[float]] = [[] for _ in options]
    for token, logprob in first:
        text = token.strip(ORNAMENT)
        same = [i for i, option in enumerate(options) if option == text]
        begun = [i for i, option in enumerate(options) if text and option.startswith(text)]
        for i in same or (begun if len(begun) == 1 else []):
            mass[i].append(logprob)
    if not any(mass):
        return [UNREADABLE] * len(options)
    # With a single token listed, the least likely is the likeliest too, and every margin would be 0.
    rest = 1 - sum(math.exp(min(logprob, 0.0)) for _, logprob in first)
    least = min(*(logprob for _, logprob in first), math.log(max(rest, LEAST_REST)))
    return [sum_of(logprobs) if logprobs else least for logprobs in mass]


def sum_of(logprobs: Sequence[float]) -> float:
    """log of the sum of the probabilities."""
    top = max(logprobs)
    return top + math.log(sum(math.exp(logprob - top) for logprob in logprobs))


def written_choice(text: str, options: Sequence[str]) -> int | None:
    """The number of the option that the text is, without ornament and capitals; None if the text is anything else."""
    words = re.sub(r"\s+", " ", text.strip(ORNAMENT)).casefold()
    same = [i for i, option in enumerate(options) if option.casefold() == words]
    return same[0] if len(same) == 1 else None
