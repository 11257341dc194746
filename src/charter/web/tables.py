"""The tables of a label project, in SQLite (WAL) or PostgreSQL.

Prompts, responses, sets and judgments are the records of :mod:`charter.records` as JSON beside the columns that queries
need; ``seq`` is the order in which they came and in which the plain files beside the database are written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text, UniqueConstraint, event
from sqlalchemy.dialects import sqlite

from charter.errors import InputError

metadata = MetaData()

meta = Table("meta", metadata, Column("key", String, primary_key=True), Column("value", Text, nullable=False))


def record_table(name: str, *columns: Column[Any]) -> Table:
    return Table(
        name,
        metadata,
        Column("seq", Integer, primary_key=True, autoincrement=True),
        Column("id", String, nullable=False, unique=True),
        *columns,
        Column("record", Text, nullable=False),
    )


prompts = record_table("prompt")
responses = record_table("response", Column("prompt_id", String, nullable=False))
sets = record_table("label_set", Column("role", String, nullable=False, index=True), Column("priority", Float, nullable=False))
judgments = record_table(
    "judgment",
    Column("set_id", String, nullable=False),
    Column("rater_id", String, nullable=False),
    Column("action", String, nullable=False),  # vote, skip or withdrawn
    Column("current", Boolean, nullable=False),
    Column("created", Float, nullable=False),
    Column("seconds", Float),
    Column("n_pairs", Integer, nullable=False),
    Column("n_ties", Integer, nullable=False),
)
Index("judgment_of_rater", judgments.c.rater_id, judgments.c.set_id)

set_tags = Table("set_tag", metadata, Column("set_id", String, primary_key=True), Column("tag", String, primary_key=True))

slots = Table(
    "slot",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("set_id", String, nullable=False),
    Column("role", String, nullable=False),
    Column("priority", Float, nullable=False),
    Column("position", Float, nullable=False),  # sets in a drawn order, the slots of a set one after another
    Column("state", String, nullable=False),  # open, done or skipped
    Column("extra", Boolean, nullable=False),  # beyond what was asked for: a vote that came after its lease was given on
    Column("rater_id", String),
    Column("lease_until", Float),
    UniqueConstraint("set_id", "rater_id"),  # nobody gets the same set twice
)
Index("slot_to_give", slots.c.state, slots.c.priority.desc(), slots.c.position, slots.c.id)  # read in order, no sorting
Index("slot_of_rater", slots.c.rater_id, slots.c.state)


def table_by_set_and_rater(name: str, *columns: Column[Any]) -> Table:
    keys = (Column("set_id", String, primary_key=True), Column("rater_id", String, primary_key=True))
    return Table(name, metadata, *keys, *columns)


handouts = table_by_set_and_rater(
    "handout",
    Column("order", Text, nullable=False),  # response ids as shown, JSON
    Column("shown", Float, nullable=False),
)
drafts = table_by_set_and_rater(
    "draft",
    Column("form", Text, nullable=False),  # the fields of the form, JSON
)
lessons = table_by_set_and_rater(
    "lesson",  # answers to practice and quiz: no judgments, so no pair ever comes of them
    Column("role", String, nullable=False),
    Column("answer", Text, nullable=False),
    Column("score", Float, nullable=False),
    Column("created", Float, nullable=False),
)
instructions = Table(
    "instructions",
    metadata,
    Column("hash", String, primary_key=True),
    Column("text", Text, nullable=False),
    Column("created", Float, nullable=False),
)
dialogues = Table(
    "dialogue",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("rater_id", String, nullable=False, index=True),
    Column("state", Text, nullable=False),  # messages, waiting candidates, and how it ended, JSON
    Column("open", Boolean, nullable=False),
)

raters = Table(
    "rater",
    metadata,
    Column("id", String, primary_key=True),  # a pseudonym
    Column("created", Float, nullable=False),
    Column("read", String, nullable=False, default=""),  # hash of the instructions that were acknowledged
    Column("opt_out", Text, nullable=False, default="[]"),  # tags that this person does not want to see, JSON
    Column("quiz", String, nullable=False, default=""),  # passed, failed, or not taken
)
invites = Table(
    "invite",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("token_hash", String, nullable=False, unique=True),
    Column("rater_id", String, nullable=False),
    Column("role", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("revoked", Boolean, nullable=False, default=False),
)
sessions = Table(
    "session",
    metadata,
    Column("token_hash", String, primary_key=True),
    Column("invite_id", Integer, nullable=False, index=True),
    Column("form_token", String, nullable=False),
    Column("expires", Float, nullable=False),
)


migrations = Table("_migrations", MetaData(), Column("number", Integer, primary_key=True), Column("name", String, nullable=False))
Migration = Callable[[sa.Connection], None]


def m1_first_tables(db: sa.Connection) -> None:
    """The tables above, as they were when migrations began; a new database starts with all of them."""
    metadata.create_all(db)
    db.execute(meta.insert(), [{"key": "version", "value": "1"}, {"key": "tip", "value": ""}])


MIGRATIONS: tuple[Migration, ...] = (m1_first_tables,)


def migrate(db: sa.Connection, steps: Sequence[Migration] = MIGRATIONS) -> bool:
    """Run the steps that this database has not seen, in order; False and no change where it has seen more than there are.

    A new database gets the tables above at once, so only the first step runs on it and the later ones are noted. The version in
    ``meta`` is the number of the last step: a Charter without migrations refuses what it does not know.
    """
    have = sa.inspect(db)
    if is_new := not have.has_table(meta.name):
        steps[0](db)
    done = int(db.scalar(sa.select(meta.c.value).where(meta.c.key == "version")) or 0)
    if done > len(steps):
        return False
    migrations.create(db, checkfirst=True)
    noted = set(db.scalars(sa.select(migrations.c.number)))
    for number, step in enumerate(steps, start=1):
        if number > done and not is_new:
            step(db)
        if number not in noted:
            db.execute(migrations.insert().values(number=number, name=step.__name__))
    db.execute(meta.update().where(meta.c.key == "version").values(value=str(len(steps))))
    return True


def open_database(url: str) -> sa.Engine:
    """An engine whose tables exist. A path or ``sqlite:///FILE`` is SQLite, ``postgresql://…`` PostgreSQL through psycopg 3.

    InputError where the database cannot be opened, or a newer version wrote it.
    """
    if "://" not in url:
        url = f"sqlite:///{url}"
    try:
        place = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise InputError("not a database URL; use postgresql://HOST/NAME", field="database") from None
    if place.get_backend_name() == "postgresql":
        engine = sa.create_engine(place.set(drivername="postgresql+psycopg"), pool_size=8, max_overflow=24)
    elif place.get_backend_name() == "sqlite" and place.database:
        Path(place.database).touch(mode=0o600)
        engine = sa.create_engine(place, pool_size=8, max_overflow=24)
        event.listen(engine, "connect", set_up_sqlite)
        event.listen(engine, "begin", begin_sqlite)
    else:
        raise InputError(f"unknown database {place.get_backend_name()!r}; use SQLite or PostgreSQL", field="database")
    try:
        with engine.begin() as connection:
            known = migrate(connection)
    except sa.exc.DBAPIError as error:
        engine.dispose()
        words = str(error.orig).splitlines()[0] if error.orig else "no answer"
        raise InputError(f"the database cannot be opened ({words})", file=place.render_as_string()) from None
    if not known:
        engine.dispose()
        raise InputError("a newer Charter wrote this database; update Charter, or move the database away: the next start makes "
                         "it anew from the .jsonl files", file=place.render_as_string())  # fmt: skip
    return engine


def set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by Python
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=10000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def begin_sqlite(connection: sa.Connection) -> None:
    if connection.get_execution_options().get("read"):
        return  # every statement by itself
    # A transaction that reads first and writes later can fail half-way in SQLite; one that begins as a writer cannot.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class Query:
    """A statement that is asked on every request: compiled once for each database, and then run by the driver alone.

    That is several times faster than building and compiling it anew. Parameters are given by name; rows come as tuples.
    Errors are the driver's own (:func:`integrity_error`).
    """

    def __init__(self, statement: sa.ClauseElement, *columns: str) -> None:
        self.statement, self.columns = statement, columns or None
        self.compiled: dict[str, tuple[str, dict[str, Any]]] = {}

    def run(self, db: sa.Connection, **values: Any) -> Any:
        """The driver's cursor."""
        if db.dialect.name not in self.compiled:
            dialect = sqlite.dialect(paramstyle="named") if db.dialect.name == "sqlite" else db.dialect
            made = self.statement.compile(dialect=dialect, column_keys=self.columns)
            fixed = {key: value for key, value in made.params.items() if value is not None}
            self.compiled[db.dialect.name] = str(made), fixed
        sql, fixed = self.compiled[db.dialect.name]
        return db.connection.driver_connection.execute(sql, fixed | values)  # type: ignore[union-attr]

    def first(self, db: sa.Connection, **values: Any) -> Any:
        """The first row, or None."""
        return self.run(db, **values).fetchone()

    def value(self, db: sa.Connection, **values: Any) -> Any:
        """The first column of the first row, or None."""
        row = self.run(db, **values).fetchone()
        return None if row is None else row[0]


def integrity_error(db: sa.Engine) -> type[Exception]:
    """What the driver raises where a row breaks a rule of its table."""
    error: type[Exception] = db.dialect.loaded_dbapi.IntegrityError
    return error
