"""The plain files beside the database, brought up to date after every vote and at every start.

A vote is safe when its transaction is committed; the files follow within moments, written by a thread of their own that
forces them to the disk. At a start each file is compared with the database: what is missing in the one is added from
the other, so a killed server loses nothing, and files that were merged with those of another machine are read back in.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path

import sqlalchemy as sa

from charter.errors import InputError
from charter.records import Judgment, LabelSet, Prompt, Record, Response
from charter.run.files import read_jsonl
from charter.votes.judgments import FORGOTTEN, read_judgments
from charter.web import tables as t
from charter.web.statements import SHOW, SHOWN, add_records, add_slot
from charter.web.store import Store, pairs_and_ties

KINDS: dict[str, tuple[sa.Table, type[Record]]] = {
    "prompts.jsonl": (t.prompts, Prompt),
    "responses.jsonl": (t.responses, Response),
    "sets.jsonl": (t.sets, LabelSet),
    "judgments.jsonl": (t.judgments, Judgment),
}


RETRY_S = 5.0  # after a write that failed
GATHER_S = 0.2  # votes of so long go to the disk together


class Mirror:
    """The files of one project folder, written by this process alone."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = open(folder / ".lock", "w")  # noqa: SIM115 - held for the life of the mirror
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.lock.close()
            raise InputError("another charter label works in this folder; stop it first, or use its page", file=folder
                             ) from None  # fmt: skip
        for name in KINDS:
            cut_torn_line(folder / name)
        self.written = dict.fromkeys(KINDS, 0)
        self.failed: Exception | None = None
        self._writing = threading.Lock()
        self._due = threading.Event()
        self._stop = threading.Event()
        self._in_step = False
        self._thread = threading.Thread(target=self._follow, name="mirror", daemon=True)

    def start(self) -> None:
        """Bring files and database together, then follow the votes. InputError names the line that does not fit."""
        for name, (table, kind) in KINDS.items():
            self._read_back(self.folder / name, table, kind)
        self._in_step = True
        self.flush()
        self._thread.start()

    def wake(self) -> None:
        """There is something new to write."""
        self._due.set()

    def close(self) -> None:
        """Write what is left and let go of the folder."""
        self._stop.set()
        self._due.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            if self._in_step:  # after a start that failed, nothing is known of what the files hold
                self.flush()
        finally:
            self.lock.close()

    def flush(self) -> None:
        """Append every record that the files do not have yet."""
        with self._writing:
            for name, (table, _) in KINDS.items():
                new = sa.select(table.c.seq, table.c.record).where(table.c.seq > self.written[name]).order_by(table.c.seq)
                with self.store.read() as db:
                    rows = db.execute(new).all()
                if rows:
                    append(self.folder / name, [row.record for row in rows])
                    self.written[name] = rows[-1].seq

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._due.wait()
            self._stop.wait(GATHER_S)
            self._due.clear()
            try:
                self.flush()
                self.failed = None
            except Exception as error:  # a full disk, a lost database: the votes are stored and are written at the next chance
                self.failed = error
                self._due.set()
                self._stop.wait(RETRY_S)

    def _read_back(self, path: Path, table: sa.Table, kind: type[Record]) -> None:
        """Take what only the file has into the database, and put at its end what only the database has."""
        if not path.exists():
            return
        records = read_judgments(path) if kind is Judgment else list(read_jsonl(path, kind))
        with self.store.write() as db:
            if kind is Judgment:
                take_in_judgments(db, [record for record in records if isinstance(record, Judgment)], path)
            elif kind is LabelSet:
                self.store.add_sets(db, [record for record in records if isinstance(record, LabelSet)])
            else:
                add_records(db, table, records)
            here = {record.id for record in records}  # type: ignore[attr-defined]
            missing = [
                row for row in db.execute(sa.select(table.c.seq, table.c.id, table.c.record).order_by(table.c.seq))
                if row.id not in here
            ]  # fmt: skip
            last = db.scalar(sa.select(sa.func.max(table.c.seq))) or 0
        if missing:
            append(path, [row.record for row in missing])
        self.written[path.name] = last


