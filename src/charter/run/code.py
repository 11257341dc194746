"""The code behind a stage: the modules that it imports, and theirs, read from their text.

An import inside a function counts as one at the top, an import under ``if TYPE_CHECKING:`` does not run and does not count. Text
files of a package (questions to a judge) count with the modules beside them, and `NAME.json` with the module NAME.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def module_file(name: str) -> Path | None:
    """The source file of a module of Charter by its full name; None for anything else, packages among it."""
    root, _, inside = name.partition(".")
    file = PACKAGE / f"{inside.replace('.', '/')}.py"
    return file if root == PACKAGE.name and inside and file.is_file() else None


def imports_of(file: Path, *, typing: bool = False) -> set[str]:
    """Full names of the modules that a file imports anywhere in its text; with ``typing`` those for type checkers too."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    if not typing:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                skipped |= {inner for statement in node.body for inner in ast.walk(statement)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@cache
def direct_imports(name: str) -> frozenset[str]:
    """The modules of Charter that a module of Charter imports when it runs."""
    file = module_file(name)
    return frozenset() if file is None else frozenset(target for target in imports_of(file) if module_file(target))


def closure(modules: Iterable[str]) -> list[str]:
    """The modules, those that they import, and so on: full names, sorted."""
    reached: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in reached and module_file(name):
            reached.add(name)
            waiting += direct_imports(name)
    return sorted(reached)


def closure_files(modules: Iterable[str]) -> list[Path]:
    """The files of :func:`closure`, the text files in the packages of its modules, and the `.json` of a module."""
    files = [file for name in closure(modules) if (file := module_file(name))]
    texts = {text for folder in {file.parent for file in files} for text in folder.glob("prompts/*.txt")}
    return sorted({*files, *texts, *(table for file in files if (table := file.with_suffix(".json")).is_file())})


def code_hash(modules: Iterable[str]) -> str:
    """Hash of the source that these modules run: part of a stage's fingerprint. 16 hex digits."""
    digest = hashlib.sha256()
    for file in closure_files(modules):
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
