"""The run folder: stages that finish once, survive ``kill -9``, and leave the same bytes either way.

Each stage owns a folder. Its fingerprint is a hash of settings, inputs and code; a finished stage with an unchanged
fingerprint is skipped, an unfinished one is continued, one with another fingerprint starts anew. Nothing random is
carried from step to step: every draw comes from a seed derived from names (run seed, stage, prompt, step), so the
position in the data is all that a resumed stage needs to know. Wall-clock times are kept apart from the artifacts.
"""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import itertools
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, TypeVar

from charter.errors import InputError
from charter.records import Record, content_id
from charter.run.code import code_hash
from charter.run.files import atomic_path, json_rows, read_json, read_jsonl, write_json
from charter.run.hashes import CONTENTS
from charter.run.progress import track
from charter.run.seals import LINES, MANIFEST, manifest_of
from charter.run.team import team

NO_OUTPUT = (MANIFEST, LINES, ".timing.json")
EARLIER = "earlier"  # inside a stage's folder, its rows from before a change
R = TypeVar("R", bound=Record)
T = TypeVar("T")


class Run:
    """A run folder, locked against a second process while in use."""

    def __init__(self, folder: Path, *, seed: int = 0, quiet: bool = False) -> None:
        self.folder, self.seed, self.quiet = folder, seed, quiet or not team().is_main
        self.stages: list[Stage] = []
        self.listeners: list[Callable[[Stage, dict[str, Any] | None], None]] = []
        """Called with each line of metrics.jsonl once it is written, and with None for a stage that is finished."""
        self._lock: IO[str] | None = None
        team().on_main(self._take_lock)
        if team().size > 1:
            self.say(team().words)

    def _take_lock(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "w")  # noqa: SIM115 - held for the life of the run
        except (FileExistsError, NotADirectoryError):
            raise InputError("is a file; a run needs a folder", file=self.folder) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError("another process is working in this run folder; wait for it or choose another --out",
                             file=self.folder) from None  # fmt: skip

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def stage(
        self, name: str, settings: Any, inputs: Mapping[str, str], code: Sequence[str], by_row: Collection[str] = ()
    ) -> Stage:
        """Open a stage. ``inputs``: names to content hashes; ``code``: full names of the modules it begins from, whose imports
        count as well (:mod:`charter.run.code`). ``by_row``: inputs, or beginnings of their names, whose change leaves some
        rows as they are: the stage starts anew with its :meth:`Stage.earlier` rows, of which it takes those that still hold."""
        stage = Stage(self, name, settings, inputs, code, by_row)
        self.stages.append(stage)
        return stage

    def say(self, text: str) -> None:
        if not self.quiet:
            from rich.console import Console

            Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text)


