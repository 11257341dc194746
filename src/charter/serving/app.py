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

from charter.errors import InputError
from charter.models.chat_template import encode_prompt, encode_text
from charter.models.sampling.generate import context_length
from charter.run.hashes import derive_seed
from charter.serving.engine import Broken, Drawn, Engine, Job, Likeliest, Scored
from charter.serving.guard import ApiGuard
from charter.serving.protocol import (
    MAX_ROWS,
    ApiError,
    ApiRequest,
    ChatRequest,
    CompletionRequest,
    columns,
    place,
    read_request,
    usage_of,
)
from charter.serving.text import Pieces, Writer, token_text

COMPLETION_TOKENS = 16  # the default of the protocol
UNLIMITED_TOKENS = 1024  # of a chat answer without a limit in the request or the model
MAX_WAITING = 1024  # rows; further requests are told to try again


@dataclass
class Choice:
    """A response in the making: tokens, text, and how it ended."""

    job: Job
    writer: Writer
    drawn: list[Drawn] = field(default_factory=list)
    finish: str | None = None


class Serving:
    """A model served under a name."""

    def __init__(self, engine: Engine, name: str, fingerprint: str = "") -> None:
        self.engine, self.name, self.fingerprint = engine, name, fingerprint
        self.tokenizer = engine.trunk.tokenizer
        self.limit = context_length(engine.trunk.model)
        self.vocabulary = int(engine.trunk.model.config.get_text_config().vocab_size)
        self.created = int(time.time())

    # -- requests -----------------------------------------------------------------------------------------------------

    def check(self, call: ApiRequest, rows: int) -> None:
        if call.model != self.name:
            raise ApiError(404, f"unknown model {call.model!r}; this server has {self.name!r}", param="model",
                           code="model_not_found")  # fmt: skip
        if rows > MAX_ROWS:
            raise ApiError(400, f"a request may have at most {MAX_ROWS} responses; lower n", param="n")
        if len(self.engine.waiting) + rows > MAX_WAITING:
            raise ApiError(429, "too many requests are waiting; try again", code="server_busy")

    def room(self, prompt: Sequence[int], wanted: int | None) -> int:
        """Most tokens of a response: ``wanted``, or all that fit. ApiError where they do not fit."""
        if self.limit is None:
            return UNLIMITED_TOKENS if wanted is None else wanted
        free, need = self.limit - len(prompt), 1 if wanted is None else wanted
        if free < need:
            raise ApiError(
                400, f"the context is {self.limit} tokens; the prompt has {len(prompt)} and the response needs {need}",
                code="context_length_exceeded",
            )  # fmt: skip
        return free if wanted is None else wanted

    def chat_choices(self, call: ChatRequest, events: asyncio.Queue[Any]) -> list[Choice]:
        """The responses to a conversation; with a seed the first equals the one of `charter chat` at that turn."""
        messages = [message.message() for message in call.messages]
        try:
            prompt = encode_prompt(self.tokenizer, messages)
        except InputError as error:  # the chat template refuses them
            raise ApiError(400, str(error), param="messages") from None
        length = self.room(prompt, call.length)
        turn = sum(message.role == "user" for message in messages)
        seed = secrets.randbits(63) if call.seed is None else call.seed
        seeds = [derive_seed(seed, "chat", turn, *([number] if number else [])) for number in range(call.choices)]
        top = call.top_logprobs or 0
        return [self.choice(call, events, number, prompt, length, seed, top) for number, seed in enumerate(seeds)]

    def choice(
        self, call: ApiRequest, events: asyncio.Queue[Any], number: int, prompt: Sequence[int], length: int, seed: int, top: int
    ) -> Choice:  # fmt: skip
        loop = asyncio.get_running_loop()

        def emit(event: Drawn | Scored | Broken) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server stops
                loop.call_soon_threadsafe(events.put_nowait, (number, event))

        job = Job(prompt, length, emit, seed=seed, temperature=call.heat, filters=call.filters, top=top)
        return Choice(job, Writer(self.tokenizer, call.stops))

    async def written(
        self, choices: Sequence[Choice], events: asyncio.Queue[Any]
    ) -> AsyncGenerator[tuple[int, str, Drawn], None]:
        """Run the choices; yield the number of the choice, its new text and the token, as they come. A listener that stops also
        stops the work."""
        try:
            self.engine.submit([choice.job for choice in choices])
            unfinished = len(choices)
            while unfinished:
                number, event = await events.get()
                if isinstance(event, Broken):
                    raise ApiError(500, f"the model failed: {event.words}")
                choice = choices[number]
                if choice.finish is not None:
                    continue
                choice.drawn.append(event)
                new = "" if event.finish == "stop" else choice.writer.add(event.id)
                if choice.writer.stopped:
                    choice.job.cancelled = True
                if choice.writer.stopped or event.finish:
                    choice.finish = "stop" if choice.writer.stopped else event.finish
                    new += choice.writer.finish()
                    unfinished -= 1
                yield number, new, event
        finally:
            for choice in choices:
                choice.job.cancelled = True

    # -- chat ----------------------------------------------------------------------------------------------------------

    async def chat(self, call: ChatRequest, request: Request) -> Response:
        self.check(call, call.choices)
        events: asyncio.Queue[Any] = asyncio.Queue()
        choices = self.chat_choices(call, events)
        read = len(choices[0].job.prompt)
        head = self.head("chatcmpl", "chat.completion")
        if call.stream:
            return sse(self.chat_chunks(call, choices, events, head | {"object": "chat.completion.chunk"}))
        await until_gone(request, drain(self.written(choices, events)))
        body = [
            {
                "index": number,
                "message": {"role": "assistant", "content": choice.writer.text, "refusal": None},
                "logprobs": {"content": [self.place(drawn) for drawn in choice.drawn]} if call.logprobs else None,
                "finish_reason": choice.finish,
            }
            for number, choice in enumerate(choices)
        ]
        written = sum(len(choice.drawn) for choice in choices)
        return JSONResponse({**head, "choices": body, "usage": usage_of(read, written)})

    async def chat_chunks(
        self, call: ChatRequest, choices: Sequence[Choice], events: asyncio.Queue[Any], head: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        def chunk(number: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
            return {**head, "choices": [{"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]}

        for number in range(len(choices)):
            yield chunk(number, {"role": "assistant", "content": ""})
        async with contextlib.aclosing(self.written(choices, events)) as written:
            async for number, new, drawn in written:
                logprobs = {"content": [self.place(drawn)]} if call.logprobs else None
                if new or logprobs:
                    yield chunk(number, {"content": new}, logprobs)
                if choices[number].finish:
                    yield chunk(number, {}, finish=choices[number].finish)
        if call.stream_options and call.stream_options.include_usage:
            count = sum(len(choice.drawn) for choice in choices)
            yield {**head, "choices": [], "usage": usage_of(len(choices[0].job.prompt), count)}

    # -- completions ---------------------------------------------------------------------------------------------------

    async def complete(self, call: CompletionRequest, request: Request) -> Response:
        texts = call.prompts
        self.check(call, len(texts) * call.choices)
        if call.stream and call.echo:
            raise ApiError(400, "echo cannot stream; set one of them", param="echo")
        if not call.echo and call.max_tokens == 0:
            raise ApiError(400, "max_tokens: 0 writes nothing; set echo to score the prompt", param="max_tokens")
        prompts = [self.ids_of(text) for text in texts]
        wanted = COMPLETION_TOKENS if call.max_tokens is None else call.max_tokens
        events: asyncio.Queue[Any] = asyncio.Queue()
        choices = self.text_choices(call, prompts, wanted, events)
        head = self.head("cmpl", "text_completion")
        if call.stream:
            return sse(self.text_chunks(call, choices, events, head))
        if wanted:
            await until_gone(request, drain(self.written(choices, events)))
        scored = await self.scored(call, prompts) if call.echo and call.logprobs is not None else {}
        owners = [i for i in range(len(prompts)) for _ in range(call.choices)]
        body = [
            {
                "index": number,
                "text": (self.text_of(texts[i], prompts[i]) if call.echo else "") + choice.writer.text,
                "logprobs": self.columns(choice, prompts[i], scored.get(i)) if call.logprobs is not None else None,
                "finish_reason": choice.finish or "length",
            }
            for number, (i, choice) in enumerate(zip(owners, choices, strict=True))
        ]
        usage = usage_of(sum(map(len, prompts)), sum(len(choice.drawn) for choice in choices))
        return JSONResponse({**head, "choices": body, "usage": usage})

    def text_choices(
        self, call: CompletionRequest, prompts: Sequence[list[int]], wanted: int, events: asyncio.Queue[Any]
    ) -> list[Choice]:
        """The responses to the prompts, those of a prompt side by side."""
        lengths = [self.room(prompt, wanted) for prompt in prompts]
        seed = secrets.randbits(63) if call.seed is None else call.seed
        places = [(i, j) for i in range(len(prompts)) for j in range(call.choices)]
        return [
            self.choice(call, events, number, prompts[i], lengths[i], derive_seed(seed, "completion", i, j), call.logprobs or 0)
            for number, (i, j) in enumerate(places)
        ]

    async def text_chunks(
        self, call: CompletionRequest, choices: Sequence[Choice], events: asyncio.Queue[Any], head: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        begin = [0] * len(choices)
        async with contextlib.aclosing(self.written(choices, events)) as written:
            async for number, new, drawn in written:
                logprobs = None
                if call.logprobs is not None:
                    token = token_text(self.tokenizer, drawn.id)
                    tops = dict([(token, drawn.logprob), *reversed(self.named(drawn.likeliest))])
                    logprobs = columns([token], [drawn.logprob], [tops], begin[number])
                    begin[number] += len(token)
                chunk = {"index": number, "text": new, "logprobs": logprobs, "finish_reason": choices[number].finish}
                yield {**head, "choices": [chunk]}
        if call.stream_options and call.stream_options.include_usage:
            read = sum(len(choice.job.prompt) for choice in choices[:: call.choices])
            yield {**head, "choices": [], "usage": usage_of(read, sum(len(choice.drawn) for choice in choices))}

    async def scored(self, call: CompletionRequest, prompts: Sequence[list[int]]) -> dict[int, Scored]:
        """The scores of the prompts' tokens under the model, by number."""
        events: asyncio.Queue[Any] = asyncio.Queue()
        jobs = [self.choice(call, events, number, prompt, 0, 0, call.logprobs or 0).job for number, prompt in enumerate(prompts)]
        self.engine.submit(jobs)
        scores: dict[int, Scored] = {}
        while len(scores) < len(prompts):
            number, event = await events.get()
            if isinstance(event, Broken):
                raise ApiError(500, f"the model failed: {event.words}")
            scores[number] = event
        return scores

    def columns(self, choice: Choice, prompt: Sequence[int], scored: Scored | None) -> dict[str, Any]:
        ids = [drawn.id for drawn in choice.drawn]
        logprobs: list[float | None] = [drawn.logprob for drawn in choice.drawn]
        likeliest: list[Likeliest] = [drawn.likeliest for drawn in choice.drawn]
        if scored is not None:
            ids, logprobs = [*prompt, *ids], [None, *scored.logprobs, *logprobs]
            likeliest = [(), *scored.likeliest, *likeliest]
        pieces = Pieces(self.tokenizer)
        texts = [pieces.add(token) for token in ids]
        # The token itself is always among the alternatives, also if it is not one of the likeliest.
        tops = [
            None if logprob is None else dict([(token_text(self.tokenizer, token), logprob), *reversed(self.named(alternatives))])
            for token, logprob, alternatives in zip(ids, logprobs, likeliest, strict=True)
        ]
        return columns(texts, logprobs, tops, 0)

    # -- tokens --------------------------------------------------------------------------------------------------------

    def ids_of(self, prompt: str | list[int]) -> list[int]:
        ids = encode_text(self.tokenizer, prompt) if isinstance(prompt, str) else prompt
        if not ids:
            raise ApiError(400, "the prompt is empty", param="prompt")
        if max(ids) >= self.vocabulary:
            raise ApiError(400, f"unknown token id {max(ids)}; the model has ids below {self.vocabulary}", param="prompt")
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
    """Await work; cancel it if the client disconnects."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ApiError(499, "the client disconnected")
        doing.result()
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


def sse(chunks: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """Server-sent events, closed by [DONE]. An error in the middle is a separate event."""

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
    """The application. ``key``: required of every request; ``hosts``: names that the server answers to, None for all."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        serving.engine.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(ApiGuard, key=key, hosts=hosts)
    card = {"id": serving.name, "object": "model", "created": serving.created, "owned_by": "charter"}

    @app.exception_handler(ApiError)
    async def on_error(_: Request, error: ApiError) -> JSONResponse:
        headers = {"retry-after": "1"} if error.status == 429 else None
        return JSONResponse(error.body, error.status, headers)

    @app.exception_handler(HTTPException)
    async def on_unknown_path(request: Request, error: HTTPException) -> JSONResponse:
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
            raise ApiError(404, f"unknown model {name!r}; this server has {serving.name!r}", param="model")
        return card

    def post(path: str, kind: type[Any], answer: Callable[[Any, Request], Any]) -> None:
        async def handle(request: Request) -> Response:
            response: Response = await answer(read_request(await request.body(), kind), request)
            return response

        app.post(path, response_model=None)(handle)

    post("/v1/chat/completions", ChatRequest, serving.chat)
    post("/v1/completions", CompletionRequest, serving.complete)
    return app
