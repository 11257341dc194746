"""`charter forget`: one person taken out of a folder or a file, and a search for what is left of them.

Votes, texts and names are removed from judgments, tables, JSON files and the database of a label page; the chain of judgments
keeps the place of each vote, with date and reason. What was fitted for the person alone is deleted. Then every file is searched:
a file of a kind that cannot be edited (a picture, Parquet) is named and left to its owner.
"""

from __future__ import annotations

import csv
import fcntl
import gzip
import html
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from charter.errors import InputError
from charter.judging.people import FOLDER, TO_LABEL, PeoplesVotes
from charter.reading.prompts import parse_transcript
from charter.records import Judgment, Pair, Response, content_id
from charter.run.files import HEAD_CARD, atomic_path, read_json, read_jsonl, write_json, write_jsonl
from charter.run.seals import MANIFEST, manifest_of, sha256_of
from charter.votes.exports import export_preferences
from charter.votes.judgments import forgotten

if TYPE_CHECKING:
    from charter.web.forgotten import Database

RECORDS = ("prompts.jsonl", "responses.jsonl", "sets.jsonl")
WRITTEN_BY_RATERS = ("red team", "hh-red-team", "prism", "community-alignment")  # sources of prompts that raters wrote
SHORTEST = 12  # characters of a text that is searched for: a shorter one stands in many files by chance
ALONE = 40  # a shorter text, such as "I don't know", may stand inside the words of others: that is named, and not taken out
DATABASE, SETTINGS, RETRAIN = "labels.db", "label.yaml", "retrain"
OF_A_MODEL = frozenset({"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
                        "vocab.txt", "merges.txt", "config.json", "generation_config.json"})  # fmt: skip
"""Files of a model, whose words are nobody's: they are neither edited nor searched."""
OF_RATERS = re.compile(r"rater|annotator|labell?er|judge|person|user|worker|member|completed_by|(?:^|[.])name$", re.IGNORECASE)
"""Columns and keys that hold names. Where the name of a person is a number, it counts there alone: elsewhere it is a count."""
GONE: Any = object()  # what a value becomes that speaks of the person


@dataclass
class Traces:
    """What a folder has of a person. ``sets``: those they judged; ``prompts``: those that they wrote; ``short``: texts of
    theirs that are too short to be searched for."""

    person: str
    judgments: dict[str, Judgment] = field(default_factory=dict)
    texts: set[str] = field(default_factory=set)
    sets: set[str] = field(default_factory=set)
    prompts: set[str] = field(default_factory=set)
    known: bool = False
    short: int = 0

    def add(self, judgment: Judgment) -> None:
        self.known = True
        self.judgments[judgment.id] = judgment
        self.sets.add(judgment.set_id)
        self.texts |= {judgment.comment, *judgment.edit.values()}

    def names(self, text: str, key: str) -> bool:
        """Whether a text is the person's name, or has something that they wrote. ``key``: its column, or its keys with dots."""
        is_name = text == self.person and (not self.person.isdecimal() or OF_RATERS.search(key) is not None)
        return is_name or text.strip() in self.texts or any(len(words) >= ALONE and words in text for words in self.texts)


def forget(place: Path, person: str, reason: str, when: str | None = None) -> dict[str, Any]:
    """Take a person out of a file, or of a folder and all in it; ``left`` names the files that still have something of them.

    InputError if nothing is known of the person, the reason names them, or another process works in the folder.
    """
    check_call(place, person, reason)
    when = when or datetime.now(UTC).date().isoformat()
    with ExitStack() as stack:
        for lock in sorted(place.rglob(".lock")) if place.is_dir() else ():
            hold(stack.enter_context(open(lock, "w")), lock.parent)
        databases = [stack.enter_context(database) for database in databases_of(place)]
        traces = collect(place, person, databases)
        if not traces.known:
            raise InputError(f"nothing of {person!r} here; give the name as the files have it", file=place)
        blank = {key: forgotten(judgment, reason, when) for key, judgment in traces.judgments.items()}
        removed = remove_folders(place, traces)
        changed = [file for file in files_of(place) if rewrite(file, traces, blank)]
        changed += redo_pairs(place, traces)
        outputs = reseal(place, changed, {"reason": reason, "when": when})
        for database in databases:
            database.take_out(person, blank, traces.prompts)
    return {
        "place": str(place), "judgments": len(blank), "prompts": len(traces.prompts), "files": sorted(map(str, set(changed))),
        "removed": removed, "trained": trained_on(place, outputs), "left": search(place, traces),
        "short_texts": traces.short,
    }  # fmt: skip


