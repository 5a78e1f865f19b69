"""Evaluation data: JSON, JSON Lines, CSV and TSV files as ``dspy.Example``, and seeded splits."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import dspy
import numpy as np

from promptflow.encodings import Undecodable, decoded
from promptflow.errors import DataError, names_options
from promptflow.evaluation.csv_rows import table_rows
from promptflow.evaluation.json_rows import object_rows

GOLD = ("answer", "answers", "target", "label", "labels", "output", "gold", "documents", "id")
"""Fields that are not inputs unless they are named as such."""

_OBJECTS = (".jsonl", ".ndjson", ".json")
_TABLES = (".csv", ".tsv", ".tab")
_ELSEWHERE = {
    ".parquet": "pandas.read_parquet(FILE).to_json('data.jsonl', orient='records', lines=True)",
    ".arrow": "datasets.Dataset.from_file(FILE).to_json('data.jsonl')",
    ".xlsx": "save it as CSV UTF-8 in the spreadsheet",
    ".xls": "save it as CSV UTF-8 in the spreadsheet",
    ".ods": "save it as CSV in the spreadsheet",
    ".zip": "unpack it",
}

_BINARY = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\xd0\xcf\x11\xe0": "a spreadsheet",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF",
}
_SURROGATE = re.compile("[\ud800-\udfff]")

T = TypeVar("T")


@names_options
def load_data(
    path: str | Path,
    inputs: Iterable[str] | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    key: str | None = None,
) -> list[dspy.Example]:
    """Read examples from a .json, .jsonl, .csv or .tsv file, which may be gzipped.

    ``inputs`` names the input fields; without it they are all but ``GOLD``. ``columns`` gives
    columns of the file other names: ``{"question text": "question"}``. ``encoding`` is found where
    it is not told, or refused where it is in doubt. ``key`` names the list of examples where JSON
    holds several, such as train and test.

    JSON may be objects one a line, a list, a list under ``data``, ``examples``, ``rows`` or
    ``instances``, columns, or a page of the datasets server; SQuAD's articles become rows with
    title, passage, question and answers. Tables are parted by commas, semicolons, tabs or bars; an
    empty cell of a column that is no input is None.
    Raises DataError with the line or row that cannot be read.
    """
    path = Path(path)
    chosen = None if inputs is None else list(inputs)
    rows = load_rows(path, columns=columns, encoding=encoding, key=key)
    return [_example(path, number, row, chosen) for number, row in enumerate(rows, 1)]


def load_rows(
    path: Path, *, columns: Mapping[str, str] | None, encoding: str | None, key: str | None
) -> list[dict[str, Any]]:
    """Read the rows of a file as ``load_data`` does, at least one. Raises DataError."""
    rows = [_checked(path, n, row) for n, row in enumerate(_rows(path, encoding, key), 1)]
    if not rows:
        raise DataError(f"{path}: holds no examples")
    return _renamed(path, rows, columns) if columns else rows


def _rows(path: Path, encoding: str | None, key: str | None) -> list[Any]:
    suffix = _suffix(path)
    if suffix not in (*_OBJECTS, *_TABLES):
        how = _ELSEWHERE.get(suffix)
        raise DataError(
            f"{path}: expected a .json, .jsonl, .csv or .tsv file, also with .gz"
            + (f"; to convert: {how}" if how else "")
        )
    try:
        data = path.read_bytes()
        zipped = path.suffix.lower() == ".gz" or data.startswith(b"\x1f\x8b")
        data = gzip.decompress(data) if zipped else data
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if kind_of := next((what for mark, what in _BINARY.items() if data.startswith(mark)), None):
        raise DataError(f"{path}: is {kind_of}, whatever its name; save it as CSV or JSON")
    text = _decoded(data, path, encoding)
    _check_content(path, text, suffix)
    if suffix in _OBJECTS:
        return object_rows(path, text, key)
    if key is not None:
        raise DataError(f"{path}: a table has no key {key!r}; leave the key out")
    return list(table_rows(path, text))


def _decoded(data: bytes, path: Path, encoding: str | None) -> str:
    try:
        return decoded(data, encoding)
    except Undecodable as error:
        name = error.likely
        advice = f". Name it: encoding={name!r}, or --encoding {name}" if name else ""
        at = ", " if str(error).startswith("line ") else ": "
        raise DataError(f"{path}{at}{error}{advice}") from error


def _suffix(path: Path) -> str:
    """Return the suffix that tells the kind of a file, without .gz."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _check_content(path: Path, text: str, suffix: str) -> None:
    """Refuse what is often found under the name of data, and is none."""
    start = text[:200].lstrip().lower()
    if start.startswith(("<!doctype", "<html", "<?xml")):
        raise DataError(f"{path}: is a web page, not data; download the file itself")
    if start.startswith("version https://git-lfs"):
        raise DataError(f"{path}: is a pointer of Git LFS, not data; run git lfs pull")
    if suffix in _TABLES and re.match(r'\[?\s*\{\s*"', start):
        raise DataError(f"{path}: holds JSON; name it .json or .jsonl")


