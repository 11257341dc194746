"""The label site: its routes, and the pages of those who label.

The pages of labelers are answered in the event loop, one short transaction after another: with SQLite there is one writer at a
time anyway, and so requests are served in the order in which they came. Pages of the lead, which read everything, and the
answers of a model run in threads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

from charter.errors import InputError
from charter.records import LabelSet
from charter.web import red_team
from charter.web import tables as t
from charter.web.access import COOKIE, DAY, LABELS, ROLES, SESSION_DAYS, RequestRefused, StaleForm, Visitor, check_origin
from charter.web.answers import BadAnswer, agreement_with, read_answer, text_of
from charter.web.lead import pages as lead_pages
from charter.web.site import PageGuard, Site, allow, site_of, to
from charter.web.store import Handout, NotHandedOut, RaterAnswer, balanced_order
from charter.web.texts import instructions_html
from charter.web.words import LEFT, LEFT_ELSEWHERE, REFUSALS, SKIP_REASONS

Anyone = Annotated[Visitor, Depends(allow(frozenset(ROLES)))]
WRITTEN = ("comment", "text", "about", "tags")  # fields of a form that a person writes, beside edit:ID
Lesson = Literal["practice", "quiz"]
Labeler = Annotated[Visitor, Depends(allow(LABELS))]


Page = tuple[str, str, Callable[..., Any]]
"""Path, method, and the function that answers."""


def label_app(site: Site) -> FastAPI:
    """The label page as an ASGI application."""
    return site_app(site, (*ROUTES, *red_team.ROUTES, *lead_pages.ROUTES))


def site_app(site: Site, pages: Sequence[Page]) -> FastAPI:
    """A site as an ASGI application with the door and these pages. It has no schema page: that would load scripts from
    elsewhere."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.site = site
    app.add_middleware(PageGuard, site=site)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    for path, method, handler in (*DOOR, *pages):
        app.add_api_route(path, handler, methods=[method], include_in_schema=False, response_model=None)
    app.add_exception_handler(RequestRefused, refused)
    app.add_exception_handler(HTTPException, not_found)
    app.add_exception_handler(InputError, broken_file)
    return app


async def refused(request: Request, error: Exception) -> Response:
    """The words of the refusal, and what the form had that somebody wrote, so that it can be copied or sent once more."""
    assert isinstance(error, RequestRefused)
    visitor: Visitor | None = getattr(request.state, "visitor", None)
    form: dict[str, str] = getattr(request.state, "form", {})
    form.pop("form_token", None)
    written = [text for name, text in form.items() if name.startswith("edit:") or name in WRITTEN]
    return site_of(request).page(
        "refused.html", visitor, status=error.status, message=str(error), written=[text for text in written if text.strip()],
        form=form if isinstance(error, StaleForm) else {}, action=request.url.path,
    )  # fmt: skip


async def not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = REFUSALS["page"] if error.status_code in (404, 405) else str(error.detail)
    return notice(site_of(request), message, status=error.status_code)


async def broken_file(request: Request, error: Exception) -> Response:
    """A file of the project was made unusable while the page is open."""
    return notice(site_of(request), REFUSALS["broken"].format(words=error), status=500)


def notice(site: Site, message: str, visitor: Visitor | None = None, *, status: int = 200) -> Response:
    """A page with one message."""
    return site.page("refused.html", visitor, status=status, message=message, written=[], form={}, action="")


async def session(request: Request, visitor: Anyone) -> Response:
    """Who is signed in, for a page that was loaded earlier: its script continues only for the same person."""
    return JSONResponse({"rater_id": visitor.rater_id, "form_token": visitor.form_token})


async def home(request: Request, visitor: Anyone) -> Response:
    return to("/lead" if visitor.role in ("owner", "lead", "viewer") else "/label")


# -- the door ------------------------------------------------------------------------------------------------------------


async def join_page(request: Request, token: str) -> Response:
    site = site_of(request)
    site.door.check(request.client.host if request.client else "")
    invite = site.access.look_up(token, site.clock())
    return site.page("join.html", None, token=token, invite=invite)


async def join(request: Request, token: str) -> Response:
    site = site_of(request)
    site.door.check(request.client.host if request.client else "")
    check_origin(request.headers)
    cookie = site.access.join(token, site.clock())
    response = to("/")
    response.set_cookie(COOKIE, cookie, max_age=int(SESSION_DAYS * DAY), httponly=True, samesite="lax",
                        secure=site.public is not None)  # fmt: skip
    return response


async def leave(request: Request, visitor: Anyone) -> Response:
    site = site_of(request)
    site.access.leave(visitor)
    response = notice(site, LEFT)
    response.delete_cookie(COOKIE)
    return response


