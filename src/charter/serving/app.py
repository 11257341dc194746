"""The HTTP side of `charter serve`: OpenAI's paths in front of the engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from charter.models.chat_template import encode_prompt, encode_text
from charter.models.generate import context_length
from charter.run.hashes import derive_seed
from charter.serving.engine import Broken, Drawn, Engine, Job, Likeliest, Scored
from charter.serving.guard import Guard
from charter.serving.protocol import (
    MAX_ROWS,
    ApiError,
    Asked,
    ChatRequest,
    CompletionRequest,
    columns,
    place,
    read_request,
    usage_of,
)
from charter.serving.text import Pieces, Writer, token_text

COMPLETION_TOKENS = 16  # the protocol's own default
UNLIMITED_TOKENS = 1024  # of a chat answer where neither the request nor the model names a limit
MAX_WAITING = 1024  # rows; who comes then is asked to come again


@dataclass
class Choice:
    """A response as it comes in: tokens, text, and how it ended."""

    job: Job
    writer: Writer
    drawn: list[Drawn] = field(default_factory=list)
    finish: str | None = None


class Serving:
    """A model under a name."""

    def __init__(self, engine: Engine, name: str, fingerprint: str = "") -> None:
        self.engine, self.name, self.fingerprint = engine, name, fingerprint
        self.tokenizer = engine.trunk.tokenizer
        self.limit = context_length(engine.trunk.model)
        self.vocabulary = int(engine.trunk.model.config.get_text_config().vocab_size)
        self.created = int(time.time())

    # -- what is asked -------------------------------------------------------------------------------------------------

    def check(self, asked: Asked, rows: int) -> None:
        if asked.model != self.name:
            raise ApiError(404, f"the model {asked.model!r} is not served here; {self.name!r} is", param="model",
                           code="model_not_found")  # fmt: skip
        if rows > MAX_ROWS:
            raise ApiError(400, f"at most {MAX_ROWS} responses to a request", param="n")
        if len(self.engine.waiting) + rows > MAX_WAITING:
            raise ApiError(429, "too many requests are waiting; try again", code="server_busy")

    def room(self, prompt: Sequence[int], wanted: int | None) -> int:
        """Tokens that a response may have, all that are left where none are named. ApiError where they do not fit."""
        if self.limit is None:
            return UNLIMITED_TOKENS if wanted is None else wanted
        left, need = self.limit - len(prompt), 1 if wanted is None else wanted
        if left < need:
            raise ApiError(
                400, f"the model sees {self.limit} tokens at once; the prompt has {len(prompt)} and {need} are asked for",
                code="context_length_exceeded",
            )  # fmt: skip
        return left if wanted is None else wanted

    def chat_choices(self, asked: ChatRequest, events: asyncio.Queue[Any]) -> list[Choice]:
        """The responses to a conversation; with a seed the first is what `charter chat` says with that seed at that turn."""
        messages = [said.message() for said in asked.messages]
        prompt = encode_prompt(self.tokenizer, messages)
        length = self.room(prompt, asked.length)
        turn = sum(message.role == "user" for message in messages)
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        seeds = [derive_seed(seed, "chat", turn, *([number] if number else [])) for number in range(asked.choices)]
        top = asked.top_logprobs or 0
        return [self.choice(asked, events, number, prompt, length, own, top) for number, own in enumerate(seeds)]

    def choice(
        self, asked: Asked, events: asyncio.Queue[Any], number: int, prompt: Sequence[int], length: int, seed: int, top: int
    ) -> Choice:  # fmt: skip
        loop = asyncio.get_running_loop()

        def emit(event: Drawn | Scored | Broken) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server is going down
                loop.call_soon_threadsafe(events.put_nowait, (number, event))

        job = Job(prompt, length, emit, seed=seed, temperature=asked.heat, top=top)
        return Choice(job, Writer(self.tokenizer, asked.stops))

    async def written(
        self, choices: Sequence[Choice], events: asyncio.Queue[Any]
    ) -> AsyncGenerator[tuple[int, str, Drawn], None]:
        """Runs the choices: their number, what text may be shown, and the token, as they come. Whoever stops listening stops
        the work too."""
        try:
            self.engine.submit([one.job for one in choices])
            left = len(choices)
            while left:
                number, event = await events.get()
                if isinstance(event, Broken):
                    raise ApiError(500, f"the model failed: {event.words}")
                one = choices[number]
                if one.finish is not None:
                    continue
                one.drawn.append(event)
                new = "" if event.finish == "stop" else one.writer.add(event.id)
                if one.writer.stopped:
                    one.job.cancelled = True
                if one.writer.stopped or event.finish:
                    one.finish = "stop" if one.writer.stopped else event.finish
                    new += one.writer.finish()
                    left -= 1
                yield number, new, event
        finally:
            for one in choices:
                one.job.cancelled = True

    # -- chat ----------------------------------------------------------------------------------------------------------

    async def chat(self, asked: ChatRequest, request: Request) -> Response:
        self.check(asked, asked.choices)
        events: asyncio.Queue[Any] = asyncio.Queue()
        choices = self.chat_choices(asked, events)
        read = len(choices[0].job.prompt)
        head = self.head("chatcmpl", "chat.completion")
        if asked.stream:
            return sse(self.chat_chunks(asked, choices, events, head | {"object": "chat.completion.chunk"}))
        await until_gone(request, drain(self.written(choices, events)))
        body = [
            {
                "index": number,
                "message": {"role": "assistant", "content": one.writer.text, "refusal": None},
                "logprobs": {"content": [self.place(drawn) for drawn in one.drawn]} if asked.logprobs else None,
                "finish_reason": one.finish,
            }
            for number, one in enumerate(choices)
        ]
        written = sum(len(one.drawn) for one in choices)
        return JSONResponse({**head, "choices": body, "usage": usage_of(read, written)})

    async def chat_chunks(
        self, asked: ChatRequest, choices: Sequence[Choice], events: asyncio.Queue[Any], head: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        def chunk(number: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
            one = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return {**head, "choices": [one]}

        for number in range(len(choices)):
            yield chunk(number, {"role": "assistant", "content": ""})
        async with contextlib.aclosing(self.written(choices, events)) as written:
            async for number, new, drawn in written:
                logprobs = {"content": [self.place(drawn)]} if asked.logprobs else None
                if new or logprobs:
                    yield chunk(number, {"content": new}, logprobs)
                if choices[number].finish:
                    yield chunk(number, {}, finish=choices[number].finish)
        if asked.stream_options and asked.stream_options.include_usage:
            count = sum(len(one.drawn) for one in choices)
            yield {**head, "choices": [], "usage": usage_of(len(choices[0].job.prompt), count)}

    # -- completions ---------------------------------------------------------------------------------------------------

    async def complete(self, asked: CompletionRequest, request: Request) -> Response:
        texts = asked.prompts
        self.check(asked, len(texts) * asked.choices)
        if asked.stream and asked.echo:
            raise ApiError(400, "echo and stream do not go together; ask for one of them", param="echo")
        if not asked.echo and asked.max_tokens == 0:
            raise ApiError(400, "max_tokens: 0 writes nothing; set echo to have the prompt scored", param="max_tokens")
        prompts = [self.ids_of(text) for text in texts]
        wanted = COMPLETION_TOKENS if asked.max_tokens is None else asked.max_tokens
        lengths = [self.room(prompt, wanted) for prompt in prompts]
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        events: asyncio.Queue[Any] = asyncio.Queue()
        places = [(i, j) for i in range(len(prompts)) for j in range(asked.choices)]
        choices = [
            self.choice(asked, events, number, prompts[i], lengths[i], derive_seed(seed, "completion", i, j), asked.logprobs or 0)
            for number, (i, j) in enumerate(places)
        ]  # fmt: skip
        head = self.head("cmpl", "text_completion")
        if asked.stream:
            return sse(self.text_chunks(asked, choices, events, head))
        if wanted:
            await until_gone(request, drain(self.written(choices, events)))
        scored = await self.scored(asked, prompts) if asked.echo and asked.logprobs is not None else {}
        body = []
        for number, ((i, _), one) in enumerate(zip(places, choices, strict=True)):
            before = self.text_of(texts[i], prompts[i]) if asked.echo else ""
            body.append(
                {
                    "index": number,
                    "text": before + one.writer.text,
                    "logprobs": self.columns(one, prompts[i], scored.get(i)) if asked.logprobs is not None else None,
                    "finish_reason": one.finish or "length",
                }
            )
        usage = usage_of(sum(map(len, prompts)), sum(len(one.drawn) for one in choices))
        return JSONResponse({**head, "choices": body, "usage": usage})

    async def text_chunks(
        self, asked: CompletionRequest, choices: Sequence[Choice], events: asyncio.Queue[Any], head: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        begin = [0] * len(choices)
        async with contextlib.aclosing(self.written(choices, events)) as written:
            async for number, new, drawn in written:
                logprobs = None
                if asked.logprobs is not None:
                    token = token_text(self.tokenizer, drawn.id)
                    tops = dict([(token, drawn.logprob), *reversed(self.named(drawn.likeliest))])
                    logprobs = columns([token], [drawn.logprob], [tops], begin[number])
                    begin[number] += len(token)
                one = {"index": number, "text": new, "logprobs": logprobs, "finish_reason": choices[number].finish}
                yield {**head, "choices": [one]}
        if asked.stream_options and asked.stream_options.include_usage:
            read = sum(len(one.job.prompt) for one in choices[:: asked.choices])
            yield {**head, "choices": [], "usage": usage_of(read, sum(len(one.drawn) for one in choices))}

    async def scored(self, asked: CompletionRequest, prompts: Sequence[list[int]]) -> dict[int, Scored]:
        """The prompts' own tokens under the model, by number."""
        events: asyncio.Queue[Any] = asyncio.Queue()
        jobs = [
            self.choice(asked, events, number, prompt, 0, 0, asked.logprobs or 0).job for number, prompt in enumerate(prompts)
        ]
        self.engine.submit(jobs)
        found: dict[int, Scored] = {}
        while len(found) < len(prompts):
            number, event = await events.get()
            if isinstance(event, Broken):
                raise ApiError(500, f"the model failed: {event.words}")
            found[number] = event
        return found

    def columns(self, one: Choice, prompt: Sequence[int], scored: Scored | None) -> dict[str, Any]:
        ids = [drawn.id for drawn in one.drawn]
        logprobs: list[float | None] = [drawn.logprob for drawn in one.drawn]
        likeliest: list[Likeliest] = [drawn.likeliest for drawn in one.drawn]
        if scored is not None:
            ids, logprobs = [*prompt, *ids], [None, *scored.logprobs, *logprobs]
            likeliest = [(), *scored.likeliest, *likeliest]
        pieces = Pieces(self.tokenizer)
        texts = [pieces.add(token) for token in ids]
        # The token itself is always among the alternatives, whether it is one of the likeliest or not.
        tops = [
            None if logprob is None else dict([(token_text(self.tokenizer, token), logprob), *reversed(self.named(own))])
            for token, logprob, own in zip(ids, logprobs, likeliest, strict=True)
        ]
        return columns(texts, logprobs, tops, 0)

    # -- tokens --------------------------------------------------------------------------------------------------------

    def ids_of(self, prompt: str | list[int]) -> list[int]:
        ids = encode_text(self.tokenizer, prompt) if isinstance(prompt, str) else prompt
        if not ids:
            raise ApiError(400, "the prompt is empty", param="prompt")
        if max(ids) >= self.vocabulary:
            raise ApiError(400, f"{max(ids)} is no token of this model; it has {self.vocabulary}", param="prompt")
        return ids

    def text_of(self, prompt: str | list[int], ids: Sequence[int]) -> str:
        if isinstance(prompt, str):
            return prompt
        pieces = Pieces(self.tokenizer)
        return "".join(pieces.add(token) for token in ids) + pieces.rest()

    def place(self, drawn: Drawn) -> dict[str, Any]:
        return place(token_text(self.tokenizer, drawn.id), drawn.logprob, self.named(drawn.likeliest))

    def named(self, likeliest: Likeliest) -> list[tuple[str, float]]:
        return [(token_text(self.tokenizer, token), logprob) for token, logprob in likeliest]

    def head(self, prefix: str, kind: str) -> dict[str, Any]:
        return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": self.name,
                "system_fingerprint": self.fingerprint or None}  # fmt: skip


