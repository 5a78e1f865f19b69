"""The modules and predictors inside a module, by path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dspy

ITSELF = "self"
"""The name of a module in its own ``named_predictors``, as in DSPy."""

_DSPY = frozenset({"callbacks", "history"})


def predictors_of(module: Any) -> Iterator[tuple[str, Any]]:
    """Give every predictor with its path; unlike DSPy's, inside compiled modules too."""
    if isinstance(module, dspy.Predict):
        yield ITSELF, module
        return
    for name, value in _walk(module):
        if isinstance(value, dspy.Predict):
            yield name, value


def modules_of(module: Any) -> Iterator[tuple[str, Any]]:
    """Give every module inside ``module`` with its path, predictors included."""
    return _walk(module)


def _walk(value: Any, name: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    seen = {id(value)} if seen is None else seen
    if isinstance(value, dspy.Predict):
        return
    held: Iterator[tuple[str, Any]] = iter(())
    if isinstance(value, dspy.Module):
        held = ((join(name, key), item) for key, item in vars(value).items() if key not in _DSPY)
    elif isinstance(value, list | tuple):
        held = ((f"{name}[{place}]", item) for place, item in enumerate(value))
    elif isinstance(value, dict):
        held = ((f"{name}['{key}']", item) for key, item in value.items())
    for path, item in held:
        if not isinstance(item, dspy.Module | list | tuple | dict) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dspy.Module):
            yield path, item
        yield from _walk(item, path, seen)


def join(name: str, attribute: str) -> str:
    """Return the path of an attribute of the module at ``name``."""
    return ".".join(filter(None, (name, attribute)))
