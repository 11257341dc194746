"""`charter serve`: load a model, open a port, answer until interrupted."""

from __future__ import annotations

import errno
import socket
import sys
from pathlib import Path

from charter.endpoints.client import read_key
from charter.errors import InputError
from charter.measuring.models import load_writer
from charter.models.load import STAGE_OF, model_of_run
from charter.models.marks import refuse_flipped
from charter.recipe.source import locate
from charter.run.hashes import file_hash

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


def model_place(where: str, model: str | None) -> tuple[str, str]:
    """Folder (or hub name) of the model to serve, and a name for it. InputError where a run lacks the model."""
    folder = locate(where, Path.cwd())
    run = Path(folder)
    is_run = run.is_dir() and not (run / "config.json").exists() and ((run / "report.json").exists() or any(
        (run / stage).is_dir() for stage in STAGE_OF.values()))  # fmt: skip
    if is_run:
        chosen = model or "policy"
        return model_of_run(run, chosen), f"{run.name}-{chosen}"
    if model is not None:
        raise InputError(
            f"--model {model!r} chooses among the models of a run, and this is not a run; leave --model out", file=where
        )
    return folder, run.name or folder


def serve_model(
    where: str, model: str | None, *, name: str | None, port: int, public: bool, api_key_env: str | None, max_rows: int,
    understood: bool = False,
) -> None:  # fmt: skip
    """Answer until interrupted. InputError where the model, the port, the key or a package is missing."""
    try:
        import uvicorn

        from charter.serving.app import Serving, make_app
        from charter.web.server import Server
    except ImportError as error:
        raise InputError(
            f"serving needs the package {error.name}, which is missing; install it with: pip install 'charter-align[web]'"
        ) from None
    from charter.serving.engine import Engine

    key = read_key(api_key_env, "--api-key-env") if api_key_env else None
    folder, default_name = model_place(where, model)
    refuse_flipped(folder, understood)
    with open_port("0.0.0.0" if public else LOOPBACK[0], port) as listening:
        trunk = load_writer(folder, "float32")
        fingerprint = file_hash(Path(folder)) if Path(folder).exists() else ""
        serving = Serving(Engine(trunk, max_rows=max_rows), name or default_name, fingerprint)
        app = make_app(serving, key=key, hosts=None if public or key else LOOPBACK)
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=3)
        if public and key is None:
            print("everybody who reaches this machine can use the model; require a key with --api-key-env", file=sys.stderr)
        print(f"{serving.name}: http://{'0.0.0.0' if public else LOOPBACK[0]}:{listening.getsockname()[1]}/v1", flush=True)
        try:
            Server(config).run(sockets=[listening])
        except KeyboardInterrupt:  # the usual end
            return


def open_port(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free port. InputError where the port is taken or forbidden."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # a client that reads the address and connects before the server runs waits, and is not refused
    except OSError as error:
        listening.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise InputError(f"port {port} is taken or forbidden; choose another port", field="--port") from None
    return listening
