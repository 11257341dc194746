"""The records that stages exchange, and JSONL in and out.

Everything a run leaves behind for the next stage is one of these, one JSON object per line. A record that is
identified by its content carries the first 16 hex digits of a SHA-256 as its id, so the same prompt has the
same id in every run and on every machine. Text from files and from models is untrusted: lone surrogates and
NUL characters are refused at the door, because tokenizers, terminals and CSV readers disagree about them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

if TYPE_CHECKING:
    from torch import Tensor


def clean_text(text: str) -> str:
    """The text itself, or ValueError if it contains a NUL or half a surrogate pair."""
    if "\x00" in text:
        raise ValueError("contains a NUL character; remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"contains a lone surrogate at character {error.start}; save the text as UTF-8") from None
    return text


Text = Annotated[str, AfterValidator(clean_text)]


class Record(BaseModel):
    """Immutable, strict about its fields, one JSON object per line."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def content_id(*parts: Any) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of ``parts``."""
    canonical = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:16]


class Message(Record):
    role: Literal["system", "user", "assistant"]
    content: Text


Split = Literal["train", "test"]


class Prompt(Record):
    """A conversation that waits for the assistant's next turn; ``id`` is the hash of its messages."""

    id: str = ""
    messages: Annotated[tuple[Message, ...], Field(min_length=1, strict=False)]
    source: Text = ""
    principle: Text | None = None
    tags: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    split: Split | None = None

    @model_validator(mode="after")
    def _identify(self) -> Prompt:
        if self.messages[-1].role == "assistant":
            raise ValueError("the last message is the assistant's; a prompt ends with a user or system message")
        expected = content_id([message.model_dump() for message in self.messages])
        if self.id and self.id != expected:
            raise ValueError(f"id {self.id!r} is not the hash of the messages ({expected!r}); leave it out")
        object.__setattr__(self, "id", expected)
        return self

    @property
    def last_turn(self) -> str:
        """What the assistant is to answer."""
        return self.messages[-1].content

    @classmethod
    def ask(cls, text: str, **fields: Any) -> Prompt:
        """A single user turn."""
        return cls(messages=(Message(role="user", content=text),), **fields)


TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=1, strict=True)]
MinP = Annotated[float, Field(ge=0, le=1)]


class Filters(Record):
    """The tokens that may be drawn, as transformers defines them: the ``top_k`` likeliest; of these the fewest likeliest that
    make up ``top_p``; of these each at least ``min_p`` times as likely as the likeliest. None: no such filter."""

    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None

    @property
    def words(self) -> list[str]:
        """`top_p 0.9`, `top_k 40`; empty if nothing is filtered."""
        return [f"{name} {value:g}" for name in Filters.model_fields if (value := getattr(self, name)) is not None]


