"""Small label projects for the tests of the label page."""

from __future__ import annotations

import html
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient

from charter.records import Judgment
from charter.votes.judgments import read_judgments
from charter.web.label_app import label_app
from charter.web.project import Project, open_project
from charter.web.tables import open_database

HOSTILE = "<script>alert(1)</script> **bold** [x](https://evil.example) ![p](https://evil.example/p.png) \u202etxt"
HOME = "http://127.0.0.1"
SAME_SITE = {"origin": HOME, "sec-fetch-site": "same-origin"}


def write_table(path: Path, n: int, k: int = 3, **columns: object) -> Path:
    rows = [{"prompt": f"Question {i}?", "responses": [f"Answer {i}.{j}" for j in range(k)], **columns} for i in range(n)]
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


class World:
    """A site whose clock stands still until it is moved, and browsers of people in any role."""

    def __init__(self, site) -> None:
        self.site, self.now = site, 4_000_000_000.0
        site.clock = lambda: self.now
        self.app = label_app(site)

    def stranger(self) -> TestClient:
        return TestClient(self.app, base_url=HOME, follow_redirects=True)

    def person(self, role: str = "labeler", *, read: bool = True) -> TestClient:
        client = self.stranger()
        token, client.who = self.site.access.invite(role, self.now)
        client.link = f"/join/{token}"
        assert client.post(client.link).status_code == 200
        if read and role != "viewer":
            send(client, "/instructions", client.get("/instructions").text)
        return client

    def judgments(self) -> list[Judgment]:
        self.site.mirror.flush()
        file = self.site.project.folder / "judgments.jsonl"
        return read_judgments(file) if file.exists() else []


class Parrot:
    """A sampler that says its name, the last turn and the seed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def generate(self, conversations, seeds, **_):
        from charter.models.sampling.sampler import Sample  # with torch, which other tests of the page need not load

        return [[Sample(f"{self.name} {talk[-1].content} {seed}", "stop") for seed in own]
                for talk, own in zip(conversations, seeds, strict=True)]  # fmt: skip

    def option_logprobs(self, *_):
        raise AssertionError("nobody asks a red-team model to choose")


def field(page: str, name: str) -> str:
    return html.unescape(re.search(rf'name="{name}" value="([^"]*)"', page)[1])


def responses(page: str) -> list[str]:
    return re.findall(r'data-response="([^"]+)"', page)


def send(client, path, page, **fields):
    """Send the form of a page, with more fields."""
    form = {name: field(page, name) for name in ("form_token", "set_id", "hash") if f'name="{name}"' in page}
    return client.post(path, data=form | fields, headers=SAME_SITE)


def rank(page: str, *ranks: object) -> dict[str, str]:
    return {f"rank:{key}": str(value) for key, value in zip(responses(page), ranks, strict=True)}


__all__ = ["HOME", "HOSTILE", "SAME_SITE", "Parrot", "World", "database", "field", "known", "make_project", "open_database",
           "rank", "responses", "send", "write_table"]  # fmt: skip
