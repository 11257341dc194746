"""The use of an endpoint so far, and the rest of its budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from charter.endpoints.answers import ServerAnswer
from charter.endpoints.settings import EndpointSettings

TokenCounts = tuple[int, int]
"""Tokens read and tokens written."""

BYTES_PER_TOKEN = 2  # fewer than any tokenizer needs for prose, so that an estimate is rather too high
TOKENS_PER_MESSAGE = 16  # of the chat template


class Account:
    """Paid answers, requests under way, and requests that broke off and may have been charged."""

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings
        self.requests = self.cached = self.repeated = 0
        self.used: TokenCounts = (0, 0)
        self.unanswered: TokenCounts = (0, 0)
        self.reserved: list[TokenCounts] = []
        self.longer = 1.0  # the largest ratio of counted to estimated tokens

    def estimate(self, body: Mapping[str, Any]) -> TokenCounts:
        """Most tokens of a request, judged by earlier requests."""
        return math.ceil(tokens_of(body) * self.longer), int(body[self.settings.length_key])

    def count(self, body: Mapping[str, Any], answer: ServerAnswer) -> None:
        self.requests += 1
        self.used = sum_counts(self.used, answer.tokens)
        self.longer = max(self.longer, answer.tokens[0] / max(tokens_of(body), 1))

    def broke_off(self, estimate: TokenCounts) -> None:
        self.unanswered = sum_counts(self.unanswered, estimate)

    def money(self, tokens: TokenCounts) -> float | None:
        """The price of tokens; None if the settings have no prices."""
        if self.settings.input_price is None or self.settings.output_price is None:
            return None
        return (tokens[0] * self.settings.input_price + tokens[1] * self.settings.output_price) / 1e6

    def over(self, estimate: TokenCounts) -> str | None:
        """The budget that one more request could exceed, None if it exceeds none; requests under way count in full."""
        tokens = sum_counts(self.used, self.unanswered, estimate, *self.reserved)
        money, settings = self.money(tokens), self.settings
        if settings.budget_money is not None and money is not None and money > settings.budget_money:
            return f"budget_money {settings.budget_money:g}"
        if settings.budget_tokens is not None and sum(tokens) > settings.budget_tokens:
            return f"budget_tokens {settings.budget_tokens}"
        return None

    def words(self) -> str:
        """The use so far, for a message."""
        money = self.money(self.used)
        broken = f" and up to {sum(self.unanswered)} tokens of requests that broke off" if any(self.unanswered) else ""
        return f"{self.requests} answers with {sum(self.used)} tokens{'' if money is None else f' for {money:.4g}'}{broken}"

    def figures(self) -> dict[str, Any]:
        """Answered, cached and repeated requests, tokens and money, as JSON values."""
        return {
            "model": self.settings.model, "url": self.settings.url, "requests": self.requests, "cached": self.cached,
            "repeated": self.repeated, "input_tokens": self.used[0], "output_tokens": self.used[1],
            "unanswered_tokens": sum(self.unanswered), "money": self.money(self.used),
        }  # fmt: skip


def tokens_of(body: Mapping[str, Any]) -> int:
    """Tokens that a request reads, estimated by the length of its texts."""
    texts = [body["prompt"]] if "prompt" in body else [message["content"] for message in body.get("messages", [])]
    return sum(len(str(text).encode()) // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE for text in texts)


def sum_counts(*tokens: TokenCounts) -> TokenCounts:
    return sum(read for read, _ in tokens), sum(written for _, written in tokens)
