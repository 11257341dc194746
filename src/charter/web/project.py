"""The folder of a label project: settings, instructions, and what is to be labelled, from files people have.

``charter label`` takes such a folder, a run, or a table of responses. Whatever it is, the project folder ends with plain
files: ``prompts.jsonl``, ``responses.jsonl``, ``sets.jsonl`` and ``judgments.jsonl``, the last chained by hashes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from charter.constitution.constitution import Principle, load_constitution
from charter.errors import InputError
from charter.judging.people import FOLDER, TO_LABEL
from charter.reading.forms import PROMPT_COLUMNS, usual_columns
from charter.reading.pairs import row_pair
from charter.reading.prompts import TRANSCRIPT_COLUMNS, row_conversation, row_prompt
from charter.reading.rows import Row, read_rows
from charter.recipe.files import explain
from charter.recipe.settings import NonNegative, Positive, Settings, Share
from charter.recipe.source import locate
from charter.records import Direction, Generation, LabelSet, Prompt, Response, SetKind
from charter.run.files import read_jsonl
from charter.run.hashes import derive_seed
from charter.run.yaml_files import read_yaml
from charter.web.instructions import default_instructions

MAX_RANKED = 9  # a key for each rank
SAME_TEXT = (
    "response with the text of an earlier one to the prompt: people see it once, and votes count for the earlier one's model"
)
TOO_FEW = "prompt with fewer than two different responses"
OF_A_TABLE = "prompt of a table: in kind redteam people write the prompts"
PRINCIPLE_KEYS = "qwtyoghlzxcvbnm"  # those that no other action has


class RedTeamSettings(Settings):
    models: list[str] = Field(default_factory=lambda: ["package:charter.testbed/model"], min_length=1)
    """Folders of the models that answer; each candidate comes from one of them, drawn anew every turn."""
    turns: Positive = 4
    """Turns of a dialogue at most."""
    dialogues: Positive = 10
    """Dialogues that each person is asked for."""
    temperature: NonNegative = 1.0
    """Of the candidates."""
    max_new_tokens: Positive = 96
    """Longest candidate, in tokens."""


class RetrainSettings(Settings):
    model: str = "package:charter.testbed/model"
    """Folder of the model that the reward model starts from."""
    epochs: Positive = 2
    """Passes over the pairs."""
    test_fraction: Annotated[float, Field(gt=0, lt=0.6)] = 0.25
    """Share of the prompts held out."""


class LabelSettings(Settings):
    title: str = "Which answer is better?"
    """Stands at the head of every page."""
    kind: SetKind = "rank"
    """What a person is asked: rank all responses, compare a pair, red-team a model, edit a response, or thumbs up or down."""
    question: str | None = None
    """One line above the responses; by default one that fits the kind."""
    direction: Direction | None = None
    """What rank 1 means; more_harmless for red teaming and better for all else unless given."""
    overlap: Annotated[float, Field(ge=1, le=50)] = 1.0
    """Raters of each set; 1.3 gives 30 % of the sets a second one."""
    ties: Literal["forbid", "sparing", "free"] = "sparing"
    """Whether equal ranks are allowed; sparing shows people how many they gave, and a budget."""
    tie_budget: Share = 0.15
    """With `sparing`: the share of pairs up to which ties are fine."""
    strength: bool = True
    """Ask how much better, in four notches to either side (kinds pair and redteam)."""
    partial: bool = False
    """Accept a ranking in which some responses have no rank: they only lose to the ranked ones."""
    lease_minutes: Annotated[float, Field(gt=0, le=1440)] = 30.0
    """A set that was handed out and not answered is given to someone else after this time."""
    undo_minutes: Annotated[float, Field(ge=0, le=1440)] = 10.0
    """A vote can be taken back for so long."""
    break_minutes: Annotated[float, Field(gt=0)] = 50.0
    """After this much work without a pause the page suggests one."""
    instructions: str | None = None
    """Markdown file; instructions.md of the folder if it is there, else a text that fits the kind."""
    practice: str | None = None
    """Table of sets with known answers (`prompt`, `responses`, `ranks`, `why`) that are answered with feedback first."""
    quiz: str | None = None
    """The same for a test that has to be passed before the work begins."""
    quiz_pass_mark: Share = 0.7
    """Share of the quiz's pairs that must be as in the known answers."""
    gold: str | None = None
    """The same for sets that are mixed into the work, unmarked."""
    gold_share: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of a person's sets that are gold, while there are some left."""
    repeat_share: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of a person's sets that they have answered before, to see whether they say the same."""
    principles: str | None = None
    """A constitution whose principles a person may name as the ones that decided a vote; each has a key."""
    warnings: dict[str, str] = Field(default_factory=dict)
    """Tag of a prompt to the words of its content warning; such texts are blurred until asked for, and can be opted out of."""
    database: str | None = None
    """postgresql://HOST/NAME; SQLite in the folder unless given. The password belongs in PGPASSWORD or ~/.pgpass."""
    redteam: RedTeamSettings = RedTeamSettings()
    retrain: RetrainSettings = RetrainSettings()
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    """The order of sets and responses comes from it."""

    @model_validator(mode="after")
    def check_that_options_are_read(self) -> LabelSettings:
        """An option that the chosen kind does not read is a mistake."""
        for name in ("practice", "quiz", "gold"):
            if getattr(self, name) is not None and self.kind in ("edit", "redteam"):
                raise ValueError(f"{name} has known ranks, and kind is {self.kind}")
        if self.partial and self.kind != "rank":
            raise ValueError(f"partial is about rankings, and kind is {self.kind}")
        return self

    @model_validator(mode="after")
    def check_direction(self) -> LabelSettings:
        """A thumb or a rewrite for harm has no meaning that anything could be trained on."""
        if self.kind in ("thumbs", "edit") and self.direction not in (None, "better"):
            raise ValueError(f"direction is {self.direction}, and kind {self.kind} asks how good an answer is; leave it out")
        return self

    @property
    def asked_direction(self) -> Direction:
        """The direction; without one in the settings, that of the kind."""
        return self.direction or ("more_harmless" if self.kind == "redteam" else "better")


