"""Requests to a server: many at once within a limit, repeated with patience, within a budget, each answer kept.

The client sends a failed request again after a wait that doubles (with jitter, so that clients do not return in step), or after
the wait that the server sets in `retry-after` or in its rate-limit headers; then all requests wait, not this one alone. If the
endpoint has several servers, the client avoids the failed one for as long and sends the request to another. When a request
fails for good, the client still finishes and keeps the requests under way, and the error says so: the same command resumes there.
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
from charter.endpoints.account import Account, TokenCounts
from charter.endpoints.answers import AnswerCache, BadServerAnswer, ServerAnswer, parse_answer, storable
from charter.endpoints.patience import backoff, jitter, requested_wait, window_wait
from charter.endpoints.servers import Server, Servers
from charter.endpoints.settings import EndpointSettings
from charter.errors import GateError, InputError

if TYPE_CHECKING:
    import httpx2

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
FILTERED = ("content_filter", "content_policy_violation")  # the server withholds an answer, and would again
KEPT = "the answers so far are kept, and the same command resumes from here"
STRANGER_RETRIES = 2
MAX_ANSWER_BYTES = 8 * 2**20


class RefusedByServer(InputError):
    """The server refuses a request, and would refuse it again."""

    def __init__(self, words: str, *, status: int, code: str, message: str) -> None:
        super().__init__(words)
        self.status, self.code, self.message = status, code, message


class Client:
    """One endpoint of a recipe."""

    def __init__(self, name: str, settings: EndpointSettings, cache: Path) -> None:
        """InputError if the environment variable of the key is missing."""
        self.name, self.settings = name, settings
        self.url = settings.url.rstrip("/") + PATHS[settings.api]
        self.key = read_key(settings.api_key_env, f"endpoints.{name}.api_key_env") if settings.api_key_env else None
        self.cache = AnswerCache(cache)
        self.account = Account(settings)
        for body, answer in self.cache.answers(self.url, settings.model):
            self.account.count(body, answer)
        self.servers = Servers(settings.servers, settings.concurrency)
        self.tls: ssl.SSLContext | None = None

    def ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[ServerAnswer]:
        """The answers to requests, in their order; equal requests are sent once. InputError if the server does not answer or
        refuses, GateError if the budget is used up."""
        requests = [self._request(body) for body in bodies]
        names = [str(self.cache.path(request)) for request in requests]
        answers: dict[str, ServerAnswer] = {}
        missing: dict[str, dict[str, Any]] = {}
        for name, request in zip(names, requests, strict=True):
            if name in answers or name in missing:
                continue
            if (cached := self.cache.get(request)) is not None:
                answers[name] = cached
                self.account.cached += 1
            else:
                missing[name] = request
        if missing:
            asyncio.run(self._ask_all(missing, answers))
        return [answers[name] for name in names]

    # -- sending -------------------------------------------------------------------------------------------------------

    def _request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The identity of a request: its address and its body. No header, so no key."""
        return {"url": self.url, "model": self.settings.model, "body": {**body, **self.settings.extra_body}}

    async def _ask_all(self, missing: Mapping[str, dict[str, Any]], answers: dict[str, ServerAnswer]) -> None:
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
                    answers[name] = await self._answer(http, request)
                except (InputError, GateError) as error:
                    failures.append(error)

        n = min(self.settings.concurrency * len(self.servers.all), len(missing))
        headers = {"user-agent": f"charter/{charter.__version__}", "content-type": "application/json"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        limits = httpx.Limits(max_connections=n, max_keepalive_connections=n)
        if self.tls is None:  # reading the certificates of the machine takes a while and only https needs them
            secure = any(server.url.startswith("https:") for server in self.servers.all)
            self.tls = httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=self.settings.timeout, verify=self.tls) as http:
            await asyncio.gather(*(work(http) for _ in range(n)))
        if failures:
            raise failures[0]

    async def _answer(self, http: httpx2.AsyncClient, request: Mapping[str, Any]) -> ServerAnswer:
        """One answer, after up to ``retries`` repetitions."""
        httpx = import_httpx()
        content = json.dumps({"model": self.settings.model, **request["body"]}).encode()
        estimate = self.account.estimate(request["body"])
        attempt, failed_at = 0, None
        while True:
            wait, charged, last, raw, began, unreachable = None, True, self.settings.retries, b"", 0.0, False
            try:
                async with self._turn(estimate, failed_at) as server:
                    began = time.monotonic()
                    async with asyncio.timeout(self.settings.timeout):
                        status, headers, raw = await self._post(http, server, content)
                    if status == 200:
                        answer = self._struck(parse_answer(raw, self.settings.api, estimate))
                        self._keep(request, answer)
                        self._hold_back(server, headers, sum(estimate))
                        server.succeeded()
                        return answer
                    if status in (400, 403) and error_code(raw) in FILTERED:
                        answer = ServerAnswer("", "content_filter", None, (0, 0))
                        self._keep(request, answer)
                        return answer
                if status not in PASSING or error_code(raw) == "insufficient_quota":
                    raise self._refusal(server, status, raw)
                problem, wait, charged = f"status {status}{self._server_words(raw)}", requested_wait(headers), False
            except BadServerAnswer as error:
                problem = f"unreadable answer: {error}{self._server_words(raw)}"
            except (TimeoutError, httpx.TimeoutException):
                problem = f"no complete answer within {self.settings.timeout:g} s"
            except httpx.InvalidURL as error:
                words = f"not an address: {server.url} ({self._clean(str(error))})"
                raise InputError(words, field=f"endpoints.{self.name}") from None
            except (httpx.HTTPError, httpx.StreamError) as error:
                problem = f"{type(error).__name__}: {self._clean(str(error)) or 'the connection broke off'}"
                unreachable = isinstance(error, httpx.ConnectError)
                charged = not unreachable
            counted = server.failed(began)
            if unreachable and self.servers.all_silent and not self.account.requests:
                # No server ever answered: the address is more likely wrong than the server busy.
                problem, last = f"{problem}; is the server running?", min(last, STRANGER_RETRIES)
            if charged:
                self.account.broke_off(estimate)
            if attempt + 1 >= (last + 1) * len(self.servers.all):
                raise InputError(f"{self._name(server)} failed {attempt + 1} times: {problem}; {KEPT}")
            await self._set_back(server, wait, attempt, content, counted=counted)
            attempt, failed_at = attempt + 1, server
            self.account.repeated += 1

    @contextlib.asynccontextmanager
    async def _turn(self, estimate: TokenCounts, failed_at: Server | None) -> AsyncIterator[Server]:
        """A server and room in the budget for one try; ``failed_at``: the server at which the last try failed."""
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
                    raise BadServerAnswer(f"longer than {MAX_ANSWER_BYTES >> 20} MiB")
        return response.status_code, response.headers, bytes(raw)

    # -- waiting -------------------------------------------------------------------------------------------------------

    async def _set_back(self, server: Server, requested: float | None, attempt: int, content: bytes, *, counted: bool) -> None:
        """Wait for the doubled backoff. If the server ``requested`` a wait (seconds), no request goes to it before that is over.
        One of several servers is avoided for as long, by the failures that were ``counted``; the request goes to another."""
        several = len(self.servers.all) > 1
        number = server.failures - 1 if several else attempt
        wait = min(backoff(self.settings.backoff, number, jitter(content, attempt)), self.settings.longest_wait)
        if requested is not None:
            least = min(requested, self.servers.wait(but=server))
            if least > self.settings.longest_wait:  # before it is held back: others would wait for it
                raise InputError(
                    f"{self._name(server)} requests a wait of {least:.0f} s, longer than longest_wait "
                    f"({self.settings.longest_wait:g} s); {KEPT}"
                )
            server.hold_back(requested)
        if not several:
            await asyncio.sleep(wait)
        elif counted:
            server.hold_back(wait)

    def _hold_back(self, server: Server, headers: Mapping[str, str], tokens: int) -> None:
        """Wait before the server has to refuse: its rate limit leaves less than a request needs until its next window."""
        if (wait := window_wait(headers, tokens)) is not None:
            server.hold_back(min(wait, self.settings.longest_wait))

    # -- the budget ----------------------------------------------------------------------------------------------------

    def _keep(self, request: Mapping[str, Any], answer: ServerAnswer) -> None:
        self.cache.put(request, answer)
        self.account.count(request["body"], answer)

    async def _reserve(self, estimate: TokenCounts) -> None:
        """Reserve budget for a request; wait for the requests under way, which may cost less than their estimates."""
        async with self.released:
            while (over := self.account.over(estimate)) is not None:
                if not self.account.reserved:
                    raise GateError(
                        f"{self._name()}: the next request may exceed {over} after {self.account.words()}; raise it in "
                        f"endpoints.{self.name} ({KEPT})"
                    )
                await self.released.wait()
            self.account.reserved.append(estimate)

    async def _release(self, estimate: TokenCounts) -> None:
        async with self.released:
            self.account.reserved.remove(estimate)
            self.released.notify_all()

    # -- words ---------------------------------------------------------------------------------------------------------

    def _name(self, server: Server | None = None) -> str:
        return f"the endpoint {self.name!r} ({server.url if server else self.settings.url})"

    def _clean(self, text: str) -> str:
        return one_line(self._strike(text))

    def _strike(self, text: str) -> str:
        """The text without the key, which a server may echo."""
        return text.replace(self.key, "[key]") if self.key else text

    def _struck(self, answer: ServerAnswer) -> ServerAnswer:
        return replace(answer, text=self._strike(answer.text), model=self._strike(answer.model))

    def _server_words(self, raw: bytes) -> str:
        """The server's own words on its error, in brackets; empty without any."""
        message = self._clean(error_message(raw))
        return f" ({message})" if message else ""

    def _refusal(self, server: Server, status: int, raw: bytes) -> RefusedByServer:
        code = error_code(raw)
        hint = {
            401: f"; the key is read from {self.settings.api_key_env}" if self.settings.api_key_env else
                 "; set api_key_env to the name of the environment variable with its key",
            403: f"; the key is read from {self.settings.api_key_env}" if self.settings.api_key_env else "",
            404: f"; check that the server calls the model {self.settings.model!r} and that url ends with /v1",
        }.get(status, "; set url to the address that it redirects to" if 300 <= status < 400 else "")  # fmt: skip
        words = f"{self._name(server)} refuses the request: status {status}{self._server_words(raw)}{hint}"
        return RefusedByServer(words, status=status, code=code, message=error_message(raw))


