"""Prompts, responses and judgments of a folder, read from disk when they are needed.

A folder of feedback holds ``prompts.jsonl``, ``responses.jsonl`` and the chained ``judgments.jsonl``. Of a million records only
ids and places are kept in memory. Judgments come in one order, whatever the order of the lines: prompts by their first
judgment, sets within a prompt by theirs, then by id. So a file that was merged in another order, or has grown since and is cut
back to its tips, gives the same dataset.
"""

from __future__ import annotations

import codecs
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Generic, NamedTuple, TypeVar

from charter.errors import InputError
from charter.models.marks import last_round
from charter.records import Judgment, LabelSet, Prompt, Response
from charter.run.files import parse_record, read_lines_with_offsets
from charter.votes.judgments import check_judgment, doubled, missing_link, repeated

FILES = ("prompts.jsonl", "responses.jsonl", "judgments.jsonl")
SETS = "sets.jsonl"  # the questions; only the folder of a label page has them
CACHED = 4096  # records; the responses to one prompt stand in many judgments that follow each other

R = TypeVar("R", Prompt, Response, LabelSet, Judgment)


def same(first: Prompt | Response | LabelSet | Judgment, second: Prompt | Response | LabelSet | Judgment) -> bool:
    """Whether two records of one id can stand for each other. The id of a prompt is the hash of its messages, so that tags and
    source may differ; of responses the text has to be the same, of sets the question, of judgments everything."""
    if isinstance(first, Response) and isinstance(second, Response):
        return (first.prompt_id, first.text) == (second.prompt_id, second.text)
    if isinstance(first, LabelSet) and isinstance(second, LabelSet):
        questions = [(s.prompt_id, s.kind, sorted(s.response_ids), s.direction, s.role) for s in (first, second)]
        return questions[0] == questions[1]
    return isinstance(first, Prompt) or first == second


class RecordFile(Mapping[str, R], Generic[R]):
    """The records of a JSONL file by id. InputError names the line of one that is broken, or that differs from one with its
    id."""

    def __init__(self, path: Path, kind: type[R]) -> None:
        if path.suffix == ".gz":
            raise InputError("is gzipped; unzip it first: its records are looked up by their place", file=path)
        self.path = path
        self.kind: type[R] = kind
        self.places: dict[str, int] = {}
        self._cache: dict[str, R] = {}
        self._file: BinaryIO | None = None
        try:
            for number, place, line in read_lines_with_offsets(path):
                self.add(parse_record(line, kind, path, number), place, number)
        finally:
            self.close()  # a record that came twice was looked up

    def add(self, record: R, place: int, number: int) -> None:
        """Note where a record stands. The first one of an id counts; a later one has to be the same."""
        if record.id not in self.places:
            self.places[record.id] = place
        elif not same(self[record.id], record):
            raise InputError(f"duplicate {self.kind.__name__.lower()} {record.id!r}, and the two differ; keep one of them",
                             file=self.path, line=number, field="id")  # fmt: skip

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getitem__(self, key: str) -> R:
        if (record := self._cache.get(key)) is None:
            if self._file is None:
                self._file = open(self.path, "rb")  # noqa: SIM115 - closed with the mapping
            self._file.seek(self.places[key])
            record = parse_record(self._file.readline().removeprefix(codecs.BOM_UTF8), self.kind, self.path)
            if len(self._cache) >= CACHED:
                self._cache.clear()
            self._cache[key] = record
        return record

    def __contains__(self, key: object) -> bool:
        return key in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class _Link(NamedTuple):
    """What is kept of a judgment: its hash, that of the one before, and what it belongs to."""

    hash: bytes
    prev: bytes
    prompt_id: str
    set_id: str
    supersedes: str | None


