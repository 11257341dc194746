"""Annotated pairs, version 2.0: the JSON file in which ICAI and Feedback Forensics exchange pairs and their annotations.

``{"metadata": {"version", "default_annotator", …}, "annotators": {id: {"name", "description", "type"}}, "comparisons": [{"id",
"prompt", "response_a": {"text", "model"}, "response_b", "annotations": {id: {"pref": "a"}}}]}``. Annotators of type ``principle``
are principles. ``charter import`` reads the format (:mod:`charter.votes.imports.annotated`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.records import Prompt, Response
from charter.votes.layouts import plain_prompt

VERSION = "2.0"
DEFAULT_ANNOTATOR = "ba751e7b"
"""The id under which Feedback Forensics looks for the annotator with which it compares the others."""
NO_MODEL = ("", "unknown")
MAJORITY = "majority"  # the type of an annotator that is not a rater
PRINCIPLE_TYPE = "principle"
NO_PREFERENCE = {"pref": None, "no_pref_reason": "not_applicable"}


@dataclass(frozen=True)
class Annotator:
    """Who prefers: ``type`` is ``principle``, ``majority`` or a kind of rater."""

    name: str
    description: str
    type: str

    @property
    def id(self) -> str:
        """As ICAI makes it of a principle's text."""
        return short_hash(self.description if self.type == PRINCIPLE_TYPE else f"{self.type} {self.name}")


def short_hash(text: str) -> str:
    return hashlib.md5(text.encode("utf-8"), usedforsecurity=False).hexdigest()[:8]


@dataclass(frozen=True)
class AnnotatedPair:
    """Two responses and, for each annotator's number that says something about them, its preference: above 0 for the first, below
    for the second, 0 for none."""

    prompt: Prompt
    first: Response
    second: Response
    preferences: Mapping[int, float]


def annotated_pairs(name: str, annotators: Sequence[Annotator], pairs: Iterable[AnnotatedPair]) -> tuple[dict[str, Any], int]:
    """The document, and how many pairs were left out because their prompt is not a transcript. The first annotator is the default
    one. An annotator without any annotation is not written, since Feedback Forensics fails on it."""
    ids = [DEFAULT_ANNOTATOR, *(annotator.id for annotator in annotators[1:])]
    comparisons, left_out = [], 0
    for pair in pairs:
        plain = plain_prompt(pair.prompt)
        if plain is None:
            left_out += 1
            continue
        prompt = plain[0]
        responses = [_response(pair.first), _response(pair.second)]
        annotations = {
            ids[number]: {"pref": "a" if preference > 0 else "b"} if preference else NO_PREFERENCE
            for number, preference in pair.preferences.items()
        }
        comparisons.append({"id": comparison_id(prompt, *responses), "prompt": prompt, "response_a": responses[0],
                            "response_b": responses[1], "annotations": annotations})  # fmt: skip
    used = {key for comparison in comparisons for key in comparison["annotations"]}
    described = {key: vars(annotator) for key, annotator in zip(ids, annotators, strict=True) if key in used}
    metadata = {"version": VERSION, "description": "Pairs with votes and principles, written by Charter", "dataset_name": name,
                "default_annotator": DEFAULT_ANNOTATOR}  # fmt: skip
    return {"metadata": metadata, "annotators": described, "comparisons": comparisons}, left_out


def _response(response: Response) -> dict[str, str]:
    return {"text": response.text} | ({"model": response.model} if response.model not in NO_MODEL else {})


def comparison_id(prompt: str, *responses: Mapping[str, str]) -> str:
    """The id that ICAI gives the same comparison, so that files can be merged there."""
    return short_hash("|".join([prompt, *(json.dumps(response, sort_keys=True) for response in responses)]))


def principle_texts(path: Path) -> list[str] | None:
    """The texts of the principles that annotate a file; None where the file is of another format. InputError where it annotates
    with none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    annotators = content.get("annotators") if isinstance(content, dict) else None
    if not isinstance(annotators, dict):
        return None
    principles = [a for a in annotators.values() if isinstance(a, dict) and a.get("type") == PRINCIPLE_TYPE]
    texts = [text for a in principles if isinstance(text := a.get("description"), str) and text.strip()]
    if not texts:
        raise InputError("no annotator is a principle with a description; give a file with principles", file=path)
    return texts
