"""An older database is brought up to date with its rows; a newer one is left alone."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from charter.errors import InputError
from charter.web.tables import MIGRATIONS, migrate, open_database
from label_project import database

FIRST = (Path(__file__).parent / "label_database_1.sql").read_text()  # as it was before migrations were numbered
ROWS = """
INSERT INTO meta VALUES ('version', '1'), ('tip', 'abc');
INSERT INTO rater VALUES ('amber-heron-4f1c', 1.0, 'hash', '["x"]', '');
INSERT INTO draft VALUES ('s1', 'amber-heron-4f1c', '{"comment": "half"}');
"""


def older(path: Path) -> Path:
    with sqlite3.connect(path) as db:
        db.executescript(FIRST + ROWS)
    return path


def shape(engine: sa.Engine) -> dict[str, list[str]]:
    have = sa.inspect(engine)
    return {
        name: sorted(str((c["name"], str(c["type"]), c["nullable"])) for c in have.get_columns(name))
        + sorted(str((i["name"], i["column_names"])) for i in have.get_indexes(name))
        for name in have.get_table_names()
    }


def m2_rater_note(db: sa.Connection) -> None:
    db.execute(sa.text("ALTER TABLE rater ADD COLUMN note VARCHAR DEFAULT 'none' NOT NULL"))


def test_an_older_database_keeps_its_rows_and_gets_the_shape_of_a_new_one(tmp_path):
    engine = open_database(str(older(tmp_path / "old.db")))
    fresh = open_database(str(tmp_path / "new.db"))
    assert shape(engine) == shape(fresh)
    with engine.connect() as db:
        assert db.execute(sa.text("SELECT id, opt_out FROM rater")).all() == [("amber-heron-4f1c", '["x"]')]
        assert json.loads(db.scalar(sa.text("SELECT form FROM draft"))) == {"comment": "half"}
        assert dict(db.execute(sa.text("SELECT key, value FROM meta")).all()) == {"tip": "abc", "version": str(len(MIGRATIONS))}
        assert db.execute(sa.text("SELECT number, name FROM _migrations")).all() == [(1, "m1_first_tables")]
    engine.dispose()
    fresh.dispose()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_steps_run_once_in_order_and_a_newer_database_is_refused_in_one_line(tmp_path, kind):
    with database(kind, tmp_path) as url:
        engine = open_database(url)
        steps = (*MIGRATIONS, m2_rater_note)
        with engine.begin() as db:
            db.execute(sa.text("INSERT INTO rater VALUES ('ann', 1.0, '', '[]', '')"))
            assert migrate(db, steps)
            assert migrate(db, steps)  # nothing is left to do
            assert db.execute(sa.text("SELECT id, note FROM rater")).all() == [("ann", "none")]
            assert db.execute(sa.text("SELECT number, name FROM _migrations ORDER BY number")).all() == [
                (1, "m1_first_tables"), (2, "m2_rater_note")
            ]  # fmt: skip
        engine.dispose()
        with pytest.raises(InputError, match="a newer Charter wrote this database; update Charter") as error:
            open_database(url)
        assert "\n" not in str(error.value)


def test_a_step_that_fails_leaves_the_database_as_it_was(tmp_path):
    def m2_half(db: sa.Connection) -> None:
        m2_rater_note(db)
        raise RuntimeError

    engine = open_database(str(older(tmp_path / "old.db")))
    before = shape(engine)
    with pytest.raises(RuntimeError), engine.begin() as db:
        migrate(db, (*MIGRATIONS, m2_half))
    assert shape(engine) == before
    engine.dispose()
