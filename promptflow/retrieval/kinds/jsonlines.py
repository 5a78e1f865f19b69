"""JSON and JSON Lines: each object in a line of its own, as "name: value; name: value".

Numbers keep the digits that the file has. Long texts stand below their record, as paragraphs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from promptflow.encodings import decoded
from promptflow.retrieval.kinds import Parsed, Unreadable

_SPACE = re.compile(r"[\s\x1e]*")
_LONG = 200
"""Characters from which a value is a text of its own rather than a cell of its record's line."""
_DEPTH = 100
_NAMES = ("name", "title", "id", "key")

Pairs = list[tuple[str, Any]]


class _Object(Pairs):
    """An object's names and values in the file's order, a name that stands twice kept twice."""


def read(data: bytes, name: str) -> Parsed:
    """Return the records of a file, parted by blank lines where they have texts in them."""
    text = decoded(data).removeprefix("\ufeff")
    out: list[str] = []
    for value in _values(text):
        out.extend(_told(value, "", 0))
    return Parsed("".join(f"{line}\n" for line in out))


def _values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder(
        object_pairs_hook=_Object, parse_float=str, parse_int=str, parse_constant=str
    )
    place = 0
    while (place := _SPACE.match(text, place).end()) < len(text):  # type: ignore[union-attr]
        try:
            value, place = decoder.raw_decode(text, place)
        except RecursionError as error:
            raise Unreadable("its JSON is nested too deeply to be read") from error
        except ValueError as error:
            line = text.count("\n", 0, place) + 1
            raise Unreadable(f"not JSON from line {line} on: {error}") from error
        yield value


def _told(value: Any, path: str, depth: int, lead: str = "") -> Iterator[str]:
    """Give the lines of a value at ``path``, each after ``lead``, what it belongs to."""
    if depth > _DEPTH:
        raise Unreadable(f"its JSON nests more than {_DEPTH} deep")
    if isinstance(value, _Object):
        yield from _record(value, path, depth, lead)
    elif _nests(value):
        for item in value:
            yield from _told(item, path, depth + 1, lead)
    elif said := _cell(value):
        yield lead + (f"{path}: {said}" if path else said)


def _record(record: _Object, path: str, depth: int, lead: str) -> Iterator[str]:
    """Give an object: one line of its short values, then its texts and what its lists hold."""
    cells: dict[str, str] = {}
    texts: list[str] = []
    below: list[tuple[str, Any]] = []
    for name, value in _flattened(record, path, depth):
        if _nests(value):
            below.append((name, value))
        elif isinstance(value, str) and (len(value) > _LONG or "\n" in value.strip()):
            texts.append(f"{name}: {value.strip()}")
        elif said := _cell(value):
            cells[name] = f"{cells[name]}, {said}" if name in cells else f"{name}: {said}"
    if cells:
        yield lead + "; ".join(cells.values())
        called = next(
            (n for n in cells if n.rpartition(".")[2].lower() in _NAMES), next(iter(cells))
        )
        lead = f"{cells[called]}; " if len(cells[called]) <= 100 else ""
    for text in texts:
        yield ""
        yield text
    for name, value in below:
        yield from _told(value, name.rpartition(".")[2] if cells else "", depth + 1, lead)
    if texts or below:
        yield ""


def _flattened(record: _Object, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Give the values of an object and of the objects in it, by names like address.city."""
    if depth > _DEPTH:
        raise Unreadable(f"its JSON nests more than {_DEPTH} deep")
    for name, value in record:
        full = f"{path}.{name}" if path else name
        if isinstance(value, _Object):
            yield from _flattened(value, full, depth + 1)
        else:
            yield full, value


def _nests(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, list) for item in value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(filter(None, map(_cell, value)))
    return " ".join(str(value).split())