async def leave_elsewhere(request: Request, visitor: Anyone) -> Response:
    site = site_of(request)
    site.access.leave_elsewhere(visitor, site.clock())
    return notice(site, LEFT_ELSEWHERE, visitor)


# -- instructions, practice, quiz ----------------------------------------------------------------------------------------


def next_step(site: Site, visitor: Visitor) -> str | None:
    """The page that comes before any work: unread instructions, then practice, then the quiz; None where all is done."""
    if visitor.read != site.instructions()[0]:
        return "/instructions"
    if not any(site.lessons.values()):
        return None
    if next_lesson(site, visitor, "practice") is not None:
        return "/practice"
    return "/quiz" if site.lessons["quiz"] and visitor.quiz != "passed" else None


def next_lesson(site: Site, visitor: Visitor, role: Lesson) -> Handout | None:
    """The first set of practice or quiz that this person has not answered, without those that they do not want to see."""
    with site.store.read() as db:
        done = set(db.scalars(sa.select(t.lessons.c.set_id).where(t.lessons.c.rater_id == visitor.rater_id)))
    left = [
        lesson for lesson in site.lessons[role] if lesson.id not in done and not set(visitor.opt_out).intersection(lesson.tags)
    ]
    return lesson_handout(site, left[0]) if left else None


def quiz_result(site: Site, visitor: Visitor) -> str:
    """Note whether a person passed, of whom nothing of the quiz is left to ask; "" where they answered nothing of it."""
    answered = t.lessons.c.set_id.in_([lesson.id for lesson in site.lessons["quiz"]])
    with site.store.write() as db:
        scores = list(db.scalars(sa.select(t.lessons.c.score).where(answered, t.lessons.c.rater_id == visitor.rater_id)))
        if not scores:
            return ""
        result = "passed" if sum(scores) / len(scores) >= site.settings.quiz_pass_mark else "failed"
        db.execute(t.raters.update().where(t.raters.c.id == visitor.rater_id).values(quiz=result))
    return result


def lesson_handout(site: Site, lesson: LabelSet) -> Handout:
    order = balanced_order(lesson.response_ids, 0, site.settings.seed)
    return site.store.handout(lesson.id, order, site.clock(), {})


async def instructions_page(request: Request, visitor: Labeler) -> Response:
    site = site_of(request)
    key, text = site.instructions()
    return site.page(
        "instructions.html", visitor, html=instructions_html(text), hash=key, read=visitor.read == key,
        changed=bool(visitor.read) and visitor.read != key,
    )  # fmt: skip


async def instructions_read(request: Request, visitor: Labeler) -> Response:
    site, form = site_of(request), request.state.form
    tags = [tag for tag in site.settings.warnings if form.get(f"without:{tag}")]
    if form.get("hash") != site.instructions()[0]:  # changed while they were being read
        return to("/instructions")
    with site.store.write() as db:
        db.execute(
            t.raters.update().where(t.raters.c.id == visitor.rater_id)
            .values(read=form["hash"], opt_out=json.dumps(tags))
        )  # fmt: skip
        site.store.give_back(db, visitor.rater_id, tags)
    return to("/label")


async def lesson_page(request: Request, visitor: Labeler) -> Response:
    return show_lesson(site_of(request), visitor, lesson_of(request))


def lesson_of(request: Request) -> Lesson:
    return "practice" if request.url.path == "/practice" else "quiz"


def show_lesson(site: Site, visitor: Visitor, role: Lesson, problem: str = "", draft: dict[str, str] | None = None) -> Response:
    handout = next_lesson(site, visitor, role)
    if handout is None:
        if role == "practice" or not site.lessons["quiz"]:
            return to("/label")
        if result := visitor.quiz or quiz_result(site, visitor):
            return site.page("quiz_result.html", visitor, passed=result == "passed")
        tags = sorted({tag for lesson in site.lessons["quiz"] for tag in site.warnings(lesson.tags)})
        return site.page("left_out.html", visitor, tags="; ".join(tags), test=True)
    if draft is not None:
        handout = replace(handout, draft=draft)
    return show_set(site, visitor, handout, role, problem=problem)


async def lesson_answer(request: Request, visitor: Labeler) -> Response:
    site, role, form = site_of(request), lesson_of(request), request.state.form
    lesson = next((lesson for lesson in site.lessons[role] if lesson.id == form.get("set_id")), None)
    if lesson is None:
        return to(f"/{role}")
    handout = lesson_handout(site, lesson)
    try:
        answer = read_answer(form, handout, site.settings)
    except BadAnswer as error:
        return show_lesson(site, visitor, role, str(error), form)
    assert lesson.gold is not None
    score = agreement_with(answer.ranks, lesson.gold)
    mine = (t.lessons.c.set_id == lesson.id) & (t.lessons.c.rater_id == visitor.rater_id)
    with site.store.write() as db:
        if db.scalar(sa.select(t.lessons.c.score).where(mine)) is None:  # the first answer counts
            db.execute(t.lessons.insert().values(set_id=lesson.id, rater_id=visitor.rater_id, role=role, score=score,
                                                 answer=json.dumps(answer.ranks), created=site.clock()))  # fmt: skip
    if role == "quiz":
        return to("/quiz")
    return site.page("lesson.html", visitor, handout=handout, answer=answer.ranks, score=score,
                     why=site.project.items.why.get(lesson.id, ""))  # fmt: skip


