"""CSV and its kin: a line a row, with the names of its columns."""

from __future__ import annotations

import csv
import io
import re
import sys

from promptflow.encodings import decoded
from promptflow.retrieval.kinds import Parsed
from promptflow.retrieval.kinds.rows import row_lines

_DELIMITERS = ",;\t|"
_DECLARED = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)


def read(data: bytes, name: str) -> Parsed:
    """Return the rows of a table, parted by commas, semicolons, tabs or bars."""
    text = decoded(data).removeprefix("\ufeff")
    if found := _DECLARED.match(text):
        delimiter, text = found[1], text[found.end() :]
    else:
        delimiter = _delimiter(text, name)
    csv.field_size_limit(sys.maxsize)
    grid = _records(text, delimiter)
    return Parsed("".join(f"{line}\n" for line in row_lines(grid, named=True)))


def _records(text: str, delimiter: str) -> list[list[str]]:
    """Return the rows; quotes that no row closes are text, as in many tables parted by tabs."""
    if delimiter == "\t" and _stray_quotes(text):
        return [line.split("\t") for line in re.split(r"\r\n|\n|\r", text)]
    lines = io.StringIO(text, newline="")
    try:
        return list(csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != "\t"))
    except csv.Error:
        return [line.split(delimiter) for line in re.split(r"\r\n|\n|\r", text)]


def _stray_quotes(text: str) -> bool:
    cells = (cell for line in text.splitlines()[:1000] for cell in line.split("\t"))
    return any(cell.startswith('"') != cell.endswith('"') or cell == '"' for cell in cells)


def _delimiter(text: str, name: str) -> str:
    """Return the delimiter under which most of the first rows have the same number of columns."""
    if name.lower().endswith((".tsv", ".tab")) and "\t" in text:
        return "\t"
    sample = text[:100_000]
    sample = sample[: sample.rfind("\n") + 1] or sample
    best, score = ",", (0.0, 0)
    for delimiter in _DELIMITERS:
        widths = [len(row) for row in _records(sample, delimiter) if any(row)][:200]
        common = max(set(widths), key=lambda width: (widths.count(width), width), default=1)
        if common > 1 and (found := (widths.count(common) / len(widths), common)) > score:
            best, score = delimiter, found
    return best
