"""What every page of the label site shares: the project, its store, the visitor, and the templates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from fastapi import Request
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Scope, Send

from charter.records import Direction, SetKind
from charter.votes.judgments import DECIDED, deciding
from charter.web import tables as t
from charter.web import words
from charter.web.access import (
    COOKIE,
    LABELS,
    LEADS,
    WATCHES,
    Access,
    RateLimit,
    RequestRefused,
    Role,
    Visitor,
    check_form_token,
    check_origin,
)
from charter.web.answers import NOTCHES, letter
from charter.web.candidates import Candidates
from charter.web.guard import Guard, TurnedAway
from charter.web.lead.retrain import Retrain
from charter.web.mirror import Mirror
from charter.web.project import Project, text_hash
from charter.web.store import Store
from charter.web.texts import HEAD, LONG, rendered, shown, with_codes

if TYPE_CHECKING:
    from charter.models.sampling.sampler import Sampler

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
ACTIVE_S = 15 * 60  # who answered in this time is at work
PAUSE_S = 10 * 60  # so long without an answer is a break


class Site:
    """One project while its page is open. ``clock`` gives seconds since 1970; a test may bring its own. Templates are taken from
    the first of ``packages`` that has them."""

    packages: tuple[str, ...] = ("charter.web",)

    def __init__(
        self, project: Project, store: Store, mirror: Mirror, samplers: Sequence[Sampler] = (), *, public: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.project, self.settings, self.store, self.mirror = project, project.settings, store, mirror
        self.public, self.clock = public, clock
        self.access = Access(store)
        self.limit = RateLimit(per_second=20, burst=60)  # of a session
        self.door = RateLimit(per_second=2, burst=200)  # of an address without a session
        self.generation = RateLimit(per_second=0.5, burst=6)  # of a session, for live answers of a model
        self.candidates = Candidates(samplers, self.settings.redteam, self.settings.seed)
        self.retrain = Retrain(project.folder, self.settings.retrain)
        sets = project.items.sets.values()  # as the files are now: a quiz that was taken out asks nobody
        self.lessons = {role: [each for each in sets if each.role == role] for role in ("practice", "quiz")}
        self.cached: dict[str, tuple[float, Any]] = {}
        self.templates = Environment(
            loader=ChoiceLoader([PackageLoader(name) for name in self.packages]), autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self.templates.filters |= {
            "shown": shown, "rendered": rendered, "with_codes": with_codes, "letter": letter, "duration": readable_time,
            "deciding": deciding,
        }  # fmt: skip
        self.templates.globals |= {
            "settings": self.settings, "LONG": LONG, "HEAD": HEAD, "NOTCHES": NOTCHES, "words": words,
            "principles": self.project.keyed_principles, "DECIDED": DECIDED,
            "WATCHES": WATCHES, "LEADS": LEADS, "LABELS": LABELS,
        }  # fmt: skip

    def instructions(self) -> tuple[str, str]:
        """(hash, text) of the instructions as they stand now; a new version is remembered with its text."""
        try:
            stamp = self.project.instructions_file.stat().st_mtime_ns
        except OSError:
            stamp = 0
        known = self.cached.get("instructions")
        if known is not None and known[0] == stamp:
            return known[1]  # type: ignore[no-any-return]
        text = self.project.instructions()
        key = text_hash(text)
        with self.store.write() as db:
            if db.scalar(sa.select(t.instructions.c.hash).where(t.instructions.c.hash == key)) is None:
                db.execute(t.instructions.insert().values(hash=key, text=text, created=self.clock()))
        self.cached["instructions"] = (stamp, (key, text))
        return key, text

    def keep(self, name: str, seconds: float, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, made anew when it is older than so many seconds."""
        now = time.monotonic()
        entry = self.cached.get(name)
        if entry is None or now - entry[0] >= seconds:
            if len(self.cached) > 5000:
                self.cached = {"instructions": self.cached["instructions"]} if "instructions" in self.cached else {}
            entry = self.cached[name] = (now, make())
        return entry[1]

    def progress(self) -> dict[str, Any]:
        """Of the project: votes ``done`` of ``total``, people at work, and seconds to go at the median pace."""
        return self.keep("progress", 2.0, self._progress)  # type: ignore[no-any-return]

    def _progress(self) -> dict[str, Any]:
        with self.store.read() as db:
            rows = db.execute(
                sa.select(t.slots.c.state, sa.func.count())
                .where(t.slots.c.role == "work", ~t.slots.c.extra)
                .group_by(t.slots.c.state)
            ).all()
            recent = db.execute(
                sa.select(t.judgments.c.rater_id, t.judgments.c.seconds, t.judgments.c.created)
                .where(t.judgments.c.action == "vote")
                .order_by(t.judgments.c.seq.desc())
                .limit(200)
            ).all()
            pairs, ties = db.execute(
                sa.select(sa.func.coalesce(sa.func.sum(t.judgments.c.n_pairs), 0),
                          sa.func.coalesce(sa.func.sum(t.judgments.c.n_ties), 0)).where(t.judgments.c.current)
            ).one()  # fmt: skip
        counts = {row[0]: row[1] for row in rows}
        done, left = counts.get("done", 0), counts.get("open", 0)
        now = self.clock()
        people = {row.rater_id for row in recent if now - row.created < ACTIVE_S}
        seconds = [row.seconds for row in recent if row.seconds]
        median = statistics.median(seconds) if seconds else None
        return {
            "done": done, "total": done + left, "people": len(people), "median_s": median,
            "left_s": None if median is None or not left else median * left / max(1, len(people)),
            "tie_share": ties / pairs if pairs else None,
        }  # fmt: skip

    def own_progress(self, rater_id: str) -> dict[str, Any]:
        """Of one person, as the store has it now: answers given, median seconds, share of ties, minutes since the last break."""
        with self.store.read() as db:
            votes, pairs, ties = OWN_SUMS.first(db, me=rater_id)
            recent = OWN_RECENT.run(db, me=rater_id).fetchall()
        seconds = [row[1] for row in recent[:50] if row[1]]
        start = end = self.clock()
        for created, _ in recent:
            if start - created > PAUSE_S:
                break
            start = created
        return {
            "votes": votes, "median_s": statistics.median(seconds) if seconds else None,
            "tie_share": ties / pairs if pairs else None, "minutes": (end - start) / 60,
        }  # fmt: skip

    def changed(self) -> None:
        """A vote, a skip or an undo was stored: the files follow, and the counters are read anew."""
        self.mirror.wake()
        self.cached.pop("progress", None)

    def question(self, kind: SetKind, direction: Direction) -> str:
        """The line above the answers."""
        if self.settings.question is None and kind == "pair" and not self.settings.strength:
            return words.QUESTIONS_WITHOUT_STRENGTH[direction]
        return self.settings.question or words.QUESTIONS[kind, direction]

    def warnings(self, tags: Iterable[str]) -> list[str]:
        """The content warnings of these tags."""
        return [self.settings.warnings[tag] for tag in tags if tag in self.settings.warnings]

    def page(self, name: str, visitor: Visitor | None, *, status: int = 200, **values: Any) -> HTMLResponse:
        html = self.templates.get_template(name).render(visitor=visitor, **values)
        return HTMLResponse(html, status_code=status)