# -- the work ------------------------------------------------------------------------------------------------------------


def show_set(
    site: Site, visitor: Visitor, handout: Handout, mode: Literal["work", "practice", "quiz"], *, problem: str = "",
    was: str = "", status: int = 200,
) -> Response:  # fmt: skip
    label_set = handout.set
    return site.page(
        "label.html", visitor, status=422 if problem else status, handout=handout, mode=mode, problem=problem, was=was,
        question=site.question(label_set.kind, label_set.direction), warnings=site.warnings(label_set.tags),
        progress=site.progress(), mine=site.own_progress(visitor.rater_id), draft=handout.draft,
    )  # fmt: skip


async def label_page(request: Request, visitor: Labeler) -> Response:
    site = site_of(request)
    if (step := next_step(site, visitor)) is not None:
        return to(step)
    if site.settings.kind == "redteam":
        return to("/redteam")
    was = request.query_params.get("was", "")
    handout = site.store.claim(visitor.rater_id, site.clock(), visitor.opt_out)
    if handout is None:
        return site.page("done.html", visitor, progress=site.progress(), mine=site.own_progress(visitor.rater_id), was=was)
    return show_set(site, visitor, handout, "work", was=was)


async def vote(request: Request, visitor: Labeler) -> Response:
    site, form = site_of(request), request.state.form
    handout = handed(site, visitor, form)
    try:
        answer = read_answer(form, handout, site.settings, site.project.principles)
    except BadAnswer as error:
        return show_set(site, visitor, replace(handout, draft=form), "work", problem=str(error))
    stored = site.store.vote(visitor.rater_id, handout, answer, site.clock(), instructions_hash=visitor.read)
    site.changed()
    return to(f"/label?was={stored}")


async def skip(request: Request, visitor: Labeler) -> Response:
    site, form = site_of(request), request.state.form
    handout = handed(site, visitor, form)
    reason = form.get("reason", "")
    try:
        if reason not in SKIP_REASONS:
            raise BadAnswer("skip reason")
        comment = text_of(form, "comment", 2000).strip()
    except BadAnswer as error:
        return show_set(site, visitor, replace(handout, draft=form), "work", problem=str(error))
    answer = RaterAnswer({}, flags={handout.set.id: ["skipped", reason]}, comment=comment)
    stored = site.store.vote(visitor.rater_id, handout, answer, site.clock(), instructions_hash=visitor.read, action="skip")
    site.changed()
    return to(f"/label?was={stored}")


def handed(site: Site, visitor: Visitor, form: dict[str, str]) -> Handout:
    try:
        return site.store.handed(visitor.rater_id, form.get("set_id", ""))
    except NotHandedOut:
        raise RequestRefused(403, REFUSALS["set"]) from None


async def undo(request: Request, visitor: Labeler) -> Response:
    site = site_of(request)
    undone = site.store.undo(visitor.rater_id, site.clock(), instructions_hash=visitor.read)
    site.changed()
    return to("/label?was=undone" if undone else "/label?was=nothing-to-undo")


async def draft(request: Request, visitor: Labeler) -> Response:
    site, form = site_of(request), request.state.form
    kept: dict[str, Any] = {key: value for key, value in form.items() if key != "set_id"}
    try:
        site.store.save_draft(visitor.rater_id, form.get("set_id", ""), kept)
    except NotHandedOut:
        raise RequestRefused(403, REFUSALS["set"]) from None
    return Response(status_code=204)


DOOR: tuple[Page, ...] = (
    ("/session", "GET", session),
    ("/join/{token}", "GET", join_page),
    ("/join/{token}", "POST", join),
    ("/leave", "POST", leave),
    ("/leave-elsewhere", "POST", leave_elsewhere),
)
ROUTES: tuple[Page, ...] = (
    ("/", "GET", home),
    ("/instructions", "GET", instructions_page),
    ("/instructions", "POST", instructions_read),
    ("/practice", "GET", lesson_page),
    ("/practice", "POST", lesson_answer),
    ("/quiz", "GET", lesson_page),
    ("/quiz", "POST", lesson_answer),
    ("/label", "GET", label_page),
    ("/vote", "POST", vote),
    ("/skip", "POST", skip),
    ("/undo", "POST", undo),
    ("/draft", "POST", draft),
)
