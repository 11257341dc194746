"""In front of the application: who may ask, and how much at once."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from charter.serving.protocol import ApiError

MAX_BODY = 4 * 2**20


class Guard:
    """Who may ask, and how much at once. Without a key the server is for this machine: a request that a web page sends under
    a name of its own, or without saying that it is JSON, is not answered."""

    def __init__(self, app: ASGIApp, *, key: str | None, hosts: Sequence[str] | None) -> None:
        self.app, self.key, self.hosts = app, key, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self.check(scope, headers)
            body = await self.whole(receive) if scope["method"] == "POST" else b""
        except ApiError as error:
            await JSONResponse(error.body, error.status)(scope, receive, send)
            return
        await self.app(scope, replay(body, receive), send)

    def check(self, scope: Scope, headers: dict[str, str]) -> None:
        if self.hosts is not None and re.sub(r":\d+$", "", headers.get("host", "")) not in self.hosts:
            raise ApiError(403, "this server answers to 127.0.0.1 and localhost only; charter serve --public opens it")
        if self.key is not None:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.key.encode()):
                raise ApiError(401, "no key or a wrong one; send it as Authorization: Bearer KEY", code="invalid_api_key")
        if scope["method"] == "POST" and headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise ApiError(415, "send JSON, with Content-Type: application/json")

    async def whole(self, receive: Receive) -> bytes:
        """The body. One that is too large is read on for a while and not kept: a client that is still sending hears nothing."""
        body, size = bytearray(), 0
        while True:
            message = await receive()
            part = message.get("body", b"")
            size += len(part)
            if size <= MAX_BODY:
                body += part
            if message["type"] == "http.disconnect" or not message.get("more_body") or size > 16 * MAX_BODY:
                break
        if size > MAX_BODY:
            raise ApiError(413, f"the request is larger than {MAX_BODY >> 20} MiB")
        return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives a body that was read already, and then what else comes."""
    given = False

    async def again() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