@dataclass
class Items:
    """What is to be labelled, and what was left out for which reason."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    responses: dict[str, Response] = field(default_factory=dict)
    sets: dict[str, LabelSet] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    """Set id to the words that explain its known answer."""
    left_out: Counter[str] = field(default_factory=Counter)
    """How many prompts, rows or responses were left out, by reason."""

    def add(self, prompt: Prompt, responses: Iterable[Response]) -> None:
        self.prompts.setdefault(prompt.id, prompt)
        for response in responses:
            self.responses.setdefault(response.id, response)


@dataclass(frozen=True)
class Project:
    """A project folder that was read and found whole."""

    folder: Path
    settings: LabelSettings
    items: Items
    principles: tuple[Principle, ...] = ()

    @property
    def keyed_principles(self) -> list[tuple[str, Principle]]:
        """The principles that a vote may name, each with its key."""
        return list(zip(PRINCIPLE_KEYS, self.principles, strict=False))

    @property
    def database(self) -> str:
        return self.settings.database or str(self.folder / "labels.db")

    @property
    def instructions_file(self) -> Path:
        named = self.settings.instructions
        return self.folder / (named or "instructions.md")

    def instructions(self) -> str:
        """The Markdown as it stands now. InputError where a file that the settings name is missing."""
        try:
            return self.instructions_file.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            if self.settings.instructions is not None:
                raise InputError("no such file", file=self.instructions_file, field="instructions") from None
            return default_instructions(self.settings)
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8 (byte {error.start}); convert it with iconv", file=self.instructions_file
                             ) from None  # fmt: skip


def text_hash(text: str) -> str:
    """The version of the instructions: 16 hex digits of the SHA-256 of their text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def open_project(place: Path, out: Path | None = None) -> Project:
    """Read what ``charter label`` was given: a project folder, a run folder, or a table of responses.

    A run is labelled in RUN/label: what it asks people, or all its responses where it asks nobody. A table is labelled in the
    folder of its name beside it, and either in ``out`` where that is given. Nothing is written.
    InputError with file, line and field where something cannot be used.
    """
    if place.is_dir():
        responses = place / "feedback" / TO_LABEL
        if not responses.is_file():
            responses = place / "feedback/responses.jsonl"
        folder = out or (place / FOLDER if responses.is_file() else place)
    else:
        responses = place
        bare = place.with_suffix("") if place.suffix == ".gz" else place
        folder = out or bare.with_name(f"{bare.with_suffix('').name}-label")
    settings = read_settings(folder / "label.yaml")
    items = Items()
    stored = folder / "responses.jsonl"
    if responses.is_file() or not place.is_dir():
        # What is asked stands there and nowhere else: the folder may remember answers that were sampled anew since.
        read_responses(responses, items)
    elif stored.is_file():
        first = next(iter(read_rows(stored)), None)
        if first is not None and "prompt_id" not in first.values:
            raise InputError(f"is a table, not the responses of a project; charter label {stored} makes a project of it",
                             file=stored)  # fmt: skip
        read_records(stored, items)
        for key in used_otherwise(folder / "sets.jsonl"):
            items.responses.pop(key, None)
    items_of_kind = make_sets(items, settings)
    for role in ("practice", "quiz", "gold"):
        if (name := getattr(settings, role)) is not None:
            read_known(folder / name, role, settings, items_of_kind)
    principles = read_principles(folder / settings.principles) if settings.principles is not None else ()
    project = Project(folder, settings, items_of_kind, principles)
    project.instructions()
    if settings.kind != "redteam" and not any(label_set.role == "work" for label_set in items_of_kind.sets.values()):
        where = responses if responses.is_file() else folder
        least = 2 if settings.kind in ("rank", "pair") else 1
        raise InputError(f"nothing to label: a set of kind {settings.kind!r} needs at least {least} different responses to a "
                         "prompt; give a table with the columns prompt and responses", file=where)  # fmt: skip
    return project