class Generation(Record):
    """How a text was sampled: enough to sample it again. A filter that is off is not written."""

    seed: int
    temperature: float
    checkpoint: str = ""
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None

    @model_serializer(mode="wrap")
    def _without_filters_that_are_off(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        return {key: value for key, value in values.items() if value is not None or key not in Filters.model_fields}


class Response(Record):
    """What a model answered; ``id`` is the hash of prompt, model, seed and text, so K equal samples stay K records."""

    id: str = ""
    prompt_id: str
    model: str
    text: Text
    finish_reason: Literal["stop", "length"]
    generation: Generation

    @model_validator(mode="after")
    def _identify(self) -> Response:
        if not self.id:
            object.__setattr__(self, "id", content_id(self.prompt_id, self.model, self.generation.seed, self.text))
        return self


class Revision(Record):
    """One round of critique and revision under one principle. ``excluded`` says why the row is not trained on."""

    prompt_id: str
    round: int
    principle: str
    original: Response
    critique: Response
    revision: Response
    excluded: str | None = None


RaterKind = Literal["human", "judge", "reward_model", "rule"]
SetKind = Literal["rank", "pair", "redteam", "edit", "thumbs"]
Direction = Literal["better", "more_harmless", "more_harmful"]
MOST_RANK = 10**6
"""No set has so many responses; numbers beyond it do not fit the arrays of ratings."""
Rank = Annotated[int, Field(ge=1, le=MOST_RANK)] | Literal["F"]


class LabelSet(Record):
    """What one rater is asked at one go: to rank, compare, edit or thumb the responses to one prompt.

    ``target`` is how many raters are wanted; 1.3 gives 30 % of such sets a second one. ``role`` says what the answer is for:
    ``practice`` is answered with feedback, ``quiz`` and ``gold`` have a known answer in ``gold``, a ``repeat`` shows a set
    once more to who has seen it. ``propensity`` is the probability with which the set was chosen, ``arm`` by whom.
    """

    id: str = ""
    prompt_id: str
    kind: SetKind
    response_ids: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    direction: Direction = "better"
    target: Annotated[float, Field(gt=0)] = 1.0
    role: Literal["work", "practice", "quiz", "gold", "repeat"] = "work"
    gold: dict[str, Rank] | None = None
    priority: float = 0.0
    propensity: Annotated[float, Field(gt=0, le=1)] = 1.0
    arm: Literal["random", "active"] = "random"
    tags: Annotated[tuple[Text, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _identify(self) -> LabelSet:
        if not self.id:
            key = content_id(self.prompt_id, self.kind, sorted(self.response_ids), self.direction, self.role)
            object.__setattr__(self, "id", key)
        return self


class Judgment(Record):
    """One judgment by one rater, whoever it is: a person, an AI judge, a reward model or a rule.

    ``order`` is the order in which the responses were shown. ``ranks`` gives 1 to the best, equal numbers to ties
    and "F" to a response that does not answer at all (thumbs: 1 is up, "F" is down); it is empty when there was no verdict,
    which is a third value and never a tie. ``direction`` is what was asked for: a rank of 1 under ``more_harmful`` is the
    worst to train on. ``strength`` of a pair is -4 to -1 for the second of ``order`` and 1 to 4 for the first, never 0. A judge
    that reads log-probabilities stores ``margin``, the swap-averaged logit (nats) for the first of ``order`` over the second,
    and the two single-order logits it came from. ``supersedes`` names the judgment that this one replaces. ``hash`` chains
    over ``prev_hash``, so that a changed or missing line shows.
    """

    id: str
    set_id: str
    prompt_id: str
    rater_id: str
    rater_kind: RaterKind
    direction: Direction = "better"
    order: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    instructions_hash: str = ""
    principle: str | None = None
    ranks: dict[str, Rank] = {}
    margin: float | None = None
    margins_by_order: Annotated[tuple[float, float], Field(strict=False)] | None = None
    strength: Annotated[int, Field(ge=-4, le=4)] | None = None
    flags: dict[str, list[str]] = {}
    edit: dict[str, str] = {}
    comment: str = ""
    confidence: float | None = None
    timings: dict[str, float] = {}
    supersedes: str | None = None
    prev_hash: str = ""
    hash: str = ""

    @property
    def has_verdict(self) -> bool:
        return bool(self.ranks)


class Pair(Record):
    """A preference derived from judgments. ``weight`` is P(chosen is better), the soft label; ``margin`` is subtracted
    from the score difference in the loss; pairs of one ranking share ``group_id`` so that they are split and counted
    together."""

    prompt: Prompt
    chosen: Text
    rejected: Text
    weight: Annotated[float, Field(ge=0.5, le=1.0)] = 1.0
    margin: Annotated[float, Field(ge=0.0)] = 0.0
    group_id: str
    principle: str | None = None


class Rating(Record):
    """A number that one response was given, on any scale; higher is better."""

    prompt: Prompt
    response: Text
    score: Annotated[float, Field(allow_inf_nan=False)]
    group_id: str


@dataclass(frozen=True)
class Rollout:
    """Sampled responses as the trainer sees them. B rows, T response positions, padding on the right.

    prompt_ids: ids of the prompt of each row. ids: (B, T) response token ids. mask: (B, T) True on response tokens, the
    end-of-turn token included when it was sampled. logprobs: (B, T) log-probability in nats with which each was sampled, 0
    elsewhere. finished: (B,) True where the response ended by itself. n_tokens: response tokens as the sampler counted them.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    ids: Tensor
    mask: Tensor
    logprobs: Tensor
    finished: Tensor
    texts: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    n_tokens: int


class EvalResult(Record):
    """One number of a report with everything needed to doubt it."""

    name: str
    arm: str
    n: int
    n_unscored: int
    value: float | None
    ci: Annotated[tuple[float, float], Field(strict=False)] | None
    method: str
    scorer: str
    unit: str = ""
    group: str | None = None
