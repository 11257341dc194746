"""One person taken out of the database of a label project: their votes, drafts, lessons, dialogues, links and name."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from charter.records import Judgment
from charter.web import tables as t

OF_A_RATER = (t.handouts, t.drafts, t.lessons, t.dialogues, t.invites)


class Database:
    """The database of a project, as a context. InputError as in :func:`charter.web.tables.open_database`."""

    def __init__(self, url: str) -> None:
        self.engine = t.open_database(url)

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.dispose()

    def traces(self, person: str) -> tuple[list[Judgment], list[str], bool]:
        """Judgments of a person, texts that they wrote elsewhere, and whether the database knows them at all."""
        with self.engine.connect() as db:
            rows = db.scalars(sa.select(t.judgments.c.record).where(t.judgments.c.rater_id == person))
            judgments = [Judgment.model_validate_json(row) for row in rows]
            written = [*db.scalars(sa.select(t.drafts.c.form).where(t.drafts.c.rater_id == person)),
                       *db.scalars(sa.select(t.dialogues.c.state).where(t.dialogues.c.rater_id == person))]  # fmt: skip
            columns = [t.raters.c.id, *(table.c.rater_id for table in (*OF_A_RATER, t.slots))]
            known = any(db.scalar(sa.select(sa.func.count()).where(column == person)) for column in columns)
        return judgments, [text for state in written for text in texts_of(json.loads(state))], known or bool(judgments)

    def take_out(self, person: str, blank: Mapping[str, Judgment], prompts: Collection[str]) -> None:
        """Remove a person. ``blank``: what stays of each judgment, by id; ``prompts``: ids of prompts that they wrote, which go
        with their responses and sets. Sets that they had answered are open again. SQLite keeps no deleted bytes."""
        with self.engine.begin() as db:
            for key, judgment in blank.items():
                db.execute(t.judgments.update().where(t.judgments.c.id == key).values(
                    set_id="", rater_id="", action="withdrawn", current=False, seconds=None, n_pairs=0, n_ties=0,
                    record=judgment.model_dump_json(),
                ))  # fmt: skip
            mine = t.slots.c.rater_id == person
            db.execute(t.slots.delete().where(mine, (t.slots.c.role != "work") | t.slots.c.extra))
            db.execute(t.slots.update().where(mine).values(rater_id=None, lease_until=None, state="open"))
            links = sa.select(t.invites.c.id).where(t.invites.c.rater_id == person)
            db.execute(t.sessions.delete().where(t.sessions.c.invite_id.in_(links)))
            for table in OF_A_RATER:
                db.execute(table.delete().where(table.c.rater_id == person))
            db.execute(t.raters.delete().where(t.raters.c.id == person))
            remove_prompts(db, prompts)
        if self.engine.dialect.name == "sqlite":
            with self.engine.execution_options(read=True).connect() as db:
                db.exec_driver_sql("VACUUM")
                db.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def remove_prompts(db: sa.Connection, prompts: Collection[str]) -> None:
    """Delete prompts with their responses and sets."""
    rows = db.execute(sa.select(t.sets.c.id, t.sets.c.record)).all() if prompts else []
    sets = [row.id for row in rows if json.loads(row.record)["prompt_id"] in prompts]
    for start in range(0, len(sets), 500):
        some = sets[start : start + 500]
        for column in (t.slots.c.set_id, t.handouts.c.set_id, t.set_tags.c.set_id, t.sets.c.id):
            db.execute(column.table.delete().where(column.in_(some)))
    for prompt in prompts:
        db.execute(t.responses.delete().where(t.responses.c.prompt_id == prompt))
        db.execute(t.prompts.delete().where(t.prompts.c.id == prompt))


def texts_of(state: Mapping[str, Any]) -> Iterator[str]:
    """What a person wrote into a draft, or into a dialogue: turns, subject and tags, but not the answers of the model."""
    if "messages" not in state:
        yield from map(str, state.values())
        return
    yield from (message["content"] for message in state["messages"] if message["role"] == "user")
    yield from (state.get("about", ""), *state.get("tags", ()))
