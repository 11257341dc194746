"""Test sets from files, recognised by their columns: the public sets, or any file of prompts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.reading.forms import LeftOut
from charter.reading.prompts import checked_tags, row_to_prompt
from charter.reading.rows import Row, read_rows
from charter.reading.sets.choices import bbq_item, hhh_item, truthful_qa_item
from charter.reading.sets.items import Item, Protocol, Sampling, TestSet
from charter.reading.sets.prompts import BENIGN, OR_BENCH_CLASSES, RED_TEAM, UNKNOWN_KIND, PromptSet, prompt_set_of
from charter.reading.sets.rankings import SECTION_OF, hhh_pair, pair_item, reward_bench_2_item, reward_bench_item
from charter.records import Filters, Prompt
from charter.run.seals import sha256_of

Reader = Callable[[Row], Item | str]
SAMPLING = {
    "harmbench": Sampling(max_new_tokens=512),
    "real_toxicity_prompts": Sampling(1.0, 20, 25, Filters(top_p=0.9)),
    "dialogsum": Sampling(max_new_tokens=128),
}
"""The published way to draw answers; of all other sets greedy, 256 tokens."""
OPTIONS: dict[str, Reader] = {"hhh": hhh_item, "truthfulqa": truthful_qa_item, "bbq": bbq_item}


def read_set(file: Path, tags: Sequence[str] = ()) -> TestSet:
    """The test set in a file. ``tags`` are put on the prompts of sets that are answered. InputError if a row cannot be read,
    where nothing is left, or where a set has two files with the same columns and nobody says which it is."""
    tags = checked_tags(tags)
    rows = list(read_rows(file))
    if not rows:
        raise InputError("the file has no rows; give a file with one item a row", file=file)
    name, title, readers = kind_of(rows, tags)
    items, left_out = {}, {}
    for protocol, read in readers.items():
        items[protocol], left_out[protocol] = read_items(rows, read)
        if not items[protocol]:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in left_out[protocol].items())
            raise InputError(f"no usable item ({reasons})", file=file)
    return TestSet(name, name, title, str(file), sha256_of(file), items, len(rows), left_out, SAMPLING.get(name, Sampling()))


def kind_of(rows: Sequence[Row], tags: Sequence[str]) -> tuple[str, str, dict[Protocol, Reader]]:
    """Name, title and readers of a set, by the columns of its first row. InputError if rows belong to different sets."""
    first = rows[0].values
    if {"chosen", "rejected"} <= first.keys():
        if "subset" in first and isinstance(first["chosen"], list) and all(isinstance(text, str) for text in first["chosen"]):
            return "rewardbench_2", "RewardBench 2", {"rewards": reward_bench_2_item}
        if first.get("subset") in SECTION_OF:
            return "rewardbench", "RewardBench", {"rewards": reward_bench_item}
        if first.keys() == {"chosen", "rejected"} and isinstance(first["chosen"], str):
            return "hh_rlhf", "hh-rlhf", {"rewards": pair_item}
        return stem_of(rows[0]), "pairs", {"rewards": pair_item}
    known = prompt_set_of(first)
    if other := next((row for row in rows if prompt_set_of(row.values) is not known and is_other(row, known)), None):
        raise other.bad(f"not a row of {known.title if known else 'prompts'}, as the first row is; give one set a file")
    if known is not None and known.name in OPTIONS:
        readers: dict[Protocol, Reader] = {"options": OPTIONS[known.name]}
        return known.name, known.title, readers | ({"rewards": hhh_pair} if known.name == "hhh" else {})
    return *name_of(rows, known, tags), {"answers": lambda row: prompt_item(row, tags)}


def is_other(row: Row, known: PromptSet | None) -> bool:
    """Whether a row belongs to another set than the first one. OR-Bench is also known by its classes, so one row with another
    class makes the file one of prompts."""
    kinds = (known, prompt_set_of(row.values))
    return not any(kind is not None and kind.name == "or_bench" for kind in kinds)


def name_of(rows: Sequence[Row], known: PromptSet | None, tags: Sequence[str]) -> tuple[str, str]:
    """Name and title of a set whose prompts are answered."""
    if known is not None and known.name == "or_bench" and not all(row.values["category"] in OR_BENCH_CLASSES for row in rows):
        known = None
    if known is None:
        return ("dialogsum", "DialogSum") if {"dialogue", "summary"} <= rows[0].values.keys() else (stem_of(rows[0]), "prompts")
    if known.name == "or_bench" and not {RED_TEAM, BENIGN} & {*tags, *row_to_prompt(rows[0], tags=tags).tags}:
        raise InputError(f"the hard and the toxic file of OR-Bench have the same columns; {UNKNOWN_KIND}", file=rows[0].file)
    return known.name, known.title


def stem_of(row: Row) -> str:
    """A name for a set from the name of its file."""
    name = Path(re.sub(r", (item|row) \d+$", "", row.file)).name.partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name) or "prompts"


def read_items(rows: Sequence[Row], read: Reader) -> tuple[list[Item], dict[str, int]]:
    """The items of rows, one for each id, and the rows that were left out by reason: an item that is there again would count
    twice. Further references of a prompt join it."""
    items: dict[str, Item] = {}
    left_out: Counter[str] = Counter()
    for row in rows:
        try:
            item = read(row)
        except LeftOut as error:
            item = error.reason
        if isinstance(item, str):
            left_out[item] += 1
        elif item.id not in items:
            items[item.id] = item
        elif item.facts.get("references"):
            known = items[item.id]
            items[item.id] = replace(known, facts={"references": [*known.facts["references"], *item.facts["references"]]})
        elif (items[item.id].prompt.messages, items[item.id].options) == (item.prompt.messages, item.options):
            left_out["the same item again"] += 1
        else:
            raise row.bad(f"duplicate id {item.id!r} with different content; give every item its own id")
    return list(items.values()), dict(left_out)


def prompt_item(row: Row, tags: Sequence[str]) -> Item:
    """A prompt to answer: its class is the first tag beside the two kinds."""
    prompt = row_to_prompt(row, tags=tags)
    group = next((tag for tag in prompt.tags if tag not in (RED_TEAM, BENIGN)), prompt.principle)
    prompt = Prompt(messages=prompt.messages, tags=prompt.tags)
    return Item(prompt.id, prompt, (), facts_of(row.values), group=group)


def facts_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of its answer: summaries to compare it with, or that only the text's hash would tell."""
    if "dialogue" in values:
        names = ("summary", "summary1", "summary2", "summary3")
        return {"references": [values[name] for name in names if isinstance(values.get(name), str) and values[name].strip()]}
    return {"by_hash": True} if values.get("FunctionalCategory") == "copyright" else {}
