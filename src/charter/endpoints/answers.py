"""Answers of a server: read strictly, kept on disk by the content of the request, so that no request is paid twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from charter.run.files import write_text

FinishReason = Literal["stop", "length", "content_filter"]
CUT = ("length", "max_tokens", "model_length")  # the last: Mistral's, of a full context
BROKEN = ("error", "abort", "insufficient_system_resource")  # OpenRouter's, vLLM's and DeepSeek's, of an answer that broke off


class BadServerAnswer(ValueError):
    """Bytes that are not a whole answer: cut off, not JSON, or not in the form of the protocol. Worth another request."""


@dataclass(frozen=True)
class ServerAnswer:
    """One answer. first: the likeliest first tokens with their log-probabilities (nats), None if the server sent none.
    tokens: read and written, counted by the server, or estimated where it did not count."""

    text: str
    finish_reason: FinishReason
    first: tuple[tuple[str, float], ...] | None
    tokens: tuple[int, int]
    model: str = ""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _Token(_Part):
    token: str
    logprob: float


class _Place(_Token):
    top_logprobs: list[_Token] = []


class _ChatLogprobs(_Part):
    content: list[_Place] | None = None


class _TextLogprobs(_Part):
    top_logprobs: list[dict[str, float] | None] | None = None


class _Message(_Part):
    content: str | None


class _ChatChoice(_Part):
    message: _Message
    finish_reason: str | None = None
    logprobs: _ChatLogprobs | None = None


class _TextChoice(_Part):
    text: str
    finish_reason: str | None = None
    logprobs: _TextLogprobs | None = None


class _Usage(_Part):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class _Chat(_Part):
    choices: list[_ChatChoice] = Field(min_length=1)
    usage: _Usage | None = None
    model: str = ""


class _Text(_Part):
    choices: list[_TextChoice] = Field(min_length=1)
    usage: _Usage | None = None
    model: str = ""


def parse_answer(raw: bytes, api: Literal["chat", "completions"], estimate: tuple[int, int]) -> ServerAnswer:
    """The first choice of a response body; ``estimate`` replaces token counts that the server did not send. BadServerAnswer
    where the body is not an answer, or is cut off."""
    try:
        body = storable(json.loads(raw))
    except (ValueError, RecursionError) as error:
        raise BadServerAnswer(f"not valid JSON: {error}"[:200]) from None
    try:
        if api == "chat":
            chat = _Chat.model_validate(body)
            choice = chat.choices[0]
            text, places = choice.message.content or "", choice.logprobs and choice.logprobs.content
            first = tuple((t.token, t.logprob) for t in places[0].top_logprobs or places[:1]) if places else None
            usage, model, reason = chat.usage, chat.model, choice.finish_reason
        else:
            completion = _Text.model_validate(body)
            written = completion.choices[0]
            tops = written.logprobs and written.logprobs.top_logprobs
            text, first = written.text, tuple(tops[0].items()) if tops and tops[0] else None
            usage, model, reason = completion.usage, completion.model, written.finish_reason
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise BadServerAnswer(f"{place + ': ' if place else ''}{problem['msg']}"[:200]) from None
    if reason in BROKEN:
        raise BadServerAnswer(f"the server broke off (finish_reason {reason!r})")
    finish: FinishReason = "content_filter" if reason == "content_filter" else "length" if reason in CUT else "stop"
    tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else estimate
    return ServerAnswer(text, finish, first, tokens, model)


def storable(value: Any) -> Any:
    """A JSON value fit for a record: NUL characters and halves of surrogate pairs in its texts become the replacement
    character."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "\ufffd")
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    return value


class AnswerCache:
    """Answers in a folder, a file for each, named by the SHA-256 of the request. A file is written whole, whenever the process is
    killed. A file that is not the answer to its request counts as missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, request: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(canonical(request).encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / key[:2] / f"{key}.json"

    def get(self, request: Mapping[str, Any]) -> ServerAnswer | None:
        try:
            stored = json.loads(self.path(request).read_text(encoding="utf-8"))
            if canonical(stored["request"]) != canonical(request):
                return None
            return as_answer(stored["answer"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, request: Mapping[str, Any], answer: ServerAnswer) -> None:
        write_text(self.path(request), canonical({"request": request, "answer": asdict(answer)}) + "\n")

    def answers(self, url: str, model: str) -> Iterator[tuple[dict[str, Any], ServerAnswer]]:
        """Every stored request body to this model with its answer: the paid ones."""
        for file in sorted(self.folder.glob("*/*.json")):
            try:
                stored = json.loads(file.read_text(encoding="utf-8"))
                if (stored["request"]["url"], stored["request"]["model"]) == (url, model):
                    yield dict(stored["request"]["body"]), as_answer(stored["answer"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def as_answer(stored: Mapping[str, Any]) -> ServerAnswer:
    """An answer from its stored form. KeyError, TypeError or ValueError if it is not an answer."""
    first, tokens = stored["first"], stored["tokens"]
    return ServerAnswer(
        str(stored["text"]),
        stored["finish_reason"],
        None if first is None else tuple((str(token), float(logprob)) for token, logprob in first),
        (int(tokens[0]), int(tokens[1])),
        str(stored["model"]),
    )
