"""Records of Argilla 1 and 2, nested or flat: rankings of fields, or the name of the better one.

An export does not say which fields are answers. They are those that a ranking names, or the fields named like the chosen one
(response_1, response_2); a context or a reference answer is neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from charter.reading.rows import Row
from charter.records import Rank
from charter.votes.imports.formats import Rater
from charter.votes.imports.votes import (
    NO_PROMPT,
    PROMPT_NAMES,
    Answer,
    LeftOut,
    Unique,
    Vote,
    list_in,
    object_in,
    optional_text_in,
    prompt_in,
    rank_in,
    text_in,
)

NOT_SUBMITTED = "not submitted"
NOT_ANSWERED = "a record that nobody has answered (suggestions are not votes)"
NO_COMPARISON = "an answer without a comparison"
UNRANKED = "a response without a rank"
SEVERAL_CHOSEN = "a choice of several fields, which is not a ranking"
UNNAMED = "a choice whose alternatives cannot be told from the names of the fields; name them response_1, response_2"
SECOND_VOTE = "a further answer of a rater who has compared these responses"
ENDING = re.compile(r"[\W_]*(\d+|(?<=[a-z])[A-Z]|(?<![A-Za-z])[A-Za-z])$")

Ranks = dict[str, Rank]


def read_record(row: Row, rater: Rater, ids: Unique) -> Iterator[Vote | LeftOut]:
    """A record with ``fields`` and ``responses`` (Argilla 2: question → values; 1: a list with values), or with columns such as
    ``ranking.responses``. Of one rater, a choice counts only where there is no ranking."""
    row = _nested(row)
    fields = object_in(row, row.values.get("fields"), "fields")
    ids.check(row, row.values.get("id"), "id")
    prompt_name = next((name for name in PROMPT_NAMES if fields.get(name)), None)
    if prompt_name is None:
        if any(name in fields for name in PROMPT_NAMES):
            raise LeftOut(row, NO_PROMPT, "fields")
        raise row.bad(f"the prompt is missing; name it one of {', '.join(PROMPT_NAMES)}", "fields")
    texts = {name: value for name, value in fields.items() if name != prompt_name and isinstance(value, str)}
    prompt = prompt_in(row, fields[prompt_name], f"fields.{prompt_name}", source="argilla")
    submitted: list[tuple[str, str, Any]] = []
    answers = list(_answers(row))
    if not answers:
        yield LeftOut(row, NOT_ANSWERED, "responses")
    for question, user, status, value in answers:
        if status in (None, "submitted"):
            submitted.append((question, user, value))
        else:
            yield LeftOut(row, NOT_SUBMITTED, f"responses.{question}")
    voted = {user for _, user, value in submitted if user and _ranks_fields(value, texts)}
    for question, user, value in submitted:
        field = f"responses.{question}"
        try:
            if isinstance(value, str):
                ranks = _choice(row, value, texts, field)
                if ranks and user in voted:
                    raise LeftOut(row, SECOND_VOTE, field)
                voted |= {user} if ranks and user else set()
            else:
                ranks = _ranking(row, value, [theirs for name, _, theirs in submitted if name == question], texts, field)
                yield from [LeftOut(row, UNRANKED, field)] * (0 if ranks is None else len(value) - len(ranks))
            if ranks is None or len(ranks) < 2:
                raise LeftOut(row, NO_COMPARISON, field)
            compared = tuple(name for name in texts if name in ranks)
            yield Vote(
                row=row,
                prompt=prompt,
                answers=tuple(Answer(text_in(row, texts[name], f"fields.{name}")) for name in compared),
                ranks=tuple(ranks[name] for name in compared),
                rater=Rater(user, "human") if user else rater,
            )
        except LeftOut as error:
            yield error


def _ranks_fields(value: Any, texts: dict[str, str]) -> bool:
    return isinstance(value, list) and any("rank" in entry if isinstance(entry, dict) else entry in texts for entry in value)


def _nested(row: Row) -> Row:
    """A row of a flat export (prompt, response_1, ranking.responses, ranking.responses.users …) as a record."""
    values = row.values
    if "fields" in values:
        return row
    questions = [name.removesuffix(".responses") for name in values if name.endswith(".responses")]
    responses: dict[str, list[dict[str, Any]]] = {}
    for question in questions:
        column = f"{question}.responses"
        given = list_in(row, values[column] or [], column)
        users, statuses = (values.get(f"{column}.{part}") or [None] * len(given) for part in ("users", "status"))
        if not len(given) == len(users) == len(statuses):
            raise row.bad("has another number of entries than its users or status", column)
        responses[question] = [{"value": value, "user_id": user, "status": status}
                               for value, user, status in zip(given, users, statuses, strict=True)]  # fmt: skip
    fields = {name: value for name, value in values.items() if "." not in name and name not in ("id", "status", "_server_id")}
    return Row({"id": values.get("id"), "fields": fields, "responses": responses}, row.file, row.line)


def _answers(row: Row) -> Iterator[tuple[str, str, Any, Any]]:
    """(question, user, status, value) of every answer to every question of a record."""
    responses = row.values.get("responses") or {}
    if isinstance(responses, list):
        for place, item in enumerate(responses):
            response = object_in(row, item, f"responses.{place}")
            user = optional_text_in(row, response.get("user_id"), f"responses.{place}.user_id")
            for question, answer in object_in(row, response.get("values") or {}, f"responses.{place}.values").items():
                yield question, user, response.get("status"), answer.get("value") if isinstance(answer, dict) else answer
        return
    for question, answers in object_in(row, responses, "responses").items():
        for item in list_in(row, answers or [], f"responses.{question}"):
            answer = object_in(row, item, f"responses.{question}")
            user = optional_text_in(row, answer.get("user_id"), f"responses.{question}.user_id")
            yield question, user, answer.get("status"), answer.get("value")


def _ranking(row: Row, value: Any, others: list[Any], texts: dict[str, str], field: str) -> Ranks | None:
    """Ranks by field of a ranking: values with ranks, or names in their order; None where the value answers another kind of
    question. A list of names is a ranking where every rater lists all responses."""
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(name, str) for name in value):
        if not any(name in texts for name in value):
            return None
        family = {name for name in texts if _stem(name) == _stem(value[0])}
        if not all(isinstance(other, list) and len(set(other)) == len(other) and family <= set(other) for other in others):
            raise LeftOut(row, SEVERAL_CHOSEN, field)
        value = [{"value": name, "rank": place} for place, name in enumerate(value, start=1)]
    if not all(isinstance(entry, dict) and "rank" in entry for entry in value):
        return None
    ranks: Ranks = {}
    seen: set[str] = set()
    for entry in value:
        text = text_in(row, entry.get("value"), field)
        name = text if text in texts else _numbered(text, texts)
        if name is None:
            raise row.bad(f"unknown field {text[:60]!r}; name the fields after the ranked values, such as response_{text[:20]} "
                          f"(fields here: {', '.join(texts)[:200]})", field)  # fmt: skip
        if name in seen:
            raise row.bad(f"{text[:60]!r} is ranked twice", field)
        seen.add(name)
        if entry["rank"] is not None:
            ranks[name] = rank_in(row, entry["rank"], field)
    return ranks


def _choice(row: Row, value: str, texts: dict[str, str], field: str) -> Ranks | None:
    """Ranks of a choice: the named field before all that are named like it; None where the text is no field's name."""
    if value not in texts:
        return None
    family = [name for name in texts if _stem(name) == _stem(value)]
    if len(family) < 2 and len(texts) == 2:
        family = list(texts)
    if len(family) < 2:
        raise LeftOut(row, UNNAMED, field)
    return {name: 1 if name == value else 2 for name in family}


def _stem(name: str) -> str:
    """The name of a field without the number or letter at its end."""
    return ENDING.sub("", name)


def _numbered(value: str, texts: dict[str, str]) -> str | None:
    """The only field that ends with a value such as 1 or A."""
    endings = {name: match[1].casefold() for name in texts if (match := ENDING.search(name))}
    matching = [name for name, ending in endings.items() if ending == value.casefold()]
    return matching[0] if len(matching) == 1 else None
