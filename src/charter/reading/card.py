"""The data card of prompts: counts, scripts, lengths, duplicates, who judged, and what is missing."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from charter.errors import InputError
from charter.reading.dealing import what_it_says
from charter.reading.prompts import KINDS, is_kind, read_prompts
from charter.reading.rows import read_rows
from charter.records import Judgment, Prompt
from charter.run.files import read_jsonl

NONE = "none"
QUANTILES = {"min": 0.0, "p5": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}
SHOWN = 12  # lines of a table on the terminal
VOTES_OF_RUN = re.compile(r"feedback(-\d+)?|label")
"""The folders of a run that have judgments: of the judge in each round, and of people."""


@dataclass
class _Tally:
    """What is counted while prompts pass by."""

    n: int = 0
    principles: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    tags: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    characters: array[int] = field(default_factory=lambda: array("L"))
    words: array[int] = field(default_factory=lambda: array("L"))
    turns: array[int] = field(default_factory=lambda: array("L"))
    splits_of: dict[bytes, int] = field(default_factory=dict)
    """By what a prompt says, its splits so far as bits: 1 train, 2 test, 4 none."""
    duplicates: int = 0


def data_card(
    prompts: Iterable[Prompt],
    judgments: Iterable[Judgment] = (),
    *,
    groups: Mapping[str, str] | None = None,
    principles: Sequence[str] = (),
) -> dict[str, Any]:
    """The card in JSON values. Lengths are of all messages of a prompt, in characters, words and turns; the script of a prompt is
    that of most of its letters; duplicates say the same but for case, spacing and Unicode form. ``groups``: the group of a rater,
    by default its kind (human, judge, …). ``principles``: ids of the constitution, to name those without a prompt."""
    tally = _Tally()
    for prompt in prompts:
        _count(tally, prompt)
    raters = raters_card(judgments, groups or {})
    both = sum(bits & 3 == 3 for bits in tally.splits_of.values())
    return {
        "prompts": tally.n,
        "principles": {name: {"all": sum(splits.values()), **splits} for name, splits in sorted(tally.principles.items())},
        "kinds": dict(tally.kinds), "tags": dict(tally.tags.most_common()), "splits": dict(tally.splits),
        "sources": dict(tally.sources.most_common()), "scripts": dict(tally.scripts.most_common()),
        "lengths": {name: quantiles(getattr(tally, name)) for name in ("characters", "words", "turns")},
        "duplicates": tally.duplicates, "in_train_and_test": both, "raters": raters,
        "missing": missing(tally, both, raters, principles),
    }  # fmt: skip


def _count(tally: _Tally, prompt: Prompt) -> None:
    text = "\n".join(message.content for message in prompt.messages)
    split = prompt.split or NONE
    tally.n += 1
    tally.principles[prompt.principle or NONE][split] += 1
    tally.tags.update(prompt.tags or [NONE])
    tally.kinds.update(kind for kind in KINDS if is_kind(prompt.tags, kind))
    tally.splits[split] += 1
    tally.sources[prompt.source or NONE] += 1
    tally.scripts[script_of(text)] += 1
    tally.characters.append(len(text))
    tally.words.append(len(text.split()))
    tally.turns.append(len(prompt.messages))
    digest = what_it_says(prompt)
    tally.duplicates += digest in tally.splits_of
    tally.splits_of[digest] = tally.splits_of.get(digest, 0) | {"train": 1, "test": 2}.get(split, 4)


def script_of(text: str) -> str:
    """The script of most letters of a text, by the first word of their Unicode names (Latin, Cyrillic, CJK, …); none without
    letters."""
    scripts = Counter(name for character in text if (name := _script(character)))
    return scripts.most_common(1)[0][0] if scripts else NONE


@lru_cache(maxsize=2**16)
def _script(character: str) -> str:
    if not character.isalpha():
        return ""
    name = unicodedata.name(character, "UNNAMED").split()[0]
    return name if name == "CJK" else name.capitalize()


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Lowest, 5 %, median, 95 % and highest; empty without values."""
    if not len(values):
        return {}
    numbers = np.array(values)
    return {name: float(np.quantile(numbers, share)) for name, share in QUANTILES.items()}


def raters_card(judgments: Iterable[Judgment], groups: Mapping[str, str]) -> list[dict[str, Any]]:
    """For each group of raters how many they are, their judgments, the share of all, those without a verdict, and the share of
    the group's most active rater. The groups by the number of judgments; superseded judgments do not count."""
    rows = list(judgments)
    replaced = {row.supersedes for row in rows if row.supersedes}
    by_group: defaultdict[str, list[Judgment]] = defaultdict(list)
    for row in rows:
        if row.id not in replaced and row.set_id:  # a forgotten vote has no set, and counts for nobody
            by_group[groups.get(row.rater_id, NONE) if groups else row.rater_kind].append(row)
    n = sum(map(len, by_group.values()))
    card = []
    for group, given in sorted(by_group.items(), key=lambda item: (-len(item[1]), item[0])):
        each = Counter(row.rater_id for row in given)
        card.append({
            "group": group, "raters": len(each), "judgments": len(given), "share": len(given) / n,
            "without_verdict": sum(not row.has_verdict for row in given), "most_active": max(each.values()) / len(given),
        })  # fmt: skip
    return card


