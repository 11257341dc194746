"""The statements of the store that are asked on every request, and the one that inserts records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from charter.records import Record
from charter.web import tables as t


def tagged(tags: Sequence[str]) -> sa.Select[Any]:
    """Ids of the sets with one of these tags."""
    return sa.select(t.set_tags.c.set_id).where(t.set_tags.c.tag.in_(tags))


def take_statement(*, with_opt_out: bool) -> sa.Update:
    """The one statement that gives out a slot: that of mine which is still open, else the first one that is free or whose
    lease has run out, of a set that I have no slot of. Parameters me, now, until, out."""
    me, now = sa.bindparam("me", type_=sa.String), sa.bindparam("now", type_=sa.Float)
    slot, other = t.slots.alias("candidate"), t.slots.alias("other")
    mine = (
        sa.select(slot.c.id)
        .where(slot.c.rater_id == me, slot.c.state == "open")
        .order_by(slot.c.lease_until.desc())
        .limit(1)
        .scalar_subquery()
    )
    free = (
        sa.select(slot.c.id)
        .where(
            slot.c.state == "open",
            slot.c.role == "work",
            ~slot.c.extra,
            slot.c.rater_id.is_(None) | (slot.c.lease_until < now),
            ~sa.exists().where(other.c.set_id == slot.c.set_id, other.c.rater_id == me),
        )
        .order_by(slot.c.priority.desc(), slot.c.position, slot.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if with_opt_out:
        out: sa.BindParameter[Any] = sa.bindparam("out", expanding=True)
        free = free.where(~sa.exists().where(t.set_tags.c.set_id == slot.c.set_id, t.set_tags.c.tag.in_(out)))
    return (
        t.slots.update()
        .where(t.slots.c.id == sa.func.coalesce(mine, free.scalar_subquery()))
        .values(rater_id=me, lease_until=sa.bindparam("until", type_=sa.Float))
        .returning(t.slots.c.set_id)
    )


R = TypeVar("R", bound=Record)


def add_records(db: sa.Connection, table: sa.Table, records: Iterable[R]) -> list[R]:
    """Insert the records whose ids are new, in the given order; those that were."""
    new: dict[str, R] = {record.id: record for record in records}  # type: ignore[attr-defined]
    ids = list(new)
    for start in range(0, len(ids), 500):
        for key in db.scalars(sa.select(table.c.id).where(table.c.id.in_(ids[start : start + 500]))):
            del new[key]
    columns = [column.name for column in table.columns if column.name not in ("seq", "record")]
    rows = [{name: getattr(record, name) for name in columns} | {"record": record.model_dump_json()} for record in new.values()]
    if rows:
        db.execute(table.insert(), rows)
    return list(new.values())


def add_slot(db: sa.Connection, set_id: str, role: str, state: str, **columns: Any) -> None:
    """Insert a slot of a set: first in line and within the overlap unless ``columns`` say otherwise."""
    values = {"priority": 0.0, "position": 0.0, "extra": False} | columns
    db.execute(t.slots.insert().values(set_id=set_id, role=role, state=state, **values))


KEY, ME = sa.bindparam("key", type_=sa.String), sa.bindparam("me", type_=sa.String)
TAKE = t.Query(take_statement(with_opt_out=False))
HELD = t.Query(sa.select(t.slots.c.id).where(t.slots.c.rater_id == ME, t.slots.c.state == "open").limit(1))
HANDED_OUT = t.Query(sa.select(sa.func.count()).select_from(t.handouts).where(t.handouts.c.rater_id == ME))
SHOWN = t.Query(
    sa.select(t.handouts.c.order, t.handouts.c.shown, t.drafts.c.form)
    .select_from(t.handouts.outerjoin(t.drafts, (t.drafts.c.set_id == t.handouts.c.set_id)
                                      & (t.drafts.c.rater_id == t.handouts.c.rater_id)))
    .where(t.handouts.c.set_id == KEY, t.handouts.c.rater_id == ME)
)  # fmt: skip
TO_SHOW = t.Query(
    sa.select(
        t.sets.c.record, sa.select(sa.func.count()).select_from(t.handouts).where(t.handouts.c.set_id == KEY).scalar_subquery()
    ).where(t.sets.c.id == KEY)
)
SHOW = t.Query(t.handouts.insert(), "set_id", "rater_id", "order", "shown")
FINISH = t.Query(
    t.slots.update()
    .where(t.slots.c.set_id == KEY, t.slots.c.rater_id == ME, t.slots.c.state == "open")
    .values(state=sa.bindparam("state_now", type_=sa.String))
    .returning(t.slots.c.id, t.slots.c.priority, t.slots.c.position, t.slots.c.extra)
)
SEEN = t.Query(sa.select(t.slots.c.id, t.slots.c.state).where(t.slots.c.set_id == KEY, t.slots.c.rater_id == ME))
TIP = t.Query(sa.select(t.meta.c.value).where(t.meta.c.key == "tip").with_for_update())
NEW_TIP = t.Query(t.meta.update().where(t.meta.c.key == "tip").values(value=sa.bindparam("tip", type_=sa.Text)))
BEFORE = t.Query(
    sa.select(t.judgments.c.id).where(t.judgments.c.set_id == KEY, t.judgments.c.rater_id == ME, t.judgments.c.current)
)
APPEND = t.Query(t.judgments.insert(), "id", "set_id", "rater_id", "action", "current", "created", "seconds", "n_pairs",
                 "n_ties", "record")  # fmt: skip