class Stage:
    """One stage's folder: ``with run.stage(...) as stage: if not stage.done: ... stage.finish(result)``."""

    def __init__(
        self, run: Run, name: str, settings: Any, inputs: Mapping[str, str], code: Sequence[str], by_row: Collection[str] = ()
    ) -> None:
        self.run, self.name, self.folder = run, name, run.folder / name
        self.by_row, self.logs = tuple(by_row), list[RecordLog[Any]]()
        settings = settings.model_dump(mode="json", context=CONTENTS) if hasattr(settings, "model_dump") else settings
        self.description = {
            "stage": name,
            "seed": run.seed,
            "settings": settings,
            "inputs": dict(inputs),
            "code": code_hash(code),
        }
        self.fingerprint = self._output = content_id(self.description)
        self.result: dict[str, Any] = {}
        self.exports: list[Path] = []
        self.done = self.skipped = False
        self.wall_s = 0.0
        """Seconds spent on the stage, earlier interrupted attempts included where they ended in order."""

    def __enter__(self) -> Stage:
        self.started = time.monotonic()
        self.done, self.result, self.wall_s, self._output = team().on_main(self._open)
        self.skipped = self.done
        self.run.say(f"{self.name}: unchanged, skipped" if self.skipped else f"{self.name} …")
        if self.skipped:
            self.tell(None)
        return self

    def _open(self) -> tuple[bool, dict[str, Any], float, str]:
        """Make the folder fit to work in; whether the stage is done already, with its result, the seconds spent on it, and what
        later stages name as its output."""
        done, result = False, {}
        manifest = read_json(self.folder / "manifest.json") or {}
        if not isinstance(manifest, dict):
            raise InputError("not a valid manifest; remove it to run the stage again", file=self.folder / "manifest.json")
        if manifest.get("fingerprint") != self.fingerprint:
            self._clear(manifest)
            write_json(self.folder / "manifest.json", {**self.description, "fingerprint": self.fingerprint})
        elif "result" in manifest:
            done, result = True, manifest["result"]
        else:
            self._sweep()
        seconds = float((read_json(self.folder / ".timing.json") or {}).get("wall_s", 0.0))
        return done, result, seconds, str(manifest.get("output", self.fingerprint)) if done else self.fingerprint

    def _clear(self, manifest: Mapping[str, Any]) -> None:
        """Empty the folder; where only inputs ``by_row`` changed, what it had is then in its folder `earlier`."""
        aside = self.folder.with_name(f".{self.name}.{EARLIER}")
        shutil.rmtree(aside, ignore_errors=True)
        if self.by_row and self._fixed(manifest) == self._fixed(self.description):
            os.replace(self.folder, aside)
            shutil.rmtree(aside / EARLIER, ignore_errors=True)
            self.folder.mkdir(parents=True)
            os.replace(aside, self.folder / EARLIER)
            return
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)

    def _fixed(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a description in which no row can be used again if it differs."""
        inputs = {name: value for name, value in manifest.get("inputs", {}).items() if not name.startswith(self.by_row)}
        return {key: manifest.get(key) for key in ("stage", "seed", "settings", "code")} | {"inputs": inputs}

    def earlier(self, name: str, kind: type[R]) -> list[R]:
        """The rows of a file of the stage before inputs ``by_row`` changed; none where the stage began from nothing."""
        path = self.path(EARLIER) / name
        return list(read_jsonl(RecordLog(path, kind).path, kind)) if path.exists() else []

    @property
    def earlier_inputs(self) -> dict[str, str]:
        """The inputs with which the :meth:`earlier` rows were made."""
        inputs: dict[str, str] = (read_json(self.path(EARLIER) / "manifest.json") or {}).get("inputs", {})
        return inputs

    def _output_of_before(self) -> str | None:
        """The output hash that the finished stage had before inputs ``by_row`` changed, where its files are the same bytes; None
        where they are not."""
        before, earlier = read_json(self.path(EARLIER) / "manifest.json") or {}, self.path(EARLIER)
        if "result" not in before:
            return None
        names = [
            {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and file.name not in NO_OUTPUT}
            for folder in (self.folder, earlier)
        ]
        names[0] = {name for name in names[0] if not name.startswith(f"{EARLIER}/")}
        same = names[0] == names[1] and all(filecmp.cmp(self.folder / name, earlier / name, shallow=False) for name in names[0])
        return str(before.get("output", before["fingerprint"])) if same else None

    def _reused(self) -> dict[str, Any]:
        """Of each file of rows, how many it took from before the change; empty if nothing was there to be taken."""
        if not self.path(EARLIER).exists():
            return {}
        rows = {log.path.name: {"reused": log.reused, "rows": log.count} for log in self.logs}
        words = ", ".join(f"{row['reused']} of {row['rows']} rows of {name}" for name, row in rows.items())
        self.run.say(f"  {self.name}: kept {words}; the others depend on what changed")
        return {"reused": rows}

    def tell(self, row: dict[str, Any] | None) -> None:
        """Let the listeners know of a line of metrics, or with None that the stage is finished. The main process does."""
        for listener in self.run.listeners if team().is_main else ():
            listener(self, row)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if not self.skipped and self.folder.exists() and team().is_main:
            self.wall_s += time.monotonic() - self.started
            write_json(self.folder / ".timing.json", {"wall_s": round(self.wall_s, 2)})
            if self.done:
                self.run.say(f"{self.name}: done in {self.wall_s:.1f} s")

    def _sweep(self) -> None:
        """Remove the temporary files of a write that was killed."""
        for leftover in self.folder.rglob(".*"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            elif leftover.name not in (".timing.json", ".metadata"):  # the second belongs to a divided checkpoint
                leftover.unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        return self.folder / name

    def export(self, name: str) -> Path:
        """The path of a table that the stage writes into the run folder; the manifest lists it with the stage's own files."""
        self.exports.append(self.run.folder / name)
        return self.exports[-1]

    @property
    def output_hash(self) -> str:
        """What a later stage names as its input: the fingerprint fixes the outputs, because every stage is a function. Where a
        change left every byte of them as it was, it is that of before the change."""
        return self._output

    def finish(self, result: dict[str, Any]) -> None:
        """Mark the stage as done: its manifest keeps the result, in which `reused` counts rows from before a change, and the hash
        of every file that it leaves behind."""
        result |= self._reused()
        self._output = team().on_main(self._output_of_before) or self.fingerprint
        whole = {**self.description, "fingerprint": self.fingerprint, "result": result}
        whole |= {"output": self._output} if self._output != self.fingerprint else {}

        def close() -> dict[str, Any]:
            (self.folder / "checkpoint.safetensors").unlink(missing_ok=True)
            shutil.rmtree(self.folder / EARLIER, ignore_errors=True)
            shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
            write_json(self.folder / "manifest.json", manifest_of(self.folder, self.exports, whole))
            as_read: dict[str, Any] = json.loads(json.dumps(result, sort_keys=True))  # a skipped stage has it in this order
            return as_read

        self.result, self.done = team().on_main(close), True
        self.tell(None)

    def rows(self, name: str, kind: type[R]) -> RecordLog[R]:
        """An append-only file of records that outlives a kill."""
        log = RecordLog(self.path(name), kind)
        self.logs.append(log)
        return log

    def record(self, step: int, **values: Any) -> dict[str, Any]:
        """Append one line to metrics.jsonl; the line. No times: the file is part of the artifacts."""
        row = {"step": step, **values}
        if team().is_main:
            with open(self.path("metrics.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")
        self.tell(row)
        return row

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        path = self.path("metrics.jsonl")
        return team().on_main(lambda: json_rows(path))

    def rewind(self, name: str, step: int) -> None:
        """Drop the lines of a step log that lie beyond the checkpoint at ``step``, a half-written last one included."""
        path = self.path(name)
        if team().is_main and path.exists():
            kept = []
            # A text may have U+2028, which ends no line here; the last line may end within a character.
            with open(path, encoding="utf-8", errors="replace", newline="\n") as lines:
                for line in lines:
                    try:
                        if json.loads(line)["step"] < step:
                            kept.append(line)
                    except ValueError:
                        break
            with atomic_path(path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")

    def progress(self, steps: Sequence[T], done: int = 0) -> Iterator[T]:
        """The steps that are left, with count, rate and time left, on standard error (:mod:`charter.run.progress`)."""
        return track(steps, self.name, done=done, quiet=self.run.quiet)


class RecordLog(Generic[R]):
    """Records appended one line at a time, each on disk before the next is made."""

    def __init__(self, path: Path, kind: type[R]) -> None:
        self.path, self.kind, self.reused = path, kind, 0
        self.count = team().on_main(self._mend)

    def _mend(self) -> int:
        """Cut off a half-written last line; the number of whole ones."""
        if not self.path.exists():
            return 0
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            os.truncate(self.path, whole)
        return content.count(b"\n")

    def work(
        self,
        items: Sequence[T],
        batch_size: int,
        produce: Callable[[Sequence[T]], Iterable[R]],
        *,
        rows_per_item: int = 1,
        follow: Callable[[R, R | None], R] | None = None,
        known: Callable[[T], Sequence[R] | None] | None = None,
        by_all: bool = True,
        label: str = "",
        quiet: bool = False,
    ) -> list[R]:
        """Turn items into records, batch by batch, and return all of them.

        After a kill, work resumes with the batch that was cut short. That batch is made whole again, so that its numerics
        are those of an uninterrupted run, and only the rows that were missing are appended. ``follow`` makes of a record and
        the one before it in the file (None for the first) the record that is written: the link of a chain. Several processes
        claim batch after batch, whole ones for the same reason; without ``by_all`` the main one makes them all.
        """
        if known is not None:
            self.reused = sum(len(known(item) or ()) for item in items)
            produce = filled(produce, known, rows_per_item)
        batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
        first = min(self.count // (batch_size * rows_per_item), len(batches))
        left, workers = batches[first:], team()
        shared = workers.size > 1 and by_all

        def lines(number: int) -> str:
            return "\n".join(record.model_dump_json() for record in produce(left[number]))

        def made() -> Generator[Iterable[R], None, None]:
            if not shared:
                yield from map(produce, left)
                return
            for text in workers.in_order(len(left), lines):
                yield [self.kind.model_validate_json(line) for line in text.split("\n") if line]

        def write() -> int:
            ordinal = first * batch_size * rows_per_item
            last: deque[R] = deque(read_jsonl(self.path, self.kind) if follow and self.count else (), maxlen=1)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8", newline="\n") as file, contextlib.closing(made()) as produced:
                bar = track(batches, label, done=first, unit=batch_size, total=len(items), quiet=quiet)
                for _, records in zip(bar, produced, strict=True):
                    for record in records:
                        if ordinal >= self.count:
                            if follow:
                                record = follow(record, last[-1] if last else None)
                                last.append(record)
                            file.write(record.model_dump_json() + "\n")
                            file.flush()
                        ordinal += 1
                    os.fsync(file.fileno())
            return max(self.count, ordinal)

        if shared and not workers.is_main:
            deque(workers.in_order(len(left), lines), maxlen=0)
        self.count = workers.on_main(write)
        return list(read_jsonl(self.path, self.kind))


def filled(
    produce: Callable[[Sequence[T]], Iterable[R]], known: Callable[[T], Sequence[R] | None], rows_per_item: int
) -> Callable[[Sequence[T]], Iterable[R]]:
    """``produce`` for the items of a batch that are not ``known``, the known records in their places."""

    def made(batch: Sequence[T]) -> Iterator[R]:
        given = [known(item) for item in batch]
        left = [item for item, records in zip(batch, given, strict=True) if records is None]
        new = iter(produce(left) if left else ())
        for records in given:
            yield from itertools.islice(new, rows_per_item) if records is None else records

    return made