async def drain(events: AsyncIterator[Any]) -> None:
    async for _ in events:
        pass


async def until_gone(request: Request, work: Any) -> None:
    """Await work; give it up where the client goes away, so that nothing is written for nobody."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ApiError(499, "the client went away")
        doing.result()
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


def sse(chunks: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """Server-sent events, closed by [DONE]. An error in the middle is an event of its own."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for chunk in chunks:
                yield f"data: {json.dumps(chunk)}\n\n"
        except ApiError as error:
            yield f"data: {json.dumps(error.body)}\n\n"
            return
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


def make_app(serving: Serving, *, key: str | None = None, hosts: Sequence[str] | None = None) -> FastAPI:
    """The application. ``key``: asked of every request; ``hosts``: names that the server answers to, None for all."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        serving.engine.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Guard, key=key, hosts=hosts)
    card = {"id": serving.name, "object": "model", "created": serving.created, "owned_by": "charter"}

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        headers = {"retry-after": "1"} if error.status == 429 else None
        return JSONResponse(error.body, error.status, headers)

    @app.exception_handler(HTTPException)
    async def no_such_place(request: Request, error: HTTPException) -> JSONResponse:
        words = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(ApiError(error.status_code, words).body, error.status_code)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != serving.name:
            raise ApiError(404, f"the model {name!r} is not served here; {serving.name!r} is", param="model")
        return card

    def post(path: str, kind: type[Any], answer: Callable[[Any, Request], Any]) -> None:
        async def asked(request: Request) -> Response:
            found: Response = await answer(read_request(await request.body(), kind), request)
            return found

        app.post(path, response_model=None)(asked)

    post("/v1/chat/completions", ChatRequest, serving.chat)
    post("/v1/completions", CompletionRequest, serving.complete)
    return app
