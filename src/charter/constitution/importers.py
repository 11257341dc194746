"""Constitutions in published formats.

None of these files links a critique to a preference, so an imported constitution often has one use only. Charter keeps the texts
but for the protocol words at their ends ("CritiqueRequest:" and so on), which its own prompts add.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from charter.constitution.constitution import Constitution, Principle, decode_utf8, read_bytes
from charter.errors import InputError
from charter.run.files import describe

# The three uses of a plain sentence; it comes last, so that its own punctuation closes the text.
CRITIQUE = "Say specifically where the assistant's last reply goes against this principle: {}"
REVISION = "Rewrite the assistant's last reply so that it keeps this principle: {}"
PREFERENCE = "Choose the reply that better keeps this principle: {}"


def import_constitution(path: Path) -> Constitution:
    """Read a constitution of any published format, recognised by its shape.

    - ``{name: {"prompt": [critique], "edit_request": revision}}`` (CritiqueRevisionInstructions.json of Anthropic's
      ConstitutionalHarmlessnessPaper): critique and revision, tagged red_team, for which they were used.
    - list of strings that end in "Options:" (RLMadisonInstructions.json, same source): preference, tagged red_team.
    - ``{"constitutions": [{"critic", "revision"}]}`` (llm-swarm): critique and revision, tagged red_team.
    - list of strings, or a ``.txt`` file with one principle per line (without list bullets and numbers): each
      sentence becomes a critique, a revision and a preference by the three templates of this module, for all prompts.

    ``source`` of every principle keeps the file's name and the start of its SHA-256. InputError names file and field.
    """
    raw = read_bytes(path)
    source = f"{path.name} sha256:{hashlib.sha256(raw).hexdigest()[:16]}"
    if path.suffix.lower() == ".txt":
        lines = [re.sub(r"^(?:[-*•]|\d+[.)])\s+", "", line.strip()) for line in decode_utf8(raw, path).splitlines()]
        rows = [_plain(number, line) for number, line in enumerate(filter(None, lines), start=1)]
    else:
        rows = _recognise(_parse(raw, path), path)
    if not rows:
        raise InputError("the file has no principle; write one sentence per line", file=path)
    principles = []
    for row in rows:
        try:
            principles.append(Principle(**row, source=source))
        except ValidationError as error:
            field, words = describe(error)
            raise InputError(words, file=path, field=f"{row['id']}.{field}".rstrip(".")) from None
    try:
        return Constitution(title=path.stem, description=f"Imported from {source}", principles=tuple(principles))
    except ValidationError as error:
        raise InputError(describe(error)[1], file=path) from None


def _recognise(content: Any, path: Path) -> list[dict[str, Any]]:
    """The principles as keyword arguments, still without their source."""
    if isinstance(content, dict) and "constitutions" in content:
        entries = content["constitutions"]
        if not isinstance(entries, list):
            raise InputError("not a list; write a list of critic and revision", file=path, field="constitutions")
        return [
            _revising(f"principle-{number:02}", entry, "critic", "revision", path)
            for number, entry in enumerate(entries, start=1)
        ]
    if isinstance(content, dict):
        return [_revising(name, entry, "prompt", "edit_request", path) for name, entry in content.items()]
    if isinstance(content, list) and all(isinstance(text, str) for text in content):
        make: Callable[[int, str], dict[str, Any]]
        make = _comparing if any(text.rstrip().endswith("Options:") for text in content) else _plain
        return [make(number, text) for number, text in enumerate(content, start=1)]
    raise InputError("unknown format; convert it to a JSON list of strings, or to a .txt file with one principle per line",
                     file=path)  # fmt: skip


def _revising(name: str, entry: Any, critique: str, revision: str, path: Path) -> dict[str, Any]:
    texts = {}
    for key in (critique, revision):
        value = entry.get(key) if isinstance(entry, dict) else None
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not isinstance(value, str):
            raise InputError("not a single text; write one text", file=path, field=f"{name}.{key}")
        texts[key] = value
    return {
        "id": name,
        "title": name,
        "critique": _strip(texts[critique], "Critique ?Request", "Critique"),
        "revision": _strip(texts[revision], "Revision ?Request", "Revision"),
        "tags": ("red_team",),
    }


def _comparing(number: int, text: str) -> dict[str, Any]:
    name = f"principle-{number:02}"
    return {"id": name, "title": name, "preference": _strip(text, "Human", "Options"), "tags": ("red_team",)}


def _plain(number: int, sentence: str) -> dict[str, Any]:
    sentence = " ".join(sentence.split())
    return {
        "id": f"principle-{number:02}",
        "title": sentence if len(sentence) <= 60 else sentence[:59].rsplit(" ", 1)[0] + "…",
        # An empty sentence stays empty, so that it is refused instead of hidden inside a template.
        "critique": sentence and CRITIQUE.format(sentence),
        "revision": sentence and REVISION.format(sentence),
        "preference": sentence and PREFERENCE.format(sentence),
    }


def _strip(text: str, opening: str, closing: str) -> str:
    """The text without the protocol words at its two ends."""
    return re.sub(rf"\A\s*{opening}:|\s*\b{closing}:\s*\Z", "", text).strip()


def _parse(raw: bytes, path: Path) -> Any:
    try:
        return json.loads(decode_utf8(raw, path))
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON ({error.msg})", file=path, line=error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON ({type(error).__name__})", file=path) from None
