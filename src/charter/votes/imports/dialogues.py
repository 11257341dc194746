"""Published dialogues that people judged: the red-team attempts of hh-rlhf, and the message trees of OpenAssistant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from charter.reading.forms import LeftOut
from charter.reading.pairs import number
from charter.reading.prompts import parse_transcript
from charter.reading.rows import Row, is_nan
from charter.records import MOST_RANK, Message, Rank
from charter.votes.imports.formats import Rater
from charter.votes.imports.votes import Answer, Part, Unique, Vote
from charter.votes.layouts import ATTEMPT_MEMBER, ATTEMPT_NUMBERS

UNFINISHED = "the attempt does not end with an answer of the assistant"
UNRATED = "an attempt without a rating"
NO_RANK = "a reply without a rank beside ranked ones"
UNRANKED = "fewer than two replies have a rank"
DELETED = "a reply that was deleted"
DELETED_BEFORE = "replies to a dialogue with a deleted message"
ROLES = {"prompter": "user", "assistant": "assistant"}


def read_attempt(row: Part, rater: Rater, _: Unique) -> Iterator[Vote | LeftOut]:
    """``transcript``, ``rating`` (0 to 4, how well the attack went), ``task_description``, ``red_team_member_id``,
    ``is_upworker``, ``tags``, ``min_harmlessness_score_transcript``, ``model_type``, ``num_params`` (Ganguli et al. 2022).

    An attempt is one dialogue without a comparison, so the judgment has no ranks. Its numbers are kept as flags of the last
    answer (``rating=3.0``), its task as the comment, its direction is more_harmful.
    """
    transcript = row["transcript"]
    try:
        messages = parse_transcript(transcript.text())
    except ValueError as error:
        raise transcript.bad(str(error)) from None
    if messages[-1].role != "assistant" or not messages[-1].content.strip() or len(messages) < 2:
        raise transcript.left_out(UNFINISHED)
    tags = [tag.text() for tag in row["tags"]] if row["tags"].value else []
    rating = number(row.row, "rating")
    if rating is None:
        raise row["rating"].left_out(UNRATED)
    if not 0 <= rating <= 4:
        raise row["rating"].bad(f"is {row['rating'].value!r}; a rating is a number from 0 to 4")
    flags = [f"rating={rating:g}"]
    for name in ATTEMPT_NUMBERS[1:]:
        if (score := number(row.row, name)) is not None:
            flags.append(f"{name}={score!r}")
    if isinstance(upworker := row["is_upworker"].value, bool):
        flags.append(f"is_upworker={str(upworker).lower()}")
    member = row["red_team_member_id"].name()
    model = " ".join(filter(None, (row["model_type"].name(), row["num_params"].name())))
    yield Vote(
        row=row.row,
        prompt=transcript.prompt_of(messages[:-1], "hh-red-team", ("red_team", *tags)),
        answers=(Answer(messages[-1].content, model or "unknown"),),
        ranks=(None,),
        rater=Rater(ATTEMPT_MEMBER + member if member.isdecimal() else member, "human") if member else rater,
        kind="redteam",
        direction="more_harmful",
        flags=(*flags, *tags),
        comment=row.row.optional("task_description") or "",
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
        messages.check(Part(row, key, "message_id"))
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


def read_tree(row: Part, rater: Rater, ids: Unique) -> Iterator[Vote | LeftOut]:
    """The rankings of a tree, from its root on, without recursion: trees come from outside and may be deep.

    The replies of the assistant to one message that carry a ``rank`` (0 is the best) are one ranking, agreed on by several
    volunteers; replies without one were not ranked and are left out. A deleted message, whose text is a placeholder or null,
    takes part in no ranking, and neither do the replies below it.
    """
    waiting: list[tuple[Part, tuple[Message, ...] | None]] = [(row["prompt"], ())]
    while waiting:
        part, before = waiting.pop()
        line = part["row"].value  # of the message, in a file with one a row
        message = Part(line if isinstance(line, Row) else row.row, part.value)
        ids.check(message["message_id"])
        role = message["role"].text()
        if role not in ROLES:
            raise message["role"].bad(f"unknown role {role!r}; use {' or '.join(ROLES)}")
        dialogue = None
        if before is not None and not _deleted(message):
            text = message["text"].text()
            dialogue = (*before, Message(role=ROLES[role], content=text))  # type: ignore[arg-type]  # one of the two
        replies = list(message["replies"]) if message["replies"].value else []
        if role == "prompter" and len(replies) > 1:
            yield from _siblings(message, dialogue, replies, rater)
        waiting += [(reply, dialogue) for reply in reversed(replies)]


def _deleted(message: Part) -> bool:
    return message["deleted"].value is True or message["text"].value is None


def _siblings(message: Part, dialogue: tuple[Message, ...] | None, replies: list[Part], rater: Rater) -> Iterator[Vote | LeftOut]:
    if dialogue is None:
        yield message["deleted"].left_out(DELETED_BEFORE)
        return
    ranked, unranked = [], []
    for reply in replies:
        rank = reply["rank"].value
        if rank is None or is_nan(rank) or reply["role"].value != "assistant":
            unranked.append(reply["rank"].left_out(NO_RANK))
            continue
        if isinstance(rank, bool) or not isinstance(rank, (int, float)) or not 0 <= rank < MOST_RANK or rank != int(rank):
            raise reply["rank"].bad(f"is {rank!r}; OpenAssistant's ranks are whole numbers from 0, the best, up")
        if _deleted(reply):
            yield reply["deleted"].left_out(DELETED)
        else:
            ranked.append((int(rank) + 1, Answer(reply["text"].text(), reply["model_name"].name() or "human")))
    if len(ranked) < 2:
        yield message["replies"].left_out(UNRANKED)
        return
    yield from unranked
    ranks: tuple[Rank, ...] = tuple(rank for rank, _ in ranked)
    prompt = message["text"].prompt_of(dialogue, "open-assistant")
    yield Vote(row=message.row, prompt=prompt, answers=tuple(answer for _, answer in ranked), ranks=ranks, rater=rater)
