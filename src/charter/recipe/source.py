"""Where a recipe takes something from: a model, a judge, a classifier, the user's function. Parsed once, as a recipe is read.

| written | kind | name | label |
|---|---|---|---|
| `base`, `sft` | run: a model of the run | `base` | |
| `FOLDER`, `OWNER/NAME`, `package:NAME/PATH` | model | folder or hub name | |
| `endpoint:NAME` | endpoint: a model behind a server | NAME | |
| `judge:MODEL` | judge: one of the above that is asked | the model as written | |
| `rubric:FILE`, `rubric:FILE:MODEL` | rubric: criteria with points that a model is asked about | FILE | the model as written |
| `classifier:FOLDER:LABEL` | classifier | FOLDER | LABEL |
| `python:MODULE:FUNCTION` | python: the user's own function | MODULE | FUNCTION |
| `reward_model`, `length`, `random`, `refusal-words` | built-in | the word | |
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, GetCoreSchemaHandler, SerializationInfo, ValidationInfo
from pydantic_core import core_schema

from charter.errors import InputError
from charter.recipe.functions import load_function, source_hash
from charter.records import content_id
from charter.run.hashes import CONTENTS, file_hash, model_hash

Kind = Literal["run", "model", "endpoint", "judge", "rubric", "classifier", "python", "built-in"]
RUBRIC = re.compile(r"(.+?\.(?:ya?ml|jsonl?))(?::(.*))?", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One place that a recipe names; ``str(source)`` is how the recipe writes it. ``folder``: the recipe's own, where a
    function's module is looked for first."""

    kind: Kind
    name: str
    label: str = ""
    folder: str = field(default="", compare=False)

    def __str__(self) -> str:
        prefix = "" if self.kind in ("run", "model", "built-in") else f"{self.kind}:"
        return f"{prefix}{self.name}{':' if self.label else ''}{self.label}"

    def __repr__(self) -> str:
        return repr(str(self))

    @property
    def model(self) -> Source:
        """The model that a judge is or that a rubric asks, `base` unless it names one; or the source itself."""
        if not self.asks_model:
            return self
        return parse_model(self.name if self.kind == "judge" else self.label or "base", own=("base", "sft"))

    @property
    def asks_model(self) -> bool:
        """Whether it puts questions to a model."""
        return self.kind in ("judge", "rubric")

    def located(self, folder: Path) -> Source:
        """The source with absolute file names; relative ones are taken from ``folder``, that of the recipe."""
        if self.kind in ("model", "classifier"):
            return replace(self, name=locate(self.name, folder))
        if self.kind == "rubric":
            label = locate(self.label, folder) if self.model.kind == "model" else self.label
            return replace(self, name=locate(self.name, folder), label=label)
        if self.kind == "judge" and self.model.kind == "model":
            return replace(self, name=locate(self.name, folder))
        return replace(self, folder=str(folder)) if self.kind == "python" else self

    def load(self) -> Callable[..., Any]:
        """The function of a `python:` source. InputError if the module or the function is missing or fails."""
        return load_function(self.name, self.label, self.folder)

    def content_hash(self) -> str:
        """What the answers of the source depend on, its place left out. A model of the run or behind an endpoint is its name
        here: the stage that asks it adds what that name stands for."""
        if self.kind == "model":
            return model_hash(self.name)
        if self.kind == "judge":
            return content_id(["judge", self.model.content_hash()])
        if self.kind == "rubric":
            rubric = file_hash(Path(self.name)) if Path(self.name).is_file() else self.name
            return content_id(["rubric", rubric, self.model.content_hash()])
        if self.kind == "classifier":
            return content_id([model_hash(self.name), self.label])
        if self.kind == "python":
            return content_id([str(self), source_hash(self.name, self.folder)])
        return str(self)


def parse_model(text: str, own: tuple[str, ...] = ()) -> Source:
    """`base`, `sft`, a folder, a hub name or `endpoint:NAME`."""
    if text in own:
        return Source("run", text)
    kind, colon, name = text.partition(":")
    if kind == "endpoint" and colon:
        return Source("endpoint", name)
    return Source("model", text)