def import_httpx() -> Any:
    """The HTTP client of the extra `api`."""
    try:
        import httpx2
    except ImportError:
        raise InputError(
            "endpoints need the package httpx2, which is missing; install it with: pip install 'charter-align[api]'"
        ) from None
    return httpx2


def read_key(variable: str, field: str) -> str:
    """A key, from the environment alone. InputError if the variable is missing, or unfit for a header."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"the environment variable {variable} is not set; export the key in it", field=field)
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            f"the environment variable {variable} is not a key: it has characters that a header cannot carry", field=field
        )
    return key


def error_of(raw: bytes) -> Mapping[str, Any]:
    """The error object of a response body, however the server wraps it; empty if the body has no error."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    if isinstance(body, dict):
        for key in ("error", "detail"):
            if isinstance(body.get(key), dict):
                return dict(body[key])
            if isinstance(body.get(key), str):
                return {"message": body[key]}
        return body
    return {}


def error_code(raw: bytes) -> str:
    return str(error_of(raw).get("code") or "")


def error_message(raw: bytes) -> str:
    return str(error_of(raw).get("message") or "")


def one_line(text: str) -> str:
    """Foreign text fit for a message: one short printable line."""
    return "".join(c if c.isprintable() else " " for c in str(storable(text)))[:200].strip()
