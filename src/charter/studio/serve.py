"""Open the studio: its pages as one application, bound to this machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from charter.errors import InputError
from charter.studio import arena_pages, chat_pages, constitution_pages, run_pages, start_pages, tester_pages
from charter.studio.site import FOLDER, Studio
from charter.web.label_app import site_app
from charter.web.project import Items, LabelSettings, Project
from charter.web.serve import answer_requests, open_site


def studio_app(site: Studio) -> FastAPI:
    """The studio as an ASGI application."""
    rooms = (run_pages, chat_pages, arena_pages, tester_pages, constitution_pages, start_pages)
    app = site_app(site, [page for room in rooms for page in room.ROUTES])
    app.mount("/studio-static", StaticFiles(directory=Path(__file__).parent / "static"), name="studio-static")
    return app


def project_of(root: Path) -> Project:
    """The folder `studio` in which votes and sessions are kept. InputError where ``root`` is not a folder."""
    if not root.is_dir():
        raise InputError("no such folder; give the folder that has the runs", file=root)
    return Project(root.resolve() / FOLDER, LabelSettings(kind="redteam", title="Charter studio"), Items())


def serve_studio(root: Path, *, port: int, say: Callable[[str], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP, on 127.0.0.1 alone; ``say`` is called with the owner's link. InputError where the
    folder is missing or in use, or the port is taken."""
    with open_site(project_of(root), kind=partial(Studio, root=root.resolve())) as site:
        try:
            site.runs()  # reads the reports of all runs, so that the first page need not
            answer_requests(site, studio_app(site), port, say)
        finally:
            site.close()
