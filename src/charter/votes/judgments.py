"""Judgments as an append-only, hash-chained file that two machines can merge in any order.

A line's ``hash`` covers all its fields and ``prev_hash``, the hash of the line written before it on the same machine. A merged
file is the union of such chains in the order of the ids, so any order of merging gives the same bytes; what must hold is that
every hash is right and that every ``prev_hash`` is there. Cutting off the end of a chain leaves no gap: who hands a file on
writes down its ``tips``.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from charter.errors import InputError
from charter.records import Judgment
from charter.run.files import read_jsonl

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(milliseconds: int | None = None) -> str:
    """26 characters that sort by time: 48 bits of milliseconds since 1970, 80 random bits (github.com/ulid/spec)."""
    when = time.time_ns() // 1_000_000 if milliseconds is None else milliseconds
    number = when << 80 | secrets.randbits(80)
    return "".join(CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def judgment_hash(judgment: Judgment) -> str:
    """SHA-256 of the canonical JSON of all fields but ``hash``, in hex."""
    fields = judgment.model_dump(mode="json", exclude={"hash"})
    canonical = json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def seal(judgment: Judgment, prev_hash: str) -> Judgment:
    """The judgment as the next line of a chain that ends with ``prev_hash`` ("" begins one)."""
    linked = judgment.model_copy(update={"prev_hash": prev_hash})
    return linked.model_copy(update={"hash": judgment_hash(linked)})


def follow(judgment: Judgment, last: Judgment | None) -> Judgment:
    """The judgment sealed as the next line after ``last``."""
    return seal(judgment, last.hash if last else "")


FORGOTTEN = "forgotten"


def forgotten(judgment: Judgment, reason: str, when: str) -> Judgment:
    """What stays of a judgment whose rater is forgotten: its place in the chain, and when and why the rest was taken out."""
    return Judgment(id=judgment.id, set_id="", prompt_id="", rater_id="", rater_kind="rule", order=("",),
                    flags={"": [FORGOTTEN, reason, when]}, prev_hash=judgment.prev_hash, hash=judgment.hash)  # fmt: skip


def why_forgotten(judgment: Judgment) -> tuple[str, str] | None:
    """(reason, when) of a judgment that was taken out, None for any other."""
    marks = judgment.flags.get("", [])
    return (marks[1], marks[2]) if not judgment.set_id and len(marks) == 3 and marks[0] == FORGOTTEN else None


def check_judgment(judgment: Judgment, path: Path, line: int) -> None:
    """InputError where a judgment of a chained file was changed, names a response twice, or ranks one that was not shown. Of one
    that was forgotten nothing is left to check but that it says nothing."""
    if (cut := why_forgotten(judgment)) is not None:
        if judgment != forgotten(judgment, *cut):
            raise InputError("was forgotten, and still has the fields of a vote", file=path, line=line, field="flags")
        return
    if judgment.hash != judgment_hash(judgment):
        raise InputError(
            "was changed after it was written: its hash is not that of its fields", file=path, line=line, field="hash"
        )
    if len(set(judgment.order)) < len(judgment.order):
        raise InputError("duplicate response; list every response once", file=path, line=line, field="order")
    if unshown := [response for response in judgment.ranks if response not in judgment.order]:
        raise InputError(f"ranks response {unshown[0]!r}, which is not in its order", file=path, line=line, field="ranks")


def doubled(key: str, path: Path, line: int) -> InputError:
    return InputError(f"duplicate judgment {key}; merge files with charter merge", file=path, line=line)


def missing_link(path: Path, line: int) -> InputError:
    return InputError("the judgment before it is missing; a line was taken out", file=path, line=line, field="prev_hash")


def read_judgments(path: Path) -> list[Judgment]:
    """The judgments of a file, checked. InputError names the line of one that was changed, doubled, or follows a missing one."""
    return check_chain(list(read_jsonl(path, Judgment)), path)


def check_chain(judgments: list[Judgment], path: Path) -> list[Judgment]:
    """The judgments of a file, all of them, after the checks of :func:`read_judgments`."""
    known = {judgment.hash for judgment in judgments}
    seen: set[str] = set()
    for line, judgment in enumerate(judgments, start=1):
        if judgment.id in seen:
            raise doubled(judgment.id, path, line)
        seen.add(judgment.id)
        check_judgment(judgment, path, line)
        if judgment.prev_hash and judgment.prev_hash not in known:
            raise missing_link(path, line)
    return judgments


def current(judgments: Iterable[Judgment]) -> list[Judgment]:
    """The judgments that no later one supersedes, in the given order."""
    judgments = list(judgments)
    replaced = {judgment.supersedes for judgment in judgments if judgment.supersedes}
    return [judgment for judgment in judgments if judgment.id not in replaced]


DECIDED = "decided="  # before the id of a principle, among the flags of a set


def deciding(judgment: Judgment) -> tuple[str, ...]:
    """Ids of the principles that the rater named as the ones that decided, in their order; empty where none was named."""
    marks = judgment.flags.get(judgment.set_id, ())
    return tuple(mark.removeprefix(DECIDED) for mark in marks if mark.startswith(DECIDED))


NOT_CONTENT = {"id", "supersedes", "prev_hash", "hash"}


def repeated(judgments: Iterable[Judgment]) -> set[str]:
    """Ids of the judgments that another chain has as well: two exports of one tool that were imported and merged.

    The same vote has the same rater, items, answer and timings. Within a chain, a rater who answered twice in the same way has
    two votes; of several chains, the one with the most copies of a vote keeps them.
    """
    chain_of: dict[str, str] = {}  # hash of a judgment to the hash that its chain begins with
    links: dict[str, str] = {}
    copies: dict[bytes, list[tuple[str, str]]] = {}  # content to ids and hashes
    for judgment in judgments:
        links[judgment.hash] = judgment.prev_hash
        content = judgment.model_dump_json(exclude=NOT_CONTENT)
        copies.setdefault(hashlib.sha256(content.encode()).digest(), []).append((judgment.id, judgment.hash))

    def beginning(key: str) -> str:
        path = []
        while key not in chain_of and links.get(key):
            path.append(key)
            key = links[key]
        first = chain_of.get(key, key)
        chain_of.update(dict.fromkeys(path, first))
        return first

    drop: set[str] = set()
    for same in copies.values():
        by_chain: dict[str, list[str]] = {}
        for key, digest in same if len(same) > 1 else ():
            by_chain.setdefault(beginning(digest), []).append(key)
        groups = sorted(map(sorted, by_chain.values()))
        drop |= {key for keys in groups if keys is not max(groups, key=len) for key in keys}
    return drop