def _checked(path: Path, number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping) or not row:
        raise DataError(
            f"{path}, example {number}: expected an object with fields, got {row!r:.60}"
        )
    hidden = [name for name in row if name.startswith("dspy_")]
    if hidden:
        raise DataError(
            f"{path}, example {number}: DSPy hides fields that begin with dspy_; give "
            f"{hidden[0]!r} another name"
        )
    if torn := next((name for name, value in row.items() if _is_torn([name, value])), None):
        raise DataError(
            f"{path}, example {number}: the text of {torn!r} holds half a character (a surrogate)"
        )
    return dict(row)


def _is_torn(value: Any) -> bool:
    if isinstance(value, str):
        return not value.isascii() and _SURROGATE.search(value) is not None
    if isinstance(value, Mapping):
        return any(_is_torn([key, item]) for key, item in value.items())
    return isinstance(value, list) and any(map(_is_torn, value))


def _renamed(
    path: Path, rows: Sequence[dict[str, Any]], columns: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Give columns their new names. Raises DataError for a column in no row, or a name twice."""
    there = dict.fromkeys(name for row in rows for name in row)
    for column, name in columns.items():
        if column not in there:
            raise DataError(
                f"{path}: no column {column!r} to call {name!r}; there are "
                + ", ".join(map(repr, there))
            )
    renamed = []
    for number, row in enumerate(rows, 1):
        made = {columns.get(name, name): value for name, value in row.items()}
        if len(made) < len(row):
            names = [columns.get(name, name) for name in row]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(
                f"{path}, example {number}: two columns would be called {twice!r}; give the "
                "other one another name too"
            )
        renamed.append(made)
    return renamed


def _example(
    path: Path, number: int, row: dict[str, Any], inputs: list[str] | None
) -> dspy.Example:
    if inputs is None:
        inputs = [name for name in row if name not in GOLD]
    missing = [name for name in inputs if name not in row]
    if missing:
        raise DataError(
            f"{path}, example {number}: no field {missing[0]!r}; it has {', '.join(row)}"
        )
    if not inputs:
        raise DataError(
            f"{path}, example {number}: no input field among {', '.join(row)}; pass inputs=[...]"
        )
    return made_example(path, row, inputs)


def made_example(path: Path, row: Mapping[str, Any], inputs: Iterable[str]) -> dspy.Example:
    """Return a row as an example; in a table an empty cell that is no input is a missing value."""
    inputs = list(inputs)
    if _suffix(path) in _TABLES:
        row = {n: None if v == "" and n not in inputs else v for n, v in row.items()}
    # As one dictionary: a column may be called base, which is an argument of Example's own.
    return dspy.Example(dict(row)).with_inputs(*inputs)


def split(data: Sequence[T], shares: Sequence[float], seed: int = 0) -> list[list[T]]:
    """Shuffle ``data`` by ``seed`` and cut it into parts of these shares of its length.

    Shares are positive and sum to 1 at most; each part has at least one item while there are
    enough. The order of the shares matters, the order of ``data`` too.
    """
    if any(share <= 0 for share in shares) or sum(shares) > 1 + 1e-9:
        raise ValueError(f"shares must be positive and sum to 1 at most: {list(shares)}")
    if len(data) < len(shares):
        raise DataError(f"{len(data)} examples cannot be split into {len(shares)} parts")
    order = np.random.default_rng(seed).permutation(len(data))
    parts: list[list[T]] = []
    start = 0
    for number in range(len(shares)):
        reserved = len(shares) - number - 1
        end = round(len(data) * sum(shares[: number + 1]))
        end = min(max(end, start + 1), len(data) - reserved)
        parts.append([data[i] for i in order[start:end]])
        start = end
    return parts


def plain(value: Any) -> Any:
    """Return ``value`` as JSON data: models and dataclasses as objects, what is unknown as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, dspy.Example):
        return {str(key): plain(value[key]) for key in value}
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if hasattr(value, "value") and hasattr(value, "name"):
        return plain(value.value)
    return str(value)
