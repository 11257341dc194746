"""The columns of each dataset that is exported, as the libraries that read it name them.

A layout turns a row into cells; a container (JSONL, CSV, Parquet, a folder of the ``datasets`` library) holds them. No cell is
ever null: a missing text is "" and a missing strength is 0, so that a column has one type whatever comes
first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from charter.reading.prompts import is_transcript, messages_in_json, parse_transcript, prompt_text
from charter.records import Judgment, Message, Prompt
from charter.votes.rankings import notches, soft_label, wins
from charter.votes.training_rows import AttemptRow, GroupRow, LabelRow, PairRow

Kind = Literal["pairs", "labels", "groups", "attempts"]
Cells = dict[str, Any]
NO_TRANSCRIPT = "no place for it in this format (a system message, or a turn inside a turn); a conversational format keeps it"

PAIR_EXTRAS = {"weight": "float", "margin": "float", "strength": "int", "principle": "text", "group_id": "text",
               "judgment_id": "text", "rater_id": "text", "rater_kind": "text"}  # fmt: skip
REASONS = {"reason": "text", "decided": "text"}  # columns that pairs and labels have where they are wanted
ATTEMPT_NUMBERS = ("rating", "min_harmlessness_score_transcript", "task_description_harmlessness_score")
ATTEMPT_MEMBER = "member-"  # what stands before a member's number in its rater id
LABEL_EXTRAS = {name: PAIR_EXTRAS[name] for name in ("principle", "group_id", "judgment_id", "rater_id", "rater_kind")}


@dataclass(frozen=True)
class Layout:
    """``columns``: names to types (text, float, int, bool, messages, json). ``encode``: a row's cells, or None where the format
    cannot hold it. ``suffixes``: the containers it can go into, the usual one first; "" is a folder of ``datasets``."""

    kind: Kind
    columns: dict[str, str]
    encode: Callable[[Any], Cells | None]
    suffixes: tuple[str, ...] = (".jsonl", ".parquet", ".csv", "")


def transcript(messages: Sequence[Message]) -> str | None:
    """A dialogue as text with ``\\n\\nHuman:`` and ``\\n\\nAssistant:`` turns (the form of hh-rlhf), None where reading it back
    gives another dialogue."""
    names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}
    text = "".join(names[message.role] + message.content for message in messages)
    try:
        return text if parse_transcript(text) == tuple(messages) else None
    except ValueError:
        return None


def plain_prompt(prompt: Prompt) -> tuple[str, str] | None:
    """(text, what an answer begins with): a single user turn as it is, other dialogues as a transcript up to ``Assistant:``."""
    first = prompt.messages[0]
    ambiguous = is_transcript(first.content) or messages_in_json(first.content) is not None
    if len(prompt.messages) == 1 and first.role == "user" and not ambiguous:
        return first.content, ""
    text = transcript(prompt.messages)
    return None if text is None or not is_transcript(text) else (text + "\n\nAssistant:", " ")


def _messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [message.model_dump() for message in messages]


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _pair_extras(row: PairRow) -> Cells:
    return {name: getattr(row, name) for name in PAIR_EXTRAS}


def _label_extras(row: LabelRow) -> Cells:
    return {name: getattr(row, name) for name in LABEL_EXTRAS}


def _plain_pair(row: PairRow) -> Cells | None:
    plain = plain_prompt(row.prompt)
    if plain is None:
        return None
    prompt, opening = plain
    return {"prompt": prompt, "chosen": opening + row.chosen, "rejected": opening + row.rejected, **_pair_extras(row)}


def _conversational_pair(row: PairRow) -> Cells:
    return {"prompt": _messages(row.prompt.messages), "chosen": _assistant(row.chosen), "rejected": _assistant(row.rejected),
            **_pair_extras(row)}  # fmt: skip


def _whole_conversations(row: PairRow) -> Cells | None:
    """Both dialogues with their prompt. RewardBench takes the turns for user and assistant in turn, whatever their roles are."""
    if any(message.role != ("user", "assistant")[n % 2] for n, message in enumerate(row.prompt.messages)):
        return None
    asked = _messages(row.prompt.messages)
    return {"chosen": asked + _assistant(row.chosen), "rejected": asked + _assistant(row.rejected), **_pair_extras(row)}


def _table_pair(row: PairRow) -> Cells:
    return {"prompt": prompt_text(row.prompt), "chosen": row.chosen, "rejected": row.rejected, **_pair_extras(row)}


def _hh_pair(row: PairRow) -> Cells | None:
    sides = [transcript((*row.prompt.messages, Message(role="assistant", content=text))) for text in (row.chosen, row.rejected)]
    return None if None in sides else {"chosen": sides[0], "rejected": sides[1]}


def _plain_label(row: LabelRow) -> Cells | None:
    plain = plain_prompt(row.prompt)
    if plain is None:
        return None
    prompt, opening = plain
    return {"prompt": prompt, "completion": opening + row.completion, "label": row.label, **_label_extras(row)}


def _conversational_label(row: LabelRow) -> Cells:
    return {"prompt": _messages(row.prompt.messages), "completion": _assistant(row.completion), "label": row.label,
            **_label_extras(row)}  # fmt: skip


def _grouped(row: GroupRow) -> Cells:
    return {
        "prompt": _messages(row.prompt.messages),
        "responses": [{"id": key, "model": model, "text": text} for key, model, text in row.responses],
        "rankings": [_ranking(judgment) for judgment in row.rankings],
        "group_id": row.prompt.id,
    }


def _ranking(judgment: Judgment) -> Cells:
    """``ranks`` stand in the order of ``order`` and are texts, because a column has one type: "1", "2" …, "F", or "" for none."""
    toward_first = not (pairs := wins(judgment)) or pairs[0][0] == judgment.order[0]
    return {
        "order": list(judgment.order),
        "ranks": [str(judgment.ranks.get(response, "")) for response in judgment.order],
        "strength": notches(judgment) * (1 if toward_first else -1),
        "weight": soft_label(judgment.margin if len(judgment.order) == 2 else None),
        "principle": judgment.principle or "",
        "set_id": judgment.set_id,
        "judgment_id": judgment.id,
        "rater_id": judgment.rater_id,
        "rater_kind": judgment.rater_kind,
    }


def _attempt(row: AttemptRow) -> Cells | None:
    """The fields of the published red-team attempts, those that are known."""
    text = transcript((*row.prompt.messages, Message(role="assistant", content=row.text)))
    if text is None:
        return None
    cells: Cells = {"transcript": text, "task_description": row.task, "tags": []}
    for flag in row.flags:
        name, equals, value = flag.partition("=")
        if equals and name in ATTEMPT_NUMBERS:
            cells[name] = float(value)
        elif equals and name == "is_upworker":
            cells[name] = value == "true"
        else:
            cells["tags"].append(flag)
    kind, _, size = row.model.rpartition(" ")
    cells |= {"model_type": kind or row.model, "num_params": size if kind else ""}
    member = row.rater_id.removeprefix(ATTEMPT_MEMBER)
    return cells | {"red_team_member_id": int(member) if member.isdecimal() else row.rater_id}


_TEXT_PAIR = {"prompt": "text", "chosen": "text", "rejected": "text"} | PAIR_EXTRAS
_MESSAGES_PAIR = {"prompt": "messages", "chosen": "messages", "rejected": "messages"} | PAIR_EXTRAS
LAYOUTS: dict[str, Layout] = {
    "trl": Layout("pairs", _TEXT_PAIR, _plain_pair),
    "trl-conversational": Layout("pairs", _MESSAGES_PAIR, _conversational_pair, (".jsonl", ".parquet", "")),
    "unpaired": Layout("labels", {"prompt": "text", "completion": "text", "label": "bool"} | LABEL_EXTRAS, _plain_label),
    "unpaired-conversational": Layout(
        "labels",
        {"prompt": "messages", "completion": "messages", "label": "bool"} | LABEL_EXTRAS,
        _conversational_label,
        (".jsonl", ".parquet", ""),
    ),
    "rewardbench": Layout("pairs", {"chosen": "messages", "rejected": "messages"} | PAIR_EXTRAS, _whole_conversations,
                          (".jsonl",)),
    "hh": Layout("pairs", {"chosen": "text", "rejected": "text"}, _hh_pair),
    "grouped": Layout("groups", {"prompt": "messages", "responses": "json", "rankings": "json", "group_id": "text"}, _grouped,
                      (".jsonl",)),
    "hh-red-team": Layout("attempts", {}, _attempt, (".jsonl",)),
    "csv": Layout("pairs", _TEXT_PAIR, _table_pair, (".csv",)),
    "parquet": Layout("pairs", _MESSAGES_PAIR, _conversational_pair, (".parquet",)),
    "datasets": Layout("pairs", _MESSAGES_PAIR, _conversational_pair, ("",)),
}  # fmt: skip
