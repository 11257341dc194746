"""Prompts without duplicates, dealt into splits and samples that a seed fixes."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from charter.errors import InputError
from charter.records import Prompt, Split, content_id


def deduplicate(prompts: Iterable[Prompt]) -> tuple[list[Prompt], int]:
    """The first of all prompts that say the same, and how many were dropped. Unicode form (NFKC), case and white
    space do not count as a difference; who says it does."""
    first: dict[bytes, Prompt] = {}
    n = 0
    for n, prompt in enumerate(prompts, start=1):  # noqa: B007 - the count is used below
        first.setdefault(what_it_says(prompt), prompt)
    return list(first.values()), n - len(first)


def what_it_says(prompt: Prompt) -> bytes:
    """16 bytes that are equal where two prompts say the same: a hash of roles and normalised texts."""
    turns = [(message.role, _normal(message.content)) for message in prompt.messages]
    return hashlib.blake2b(json.dumps(turns, ensure_ascii=False).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_prompts(prompts: Iterable[Prompt], *, test_fraction: float, seed: int) -> list[Prompt]:
    """The same prompts in the same order, each with a split.

    A given split stays. The others are dealt by a hash of id and seed within each stratum of (principle, tags), so that
    the test part is ``test_fraction`` of every stratum and of the whole, to within one prompt unless given splits
    exceed it, whatever the order of the input. Prompts with equal ids get the same split. ValueError where the
    fraction is not in [0, 1]; InputError where equal prompts were given different splits.
    """
    if not 0 <= test_fraction <= 1:
        raise ValueError(f"test_fraction is {test_fraction}; it should be between 0 and 1")
    prompts = list(prompts)
    splits: dict[str, Split] = {}
    strata_of: dict[str, set[str]] = defaultdict(set)
    for prompt in prompts:
        strata_of[prompt.id].add(content_id(prompt.principle, sorted(prompt.tags)))
        if prompt.split and splits.setdefault(prompt.id, prompt.split) != prompt.split:
            start = prompt.last_turn[:40]
            raise InputError(f"prompt {prompt.id} ({start!r}) is in both train and test; keep it in one")

    strata: dict[str, list[str]] = defaultdict(list)
    for id, names in strata_of.items():
        strata[min(names)].append(id)  # equal prompts under several principles count once
    quotas = apportion({name: len(ids) for name, ids in strata.items()}, test_fraction, seed)
    for name, ids in strata.items():
        free = sorted((id for id in ids if id not in splits), key=lambda id: content_id(seed, id))
        wanted = max(0, quotas[name] - sum(splits.get(id) == "test" for id in ids))
        splits |= {id: "test" if number < wanted else "train" for number, id in enumerate(free)}
    return [prompt.model_copy(update={"split": splits[prompt.id]}) for prompt in prompts]


def take_stratified(prompts: Iterable[Prompt], n: int, *, seed: int, by: Sequence[str] = ("principle",)) -> list[Prompt]:
    """``n`` prompts whose mix over the fields ``by`` is that of all prompts to within one each.

    Which ones, and their order, follow from their content and the seed, not from the order of the input. InputError
    where there are fewer than ``n``.
    """
    strata: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        strata[content_id([getattr(prompt, field) for field in by])].append(prompt)
    total = sum(map(len, strata.values()))
    if not 0 <= n <= total:
        raise InputError(f"{n} prompts asked for, {total} are there; ask for fewer or add prompts")

    def rank(prompt: Prompt) -> tuple[str, str]:
        return content_id(seed, prompt.id), prompt.model_dump_json()

    quotas = apportion({name: len(group) for name, group in strata.items()}, n / total if total else 0.0, seed)
    return sorted((p for name, group in strata.items() for p in sorted(group, key=rank)[: quotas[name]]), key=rank)


def apportion(sizes: dict[str, int], fraction: float, seed: int) -> dict[str, int]:
    """Whole shares of every size that add up to the whole share of the sum (largest remainders, ties by hash)."""
    quotas = {name: int(size * fraction) for name, size in sizes.items()}
    left = round(sum(sizes.values()) * fraction) - sum(quotas.values())
    for name in sorted(sizes, key=lambda name: (quotas[name] - sizes[name] * fraction, content_id(seed, name)))[:left]:
        quotas[name] += 1
    return quotas
