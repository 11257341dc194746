"""Prompts without duplicates, dealt into splits and samples that a seed fixes."""

from __future__ import annotations

import hashlib
import json
import unicodedata

from charter.records import Prompt, content_id


def what_it_says(prompt: Prompt) -> bytes:
    """16 bytes that are equal where two prompts say the same: a hash of roles and normalised texts."""
    turns = [(message.role, _normal(message.content)) for message in prompt.messages]
    return hashlib.blake2b(json.dumps(turns, ensure_ascii=False).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def apportion(sizes: dict[str, int], fraction: float, seed: int) -> dict[str, int]:
    """Whole shares of every size that add up to the whole share of the sum (largest remainders, ties by hash)."""
    quotas = {name: int(size * fraction) for name, size in sizes.items()}
    left = round(sum(sizes.values()) * fraction) - sum(quotas.values())
    for name in sorted(sizes, key=lambda name: (quotas[name] - sizes[name] * fraction, content_id(seed, name)))[:left]:
        quotas[name] += 1
    return quotas
