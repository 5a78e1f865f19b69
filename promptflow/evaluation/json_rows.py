"""Rows of JSON in the forms in which programs and hubs write them.

Objects one a line or one after the other, a list, a list under a key, columns, pandas' and the
datasets server's tables, SQuAD's articles. Numbers keep all their digits; NaN is no value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from promptflow.errors import DataError

_SPACE = re.compile(r"[\s\x1e]*")
_WRAPPERS = ("data", "examples", "rows", "instances")
_SPLITS = ("train", "validation", "valid", "dev", "test", "eval")
_SERVED = {"row_idx", "row", "truncated_cells"}


def object_rows(path: Path, text: str, key: str | None = None) -> list[Any]:
    """Return the rows of JSON text; ``key`` names the list where an object holds several.

    Raises DataError.
    """
    values = list(_values(path, text))
    if len(values) == 1 and isinstance(values[0], Mapping):
        rows = _of_object(path, values[0], key)
    elif key is not None:
        raise DataError(f"{path}: has no key {key!r}: it is a list of examples; leave the key out")
    elif len(values) == 1 and not isinstance(values[0], list):
        raise DataError(f"{path}: expected a list of objects, found {values[0]!r:.60}")
    else:
        rows = values[0] if len(values) == 1 else values
    if rows and isinstance(rows[0], Mapping) and "paragraphs" in rows[0]:
        return list(_squad(path, rows))
    return [_unserved(path, number, row) for number, row in enumerate(rows, 1)]


def _values(path: Path, text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder(
        object_pairs_hook=_object,
        parse_float=_number,
        parse_constant=lambda name: None if name == "NaN" else float(name),
    )
    place = 0
    while (place := _SPACE.match(text, place).end()) < len(text):  # type: ignore[union-attr]
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, place) + 1
            raise DataError(f"{path}, line {line}: not JSON ({error})") from error
        yield value
        place = end


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return made


def _number(text: str) -> float | Decimal:
    """Return a float where its shortest decimal is the number of the text."""
    number = float(text)
    exact = Decimal(text)
    return number if Decimal(repr(number)) == exact else exact


def _of_object(path: Path, data: Mapping[str, Any], key: str | None) -> list[Any]:
    if key is not None:
        if key not in data:
            raise DataError(f"{path}: has no key {key!r}; there are {', '.join(data)}")
        chosen = data[key]
        if isinstance(chosen, list):
            return chosen
        if not isinstance(chosen, Mapping):
            raise DataError(f"{path}: {key!r} is no list of examples: {chosen!r:.60}")
        data = chosen
    if isinstance(data.get("columns"), list) and isinstance(data.get("data"), list):  # pandas
        return [dict(zip(data["columns"], row, strict=False)) for row in data["data"]]
    lists = {name: item for name, item in data.items() if _is_table(name, item)}
    named = [name for name in lists if name in _WRAPPERS]
    named = named or [name for name in lists if len(lists) == 1 and name in _SPLITS]
    if len(named) == 1:
        chosen = lists[named[0]]
        return chosen if isinstance(chosen, list) else _of_columns(path, chosen)
    if lists:
        sizes = ", ".join(f"{name} ({len(item)})" for name, item in lists.items())
        first = next(iter(lists))
        raise DataError(
            f"{path}: which list holds the examples? There are {sizes}; name one: "
            f"key={first!r}, or --key {first}. An object that is itself an example stands in a list"
        )
    if empty := [name for name in _WRAPPERS if data.get(name) == []]:
        raise DataError(f"{path}: holds no examples: {empty[0]!r} is an empty list")
    [inner, *others] = data.values() or [None]
    if isinstance(inner, Mapping) and not others:
        return _of_object(path, inner, None)
    return _of_columns(path, data)


def _is_table(name: str, item: Any) -> bool:
    """Say whether a value is a list of objects, or a split whose columns are lists."""
    if isinstance(item, list):
        return bool(item) and all(isinstance(row, Mapping) for row in item)
    return name in _SPLITS and isinstance(item, Mapping) and _are_columns(item)


def _are_columns(data: Mapping[str, Any]) -> bool:
    return bool(data) and all(isinstance(item, list) for item in data.values())


def _of_columns(path: Path, data: Mapping[str, Any]) -> list[Any]:
    """Return rows of columns: lists of one length, or pandas' objects by row number."""
    if _are_columns(data):
        sizes = {name: len(item) for name, item in data.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(f"{path}: the columns differ in length: {sizes}")
        return [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]
    values = list(data.values())
    if data and all(isinstance(item, Mapping) and item for item in values):
        if all(name.isdigit() for item in values for name in item):
            numbers = list(dict.fromkeys(name for item in values for name in item))
            return [{name: data[name].get(n) for name in data} for n in numbers]
        return [item if "id" in item else {"id": name, **item} for name, item in data.items()]
    return [data]


def _unserved(path: Path, number: int, row: Any) -> Any:
    """Take a row out of the datasets server's wrapping."""
    if not isinstance(row, Mapping) or "row" not in row or not set(row) <= _SERVED:
        return row
    if cut := row.get("truncated_cells"):
        raise DataError(
            f"{path}, example {number}: the server cut the cells {', '.join(map(str, cut))}; "
            "fetch the data set's own files"
        )
    return row["row"]


def _squad(path: Path, articles: Iterable[Any]) -> Iterator[dict[str, Any]]:
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    yield {
                        "title": article.get("title", ""),
                        "passage": paragraph["context"],
                        "question": asked["question"],
                        "answers": [answer["text"] for answer in asked["answers"]],
                    }
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: has paragraphs, and is not as SQuAD is: no {error}") from error