def read_settings(path: Path) -> LabelSettings:
    """label.yaml, or the defaults where there is none."""
    values = read_yaml(path) if path.exists() else {}
    try:
        settings = LabelSettings.model_validate(values)
    except ValidationError as error:
        key, words = explain(error, LabelSettings)
        raise InputError(words, file=path, field=key or None) from None
    base = path.resolve().parent
    return settings.model_copy(
        update={
            "redteam": settings.redteam.model_copy(update={"models": [locate(model, base) for model in settings.redteam.models]}),
            "retrain": settings.retrain.model_copy(update={"model": locate(settings.retrain.model, base)}),
        }
    )


def read_principles(path: Path) -> tuple[Principle, ...]:
    """The principles of a constitution, in its order. InputError where there are more than keys."""
    principles = load_constitution(path).principles
    if len(principles) > len(PRINCIPLE_KEYS):
        raise InputError(f"{len(principles)} principles, and {len(PRINCIPLE_KEYS)} have a key; name a file with those to choose "
                         "from", file=path, field="principles")  # fmt: skip
    return principles


def read_responses(path: Path, items: Items) -> None:
    """Add the responses of a table and their prompts: our own records, or rows with a prompt and its response or responses.

    Columns: ``prompt`` (or messages, text …) with ``responses``, a list of texts or of objects with text and model; or with
    ``response`` and optionally ``model``, one a row; or with ``chosen`` and ``rejected``, answers or whole dialogues, which are
    shown as any two.
    """
    rows = iter(read_rows(path))
    first = next(rows, None)
    if first is None:
        raise InputError("no response in it; give a table with the columns prompt and responses", file=path)
    if {"prompt_id", "text", "generation"} <= first.values.keys():
        read_records(path, items)
        return
    for row in (r for part in ([first], rows) for r in part):
        is_pair = row.values.get("chosen") is not None and not row.values.get("responses")
        if not is_pair or (row.values.get("rejected") is None and any(row.values.get(name) for name in PROMPT_COLUMNS[:-1])):
            prompt = prompt_of(row)
        elif isinstance(pair := row_pair(row), str):
            items.left_out[pair] += 1
            continue
        else:
            # A pair is read as training reads it; the tags of the row, by which people are warned, belong to the prompt.
            of_row = not isinstance(row.values.get("prompt"), dict)
            prompt = row_prompt(row, "prompt", pair.prompt.messages) if of_row else pair.prompt
            row = replace(row, values={**row.values, "responses": [pair.chosen, pair.rejected]})
        items.add(prompt, responses_of(row, prompt))


