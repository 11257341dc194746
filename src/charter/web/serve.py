"""Open a project's page: bring the database up to date, bind, print the owner's link, serve until interrupted."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from charter.errors import InputError
from charter.web.label_app import label_app
from charter.web.mirror import Mirror
from charter.web.project import Project
from charter.web.red_team import write_dialogues
from charter.web.site import Site
from charter.web.store import Store
from charter.web.tables import open_database

if TYPE_CHECKING:
    from fastapi import FastAPI

    from charter.models.sampling.sampler import Sampler

S = TypeVar("S", bound=Site)
FAREWELL_S = 3  # for requests that are being answered when the server ends
OWNER_DAYS = 1.0  # of the printed link; every start prints a new one


@contextmanager
def open_site(
    project: Project,
    samplers: Sequence[Sampler] = (),
    *,
    public: str | None = None,
    kind: Callable[..., S] = Site,  # type: ignore[assignment]
) -> Iterator[S]:
    """The project with its database and files in step, let go of at the end. InputError where they do not fit together."""
    project.folder.mkdir(parents=True, exist_ok=True)
    engine = open_database(project.database)
    try:
        store = Store(engine, project.settings)
        mirror = Mirror(store, project.folder)
        try:
            store.take_in(project.items)
            mirror.start()
            site = kind(project, store, mirror, samplers, public=public)
            try:
                site.instructions()
                write_dialogues(site)
                yield site
            finally:
                site.retrain.close()
                site.candidates.close()
        finally:
            mirror.close()
    finally:
        engine.dispose()


def serve(
    project: Project, samplers: Sequence[Sampler], *, port: int, public: str | None, certificate: Path | None,
    private_key: Path | None, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Serve until SIGINT, SIGTERM or SIGHUP; ``say`` is called with the owner's link once the page answers there. At the end what
    runs beside the page is stopped, and the files are brought up to date.

    It binds to 127.0.0.1, or with ``public``, the name that people's browsers see, to every address. InputError where the
    port is taken.
    """
    with open_site(project, samplers, public=public, kind=Site) as site:
        answer_requests(site, label_app(site), port, say, certificate, private_key)


def answer_requests(
    site: Site, app: FastAPI, port: int, say: Callable[[str], None], certificate: Path | None = None,
    private_key: Path | None = None,
) -> None:  # fmt: skip
    """Serve a site that is open, as :func:`serve` does."""
    import uvicorn

    from charter.web.server import Server

    public = site.public
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(("0.0.0.0" if public else "127.0.0.1", port))
        except OSError as error:
            raise InputError(f"--port {port}: {error.strerror}; give another one, or 0 for any that is free") from None
        door.listen(128)
        token = site.access.owner_link(site.clock(), days=OWNER_DAYS)
        place = f"https://{public}" if public else f"http://127.0.0.1:{door.getsockname()[1]}"
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, lifespan="off",
            ssl_certfile=certificate, ssl_keyfile=private_key, timeout_graceful_shutdown=FAREWELL_S,
        )  # fmt: skip
        server = Server(config)

        def end(*_: object) -> None:
            site.candidates.closed = server.should_exit = True

        # uvicorn sends itself the signal once more when it has ended, and by default that would kill the process with work left
        # to do here. What nohup ignores stays ignored.
        ends = [
            number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN
        ]
        before = {number: signal.signal(number, end) for number in ends}
        try:
            say(f"{place}/join/{token}")
            server.run(sockets=[door])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
