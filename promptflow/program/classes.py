"""The user's classes in signatures: named in saved documents, and found again without an import.

A class is written by its path, ``mypackage.colors:Color``, with a hash of its shape. Nothing is
imported because a file says so: it is given, or the program's own, or its module is imported.
"""

from __future__ import annotations

import enum
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from promptflow.errors import ProgramError
from promptflow.notation import has_name, parts_of
from promptflow.program.identity import hash_of
from promptflow.program.walk import predictors_of


def named_classes(program: Any) -> dict[str, Any]:
    """Return the classes that the fields of a program's predictors need, by a name for each."""
    named: dict[str, Any] = {}
    for _, predictor in predictors_of(program):
        for info in predictor.signature.fields.values():
            for cls in _leaves(info.annotation):
                if not any(known is cls for known in named.values()):
                    stem = str(getattr(cls, "__name__", "Type"))
                    name, number = stem, 2
                    while name in named or has_name(name):
                        name, number = f"{stem}_{number}", number + 1
                    named[name] = cls
    return named


def _leaves(annotation: Any) -> Iterator[Any]:
    """Give what an annotation is made of and the grammar of documents has no name for."""
    origin, arms = parts_of(annotation)
    if origin is typing.Literal:
        return
    if origin is typing.Annotated:
        yield from _leaves(arms[0])
    elif arms:
        union = origin in (typing.Union, types.UnionType)
        for part in arms if union else (origin, *arms):
            yield from _leaves(part)
    elif annotation is not ... and not has_name(annotation):
        yield annotation


def path_of(cls: Any) -> str:
    """Return ``module:name`` of a class. Raises ProgramError where nobody could find it there."""
    module, name = getattr(cls, "__module__", ""), getattr(cls, "__qualname__", "")
    name = name or getattr(cls, "__name__", "")
    path = f"{module}:{name}"
    if "<locals>" in name:
        reason = "it is made inside a function"
    elif module == "__main__":
        reason = "it is made in the program that was started, which has no name to import it by"
    elif _at(path) is not cls:
        reason = "it is not there"
    else:
        return path
    raise ProgramError(
        f"the type {name or cls} of {module} cannot be written in a saved program: {reason}. "
        "Move it to the top level of a module of its own"
    )


def _at(path: str) -> Any:
    """Return the type at ``module:name`` of a module that is imported, or None.

    Only what a module or class has in its own dictionary: a lazy one would import for an attribute.
    """
    module, _, name = path.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    aliased = hasattr(found, "__supertype__") or hasattr(found, "__value__")
    return found if isinstance(found, type) or aliased else None


def shape_of(cls: Any) -> str:
    """Return a hash of the values that a type has: members of an Enum, fields of a model."""
    if isinstance(cls, enum.EnumMeta):
        members: Mapping[str, enum.Enum] = cls.__members__
        return hash_of([[name, member.value] for name, member in members.items()])[:16]
    try:
        return hash_of(TypeAdapter(cls).json_schema())[:16]
    except Exception:  # a type without a schema is what its code is
        return hash_of(cls)[:16]


def table_of(named: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the ``types`` table of a saved program. Raises ProgramError as ``path_of`` does."""
    return {name: {"path": path_of(cls), "shape": shape_of(cls)} for name, cls in named.items()}


def find_classes(
    folder: Path, table: Mapping[str, Any], into: Any, given: Mapping[str, Any], force: bool
) -> dict[str, Any]:
    """Return the classes of a ``types`` table: of ``given``, of ``into``, or of imported modules.

    Raises ProgramError for one that is nowhere, or has another shape unless ``force``.
    """
    own = {} if into is None else named_classes(into)
    by_path = {_path(cls): cls for cls in own.values()}
    found: dict[str, Any] = dict(given)
    for name, entry in table.items():
        path, shape = str(entry["path"]), entry["shape"]
        cls = given.get(name) or by_path.get(path) or own.get(name) or _at(path)
        if cls is None:
            module = path.partition(":")[0]
            raise ProgramError(
                f"{folder}: its field type {name} is {path}, and {module} is not imported; no file "
                f"imports code here. Import {module} first (--import {module} on the command line) "
                f"or load_program({str(folder)!r}, types={{{name!r}: {name}}})"
            )
        if not force and (now := shape_of(cls)) != shape:
            raise ProgramError(
                f"{folder}: the type {name} ({path}) had the shape {shape} when the program was "
                f"saved and has {now} now: its members or fields differ. Save the program again, "
                f"or load_program({str(folder)!r}, force=True), which is --force"
            )
        found[name] = cls
    return found


def _path(cls: Any) -> str:
    return f"{getattr(cls, '__module__', '')}:{getattr(cls, '__qualname__', '')}"


def typed(signature: Any, demo: Mapping[str, Any]) -> dict[str, Any]:
    """Return a demo's JSON values as the types of its fields, where they fit."""
    values = {}
    for name, value in demo.items():
        field = signature.fields.get(name)
        values[name] = value if field is None else _typed(field.annotation, value)
    return values


def _typed(annotation: Any, value: Any) -> Any:
    if annotation in (str, int, float, bool) and isinstance(value, str | int | float):
        return value
    try:
        adapter = TypeAdapter(annotation)
    except Exception:  # a type pydantic knows nothing of keeps the JSON value
        return value
    ways: list[Callable[[Any], Any]] = [adapter.validate_python]
    if isinstance(value, str) and value[:1] in ("[", "{"):
        ways.append(adapter.validate_json)  # what TOML has no word for is written as JSON
    for way in ways:
        try:
            return way(value)
        except Exception:  # it may be no value of the type: demos are shown as they are
            continue
    return value