@dataclass(frozen=True)
class Accepts:
    """What a setting takes as its source: the ``forms`` of the table above, ``own`` models of the run and built-in ``words``."""

    what: str
    forms: tuple[Kind, ...]
    own: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def parse(self, text: str) -> Source:
        """ValueError if the setting does not take ``text``; the message lists what it takes."""
        kind, colon, rest = text.partition(":")
        if text in self.words:
            return Source("built-in", text)
        if kind == "judge" and colon and "judge" in self.forms:
            if not rest:
                raise ValueError("the judge is missing; use judge:FOLDER" + "".join(f" or judge:{name}" for name in self.own))
            return Source("judge", rest)
        if kind == "rubric" and colon and "rubric" in self.forms:
            return self._rubric(rest)
        if kind == "classifier" and colon and "classifier" in self.forms:
            folder, _, label = rest.rpartition(":")
            if not folder or not label:
                raise ValueError("folder or label is missing; use classifier:FOLDER:LABEL")
            return Source("classifier", folder, label)
        if kind == "python" and colon and "python" in self.forms:
            module, _, function = rest.partition(":")
            if not module or not function:
                raise ValueError("module or function is missing; use python:module:function")
            return Source("python", module, function)
        if "model" in self.forms:
            return parse_model(text, self.own)
        raise ValueError(f"unknown {self.what} {text[:60]!r}; use {self.choices}")

    def _rubric(self, text: str) -> Source:
        """ValueError if the file or the judge is missing, or the judge is not one of those that the setting takes."""
        if (match := RUBRIC.fullmatch(text)) is None:
            raise ValueError("the file is missing; use rubric:FILE or rubric:FILE:FOLDER, FILE being .json, .jsonl or .yaml")
        source = Source("rubric", match[1], match[2] or "")
        if source.model.kind == "run" and source.model.name not in self.own:
            raise ValueError(f"the judge of {match[1]} is missing; use rubric:FILE:FOLDER or rubric:FILE:endpoint:NAME")
        return source

    @property
    def choices(self) -> str:
        """What may be written, as the end of an error's line."""
        written = {
            "judge": ["judge:FOLDER", "judge:endpoint:NAME"], "rubric": ["rubric:FILE:FOLDER"],
            "classifier": ["classifier:FOLDER:LABEL"],
            "python": ["python:module:function"], "model": [*self.own, "FOLDER", "endpoint:NAME"],
        }  # fmt: skip
        *first, last = [*self.words, *(text for form in self.forms for text in written.get(form, ()))]
        return f"{', '.join(first)} or {last}" if first else last

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def read(value: Any, info: ValidationInfo) -> Source:
            source = value if isinstance(value, Source) else self.parse(value) if isinstance(value, str) else None
            if source is None:
                raise ValueError(f"must be a text; use {self.choices}")
            folder = folder_of(info)
            return source.located(folder) if folder else source

        def written(source: Source, info: SerializationInfo) -> str:
            return source.content_hash() if info.context == CONTENTS else str(source)

        return core_schema.with_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(written, info_arg=True)
        )


Answerer = Annotated[Source, Accepts("model", ("model",), own=("base",))]
"""A model that answers before anything is trained."""
Responder = Annotated[Source, Accepts("model", ("model",), own=("base", "sft"))]
"""A model that answers after fine-tuning."""
REWARD = Accepts(
    "reward source", ("judge", "rubric", "classifier", "python"), ("base", "sft"), ("reward_model", "length", "random")
)
RewardSource = Annotated[Source, REWARD]
ScorerSource = Annotated[Source, Accepts("scorer", ("python", "judge"), words=("refusal-words",))]
MeasureSource = Annotated[Source, Accepts("measure", ("classifier", "judge", "rubric", "python"))]


GoldSource = Annotated[Source, Accepts("gold source", ("classifier", "judge", "rubric", "python"), words=("reward_model",))]


class Located(str):
    """A file or folder that a recipe names: absolute once the recipe is read from a file, its contents in a fingerprint."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def read(text: str, info: ValidationInfo) -> Located:
            folder = folder_of(info)
            return cls(cls.place(text, folder) if folder else text)

        def written(value: Located, info: SerializationInfo) -> str:
            return value.contents() if info.context == CONTENTS else str(value)

        return core_schema.with_info_after_validator_function(
            read, core_schema.str_schema(strict=True),
            serialization=core_schema.plain_serializer_function_ser_schema(written, info_arg=True),
        )  # fmt: skip

    @classmethod
    def place(cls, text: str, folder: Path) -> str:
        """Where it is."""
        return locate(text, folder)

    def contents(self) -> str:
        """Its hash in a fingerprint."""
        return model_hash(self)


class ModelName(Located):
    """A model's folder, or its name on a hub."""


class File(Located):
    """A file that is read."""

    def contents(self) -> str:
        path = Path(self)
        return file_hash(path.parent if path.is_dir() else path) if path.exists() else str(self)


class NewFolder(Located):
    """A folder that is made where it is missing, beside the recipe unless absolute."""

    @classmethod
    def place(cls, text: str, folder: Path) -> str:
        return str(folder / text)


def folder_of(info: ValidationInfo) -> Path | None:
    """The recipe's folder, where a recipe is read from a file."""
    return info.context.get("folder") if info.context else None


def named_in(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Source | Located]]:
    """Every source and file that settings name, with its dotted key."""

    def inside(key: str, value: Any) -> Iterator[tuple[str, Source | Located]]:
        if isinstance(value, (Source, Located)):
            yield key, value
        elif isinstance(value, BaseModel):
            yield from named_in(value, f"{key}.")
        elif isinstance(value, dict):
            for name, part in value.items():
                yield from inside(f"{key}.{name}", part)
        elif isinstance(value, list):
            for part in value:
                yield from inside(key, part)

    for name in type(settings).model_fields:
        yield from inside(f"{prefix}{name}", getattr(settings, name))


def locate(name: str, base: Path) -> str:
    """Where a file or folder named in a recipe is: `package:NAME/PATH`, absolute, beside the recipe, in the current
    folder, or as it stands (the name of a model on a hub)."""
    if name.startswith("package:"):
        package, _, inside = name.removeprefix("package:").partition("/")
        try:
            return str(importlib.resources.files(package).joinpath(inside))
        except (ModuleNotFoundError, TypeError, ValueError):
            raise InputError(f"{name!r}: unknown package {package!r}; install it, or give a folder") from None
    try:
        given = Path(name).expanduser()
    except RuntimeError:
        raise InputError(f"{name!r}: unknown user; give the whole path") from None
    for candidate in (base / name, given):
        if candidate.exists():
            return str(candidate.resolve())
    return name
