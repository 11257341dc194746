"""Requests to a server: many at once and never too many, repeated with patience, within a budget, each answer kept.

A request that fails is sent again after a wait that doubles (with jitter, so that clients do not come back in step), or after
what the server asks for in `retry-after` or in its rate-limit headers; then everybody waits, not this request alone. Where the
endpoint has several servers the one that failed is left alone for as long, and the request goes to another at once. When it fails
for good, what is under way is still finished and kept, and the error says so: the same command goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import charter
from charter.endpoints.account import Account, Tokens
from charter.endpoints.answers import Answer, AnswerCache, BadAnswer, read_answer, storable
from charter.endpoints.patience import asked_wait, backoff, jitter, window_wait
from charter.endpoints.servers import Server, Servers
from charter.endpoints.settings import EndpointSettings
from charter.errors import GateError, InputError

if TYPE_CHECKING:
    import httpx2

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
FILTERED = ("content_filter", "content_policy_violation")  # the server withholds an answer, and would again
KEPT = "what was answered is kept, and the same command goes on from here"
STRANGER_RETRIES = 2
MAX_ANSWER_BYTES = 8 * 2**20


class Refused(InputError):
    """The server says no to a request, and would say so again."""

    def __init__(self, words: str, *, status: int, code: str, message: str) -> None:
        super().__init__(words)
        self.status, self.code, self.message = status, code, message


class Client:
    """One endpoint of a recipe."""

    def __init__(self, name: str, settings: EndpointSettings, cache: Path) -> None:
        """InputError where the environment variable of the key is not set."""
        self.name, self.settings = name, settings
        self.url = settings.url.rstrip("/") + PATHS[settings.api]
        self.key = read_key(settings.api_key_env, f"endpoints.{name}.api_key_env") if settings.api_key_env else None
        self.cache = AnswerCache(cache)
        self.account = Account(settings)
        for body, answer in self.cache.answers(self.url, settings.model):
            self.account.count(body, answer)
        self.servers = Servers(settings.servers, settings.concurrency)
        self.tls: ssl.SSLContext | None = None

    def ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """The answers to requests, in their order; equal requests are one. InputError where the server does not answer or says
        no, GateError where the budget is used up."""
        requests = [self._request(body) for body in bodies]
        names = [str(self.cache.path(request)) for request in requests]
        found: dict[str, Answer] = {}
        missing: dict[str, dict[str, Any]] = {}
        for name, request in zip(names, requests, strict=True):
            if name in found or name in missing:
                continue
            if (kept := self.cache.get(request)) is not None:
                found[name] = kept
                self.account.cached += 1
            else:
                missing[name] = request
        if missing:
            asyncio.run(self._ask_all(missing, found))
        return [found[name] for name in names]

    # -- sending -------------------------------------------------------------------------------------------------------

    def _request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What identifies a request: where it goes and what it says. No header, so no key."""
        return {"url": self.url, "model": self.settings.model, "body": {**body, **self.settings.extra_body}}

    async def _ask_all(self, missing: Mapping[str, dict[str, Any]], found: dict[str, Answer]) -> None:
        httpx = import_httpx()
        self.released = asyncio.Condition()
        self.servers.begin()
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

        n = min(self.settings.concurrency * len(self.servers.all), len(missing))
        headers = {"user-agent": f"charter/{charter.__version__}", "content-type": "application/json"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        limits = httpx.Limits(max_connections=n, max_keepalive_connections=n)
        if self.tls is None:  # reading the machine's certificates takes a while; without https it is left out
            secure = any(server.url.startswith("https:") for server in self.servers.all)
            self.tls = httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=self.settings.timeout, verify=self.tls) as http:
            await asyncio.gather(*(work(http) for _ in range(n)))
        if failures:
            raise failures[0]

    async def _answer(self, http: httpx2.AsyncClient, request: Mapping[str, Any]) -> Answer:
        """One answer, after as many tries as it takes."""
        httpx = import_httpx()
        content = json.dumps({"model": self.settings.model, **request["body"]}).encode()
        estimate = self.account.estimate(request["body"])
        attempt, failed_at = 0, None
        while True:
            wait, charged, last, raw, began, nobody = None, True, self.settings.retries, b"", 0.0, False
            try:
                async with self._turn(estimate, failed_at) as server:
                    began = time.monotonic()
                    async with asyncio.timeout(self.settings.timeout):
                        status, headers, raw = await self._post(http, server, content)
                    if status == 200:
                        answer = self._struck(read_answer(raw, self.settings.api, estimate))
                        self._keep(request, answer)
                        self._hold_back(server, headers, sum(estimate))
                        server.succeeded()
                        return answer
                    if status in (400, 403) and error_code(raw) in FILTERED:
                        answer = Answer("", "content_filter", None, (0, 0))
                        self._keep(request, answer)
                        return answer
                if status not in PASSING or error_code(raw) == "insufficient_quota":
                    raise self._refusal(server, status, raw)
                problem, wait, charged = f"status {status}{self._said(raw)}", asked_wait(headers), False
            except BadAnswer as error:
                problem = f"an answer that cannot be read: {error}{self._said(raw)}"
            except (TimeoutError, httpx.TimeoutException):
                problem = f"no whole answer within {self.settings.timeout:g} s"
            except httpx.InvalidURL as error:
                raise InputError(
                    f"{server.url} is no address ({self._clean(str(error))})", field=f"endpoints.{self.name}"
                ) from None
            except (httpx.HTTPError, httpx.StreamError) as error:
                problem = f"{type(error).__name__}: {self._clean(str(error)) or 'the connection broke off'}"
                nobody = isinstance(error, httpx.ConnectError)
                charged = not nobody
            counted = server.failed(began)
            if nobody and self.servers.all_silent and not self.account.requests:
                # Nothing was ever heard from there: more likely wrong than busy.
                problem, last = f"{problem}; is the server running?", min(last, STRANGER_RETRIES)
            if charged:
                self.account.broke_off(estimate)
            if attempt + 1 >= (last + 1) * len(self.servers.all):
                raise InputError(f"{self._who(server)} fails after {attempt + 1} tries: {problem}; {KEPT}")
            await self._set_back(server, wait, attempt, content, counted=counted)
            attempt, failed_at = attempt + 1, server
            self.account.repeated += 1

    @contextlib.asynccontextmanager
    async def _turn(self, estimate: Tokens, failed_at: Server | None) -> AsyncIterator[Server]:
        """The server to ask, and room in the budget, for one try; ``failed_at``: where the try before failed."""
        server = await self.servers.take(failed_at)
        try:
            await self._reserve(estimate)
            try:
                yield server
            finally:
                await self._release(estimate)
        finally:
            await self.servers.give_back(server)

    async def _post(self, http: httpx2.AsyncClient, server: Server, content: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body."""
        async with http.stream("POST", server.url + PATHS[self.settings.api], content=content) as response:
            raw = bytearray()
            async for part in response.aiter_bytes():
                raw += part
                if len(raw) > MAX_ANSWER_BYTES:
                    raise BadAnswer(f"longer than {MAX_ANSWER_BYTES >> 20} MiB")
        return response.status_code, response.headers, bytes(raw)

    # -- waiting -------------------------------------------------------------------------------------------------------

    async def _set_back(self, server: Server, asked: float | None, attempt: int, content: bytes, *, counted: bool) -> None:
        """Wait for the doubled backoff; where the server asked for a wait, nobody asks it before that is over. One of several
        is left alone for as long, by the failures that were ``counted``, and the request goes to another at once."""
        several = len(self.servers.all) > 1
        number = server.failures - 1 if several else attempt
        wait = min(backoff(self.settings.backoff, number, jitter(content, attempt)), self.settings.longest_wait)
        if asked is not None:
            least = min(asked, self.servers.wait(but=server))
            if least > self.settings.longest_wait:  # before it is held back: others would wait for it
                raise InputError(
                    f"{self._who(server)} asks to wait {least:.0f} s and longest_wait is {self.settings.longest_wait:g} s; {KEPT}"
                )
            server.hold_back(asked)
        if not several:
            await asyncio.sleep(wait)
        elif counted:
            server.hold_back(wait)

    def _hold_back(self, server: Server, headers: Mapping[str, str], tokens: int) -> None:
        """Wait before the server has to say no: nothing, or less than a request needs, is left until its window begins anew."""
        if (wait := window_wait(headers, tokens)) is not None:
            server.hold_back(min(wait, self.settings.longest_wait))

    # -- the budget ----------------------------------------------------------------------------------------------------

    def _keep(self, request: Mapping[str, Any], answer: Answer) -> None:
        self.cache.put(request, answer)
        self.account.count(request["body"], answer)

    async def _reserve(self, estimate: Tokens) -> None:
        """Room in the budget for a request; waits for those under way, which may turn out smaller than they could be."""
        async with self.released:
            while (over := self.account.over(estimate)) is not None:
                if not self.account.reserved:
                    raise GateError(
                        f"{self._who()}: the next request may exceed {over} after {self.account.words()}; raise it in "
                        f"endpoints.{self.name} ({KEPT})"
                    )
                await self.released.wait()
            self.account.reserved.append(estimate)

    async def _release(self, estimate: Tokens) -> None:
        async with self.released:
            self.account.reserved.remove(estimate)
            self.released.notify_all()

    # -- words ---------------------------------------------------------------------------------------------------------

    def _who(self, server: Server | None = None) -> str:
        return f"the endpoint {self.name!r} ({server.url if server else self.settings.url})"

    def _clean(self, text: str) -> str:
        return one_line(self._strike(text))

    def _strike(self, text: str) -> str:
        """The text without the key, which a server may repeat."""
        return text.replace(self.key, "[key]") if self.key else text

    def _struck(self, answer: Answer) -> Answer:
        return replace(answer, text=self._strike(answer.text), model=self._strike(answer.model))

    def _said(self, raw: bytes) -> str:
        """What a server says of its error, as an addition to a sentence."""
        message = self._clean(error_message(raw))
        return f" ({message})" if message else ""

    def _refusal(self, server: Server, status: int, raw: bytes) -> Refused:
        code = error_code(raw)
        hint = {
            401: f"; the key is read from {self.settings.api_key_env}" if self.settings.api_key_env else
                 "; set api_key_env to the name of the environment variable that holds its key",
            403: f"; the key is read from {self.settings.api_key_env}" if self.settings.api_key_env else "",
            404: f"; is {self.settings.model!r} its name there, and does url end with /v1?",
        }.get(status, "; url must be the address itself" if 300 <= status < 400 else "")  # fmt: skip
        words = f"{self._who(server)} refuses the request: status {status}{self._said(raw)}{hint}"
        return Refused(words, status=status, code=code, message=error_message(raw))


def import_httpx() -> Any:
    """The HTTP client, which comes with the extra `api`."""
    try:
        import httpx2
    except ImportError:
        raise InputError("endpoints need the package httpx2; install it with: pip install 'charter-align[api]'") from None
    return httpx2


def read_key(variable: str, field: str) -> str:
    """A key, from the environment alone. InputError where the variable is not set or holds what no header may carry."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"the environment variable {variable} is not set; export the key in it", field=field)
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{variable} holds no key: it has characters that no header may carry", field=field)
    return key


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
    return str(error_of(raw).get("message") or "")


def one_line(text: str) -> str:
    """Foreign text fit for a message: one line, printable, not long."""
    return "".join(c if c.isprintable() else " " for c in str(storable(text)))[:200].strip()
