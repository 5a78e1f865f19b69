"""Rows of CSV and of its kin, as spreadsheets write them: commas, semicolons, tabs or bars."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from promptflow.errors import DataError

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_DECLARED = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_SAMPLE = 200


def table_rows(path: Path, text: str, delimiter: str | None = None) -> list[dict[str, str]]:
    """Return the rows of a table by the names in its first line; every cell is text.

    Without ``delimiter`` the one under which all rows have the same columns. Raises DataError with
    the row that does not fit.
    """
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}, line {line}: holds a zero character; it is no text")
    if found := _DECLARED.match(text):
        delimiter, text = found[1], text[found.end() :]
    with _long_cells():
        delimiter = delimiter or _delimiter(path, text)
        records = _unquoted(text) if delimiter == "\t" else None
        records = records or list(_records(path, text, delimiter))
    if not records:
        return []
    header, rows = [name.strip() for name in records[0]], records[1:]
    if not rows:
        raise DataError(f"{path}: holds no examples below its header ({', '.join(header)})")
    width = len(header)
    for number, row in enumerate(rows, 1):
        if len(row) < width or any(row[width:]):
            raise DataError(
                f"{path}, row {number}: expected {width} columns ({', '.join(header)}), found "
                f"{len(row)} between {_DELIMITERS.get(delimiter, repr(delimiter))}; text that "
                "holds one stands in double quotes"
            )
    kept = _named(path, header, rows)
    return [{header[place]: row[place] for place in kept} for row in rows]


def _named(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the places of the columns that have a name; the others must be empty, or an index."""
    numbers = [str(number) for number in range(len(rows))]
    kept = []
    for place, name in enumerate(header):
        cells = [row[place] for row in rows]
        if name:
            kept.append(place)
        elif any(cells) and not (place == 0 and cells == numbers):  # pandas numbers its rows
            held = next(filter(None, cells))
            raise DataError(
                f"{path}: column {place + 1} has no name, and holds {held!r:.40}; give it one in "
                "the first line"
            )
    names = [header[place] for place in kept]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}: two columns are called {twice[0]!r}; give each its own name")
    return kept


def _delimiter(path: Path, text: str) -> str:
    """Return the delimiter under which the first rows have as many columns as the header."""
    widths: dict[str, list[int]] = {}
    for one in _DELIMITERS:
        if one == "\t" and (records := _unquoted(text)):
            widths[one] = [len(row) for row in records]
            continue
        try:
            widths[one] = [len(row) for row in islice(_records(path, text, one, cut=True), _SAMPLE)]
        except DataError:
            widths[one] = []
    fitting = [one for one, w in widths.items() if w and w[0] > 1 and set(w) == {w[0]}]
    if "\t" in fitting and path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab")):
        return "\t"
    if len(fitting) > 1:
        shown = " or ".join(
            f"{widths[one][0]} columns between {_DELIMITERS[one]}" for one in fitting
        )
        raise DataError(
            f"{path}: may have {shown}; write sep={fitting[0]} alone into the first line to say so"
        )
    return fitting[0] if fitting else max(_DELIMITERS, key=text.lstrip().partition("\n")[0].count)


def _unquoted(text: str) -> list[list[str]] | None:
    """Return the records of a table whose quotes are text, as many parted by tabs are.

    None where no cell needs that, or the rows would not have the header's columns.
    """
    records = [line.split("\t") for line in re.split(r"\r\n|\n|\r", text) if line.strip("\t")]
    odd = any(c.startswith('"') and not _QUOTED.fullmatch(c) for row in records for c in row)
    widths = {len(row) for row in records}
    fits = odd and len(widths) == 1 and widths != {1}
    return records if fits else None


def _records(path: Path, text: str, delimiter: str, *, cut: bool = False) -> Iterator[list[str]]:
    """Give the records that hold anything; with ``cut``, without empty cells past the header."""
    spaced = re.match(rf"[^\n]*\S{re.escape(delimiter)} \S", text) is not None and delimiter != "\t"
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=spaced)
    width, began = 0, 1
    try:
        for row in reader:
            if any(row):
                width = width or len(row)
                while cut and len(row) > width and not row[-1]:
                    row.pop()
                yield row
            began = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {began}: {error}; quotes inside of a quoted cell are doubled"
        ) from error


@contextmanager
def _long_cells() -> Iterator[None]:
    """Lift the limit of 131,072 characters a cell, which holds for the whole process."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
