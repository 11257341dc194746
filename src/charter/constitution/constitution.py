"""A constitution: the written principles by which answers are criticised, revised and compared.

It is content, not code. A principle has up to two uses: `critique` and `revision` ask a model to find and to mend a violation
(Bai et al. 2022, section 3), `preference` asks a judge which of two answers follows the principle better (section 4). The file is
YAML; an error in it is one line that names the place.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from charter.errors import InputError
from charter.records import Message, Prompt, Record, Text, content_id
from charter.run.files import write_text
from charter.run.yaml_files import MAX_BYTES, UniqueKeys, read_nodes

PROMPT_TAGS = frozenset({"red_team", "benign"})
TOPIC = "topic"
DRAWN, PRINCIPLE = "drawn by", "principle "
BY_ROW = ("prompts", "gate", "labelled", DRAWN, PRINCIPLE)
"""Inputs of a stage that decide for each row apart whether it still holds."""


def _filled(text: str) -> str:
    # Block scalars end in a newline that would travel into every prompt.
    if not (stripped := text.strip()):
        raise ValueError("empty; write the text or leave the key out")
    return stripped


Words = Annotated[Text, AfterValidator(_filled)]
Authority = Literal["root", "platform", "system", "developer", "user", "guideline"]
AUTHORITIES = get_args(Authority)  # OpenAI's Model Spec, from the highest; "platform" is an earlier word for the top level
UNRANKED = 2**31
LATER = ("priority", "authority", "points", "criteria", "examples", "support", "wording")
"""Fields that a principle may leave out of its hash, so that a constitution without them keeps the hash it had before them."""


class Answer(Record):
    """A published answer to the prompt of an example. ``reason`` says why it is good or bad. In YAML an answer without a reason
    is a plain text."""

    text: Words
    reason: Text = ""

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _as_text(self, serialize: SerializerFunctionWrapHandler) -> Any:
        return serialize(self) if self.reason else self.text


def _as_turns(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class Example(Record):
    """A prompt that shows what a principle means, with ``good`` and ``bad`` answers where they are published. In YAML a prompt of
    one user turn is a plain text."""

    title: Text = ""
    prompt: Annotated[tuple[Message, ...], BeforeValidator(_as_turns), Field(min_length=1, strict=False)]
    good: Annotated[tuple[Answer, ...], Field(strict=False)] = ()
    bad: Annotated[tuple[Answer, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _waits_for_an_answer(self) -> Example:
        if self.prompt[-1].role == "assistant" or not self.prompt[-1].content.strip():
            raise ValueError("the prompt must end with a turn of the user that is not empty; put answers under good or bad")
        return self

    @model_serializer(mode="wrap")
    def _short(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        if len(self.prompt) == 1 and self.prompt[0].role == "user":
            values["prompt"] = self.prompt[0].content
        return values


class Criterion(Record):
    """A statement or a question about one reply, and the ``points`` of a Yes: below 0 for a fault."""

    criterion: Words
    points: Annotated[float, Field(ge=-1e6, le=1e6)]


class Principle(Record):
    """One principle. ``critique`` and ``revision`` come together; these or ``preference`` are required.

    Tags "red_team" and "benign" name the kinds of prompt to which it applies (without either: all prompts); "topic" marks one
    area of values, by which only prompts of that area are compared. ``about`` of a topic lists what its messages speak of, for
    sorting prompts. ``question``, about one reply, is answered with Yes or No, of which ``good_answer`` follows the principle.
    ``allowed`` names what it does not forbid. ``weight`` is relative, for :func:`draw`.

    ``priority`` (1 is applied first) or ``authority`` ranks it among the others. ``points`` are those of a rubric: their size is
    the weight unless one is written, and a negative number means that a good reply does not fit the ``question``. ``criteria``
    are what a rubric asks in place of the question (:mod:`charter.judging.rubrics`). ``examples`` become labelled pairs, worked
    examples and prompts (:mod:`charter.constitution.export`). ``support`` is the share of each opinion group that agrees.
    ``wording`` is the published text in full; it reaches no model.
    """

    id: Annotated[Text, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    title: Words
    critique: Words | None = None
    revision: Words | None = None
    preference: Words | None = None
    question: Words | None = None
    good_answer: Literal["yes", "no"] = "no"
    allowed: Words | None = None
    about: Words | None = None
    tags: Annotated[tuple[Words, ...], Field(strict=False)] = ()
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    source: Text = ""
    priority: Annotated[int, Field(ge=1)] | None = None
    authority: Authority | None = None
    points: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    criteria: Annotated[tuple[Criterion, ...], Field(strict=False)] = ()
    examples: Annotated[tuple[Example, ...], Field(strict=False)] = ()
    support: dict[Text, Annotated[float, Field(ge=0, le=1)]] | None = None
    wording: Text = ""

    @model_validator(mode="after")
    def _ranked_and_rated(self) -> Principle:
        if self.priority is not None and self.authority is not None:
            raise ValueError(f"principle {self.id!r} has priority and authority; keep one of the two")
        if any(criterion.points == 0 for criterion in self.criteria):
            raise ValueError(f"principle {self.id!r} has a criterion with 0 points, which says nothing; leave it out")
        if self.points is None:
            return self
        if self.criteria:
            raise ValueError(f"principle {self.id!r} has points, and criteria with points of their own; keep one of the two")
        if self.points == 0:
            raise ValueError(f"principle {self.id!r} has 0 points, so it says nothing; leave it out")
        if self.question is not None and (self.points > 0) != (self.good_answer == "yes"):
            answer = "yes" if self.points > 0 else "no"
            raise ValueError(f"principle {self.id!r} has {self.points:g} points, so its good_answer must be {answer!r}")
        if "weight" not in self.model_fields_set:
            object.__setattr__(self, "weight", abs(self.points))
        return self

    @model_validator(mode="after")
    def _kinds_as_written(self) -> Principle:
        for tag in self.tags:
            word = re.sub(r"[\s_-]+", "_", tag.casefold()).replace("redteam", "red_team")
            if word in (*PROMPT_TAGS, TOPIC) and tag != word:
                raise ValueError(f"principle {self.id!r} has the tag {tag!r}, which would restrict nothing; write {word}")
        return self

    @model_validator(mode="after")
    def _usable(self) -> Principle:
        if (self.critique is None) != (self.revision is None):
            missing = "critique" if self.critique is None else "revision"
            raise ValueError(f"principle {self.id!r} lacks the {missing}; critique and revision come together")
        if self.critique is None and self.preference is None:
            raise ValueError(f"principle {self.id!r} has no use; give it critique and revision, or preference")
        return self

    def applies_to(self, tags: Iterable[str]) -> bool:
        """Whether it applies to prompts with these tags: always, unless it names kinds of prompt and the tags name others."""
        kinds, named = PROMPT_TAGS.intersection(self.tags), PROMPT_TAGS.intersection(tags)
        return not kinds or not named or bool(kinds & named)

    def is_about(self, prompt: Prompt) -> bool:
        """Whether it applies to responses to this prompt; a topic only if the prompt has the same topic or none."""
        return self.applies_to(prompt.tags) and (TOPIC not in self.tags or prompt.principle in (None, self.id))

    @property
    def rank(self) -> int:
        """1 is applied first; without priority or authority after all that have one."""
        if self.authority is not None:
            return AUTHORITIES.index(self.authority) + 1
        return UNRANKED if self.priority is None else self.priority


class Constitution(Record):
    """At least one principle, with unique ids."""

    title: Words
    description: Text = ""
    principles: Annotated[tuple[Principle, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _unique_ids(self) -> Constitution:
        seen: set[str] = set()
        for principle in self.principles:
            if principle.id in seen:
                raise ValueError(f"two principles have the id {principle.id!r}; rename one")
            seen.add(principle.id)
        return self

    @model_validator(mode="after")
    def _one_scale(self) -> Constitution:
        if any(p.priority is not None for p in self.principles) and any(p.authority is not None for p in self.principles):
            raise ValueError("some principles have a priority and others an authority, which cannot be compared; use one of them")
        return self

    @property
    def hash(self) -> str:
        """SHA-256 (64 hex digits) of the principles. Title and description reach no model, so they do not count."""
        rows = [principle.model_dump(mode="json") for principle in self.principles]
        return _digest([{key: value for key, value in row.items() if key not in LATER or value} for row in rows])

    @property
    def ranked(self) -> bool:
        """Whether any principle goes before others."""
        return len({p.rank for p in self.principles if p.preference is not None}) > 1

    def for_revision(self, tags: Iterable[str]) -> tuple[Principle, ...]:
        """The principles for revising answers to prompts with these tags, all topics included: a drawn principle often does
        not fit the prompt, which makes revision gradual."""
        tags = set(tags)
        return tuple(p for p in self.principles if p.critique is not None and p.applies_to(tags))

    def for_comparison(self, prompt: Prompt) -> tuple[Principle, ...]:
        """The principles for comparing answers to this prompt."""
        return tuple(p for p in self.principles if p.preference is not None and p.is_about(prompt))

    def topics(self) -> tuple[Principle, ...]:
        """The areas of values."""
        return tuple(p for p in self.principles if TOPIC in p.tags)


EMPTY = Constitution.model_construct(title="No constitution", description="", principles=())
"""The constitution of a run without one: no topics, and no principle to revise or to compare by."""


def _digest(value: Any) -> str:
    canonical = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def draw(principles: Sequence[Principle], *key: object) -> Principle:
    """One principle with probability in proportion to its weight, always the same one for the same key.

    The key is JSON values, such as seed, prompt id and round. Key and id are hashed to a uniform number u, and the principle with
    the smallest -log(u) / weight is drawn (Efraimidis and Spirakis 2006). So a draw depends neither on the draws before it nor on
    the order of the principles; one that is added or removed changes only the draws that it wins or won, one that is reworded
    changes none. ValueError without principles.
    """
    if not principles:
        raise ValueError(f"no principles to draw from, for {key!r}")
    return min(principles, key=lambda p: _lot(p, key))


def by_rank(principles: Sequence[Principle], *key: object) -> list[Principle]:
    """The principles, the highest rank first; those of one rank in an order drawn by weight as in :func:`draw`."""
    return sorted(principles, key=lambda p: (p.rank, _lot(p, key)))


def _lot(principle: Principle, key: tuple[object, ...]) -> float:
    return -math.log((int(_digest([key, principle.id])[:13], 16) + 0.5) / 16**13) / principle.weight


class FewShots(Record):
    """Worked examples of revision, each: prompt (one or more turns), response, critique request, critique, revision
    request, revision."""

    title: Text = ""
    description: Text = ""
    examples: Annotated[
        tuple[Annotated[tuple[Message, ...], Field(min_length=6, strict=False)], ...], Field(min_length=1, strict=False)
    ]

    @model_validator(mode="after")
    def _take_turns(self) -> FewShots:
        for number, messages in enumerate(self.examples, start=1):
            turns = [message.role for message in messages if message.role != "system"]
            if turns != ["user", "assistant"] * (len(turns) // 2):
                raise ValueError(f"example {number}: user and assistant must take turns, the assistant last")
        return self


M = TypeVar("M", Constitution, FewShots)


def load_constitution(path: Path) -> Constitution:
    """Read a constitution from YAML. InputError names file, line and field."""
    return _load(path, Constitution)


def load_few_shots(path: Path) -> list[tuple[Message, ...]]:
    """Read worked examples of critique and revision from YAML (see :class:`FewShots`)."""
    return list(_load(path, FewShots).examples)


def save_constitution(constitution: Constitution | FewShots, path: Path) -> None:
    """Write YAML from which :func:`load_constitution`, or :func:`load_few_shots`, reads the same content. InputError where the
    file would be too large to be read."""
    content = constitution.model_dump(mode="json", exclude_defaults=True)
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    if len(text.encode()) > MAX_BYTES:
        raise InputError(f"would have more than {MAX_BYTES >> 20} MiB; import a part of the file", file=path)
    write_text(path, text)


class _Dumper(yaml.SafeDumper):
    """YAML that quotes texts with Unicode line breaks, which PyYAML otherwise writes bare and reads back as spaces."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if re.search(r"[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


class _Loader(UniqueKeys):
    """YAML without aliases, too: a few lines of them expand to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.get_event()  # type: ignore[no-untyped-call]
            words = f"alias *{event.anchor} is not allowed; write the text out"
            raise yaml.composer.ComposerError(None, None, words, event.start_mark)
        return super().compose_node(parent, index)


def _load(path: Path, kind: type[M]) -> M:
    remedy = f"write the keys {', '.join(kind.model_fields)}"
    if kind is Constitution:
        remedy += "; `charter constitution import FILE --out F.yaml` makes such a file of a list or of a published form"
    node, content = read_nodes(path, _Loader, remedy)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        field, words, place = _first_problem(error)
        raise InputError(words, file=path, line=_line(node, place) if place else None, field=field) from None


def _first_problem(error: ValidationError) -> tuple[str | None, str, tuple[int | str, ...]]:
    """(field, words, place): a misspelt key before the missing one it causes."""
    problem = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    place = problem["loc"]
    words = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        owners: dict[int, type[Record]] = {
            1: FewShots if error.title == "FewShots" else Constitution, 3: Principle,
            5: Criterion if "criteria" in place else Example,
            7: Message if "prompt" in place else Answer,
        }  # fmt: skip
        known = list(owners.get(len(place), Message).model_fields)
        near = difflib.get_close_matches(str(place[-1]), known, n=1)
        words = f"unknown key; did you mean {near[0]!r}?" if near else f"unknown key; use {', '.join(known)}"
        if place[-1] == "polarity":
            words = "not read; leave the key out, and let charter run RECIPE --controls flipped exchange the labels"
    elif problem["type"] == "string_type":
        words = f"{problem['input']!r} is not a text; put it in quotes"
    elif problem["type"] == "tuple_type":
        words = f"must be a list; write [{problem['input']}]" if isinstance(problem["input"], str) else "must be a list"
    elif problem["type"] == "literal_error" and isinstance(problem["input"], bool):
        words = "YAML reads a bare yes or no as true or false; put it in quotes"
    elif problem["type"] == "missing":
        words = "missing"
    return ".".join(str(part) for part in place) or None, words, place


def _line(node: yaml.Node, place: Sequence[int | str]) -> int:
    """The line (from 1) of the deepest part of ``place`` that is in the file."""
    line: int = node.start_mark.line
    for part in place:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        elif isinstance(node, yaml.MappingNode):
            entry = next(((key, value) for key, value in node.value if key.value == part), None)
            if entry is None:
                break
            line, node = entry[0].start_mark.line, entry[1]
        else:
            break
    return line + 1


def hashes_of_principles(constitution: Constitution, use: str, *texts: str) -> dict[str, str]:
    """What a stage reads of the constitution, as its inputs: of the principles that have a ``use``, `drawn by`, by which one is
    drawn, and `principle ID`, its ``use`` and other ``texts``. So a change of the rest does not run the stage again, and a text
    that changed is known by its principle. Their order does not count: a draw does not depend on it."""
    used = [p for p in constitution.principles if getattr(p, use) is not None]
    texts_of = {
        f"{PRINCIPLE}{p.id}": content_id(
            [getattr(p, field) for field in (use, *texts)] + [c.model_dump() for c in p.criteria if "question" in texts]
        )
        for p in used
    }
    return {DRAWN: content_id(sorted([p.id, p.tags, p.weight] for p in used)), **texts_of}
