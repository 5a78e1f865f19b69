"""``--where field=value`` of the command line, read by the values that the documents have."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from promptflow.errors import DataError
from promptflow.retrieval.documents import glob_pattern

SHOWN = 8
"""Values that an error names."""

Documents = Sequence[Mapping[str, Any]]


def filters_of(
    pairs: Sequence[str], indexes: Sequence[Documents]
) -> list[dict[str, list[Any]] | None]:
    """Return what ``field=value`` pairs allow in each index, which is given by its documents.

    Pairs of one field allow any of their values, and so does a JSON list, or values with commas
    between. An index gets None where no document has a field, so that nothing in it is allowed.
    Raises DataError for a field or a value that no document has.
    """
    tables = [[_table(entry) for entry in documents] for documents in indexes]
    known = [table for one in tables for table in one]
    allowed: dict[str, list[Any]] = {}
    for pair in pairs:
        name, sign, text = (part.strip() for part in pair.partition("="))
        if not (sign and name and text):
            raise DataError(f"--where {pair!r}: expected field=value, as in kind=pdf")
        allowed.setdefault(name, []).extend(_values(name, text, known))
    return [
        allowed if all(any(name in table for table in one) for name in allowed) else None
        for one in tables
    ]


def _table(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a document, as ``passages.matching`` knows them."""
    own = {name: value for name, value in entry["metadata"].items() if name != "pages"}
    places = [entry["path"], *entry.get("also", ())]  # where it stands more than once
    return {**own, "kind": entry["kind"], "document": places}


def _values(name: str, text: str, tables: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the values of a field that ``text`` names."""
    held = [value for table in tables if name in table for value in _each(table[name])]
    if not held:
        fields = sorted({field for table in tables for field in table})
        near = difflib.get_close_matches(name, fields, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"--where: no document has {name!r}.{hint} Known: {', '.join(fields)}.")
    if found := _named(name, text, held):
        return found
    several = [part for part in _parts(text) if part != text]
    found = [value for part in several for value in _named(name, part, held)]
    missing = next((part for part in several if not _named(name, part, held)), "")
    if found and not missing:
        return found
    raise DataError(_no_such(name, missing or text, held))


def _named(name: str, text: str, held: Sequence[Any]) -> list[Any]:
    """Return the values that are written as ``text``, each once."""
    if name == "document":
        pattern = glob_pattern(text)
        return [text] if any(pattern.fullmatch(path) for path in held) else []
    found: list[Any] = []
    for value in held:
        if _is(value, text) and not any(type(one) is type(value) and one == value for one in found):
            found.append(value)
    return found


def _is(value: Any, text: str) -> bool:
    if isinstance(value, bool):
        return text.casefold() == str(value).casefold()
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value) == text


def _parts(text: str) -> list[str]:
    """Return the texts of a JSON list, or of what stands between commas."""
    if text.startswith("["):
        try:
            listed = json.loads(text)
        except ValueError:
            listed = None
        if isinstance(listed, list):
            return [one if isinstance(one, str) else json.dumps(one) for one in listed]
    return [part.strip() for part in text.split(",")]


def _each(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        yield from value
    else:
        yield value


def _no_such(name: str, text: str, held: Sequence[Any]) -> str:
    shown = sorted({str(value) for value in held})
    if len(shown) > SHOWN:
        near = difflib.get_close_matches(text, shown, SHOWN, 0.4)
        listed = f"near it are {', '.join(near)}" if near else f"as one is {shown[0]}"
        listed = f"it has {len(shown)} values, {listed}"
    else:
        listed = f"it is one of {', '.join(shown)}"
    return f"--where {name}={text!r}: no document has that; {listed}"
