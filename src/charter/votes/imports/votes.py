"""What every importer makes of a file: votes, each with its prompt and its answers as text, and the records they become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from charter.errors import InputError
from charter.reading.forms import LeftOut
from charter.reading.pairs import SPOKEN, prompt_column
from charter.reading.prompts import is_transcript, messages_in_json, row_prompt
from charter.reading.rows import Row, is_nan
from charter.records import (
    Direction,
    Generation,
    Judgment,
    LabelSet,
    Message,
    Prompt,
    Rank,
    Response,
    SetKind,
    clean_text,
    content_id,
)
from charter.run.files import describe
from charter.run.hashes import derive_seed
from charter.votes.imports.formats import Rater
from charter.votes.judgments import DECIDED, seal

UNKNOWN = "unknown"
PROMPT_NAMES = ("prompt", "instruction", "question", "text", "input")
UNCLEAN = "a text with a NUL character or a lone surrogate"
NO_TEXT = "a text is missing"
NO_PROMPT = "the prompt is missing"


@dataclass(frozen=True)
class Answer:
    """A response and the model that wrote it."""

    text: str
    model: str = UNKNOWN


@dataclass(frozen=True)
class Vote:
    """A judgment with its texts. ``ranks`` stand in the order of ``answers``, None where a response was not ranked. ``strength``
    and ``margin`` are for the first of two answers. ``set_id`` "" is made from prompt and answers. ``flags`` are of the first
    answer; ``decided`` are the principles that the rater named."""

    row: Row
    prompt: Prompt
    answers: tuple[Answer, ...]
    ranks: tuple[Rank | None, ...]
    rater: Rater
    kind: SetKind = "rank"
    direction: Direction = "better"
    set_id: str = ""
    principle: str | None = None
    strength: int | None = None
    margin: float | None = None
    flags: tuple[str, ...] = ()
    comment: str = ""
    decided: tuple[str, ...] = ()
    seconds: float | None = None


def shown_by_coin(vote: Vote) -> Vote:
    """A vote on two answers whose order on the screen is unknown; a hash of the texts exchanges the two in half of such votes.

    Were chosen always first, every such rater would look biased for what stands first.
    """
    if derive_seed("shown", vote.prompt.id, *sorted(answer.text for answer in vote.answers)) % 2 == 0:
        return vote
    fields = vars(vote) | {
        "answers": vote.answers[::-1],
        "ranks": vote.ranks[::-1],
        "strength": None if vote.strength is None else -vote.strength,
        "margin": None if vote.margin is None else -vote.margin,
    }
    return Vote(**fields)


def records_of(vote: Vote, *, number: int, file: str, prev_hash: str) -> tuple[list[Response], Judgment]:
    """The responses of a vote and its judgment, sealed behind ``prev_hash``.

    Ids follow from the content of the file and the place in it: the same file gives the same records, in the order of the ids.
    Equal texts of one model are told apart by their number. InputError names the row where a record would not be valid.
    """
    responses: list[Response] = []
    for answer in vote.answers:
        twins = sum(earlier.text == answer.text and earlier.model == answer.model for earlier in responses)
        generation = Generation(seed=twins, temperature=0.0, checkpoint="imported")
        responses.append(Response(prompt_id=vote.prompt.id, model=answer.model, text=answer.text, finish_reason="stop",
                                  generation=generation))  # fmt: skip
    keys = [response.id for response in responses]
    set_id = vote.set_id or LabelSet(prompt_id=vote.prompt.id, kind=vote.kind, response_ids=tuple(keys),
                                     direction=vote.direction).id  # fmt: skip
    flags = {keys[0]: list(vote.flags)} if vote.flags else {}
    try:
        judgment = Judgment(
            id=f"{number:010d}" + content_id(file, vote.rater.id, vote.rater.kind, number).upper(),
            set_id=set_id,
            prompt_id=vote.prompt.id,
            rater_id=vote.rater.id,
            rater_kind=vote.rater.kind,
            direction=vote.direction,
            order=tuple(keys),
            principle=vote.principle,
            ranks={key: rank for key, rank in zip(keys, vote.ranks, strict=True) if rank is not None},
            margin=vote.margin,
            strength=vote.strength,
            flags=flags | ({set_id: [DECIDED + key for key in vote.decided]} if vote.decided else {}),
            comment=vote.comment,
            timings={} if vote.seconds is None else {"active_ms": 1000 * vote.seconds},
        )
    except ValidationError as error:
        field, words = describe(error)
        raise vote.row.bad(words, field) from None
    return responses, seal(judgment, prev_hash)


@dataclass(frozen=True)
class Part:
    """A value somewhere inside of a row, and its place for errors."""

    row: Row
    value: Any
    field: str = ""

    def __getitem__(self, key: str) -> Part:
        """What an object has under a key, None where it has nothing."""
        return Part(self.row, self.fields().get(key), f"{self.field}.{key}".lstrip("."))

    def __iter__(self) -> Iterator[Part]:
        """The entries of a list."""
        return (Part(self.row, value, f"{self.field}.{place}") for place, value in enumerate(self.entries()))

    def bad(self, words: str) -> InputError:
        """The error of a value that does not fit its format."""
        return self.row.bad(words, self.field or None)

    def left_out(self, reason: str) -> LeftOut:
        """The error of a value that only this row, or this part of it, has to be left out for."""
        return LeftOut(self.row, reason, self.field or None)

    def fields(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.bad("missing" if self.value is None else f"is a {type(self.value).__name__}, not an object")
        return self.value

    def entries(self) -> list[Any]:
        if not isinstance(self.value, list):
            raise self.bad("missing" if self.value is None else f"is a {type(self.value).__name__}, not a list")
        return self.value

    def text(self) -> str:
        """A text. LeftOut where it is missing, or has what no stage can handle."""
        if self.value is None:
            raise self.left_out(NO_TEXT)
        if not isinstance(self.value, str):
            raise self.bad(f"is a {type(self.value).__name__}, not a text")
        try:
            return clean_text(self.value)
        except ValueError:
            raise self.left_out(UNCLEAN) from None

    def name(self) -> str:
        """A text, or a number as text; "" where there is nothing: None, or the NaN that pandas writes for it."""
        if self.value is None or is_nan(self.value):
            return ""
        return str(self.value) if isinstance(self.value, (int, float)) else self.text()

    def rank(self) -> int:
        """A whole number of at least 1."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < 1:
            raise self.bad(f"is {self.value!r}; a rank is a whole number from 1, the best, up")
        return self.value

    def prompt(self, source: str) -> Prompt:
        """The prompt that a text, a transcript or a list of messages is. LeftOut where it is missing or waits for no answer."""
        if self.value is None or (isinstance(self.value, str) and not self.text().strip()):
            raise self.left_out(NO_PROMPT)
        prompt = prompt_column(Row({"prompt": self.value}, self.row.file, self.row.line))
        if prompt is None:
            raise self.left_out(SPOKEN)
        return prompt.model_copy(update={"source": source})

    def prompt_of(self, messages: Sequence[Message], source: str, tags: Sequence[str] = ()) -> Prompt:
        """The prompt of messages that were read from this part; assistant turns at their end are dropped."""
        return row_prompt(Row({}, self.row.file, self.row.line), self.field, messages, source=source, tags=tags)


