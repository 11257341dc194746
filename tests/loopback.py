"""Real servers on loopback for the tests: a model of Charter's, a proxy that injects faults, and a server with canned answers."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import uvicorn

from charter.models.trunk import load_trunk
from charter.serving.app import Serving, make_app
from charter.serving.engine import Engine
from charter.serving.serve import LOOPBACK, open_port


@contextlib.contextmanager
def model_server(folder: Path | str, *, key: str | None = None, name: str = "tiny", **engine: int) -> Iterator[Any]:
    """`charter serve` in a thread: yields the Serving, its address in ``url``."""
    serving = Serving(Engine(load_trunk(str(folder)), **engine), name)
    with open_port("127.0.0.1", 0) as listening:
        listening.listen()
        serving.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        config = uvicorn.Config(make_app(serving, key=key, hosts=LOOPBACK), log_level="error", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield serving
        finally:
            server.should_exit = True
            thread.join()


class Handler(BaseHTTPRequestHandler):
    """Hands every request to ``server.answer``."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.answer(self, body)

    def reply(self, status: int, body: bytes, *, claim: int | None = None, **headers: str) -> None:
        """An answer; ``claim`` is a content length that is not that of the body."""
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body) if claim is None else claim))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def until_client_leaves(self) -> None:
        with contextlib.suppress(OSError):
            while self.connection.recv(1024):
                pass
        self.close_connection = True

    def reset(self) -> None:
        """Close the connection with a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Requests are seen one by one under ``lock``; ``seen`` holds their bodies, ``headers`` their headers."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Server, Handler, bytes], None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.lock, self.seen, self.headers = threading.Lock(), [], []
        self.most = self.now = 0
        self.work = answer

    def answer(self, handler: Handler, body: bytes) -> None:
        with self.lock:
            self.seen.append(json.loads(body))
            self.headers.append(dict(handler.headers))
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            self.work(self, handler, body)
        finally:
            with self.lock:
                self.now -= 1


@contextlib.contextmanager
def serving(answer: Callable[[Server, Handler, bytes], None]) -> Iterator[Server]:
    with Server(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def chat_answer(text: str, *, logprobs: Sequence[tuple[str, float]] = (), tokens: tuple[int, int] = (10, 1), **changes: Any):
    """The body of a chat answer."""
    top = [{"token": token, "logprob": logprob} for token, logprob in logprobs]
    place = {"token": text, "logprob": -0.1, "top_logprobs": top}
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop",
              "logprobs": {"content": [place]} if top else None, **changes}  # fmt: skip
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return json.dumps({"model": "canned", "choices": [choice], "usage": usage}).encode()


def canned(*texts: str, **settings: Any) -> Callable[[Server, Handler, bytes], None]:
    """A server that says the texts in turn, the last one for ever."""

    def answer(server: Server, handler: Handler, _: bytes) -> None:
        handler.reply(200, chat_answer(texts[min(len(server.seen), len(texts)) - 1], **settings))

    return answer


FAULTS = ("500", "429", "reset", "half-json", "half-body", "html", "slow", "503", "fine")


class Faults:
    """A proxy in front of a server. The first try of each request meets the fault that the hash of its body names; the second
    goes through. ``forwarded`` counts what reached the server and came back whole."""

    def __init__(self, url: str, faults: Sequence[str] = FAULTS) -> None:
        self.address = url.removeprefix("http://").partition("/")[0]
        self.faults = faults
        self.tries: dict[str, int] = {}
        self.met: list[str] = []
        self.whole: list[str] = []

    def __call__(self, server: Server, handler: Handler, body: bytes) -> None:
        name = hashlib.sha256(body).hexdigest()
        with server.lock:
            tries = self.tries[name] = self.tries.get(name, 0) + 1
        fault = self.faults[int(name, 16) % len(self.faults)] if tries == 1 else "fine"
        self.met.append(fault)
        if fault in ("500", "503"):
            handler.reply(int(fault), b'{"error": {"message": "try again"}}')
        elif fault == "429":
            handler.reply(429, b'{"error": {"message": "slow down"}}', retry_after_ms="2")
        elif fault == "html":
            handler.reply(200, b"<html>The gateway is restarting.</html>")
        elif fault == "reset":
            handler.reset()
        else:
            status, answer = self.forward(handler, body)
            half = answer[: len(answer) // 2]
            if fault == "half-json":
                handler.reply(status, half)
            elif fault == "half-body":
                handler.reply(status, half, claim=len(answer))
                handler.close_connection = True
            elif fault == "slow":
                handler.reply(status, half, claim=len(answer))
                handler.until_client_leaves()
            else:
                self.whole.append(name)
                handler.reply(status, answer)

    def forward(self, handler: Handler, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.address)
        with contextlib.closing(connection):
            headers = {k: v for k, v in handler.headers.items() if k.lower() in ("content-type", "authorization")}
            connection.request("POST", handler.path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()


def kill_at(pid: Callable[[], int], number: int, inner: Callable[[Server, Handler, bytes], None]):
    """Answers as ``inner``, and kills the process with -9 in place of answer ``number``."""

    def answer(server: Server, handler: Handler, body: bytes) -> None:
        if len(server.seen) == number:
            os.kill(pid(), signal.SIGKILL)
        inner(server, handler, body)

    return answer
