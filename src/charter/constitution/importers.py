"""Constitutions and worked examples in the formats that others publish.

None of these files links a critique to a preference, so an imported constitution often has one use only. The texts
themselves are never changed beyond taking the protocol words off their ends ("CritiqueRequest:" and so on): our own
prompts add those where they belong.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from charter.constitution.constitution import MAX_FILE_BYTES, Constitution, FewShots, Principle
from charter.errors import InputError
from charter.records import Message
from charter.run.files import describe

# What a plain sentence becomes; it stands at the end, so that its own punctuation closes the text.
CRITIQUE = "Say specifically where the assistant's last reply goes against this principle: {}"
REVISION = "Rewrite the assistant's last reply so that it keeps this principle: {}"
PREFERENCE = "Choose the reply that better keeps this principle: {}"

ROLES = {
    "Human": "user",
    "Assistant": "assistant",
    "CritiqueRequest": "user",
    "Critique": "assistant",
    "RevisionRequest": "user",
    "Revision": "assistant",
}
MARKER = re.compile(rf"(?:\A\s*|\n\n)({'|'.join(ROLES)}):")


def import_constitution(path: Path) -> Constitution:
    """Read a constitution of any published format, told apart by its shape.

    - ``{name: {"prompt": [critique], "edit_request": revision}}`` (CritiqueRevisionInstructions.json of Anthropic's
      ConstitutionalHarmlessnessPaper): critique and revision, tagged red_team as they were used.
    - list of strings that end in "Options:" (RLMadisonInstructions.json, same source): preference, tagged red_team.
    - ``{"constitutions": [{"critic", "revision"}]}`` (llm-swarm): critique and revision, tagged red_team.
    - list of strings, or a ``.txt`` file with one principle per line (list bullets and numbers are taken off): each
      sentence becomes a critique, a revision and a preference by the three templates of this module, for all prompts.

    ``source`` of every principle keeps the file's name and the start of its SHA-256. InputError names file and field.
    """
    raw = _read(path)
    source = f"{path.name} sha256:{hashlib.sha256(raw).hexdigest()[:16]}"
    if path.suffix.lower() == ".txt":
        lines = [re.sub(r"^(?:[-*•]|\d+[.)])\s+", "", line.strip()) for line in _decode(raw, path).splitlines()]
        rows = [_plain(number, line) for number, line in enumerate(filter(None, lines), start=1)]
    else:
        rows = _recognise(_parse(raw, path), path)
    if not rows:
        raise InputError("holds no principle", file=path)
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
            raise InputError("is not a list", file=path, field="constitutions")
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
    raise InputError("is of no known format; convert it to a JSON list of strings, or to a .txt file with one "
                     "principle per line", file=path)  # fmt: skip


def _revising(name: str, entry: Any, critique: str, revision: str, path: Path) -> dict[str, Any]:
    texts = {}
    for key in (critique, revision):
        value = entry.get(key) if isinstance(entry, dict) else None
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not isinstance(value, str):
            raise InputError("is not one text", file=path, field=f"{name}.{key}")
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
        # An empty sentence stays empty, so that it is refused and not hidden inside a template.
        "critique": sentence and CRITIQUE.format(sentence),
        "revision": sentence and REVISION.format(sentence),
        "preference": sentence and PREFERENCE.format(sentence),
    }


def _strip(text: str, opening: str, closing: str) -> str:
    """The text without the protocol words at its two ends."""
    return re.sub(rf"\A\s*{opening}:|\s*\b{closing}:\s*\Z", "", text).strip()


def import_few_shots(path: Path) -> list[tuple[Message, ...]]:
    """Read worked examples as messages: the opening dialogue, then user (critique request), assistant (critique), user
    (revision request), assistant (revision).

    Knows CritiqueRevisionFewShotPrompts.json (a list of transcripts, some with an empty ``Human:`` at the end) and
    the ``system_chat`` of llm-swarm. InputError names file and field.
    """
    content = _parse(_read(path), path)
    examples: list[list[dict[str, str]]]
    if isinstance(content, dict) and "system_chat" in content:
        examples = content["system_chat"]
    elif isinstance(content, list) and content and all(isinstance(text, str) for text in content):
        examples = [_transcript(text, path, f"[{number}]") for number, text in enumerate(content)]
    else:
        raise InputError("is of no known format; it should be a JSON list of transcripts", file=path)
    try:
        return list(FewShots.model_validate({"examples": examples}).examples)
    except ValidationError as error:
        field, words = describe(error)
        raise InputError(words, file=path, field=field or None) from None


def _transcript(text: str, path: Path, field: str) -> list[dict[str, str]]:
    before, *parts = MARKER.split(text)
    turns = [(name, words.strip()) for name, words in zip(parts[::2], parts[1::2], strict=True)]
    if turns and turns[-1] == ("Human", ""):
        turns.pop()
    names = [name for name, _ in turns]
    if before.strip() or names[-4:] != ["CritiqueRequest", "Critique", "RevisionRequest", "Revision"]:
        raise InputError("is not a dialogue that ends in CritiqueRequest:, Critique:, RevisionRequest:, Revision:",
                         file=path, field=field)  # fmt: skip
    return [{"role": ROLES[name], "content": words} for name, words in turns]


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from None
    if len(raw) > MAX_FILE_BYTES:
        raise InputError(f"larger than {MAX_FILE_BYTES >> 20} MiB; is this the right file?", file=path)
    return raw


def _decode(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError("not UTF-8; convert it with iconv", file=path, line=line) from None


def _parse(raw: bytes, path: Path) -> Any:
    try:
        return json.loads(_decode(raw, path))
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON ({error.msg})", file=path, line=error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON ({type(error).__name__})", file=path) from None
