"""How much of a reference a text says: ROUGE-L."""

from __future__ import annotations

import re
from collections.abc import Sequence

WORD = re.compile(r"[^\W_]+")


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, lower case, without stemming (Lin 2004, section 3.1, with β = 1): between 0
    and 1. 0 where one of the two has no words."""
    words, wanted = WORD.findall(text.lower()), WORD.findall(reference.lower())
    common = longest_common_subsequence(words, wanted)
    return 2 * common / (len(words) + len(wanted)) if common else 0.0


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest sequence that stands in both in this order, with gaps."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
    return row[-1]