def with_context(fields: Part, name: str) -> Part:
    """The prompt under ``name`` with the plain text under input or context after it, as the raters read both."""
    part = fields[name]
    more = next((fields[other].value for other in ("input", "context") if other != name and fields[other].value), None)
    if not isinstance(part.value, str) or not isinstance(more, str) or is_transcript(part.value) or messages_in_json(part.value):
        return part
    return replace(part, value=f"{part.value}\n\n{more}")


def unclean(row: Row) -> LeftOut | None:
    """The reason to leave out a row with a text that no stage can handle, None where all its texts are clean."""
    waiting = [Part(row, row.values)]
    while waiting:
        part = waiting.pop()
        if isinstance(part.value, dict):
            waiting += [part[key] for key in part.value]
        elif isinstance(part.value, list):
            waiting += part
        elif isinstance(part.value, str):
            try:
                part.text()
            except LeftOut as error:
                return error
    return None


def ranks_of_scores(scores: Sequence[float | None]) -> tuple[Rank | None, ...]:
    """Ranks from 1 for the highest score, equal scores equal ranks, None where there is no score."""
    levels = sorted({score for score in scores if score is not None}, reverse=True)
    return tuple(None if score is None else levels.index(score) + 1 for score in scores)


class Unique:
    """The ids of the rows so far."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def known(self, key: str) -> bool:
        """Whether an earlier row had this key, which is noted."""
        before = len(self.seen)
        self.seen.add(key)
        return len(self.seen) == before

    def check(self, part: Part) -> None:
        """InputError where an earlier row had this id; rows without an id pass."""
        if part.value is not None and self.known(str(part.value)):
            raise part.bad(f"duplicate id {str(part.value)[:60]!r}; give every row a different id")
