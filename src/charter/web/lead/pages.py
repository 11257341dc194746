"""The pages of those who lead and watch: progress, raters, contested sets, instructions, people, the reward model."""

from __future__ import annotations

import csv
import difflib
import io
from collections import Counter
from typing import Annotated, Any, cast

import sqlalchemy as sa
from fastapi import Depends, Request
from starlette.responses import Response as WebResponse

from charter.errors import InputError
from charter.records import Judgment, LabelSet
from charter.run.files import write_text
from charter.web import tables as t
from charter.web.access import DAY, LEADS, MAY_INVITE, WATCHES, RequestRefused, Role, Visitor
from charter.web.answers import BadAnswer, text_of
from charter.web.lead.figures import Figures, as_rows, live_figures
from charter.web.lead.retrain import pairs_of_votes
from charter.web.site import Site, allow, site_of, to
from charter.web.texts import instructions_html
from charter.web.words import REFUSALS, SKIP_REASONS

Watcher = Annotated[Visitor, Depends(allow(WATCHES))]
Lead = Annotated[Visitor, Depends(allow(LEADS))]
MAX_SHOWN = 50


def current_judgments(site: Site) -> list[Judgment]:
    """The judgments that nothing superseded, in the order in which they came."""
    with site.store.read() as db:
        rows = db.scalars(sa.select(t.judgments.c.record).where(t.judgments.c.current).order_by(t.judgments.c.seq))
        return [Judgment.model_validate_json(row) for row in rows]


def all_sets(site: Site) -> dict[str, LabelSet]:
    with site.store.read() as db:
        sets = [LabelSet.model_validate_json(row) for row in db.scalars(sa.select(t.sets.c.record))]
    return {label_set.id: label_set for label_set in sets}


def figures_of(site: Site) -> Figures:
    """The figures as of now; computed at most every five seconds, however many people look."""
    return cast("Figures", site.keep("figures", 5.0, lambda: live_figures(current_judgments(site), all_sets(site))))


def overview(request: Request, visitor: Watcher) -> WebResponse:
    site = site_of(request)
    with site.store.read() as db:
        versions = {row.id: row.read for row in db.execute(sa.select(t.raters.c.id, t.raters.c.read))}
    return site.page(
        "lead.html", visitor, progress=site.progress(), figures=figures_of(site), versions=versions,
        hash=site.instructions()[0], mirror_problem=str(site.mirror.failed or ""),
    )  # fmt: skip


