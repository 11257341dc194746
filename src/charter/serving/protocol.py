"""OpenAI's protocol: requests checked whole before anything is computed, answers and errors in its form.

Charter refuses by name what it cannot do. It never ignores a field that would change the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from charter.records import Filters, Message, MinP, Text, TopK, TopP
from charter.run.files import describe
from charter.serving.text import HALF

MAX_ROWS = 256  # responses to one request
MAX_STOPS = 16


class ApiError(Exception):
    """An error in a request, in the form of the protocol."""

    def __init__(self, status: int, words: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(words)
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
        self.status = status
        self.body = {"error": {"message": words, "type": kind, "param": param, "code": code}}


# Fields that clients send with values that change nothing; any other value is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (None, 1), "top_k": (None, 0, -1), "min_p": (None, 0), "presence_penalty": (None, 0), "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []), "tool_choice": (None, "none"), "response_format": (None, {"type": "text"}), "best_of": (None, 1),
    "suffix": (None, ""),
}  # fmt: skip


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class ApiRequest(BaseModel):
    """The fields of both kinds of request; ``top_k`` and ``min_p`` are vLLM's. Scores are of the model at temperature 1, whatever
    the temperature and the filters."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str
    temperature: Annotated[float, Field(ge=0, le=100)] | None = 1.0
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    seed: int | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MAX_STOPS)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ROWS)] | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def leave_out_what_changes_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if key not in NEUTRAL or value not in NEUTRAL[key]}

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def heat(self) -> float:
        return 1.0 if self.temperature is None else self.temperature

    @property
    def filters(self) -> Filters:
        return Filters(top_p=self.top_p, top_k=self.top_k, min_p=self.min_p)

    @property
    def choices(self) -> int:
        return self.n or 1


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: Text


class ApiMessage(BaseModel):
    """A message as clients write it: a text, or a list of texts."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = None

    def message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class ChatRequest(ApiRequest):
    messages: Annotated[list[ApiMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def check_that_fields_are_read(self) -> ChatRequest:
        """Alternatives need log-probabilities; a request has one length."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_completion_tokens and max_tokens are both set; set one of them")
        return self

    @property
    def length(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(ApiRequest):
    prompt: Text | Ids | Annotated[list[Text] | list[Ids], Field(min_length=1, max_length=MAX_ROWS)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = False

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


R = TypeVar("R", bound=ApiRequest)


def read_request(raw: bytes, kind: type[R]) -> R:
    """The request in a body. ApiError names the field."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        field, words = describe(error)
        if error.errors()[0]["type"] == "extra_forbidden":
            words = f"unknown or unsupported field {field!r}"
        elif field:
            words = f"{field}: {words}"
        raise ApiError(400, words, param=field or None) from None


# -- answers ---------------------------------------------------------------------------------------------------------------


def usage_of(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def place(token: str, logprob: float, likeliest: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """One token of chat log-probabilities."""

    def entry(text: str, value: float) -> dict[str, Any]:
        # A token in the middle of a character reads as U+FFFD, whose bytes are not those of the token.
        return {"token": text, "logprob": value, "bytes": None if HALF in text else list(text.encode("utf-8", "replace"))}

    return {**entry(token, logprob), "top_logprobs": [entry(*other) for other in likeliest]}


def columns(
    tokens: Sequence[str], logprobs: Sequence[float | None], tops: Sequence[dict[str, float] | None], begin: int
) -> dict[str, Any]:
    """The log-probabilities of a completion, ``begin`` characters after the beginning of its text."""
    offsets, at = [], begin
    for token in tokens:
        offsets.append(at)
        at += len(token)
    return {"tokens": list(tokens), "token_logprobs": list(logprobs), "top_logprobs": list(tops), "text_offset": offsets}
