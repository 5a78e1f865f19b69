"""A module's settings as JSON data: what its constructor was given, functions by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from promptflow.flow import Module


def settings_of(module: Module, names: Sequence[str]) -> dict[str, Any]:
    """Return the attributes ``names`` that are not None; functions by ``code_name``."""
    given = {name: getattr(module, name) for name in names}
    return {
        name: code_name(value) if callable(value) else value
        for name, value in given.items()
        if value is not None
    }


def code_name(function: Any) -> dict[str, str]:
    """Return what settings hold of a function: its name. Loading a program needs it again."""
    qualified = getattr(function, "__qualname__", type(function).__qualname__)
    return {"code": f"{function.__module__}:{qualified}"}