def raters_csv(request: Request, visitor: Watcher) -> WebResponse:
    rows = as_rows(figures_of(site_of(request)))
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    headers = {"content-disposition": "attachment; filename=raters.csv"}
    return WebResponse(text.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def contested(request: Request, visitor: Watcher) -> WebResponse:
    site = site_of(request)
    figures = figures_of(site)
    shown = [
        (label_set, site.store.parts(label_set.id), votes, share) for label_set, votes, share in figures.contested[:MAX_SHOWN]
    ]
    skipped = [
        (site.store.parts(label_set.id)[1],
         Counter(SKIP_REASONS.get(j.flags.get(label_set.id, ["", ""])[-1], "no reason") for j in who),
         [j.comment for j in who if j.comment])
        for label_set, who in sorted(figures.skipped, key=lambda row: -len(row[1]))[:MAX_SHOWN]
    ]  # fmt: skip
    return site.page("contested.html", visitor, shown=shown, total=len(figures.contested), skipped=skipped)


# -- instructions --------------------------------------------------------------------------------------------------------


def versions_page(request: Request, visitor: Watcher) -> WebResponse:
    return show_versions(site_of(request), visitor)


def show_versions(site: Site, visitor: Visitor, problem: str = "", written: str | None = None) -> WebResponse:
    key, text = site.instructions()
    with site.store.read() as db:
        rows = db.execute(sa.select(t.instructions).order_by(t.instructions.c.created.desc())).all()
        readers = Counter(db.scalars(sa.select(t.raters.c.read)))
    figures = Counter(judgment.instructions_hash for judgment in current_judgments(site) if judgment.has_verdict)
    versions = []
    for row, older in zip(rows, [*rows[1:], None], strict=True):
        changes = [] if older is None else [
            line for line in difflib.unified_diff(older.text.splitlines(), row.text.splitlines(), lineterm="", n=1)
            if not line.startswith(("---", "+++"))
        ]  # fmt: skip
        versions.append({"hash": row.hash, "created": row.created, "readers": readers[row.hash], "votes": figures[row.hash],
                         "changes": changes})  # fmt: skip
    return site.page(
        "versions.html", visitor, status=422 if problem else 200, hash=key, text=text if written is None else written,
        html=instructions_html(text), versions=versions, problem=problem,
    )  # fmt: skip


def save_instructions(request: Request, visitor: Lead) -> WebResponse:
    site = site_of(request)
    try:
        text = text_of(request.state.form, "text", 100_000)
        if not text.strip():
            raise BadAnswer("instructions")
    except BadAnswer as error:
        return show_versions(site, visitor, str(error), request.state.form.get("text", ""))
    write_text(site.project.instructions_file, text.rstrip() + "\n")
    return to("/lead/instructions")


# -- people --------------------------------------------------------------------------------------------------------------


def people(request: Request, visitor: Lead) -> WebResponse:
    return show_people(site_of(request), visitor)


def show_people(site: Site, visitor: Visitor, link: str = "", who: str = "") -> WebResponse:
    with site.store.read() as db:
        rows = db.execute(
            sa.select(t.invites.c.id, t.invites.c.rater_id, t.invites.c.role, t.invites.c.created, t.invites.c.expires,
                      t.invites.c.revoked, t.raters.c.quiz)
            .join(t.raters, t.raters.c.id == t.invites.c.rater_id).order_by(t.invites.c.id)
        ).all()  # fmt: skip
        signed_in = Counter(db.scalars(sa.select(t.sessions.c.invite_id).where(t.sessions.c.expires > site.clock())))
    now = site.clock()
    last = {row.rater_id: row.id for row in rows}
    links = [
        {"id": row.id, "who": row.rater_id, "role": row.role, "sessions": signed_in[row.id], "quiz": row.quiz,
         "last": last[row.rater_id] == row.id,
         "state": "revoked" if row.revoked else "expired" if row.expires <= now else "open",
         "days": max(0.0, (row.expires - now) / DAY), "mine": may_manage(visitor, row.role)}
        for row in rows
    ]  # fmt: skip
    return site.page("people.html", visitor, links=links, link=link, who=who, roles=MAY_INVITE[visitor.role])


def may_manage(visitor: Visitor, role: str) -> bool:
    return role in MAY_INVITE.get(visitor.role, ())


def invite(request: Request, visitor: Lead) -> WebResponse:
    """Make a link and show it this once: the database keeps only its hash."""
    site, form = site_of(request), request.state.form
    role = form.get("role", "")
    if not may_manage(visitor, role):
        raise RequestRefused(403, REFUSALS["invite"].format(role=role[:20]))
    days = form.get("days", "14")
    if not (days.isascii() and days.isdigit() and len(days) < 4 and 1 <= int(days) <= 365):
        raise RequestRefused(422, REFUSALS["days"])
    token, who = site.access.invite(cast("Role", role), site.clock(), days=float(days))
    return show_link(request, visitor, token, who)


def show_link(request: Request, visitor: Visitor, token: str, who: str) -> WebResponse:
    link = f"{str(request.base_url).rstrip('/')}/join/{token}"
    return show_people(site_of(request), visitor, link=link, who=who)


def renew(request: Request, visitor: Lead) -> WebResponse:
    """A new link for a person who lost theirs, or whose link ran out or was revoked."""
    site, who = site_of(request), request.state.form.get("who", "")
    with site.store.read() as db:
        roles = set(db.scalars(sa.select(t.invites.c.role).where(t.invites.c.rater_id == who)))
    if not roles or not all(may_manage(visitor, role) for role in roles):
        raise RequestRefused(403, REFUSALS["renew"])
    return show_link(request, visitor, site.access.renew(who, site.clock()), who)


def revoke(request: Request, visitor: Lead) -> WebResponse:
    site, key = site_of(request), request.state.form.get("id", "")
    is_id = key.isdecimal() and len(key) < 16  # a longer one fits no database
    with site.store.read() as db:
        role = db.scalar(sa.select(t.invites.c.role).where(t.invites.c.id == int(key))) if is_id else None
    if role is None or not may_manage(visitor, role):
        raise RequestRefused(403, REFUSALS["revoke"])
    site.access.revoke(int(key))
    return to("/lead/people")


def quiz_again(request: Request, visitor: Lead) -> WebResponse:
    """Let a person take the quiz once more."""
    site, who = site_of(request), request.state.form.get("who", "")
    with site.store.write() as db:
        db.execute(t.lessons.delete().where(t.lessons.c.rater_id == who, t.lessons.c.role == "quiz"))
        db.execute(t.raters.update().where(t.raters.c.id == who, t.raters.c.quiz == "failed").values(quiz=""))
    return to("/lead/people")


# -- the reward model ----------------------------------------------------------------------------------------------------


def model_page(request: Request, visitor: Watcher) -> WebResponse:
    return show_model(site_of(request), visitor)


def show_model(site: Site, visitor: Visitor, problem: str = "") -> WebResponse:
    runs = site.retrain.runs()
    for run in runs:
        run["curve"] = curve(run["points"], run["ceiling"].get("agreement"))
    return site.page("model.html", visitor, status=422 if problem else 200, runs=runs, problem=problem,
                     running=site.retrain.running)  # fmt: skip


def train(request: Request, visitor: Lead) -> WebResponse:
    """Start a training on what is labelled so far."""
    site = site_of(request)
    figures = figures_of(site)
    repeats = [row.repeats for row in figures.raters]
    n_repeats = sum(count.n for count in repeats)
    people = figures.without_ties or figures.agreement
    ceiling = {"agreement": people and people.value, "agreement_n": people.n if people else 0,
               "consistency": sum(c.hits for c in repeats) / n_repeats if n_repeats else None,
               "consistency_n": n_repeats}  # fmt: skip
    site.mirror.flush()
    try:
        site.retrain.start(pairs_of_votes(site.project.folder / "judgments.jsonl"), ceiling)
    except InputError as error:
        return show_model(site, visitor, str(error))
    return to("/lead/model")


def curve(points: list[dict[str, Any]], ceiling: float | None) -> dict[str, Any] | None:
    """Places of the learning curve in a picture of 480 by 240; accuracy from .4 to 1, training pairs by their share."""
    if not points:
        return None
    most = points[-1]["n"]

    def y(value: float) -> float:
        return round(210 - (max(0.4, min(1.0, value)) - 0.4) / 0.6 * 190, 1)

    dots = [
        {"x": round(60 + 380 * point["n"] / most, 1), "y": y(point["accuracy"]), "n": point["n"],
         "low": y((point["ci"] or [point["accuracy"]] * 2)[0]), "high": y((point["ci"] or [point["accuracy"]] * 2)[1])}
        for point in points
    ]  # fmt: skip
    grid = [{"y": y(value), "label": f"{value:.1f}".lstrip("0")} for value in (0.4, 0.6, 0.8, 1.0)]
    return {"dots": dots, "grid": grid, "half": y(0.5), "ceiling": None if ceiling is None else y(ceiling)}


ROUTES = (
    ("/lead", "GET", overview),
    ("/lead/raters.csv", "GET", raters_csv),
    ("/lead/contested", "GET", contested),
    ("/lead/instructions", "GET", versions_page),
    ("/lead/instructions", "POST", save_instructions),
    ("/lead/people", "GET", people),
    ("/lead/invite", "POST", invite),
    ("/lead/renew", "POST", renew),
    ("/lead/revoke", "POST", revoke),
    ("/lead/quiz-again", "POST", quiz_again),
    ("/lead/model", "GET", model_page),
    ("/lead/train", "POST", train),
)