def read_records(path: Path, items: Items) -> None:
    """Responses as stages write them; their prompts are beside the file or, in a run, in the stage of the prompts."""
    places = (path.with_name("prompts.jsonl"), path.parent.parent / "prompts/prompts.jsonl")
    prompt_file = next((place for place in places if place.is_file()), None)
    if prompt_file is None:
        raise InputError(f"its prompts are missing; put {places[0].name} beside it", file=path)
    prompts = {prompt.id: prompt for prompt in read_jsonl(prompt_file, Prompt)}
    for number, response in enumerate(read_jsonl(path, Response), start=1):
        if response.prompt_id not in prompts:
            raise InputError(f"unknown prompt {response.prompt_id!r}; add it to {prompt_file}", file=path, line=number,
                             field="prompt_id")  # fmt: skip
        items.add(prompts[response.prompt_id], [response])


def prompt_of(row: Row) -> Prompt:
    row = usual_columns(row)
    present = [name for name in PROMPT_COLUMNS if row.values.get(name) not in (None, "") and name != "chosen"]
    if not present:
        columns = ", ".join(map(str, row.values)) or "none"
        raise row.bad(f"the prompt is missing; add a column prompt or messages (columns here: {columns})")
    name = present[0]
    if isinstance(row.values[name], dict):
        try:
            return Prompt.model_validate(row.values[name])
        except ValidationError as error:
            raise row.bad(error.errors()[0]["msg"].removeprefix("Value error, "), name) from None
    return row_prompt(row, name, row_conversation(row, name, as_transcript=name in TRANSCRIPT_COLUMNS))


def responses_of(row: Row, prompt: Prompt) -> list[Response]:
    """The responses of one row; their model is "unknown" where the row does not say."""
    model = row.optional("model") or "unknown"
    if row.values.get("responses") not in (None, ""):
        value = row.values["responses"]
        if isinstance(value, str):  # a CSV cell
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise row.bad('is not a JSON list of texts, such as ["one", "two"]', "responses") from None
        if not isinstance(value, list):
            raise row.bad(f"is a {type(value).__name__}; use a list of texts", "responses")
        cells = [(f"responses.{i}", item) for i, item in enumerate(value)]
    elif row.values.get("chosen") is not None and row.values.get("rejected") is not None:
        cells = [(name, row.values[name]) for name in ("chosen", "rejected")]
    else:
        cells = [("response", row.values.get("response"))]
    responses = []
    for number, (name, item) in enumerate(cells):
        fields = item if isinstance(item, dict) else {"text": item}
        if isinstance(item, list):  # TRL's conversational form: the last message is the assistant's
            last = item[-1] if item and isinstance(item[-1], dict) else {}
            if last.get("role") != "assistant":
                raise row.bad("does not end with an answer of the assistant", name)
            fields = {"text": last.get("content")}
        place = Row({name: fields.get("text"), "model": fields.get("model")}, row.file, row.line)
        text = place.text(name)
        if not text.strip():
            raise row.bad("is empty; remove it or write the response", name)
        responses.append(
            Response(
                prompt_id=prompt.id,
                model=place.optional("model") or model,
                text=text,
                finish_reason="stop",
                generation=Generation(seed=number, temperature=0.0),
            )
        )
    return responses


def used_otherwise(path: Path) -> set[str]:
    """Ids of responses that an earlier start wrote for gold, lessons or dialogues and not for the work itself."""
    known = list(read_jsonl(path, LabelSet)) if path.is_file() else []
    work = {
        key for label_set in known if label_set.role == "work" and label_set.kind != "redteam" for key in label_set.response_ids
    }
    return {key for label_set in known for key in label_set.response_ids} - work


