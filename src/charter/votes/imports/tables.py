"""Tables of pairs, of single responses with a label, and of grouped rankings: TRL's, hh-rlhf's and our own exports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from charter.reading.pairs import SPOKEN, answer, number, prompt_column, row_pair
from charter.reading.prompts import row_messages
from charter.reading.rows import Row
from charter.records import Pair, Rank, RaterKind
from charter.votes.imports.formats import Rater
from charter.votes.imports.votes import (
    NO_PROMPT,
    NO_TEXT,
    UNKNOWN,
    Answer,
    LeftOut,
    Unique,
    Vote,
    list_in,
    messages_prompt,
    object_in,
    optional_text_in,
    rank_in,
    shown_by_coin,
    text_in,
)
from charter.votes.rankings import MARGINS, margin_of

LABELS: dict[Any, Rank] = {True: 1, "1": 1, "1.0": 1, "true": 1, False: "F", "0": "F", "0.0": "F", "false": "F"}  # True == 1.0
NOTCHES = {round(margin, 6): strength for strength, margin in MARGINS.items() if margin}
UNLABELLED = "a completion without a label"


def read_pair(row: Row, rater: Rater, _: Unique) -> Iterator[Vote | LeftOut]:
    """A row with chosen and rejected (see :func:`charter.reading.pairs.read_pairs`). Our columns ``strength``, ``rater_id`` and
    ``rater_kind`` are read where they are, and RewardBench's ``chosen_model`` and ``rejected_model``; a margin of a third, two
    thirds or one is a strength. ``weight`` becomes a margin in nats."""
    for field in ("chosen", "rejected"):
        if field in row.values and row.values[field] is None:
            raise LeftOut(row, NO_TEXT, field)
    pair = row_pair(row)
    if not isinstance(pair, Pair):
        raise LeftOut(row, pair)
    models = [row.optional(f"{side}_model") or UNKNOWN for side in ("chosen", "rejected")]
    if (number(row, "p") or 0.5) < 0.5 and number(row, "weight") is None:
        models.reverse()  # as the answers were
    yield shown_by_coin(
        Vote(
            row=row,
            prompt=pair.prompt,
            answers=(Answer(pair.chosen, models[0]), Answer(pair.rejected, models[1])),
            ranks=(1, 2),
            rater=rater_of(row, rater),
            kind="pair",
            set_id=pair.group_id,
            principle=pair.principle,
            strength=_strength(row, pair.margin),
            margin=margin_of(pair.weight),
        )
    )


def read_label(row: Row, rater: Rater, _: Unique) -> Iterator[Vote | LeftOut]:
    """A row with prompt, completion and label, as KTO takes them."""
    label = row.values.get("label")
    for field, reason in (("prompt", NO_PROMPT), ("completion", NO_TEXT), ("label", UNLABELLED)):
        if row.values.get(field) is None or (field != "completion" and row.values[field] == ""):
            raise LeftOut(row, reason, field)
    rank = (
        LABELS.get(label.casefold() if isinstance(label, str) else label) if isinstance(label, (bool, int, float, str)) else None
    )
    if rank is None:
        raise row.bad(f"is {label!r}; a label is true or false", "label")
    prompt = prompt_column(row)
    if prompt is None:
        raise LeftOut(row, SPOKEN, "prompt")
    yield Vote(
        row=row,
        prompt=prompt,
        answers=(Answer(answer(row, "completion", prompt)),),
        ranks=(rank,),
        rater=rater_of(row, rater),
        kind="thumbs",
        set_id=row.optional("group_id") or "",
        principle=row.optional("principle"),
    )


def read_group(row: Row, rater: Rater, ids: Unique) -> Iterator[Vote | LeftOut]:
    """Our row of one prompt with all its responses and rankings."""
    messages = row_messages(row, "prompt") if row.values.get("prompt") is not None else ()
    prompt = messages_prompt(row, messages, "prompt", source="")
    answers: dict[str, Answer] = {}
    for place, item in enumerate(list_in(row, row.values.get("responses"), "responses")):
        response = object_in(row, item, f"responses.{place}")
        key = text_in(row, response.get("id"), f"responses.{place}.id")
        if key in answers:
            raise row.bad(f"duplicate id {key!r}; give every response a different id", f"responses.{place}.id")
        model = optional_text_in(row, response.get("model"), f"responses.{place}.model")
        answers[key] = Answer(text_in(row, response.get("text"), f"responses.{place}.text"), model)
    for place, item in enumerate(list_in(row, row.values.get("rankings"), "rankings")):
        field = f"rankings.{place}"
        ranking = object_in(row, item, field)
        ids.check(row, ranking.get("judgment_id"), f"{field}.judgment_id")
        yield _ranking(Row(ranking, row.file, row.line), prompt, answers, field, rater)


def _ranking(row: Row, prompt: Any, answers: dict[str, Answer], field: str, rater: Rater) -> Vote:
    order = [text_in(row, key, f"{field}.order") for key in list_in(row, row.values.get("order"), f"{field}.order")]
    given = list_in(row, row.values.get("ranks"), f"{field}.ranks")
    if len(given) != len(order) or not order:
        raise row.bad(f"has {len(given)} entries where order has {len(order)}", f"{field}.ranks")
    for key in order:
        if key not in answers:
            raise row.bad(f"names {key!r}, which is none of the responses", f"{field}.order")
    if len(set(order)) < len(order):
        raise row.bad("names a response twice", f"{field}.order")
    ranks: list[Rank | None] = []
    for value in given:
        plain = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value
        ranks.append(None if plain == "" else "F" if plain == "F" else rank_in(row, plain, f"{field}.ranks"))
    strength = number(row, "strength") or 0.0
    weight = number(row, "weight")
    if not strength.is_integer() or abs(strength) > 4:
        raise row.bad(f"is {strength:g}; a strength is a whole number from -4 to 4", f"{field}.strength")
    if weight is not None and not 0.5 <= weight <= 1:
        raise row.bad(f"is {weight:g}; a weight is between 0.5 and 1", f"{field}.weight")
    margin = margin_of(weight) if weight is not None else None
    if margin is not None and len(ranks) == 2 and not _first_is_better(ranks):
        margin = -margin
    return Vote(
        row=row,
        prompt=prompt,
        answers=tuple(answers[key] for key in order),
        ranks=tuple(ranks),
        rater=rater_of(row, rater),
        set_id=row.optional("set_id") or "",
        principle=row.optional("principle"),
        strength=int(strength) or None,
        margin=margin,
    )


def _first_is_better(ranks: list[Rank | None]) -> bool:
    first, second = ranks
    return isinstance(first, int) and (not isinstance(second, int) or first <= second)


def rater_of(row: Row, default: Rater) -> Rater:
    """The columns rater_id and rater_kind, else the default."""
    name, kind = row.optional("rater_id"), row.optional("rater_kind")
    if kind is not None and kind not in get_args(RaterKind):
        raise row.bad(f"is {kind!r}; one of {', '.join(get_args(RaterKind))}", "rater_kind")
    return Rater(name or default.id, kind or default.kind)  # type: ignore[arg-type]  # checked above


def _strength(row: Row, margin: float) -> int | None:
    strength = number(row, "strength")
    if strength:
        if not strength.is_integer() or not 1 <= strength <= 4:
            raise row.bad(f"is {strength:g}; a strength is 1 to 4 notches for chosen, or 0", "strength")
        return int(strength)
    return NOTCHES.get(round(margin, 6))
