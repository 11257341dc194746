"""Settings of a model behind a server."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from charter.recipe.settings import NonNegative, Positive, Settings
from charter.recipe.source import NewFolder
from charter.records import Filters

if TYPE_CHECKING:
    pass


RESERVED = frozenset({
    "model", "messages", "prompt", "stream", "n", "seed", "temperature", "max_tokens", "max_completion_tokens", "logprobs",
    "top_logprobs", "stop",
})  # fmt: skip
ENDPOINT_NAME = re.compile(r"[A-Za-z0-9_-]+")


class EndpointSettings(Settings):
    """A model behind a server that speaks OpenAI's protocol: asked for texts and choices, never trained."""

    url: str
    """Address of the server, up to and including `/v1`; without a user name, a key or a query."""
    more_urls: list[str] = []
    """Addresses of further servers with the same model: each request goes to the server with the fewest requests under way.
    Answers are cached under `url`, so an added server repeats no request."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name on the server."""
    api: Literal["chat", "completions"] = "chat"
    """`chat` sends messages; `completions` a transcript of them, for models without a chat template."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")] | None = None
    """Name of the environment variable that holds the key, in capitals. The key itself is never written anywhere."""
    logprobs: Literal["auto", "yes", "no"] = "auto"
    """Read choices from log-probabilities: `auto` where the server gives them, `yes` or an error, `no` from the text."""
    top_logprobs: Annotated[int, Field(ge=2, le=20, strict=True)] | None = None
    """Number of likeliest tokens to request where Charter reads a choice; by default 20 with chat and 5 with completions."""
    text_margin: Annotated[float, Field(gt=0)] = 3.0
    """Nats by which an option leads if the model wrote it, without log-probabilities."""
    length_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The server's name for the limit on an answer's length."""
    extra_body: dict[str, Any] = {}
    """Further fields of every request, as the server documents them."""
    concurrency: Positive = 8
    """Requests under way at once, at each server."""
    timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds until the last byte of an answer."""
    retries: Annotated[int, Field(ge=0, strict=True)] = 8
    """How often Charter sends a request again after the first failure."""
    backoff: Annotated[float, Field(gt=0)] = 1.0
    """Seconds before the first repetition; doubled each time, and shortened by up to half at random."""
    longest_wait: Annotated[float, Field(gt=0)] = 120.0
    """Longest wait in seconds; a server that requests a longer wait ends the run."""
    input_price: NonNegative | None = None
    """Money for a million tokens read."""
    output_price: NonNegative | None = None
    """Money for a million tokens written."""
    budget_tokens: Positive | None = None
    """Stop before more tokens than this, read and written, have been used."""
    budget_money: Annotated[float, Field(gt=0)] | None = None
    """Stop before more money than this has been spent; needs both prices."""
    cache: NewFolder | None = None
    """Folder of the cached answers, which several runs can share; by default `endpoints/NAME` in the run folder."""

    @field_validator("url", "more_urls")
    @classmethod
    def check_address(cls, urls: str | list[str]) -> str | list[str]:
        """Addresses and nothing secret in them."""
        for url in [urls] if isinstance(urls, str) else urls:
            if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", url):
                raise ValueError("write it as https://HOST/v1, without a user name, a key or a query")
        return urls

    @model_validator(mode="after")
    def check_that_options_are_read(self) -> EndpointSettings:
        """Money needs prices, and what Charter sends itself is not sent twice."""
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("give both input_price and output_price, or neither")
        if self.budget_money is not None and self.input_price is None:
            raise ValueError("budget_money needs input_price and output_price")
        if taken := sorted(RESERVED & self.extra_body.keys()):
            raise ValueError(f"extra_body cannot set {taken[0]!r}, which Charter sends itself")
        if taken := [name for name in Filters.model_fields if name in self.extra_body]:
            raise ValueError(f"extra_body cannot set {taken[0]!r}; set it in sampling or in the stage, so that it is recorded")
        if self.logprobs == "no" and self.top_logprobs is not None:
            raise ValueError("top_logprobs is not read where logprobs is no")
        if len(set(self.servers)) < len(self.servers):
            raise ValueError("more_urls names a server that is already there")
        return self

    @property
    def servers(self) -> list[str]:
        """The addresses of all servers, the first one of them the endpoint's own."""
        return [url.rstrip("/") for url in (self.url, *self.more_urls)]

    @property
    def identity(self) -> list[str]:
        """Whose answers these are: what a judge and a scorer may not share."""
        return ["endpoint", self.servers[0], self.model]

    @property
    def questions(self) -> list[Any]:
        """What the answers depend on: a change of these runs a stage again, a change of patience or budget does not."""
        how = (self.api, self.logprobs, self.top_logprobs, self.text_margin, self.length_key, self.extra_body)
        return [*self.identity, *how]
