"""Functions of the user's that a recipe names: `python:module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from charter.errors import InputError


def named_function(source: str, field: str) -> Callable[..., Any]:
    """The function of `python:module:function`. InputError, with the recipe's key ``field``, where there is none."""
    module, _, name = source.removeprefix("python:").partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise InputError(f"{source!r} names no function; write python:module:function", field=field) from None
    return found
