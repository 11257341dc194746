"""Recipes as files: YAML read whole, settings put over it, checked, and what it names found.

An unknown key is an error that names the nearest known one, a value of the wrong type or range an error that names the key.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from charter.errors import InputError
from charter.recipe.recipe import Recipe
from charter.recipe.settings import Settings
from charter.recipe.source import File, Source, named_in
from charter.run.yaml_files import BAD_VALUE, UniqueKeys, read_yaml
from charter.stages.rl.settings import METHODS


def explain(error: ValidationError, kind: type[BaseModel]) -> tuple[str, str]:
    """The first problem as (dotted key, words); an unknown key comes with the nearest known one."""
    first = error.errors()[0]
    location = list(first["loc"])
    if location[:1] == ["rl"] and location[1:2] and location[1] in METHODS and first["type"] != "union_tag_invalid":
        del location[1]  # the method that chose the settings class is not a key
    key = ".".join(str(part) for part in location)
    if first["type"] != "extra_forbidden":
        value = first["input"] if isinstance(first["input"], str) else reprlib.repr(first["input"])
        # What stands in an endpoint may be a key put in the wrong place; what stands in the whole recipe says nothing.
        silent = first["type"] == "missing" or location[:1] in ([], ["endpoints"])
        got = "" if silent else f"; got {value[:60]!r}"
        return key, first["msg"].removeprefix("Value error, ") + got
    known = known_keys(kind, [str(part) for part in first["loc"][:-1]])
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
    return key, f"unknown key; {hint}"


def known_keys(kind: Any, location: list[str]) -> list[str]:
    """Field names of the settings class found by following ``location`` from ``kind``."""
    if not location:
        return list(kind.model_fields)
    annotation = kind.model_fields[location[0]].annotation
    if getattr(annotation, "__origin__", None) is dict:
        location = location[1:]  # the name that the user gave it
    choices = [part for part in getattr(annotation, "__args__", (annotation,)) if hasattr(part, "model_fields")]
    rest = location[1:]
    if rest and rest[0] in METHODS:
        choices = [part for part in choices if part.model_fields["method"].default == rest[0]]
        rest = rest[1:]
    return known_keys(choices[0], rest)


def override(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """``values`` with each ``a.b=c`` put in; c is read as YAML. InputError if an assignment is malformed."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise InputError(f"--set {assignment!r}: write it as key=value, such as rl.steps=20")
        try:
            put(values, key, yaml.load(text, UniqueKeys))
        except (yaml.YAMLError, RecursionError, *BAD_VALUE):
            raise InputError(f"--set {assignment[:80]!r}: the value is not valid YAML; quote it") from None
    return values


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key of nested mappings, which are made where they are missing."""
    *parents, leaf = key.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    values[leaf] = value


def load_recipe(path: Path, assignments: Sequence[str] = (), changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read, override and check a recipe; file names in it become absolute, relative ones taken from its own folder. changes:
    values by dotted key, put in after the ``assignments``."""
    values = override(read_yaml(path), assignments)
    for change, value in (changes or {}).items():
        put(values, change, value)
    try:
        return Recipe.model_validate(values, context={"folder": path.resolve().parent})
    except ValidationError as error:
        key, words = explain(error, Recipe)
        raise InputError(words, file=path, field=key or None) from None


def check_files(recipe: Recipe) -> None:
    """InputError if a file that a recipe names is missing, or a function cannot be imported: before the first stage, not hours
    later."""
    for key, name in named_in(recipe):
        if isinstance(name, File) and not Path(name).exists():
            raise InputError("no such file" + how_to_get(name), file=name, field=key)
        if (
            isinstance(name, Source)
            and name.kind == "classifier"
            and Path(name.name).is_absolute()
            and not Path(name.name).exists()
        ):
            raise InputError("no such classifier folder", file=name.name, field=key)
        if isinstance(name, Source) and name.kind == "rubric" and not Path(name.name).is_file():
            raise InputError("no such rubric", file=name.name, field=key)
        if isinstance(name, Source) and name.kind == "python":
            try:
                name.load()
            except InputError as error:
                raise InputError(f"{key}: {error}") from None


def how_to_get(name: str) -> str:
    """The command that the head of a shipped recipe names for the folder of a file, as the end of an error's line."""
    for file in sorted(shipped("recipes").glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        for line, folder in re.findall(r"^# +((?:hf download|python) .*(?:--local-dir|--out) (\S+))$", text, re.MULTILINE):
            if Path(name).is_relative_to(folder):
                return f"; `{line}` gets it"
    return ""


def shipped(folder: str) -> Path:
    """The recipes or constitutions that come with Charter: inside the installed package, or beside a source checkout."""
    package = Path(__file__).parents[1]
    inside = package / folder
    return inside if inside.is_dir() else package.parents[1] / folder


def find_recipe(name: str) -> Path:
    """A path as given, or the name of a shipped recipe. InputError lists the names."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    candidate = shipped("recipes") / f"{name}.yaml"
    if candidate.exists():  # even where a folder of that name lies here
        return candidate
    if path.exists():
        return path
    names = sorted(recipe.stem for recipe in shipped("recipes").glob("*.yaml"))
    raise InputError(f"no recipe {name!r}: give a YAML file or one of {', '.join(names)}")


def as_settings(values: Mapping[str, Any], kind: type[Settings], where: str) -> Settings:
    """Check command-line values against a settings class."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        key, words = explain(error, kind)
        raise InputError(f"{where}: {words}", field=key) from None
