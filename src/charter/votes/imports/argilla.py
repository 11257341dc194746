"""Records of Argilla 1 and 2, nested or flat: rankings of fields, or the name of the better one.

An export does not say which fields are answers. They are those that a ranking names, or the fields named like the chosen one
(response_1, response_2); a context or a reference answer is neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from charter.reading.forms import LeftOut
from charter.records import Rank
from charter.votes.imports.formats import Rater
from charter.votes.imports.votes import NO_PROMPT, PROMPT_NAMES, Answer, Part, Unique, Vote, with_context

NOT_SUBMITTED = "not submitted"
NOT_ANSWERED = "a record that nobody has answered (suggestions are not votes)"
NO_COMPARISON = "an answer without a comparison"
UNRANKED = "a response without a rank"
SEVERAL_CHOSEN = "a choice of several fields, which is not a ranking"
UNNAMED = "a choice whose alternatives cannot be told from the names of the fields; name them response_1, response_2"
SECOND_VOTE = "a further answer of a rater who has compared these responses"
NO_FIELDS = ("id", "status", "_server_id")  # columns of a flat export
ENDING = re.compile(r"[\W_]*(\d+|(?<=[a-z])[A-Z]|(?<![A-Za-z])[A-Za-z])$")

Ranks = dict[str, Rank]


def read_record(row: Part, rater: Rater, ids: Unique) -> Iterator[Vote | LeftOut]:
    """A record with ``fields`` and ``responses`` (Argilla 2: question → values; 1: a list with values), or with columns such as
    ``ranking.responses``. Of one rater, a choice counts only where there is no ranking."""
    row = row if "fields" in row.fields() else _nested(row)
    fields = row["fields"]
    ids.check(row["id"])
    prompt_name = next((name for name in PROMPT_NAMES if fields[name].value), None)
    if prompt_name is None:
        if any(name in fields.fields() for name in PROMPT_NAMES):
            raise fields.left_out(NO_PROMPT)
        raise fields.bad(f"the prompt is missing; name it one of {', '.join(PROMPT_NAMES)}")
    texts = {name: fields[name] for name, text in fields.fields().items() if name != prompt_name and isinstance(text, str)}
    prompt = with_context(fields, prompt_name).prompt("argilla")
    submitted: list[tuple[str, str, Part]] = []
    answers = list(_answers(row["responses"]))
    if not answers:
        yield row["responses"].left_out(NOT_ANSWERED)
    for question, user, status, value in answers:
        if status in (None, "submitted"):
            submitted.append((question, user, value))
        else:
            yield value.left_out(NOT_SUBMITTED)
    voted = {user for _, user, answer in submitted if user and _ranks_fields(answer.value, texts)}
    for question, user, answer in submitted:
        try:
            if isinstance(answer.value, str):
                ranks = _choice(answer, texts)
                if ranks and user in voted:
                    raise answer.left_out(SECOND_VOTE)
                voted |= {user} if ranks and user else set()
            else:
                ranks = _ranking(answer, [other.value for name, _, other in submitted if name == question], texts)
                yield from [answer.left_out(UNRANKED)] * (0 if ranks is None else len(answer.value) - len(ranks))
            if ranks is None or len(ranks) < 2:
                raise answer.left_out(NO_COMPARISON)
            compared = tuple(name for name in texts if name in ranks)
            yield Vote(
                row=row.row,
                prompt=prompt,
                answers=tuple(Answer(texts[name].text()) for name in compared),
                ranks=tuple(ranks[name] for name in compared),
                rater=Rater(user, "human") if user else rater,
            )
        except LeftOut as error:
            yield error


def _nested(row: Part) -> Part:
    """A row of a flat export (prompt, response_1, ranking.responses, ranking.responses.users …) as a record."""
    responses: dict[str, list[dict[str, Any]]] = {}
    for column in (name for name in row.fields() if name.endswith(".responses")):
        values = row[column].entries() if row[column].value else []
        users, statuses = (row[f"{column}.{part}"].value or [None] * len(values) for part in ("users", "status"))
        if not len(values) == len(users) == len(statuses):
            raise row[column].bad("has another number of entries than its users or status")
        responses[column.removesuffix(".responses")] = [
            {"value": value, "user_id": user, "status": status}
            for value, user, status in zip(values, users, statuses, strict=True)
        ]
    fields = {name: value for name, value in row.fields().items() if "." not in name and name not in NO_FIELDS}
    return Part(row.row, {"id": row["id"].value, "fields": fields, "responses": responses})


def _answers(responses: Part) -> Iterator[tuple[str, str, Any, Part]]:
    """(question, user, status, value) of every answer to every question of a record."""
    if isinstance(responses.value, list):
        for response in responses:
            for question in response["values"].fields() if response["values"].value else ():
                answer = response["values"][question]
                value = answer["value"] if isinstance(answer.value, dict) else answer
                yield question, response["user_id"].name(), response["status"].value, value
    elif responses.value:
        for question in responses.fields():
            for answer in responses[question] if responses[question].value else ():
                yield question, answer["user_id"].name(), answer["status"].value, answer["value"]


def _ranks_fields(value: Any, texts: dict[str, Part]) -> bool:
    return isinstance(value, list) and any("rank" in entry if isinstance(entry, dict) else entry in texts for entry in value)


def _ranking(answer: Part, others: list[Any], texts: dict[str, Part]) -> Ranks | None:
    """Ranks by field of a ranking: values with ranks, or names in their order; None where the value answers another kind of
    question. A list of names is a ranking where every rater lists all responses."""
    value = answer.value
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(name, str) for name in value):
        if not any(name in texts for name in value):
            return None
        family = {name for name in texts if _stem(name) == _stem(value[0])}
        if not all(isinstance(other, list) and len(set(other)) == len(other) and family <= set(other) for other in others):
            raise answer.left_out(SEVERAL_CHOSEN)
        answer = Part(answer.row, [{"value": name, "rank": place} for place, name in enumerate(value, start=1)], answer.field)
    elif not all(isinstance(entry, dict) and "rank" in entry for entry in value):
        return None
    ranks: dict[str, Rank | None] = {}
    for entry in answer:
        text = entry["value"].text()
        name = text if text in texts else _numbered(text, texts)
        if name is None:
            raise entry["value"].bad(f"unknown field {text[:60]!r}; name the fields after the ranked values, such as "
                                     f"response_{text[:20]} (fields here: {', '.join(texts)[:200]})")  # fmt: skip
        if name in ranks:
            raise entry["value"].bad(f"{text[:60]!r} is ranked twice")
        ranks[name] = None if entry["rank"].value is None else entry["rank"].rank()
    return {name: rank for name, rank in ranks.items() if rank is not None}


def _choice(answer: Part, texts: dict[str, Part]) -> Ranks | None:
    """Ranks of a choice: the named field before all that are named like it; None where the text is not the name of a field."""
    if answer.value not in texts:
        return None
    family = [name for name in texts if _stem(name) == _stem(answer.value)]
    if len(family) < 2 and len(texts) == 2:
        family = list(texts)
    if len(family) < 2:
        raise answer.left_out(UNNAMED)
    return {name: 1 if name == answer.value else 2 for name in family}


def _stem(name: str) -> str:
    """The name of a field without the number or letter at its end."""
    return ENDING.sub("", name)


def _numbered(value: str, texts: dict[str, Part]) -> str | None:
    """The only field that ends with a value such as 1 or A."""
    endings = {name: match[1].casefold() for name in texts if (match := ENDING.search(name))}
    matching = [name for name, ending in endings.items() if ending == value.casefold()]
    return matching[0] if len(matching) == 1 else None
