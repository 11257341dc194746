"""Principles out of public votes: the export of a pol.is conversation, `participants-votes.csv` and `comments.csv`.

A statement becomes a principle where every opinion group supports it (group-informed consensus, Small et al. 2021): the support
of a group is (agreements + 1) / (votes + 2), pol.is's estimate, in which a group of few voters stays near one half.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from charter.constitution.published import Gathered, of_sentence
from charter.errors import InputError
from charter.run.yaml_files import decode_utf8, read_bytes

VOTES, COMMENTS = "participants-votes.csv", "comments.csv"
GROUP, STATEMENT_ID, STATEMENT = "group-id", "comment-id", "comment-body"
REJECTED = "-1"  # what comments.csv writes of a statement that a moderator hid


def is_polis(path: Path, text: str | None) -> bool:
    """Whether this is an export, named by its folder or by one of its two files."""
    if text is None:
        return (path / VOTES).is_file()
    header = next(csv.reader(io.StringIO(text[:20_000], newline=None)), [])
    return GROUP in header or STATEMENT in header


def gather_polis(path: Path, threshold: float) -> Gathered:
    """The statements that every group supports by at least ``threshold``, a share. InputError where a file or a column is
    missing, or a vote is not 1, 0 or -1."""
    folder = path if path.is_dir() else path.parent
    votes = votes_by_group(folder / VOTES)
    gathered = Gathered("pol.is votes")
    gathered.left_out["participant without an opinion group"] = votes.pop("", Counter())["participants"]
    if not votes:
        raise InputError("no participant has an opinion group; export a conversation with groups", file=folder / VOTES)
    for line, row in table(folder / COMMENTS, (STATEMENT_ID, STATEMENT)):
        number, statement = row[STATEMENT_ID].strip(), " ".join(row[STATEMENT].split())
        if not number.isdecimal():  # no vote has such a column, so the statement would look unsupported
            raise InputError(f"{number!r} is not a number", file=folder / COMMENTS, line=line, field=STATEMENT_ID)
        support = {
            group: (counts[f"agree {number}"] + 1) / (counts[f"vote {number}"] + 2) for group, counts in sorted(votes.items())
        }
        gathered.counts["statements"] += 1
        if row.get("moderated") == REJECTED:
            gathered.left_out["statement rejected by a moderator"] += 1
        elif not statement:
            gathered.left_out["empty statement"] += 1
        elif min(support.values()) < threshold:
            gathered.left_out[f"statement that some group supports by less than {threshold:.0%}"] += 1
        else:
            rounded = {f"group {group}": round(share, 3) for group, share in support.items()}
            gathered.rows.append(of_sentence(f"statement-{number}", statement) | {"support": rounded, "wording": statement})
    gathered.counts["groups"] = len(votes)
    gathered.counts["participants"] = sum(counts["participants"] for counts in votes.values())
    gathered.counts["votes"] = sum(counts["votes"] for counts in votes.values())
    return gathered


def votes_by_group(path: Path) -> dict[str, Counter[str]]:
    """By group, "" for none: how many participants, votes, `vote ID` and `agree ID` of each statement."""
    groups: dict[str, Counter[str]] = {}
    for line, row in table(path, (GROUP,)):
        counts = groups.setdefault(row[GROUP].strip(), Counter())
        counts["participants"] += 1
        for name, value in row.items():
            if not name.isdecimal() or not value.strip():
                continue
            if value.strip() not in ("1", "0", "-1"):
                words = f"{value!r} is not a vote; use 1 for agree, -1 for disagree and 0 for pass"
                raise InputError(words, file=path, line=line, field=name)
            counts.update({"votes": 1, f"vote {name}": 1, f"agree {name}": value.strip() == "1"})
    return groups


def table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with their last lines. InputError where a column is missing."""
    reader = csv.DictReader(io.StringIO(decode_utf8(read_bytes(path), path), newline=""), restval="")
    try:
        for column in columns:
            if column not in (reader.fieldnames or ()):
                raise InputError("the column is missing; give the files as pol.is exports them", file=path, line=1, field=column)
        for row in reader:
            yield reader.line_num, {name: value for name, value in row.items() if name is not None}
    except csv.Error as error:
        raise InputError(f"not valid CSV ({error})", file=path, line=reader.line_num) from None