class JudgmentFile(RecordFile[Judgment]):
    """A chained file of judgments, checked as :func:`charter.votes.judgments.read_judgments` checks it."""

    def __init__(self, path: Path) -> None:
        self.links: dict[str, _Link] = {}
        self._shared: dict[bytes, bytes] = {}
        self._names: dict[str, str] = {}
        lines: list[int] = []
        self._lines = lines
        super().__init__(path, Judgment)
        known = {link.hash for link in self.links.values()}
        for number, link in zip(lines, self.links.values(), strict=True):
            if link.prev and link.prev not in known:
                raise missing_link(path, number)
        lines.clear()
        self._shared.clear()
        self._names.clear()

    def add(self, record: Judgment, place: int, number: int) -> None:
        if record.id in self.places:
            raise doubled(record.id, self.path, number)
        check_judgment(record, self.path, number)
        try:
            prev = bytes.fromhex(record.prev_hash)
        except ValueError:
            raise InputError(
                "not a valid hash; take the file from a copy", file=self.path, line=number, field="prev_hash"
            ) from None
        self.places[record.id] = place
        prev = self._shared.setdefault(prev, prev)
        digest = bytes.fromhex(record.hash)
        prompt_id, set_id = (self._names.setdefault(name, name) for name in (record.prompt_id, record.set_id))
        self.links[record.id] = _Link(
            self._shared.setdefault(digest, digest), prev, prompt_id, set_id, record.supersedes
        )  # fmt: skip
        self._lines.append(number)

    def tips(self) -> list[str]:
        """Hashes that no judgment follows, sorted."""
        followed = {link.prev for link in self.links.values()}
        return sorted(link.hash.hex() for link in self.links.values() if link.hash not in followed)

    def up_to(self, tips: Sequence[str]) -> set[str]:
        """Ids of the judgments that these tips close. InputError where one of them is not in the file."""
        by_hash = {link.hash.hex(): key for key, link in self.links.items()}
        closed: set[str] = set()
        for tip in tips:
            while tip:
                if tip not in by_hash:
                    raise InputError(f"no judgment has the hash {tip[:16]}…; this is not the file of that manifest",
                                     file=self.path)  # fmt: skip
                if (key := by_hash[tip]) in closed:
                    break
                closed.add(key)
                tip = self.links[key].prev.hex()
        return closed

    def repeats(self, among: set[str] | None = None) -> set[str]:
        """Ids of the judgments that repeat a vote of another chain (:func:`charter.votes.judgments.repeated`)."""
        keys = list(self.links if among is None else sorted(among, key=self.places.__getitem__))
        chains = sum(not self.links[key].prev for key in keys)
        return repeated(self[key] for key in keys) if chains > 1 else set()

    def in_order(self, among: set[str] | None = None) -> Iterator[Judgment]:
        """Judgments that no other one of those ``among`` (all, by default) supersedes, in the order of the datasets."""
        keys = self.links.keys() if among is None else among
        replaced = {link.supersedes for key in keys if (link := self.links[key]).supersedes}
        of_prompt: dict[str, str] = {}  # the smallest id of its judgments
        of_set: dict[str, str] = {}
        for key in keys:
            link = self.links[key]
            of_prompt[link.prompt_id] = min(key, of_prompt.get(link.prompt_id, key))
            of_set[link.set_id] = min(key, of_set.get(link.set_id, key))

        def place(key: str) -> tuple[str, str, str]:
            link = self.links[key]
            return of_prompt[link.prompt_id], of_set[link.set_id], key

        for key in sorted(keys - replaced, key=place):
            yield self[key]


class Evidence:
    """A folder of feedback, opened. ``roles``: the purpose of the sets that are not work (practice, quiz, gold, repeat)."""

    def __init__(self, judgments: Path) -> None:
        folder = judgments.parent
        prompts = folder / "prompts.jsonl"
        in_run = folder.parent / "prompts/prompts.jsonl"
        self.judgments = JudgmentFile(judgments)
        self.prompts = RecordFile(in_run if not prompts.exists() and in_run.exists() else prompts, Prompt)
        self.responses = RecordFile(folder / "responses.jsonl", Response)
        self.sets = RecordFile(folder / SETS, LabelSet) if (folder / SETS).exists() else None
        self.roles = {label_set.id: label_set.role for label_set in (self.sets or {}).values() if label_set.role != "work"}

    def __enter__(self) -> Evidence:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.judgments, self.prompts, self.responses, self.sets):
            if file is not None:
                file.close()

    def prompt(self, judgment: Judgment) -> Prompt:
        """The prompt of a judgment. InputError where it is not in the file."""
        if judgment.prompt_id not in self.prompts:
            raise InputError(f"prompt {judgment.prompt_id!r} of judgment {judgment.id} is missing; add it",
                             file=self.prompts.path)  # fmt: skip
        return self.prompts[judgment.prompt_id]

    def text(self, judgment: Judgment, response_id: str) -> str:
        """The text of a response of a judgment. InputError where it is not in the file."""
        return self.response(judgment, response_id).text

    def response(self, judgment: Judgment, response_id: str) -> Response:
        """A response that a judgment names. InputError where it is not in the file."""
        if response_id not in self.responses:
            raise InputError(f"response {response_id!r} of judgment {judgment.id} is missing; add it",
                             file=self.responses.path)  # fmt: skip
        return self.responses[response_id]


def feedback_of(run: Path) -> Path:
    """The folder of a run's feedback. InputError if the run has several rounds: each has a folder, and none stands for all."""
    if (last := last_round(run, "feedback")) != "feedback":
        raise InputError(f"the run has feedback of several rounds; name one, {run / 'feedback'} to {run / last}", file=run)
    return run / "feedback"


def find_judgments(source: Path) -> Path | None:
    """The file of judgments that a path stands for: the file itself, a folder of feedback, or a run. None for another file."""
    if source.is_dir():
        if (source / "judgments.jsonl").exists():
            return source / "judgments.jsonl"
        place = feedback_of(source) / "judgments.jsonl"
        return place if place.exists() else None
    if source.suffix not in (".jsonl", ".ndjson"):
        return None
    _, _, line = next(read_lines_with_offsets(source), (0, 0, ""))
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return source if source.name == "judgments.jsonl" else None
    is_judgment = isinstance(row, dict) and {"set_id", "rater_id", "order"} <= row.keys()
    return source if is_judgment or source.name == "judgments.jsonl" else None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends well and vanishes when it does not.

    InputError where ``path`` is a file or a folder that holds something.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError("already exists and is not empty; name a new folder" if path.is_dir() else
                         "is a file; name a folder", file=path)  # fmt: skip
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*")):
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename and str(error.filename).startswith(str(temporary)):
            error.filename = str(path)  # the name that the user knows
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