def check_call(place: Path, person: str, reason: str) -> None:
    """InputError if the place is a part of what has to be changed together, or the reason would name the person."""
    if not place.exists():
        raise InputError("no such file or folder", file=place)
    if not person.strip() or person in reason:
        raise InputError("--person is empty" if not person.strip() else
                         "the reason names the person, and it stays in the files; word it without the name")  # fmt: skip
    if place.is_file() and any((place.parent / name).exists() for name in (SETTINGS, DATABASE)):
        raise InputError(f"belongs to the label project {place.parent}; name that folder", file=place)
    if place.resolve().name == FOLDER and (place.resolve().parent / "feedback").is_dir():
        raise InputError(f"is the label page of a run; name the run, {place.resolve().parent}", file=place)


def hold(lock: Any, folder: Path) -> None:
    """Lock a folder for the time of the change. InputError if a page or a run has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError("a run or a label page works in this folder; stop it first", file=folder) from None


def files_of(place: Path) -> list[Path]:
    """The files in a folder but those of models. Judgments come last: a change that was cut short finds its texts there."""
    if not place.is_dir():
        return [place]
    files = [file for file in sorted(place.rglob("*")) if file.is_file() and not file.is_symlink()]
    return sorted((file for file in files if file.name not in OF_A_MODEL), key=lambda file: file.name == "judgments.jsonl")


def databases_of(place: Path) -> Iterator[Database]:
    """The databases of the label projects in a folder, each as a context."""
    folders = sorted({file.parent for name in (SETTINGS, DATABASE) for file in place.rglob(name)}) if place.is_dir() else []
    if not folders:
        return
    try:
        from charter.web.forgotten import Database
    except ModuleNotFoundError as error:
        raise InputError(f"a label project is in this folder, and its database needs {error.name}; "
                         "pip install 'charter-align[web]'", file=folders[0]) from None  # fmt: skip
    from charter.web.project import read_settings

    for folder in folders:
        url = read_settings(folder / SETTINGS).database or str(folder / DATABASE)
        if "://" in url or Path(url).is_file():
            yield Database(url)


def json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """The lines of a JSONL file, each with its value, None where it is not JSON."""
    with open(file, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            try:
                yield line, json.loads(line)
            except (ValueError, RecursionError):
                yield line, None


def as_judgment(row: Any) -> Judgment | None:
    """The judgment that a row is, None for any other row."""
    if not isinstance(row, dict) or not {"set_id", "rater_id", "order"} <= row.keys():
        return None
    try:
        return Judgment.model_validate_json(json.dumps(row))
    except ValidationError:
        return None


def collect(place: Path, person: str, databases: Iterable[Database]) -> Traces:
    """All that the files and databases have of a person. Texts that others wrote too, or that a model wrote, are not theirs."""
    traces, others, rows = Traces(person), set[str](), list[dict[str, Any]]()
    judged: dict[str, set[str]] = {}  # prompt to its raters
    for file in files_of(place):
        if file.suffix not in (".jsonl", ".ndjson"):
            continue
        for _, row in json_lines(file):
            if (judgment := as_judgment(row)) is not None:
                judged.setdefault(judgment.prompt_id, set()).add(judgment.rater_id)
                if judgment.rater_id == person:
                    traces.add(judgment)
                else:
                    others |= {judgment.comment, *judgment.edit.values()}
            elif isinstance(row, dict) and file.name in RECORDS:
                rows.append(row)
            elif isinstance(row, dict) and row.get("red_team_member_id") == person:
                traces.known = True
                with suppress(ValueError):  # not a transcript
                    traces.texts |= {m.content for m in parse_transcript(str(row.get("transcript"))) if m.role == "user"}
                traces.texts |= {str(row.get("task_description", "")), *map(str, row.get("tags", ()))}
    for database in databases:
        judgments, texts, known = database.traces(person)
        for judgment in judgments:
            traces.add(judgment)
            judged.setdefault(judgment.prompt_id, set()).add(person)
        traces.texts |= set(texts)
        traces.known = traces.known or known
    for row in rows:
        if row.get("source") in WRITTEN_BY_RATERS and judged.get(row.get("id", "")) == {person}:
            traces.prompts.add(row["id"])
            traces.texts |= {turn["content"] for turn in row["messages"] if turn["role"] == "user"}
        elif "text" in row:
            others.add(row["text"])
        elif "messages" in row:
            others |= {turn["content"] for turn in row["messages"]}
    written = {text.strip() for text in traces.texts - others} - {""}
    traces.texts = {text for text in written if len(text) >= SHORTEST}
    traces.short = len(written) - len(traces.texts)
    traces.known = traces.known or any(has_name(file, place, person) for file in files_of(place))
    return traces


def remove_folders(place: Path, traces: Traces) -> list[str]:
    """Delete what was made for the person alone, the heads that carry their name, and the trainings of a label page, whose files
    of pairs do not say who voted; the folders."""
    if not place.is_dir():
        return []
    heads = [file.parent for file in place.rglob(HEAD_CARD) if isinstance(card := read_json(file), dict)
             and card.get("rater") == traces.person]  # fmt: skip
    trainings = [folder for folder in place.rglob(RETRAIN) if traces.judgments and (folder.parent / "judgments.jsonl").is_file()]
    for folder in (*heads, *trainings):
        shutil.rmtree(folder)
    return sorted(map(str, (*heads, *trainings)))


def rewrite(file: Path, traces: Traces, blank: dict[str, Judgment]) -> bool:
    """Write a table or a JSON file without the person; whether it changed."""
    if file.suffix in (".jsonl", ".ndjson"):
        lines = [(line, without_row(line, row, file.name in RECORDS, traces, blank)) for line, row in json_lines(file)]
        if all(line == kept for line, kept in lines):
            return False
        with atomic_path(file) as temporary, open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as out:
            out.writelines(kept for _, kept in lines)
        return True
    if file.suffix == ".csv":
        rows = list(raw_csv(file))
        header = rows[0][1] if rows else []
        kept = [text for text, cells in rows if not any(map(traces.names, cells, chain(header, repeat(""))))]
        if len(kept) < len(rows):
            with atomic_path(file) as temporary, open(temporary, "w", encoding="utf-8", newline="") as out:
                out.writelines(kept)
        return len(kept) < len(rows)
    if file.suffix == ".json" and file.name != MANIFEST:
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            return False
        left = without(value, traces.names)
        if left is not GONE and left != value:
            write_json(file, left)
            return True
    return False


def without_row(line: str, row: Any, is_records: bool, traces: Traces, blank: dict[str, Judgment]) -> str:
    """A line of a JSONL file as it stays: itself, what is left of a judgment, or nothing."""
    if (judgment := as_judgment(row)) is not None:
        if judgment.rater_id != traces.person:
            return line
        return blank[judgment.id].model_dump_json() + "\n" if judgment.hash else ""
    if not isinstance(row, dict):
        return line
    if any(isinstance(key := row.get(name), str) and key in traces.prompts for name in ("id", "prompt_id")):
        return ""
    left = row if is_records else without(row, traces.names)
    return line if left == row else "" if left is GONE else json.dumps(left, ensure_ascii=False) + "\n"


def without(value: Any, names: Callable[[str, str], bool], keys: str = "") -> Any:
    """A JSON value without the entries of lists, and the keys of objects, that name a person; ``GONE`` where the value itself
    does. An object one of whose values names them is about them, and goes as a whole. ``keys``: those that lead to the value."""
    if isinstance(value, str):
        return GONE if names(value, keys) else value
    if isinstance(value, list):
        return [left for item in value if (left := without(item, names, keys)) is not GONE]
    if isinstance(value, dict):
        kept = {key: without(item, names, f"{keys}.{key}") for key, item in value.items() if not names(key, keys)}
        return GONE if any(item is GONE for item in kept.values()) else kept
    return value


def raw_csv(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV file, each with its text as it stands there."""
    read: list[str] = []

    def noting(lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            read.append(line)
            yield line

    limit = csv.field_size_limit(2**31 - 1)
    try:
        with open(file, encoding="utf-8", errors="surrogateescape", newline="") as lines:
            for cells in csv.reader(noting(lines)):
                yield "".join(read), cells
                read.clear()
    finally:
        csv.field_size_limit(limit)  # it is the whole process's


def redo_pairs(place: Path, traces: Traces) -> list[Path]:
    """Make the pairs of a run whose sets the person judged anew, from the votes that are left; the files that changed."""
    changed = []
    for asked in sorted(place.rglob(TO_LABEL)) if place.is_dir() else ():
        stage, run = asked.parent, asked.parent.parent
        file = stage / "pairs.jsonl"
        pairs = list(read_jsonl(file, Pair)) if file.is_file() else []
        if not any(pair.group_id in traces.sets for pair in pairs):
            continue
        groups: dict[str, list[Response]] = {}
        for response in read_jsonl(asked, Response):
            groups.setdefault(response.prompt_id, []).append(response)
        left = PeoplesVotes(run / FOLDER, list(groups.values())).pairs()
        pairs = [pair for pair in pairs if pair.group_id not in traces.sets]
        pairs += [pair for pair in left if pair.group_id in traces.sets]
        write_jsonl(file, pairs)
        table = run / f"{stage.name.replace('feedback', 'preferences')}.csv"
        export_preferences(table, pairs)
        changed += [file, table]
    return changed


def reseal(place: Path, changed: list[Path], cut: dict[str, str]) -> set[str]:
    """Note in the manifest of each stage that lost something when and why, with the hashes of its files as they are now. A stage
    whose pairs changed gets another output hash, so that later stages train anew the next time; the hashes that these had."""
    of_stages: dict[Path, list[Path]] = {}
    before: set[str] = set()
    for file in changed:
        exports = [manifest.parent for manifest in file.parent.glob(f"*/{MANIFEST}")
                   if f"../{file.name}" in (read_json(manifest) or {}).get("files", {})]  # fmt: skip
        inside = [folder for folder in file.parents if folder.is_relative_to(place) and (folder / MANIFEST).is_file()][:1]
        for folder in (*inside, *exports):
            of_stages.setdefault(folder, []).append(file)
    for folder, files in of_stages.items():
        manifest = read_json(folder / MANIFEST)
        if not {"files", "fingerprint"} <= manifest.keys():
            continue  # not the manifest of a stage that seals its files
        exports = [folder.parent / name[3:] for name in manifest["files"] if name.startswith("../")]
        whole = {key: value for key, value in manifest.items() if key not in ("files", "hash")}
        names = sorted({file.name for file in files})
        whole["forgotten"] = [*manifest.get("forgotten", ()), {**cut, "files": names}]
        if (folder / "pairs.jsonl") in files:
            before.add(str(manifest.get("output", manifest["fingerprint"])))
            whole["output"] = content_id(manifest["fingerprint"], sha256_of(folder / "pairs.jsonl"))
        write_json(folder / MANIFEST, manifest_of(folder, exports, whole))
    return before


def trained_on(place: Path, outputs: set[str]) -> list[str]:
    """The finished trainings that began from pairs which have changed, by the output hashes of these, and the heads of groups:
    they are not the person's alone, and what they learned from the person stays in them until they are trained again."""
    trainings = []
    for file in sorted(place.rglob(MANIFEST)) if place.is_dir() else ():
        manifest = read_json(file)
        if isinstance(manifest, dict) and "result" in manifest and outputs & set((manifest.get("inputs") or {}).values()):
            trainings.append(str(file.parent))
    heads = [file.parent for file in place.rglob(HEAD_CARD)] if place.is_dir() else []
    return [*trainings, *(str(folder) for folder in heads if "group" in (read_json(folder / HEAD_CARD) or {}))]


def search(place: Path, traces: Traces) -> list[str]:
    """The files that still have the name of the person, or one of their texts, in any form in which Charter writes texts."""
    forms = {form for text in traces.texts for form in forms_of(text)}
    pattern = (
        re.compile(b"|".join(re.escape(form.encode("utf-8", "surrogateescape")) for form in sorted(forms))) if forms else None
    )
    return [str(file) for file in files_of(place) if has_name(file, place, traces.person)
            or (pattern is not None and pattern.search(content_of(file)))]  # fmt: skip


def forms_of(text: str) -> tuple[str, ...]:
    """A text as it is, in JSON with and without escapes, in HTML, and in CSV."""
    return (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], html.escape(text), text.replace('"', '""'))


def has_name(file: Path, place: Path, person: str) -> bool:
    """Whether a file, or its path within the place, has the name as a word of its own."""
    name = rb"(?<![\w-])" + re.escape(person.encode("utf-8", "surrogateescape")) + rb"(?![\w-])"
    return person in file.relative_to(place).parts or re.search(name, content_of(file)) is not None


def content_of(file: Path) -> bytes:
    """The bytes of a file that can be text: unzipped, and of weights the header alone."""
    if file.suffix == ".gz":
        with gzip.open(file, "rb") as unzipped:
            return unzipped.read()
    with open(file, "rb") as opened:
        if file.suffix != ".safetensors":
            return opened.read()
        return opened.read(min(int.from_bytes(opened.read(8), "little"), 2**27))
