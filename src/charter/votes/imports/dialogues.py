"""Published dialogues that people judged: the red-team attempts of hh-rlhf, and the message trees of OpenAssistant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from charter.reading.pairs import number
from charter.reading.prompts import parse_transcript
from charter.reading.rows import Row
from charter.records import Message, Rank
from charter.votes.imports.formats import Rater
from charter.votes.imports.votes import (
    Answer,
    LeftOut,
    Unique,
    Vote,
    list_in,
    messages_prompt,
    object_in,
    optional_text_in,
    text_in,
)
from charter.votes.layouts import ATTEMPT_MEMBER, ATTEMPT_NUMBERS

UNFINISHED = "the attempt does not end with an answer of the assistant"
UNRATED = "an attempt without a rating"
UNRANKED = "fewer than two replies have a rank"
DELETED = "a reply that was deleted"
DELETED_BEFORE = "replies to a dialogue with a deleted message"
ROLES = {"prompter": "user", "assistant": "assistant"}


def read_attempt(row: Row, rater: Rater, _: Unique) -> Iterator[Vote | LeftOut]:
    """``transcript``, ``rating`` (0 to 4, how well the attack went), ``task_description``, ``red_team_member_id``,
    ``is_upworker``, ``tags``, ``min_harmlessness_score_transcript``, ``model_type``, ``num_params`` (Ganguli et al. 2022).

    An attempt is one dialogue, so there is no comparison: the judgment has no ranks. Its numbers are kept as flags of the last
    answer (``rating=3.0``), its task as the comment, its direction is more_harmful.
    """
    try:
        messages = parse_transcript(text_in(row, row.values.get("transcript"), "transcript"))
    except ValueError as error:
        raise row.bad(str(error), "transcript") from None
    if messages[-1].role != "assistant" or not messages[-1].content.strip() or len(messages) < 2:
        raise LeftOut(row, UNFINISHED, "transcript")
    tags = [text_in(row, tag, "tags") for tag in list_in(row, row.values.get("tags") or [], "tags")]
    rating = number(row, "rating")
    if rating is None:
        raise LeftOut(row, UNRATED, "rating")
    if not 0 <= rating <= 4:
        raise row.bad(f"is {row.values.get('rating')!r}; a rating is a number from 0 to 4", "rating")
    flags = [f"rating={rating:g}"]
    for name in ATTEMPT_NUMBERS[1:]:
        if (score := number(row, name)) is not None:
            flags.append(f"{name}={score!r}")
    if isinstance(upworker := row.values.get("is_upworker"), bool):
        flags.append(f"is_upworker={str(upworker).lower()}")
    member = optional_text_in(row, row.values.get("red_team_member_id"), "red_team_member_id")
    model = [optional_text_in(row, row.values.get(name), name) for name in ("model_type", "num_params")]
    yield Vote(
        row=row,
        prompt=messages_prompt(row, messages[:-1], "transcript", source="hh-red-team", tags=("red_team", *tags)),
        answers=(Answer(messages[-1].content, " ".join(filter(None, model)) or "unknown"),),
        ranks=(None,),
        rater=Rater(ATTEMPT_MEMBER + member if member.isdecimal() else member, "human") if member else rater,
        kind="redteam",
        direction="more_harmful",
        flags=(*flags, *tags),
        comment=row.optional("task_description") or "",
    )


def trees(rows: Iterable[Row]) -> Iterator[Row]:
    """OpenAssistant's trees, a row each: as they are published, or joined from the same messages one a row with ``parent_id``."""
    messages = Unique()
    flat: dict[str, dict[str, Any]] = {}
    first: Row | None = None
    for row in rows:
        if isinstance(row.values.get("prompt"), dict):
            yield row
            continue
        key = row.text("message_id")
        messages.check(row, key, "message_id")
        flat[key] = {**row.values, "replies": [], "row": row}
        first = first or row
    for message in flat.values():
        parent = message.get("parent_id")
        if parent and parent not in flat:
            raise message["row"].bad(f"unknown parent {str(parent)[:60]!r}; give the file with all messages", "parent_id")
        if parent:
            flat[parent]["replies"].append(message)
    roots = [message for message in flat.values() if not message.get("parent_id")]
    if first and not roots:
        raise first.bad("every message has a parent; the trees have no beginning", "parent_id")
    for message in roots:
        yield replace(message["row"], values={"prompt": message})


def read_tree(row: Row, rater: Rater, ids: Unique) -> Iterator[Vote | LeftOut]:
    """The rankings of a tree, from its root on, without recursion: trees come from outside and may be deep.

    The replies of the assistant to one message that carry a ``rank`` (0 is the best) are one ranking, agreed on by several
    volunteers; replies without one were not ranked and are left out. A deleted message, whose text is a placeholder or null,
    takes part in no ranking, and neither do the replies below it.
    """
    waiting: list[tuple[dict[str, Any], tuple[Message, ...] | None]] = [(object_in(row, row.values.get("prompt"), "prompt"), ())]
    while waiting:
        message, before = waiting.pop()
        place: Row = message.get("row", row)
        ids.check(place, message.get("message_id"), "message_id")
        role = text_in(place, message.get("role"), "role")
        if role not in ROLES:
            raise place.bad(f"unknown role {role!r}; use {' or '.join(ROLES)}", "role")
        dialogue = None
        if before is not None and not _deleted(message):
            text = text_in(place, message["text"], "text")
            dialogue = (*before, Message(role=ROLES[role], content=text))  # type: ignore[arg-type]  # one of the two
        replies = [object_in(place, reply, "replies") for reply in list_in(place, message.get("replies") or [], "replies")]
        if role == "prompter" and len(replies) > 1:
            yield from _siblings(place, dialogue, replies, rater)
        waiting += [(reply, dialogue) for reply in reversed(replies)]


def _deleted(message: dict[str, Any]) -> bool:
    return message.get("deleted") is True or message.get("text") is None


def _siblings(
    row: Row, dialogue: tuple[Message, ...] | None, replies: list[dict[str, Any]], rater: Rater
) -> Iterator[Vote | LeftOut]:
    if dialogue is None:
        yield LeftOut(row, DELETED_BEFORE, "deleted")
        return
    ranked = []
    for reply in replies:
        rank = reply.get("rank")
        if rank is None or reply.get("role") != "assistant":
            continue
        if isinstance(rank, bool) or not isinstance(rank, (int, float)) or rank < 0 or rank != int(rank):
            raise row.bad(f"is {rank!r}; OpenAssistant's ranks are whole numbers from 0, the best, up", "rank")
        if _deleted(reply):
            yield LeftOut(row, DELETED, "replies")
            continue
        model = optional_text_in(row, reply.get("model_name"), "model_name") or "human"
        ranked.append((int(rank) + 1, Answer(text_in(row, reply["text"], "text"), model)))
    if len(ranked) < 2:
        yield LeftOut(row, UNRANKED, "replies")
        return
    ranks: tuple[Rank, ...] = tuple(rank for rank, _ in ranked)
    prompt = messages_prompt(row, dialogue, "text", source="open-assistant")
    yield Vote(row=row, prompt=prompt, answers=tuple(answer for _, answer in ranked), ranks=ranks, rater=rater)
