"""Who may see what: invite links, sessions, roles, form tokens, rate limits.

A link contains a random token of 256 bits; the database keeps only its SHA-256. Opening the link and pressing the button on it
gives a session cookie; the session ends with its time or with the link it came from.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import sqlalchemy as sa

from charter.web import tables as t
from charter.web.store import Store
from charter.web.words import REFUSALS

Role = Literal["owner", "lead", "labeler", "viewer"]
ROLES: tuple[Role, ...] = ("owner", "lead", "labeler", "viewer")
LABELS: frozenset[Role] = frozenset({"owner", "lead", "labeler"})
WATCHES: frozenset[Role] = frozenset({"owner", "lead", "viewer"})
LEADS: frozenset[Role] = frozenset({"owner", "lead"})
MAY_INVITE: dict[Role, tuple[Role, ...]] = {"owner": ("labeler", "viewer", "lead"), "lead": ("labeler", "viewer")}

COOKIE = "charter_session"
SESSION_DAYS = 30.0
DAY = 86400.0

COLOURS = ["amber", "azure", "coral", "ivory", "jade", "lilac", "ochre", "olive", "pearl", "ruby", "sepia", "teal", "umber",
           "violet"]  # fmt: skip
ANIMALS = ["badger", "crane", "dolphin", "finch", "gecko", "heron", "ibis", "koala", "lynx", "marten", "newt", "otter", "plover",
           "raven", "stoat", "tapir", "wren"]  # fmt: skip


class RequestRefused(Exception):
    """The request is not allowed. ``status`` is its HTTP status, the words are shown to the person."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class StaleForm(RequestRefused):
    """The form is from an earlier session of this browser."""

    def __init__(self) -> None:
        super().__init__(403, REFUSALS["form"])


@dataclass(frozen=True)
class Visitor:
    """Who sent a request."""

    rater_id: str
    role: Role
    session: str
    """Hash of the session's token: names the session and opens nothing."""
    form_token: str
    read: str
    quiz: str
    opt_out: tuple[str, ...]


@dataclass(frozen=True)
class Link:
    """An invite link that opens."""

    id: int
    rater_id: str
    role: Role
    expires: float


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def pseudonym() -> str:
    """Such as `amber-heron-4f1c`: the end keeps two machines from giving the same name to two people."""
    return f"{secrets.choice(COLOURS)}-{secrets.choice(ANIMALS)}-{secrets.token_hex(2)}"


