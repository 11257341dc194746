"""Constitutions in published forms, recognised by their content.

Few of these files link a critique to a preference, so an imported constitution often has one use only. Charter keeps the texts
but for the protocol words at their ends ("CritiqueRequest:" and so on), which its own prompts add.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from charter.constitution.constitution import Constitution, Principle
from charter.constitution.markdown import HEADING, gather_markdown, is_markdown
from charter.constitution.polis import VOTES, gather_polis, is_polis
from charter.constitution.published import Gathered, Imported, of_sentence, shortened
from charter.errors import InputError
from charter.run.files import describe
from charter.run.yaml_files import MAX_BYTES, decode_utf8, read_bytes

TRAIT = "the assistant can truly say of itself: {}"
# The uses of a criterion, by whether a good reply meets it.
CRITERION = {
    True: {
        "critique": "Say specifically where the assistant's last reply falls short of this criterion: {}",
        "revision": "Rewrite the assistant's last reply so that it meets this criterion: {}",
        "preference": "Choose the reply that better meets this criterion: {}",
    },
    False: {
        "critique": "Say specifically where this is true of the assistant's last reply: {}",
        "revision": "Rewrite the assistant's last reply so that this is no longer true of it: {}",
        "preference": "Choose the reply of which this is less true: {}",
    },
}
BULLET = r"(?:[-*•]|\d+[.)])\s+"
MEETS = "Is this true of the assistant's last reply: {}"
UNKNOWN = "unknown format; convert it to a JSON list of strings, or to a .txt file with one principle per line"
THRESHOLD = 0.6  # of the support in every opinion group


def import_constitution(path: Path, threshold: float = THRESHOLD, max_bytes: int = MAX_BYTES) -> Imported:
    """Read a constitution of any published form, recognised by its content.

    - Markdown: OpenAI's Model Spec and other texts with headings (:mod:`charter.constitution.markdown`).
    - A folder or file of a pol.is export (:mod:`charter.constitution.polis`); ``threshold`` is for it.
    - list of ``{"trait", "questions"}`` (Open Character Training): a principle for each trait, its questions as prompts.
    - list, or JSON lines, of ``{"criterion", "points", "tags"}`` or of rows with a ``prompt`` and such ``rubrics`` (HealthBench):
      a principle for each criterion; a criterion of several prompts is one principle.
    - ``{name: {"prompt": [critique], "edit_request": revision}}`` (CritiqueRevisionInstructions.json of Anthropic's
      ConstitutionalHarmlessnessPaper): critique and revision, tagged red_team, for which they were used.
    - list of strings that end in "Options:" (RLMadisonInstructions.json, same source): preference, tagged red_team.
    - ``{"constitutions": [{"critic", "revision"}]}`` (llm-swarm): critique and revision, tagged red_team.
    - list of strings, or a text with one principle per line (without list bullets and numbers): each
      sentence becomes a critique, a revision and a preference by three templates, for all prompts.

    ``source`` of every principle keeps the file's name and the start of its SHA-256. InputError names file and field.
    """
    file = path / VOTES if path.is_dir() and is_polis(path, None) else path
    raw = read_bytes(file, max_bytes)
    if raw.startswith(b"\x1f\x8b"):
        raise InputError("a gzip file; unpack it with gunzip", file=file)
    source = f"{file.name} sha256:{hashlib.sha256(raw).hexdigest()[:16]}"
    gathered = gather(decode_utf8(raw, file), path, threshold)
    if not gathered.rows:
        why = "; ".join(f"{n} {reason}" for reason, n in gathered.left_out.items() if n)
        raise InputError("the file has no principle; write one sentence per line" + (f" (left out: {why})" if why else ""),
                         file=path)  # fmt: skip
    principles = []
    for row in gathered.rows:
        try:
            principles.append(Principle(**row, source=source))
        except ValidationError as error:
            field, words = describe(error)
            raise InputError(words, file=path, field=f"{row['id']}.{field}".rstrip(".")) from None
    description = "\n\n".join(filter(None, (f"Imported from {source}", gathered.description)))
    try:
        constitution = Constitution(title=gathered.title or path.stem, description=description, principles=tuple(principles))
    except ValidationError as error:
        raise InputError(describe(error)[1], file=path) from None
    counts, left_out = ({key: n for key, n in part.items() if n} for part in (gathered.counts, gathered.left_out))
    return Imported(constitution, gathered.kind, counts, left_out)


def gather(text: str, path: Path, threshold: float) -> Gathered:
    """The principles of a file, by the kind that its content shows."""
    if path.is_dir() or is_polis(path, text):
        return gather_polis(path, threshold)
    suffix = path.suffix.lower()
    if suffix == ".json" or (text.lstrip()[:1] in ("[", "{") and suffix != ".txt"):
        return _recognise(_parse(text, path), path)
    if is_markdown(text, plain_list=suffix == ".txt"):
        return gather_markdown(text, path)
    if suffix in (".yaml", ".yml"):
        raise InputError("unknown format; use a constitution of Charter as it is (constitution: FILE), or write a .txt file with "
                         "one principle per line", file=path)  # fmt: skip
    if suffix not in (".txt", ".md", ".markdown", ""):
        raise InputError(UNKNOWN, file=path)
    # A break inside a paragraph, as word processors write it (U+2028, U+000B), does not end a principle.
    written = re.split(r"\r\n|[\r\n]", text)
    lines = [line for line in written if not HEADING.match(line)]
    worded = [line for line in lines if re.search(r"\w", line) or not line.strip()]
    # Of a list with marks an indented line without one continues the line above, as Markdown wraps it.
    wrapped = re.sub(rf"^([ \t]*{BULLET}.*)((?:\n[ \t]+(?!{BULLET})\S.*)+)", lambda item: item[1] + _joined(item[2]),
                     "\n".join(worded), flags=re.MULTILINE)  # fmt: skip
    sentences = [re.sub(rf"^{BULLET}", "", line.strip()) for line in wrapped.split("\n")]
    gathered = _plain_list("lines of text", [sentence for sentence in sentences if sentence])
    gathered.left_out["comment, a line that begins with #"] = len(written) - len(lines)
    gathered.left_out["line without a word, such as a rule"] = len(lines) - len(worded)
    return gathered


def _joined(lines: str) -> str:
    return "".join(f" {line.strip()}" for line in lines.split("\n") if line.strip())


def _plain_list(kind: str, sentences: list[str]) -> Gathered:
    return Gathered(kind, [of_sentence(f"principle-{number:02}", text) for number, text in enumerate(sentences, start=1)])


def _recognise(content: Any, path: Path) -> Gathered:
    """The principles of parsed JSON, or of the rows of JSON lines."""
    if isinstance(content, dict) and {"rubrics", "criterion"} & set(content):
        content = [content]
    if isinstance(content, dict) and "constitutions" in content:
        entries = content["constitutions"]
        if not isinstance(entries, list):
            raise InputError("not a list; write a list of critic and revision", file=path, field="constitutions")
        rows = [
            _revising(f"principle-{number:02}", entry, "critic", "revision", path)
            for number, entry in enumerate(entries, start=1)
        ]
        return Gathered("critiques of llm-swarm", rows, left_out=_unread([content], {"constitutions"}))
    if isinstance(content, dict) and all(isinstance(entry, dict) for entry in content.values()):
        rows = [_revising(name, entry, "prompt", "edit_request", path) for name, entry in content.items()]
        return Gathered("critiques of Anthropic", rows)
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        if all("trait" in row for row in content):
            return _traits(content, path)
        if all("criterion" in row for row in content) or all("rubrics" in row for row in content):
            return _rubrics(content, path)
    if isinstance(content, list) and all(isinstance(text, str) for text in content):
        if any(text.rstrip().endswith("Options:") for text in content):
            return Gathered("comparisons of Anthropic", [_comparing(n, text) for n, text in enumerate(content, start=1)])
        return _plain_list("list of sentences", content)
    raise InputError(UNKNOWN, file=path)


def _unread(rows: list[dict[str, Any]], known: set[str]) -> Counter[str]:
    """The keys that an import does not read, by the number of rows with a value."""
    keys = (key for row in rows for key, value in row.items() if key not in known and value not in (None, [], ""))
    return Counter(f"value of the key {key!r}" for key in keys)


def _traits(entries: list[dict[str, Any]], path: Path) -> Gathered:
    gathered = Gathered("traits of Open Character Training", left_out=_unread(entries, {"trait", "questions", "clarification"}))
    for number, entry in enumerate(entries, start=1):
        name = f"trait-{number:02}"
        trait, clarification = (_text_of(entry, key, name, path) for key in ("trait", "clarification"))
        questions = entry.get("questions") or []
        if not isinstance(questions, list):
            raise InputError("not a list; write a list of questions", file=path, field=f"{name}.questions")
        examples = [{"prompt": question} for question in questions]
        words = of_sentence(name, trait and TRAIT.format(trait), shortened(trait))
        gathered.rows.append(words | {"examples": examples, "wording": "\n\n".join(filter(None, (trait, clarification)))})
        gathered.counts["prompts"] += len(examples)
    return gathered


def _rubrics(entries: list[dict[str, Any]], path: Path) -> Gathered:
    gathered = Gathered("rubrics")
    by_criterion: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries, start=1):
        of_prompt = "rubrics" in entry
        rubrics = entry["rubrics"] if of_prompt else [entry]
        if not isinstance(rubrics, list) or not all(isinstance(row, dict) for row in rubrics):
            raise InputError("not a list; write a list of criterion, points and tags", file=path, field=f"{number}.rubrics")
        if of_prompt:
            gathered.left_out += _unread([entry], {"prompt", "rubrics"})
        gathered.left_out += _unread(rubrics, {"criterion", "points", "tags", *(("prompt",) if not of_prompt else ())})
        examples = [{"prompt": entry["prompt"]}] if entry.get("prompt") else []
        gathered.counts["prompts"] += len(examples)
        for place, row in enumerate(rubrics, start=1):
            name = f"{number}.rubrics.{place}" if of_prompt else f"criterion-{number:03}"
            gathered.counts["criteria"] += 1
            made = _criterion(row, name, path)
            # A criterion of every reply and the same one of a single prompt are two: merged, it would be about that prompt alone.
            key = json.dumps([*(made[part] for part in ("wording", "points", "tags")), bool(examples)])
            known = by_criterion.setdefault(key, made | {"id": f"criterion-{len(by_criterion) + 1:03}"})
            known["examples"] = [*known["examples"], *(one for one in examples if one not in known["examples"])]
    gathered.rows = list(by_criterion.values())
    gathered.counts["negative criteria"] = sum(row["points"] < 0 for row in gathered.rows)
    gathered.left_out["criterion that repeats another, merged with it"] = gathered.counts["criteria"] - len(gathered.rows)
    return gathered


def _criterion(row: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """A principle of one criterion; of negative points a good reply does not meet it."""
    criterion, points, tags = _text_of(row, "criterion", name, path), row.get("points"), row.get("tags") or []
    if not isinstance(points, (int, float)) or isinstance(points, bool) or not -1e6 <= points <= 1e6:
        raise InputError("not a number from -1000000 to 1000000; write the points", file=path, field=f"{name}.points")
    sentence = " ".join(criterion.split())
    uses = {use: sentence and text.format(sentence) for use, text in CRITERION[points > 0].items()}
    return {
        "id": name, "title": shortened(sentence), **uses, "question": question_of(sentence),
        "good_answer": "yes" if points > 0 else "no", "points": float(points), "tags": tags, "examples": [], "wording": criterion,
    }  # fmt: skip


def question_of(criterion: str) -> str:
    """What is asked about one reply: a criterion that is a question as it stands."""
    return criterion if criterion.endswith("?") else criterion and MEETS.format(criterion)


def _text_of(row: dict[str, Any], key: str, name: str, path: Path) -> str:
    """A text, empty where it is missing."""
    value = row.get(key) or ""
    if not isinstance(value, str):
        raise InputError("not a text; write one text", file=path, field=f"{name}.{key}")
    return value.strip()


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


def _strip(text: str, opening: str, closing: str) -> str:
    """The text without the protocol words at its two ends."""
    return re.sub(rf"\A\s*{opening}:|\s*\b{closing}:\s*\Z", "", text).strip()


def _parse(text: str, path: Path) -> Any:
    """Parsed JSON, or the list of values of JSON lines."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        try:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        except (ValueError, RecursionError):
            rows = []
        if len(rows) > 1:
            return rows
        raise InputError(f"not valid JSON ({error.msg})", file=path, line=error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON ({type(error).__name__})", file=path) from None
