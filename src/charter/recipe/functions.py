"""Functions of the user's own that a recipe names: `python:module:function`.

Charter looks for a module beside the recipe, then in the current folder, then where Python looks. A stage depends on the module's
file and on what the module imports beside it, so a mended function runs again (:func:`source_hash`); a file `NAME.json` beside
NAME.py counts with it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from charter.errors import InputError

_loaded: dict[str, str] = {}  # module name: hash of the files that it was loaded from


def load_function(module: str, name: str, folder: str = "") -> Callable[..., Any]:
    """The function ``name`` of a module. What it raises when called becomes one line with the user's file and line.

    InputError if the module is missing or fails while it is imported, and where it has no such function.
    """
    source = f"python:{module}:{name}"
    try:
        loaded = load_module(module, folder)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            place = f"{module.partition('.')[0]}.py"
            raise InputError(
                f"cannot import {module!r}: {error}; put {place} beside the recipe, in the current folder, or on PYTHONPATH"
            ) from None
        raise failed(error, f"cannot import {module!r}", folder) from None
    except Exception as error:  # a user's module may raise anything while it is imported
        raise failed(error, f"cannot import {module!r}", folder) from None
    function = getattr(loaded, name, None)
    if not callable(function):
        there = [key for key, value in vars(loaded).items() if callable(value) and not key.startswith("_")]
        raise InputError(
            f"{source!r}: module {module!r} has no function {name!r}; it has {', '.join(there[:10]) or 'none'}",
            file=getattr(loaded, "__file__", None),
        )

    @functools.wraps(function)
    def called(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except InputError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise failed(error, f"{source} failed", folder) from error

    return called


def failed(error: Exception, what: str, folder: str) -> InputError:
    """An exception of the user's code as one line, with the innermost place that is the user's."""
    words = f"{what}: {type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return InputError(f"{what}: {error.msg}", file=error.filename, line=error.lineno)
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if str(Path(frame.filename).parent) in {folder, str(Path.cwd())}]
    frame = (mine or [frame for frame in frames if "importlib" not in frame.filename] or frames)[-1]
    return InputError(words, file=frame.filename, line=frame.lineno)


def file_of_module(module: str, folder: str = "") -> Path | None:
    """The file of a module, without importing it: beside the recipe, in the current folder, or where Python finds it."""
    for place in filter(None, (folder, str(Path.cwd()))):
        inside = Path(place, *module.split("."))
        for candidate in (inside.with_suffix(".py"), inside / "__init__.py"):
            if candidate.is_file():
                return candidate
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin and Path(spec.origin).is_file() else None


def load_module(module: str, folder: str = "") -> Any:
    """Import a module; again where its file, or one that it imports beside it, has changed since or lies elsewhere."""
    file = file_of_module(module, folder)
    root = None if file is None else str(root_of(file, module))
    if root is not None and root in {folder, str(Path.cwd())}:
        if root in sys.path:
            sys.path.remove(root)
        sys.path.insert(0, root)  # what the module imports beside itself, now or when it is called
        now = source_hash(module, folder)
        if _loaded.get(module) != f"{root} {now}":
            for path in files_of(module, folder):
                name = dotted(path, Path(root))
                old = getattr(sys.modules.get(name), "__file__", None)
                if module in _loaded or old != str(path):  # an older text of it, or a namesake from another folder
                    sys.modules.pop(name, None)
            importlib.invalidate_caches()
            sys.dont_write_bytecode, before = True, sys.dont_write_bytecode  # a stale .pyc looks new within one second
            try:
                loaded = importlib.import_module(module)
            finally:
                sys.dont_write_bytecode = before
            _loaded[module] = f"{root} {now}"
            return loaded
    return importlib.import_module(module)


def root_of(file: Path, module: str) -> Path:
    """The folder that a module's dotted name starts from."""
    depth = module.count(".") + (file.name == "__init__.py")
    return file.resolve().parents[depth]


def dotted(file: Path, root: Path) -> str:
    """The name under which Python imports a file below ``root``."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files_of(module: str, folder: str = "") -> list[Path]:
    """The module's file and those that it imports beside it (of an installed module: those of its package), sorted."""
    first = file_of_module(module, folder)
    if first is None:
        return []
    root = root_of(first, module)
    installed = {"site-packages", "dist-packages"} & set(root.parts) or (
        root / module.partition(".")[0] / "__init__.py"
    ).is_file()
    top = module.partition(".")[0] if installed else ""
    reached: set[Path] = set()
    waiting = [first.resolve()]
    while waiting:
        file = waiting.pop()
        if file not in reached:
            reached.add(file)
            names = [name for name in imports(file, root) if not top or name.partition(".")[0] == top]
            waiting += [path for name in names for path in files_in(root, name)]
    return sorted(reached)


def files_in(root: Path, name: str) -> Iterator[Path]:
    """The files below ``root`` that `import NAME` runs: the module's, and the `__init__.py` of each package on the way."""
    place = root
    for part in name.split("."):
        place = place / part
        yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file())


def imports(file: Path, root: Path) -> Iterator[str]:
    """Full names that a file imports, relative ones made full; none where the file does not parse."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return
    package = dotted(file, root).split(".")
    if file.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*above, *((node.module or "").split(".") if node.module else [])])
            yield from filter(None, [name, *(f"{name}.{alias.name}" if name else alias.name for alias in node.names)])


def source_hash(module: str, folder: str = "") -> str:
    """Hash of the contents of :func:`files_of` and of the `.json` beside each under its name; the module's name alone where its
    file is not found. 16 hex digits."""
    digest = hashlib.sha256(module.encode())
    for module_file in files_of(module, folder):
        for file in filter(Path.is_file, (module_file, module_file.with_suffix(".json"))):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