def make_sets(items: Items, settings: LabelSettings) -> Items:
    """The items with the sets of their kind: one for each prompt, each pair, or each response."""
    groups: dict[str, dict[str, Response]] = {}
    for response in items.responses.values():
        shown = groups.setdefault(response.prompt_id, {}).setdefault(response.text, response)
        if shown is not response:
            items.left_out[SAME_TEXT] += 1
    for prompt_id, group in groups.items():
        prompt = items.prompts[prompt_id]
        ids = [response.id for response in group.values()]
        for members in members_of_sets(ids, settings.kind):
            if len(members) > MAX_RANKED:
                raise InputError(f"prompt {prompt_id} ({prompt.last_turn[:40]!r}) has {len(members)} responses; at most "
                                 f"{MAX_RANKED} are ranked at once, kind: pair takes any number")  # fmt: skip
            label_set = LabelSet(prompt_id=prompt_id, kind=settings.kind, response_ids=members, tags=prompt.tags,
                                 direction=settings.asked_direction, target=settings.overlap)  # fmt: skip
            items.sets[label_set.id] = label_set
        if not members_of_sets(ids, settings.kind):
            items.left_out[OF_A_TABLE if settings.kind == "redteam" else TOO_FEW] += 1
    return items


def members_of_sets(ids: Sequence[str], kind: SetKind) -> list[tuple[str, ...]]:
    if kind == "rank":
        return [tuple(ids)] if len(ids) > 1 else []
    if kind == "pair":
        return list(combinations(ids, 2))
    return [(key,) for key in ids] if kind in ("edit", "thumbs") else []


def read_known(path: Path, role: Literal["practice", "quiz", "gold"], settings: LabelSettings, items: Items) -> None:
    """Add the sets of a table with known answers: ``prompt``, ``responses``, ``ranks`` in the same order, ``why``."""
    for row in read_rows(path):
        prompt = prompt_of(row)
        responses = responses_of(row, prompt)
        ranks = row.values.get("ranks")
        if isinstance(ranks, str):
            try:
                ranks = json.loads(ranks)
            except ValueError:
                ranks = None
        wanted = {"pair": 2, "thumbs": 1}.get(settings.kind, len(responses))
        if len(responses) != wanted or len({r.text for r in responses}) != wanted or wanted > MAX_RANKED:
            raise row.bad(f"has {len(responses)} responses; a set of kind {settings.kind!r} has {wanted} different ones "
                          f"and at most {MAX_RANKED}", "responses")  # fmt: skip
        if not isinstance(ranks, list) or len(ranks) != len(responses):
            raise row.bad(f'must be a list of {len(responses)} ranks, such as [1, 2, "F"]', "ranks")
        if settings.kind == "thumbs" and ranks[0] not in (1, "F"):
            raise row.bad('invalid thumb; give [1] for up or ["F"] for down', "ranks")
        try:
            label_set = LabelSet(
                prompt_id=prompt.id, kind=settings.kind, role=role, direction=settings.asked_direction, tags=prompt.tags,
                response_ids=tuple(r.id for r in responses), gold={r.id: rank for r, rank in zip(responses, ranks, strict=True)},
            )  # fmt: skip
        except ValidationError:
            raise row.bad('invalid rank; give numbers from 1 and "F"', "ranks") from None
        items.add(prompt, responses)
        items.sets[label_set.id] = label_set
        items.why[label_set.id] = row.optional("why") or ""


def wanted_slots(work: Sequence[LabelSet], overlap: float, seed: int) -> dict[str, int]:
    """Set id to its number of slots: the whole part of ``overlap``, and one more for the share that is left, by a draw."""
    order = sorted(work, key=lambda label_set: derive_seed(seed, "overlap", label_set.id))
    whole = int(overlap)
    more = round((overlap - whole) * len(order))
    return {label_set.id: whole + (number < more) for number, label_set in enumerate(order)}