def take_in_judgments(db: sa.Connection, judgments: list[Judgment], path: Path) -> None:
    """Add judgments from a file that the database does not know, those of people with their slots and the order they saw.

    InputError where the file has another judgment under an id that is known.
    """
    known = {row.id: row.record for row in db.execute(sa.select(t.judgments.c.id, t.judgments.c.record))}
    for number, judgment in enumerate(judgments, start=1):
        if judgment.hash not in known.get(judgment.id, judgment.hash):
            raise InputError(f"judgment {judgment.id} differs from the one in the database; take the file from a copy, or remove "
                             "it to have it written anew", file=path, line=number, field="id")  # fmt: skip
    if not known and judgments:  # a folder without its database: its chain continues
        db.execute(t.meta.update().where(t.meta.c.key == "tip").values(value=judgments[-1].hash))
    replaced = {judgment.supersedes for judgment in judgments if judgment.supersedes}
    for judgment in judgments:
        if judgment.id in known:
            continue
        marks = judgment.flags.get(judgment.set_id, [])
        action = "withdrawn" if {"withdrawn", FORGOTTEN} & {*marks} else "skip" if "skipped" in marks else "vote"
        n_pairs, n_ties = pairs_and_ties(judgment.ranks)
        current = judgment.id not in replaced
        db.execute(t.judgments.insert().values(
            id=judgment.id, set_id=judgment.set_id, rater_id=judgment.rater_id, action=action, current=current,
            created=judgment.timings.get("submitted", 0.0), seconds=judgment.timings.get("active_s"), n_pairs=n_pairs,
            n_ties=n_ties, record=judgment.model_dump_json(),
        ))  # fmt: skip
        if current and action != "withdrawn" and judgment.rater_kind == "human":
            fill_slot(db, judgment, "done" if action == "vote" else "skipped")
        if judgment.rater_kind == "human" and SHOWN.first(db, key=judgment.set_id, me=judgment.rater_id) is None:
            # A draft of an answer that is taken back names the sides as they were shown.
            SHOW.run(db, set_id=judgment.set_id, rater_id=judgment.rater_id, order=json.dumps(judgment.order),
                     shown=judgment.timings.get("shown", 0.0))  # fmt: skip
    older = sorted(replaced)
    for start in range(0, len(older), 500):
        db.execute(t.judgments.update().where(t.judgments.c.id.in_(older[start : start + 500])).values(current=False))


def fill_slot(db: sa.Connection, judgment: Judgment, state: str) -> None:
    """Count a judgment that came from a file on one of its set's slots, or beyond them."""
    mine = (t.slots.c.set_id == judgment.set_id) & (t.slots.c.rater_id == judgment.rater_id)
    if db.scalar(sa.select(t.slots.c.id).where(mine)) is not None:
        db.execute(t.slots.update().where(mine).values(state=state))
        return
    free = db.scalar(
        sa.select(t.slots.c.id)
        .where(t.slots.c.set_id == judgment.set_id, t.slots.c.state == "open", t.slots.c.rater_id.is_(None))
        .limit(1)
    )
    if free is not None and state == "done":
        db.execute(t.slots.update().where(t.slots.c.id == free).values(state=state, rater_id=judgment.rater_id))
        return
    role = db.scalar(sa.select(t.sets.c.role).where(t.sets.c.id == judgment.set_id)) or "work"
    add_slot(db, judgment.set_id, role, state, extra=True, rater_id=judgment.rater_id)


def append(path: Path, lines: list[str]) -> None:
    """Add lines to a file and force them to the disk; a write that fails half-way is taken back."""
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        before = file.tell()
        try:
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise


def cut_torn_line(path: Path) -> None:
    """Make a file end with a whole line: what a killed process left of one is dropped, for the database has all of it."""
    try:
        with open(path, "rb+") as file:
            size = back = file.seek(0, os.SEEK_END)
            tail = b""
            while back > 0 and b"\n" not in tail:
                back = max(0, back - 65536)
                file.seek(back)
                tail = file.read(size - back)
            last = tail.rpartition(b"\n")[2]
            if not last:
                return
            try:
                json.loads(last)
            except ValueError:
                file.truncate(size - len(last))
            else:  # written by hand, without the line end
                file.seek(size)
                file.write(b"\n")
    except FileNotFoundError:
        return
