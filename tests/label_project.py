"""Small label projects for the tests of the label page."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from charter.web.project import Project, open_project
from charter.web.tables import open_database

HOSTILE = "<script>alert(1)</script> **bold** [x](https://evil.example) ![p](https://evil.example/p.png) \u202etxt"


def write_table(path: Path, n: int, k: int = 3, **columns: object) -> Path:
    rows = [
        {"prompt": f"Question {i}?", "responses": [f"Answer {i}.{j}" for j in range(k)], **columns} for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def known(path: Path, n: int, ranks: list[object], word: str = "Known") -> Path:
    rows = [{"prompt": f"{word} {i}?", "responses": [f"{word} {i}.{j}" for j in range(len(ranks))], "ranks": ranks,
             "why": f"Because of {i}."} for i in range(n)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_project(folder: Path, n: int = 4, k: int = 3, **settings: object) -> Project:
    """A project of ``n`` prompts with ``k`` responses each, in ``folder``/p."""
    (folder / "p").mkdir(exist_ok=True)
    (folder / "p/label.yaml").write_text(yaml.safe_dump({"repeat_share": 0.0, **settings}))
    return open_project(write_table(folder / "t.jsonl", n, k), folder / "p")


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database; PostgreSQL in a schema of its own where DATABASE_URL names a server."""
    if kind == "sqlite":
        yield str(folder / "labels.db")
        return
    if "DATABASE_URL" not in os.environ:
        pytest.skip("no DATABASE_URL")
    import sqlalchemy as sa

    base = sa.make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")
    schema = f"test_{secrets.token_hex(6)}"
    admin = sa.create_engine(base, isolation_level="AUTOCOMMIT")
    with admin.connect() as db:
        db.execute(sa.schema.CreateSchema(schema))
    url = base.set(drivername="postgresql").update_query_dict({"options": f"-csearch_path={schema}"})
    yield url.render_as_string(hide_password=False)
    with admin.connect() as db:
        db.execute(sa.schema.DropSchema(schema, cascade=True))
    admin.dispose()


__all__ = ["HOSTILE", "database", "known", "make_project", "open_database", "write_table"]
