"""Preference pairs from files: our own, TRL's, hh-rlhf's, and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from charter.reading.forms import ROLE_NAMES, LeftOut, check_tool_export, preferred_output, read_usable, usual_columns
from charter.reading.prompts import is_transcript, messages_in_json, row_conversation, row_messages, row_prompt
from charter.reading.rows import Row, is_missing
from charter.records import Message, Pair, Prompt, content_id
from charter.run.files import describe

IDENTICAL = "chosen and rejected are identical"
EQUAL_SCORES = "chosen and rejected have the same score"
FORKED = "the dialogues differ before the last answer"
SPOKEN = "the prompt ends with the assistant's turn"
EMPTY_ANSWER = "an answer is empty"
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"),
          ("rating_chosen", "rating_rejected"), ("chosen-rating", "rejected-rating"))  # fmt: skip
"""Columns of binarised sets (UltraFeedback and its kin) with what a judge gave the two answers; equal ones prefer neither."""
SAME_TOKENS = "chosen and rejected are the same tokens when cut to"


@dataclass(frozen=True)
class PairFile:
    """The pairs of a file to use, how many rows it has, and how many of them were left out for which reason."""

    pairs: list[Pair]
    n_rows: int
    excluded: dict[str, int]


def read_pairs(path: Path) -> PairFile:
    """Read preference pairs from JSONL, JSON, CSV, TSV (these also compressed) or Parquet.

    - with a prompt (text, transcript, messages, or our own Prompt): chosen and rejected are the answers, as text or as
      messages (TRL); messages may repeat the prompt.
    - without: chosen and rejected are whole dialogues, as hh-rlhf transcripts or as messages, and the prompt is what
      comes before the last answer. Where that differs between the two (0.2 % of hh-rlhf), or ends with the
      assistant, the row is left out: its answer would contain turns of the user, and training on it would teach the
      model to speak for them.
    - in the forms of ShareGPT, axolotl, ms-swift and AlpacaEval, under their columns; a column ``system`` stands before.

    Rows with an empty answer, or with a part that Charter does not render (tools, reasoning, media), are left out and counted.

    Optional columns: ``weight``, P(chosen is better) in [0.5, 1]; or ``p``, the same in [0, 1], where less than 0.5
    swaps the two; ``margin``; ``principle``, else ``decided``, ids with commas; ``group_id``, by default the
    prompt id of the first user turn, so that dialogues with the same opening stay together. InputError names file, line and
    field.
    """
    return PairFile(*read_usable(path, _pair_with_words, "pair"))


def _pair_with_words(row: Row) -> Pair | str:
    pair = decided_pair(row)
    return EMPTY_ANSWER if isinstance(pair, Pair) and not (pair.chosen.strip() and pair.rejected.strip()) else pair


def split_pairs(pairs: Iterable[Pair], *, test_fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(train, test), both in the given order, with ``test_fraction`` of the groups (rounded) in test.

    Pairs of one ``group_id`` or of one prompt are never on both sides: groups that share a prompt count as one. Which
    side follows from a hash of group and seed, not from the order. ValueError if the fraction is not in [0, 1].
    """
    if not 0 <= test_fraction <= 1:
        raise ValueError(f"test_fraction is {test_fraction}; it should be between 0 and 1")
    pairs = list(pairs)
    names = clusters_of(pairs)
    clusters = sorted(set(names), key=lambda group: content_id(seed, group))
    in_test = set(clusters[: round(len(clusters) * test_fraction)])
    train = [pair for pair, name in zip(pairs, names, strict=True) if name not in in_test]
    return train, [pair for pair, name in zip(pairs, names, strict=True) if name in in_test]


def clusters_of(pairs: Sequence[Pair]) -> list[str]:
    """Of each pair the name of its groups: its own group, with all that share a prompt with it, as one."""
    joined: dict[str, set[str]] = {}  # every group -> the groups it is one with, the same set for all of them
    prompt_group: dict[str, str] = {}
    for pair in pairs:
        cluster = joined.setdefault(pair.group_id, {pair.group_id})
        other = joined[prompt_group.setdefault(pair.prompt.id, pair.group_id)]
        if other is not cluster:
            other |= cluster
            joined |= dict.fromkeys(cluster, other)
    return [min(joined[pair.group_id]) for pair in pairs]


def equal_scores(row: Row) -> bool:
    """Whether the row's scores of the two answers prefer neither."""
    return any((score := row.values.get(better)) not in (None, "") and score == row.values.get(worse) for better, worse in SCORES)


def decided_pair(row: Row) -> Pair | str:
    """As :func:`row_pair`, and a reason to leave out a row whose scores prefer neither answer."""
    return EQUAL_SCORES if equal_scores(row) else row_pair(row)


def row_pair(row: Row) -> Pair | str:
    """The pair of a row, or the reason to leave it out."""
    try:
        return _row_pair(usual_columns(preferred_output(row)))
    except LeftOut as error:
        return error.reason