ME = sa.bindparam("me", type_=sa.String)
OWN_SUMS = t.Query(
    sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(t.judgments.c.n_pairs), 0),
              sa.func.coalesce(sa.func.sum(t.judgments.c.n_ties), 0))
    .where(t.judgments.c.rater_id == ME, t.judgments.c.current, t.judgments.c.action == "vote")
)  # fmt: skip
OWN_RECENT = t.Query(
    sa.select(t.judgments.c.created, t.judgments.c.seconds)
    .where(t.judgments.c.rater_id == ME)
    .order_by(t.judgments.c.seq.desc())
    .limit(2000)  # more than a person gives without a break
)


def readable_time(seconds: float | None) -> str:
    """A time for people: `40 s`, `12 min`, `3.5 h`."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def site_of(request: Request) -> Site:
    return request.app.state.site  # type: ignore[no-any-return]


def to(path: str) -> Response:
    """Go on to another page after a form."""
    return RedirectResponse(path, status_code=303)


async def read_form(request: Request) -> dict[str, str]:
    """The text fields of a form, one value each; files are ignored."""
    form = await request.form(max_fields=200, max_files=0)
    return {key: value for key, value in form.items() if isinstance(value, str)}


def allow(roles: frozenset[Role]) -> Callable[[Request], Awaitable[Visitor]]:
    """The check that stands before every page but the door: a session, of one of these roles, and for a form that it was
    sent from a page of this session. The fields of the form are then in ``request.state.form``."""

    async def check(request: Request) -> Visitor:
        site = site_of(request)
        if request.method == "POST":
            check_origin(request.headers)
            request.state.form = await read_form(request)  # a refusal shows what was written
        session = request.cookies.get(COOKIE)
        visitor = site.access.visitor(session, site.clock()) if session else None
        if visitor is None:
            site.door.check(request.client.host if request.client else "")
            raise RequestRefused(401, words.REFUSALS["signed out"])
        request.state.visitor = visitor
        site.limit.check(visitor.session)
        if visitor.role not in roles:
            raise RequestRefused(403, words.REFUSALS["role"].format(role=visitor.role))
        if request.method == "POST":
            check_form_token(visitor, request.state.form.pop("form_token", ""))
        return visitor

    check.roles = roles  # type: ignore[attr-defined]  # read by the test that goes through the route table
    return check


class PageGuard(Guard):
    """The guard of the label page, with headers that keep a page to itself."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        public = {site.public.rpartition(":")[0] or site.public, site.public} if site.public else set()
        super().__init__(app, hosts={"127.0.0.1", "localhost", "[::1]", *public})

    def refusal(self, error: TurnedAway) -> ASGIApp:
        return PlainTextResponse(str(error), error.status, {"connection": "close"})

    def sender(self, scope: Scope, send: Send) -> Send:
        headers = HEADERS | ({} if scope["path"].startswith("/static/") else {"cache-control": "no-store"})

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {
                    key.lower() for key, _ in message["headers"]
                }  # a page that is shown in a frame has a policy of its own
                added = [(key.encode(), value.encode()) for key, value in headers.items() if key.encode() not in present]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        return with_headers
