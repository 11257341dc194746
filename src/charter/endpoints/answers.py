"""What a server answered: read strictly, kept on disk by the content of the question, so that nothing is asked or paid twice."""

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


class BadAnswer(ValueError):
    """Bytes that are no answer: cut off, not JSON, or not of the protocol's form. Worth asking again."""


@dataclass(frozen=True)
class Answer:
    """One answer. first: the likeliest first tokens with their log-probabilities (nats), None where the server gave none.
    tokens: read and written, as the server counted them, or by estimate where it did not."""

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


def read_answer(raw: bytes, api: Literal["chat", "completions"], estimate: tuple[int, int]) -> Answer:
    """The first choice of a response body; ``estimate`` stands for tokens that the server did not count. BadAnswer where it is
    not one, cut off in the middle included."""
    try:
        said = storable(json.loads(raw))
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"not valid JSON: {error}"[:200]) from None
    try:
        if api == "chat":
            chat = _Chat.model_validate(said)
            choice = chat.choices[0]
            text, found = choice.message.content or "", choice.logprobs and choice.logprobs.content
            first = tuple((t.token, t.logprob) for t in found[0].top_logprobs or found[:1]) if found else None
            usage, model, reason = chat.usage, chat.model, choice.finish_reason
        else:
            whole = _Text.model_validate(said)
            own = whole.choices[0]
            tops = own.logprobs and own.logprobs.top_logprobs
            text, first = own.text, tuple(tops[0].items()) if tops and tops[0] else None
            usage, model, reason = whole.usage, whole.model, own.finish_reason
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise BadAnswer(f"{place + ': ' if place else ''}{problem['msg']}"[:200]) from None
    finish: FinishReason = "content_filter" if reason == "content_filter" else "length" if reason == "length" else "stop"
    tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else estimate
    return Answer(text, finish, first, tokens, model)


def storable(value: Any) -> Any:
    """A JSON value with its texts as a record may hold them: NUL characters and halves of surrogate pairs become the replacement
    character."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "\ufffd")
    if isinstance(value, list):
        return [storable(one) for one in value]
    if isinstance(value, dict):
        return {storable(key): storable(one) for key, one in value.items()}
    return value


class AnswerCache:
    """Answers in a folder, a file each, named by the SHA-256 of the request. A file is whole or not there, whenever the process
    is killed. A file that is not the answer to its request is as good as none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, request: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(canonical(request).encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / key[:2] / f"{key}.json"

    def get(self, request: Mapping[str, Any]) -> Answer | None:
        try:
            found = json.loads(self.path(request).read_text(encoding="utf-8"))
            if canonical(found["request"]) != canonical(request):
                return None
            return as_answer(found["answer"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, request: Mapping[str, Any], answer: Answer) -> None:
        write_text(self.path(request), canonical({"request": request, "answer": asdict(answer)}) + "\n")

    def answers(self, url: str, model: str) -> Iterator[tuple[dict[str, Any], Answer]]:
        """Every request body to this model that the folder holds, and its answer: what was paid for."""
        for file in sorted(self.folder.glob("*/*.json")):
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
                if (found["request"]["url"], found["request"]["model"]) == (url, model):
                    yield dict(found["request"]["body"]), as_answer(found["answer"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def as_answer(found: Mapping[str, Any]) -> Answer:
    """An answer as it was stored. KeyError, TypeError or ValueError where it is not one."""
    first, tokens = found["first"], found["tokens"]
    return Answer(
        str(found["text"]),
        found["finish_reason"],
        None if first is None else tuple((str(token), float(logprob)) for token, logprob in first),
        (int(tokens[0]), int(tokens[1])),
        str(found["model"]),
    )
