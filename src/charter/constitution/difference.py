"""What changed from one constitution to another, and what of a run depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from charter.constitution.constitution import TOPIC, Constitution, Principle

Change = Literal[
    "added", "removed", "renamed", "retitled", "reworded", "reweighted", "retagged", "reranked", "annotated", "reordered"
]
WORDS = ("critique", "revision", "preference", "question", "good_answer", "criteria", "about", "allowed")
KINDS: dict[Change, tuple[str, ...]] = {
    "retitled": ("title",), "reworded": WORDS, "reweighted": ("weight",), "retagged": ("tags",),
    "reranked": ("priority", "authority"), "annotated": ("points", "examples", "support", "wording"),
}  # fmt: skip
REMARKS: dict[Change, str] = {"reranked": ", which a run reads with feedback.priorities"}
READ_BY_REVISE = frozenset({"critique", "revision", "tags", "weight"})
READ_BY_FEEDBACK = frozenset({"preference", "question", "good_answer", "criteria", "tags", "weight", "priority", "authority"})
READ_OF_TOPICS = frozenset({"title", "about", "tags"})


@dataclass(frozen=True)
class Difference:
    """One change of one principle. ``fields``: what of it differs, with both values in ``before`` and ``after``; empty for a
    principle that is new or gone. ``stages``: those that read what changed, `prompts`, `revise` and `feedback`; what follows them
    follows from them."""

    change: Change
    principle: str
    words: str
    stages: tuple[str, ...]
    before: dict[str, object]
    after: dict[str, object]


def differences(old: Constitution, new: Constitution) -> list[Difference]:
    """What changed from ``old`` to ``new``: principles that are gone, new, or under another id with the same content; then, in
    the order of ``new``, what differs in the others; then those that changed places among themselves. Title and description of
    the whole, and the source of a principle, reach no model and do not count."""
    before, after = ({p.id: p for p in constitution.principles} for constitution in (old, new))
    gone = [p for p in old.principles if p.id not in after]
    fresh = [p for p in new.principles if p.id not in before]
    renamed = [(p, q) for p in gone for q in fresh if content_of(p) == content_of(q)]
    moved = {name for pair in renamed for name in (pair[0].id, pair[1].id)}
    rows = [whole("removed", p) for p in gone if p.id not in moved]
    rows += [whole("added", q) for q in fresh if q.id not in moved]
    rows += [
        Difference("renamed", q.id, f"was {p.id}", stages_of(q, set(Principle.model_fields)), {"id": p.id}, {"id": q.id})
        for p, q in renamed
    ]
    rows += [row for q in new.principles if q.id in before for row in changes_of(before[q.id], q)]
    return rows + reordered([p for p in old.principles if p.id in after], [q for q in new.principles if q.id in before])


def content_of(principle: Principle) -> dict[str, object]:
    """What of a principle reaches a model, or says which prompts it is for."""
    return principle.model_dump(mode="json", exclude={"id", "source"})


def whole(change: Change, principle: Principle) -> Difference:
    """A principle that is new or gone."""
    return Difference(change, principle.id, principle.title, stages_of(principle, set(Principle.model_fields)), {}, {})


def changes_of(old: Principle, new: Principle) -> list[Difference]:
    """What differs between two principles of one id, a row for each kind of change."""
    before, after = content_of(old), content_of(new)
    rows = []
    for change, fields in KINDS.items():
        differing = [field for field in fields if before[field] != after[field]]
        if differing:
            stages = sorted({stage for p in (old, new) for stage in stages_of(p, set(differing))}, key=STAGES.index)
            rows.append(Difference(
                change, new.id, ", ".join(differing) + REMARKS.get(change, ""), tuple(stages),
                {field: before[field] for field in differing}, {field: after[field] for field in differing},
            ))  # fmt: skip
    return rows


STAGES = ("prompts", "revise", "feedback")


def stages_of(principle: Principle, fields: set[str]) -> tuple[str, ...]:
    """The stages that read some of these fields of the principle."""
    reads = {
        "prompts": TOPIC in principle.tags and bool(fields & READ_OF_TOPICS),
        "revise": principle.critique is not None and bool(fields & READ_BY_REVISE),
        "feedback": principle.preference is not None and bool(fields & READ_BY_FEEDBACK),
    }
    return tuple(stage for stage in STAGES if reads[stage])


def reordered(old: Sequence[Principle], new: Sequence[Principle]) -> list[Difference]:
    """The fewest principles whose move turns one order of the same ids into the other. Draws do not depend on the order; a model
    that sorts prompts reads the topics in theirs."""
    before, after = [p.id for p in old], [p.id for p in new]
    topics = [[p.id for p in principles if TOPIC in p.tags] for principles in (old, new)]
    moved: tuple[str, ...] = () if topics[0] == topics[1] else ("prompts",)
    stay = longest_common(before, after)
    rows = []
    for place, principle in enumerate(new, start=1):
        if principle.id not in stay:
            was = before.index(principle.id) + 1
            rows.append(Difference(
                "reordered", principle.id, f"from place {was} to {place} of {len(new)}", moved if TOPIC in principle.tags else (),
                {"place": was}, {"place": place},
            ))  # fmt: skip
    return rows


def longest_common(old: list[str], new: list[str]) -> set[str]:
    """A longest sequence of names that stands in both orders: no name of it needs to move."""
    place = {name: number for number, name in enumerate(old)}
    chains: list[list[str]] = []
    for name in new:
        before = [chain for chain in chains if place[chain[-1]] < place[name]]
        chains.append([*longest(before), name])
    return set(longest(chains))


def longest(chains: Sequence[list[str]]) -> list[str]:
    """The first of the longest; empty where there is none."""
    return max(chains, key=lambda chain: len(chain), default=[])
