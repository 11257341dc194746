"""Around every request: the names that a server answers to, and the size of a body."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class TurnedAway(Exception):
    """The request does not reach the application. ``status`` is its HTTP status."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Guard:
    """Turns away requests to another host name (None lets every name in) and bodies above ``max_body`` bytes.

    A subclass adds checks in :meth:`admit`, and answers in its own form in :meth:`refusal`.
    """

    max_body = 2**20
    other_host = (421, "This server has another name.")
    too_large = "The request is too large."

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self.admit(scope, headers)
            body = await self.whole(receive) if scope["method"] == "POST" else b""
        except TurnedAway as error:
            await self.refusal(error)(scope, receive, send)
            return
        await self.app(scope, replay(body, receive), self.sender(scope, send))

    def admit(self, _scope: Scope, headers: dict[str, str]) -> None:
        """TurnedAway where the request may not reach the application."""
        if self.hosts is not None and re.sub(r":\d+$", "", headers.get("host", "")) not in self.hosts:
            raise TurnedAway(*self.other_host)

    def refusal(self, error: TurnedAway) -> ASGIApp:
        raise NotImplementedError

    def sender(self, _scope: Scope, send: Send) -> Send:
        """``send``, or one that adds headers."""
        return send

    async def whole(self, receive: Receive) -> bytes:
        """The body. One that is too large is read on for a while and not kept: a client that is still sending hears nothing."""
        body, size = bytearray(), 0
        while True:
            message = await receive()
            part = message.get("body", b"")
            size += len(part)
            if size <= self.max_body:
                body += part
            if message["type"] == "http.disconnect" or not message.get("more_body") or size > 16 * self.max_body:
                break
        if size > self.max_body:
            raise TurnedAway(413, self.too_large)
        return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives a body that was read already, and then what else comes."""
    is_given = False

    async def again() -> Message | Any:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