def missing(tally: _Tally, both: int, raters: Sequence[Mapping[str, Any]], principles: Sequence[str]) -> list[str]:
    """What the data lacks, a sentence each."""
    words = []
    for what, n in (
        ("principle", sum(tally.principles[NONE].values())), ("tag", tally.tags[NONE]), ("split", tally.splits[NONE]),
        ("source", tally.sources[NONE]), ("letter", tally.scripts[NONE]),
    ):  # fmt: skip
        if n:
            words.append(f"{n:,} of {tally.n:,} prompts have no {what}")
    for name in ("train", "test"):
        without = [principle for principle, splits in sorted(tally.principles.items()) if principle != NONE and not splits[name]]
        if without and tally.splits[name]:
            words.append(f"no {'held-out' if name == 'test' else 'training'} prompt of the principles {', '.join(without)}")
    if unused := [name for name in principles if name not in tally.principles]:
        words.append(f"no prompt is sorted under the principles {', '.join(unused)}")
    if absent := [kind for kind in ("red_team", "benign") if not tally.kinds[kind]]:
        words.append(f"no prompt is tagged {' or '.join(absent)}")
    if tally.duplicates:
        words.append(f"{tally.duplicates:,} prompts are duplicates")
    if both:
        words.append(f"{both:,} prompts are in both splits, so what is measured was trained on")
    words += [f"{row['judgments']:,} judgments are of raters without a group" for row in raters if row["group"] == NONE]
    return words


def card_of(
    place: Path, judgments: Path | None = None, *, groups: Path | None = None, principles: Sequence[str] = ()
) -> dict[str, Any]:
    """The card of a file of prompts, or of a run folder with its judgments, of the judge and of people. ``judgments``: a file or
    a folder instead; ``groups``: a table of rater and group. InputError if a file is missing or does not read."""
    files = [judgments / "judgments.jsonl" if judgments.is_dir() else judgments] if judgments is not None else []
    prompts = place
    if place.is_dir():
        prompts = next((f for f in (place / "prompts/prompts.jsonl", place / "prompts.jsonl") if f.is_file()), place)
        folders = [place, *(folder for folder in sorted(place.iterdir()) if VOTES_OF_RUN.fullmatch(folder.name))]
        files = files or [file for folder in folders if (file := folder / "judgments.jsonl").is_file()]
        if prompts == place:
            raise InputError("prompts.jsonl is missing; give a file of prompts, a run folder or a folder of feedback", file=place)
    if groups is not None and not files:
        raise InputError("no judgments to group raters by; name the file with --judgments", file=groups)
    rows = (judgment for file in files for judgment in read_jsonl(file, Judgment))
    return data_card(read_prompts(prompts), rows, groups=read_groups(groups) if groups else None, principles=principles)


def read_groups(path: Path) -> dict[str, str]:
    """The group of each rater of a table with the columns rater (or rater_id) and group, both texts or whole numbers. A rater
    whose group is empty has none. InputError names file, line, field."""
    groups: dict[str, str] = {}
    for row in read_rows(path):
        if "group" not in row.values:
            raise row.bad("missing; give the columns rater and group", "group")
        column = "rater_id" if "rater_id" in row.values else "rater"
        rater, group = ((row.optional(name) or "").strip() for name in (column, "group"))
        if not rater:
            raise row.bad("missing; name the rater or remove the row", column)
        if group and groups.setdefault(rater, group) != group:
            raise row.bad(f"{rater!r} has two groups; keep one", "group")
    return groups


def card_lines(card: Mapping[str, Any]) -> list[str]:
    """The card as a text table."""
    n = card["prompts"]
    lines = [f"{n:,} prompts", "", *_counts("principle", {name: row["all"] for name, row in card["principles"].items()}, n)]
    for name, title in (("tags", "tag"), ("splits", "split"), ("scripts", "script"), ("sources", "source")):
        lines += _counts(title, card[name], n)
    lines += ["", f"{'length':20}" + "".join(f"{name:>9}" for name in QUANTILES)]
    for name, row in card["lengths"].items():
        lines.append(f"  {name:18}" + "".join(f"{value:9,.0f}" for value in row.values()))
    if card["raters"]:
        lines += ["", f"{'rater group':20}{'raters':>9}{'votes':>9}{'share':>9}{'no verdict':>12}{'most active':>13}"]
    for row in card["raters"]:
        lines.append(f"  {shown(row['group'], 24):18}{row['raters']:9,}{row['judgments']:9,}{row['share']:9.1%}"
                     f"{row['without_verdict']:12,}{row['most_active']:13.1%}")  # fmt: skip
    lines += [
        "",
        "missing" if card["missing"] else "nothing is missing",
        *(f"  {shown(words, 120)}" for words in card["missing"]),
    ]
    return lines


def _counts(title: str, counts: Mapping[str, int], n: int) -> list[str]:
    rows = sorted(counts.items(), key=lambda item: -item[1])
    lines = [f"  {shown(name, 24):26}{count:9,}{count / max(n, 1):9.1%}" for name, count in rows[:SHOWN]]
    more = [f"  … and {len(rows) - SHOWN} more (--json)"] if len(rows) > SHOWN else []
    return [title, *lines, *more]


def shown(text: str, length: int = 32) -> str:
    """A name from a file for a terminal or an axis: printable, on one line, not too long."""
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return printable if len(printable) <= length else printable[: length - 1] + "…"
