"""The pages of runs: all of them, one of them while it grows, its report, and two compared."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from charter.comparing.compare import compare_files
from charter.comparing.page import page_html
from charter.errors import InputError
from charter.studio.runs import RunWatch, locked_inodes
from charter.studio.site import LOOK_S, Studio, studio_of
from charter.web.access import ROLES, WATCHES, RequestRefused, Visitor
from charter.web.label_app import Page
from charter.web.site import allow, to
from charter.web.words import REFUSALS

Anyone = Annotated[Visitor, Depends(allow(frozenset(ROLES)))]
Watcher = Annotated[Visitor, Depends(allow(WATCHES))]
PAPER = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'; sandbox allow-popups"
}
"""Of a report: it is shown in a frame of this site, runs no script, and reaches neither its cookies nor another address."""
FRAMING = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
}
"""Of the page around it."""
PING_EVERY = 15  # looks without news, after which a line is sent that nobody reads: it finds out who has left
PARTS = {"state": "run_state.html", "figures": "run_figures.html", "curves": "run_curves.html", "samples": "run_samples.html"}
LIST = {"list": "run_list.html"}


async def home(request: Request, visitor: Anyone) -> Response:
    return to("/runs")


def run_of(site: Studio, name: str) -> RunWatch:
    """The run of a name, which is one of those that were searched for: no other folder can be asked about."""
    watch = site.runs().get(name)
    if watch is None:
        raise RequestRefused(404, REFUSALS["run"])
    return watch


def open_run(site: Studio, name: str) -> RunWatch:
    """A run with the logs of its finished stages."""
    watch = run_of(site, name)
    if not watch.close:
        watch.close = True
        watch.look(locked_inodes())
    return watch


def runs_page(request: Request, visitor: Watcher) -> Response:
    site = studio_of(request)
    return site.page("runs.html", visitor, runs=site.runs())


def run_page(request: Request, visitor: Watcher, run: str) -> Response:
    site = studio_of(request)
    started = site.jobs.state(run) == "running"
    return site.page("run.html", visitor, run_name=run, started=started, **view_of(open_run(site, run)))


def view_of(watch: RunWatch) -> dict[str, Any]:
    return {"run": watch, "panels": watch.panels(), "samples": watch.samples()}


def runs_events(request: Request, visitor: Watcher) -> Response:
    site = studio_of(request)
    return events(site, lambda: fragments(site, LIST, {"runs": site.runs()}))


def run_events(request: Request, visitor: Watcher, run: str) -> Response:
    site = studio_of(request)
    open_run(site, run)
    return events(site, lambda: fragments(site, PARTS, {"run_name": run, **view_of(run_of(site, run))}))


def fragments(site: Studio, parts: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, str]:
    """The changing parts of a page as HTML, by the id of their element."""
    return {key: site.templates.get_template(name).render(values) for key, name in parts.items()}


def events(site: Studio, look: Callable[[], dict[str, str]]) -> Response:
    """Server-sent events: at most one a second, with the parts of the page that changed since the last one."""

    async def stream() -> AsyncIterator[str]:
        sent: dict[str, str] = {}
        quiet = 0
        while not site.candidates.closed:
            try:
                parts = await asyncio.to_thread(look)
            except RequestRefused:  # the folder was removed
                return
            news = {key: html for key, html in parts.items() if sent.get(key) != html}
            quiet = 0 if news else quiet + 1
            if news:
                sent |= news
                yield f"data: {json.dumps(news)}\n\n"
            elif quiet % PING_EVERY == 0:
                yield ": still here\n\n"
            await asyncio.sleep(LOOK_S)

    return StreamingResponse(stream(), media_type="text/event-stream")


def report_page(request: Request, visitor: Watcher, run: str) -> Response:
    """The report inside the studio, in a frame that can do nothing."""
    site = studio_of(request)
    if not (run_of(site, run).folder / "report.html").is_file():
        raise RequestRefused(404, REFUSALS["report"])
    return framed(site, visitor, f"Report of {run}", "/run/report/paper", {"run": run})


def framed(site: Studio, visitor: Visitor, title: str, paper: str, query: Mapping[str, str]) -> Response:
    response = site.page("framed.html", visitor, heading=title, paper=paper, query=query)
    response.headers.update(FRAMING)
    return response


def report_paper(request: Request, visitor: Watcher, run: str) -> Response:
    try:
        html = (run_of(studio_of(request), run).folder / "report.html").read_text(encoding="utf-8")
    except OSError:
        raise RequestRefused(404, REFUSALS["report"]) from None
    return HTMLResponse(html, headers=PAPER)


def compare_page(request: Request, visitor: Watcher, a: str = "", b: str = "") -> Response:
    """Two runs side by side, as `charter compare` compares them."""
    site = studio_of(request)
    runs = [name for name, watch in site.runs().items() if watch.report.get("metrics")]
    problem = ""
    if a or b:
        try:
            compared(site, a, b)
        except InputError as error:
            problem = str(error)
    response = site.page("compare.html", visitor, runs=runs, a=a, b=b, problem=problem, status=422 if problem else 200)
    response.headers.update(FRAMING)
    return response


def compared(site: Studio, a: str, b: str) -> str:
    if a == b:
        raise InputError("both are the same run; choose two")
    return page_html(compare_files([str(run_of(site, name).folder) for name in (a, b)]))


def compare_paper(request: Request, visitor: Watcher, a: str, b: str) -> Response:
    try:
        return HTMLResponse(compared(studio_of(request), a, b), headers=PAPER)
    except InputError as error:
        raise RequestRefused(422, str(error)) from None


ROUTES: tuple[Page, ...] = (
    ("/", "GET", home),
    ("/runs", "GET", runs_page),
    ("/runs/events", "GET", runs_events),
    ("/run", "GET", run_page),
    ("/run/events", "GET", run_events),
    ("/run/report", "GET", report_page),
    ("/run/report/paper", "GET", report_paper),
    ("/compare", "GET", compare_page),
    ("/compare/paper", "GET", compare_paper),
)
