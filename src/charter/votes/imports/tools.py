"""What labelling tools and rated collections export: Label Studio, Argilla, UltraFeedback."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from charter.reading.rows import Row
from charter.records import Rank
from charter.votes.imports.votes import (
    Answer,
    Rater,
    Unique,
    Vote,
    ask_in,
    list_in,
    object_in,
    optional_text_in,
    rank_in,
    ranks_of_scores,
    text_in,
)

CANCELLED = "skipped by the annotator"
NOT_SUBMITTED = "not submitted"
NO_ANSWER = "an annotation without a comparison"
BUCKETS = "sorted into buckets, whose order the file does not say"
UNRATED = "fewer than two completions with a rating"
PROMPT_NAMES = ("prompt", "instruction", "question", "text", "input")
PAIR_NAMES = (("answer1", "answer2"), ("response1", "response2"), ("response_a", "response_b"), ("text1", "text2"),
              ("answer_a", "answer_b"), ("left", "right"))  # fmt: skip
ITEM_TEXTS = ("body", "text", "html", "title")


def read_label_studio(rows: Iterable[Row], rater: Rater) -> Iterator[Vote | str]:
    """Tasks with ``data`` and ``annotations``, whose results are of type pairwise or ranker.

    The two texts of a pairwise result are the columns of ``data`` named in its to_name, else a well-known pair such as answer1
    and answer2. A ranker's list is best first; items outside of it were not ranked.
    """
    annotations = Unique()
    for row in rows:
        data = object_in(row, row.values.get("data"), "data")
        for place, item in enumerate(list_in(row, row.values.get("annotations"), "annotations")):
            field = f"annotations.{place}"
            annotation = object_in(row, item, field)
            annotations.check(row, annotation.get("id"), f"{field}.id")
            if annotation.get("was_cancelled") is True:
                yield CANCELLED
                continue
            results = [object_in(row, one, f"{field}.result") for one in
                       list_in(row, annotation.get("result"), f"{field}.result")]  # fmt: skip
            found = [one for one in results if one.get("type") in ("pairwise", "ranker")]
            if not found:
                yield NO_ANSWER
            for one in found:
                yield _label_studio_vote(row, data, annotation, one, field, rater)


def _label_studio_vote(
    row: Row, data: dict[str, Any], annotation: dict[str, Any], result: dict[str, Any], field: str, rater: Rater
) -> Vote | str:
    value = object_in(row, result.get("value"), f"{field}.value")
    ranks: list[Rank | None]
    if result["type"] == "pairwise":
        selected = value.get("selected")
        if selected not in ("left", "right"):
            raise row.bad(f"is {selected!r}; left or right", f"{field}.value.selected")
        names = _compared(row, data, result.get("to_name"), field)
        answers = [Answer(text_in(row, data[name], f"data.{name}")) for name in names]
        ranks = [1, 2] if selected == "left" else [2, 1]
    else:
        ranker = value.get("ranker")
        lists = {"": ranker} if isinstance(ranker, list) else object_in(row, ranker, f"{field}.value.ranker")
        lists = {name: ids for name, ids in lists.items() if name != "_"}
        if len(lists) != 1:
            return BUCKETS
        ranked = [str(key) for key in list_in(row, next(iter(lists.values())), f"{field}.value.ranker")]
        items = _items(row, data)
        for key in ranked:
            if key not in items:
                raise row.bad(f"names {key[:60]!r}, which is no item of the task", f"{field}.value.ranker")
        if len(set(ranked)) < len(ranked):
            raise row.bad("names an item twice", f"{field}.value.ranker")
        if len(items) < 2 or not ranked:
            return NO_ANSWER
        answers = list(items.values())
        ranks = [ranked.index(key) + 1 if key in ranked else None for key in items]
    prompt_name = next((name for name in PROMPT_NAMES if isinstance(data.get(name), str)), None)
    if prompt_name is None:
        raise row.bad(f"holds no prompt; name it one of {', '.join(PROMPT_NAMES)}", "data")
    who = annotation.get("completed_by")
    who = (who.get("email") or who.get("id")) if isinstance(who, dict) else who
    name = optional_text_in(row, who, f"{field}.completed_by")
    seconds = annotation.get("lead_time")
    return Vote(
        row=row,
        prompt=ask_in(row, data[prompt_name], f"data.{prompt_name}", source="label-studio"),
        answers=tuple(answers),
        ranks=tuple(ranks),
        rater=Rater(f"annotator-{name}" if name.isdecimal() else name, "human") if name else rater,
        kind="pair" if result["type"] == "pairwise" else "rank",
        seconds=float(seconds) if isinstance(seconds, (int, float)) and math.isfinite(seconds) else None,
    )


def _compared(row: Row, data: dict[str, Any], to_name: Any, field: str) -> tuple[str, str]:
    names = to_name.split(",") if isinstance(to_name, str) else to_name
    if isinstance(names, list) and len(names) == 2 and all(isinstance(n, str) and n.strip() in data for n in names):
        return names[0].strip(), names[1].strip()
    for first, second in PAIR_NAMES:
        if first in data and second in data:
            return first, second
    raise row.bad(f"names {to_name!r}, which are no columns of data (there are: {', '.join(map(str, data))[:200]})",
                  f"{field}.to_name")  # fmt: skip


def _items(row: Row, data: dict[str, Any]) -> dict[str, Answer]:
    """The items of a task by id: the first column of data that is a list of objects."""
    for name, value in data.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) and "id" in item for item in value):
            found = {}
            for place, item in enumerate(value):
                field = f"data.{name}.{place}"
                if (key := str(item["id"])) in found:
                    raise row.bad(f"{key[:60]!r} is there twice", f"{field}.id")
                part = next((part for part in ITEM_TEXTS if item.get(part)), "body")
                model = optional_text_in(row, item.get("model"), f"{field}.model") or "unknown"
                found[key] = Answer(text_in(row, item.get(part), f"{field}.{part}"), model)
            return found
    raise row.bad("holds no list of items with an id, which a ranker needs", "data")


def read_argilla(rows: Iterable[Row], rater: Rater) -> Iterator[Vote | str]:
    """Records with ``fields`` and ``responses``, of Argilla 2 (question → values) or 1 (a list with values), whose answers are a
    ranking of fields or the name of the better one."""
    records = Unique()
    for row in rows:
        fields = object_in(row, row.values.get("fields"), "fields")
        records.check(row, row.values.get("id"), "id")
        prompt_name = next((name for name in PROMPT_NAMES if isinstance(fields.get(name), str)), None)
        if prompt_name is None:
            raise row.bad(f"holds no prompt; name it one of {', '.join(PROMPT_NAMES)}", "fields")
        answers = {name: value for name, value in fields.items() if name != prompt_name and isinstance(value, str)}
        prompt = ask_in(row, fields[prompt_name], f"fields.{prompt_name}", source="argilla")
        for user, status, value in _argilla_answers(row):
            if status not in (None, "submitted"):
                yield NOT_SUBMITTED
                continue
            ranks = _argilla_ranks(row, value, answers)
            if ranks is None or len(answers) < 2:
                yield NO_ANSWER
                continue
            texts = [Answer(text_in(row, text, f"fields.{name}")) for name, text in answers.items()]
            given = tuple(ranks.get(name) for name in answers)
            yield Vote(row=row, prompt=prompt, answers=tuple(texts), ranks=given,
                       rater=Rater(user, "human") if user else rater)  # fmt: skip


def _argilla_answers(row: Row) -> Iterator[tuple[str, Any, Any]]:
    """(user, status, value) of every answer to every question of a record."""
    responses = row.values.get("responses") or {}
    if isinstance(responses, list):
        for place, item in enumerate(responses):
            found = object_in(row, item, f"responses.{place}")
            user = optional_text_in(row, found.get("user_id"), f"responses.{place}.user_id")
            for answer in object_in(row, found.get("values") or {}, f"responses.{place}.values").values():
                value = answer.get("value") if isinstance(answer, dict) else answer
                yield user, found.get("status"), value
        return
    for question, given in object_in(row, responses, "responses").items():
        for item in list_in(row, given, f"responses.{question}"):
            found = object_in(row, item, f"responses.{question}")
            user = optional_text_in(row, found.get("user_id"), f"responses.{question}.user_id")
            yield user, found.get("status"), found.get("value")


def _argilla_ranks(row: Row, value: Any, answers: dict[str, str]) -> dict[str, Rank] | None:
    """Ranks by field, or None where the value answers another kind of question."""
    if isinstance(value, str):
        others = [name for name in answers if name != value]
        return {value: 1, **dict.fromkeys(others, 2)} if value in answers else None
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) and "rank" in one for one in value):
        return None
    ranks: dict[str, Rank] = {}
    for one in value:
        name = text_in(row, one.get("value"), "responses.value")
        if name not in answers or name in ranks:
            problem = "is ranked twice" if name in ranks else "is none of the fields"
            raise row.bad(f"{name[:60]!r} {problem}", "responses.value")
        ranks[name] = rank_in(row, one["rank"], "responses.rank")
    return ranks


def read_ultrafeedback(rows: Iterable[Row], rater: Rater) -> Iterator[Vote | str]:
    """``instruction`` and ``completions``, each with ``annotations`` by aspect (Cui et al. 2023). Completions are ranked by the
    mean of their aspects' ratings, which is what the authors advise since an error in overall_score was found; where no aspect
    has a number, by fine-grained_score or overall_score."""
    for row in rows:
        prompt = ask_in(row, row.values.get("instruction"), "instruction", source="ultrafeedback")
        answers, scores = [], []
        for place, item in enumerate(list_in(row, row.values.get("completions"), "completions")):
            field = f"completions.{place}"
            found = object_in(row, item, field)
            model = optional_text_in(row, found.get("model"), f"{field}.model") or "unknown"
            answers.append(Answer(text_in(row, found.get("response"), f"{field}.response"), model))
            scores.append(_mean_rating(row, found, field))
        if sum(score is not None for score in scores) < 2:
            yield UNRATED
            continue
        kept = [(answer, score) for answer, score in zip(answers, scores, strict=True) if score is not None]
        ranks = ranks_of_scores([score for _, score in kept])
        yield Vote(row=row, prompt=prompt, answers=tuple(answer for answer, _ in kept), ranks=ranks, rater=rater)


def _mean_rating(row: Row, completion: dict[str, Any], field: str) -> float | None:
    aspects = object_in(row, completion.get("annotations") or {}, f"{field}.annotations")
    ratings = [_rating(aspect.get("Rating")) for aspect in aspects.values() if isinstance(aspect, dict)]
    known = [rating for rating in ratings if rating is not None]
    if known:
        return sum(known) / len(known)
    for name in ("fine-grained_score", "overall_score"):
        if (score := _rating(completion.get(name))) is not None:
            return score
    return None


def _rating(value: Any) -> float | None:
    """A finite number, or a text that is one; None for N/A."""
    try:
        found = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
