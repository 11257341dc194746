"""The executor card: how far the same constitution gives the same verdicts to different judges.

A constitution decides nothing until a judge reads it. The card lets several executors answer every principle about the same
pairs and counts how often two of them name the same response: two protocols of one model, two models, one model in two orders,
under another word for the answer, with the parts of a principle in reverse, and under each part alone. A principle that pulls two
ways shows in the last three. Published figures stand beside (Open Problems in Constitutional Preference Reconstruction,
arXiv:2606.30116).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charter.constitution.constitution import Constitution, Principle
from charter.errors import InputError
from charter.judging.judge import response_question
from charter.judging.protocols import PROTOCOLS
from charter.judging.rubrics import questions_of
from charter.judging.vote_pairs import ResponsePair, as_response, ask_principles, sides
from charter.models.sampling.sampler import Sampler
from charter.raters.principle_weights import FAMILY_ERROR
from charter.records import Pair, content_id
from charter.statistics import Estimate, clustered_share

Floats = NDArray[np.float64]
PUBLISHED = (("across executors, and across models", 0.73), ("within one model", 0.81), ("refined principles", 0.78))
CARD_PROTOCOLS = ("letters", "yes_no", "dialogue")
BETWEEN = ("protocols", "judges")
"""Kinds of comparison of different executors; the others are of one judge with itself."""
SOURCE = "arXiv:2606.30116, 2026"
SYNONYMS = {"reply": "response", "replies": "responses", "response": "reply", "responses": "replies", "answer": "response",
            "answers": "responses"}  # fmt: skip
FRAME = re.compile(r"^(?P<frame>(?:choose|pick|prefer|select)\b.*?\b(?:that|which)\b)\s+(?P<clauses>.+?)[.?]?$", re.IGNORECASE)
JOINT = re.compile(r",?\s+(?:and|but|while)\s+(?=(?:is|are|has|does|would|will|can|never|not|\w+[^s\W]s)\b)|;\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Agreement:
    """How often two executors name the same response. ``kind``: what differs between them; ``same`` (C, N): 1, 0, or NaN where
    one of the two says nothing."""

    kind: str
    name: str
    same: Floats


def comparable_pairs(pairs: Sequence[Pair], limit: int) -> list[ResponsePair]:
    """At most ``limit`` pairs, by a hash of their texts, in an order that does not tell the chosen response."""
    chosen = sorted(pairs, key=lambda pair: content_id(pair.prompt.id, pair.chosen, pair.rejected))[:limit]
    pairs_of_texts = [(pair.prompt, *sides(pair.chosen, pair.rejected)) for pair in chosen]
    return [ResponsePair(prompt, as_response(prompt, first), as_response(prompt, second))
            for prompt, first, second in pairs_of_texts]  # fmt: skip


def executor_card(
    samplers: Mapping[str, Sampler], constitution: Constitution, pairs: Sequence[ResponsePair], *,
    protocols: Sequence[str] = CARD_PROTOCOLS, batch_size: int = 256, quiet: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """The card of a constitution by one model or two, as JSON values. InputError where no principle can be asked."""
    principles = [principle for principle in constitution.principles if principle.preference is not None]
    if not principles:
        raise InputError("no principle has a preference text; a judge cannot compare by it")
    rows: list[Agreement] = []
    plain: dict[tuple[str, str], Floats] = {}
    for model, sampler in samplers.items():
        for protocol in protocols:
            judge = PROTOCOLS[protocol](sampler)

            def verdicts(wordings: Sequence[Principle], judge: Any = judge) -> tuple[Floats, Floats]:
                panel = ask_principles(judge, wordings, pairs, batch_size=batch_size, quiet=quiet)
                return np.sign(panel.margins), np.sign(panel.orders)

            plain[model, protocol], orders = verdicts(principles)
            name = f"{protocol}, {model}"
            if protocol == "letters":
                rows.append(Agreement("swap", name, agree(orders[:, :, 0], orders[:, :, 1])))
            words = [reword(p) for p in principles]
            same = agree(plain[model, protocol], verdicts(words)[0])
            same[[text_of(protocol, p) == text_of(protocol, q) for p, q in zip(principles, words, strict=True)]] = np.nan
            rows.append(Agreement("wording", name, same))
            rows += part_agreements(name, protocol, principles, plain[model, protocol], lambda wordings: verdicts(wordings)[0])
    for ((model, protocol), first), ((other, second_protocol), second) in combinations(plain.items(), 2):
        if model == other:
            rows.append(Agreement("protocols", f"{protocol} and {second_protocol}, {model}", agree(first, second)))
        elif protocol == second_protocol:
            rows.append(Agreement("judges", f"{protocol}, {model} and {other}", agree(first, second)))
    return card_of(rows, principles, pairs, left_out=len(constitution.principles) - len(principles))


def text_of(protocol: str, principle: Principle) -> object:
    """What a judge by this protocol is told of a principle. The same text twice gives the same verdict, which shows nothing."""
    if protocol == "rubric":
        return questions_of(principle)
    return response_question(principle) if protocol in ("yes_no", "dialogue") else principle.preference


def part_agreements(
    name: str, protocol: str, principles: Sequence[Principle], plain: Floats, verdicts: Any
) -> list[Agreement]:  # fmt: skip
    """Of the principles with several parts: the parts in reverse, if the judge is told them, and each two of the parts alone."""
    parts = {c: principle_parts(principle) for c, principle in enumerate(principles)}
    several = [c for c, texts in parts.items() if len({str(text_of(protocol, text)) for text in texts}) > 1]
    if not several:
        return []
    turned, among = np.full(plain.shape, np.nan), np.full(plain.shape, np.nan)
    reverse = verdicts([join_parts(principles[c], parts[c][::-1]) for c in several])
    alone = verdicts([part for c in several for part in parts[c]])
    start = 0
    for number, c in enumerate(several):
        verdicts_alone = alone[start : start + len(parts[c])]
        start += len(parts[c])
        if text_of(protocol, principles[c]) != text_of(protocol, join_parts(principles[c], parts[c][::-1])):
            turned[c] = agree(plain[c], reverse[number])
        pairs = np.stack([agree(a, b) for a, b in combinations(verdicts_alone, 2)])
        read = ~np.isnan(pairs)
        with np.errstate(invalid="ignore"):
            among[c] = np.where(read.any(axis=0), np.nansum(pairs, axis=0) / read.sum(axis=0), np.nan)
    return [Agreement("order of parts", name, turned), Agreement("parts", name, among)]


def agree(first: Floats, second: Floats) -> Floats:
    """1 where two verdicts (−1, 0, 1) name the same response, 0 where they do not, NaN where one of them is missing."""
    both = (np.nan_to_num(first) != 0) & (np.nan_to_num(second) != 0)
    return np.where(both, first == second, np.nan)


def reword(principle: Principle) -> Principle:
    """The principle with another word for the answer: reply for response, response for reply and answer."""
    texts = {
        field: re.sub(r"\b\w+\b", lambda word: SYNONYMS.get(word[0], word[0]), text)
        for field in ("preference", "question")
        if (text := getattr(principle, field)) is not None
    }
    return principle.model_copy(update=texts)


def clauses(text: str) -> list[str]:
    """The parts of an instruction: its sentences, and of "Choose the reply that X and Y" each clause in the same frame."""
    parts: list[str] = []
    for sentence in re.split(r"(?<=[.?!])\s+", text.strip()):
        framed = FRAME.match(sentence)
        pieces = JOINT.split(framed["clauses"]) if framed else [sentence]
        parts += [f"{framed['frame']} {piece}." for piece in pieces] if framed and len(pieces) > 1 else [sentence]
    return parts


def principle_parts(principle: Principle) -> list[Principle]:
    """The parts of a principle as principles; its question has as many parts, or belongs to none of them."""
    texts = clauses(principle.preference or "")
    questions: Sequence[str | None] = clauses(principle.question) if principle.question else []
    if len(questions) != len(texts):
        questions = [None] * len(texts)
    return [
        principle.model_copy(update={"preference": text, "question": question})
        for text, question in zip(texts, questions, strict=True)
    ]


def join_parts(principle: Principle, parts: Sequence[Principle]) -> Principle:
    """The principle of these parts in this order."""
    questions = [part.question for part in parts if part.question]
    joined = {"preference": " ".join(part.preference or "" for part in parts)}
    return principle.model_copy(update=joined | ({"question": " ".join(questions)} if questions else {}))


def card_of(
    rows: Sequence[Agreement], principles: Sequence[Principle], pairs: Sequence[ResponsePair], *, left_out: int
) -> dict[str, Any]:
    """The card in numbers: every comparison of two executors, the kinds of comparison, and the principles, those first about
    which one judge agrees least with itself.

    ``within``: agreement of one judge with itself, ``between``: of different executors, ``parts_agreement``: of the parts of the
    principle with each other. ``causes_disagreement`` names which of ``within`` and ``between`` has an interval, corrected for
    the number of principles, below the agreement of the other principles together.
    """
    clusters = [pair.cluster for pair in pairs]
    kinds = list(dict.fromkeys(row.kind for row in rows))
    same = {kind: np.stack([row.same for row in rows if row.kind == kind], axis=1) for kind in kinds}  # (C, comparisons, N)
    empty = np.empty((len(principles), 0, len(pairs)))
    sets = {
        "within": np.concatenate([same[kind] for kind in kinds if kind not in BETWEEN] or [empty], axis=1),
        "between": np.concatenate([same[kind] for kind in kinds if kind in BETWEEN] or [empty], axis=1),
    }
    level = 1 - FAMILY_ERROR / len(principles)
    table = []
    for c, principle in enumerate(principles):
        row: dict[str, Any] = {"id": principle.id, "title": principle.title, "parts": len(principle_parts(principle))}
        for name, verdicts in sets.items():
            others = np.delete(verdicts, c, axis=0)
            row[name] = figures(shared(verdicts[c], clusters, level))
            row[name]["others"] = float(np.nanmean(others)) if (~np.isnan(others)).any() else None
        row["parts_agreement"] = figures(shared(same.get("parts", empty)[c], clusters))
        row["causes_disagreement"] = [name for name in sets if is_below(row[name])]
        table.append(row)
    return {
        "pairs": len(pairs), "principles_left_out": left_out,
        "comparisons": [{"kind": row.kind, "name": row.name, **figures(shared(row.same, clusters))} for row in rows],
        "kinds": [{"kind": kind, **figures(shared(same[kind], clusters))} for kind in kinds],
        "principles": sorted(table, key=lambda row: (row["within"]["agreement"] is None, row["within"]["agreement"])),
        "published": [{"name": name, "agreement": value, "source": SOURCE} for name, value in PUBLISHED],
    }  # fmt: skip


def shared(same: Floats, clusters: Sequence[str], level: float = 0.95) -> Estimate:
    """The share of agreeing verdicts (…, N), clustered by the dialogue of each pair."""
    read = ~np.isnan(same)
    labels = np.broadcast_to(np.array(clusters, dtype=object), same.shape)[read]
    return clustered_share(same[read].tolist(), labels.tolist(), level)


def is_below(row: Mapping[str, Any]) -> bool:
    """Whether the interval of an agreement lies below that of the others."""
    return row["ci"] is not None and row["others"] is not None and row["ci"][1] < row["others"]


def figures(share: Estimate) -> dict[str, Any]:
    return {"agreement": share.value, "ci": share.ci, "n": share.n}
