"""In front of the application: who may ask, and how much at once."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Scope

from charter.serving.protocol import ApiError
from charter.web.guard import Guard, TurnedAway


class ApiGuard(Guard):
    """Without a key the server is for this machine: it refuses a request that a web page sends under another host name, or whose
    content type is not JSON."""

    max_body = 4 * 2**20
    other_host = (403, "this server answers to 127.0.0.1 and localhost only; charter serve --public opens it")
    too_large = "the request is larger than 4 MiB"

    def __init__(self, app: ASGIApp, *, key: str | None, hosts: Sequence[str] | None) -> None:
        super().__init__(app, hosts=hosts)
        self.key = key

    def admit(self, scope: Scope, headers: dict[str, str]) -> None:
        super().admit(scope, headers)
        if self.key is not None:
            sent = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(sent.encode(), self.key.encode()):
                raise TurnedAway(401, "the key is missing or wrong; send it as Authorization: Bearer KEY")
        if scope["method"] == "POST" and headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise TurnedAway(415, "send JSON, with Content-Type: application/json")

    def refusal(self, error: TurnedAway) -> ASGIApp:
        code = {"code": "invalid_api_key"} if error.status == 401 else {}
        as_api = ApiError(error.status, str(error), **code)
        return JSONResponse(as_api.body, as_api.status)
