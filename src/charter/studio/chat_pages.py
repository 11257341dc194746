"""Chat: two to four models side by side, the same prompt, seed and temperature, their answers as they come."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal, cast

from fastapi import Depends, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from charter.errors import InputError
from charter.serving.protocol import ApiError, ChatRequest, read_request
from charter.studio.models import MOST_LOADED, folder_of, names_of
from charter.studio.site import Studio, studio_of
from charter.web.access import LEADS, Visitor
from charter.web.label_app import Page
from charter.web.site import allow
from charter.web.texts import with_codes

Lead = Annotated[Visitor, Depends(allow(LEADS))]
Finish = Literal["stop", "length"]
DEFAULT_TOKENS, MOST_TOKENS = 128, 1024


def chat_page(request: Request, visitor: Lead) -> Response:
    site = studio_of(request)
    return site.page("chat.html", visitor, models=names_of(site.runs(), people=True), columns=MOST_LOADED, tokens=DEFAULT_TOKENS,
                     most_tokens=MOST_TOKENS)  # fmt: skip


def read_requests(text: str) -> list[ChatRequest]:
    """One to four requests of the protocol of `charter serve`, in a JSON list. ApiError names what is wrong."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list) or not 1 <= len(rows) <= MOST_LOADED:
        raise ApiError(422, f"choose one to {MOST_LOADED} models")
    calls = [read_request(json.dumps(row).encode(), ChatRequest) for row in rows]
    for call in calls:
        if call.length is None or call.length > MOST_TOKENS or call.choices != 1:
            raise ApiError(422, f"max_tokens: write a number from 1 to {MOST_TOKENS}", param="max_tokens")
    return calls


async def chat_stream(request: Request, visitor: Lead) -> Response:
    """Lines of JSON: {"i": number of the request, and "text", "finish" or "error"}. ``shown`` is the text with the codes of its
    invisible characters, where it has some. A browser that leaves stops the models."""
    site = studio_of(request)
    try:
        calls = read_requests(request.state.form.get("requests", ""))
    except ApiError as error:
        return JSONResponse({"error": str(error)}, 422)
    return StreamingResponse(side_by_side(site, calls), media_type="application/x-ndjson")


async def side_by_side(site: Studio, calls: Sequence[ChatRequest]) -> AsyncGenerator[str, None]:
    lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    tasks = [asyncio.create_task(answer(site, number, call, lines)) for number, call in enumerate(calls)]
    unfinished = len(tasks)
    try:
        while unfinished:
            line = await lines.get()
            unfinished -= "finish" in line or "error" in line
            yield json.dumps(line) + "\n"
    finally:
        for task in tasks:
            task.cancel()


async def answers_of(site: Studio, calls: Sequence[ChatRequest]) -> list[tuple[str, Finish]]:
    """The whole answers, written at the same time, and how each ended. InputError where a model cannot answer."""
    texts, ends = [""] * len(calls), ["stop"] * len(calls)
    async with contextlib.aclosing(side_by_side(site, calls)) as lines:
        async for line in lines:
            row = json.loads(line)
            if "error" in row:
                raise InputError(row["error"])
            texts[row["i"]] += row.get("text", "")
            ends[row["i"]] = row.get("finish", ends[row["i"]])
    return list(zip(texts, cast("list[Finish]", ends), strict=True))


async def answer(site: Studio, number: int, call: ChatRequest, lines: asyncio.Queue[dict[str, Any]]) -> None:
    """One model's answer, piece by piece; the last line has its end."""

    def say(**values: Any) -> None:
        lines.put_nowait({"i": number, **values})

    try:
        folder = await asyncio.to_thread(lambda: folder_of(call.model, site.runs()))
        serving = await asyncio.to_thread(site.loaded.open, call.model, folder)
        serving.check(call, 1)
        events: asyncio.Queue[Any] = asyncio.Queue()
        choices = serving.chat_choices(call, events)
        async with contextlib.aclosing(serving.written(choices, events)) as written:
            async for _, text, _ in written:
                if text:
                    shown = with_codes(text)
                    say(text=text, **({"shown": shown} if shown != text else {}))
        say(finish=choices[0].finish or "stop")
    except (ApiError, InputError) as error:
        say(error=str(error))
    except Exception as error:  # a model loads and runs whatever its libraries do; the other columns continue
        say(error=f"the model failed: {type(error).__name__}: {error}"[:300])


ROUTES: tuple[Page, ...] = (("/chat", "GET", chat_page), ("/chat/stream", "POST", chat_stream))