class Access:
    """Links and sessions of one project."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def invite(self, role: Role, now: float, *, days: float = 14.0, rater_id: str | None = None) -> tuple[str, str]:
        """A new link's token and the pseudonym of the person it is for."""
        token, who = secrets.token_urlsafe(32), rater_id or pseudonym()
        with self.store.write() as db:
            if db.scalar(sa.select(t.raters.c.id).where(t.raters.c.id == who)) is None:
                db.execute(t.raters.insert().values(id=who, created=now))
            db.execute(t.invites.insert().values(token_hash=token_hash(token), rater_id=who, role=role, created=now,
                                                 expires=now + DAY * days))  # fmt: skip
        return token, who

    def owner_link(self, now: float, *, days: float) -> str:
        """The token of a new link for the owner, who keeps one pseudonym however often the page is opened."""
        with self.store.read() as db:
            known = db.scalar(sa.select(t.invites.c.rater_id).where(t.invites.c.role == "owner").limit(1))
        return self.invite("owner", now, days=days, rater_id=known or f"owner-{secrets.token_hex(2)}")[0]

    def renew(self, rater_id: str, now: float) -> str:
        """The token of a new link for a person, in their role and for as long as their last one; what they had is revoked.

        KeyError where nobody goes by that name.
        """
        token, mine = secrets.token_urlsafe(32), t.invites.c.rater_id == rater_id
        with self.store.write() as db:
            db.execute(sa.select(t.raters.c.id).where(t.raters.c.id == rater_id).with_for_update())  # one after another
            last = db.execute(sa.select(t.invites).where(mine).order_by(t.invites.c.id.desc()).limit(1)).first()
            if last is None:
                raise KeyError(rater_id)
            db.execute(t.sessions.delete().where(t.sessions.c.invite_id.in_(sa.select(t.invites.c.id).where(mine))))
            db.execute(t.invites.update().where(mine).values(revoked=True))
            db.execute(t.invites.insert().values(token_hash=token_hash(token), rater_id=rater_id, role=last.role, created=now,
                                                 expires=now + last.expires - last.created))  # fmt: skip
        return token

    def revoke(self, invite_id: int) -> None:
        """The link and every session that came from it end now."""
        with self.store.write() as db:
            db.execute(t.invites.update().where(t.invites.c.id == invite_id).values(revoked=True))
            db.execute(t.sessions.delete().where(t.sessions.c.invite_id == invite_id))

    def look_up(self, token: str, now: float) -> Link:
        """The link of a token. RequestRefused where it is unknown, revoked or too old."""
        with self.store.read() as db:
            row = db.execute(
                sa.select(t.invites.c.id, t.invites.c.rater_id, t.invites.c.role, t.invites.c.expires, t.invites.c.revoked)
                .where(t.invites.c.token_hash == token_hash(token))
            ).first()  # fmt: skip
        if row is None or row.revoked or row.expires <= now:
            raise RequestRefused(403, REFUSALS["link"])
        return Link(row.id, row.rater_id, row.role, row.expires)

    def join(self, token: str, now: float) -> str:
        """The token of a new session, which ends with its link; the owner, whose link is for a day, stays in.

        RequestRefused as in :meth:`look_up`.
        """
        invite = self.look_up(token, now)
        until = now + DAY * SESSION_DAYS
        until = until if invite.role == "owner" else min(until, invite.expires)
        session = secrets.token_urlsafe(32)
        with self.store.write() as db:
            db.execute(t.sessions.delete().where(t.sessions.c.expires <= now))
            db.execute(t.sessions.insert().values(token_hash=token_hash(session), invite_id=invite.id,
                                                  form_token=secrets.token_urlsafe(32),
                                                  expires=until))  # fmt: skip
        return session

    def leave(self, visitor: Visitor) -> None:
        with self.store.write() as db:
            db.execute(t.sessions.delete().where(t.sessions.c.token_hash == visitor.session))

    def leave_elsewhere(self, visitor: Visitor, now: float) -> None:
        """End the other sessions of this person. The links of an owner end too, for every start prints a new one; the link
        of a labeler still works."""
        mine = t.invites.c.rater_id == visitor.rater_id
        with self.store.write() as db:
            others = t.sessions.c.invite_id.in_(sa.select(t.invites.c.id).where(mine))
            db.execute(t.sessions.delete().where(others, t.sessions.c.token_hash != visitor.session))
            if visitor.role == "owner":
                db.execute(t.invites.update().where(mine, t.invites.c.expires > now).values(expires=now))

    def visitor(self, session: str, now: float) -> Visitor | None:
        """Who a session token belongs to; None where the session is unknown or over, or its link was revoked."""
        key = token_hash(session)
        with self.store.read() as db:
            row = VISITOR.first(db, key=key, now=now)
        if row is None or row[1] not in ROLES:
            return None
        rater_id, role, form_token, read, quiz, opt_out = row
        return Visitor(rater_id, role, key, form_token, read, quiz, tuple(json.loads(opt_out)))


VISITOR = t.Query(
    sa.select(t.invites.c.rater_id, t.invites.c.role, t.sessions.c.form_token, t.raters.c.read, t.raters.c.quiz,
              t.raters.c.opt_out)
    .select_from(t.sessions.join(t.invites, t.invites.c.id == t.sessions.c.invite_id)
                 .join(t.raters, t.raters.c.id == t.invites.c.rater_id))
    .where(t.sessions.c.token_hash == sa.bindparam("key"), t.sessions.c.expires > sa.bindparam("now", type_=sa.Float),
           ~t.invites.c.revoked)
)  # fmt: skip


def check_origin(headers: Mapping[str, str]) -> None:
    """RequestRefused where a browser says that the form that was sent stood on another site."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site not in (None, "same-origin") or (origin is not None and urlsplit(origin).netloc != headers.get("host")):
        raise RequestRefused(403, REFUSALS["site"])


def check_form_token(visitor: Visitor, token: str) -> None:
    if not hmac.compare_digest(visitor.form_token.encode(), token.encode("utf-8", "surrogatepass")):
        raise StaleForm


class RateLimit:
    """A token bucket for each key: ``burst`` at once, ``per_second`` in the long run."""

    def __init__(self, per_second: float, burst: float) -> None:
        self.per_second, self.burst = per_second, burst
        self.buckets: dict[str, tuple[float, float]] = {}

    def check(self, key: str, now: float | None = None) -> None:
        """RequestRefused (429) where the bucket of ``key`` is empty."""
        now = time.monotonic() if now is None else now
        left, since = self.buckets.get(key, (self.burst, now))
        left = min(self.burst, left + (now - since) * self.per_second)
        if left < 1:
            raise RequestRefused(429, REFUSALS["rate"])
        if len(self.buckets) >= 10_000:  # forget those that are full again anyway
            full = self.burst / self.per_second
            self.buckets = {k: v for k, v in self.buckets.items() if now - v[1] < full}
        self.buckets[key] = (left - 1, now)