def _row_pair(row: Row) -> Pair | str:
    if (missing := next((name for name in ("chosen", "rejected") if is_missing(row.values.get(name))), None)) is not None:
        if {"chosen", "rejected"} <= row.values.keys():
            return EMPTY_ANSWER
        check_tool_export(row)
        if row.values.get("response") is not None and {"score", "rating"} & row.values.keys():
            raise row.bad("missing; these are ratings: train on them with --loss squared or --loss absolute", missing)
        raise row.bad("missing; a pair needs prompt, chosen and rejected, or two whole dialogues", missing)
    if row.values.get("prompt") in (None, "") or _prompt_is_a_turn(row):
        chosen, rejected = _dialogue(row, "chosen"), _dialogue(row, "rejected")
        if chosen[:-1] != rejected[:-1]:
            return FORKED
        prompt = _prompt(row, "chosen", chosen[:-1])
        answers = chosen[-1].content, rejected[-1].content
    else:
        prompt = prompt_column(row)
        if prompt is not None:
            prompt = with_system_of(row, "chosen", prompt)
            answers = answer_text(row, "chosen", prompt), answer_text(row, "rejected", prompt)
    if prompt is None:
        return SPOKEN
    if answers[0] == answers[1]:
        return IDENTICAL

    weight, p, margin = (number(row, field) for field in ("weight", "p", "margin"))
    if weight is None and p is not None:
        if not 0 <= p <= 1:
            raise row.bad(f"{p:g} is not between 0 and 1; give a probability", "p")
        weight = max(p, 1 - p)
        answers = answers if p >= 0.5 else answers[::-1]
    opening = next(message for message in prompt.messages if message.role != "assistant")
    opening = next((message for message in prompt.messages if message.role == "user"), opening)
    decided = value if isinstance(value := row.values.get("decided"), str) else ""  # a column of Charter's own exports
    try:
        return Pair(
            prompt=prompt,
            chosen=answers[0],
            rejected=answers[1],
            weight=1.0 if weight is None else weight,
            margin=margin or 0.0,
            group_id=row.optional("group_id") or Prompt.ask(opening.content).id,
            principle=row.optional("principle") or decided or None,
        )
    except ValidationError as error:
        field, words = describe(error)
        raise row.bad(words, field) from None


def _prompt_is_a_turn(row: Row) -> bool:
    """Whether chosen and rejected are whole dialogues of several turns and the prompt is a text among those of the user, such as
    the last (Tülu's mixes, Capybara)."""
    if not isinstance(row.values["prompt"], str):
        return False
    dialogues = [_answer_messages(row, field) or () for field in ("chosen", "rejected")]
    turns = [[message.content for message in messages[:-1] if message.role == "user"] for messages in dialogues]
    return all(len(texts) > 1 and row.values["prompt"] in texts for texts in turns)


def _dialogue(row: Row, field: str) -> tuple[Message, ...]:
    """A whole dialogue, as a transcript or as messages, that ends with an answer."""
    value = row.values[field]
    plain = isinstance(value, str) and messages_in_json(value) is None
    if plain and row.values.get("prompt") == "" and not is_transcript(value):
        raise row.bad("empty; write the prompt or remove the row", "prompt")
    return ending_with_answer(row, field, row_conversation(row, field, as_transcript=plain))


def ending_with_answer(row: Row, field: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages, whose last is an answer. InputError if it is not."""
    if not messages or messages[-1].role != "assistant":
        raise row.bad("does not end with an answer of the assistant", field)
    return messages


def _prompt(row: Row, field: str, messages: tuple[Message, ...]) -> Prompt | None:
    """The prompt of these messages and nothing else (the row's principle is the pair's), or None if the assistant
    spoke last."""
    if messages and messages[-1].role == "assistant":
        return None
    return row_prompt(Row({}, row.file, row.line), field, messages)


def prompt_column(row: Row) -> Prompt | None:
    """The prompt in column ``prompt``, None if it ends with the assistant's turn."""
    value = row.values["prompt"]
    if isinstance(value, dict) and "messages" in value:
        try:
            return Prompt.model_validate(value)
        except ValidationError as error:
            field, words = describe(error)
            raise row.bad(words, f"prompt.{field}".rstrip(".")) from None
    messages = row_conversation(row, "prompt")
    if isinstance(value, str) and is_transcript(value) and not messages[-1].content.strip():
        messages = messages[:-1]  # "Assistant:" with nothing after it only marks who is next
    return _prompt(row, "prompt", messages)


def with_system_of(row: Row, field: str, prompt: Prompt) -> Prompt:
    """The prompt after the system turn with which an answer in messages begins and the prompt does not."""
    messages = _answer_messages(row, field) or ()
    if messages and messages[0].role == "system" and all(message.role != "system" for message in prompt.messages):
        return row_prompt(Row({}, row.file, row.line), field, (messages[0], *prompt.messages))
    return prompt


def _answer_messages(row: Row, field: str) -> tuple[Message, ...] | None:
    """An answer as messages, None if it is a plain text. A text is messages only where they end with a whole turn of the
    assistant: an answer may be about JSON."""
    value = row.values.get(field)
    if isinstance(value, str):
        last = (messages_in_json(value) or [{}])[-1]
        role, content = last.get("role", ROLE_NAMES.get(str(last.get("from")))), last.get("content", last.get("value"))
        return row_messages(row, field) if role == "assistant" and isinstance(content, str) else None
    return row_messages(row, field) if isinstance(value, (list, dict)) else None


def answer_text(row: Row, field: str, prompt: Prompt) -> str:
    """The answer in a column: a text, or messages that may begin with the prompt's."""
    messages = _answer_messages(row, field)
    if messages is None:
        text = row.text(field)
        # A prompt written as a transcript up to "Assistant:" leaves the space after the colon to the answer.
        opened = isinstance(row.values["prompt"], str) and is_transcript(row.values["prompt"])
        return text.removeprefix(" ") if opened else text
    if messages[: len(prompt.messages)] == prompt.messages:
        messages = messages[len(prompt.messages) :]
    if [message.role for message in messages] != ["assistant"]:
        raise row.bad("must be one message of the assistant after the prompt", field)
    return messages[0].content


def number(row: Row, field: str) -> float | None:
    """The finite number in a column, None if it is empty."""
    value = row.values.get(field)
    if value in (None, ""):
        return None
    try:
        parsed = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        parsed = math.nan
    if not math.isfinite(parsed):
        raise row.bad(f"must be a number, not {value!r}", field)
    return parsed
