"""Evaluation data: JSON Lines, JSON and CSV files as ``dspy.Example``, and seeded splits."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import dspy
import numpy as np

from promptflow.errors import DataError

GOLD = ("answer", "answers", "target", "label", "labels", "output", "gold", "documents", "id")
"""Fields that are not inputs unless they are named as such."""

T = TypeVar("T")


def load_data(path: str | Path, inputs: Iterable[str] | None = None) -> list[dspy.Example]:
    """Read examples from a .jsonl, .json or .csv file, which may be gzipped.

    JSON holds a list of objects, or an object whose ``data``, ``examples`` or ``rows`` is one;
    SQuAD's articles become rows with title, passage, question and answers.
    ``inputs`` names the input fields; without it they are all but ``GOLD``. Raises DataError with
    the line that cannot be read.
    """
    path = Path(path)
    rows = _rows(path)
    if rows and isinstance(rows[0], Mapping) and "paragraphs" in rows[0]:
        rows = list(_squad(path, rows))
    if not rows:
        raise DataError(f"{path}: holds no examples")
    chosen = None if inputs is None else list(inputs)
    return [_example(path, number, row, chosen) for number, row in enumerate(rows, 1)]


def _rows(path: Path) -> list[Any]:
    kinds = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json, ".csv": _csv}
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if zipped else suffixes)[-1:]
    if not kind or kind[0] not in kinds:
        raise DataError(f"{path}: expected a .jsonl, .json or .csv file, also with .gz")
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if zipped else data).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return kinds[kind[0]](path, text)


def _json_lines(path: Path, text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error})") from error
    return rows


def _json(path: Path, text: str) -> list[Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if isinstance(data, Mapping):
        data = next((data[key] for key in ("data", "examples", "rows") if key in data), data)
    if not isinstance(data, list):
        raise DataError(
            f"{path}: expected a list of objects, or one under 'data', 'examples' or 'rows'; "
            f"found {type(data).__name__}"
        )
    return data


def _squad(path: Path, articles: Iterable[Any]) -> Iterator[dict[str, Any]]:
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    yield {
                        "title": article["title"],
                        "passage": paragraph["context"],
                        "question": asked["question"],
                        "answers": [answer["text"] for answer in asked["answers"]],
                    }
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: has paragraphs, and is not as SQuAD is: no {error}") from error


def _csv(path: Path, text: str) -> list[Any]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        rows: list[dict[str, Any]] = list(reader)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise DataError(
                f"{path}, row {number}: expected {len(reader.fieldnames or ())} columns "
                f"({', '.join(reader.fieldnames or ())})"
            )
    return rows


def _example(path: Path, number: int, row: Any, inputs: list[str] | None) -> dspy.Example:
    if not isinstance(row, Mapping) or not row:
        raise DataError(
            f"{path}, example {number}: expected an object with fields, got {row!r:.60}"
        )
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
    return dspy.Example(**row).with_inputs(*inputs)


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
