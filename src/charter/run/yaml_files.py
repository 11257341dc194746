"""Small files of text, read whole, and YAML in them: safe, and without a key that is given twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from charter.errors import InputError

MAX_BYTES = 2**20
# A value that is not what its tag says ("!!map [a]", the date 2024-99-99) makes PyYAML fail in all these ways.
BAD_VALUE = (ValueError, TypeError, AttributeError, LookupError)


class UniqueKeys(yaml.SafeLoader):
    """Safe YAML in which a key may not be given twice: YAML keeps the last of them in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}; remove one", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def number_as_written(loader: UniqueKeys, node: yaml.ScalarNode) -> Any:
    """A number of YAML. In version 1.1, which PyYAML reads, 010 is 8 and 1:30 is 90; here both stay texts, which a setting
    refuses that is a whole number."""
    if re.match(r"[-+]?0[0-9_]|.*:", node.value):
        return node.value
    return (loader.construct_yaml_int if node.tag.endswith("int") else loader.construct_yaml_float)(node)


UniqueKeys.add_constructor("tag:yaml.org,2002:int", number_as_written)
UniqueKeys.add_constructor("tag:yaml.org,2002:float", number_as_written)


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """The content of a small file. InputError where it cannot be read or is too large."""
    try:
        with open(path, "rb") as file:
            raw = file.read(most + 1)
    except FileNotFoundError:
        raise InputError("no such file", file=path) from None
    except IsADirectoryError:
        raise InputError("is a folder, not a file", file=path) from None
    except OSError as error:
        raise InputError(f"cannot read the file ({error.strerror})", file=path) from None
    if len(raw) > most:
        raise InputError(f"larger than {most >> 20} MiB; is this the right file?", file=path)
    return raw


def decode_utf8(raw: bytes, path: Path) -> str:
    """The text of a file. InputError names the line that is not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError("not UTF-8; convert it with iconv", file=path, line=line) from None


def read_yaml(path: Path) -> dict[Any, Any]:
    """A mapping in YAML. InputError names file and line."""
    return read_nodes(path, UniqueKeys, "write keys and values")[1]


def read_nodes(path: Path, kind: type[UniqueKeys], remedy: str) -> tuple[yaml.Node, dict[Any, Any]]:
    """A mapping as its nodes, which know their lines, and as a value. ``remedy``: what to do if it is not a mapping."""
    raw = read_bytes(path)
    if (position := raw.find(b"\x00")) >= 0:
        raise InputError("contains a NUL character; remove it", file=path, line=raw.count(b"\n", 0, position) + 1)
    text = decode_utf8(raw, path)
    try:
        loader = kind(text)
        node = loader.get_single_node()
        content = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        syntax = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
        words = f"{'not valid YAML: ' if syntax else ''}{error.problem or error.context}"
        raise InputError(words, file=path, line=mark.line + 1 if mark else None) from None
    except RecursionError:
        raise InputError("not valid YAML: nested too deeply", file=path) from None
    except (yaml.YAMLError, *BAD_VALUE) as error:
        words = (str(error).splitlines() or ["a value does not fit its type"])[0]
        raise InputError(f"not valid YAML: {words}", file=path) from None
    if node is None or not isinstance(content, dict):
        given = "" if content is None else f"is a {type(content).__name__}, "
        raise InputError(f"{given}not a mapping; {remedy}", file=path)
    return node, content
