"""A table to lines, one a row, each with its column's names: "City: Seoul; People: 9.4 million".

A row can then be found and quoted alone. Which rows are the header is taken from the file where it
says so, and else from the look of the columns.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence


class Merged(str):
    """What a cell says in the columns that it reaches beyond its first."""

    __slots__ = ()


class Spanning:
    """Rows that come one after another, of cells that reach over columns and rows."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[int, str]] = {}

    def row(self, cells: Iterable[tuple[str, int, int]]) -> list[str]:
        """Return the next row; cells are (text, columns, rows that it reaches further down)."""
        line: list[str] = []
        for text, columns, down in cells:
            self._fill(line)
            for place in range(columns):
                if down > 0:
                    self._held[len(line)] = (down, text)
                line.append(Merged(text) if place else text)
        self._fill(line)
        return line

    def _fill(self, line: list[str]) -> None:
        """Add the cells that reach down into a row from above, at the places that come next."""
        while len(line) in self._held:
            place = len(line)
            left, text = self._held.pop(place)
            if left > 1:
                self._held[place] = (left - 1, text)
            line.append(text)


Grid = Sequence[Sequence[str]]
_NAME = 300
"""Characters of a column's name that a row repeats: what is longer is a text, not a name."""


def row_lines(grid: Grid, heads: int | None = None, *, named: bool = False) -> Iterator[str]:
    """Give a line for each row of a table below its header.

    ``heads`` is the number of header rows, None if the table does not say. ``named`` is what to
    believe of a first row whose look tells nothing: that it is a header.
    """
    rows = [[type(cell)(" ".join(cell.split())) for cell in row] for row in grid]
    width = max((len(row) for row in rows), default=0)
    rows = [[*row, *[""] * (width - len(row))] for row in rows if any(row)]
    if heads is None:
        title = 0
        while title < len(rows) and width > 1 and len(set(filter(None, rows[title]))) == 1:
            yield next(filter(None, rows[title]))
            title += 1
        rows = rows[title:]
        heads = 1 if _has_header(rows, width, named) else 0
        if rows and _groups(rows[0]) and _has_header(rows[1:], width, named=True):
            heads = 2
    heads = min(heads, len(rows))
    names = [_name(row[column] for row in rows[:heads]) for column in range(width)]
    if heads == len(rows):  # nothing below it: the header is all there is to say
        yield from (" | ".join(filter(None, row)) for row in rows)
        return
    pairs = not any(names) and _are_pairs(rows, width)
    for row in rows[heads:]:
        if width > 1 and row[0] and all(isinstance(cell, Merged) for cell in row[1:]):
            yield row[0]
        elif pairs:
            yield f"{row[0].rstrip(':')}: {row[1]}" if all(row) else row[0] or row[1]
        elif any(names):
            yield _line(names, row)
        else:
            yield " | ".join(cell for cell in row if cell and not isinstance(cell, Merged))


def _line(names: Sequence[str], row: Sequence[str]) -> str:
    parts: list[str] = []
    for name, cell in zip(names, row, strict=True):
        part = f"{name}: {cell}" if name and name != cell else cell
        if cell and (not parts or part != parts[-1]):
            parts.append(part)
    return "; ".join(parts)


def _name(cells: Iterator[str]) -> str:
    """Return the name of a column: what its header rows say, from the top, each thing once."""
    said = dict.fromkeys(cell.rstrip(":") for cell in cells if cell)
    return " ".join(said)[:_NAME].strip()


def _are_pairs(rows: Grid, width: int) -> bool:
    """Say whether a table without a header is a list of names and values."""
    firsts = [row[0] for row in rows if row[0]]
    return (
        width == 2
        and len(set(firsts)) == len(firsts)
        and all(len(first) <= 80 and not first[0].isdigit() for first in firsts)
    )


def _has_header(rows: Grid, width: int, named: bool) -> bool:
    """Judge whether the first row names the columns, by how it differs from what is below."""
    if len(rows) < 2 or width < 2:
        return named and len(rows) > 1
    head, body = rows[0], rows[1:200]
    years = [cell for cell in head if re.fullmatch(r"(19|20)\d\d", cell)]
    votes = 0
    for column, cell in enumerate(head):
        below = [row[column] for row in body if row[column]]
        if not below or not cell:
            continue
        shapes = {_shape(other) for other in below}
        if len(years) > 1 and cell in years:
            votes += len(set(years)) == len(years)
        elif all(map(_holds_digit, below)):
            votes += 1 if _shape(cell) not in shapes and not _is_amount(cell) else -1
        elif _is_amount(cell) and sum(map(_holds_digit, below)) * 2 > len(below):
            votes -= 1
    if votes:
        return votes > 0 and (named or width > 2 or len(rows) > 2)
    whole = all(head) and len(set(head)) == len(head)
    return named or (whole and width > 2 and not any(map(_is_amount, head)))


def _groups(head: Sequence[str]) -> bool:
    """Say whether a header names groups of columns, so that their own names stand below."""
    return any(one and one == other for one, other in itertools.pairwise(head))


def _shape(cell: str) -> str:
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", cell))


def _holds_digit(cell: str) -> bool:
    return any(char.isdigit() for char in cell)


def _is_amount(cell: str) -> bool:
    """Say whether a cell is a number, a date or an amount rather than a name with a digit in it."""
    digits = sum(char.isdigit() for char in cell)
    return digits * 2 > sum(char.isalnum() for char in cell) and len(cell) < 40
