"""What an endpoint was used for, and what its budget still allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from charter.endpoints.answers import Answer
from charter.endpoints.settings import EndpointSettings

Tokens = tuple[int, int]
"""Read and written."""

BYTES_PER_TOKEN = 2  # fewer than any tokenizer needs for prose, so that an estimate errs to the side of the budget
TOKENS_PER_MESSAGE = 16  # a template's own


class Account:
    """Answers that were paid for, requests under way, and requests that broke off and may have been charged."""

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings
        self.requests = self.cached = self.repeated = 0
        self.used: Tokens = (0, 0)
        self.unanswered: Tokens = (0, 0)
        self.reserved: list[Tokens] = []
        self.longer = 1.0  # how many times longer than estimated a text turned out, at most

    def estimate(self, body: Mapping[str, Any]) -> Tokens:
        """Tokens that a request can take, going by what earlier ones took."""
        return math.ceil(tokens_of(body) * self.longer), int(body[self.settings.length_key])

    def count(self, body: Mapping[str, Any], answer: Answer) -> None:
        self.requests += 1
        self.used = total(self.used, answer.tokens)
        self.longer = max(self.longer, answer.tokens[0] / max(tokens_of(body), 1))

    def broke_off(self, estimate: Tokens) -> None:
        self.unanswered = total(self.unanswered, estimate)

    def money(self, tokens: Tokens) -> float | None:
        """The price of tokens, None where the settings give no prices."""
        if self.settings.input_price is None or self.settings.output_price is None:
            return None
        return (tokens[0] * self.settings.input_price + tokens[1] * self.settings.output_price) / 1e6

    def over(self, estimate: Tokens) -> str | None:
        """Which budget one more request could break, None where neither; requests under way count in full."""
        whole = total(self.used, self.unanswered, estimate, *self.reserved)
        money, settings = self.money(whole), self.settings
        if settings.budget_money is not None and money is not None and money > settings.budget_money:
            return f"budget_money {settings.budget_money:g}"
        if settings.budget_tokens is not None and sum(whole) > settings.budget_tokens:
            return f"budget_tokens {settings.budget_tokens}"
        return None

    def words(self) -> str:
        """What was used, for a message."""
        money = self.money(self.used)
        broken = f" and up to {sum(self.unanswered)} of requests that broke off" if any(self.unanswered) else ""
        return f"{self.requests} answers with {sum(self.used)} tokens{'' if money is None else f' for {money:.4g}'}{broken}"

    def figures(self) -> dict[str, Any]:
        """Requests that were answered, taken from disk and sent again; tokens and money; as JSON values."""
        return {
            "model": self.settings.model, "url": self.settings.url, "requests": self.requests, "cached": self.cached,
            "repeated": self.repeated, "input_tokens": self.used[0], "output_tokens": self.used[1],
            "unanswered_tokens": sum(self.unanswered), "money": self.money(self.used),
        }  # fmt: skip


def tokens_of(body: Mapping[str, Any]) -> int:
    """Tokens that a request reads, by the length of its texts."""
    texts = [body["prompt"]] if "prompt" in body else [message["content"] for message in body.get("messages", [])]
    return sum(len(str(text).encode()) // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE for text in texts)


def total(*tokens: Tokens) -> Tokens:
    return sum(read for read, _ in tokens), sum(written for _, written in tokens)
