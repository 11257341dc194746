"""Requests to a server: many at once and never too many, repeated with patience, within a budget, each answer kept.

A request that fails is sent again after a wait that doubles (with jitter, so that clients do not come back in step), or after
what the server asks for in `retry-after` or in its rate-limit headers; then everybody waits, not this request alone. When it
fails for good, what is under way is still finished and kept, and the error says so: the same command goes on from there.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import charter
from charter.config import EndpointSettings
from charter.errors import GateError, InputError
from charter.models.answers import Answer, AnswerCache, BadAnswer, read_answer, storable
from charter.run import derive_seed

if TYPE_CHECKING:
    import httpx2

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
KEPT = "what was answered is kept, and the same command goes on from here"
MAX_ANSWER_BYTES = 8 * 2**20
BYTES_PER_TOKEN = 2  # fewer than any tokenizer needs for prose, so that an estimate errs to the side of the budget
TOKENS_PER_MESSAGE = 16  # a template's own


class Refused(InputError):
    """The server says no to a request, and would say so again."""

    def __init__(self, words: str, *, status: int, code: str, message: str) -> None:
        super().__init__(words)
        self.status, self.code, self.message = status, code, message


@dataclass
class Usage:
    """What an endpoint was used for. ``requests``: answers; ``repeated``: requests that were sent again; ``cached``: answers
    that were on disk; ``unanswered``: tokens of requests that broke off and may have been charged, by estimate."""

    requests: int = 0
    cached: int = 0
    repeated: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unanswered: tuple[int, int] = (0, 0)


class Client:
    """One endpoint of a recipe."""

    def __init__(self, name: str, settings: EndpointSettings, cache: Path) -> None:
        """InputError where the environment variable of the key is not set."""
        self.name, self.settings = name, settings
        self.url = settings.url.rstrip("/") + PATHS[settings.api]
        self.key = read_key(name, settings)
        self.cache = AnswerCache(cache)
        self.usage = Usage()
        for answer in self.cache.answers(self.url, settings.model):
            self._count(answer, (0, 0))
        self.reserved: list[tuple[int, int]] = []
        self.not_before = 0.0

    def ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """The answers to requests, in their order; equal requests are one. InputError where the server does not answer or says no,
        GateError where the budget is used up."""
        requests = [self._request(body) for body in bodies]
        names = [str(self.cache.path(request)) for request in requests]
        found: dict[str, Answer] = {}
        missing: dict[str, dict[str, Any]] = {}
        for name, request in zip(names, requests, strict=True):
            if name in found or name in missing:
                continue
            if (kept := self.cache.get(request)) is not None:
                found[name] = kept
                self.usage.cached += 1
            else:
                missing[name] = request
        if missing:
            asyncio.run(self._ask_all(missing, found))
        return [found[name] for name in names]

    def figures(self) -> dict[str, Any]:
        """Requests, tokens and money so far, as JSON values."""
        used = self.usage
        return {
            "model": self.settings.model, "url": self.settings.url, "requests": used.requests, "cached": used.cached,
            "repeated": used.repeated, "input_tokens": used.input_tokens, "output_tokens": used.output_tokens,
            "unanswered_tokens": sum(used.unanswered), "money": self._money(used.input_tokens, used.output_tokens),
        }  # fmt: skip

    # -- sending -------------------------------------------------------------------------------------------------------

    def _request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What identifies a request: where it goes and what it says. No header, so no key."""
        return {"url": self.url, "model": self.settings.model, "body": {**body, **self.settings.extra_body}}

    async def _ask_all(self, missing: Mapping[str, dict[str, Any]], found: dict[str, Answer]) -> None:
        httpx = import_httpx()
        self.released = asyncio.Condition()
        todo = iter(missing.items())
        failures: list[Exception] = []

        async def work(http: httpx2.AsyncClient) -> None:
            for name, request in todo:
                if failures:
                    return
                try:
                    found[name] = await self._answer(http, request)
                except (InputError, GateError) as error:
                    failures.append(error)

        n = min(self.settings.concurrency, len(missing))
        headers = {"user-agent": f"charter/{charter.__version__}", "content-type": "application/json"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        limits = httpx.Limits(max_connections=n, max_keepalive_connections=n)
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=self.settings.timeout) as http:
            await asyncio.gather(*(work(http) for _ in range(n)))
        if failures:
            raise failures[0]

    async def _answer(self, http: httpx2.AsyncClient, request: Mapping[str, Any]) -> Answer:
        """One answer, after as many tries as it takes."""
        httpx = import_httpx()
        content = json.dumps({"model": self.settings.model, **request["body"]}).encode()
        estimate = self._estimate(request["body"])
        attempt = 0
        while True:
            await self._wait_for_turn()
            await self._reserve(estimate)
            wait, charged = None, True
            try:
                async with asyncio.timeout(self.settings.timeout):
                    status, headers, raw = await self._post(http, content)
                if status == 200:
                    answer = read_answer(raw, self.settings.api)
                    self._count(answer, estimate)
                    self.cache.put(request, answer)
                    self._hold_back(headers, sum(estimate))
                    return answer
                if status not in PASSING or error_code(raw) == "insufficient_quota":
                    raise self._refusal(status, raw)
                problem, wait, charged = f"status {status}{said(raw)}", asked_wait(headers), False
            except BadAnswer as error:
                problem = f"an answer that cannot be read ({error})"
            except (TimeoutError, httpx.TimeoutException):
                problem = f"no whole answer within {self.settings.timeout:g} s"
            except (httpx.HTTPError, httpx.StreamError) as error:
                problem = f"{type(error).__name__}: {self._clean(str(error)) or 'the connection broke off'}"
                charged = not isinstance(error, httpx.ConnectError)
            finally:
                await self._release(estimate)
            if charged:
                a, b = self.usage.unanswered
                self.usage.unanswered = (a + estimate[0], b + estimate[1])
            if attempt == self.settings.retries:
                raise InputError(f"{self._who()} fails after {attempt + 1} tries: {problem}; {KEPT}")
            self._set_back(wait, attempt, content)
            attempt += 1
            self.usage.repeated += 1

    async def _post(self, http: httpx2.AsyncClient, content: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body, the key struck out wherever the server repeats it."""
        async with http.stream("POST", self.url, content=content) as response:
            raw = bytearray()
            async for part in response.aiter_bytes():
                raw += part
                if len(raw) > MAX_ANSWER_BYTES:
                    raise BadAnswer(f"longer than {MAX_ANSWER_BYTES >> 20} MiB")
        body = bytes(raw)
        return response.status_code, response.headers, body.replace(self.key.encode(), b"[key]") if self.key else body

    # -- waiting -------------------------------------------------------------------------------------------------------

    async def _wait_for_turn(self) -> None:
        while (left := self.not_before - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def _set_back(self, asked: float | None, attempt: int, content: bytes) -> None:
        """Nobody sends before the wait is over: what the server asked for, at least, or the doubled backoff."""
        if asked is not None and asked > self.settings.longest_wait:
            raise InputError(
                f"{self._who()} asks to wait {asked:.0f} s and longest_wait is {self.settings.longest_wait:g} s; {KEPT}"
            )
        wait = backoff(self.settings.backoff, attempt, jitter(content, attempt))
        wait = max(min(wait, self.settings.longest_wait), asked or 0.0)
        self.not_before = max(self.not_before, time.monotonic() + wait)

    def _hold_back(self, headers: Mapping[str, str], tokens: int) -> None:
        """Wait before the server has to say no: nothing, or less than a request needs, is left until its window begins anew."""
        for what, need in (("requests", 1), ("tokens", tokens)):
            left, reset = headers.get(f"x-ratelimit-remaining-{what}"), headers.get(f"x-ratelimit-reset-{what}")
            if left is not None and left.isdigit() and int(left) < need and (wait := duration(reset or "")) is not None:
                until = time.monotonic() + min(wait, self.settings.longest_wait)
                self.not_before = max(self.not_before, until)

    # -- the budget ----------------------------------------------------------------------------------------------------

    def _estimate(self, body: Mapping[str, Any]) -> tuple[int, int]:
        """Tokens that a request can take, read and written."""
        texts = [str(body["prompt"])] if "prompt" in body else [str(m["content"]) for m in body["messages"]]
        read = sum(len(text.encode()) // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE for text in texts)
        return read, int(body[self.settings.length_key])

    def _count(self, answer: Answer, estimate: tuple[int, int]) -> None:
        read, written = answer.tokens or estimate
        self.usage.requests += 1
        self.usage.input_tokens += read
        self.usage.output_tokens += written

    def _money(self, read: int, written: int) -> float | None:
        if self.settings.input_price is None or self.settings.output_price is None:
            return None
        return (read * self.settings.input_price + written * self.settings.output_price) / 1e6

    def _over(self, estimate: tuple[int, int]) -> str | None:
        """Which budget this request could break, None where neither; requests under way count in full."""
        used, s = self.usage, self.settings
        read = used.input_tokens + used.unanswered[0] + estimate[0] + sum(r for r, _ in self.reserved)
        written = used.output_tokens + used.unanswered[1] + estimate[1] + sum(w for _, w in self.reserved)
        money = self._money(read, written)
        if s.budget_money is not None and money is not None and money > s.budget_money:
            return f"budget_money {s.budget_money:g}"
        if s.budget_tokens is not None and read + written > s.budget_tokens:
            return f"budget_tokens {s.budget_tokens}"
        return None

    async def _reserve(self, estimate: tuple[int, int]) -> None:
        async with self.released:
            while (over := self._over(estimate)) is not None:
                if not self.reserved:
                    used = self.usage
                    money = self._money(used.input_tokens, used.output_tokens)
                    spent = "" if money is None else f" for {money:.4g}"
                    raise GateError(
                        f"{self._who()}: the next request may exceed {over} after {used.requests} answers with "
                        f"{used.input_tokens + used.output_tokens} tokens{spent}; raise it in endpoints.{self.name} ({KEPT})"
                    )
                await self.released.wait()
            self.reserved.append(estimate)

    async def _release(self, estimate: tuple[int, int]) -> None:
        async with self.released:
            self.reserved.remove(estimate)
            self.released.notify_all()

    # -- words ---------------------------------------------------------------------------------------------------------

    def _who(self) -> str:
        return f"the endpoint {self.name!r} ({self.settings.url})"

    def _clean(self, text: str) -> str:
        return one_line(text.replace(self.key, "[key]") if self.key else text)

    def _refusal(self, status: int, raw: bytes) -> Refused:
        code = error_code(raw)
        hint = {
            401: f"; the key is read from {self.settings.api_key_env}" if self.settings.api_key_env else
                 "; set api_key_env to the name of the environment variable that holds its key",
            403: f"; the key is read from {self.settings.api_key_env}" if self.settings.api_key_env else "",
            404: f"; is {self.settings.model!r} its name there, and does url end with /v1?",
        }.get(status, "; url must be the address itself" if 300 <= status < 400 else "")  # fmt: skip
        words = f"{self._who()} refuses the request: status {status}{said(raw)}{hint}"
        return Refused(words, status=status, code=code, message=error_message(raw))


def import_httpx() -> Any:
    """The HTTP client, which comes with the extra `api`."""
    try:
        import httpx2
    except ImportError:
        raise InputError("endpoints need the package httpx2; install it with: pip install 'charter-align[api]'") from None
    return httpx2


def read_key(name: str, settings: EndpointSettings) -> str | None:
    """The key of an endpoint, from the environment alone; None where it needs none."""
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise InputError(
            f"the environment variable {settings.api_key_env} is not set; export the key of the endpoint {name!r} in it",
            field=f"endpoints.{name}.api_key_env",
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            f"what {settings.api_key_env} holds is no key: it has characters that no header may carry",
            field=f"endpoints.{name}.api_key_env",
        )
    return key


def backoff(base: float, attempt: int, share: float) -> float:
    """Seconds before repetition number ``attempt`` (from 0): base doubled each time, times 1 - share / 2."""
    return float(base * 2.0**attempt * (1 - share / 2))


def jitter(content: bytes, attempt: int) -> float:
    """A number in [0, 1) of this process, request and attempt: two requests that failed together do not return together."""
    return (derive_seed("jitter", os.getpid(), content.hex(), attempt) % 2**20) / 2.0**20


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server that said no asks to wait, None where it asks for nothing that can be read."""
    found = []
    if (milliseconds := number(headers.get("retry-after-ms", ""))) is not None:
        found.append(milliseconds / 1000)
    after = headers.get("retry-after", "")
    if (seconds := number(after)) is not None:
        found.append(seconds)
    elif after:
        try:
            found.append(max(email.utils.parsedate_to_datetime(after).timestamp() - time.time(), 0.0))
        except ValueError:
            pass
    if not found:
        for what in ("requests", "tokens"):
            if headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0":
                wait = duration(headers.get(f"x-ratelimit-reset-{what}", ""))
                found += [] if wait is None else [wait]
    return max(found, default=None)


def number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\s*\d{1,9}(\.\d*)?\s*", text) else None


UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str) -> float | None:
    """Seconds of `250ms`, `1s`, `6m0s`, `1h2m3.5s` or a bare number; None where it is none of these."""
    if (seconds := number(text)) is not None:
        return seconds
    parts = re.findall(r"(\d{1,9}(?:\.\d*)?)(ms|s|m|h|d)", text)
    if not parts or "".join(a + b for a, b in parts) != text.strip():
        return None
    return float(sum(float(amount) * UNITS[unit] for amount, unit in parts))


def error_of(raw: bytes) -> Mapping[str, Any]:
    """The error object of a response body, however the server wraps it; empty where there is none."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    if isinstance(found, dict):
        for key in ("error", "detail"):
            if isinstance(found.get(key), dict):
                return dict(found[key])
            if isinstance(found.get(key), str):
                return {"message": found[key]}
        return found
    return {}


def error_code(raw: bytes) -> str:
    return str(error_of(raw).get("code") or "")


def error_message(raw: bytes) -> str:
    return one_line(str(error_of(raw).get("message") or ""))


def said(raw: bytes) -> str:
    """What a server says of its error, as an addition to a sentence."""
    message = error_message(raw)
    return f" ({message})" if message else ""


def one_line(text: str) -> str:
    """Foreign text fit for a message: one line, printable, not long."""
    return "".join(c if c.isprintable() else " " for c in storable(text))[:200].strip()
