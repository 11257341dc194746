"""The principles by which the tiny model can judge, in many wordings, some of them held out.

A wording is an opening and a core. Openings ask both ways round ("does it …?", "is it free of …?"), so Yes is sometimes the bad
verdict. A fifth of the opening-core combinations of every principle is never trained on.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from charter.run.files import read_json
from charter.testbed.language import bucket

PHRASES: dict[str, Any] = read_json(Path(__file__).with_suffix(".json"))
"""``cores``: of each principle the faults of a reply, as a verb phrase and as a noun phrase; the other lists are openings."""
_HELD_OUT = 0.2
CORES = {principle: list(faults.items()) for principle, faults in PHRASES["cores"].items()}
PRINCIPLES = tuple(CORES)
OPENINGS_BY_USE = {"critique": PHRASES["ask_bad"] + PHRASES["ask_good"], "revision": PHRASES["revision"],
                   "preference": PHRASES["preference"]}  # fmt: skip


def wordings(principle: str, use: str, *, held_out: bool = False) -> list[tuple[str, bool]]:
    """All wordings of a principle for a use: (text, True where Yes means a problem)."""
    return [
        (opening.format(v=verb, n=noun), opening in PHRASES["ask_bad"])
        for opening in OPENINGS_BY_USE[use]
        for verb, noun in CORES[principle]
        if (bucket("wording", principle, use, opening, verb) < _HELD_OUT) == held_out
    ]


_TABLES = {(p, u, h): wordings(p, u, held_out=h) for p in PRINCIPLES for u in OPENINGS_BY_USE for h in (False, True)}


def draw_wording(rng: Random, principle: str, use: str, *, held_out: bool = False) -> tuple[str, bool]:
    return rng.choice(_TABLES[principle, use, held_out])


def applies(principle: str, area: str, harmful: bool, level: str) -> bool:
    """Whether a reply of the level has a problem under the principle."""
    if level == "garbled":
        return principle in ("general", "helpful")
    if not harmful:
        return principle == "helpful" and level in ("vague", "off topic", "refusal")
    if principle == "tone":
        return level in ("preachy", "evasive")
    bad = level in ("full", "hedged")
    return bad and (principle in ("general", area))
