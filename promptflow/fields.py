"""One typed field to text and back: how each output type is constrained, written and read.

A value that was written under its constraint can always be read. Knows nothing of prompts.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import json
import math
import re
import types
import typing
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import to_json

from promptflow import schema as schemas
from promptflow.engine.request import Choice, Constraint, Fill, Json, Regex, Substring
from promptflow.errors import ParseError, UnknownField, UnsupportedType
from promptflow.signatures import Quote

__all__ = ["Quote", "Shape", "constraint_of", "from_text", "shape_of", "to_text"]

BUDGET = 1024  # tokens of a JSON value, unless its own limits ask for more
LINE = 200  # up to so many characters a limited text stays on one line

_FORMATS: dict[Any, str] = {
    int: "integer",
    float: "number",
    decimal.Decimal: "decimal",
    datetime.date: "date",
    datetime.time: "time",
    datetime.datetime: "date-time",
    datetime.timedelta: "duration",
    uuid.UUID: "uuid",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """How an output is written: its constraint, the tokens it can take, and what a prompt may say.

    ``tokens`` is None where the call's ``max_tokens`` decides. ``options`` are the texts of a
    choice, ``low`` and ``high`` the bounds of a number, ``sketch`` a picture of a JSON value,
    ``kind`` what else it is: text, quote, integer, number, date, ...
    """

    constraint: Constraint | None = None
    tokens: int | None = None
    options: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    sketch: str = ""
    quotes: str = ""
    kind: str = "text"


def shape_of(name: str, annotation: Any, metadata: Sequence[Any] = ()) -> Shape:
    """Return the shape of an output field. Raises UnsupportedType naming the field and type."""
    annotation, metadata = _unwrapped(annotation, metadata)
    try:
        return _shape_cached(name, annotation, tuple(metadata))
    except TypeError:  # metadata that cannot be hashed
        return _shape(name, annotation, tuple(metadata))


def constraint_of(
    name: str, annotation: Any, metadata: Sequence[Any], inputs: Mapping[str, Any]
) -> Constraint | None:
    """Return the constraint of an output field; None where any text will do.

    ``inputs`` are the values that a Quote quotes from. Raises UnsupportedType or UnknownField.
    """
    shape = shape_of(name, annotation, metadata)
    if not shape.quotes:
        return shape.constraint
    if shape.quotes not in inputs:
        raise UnknownField(f"output {name!r} quotes {shape.quotes!r}, which is no input field")
    source = inputs[shape.quotes]
    texts = source if isinstance(source, list | tuple) else [source]
    return Substring(tuple(to_text(text) for text in texts))


def to_text(value: Any) -> str:
    """Return a value as a prompt shows it; ``from_text`` reads output values back.

    Lists of input texts are numbered from 1, one a line.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, enum.Enum):
        return to_text(value.value)
    if hasattr(value, "text") and isinstance(value.text, str):
        return value.text
    if isinstance(value, list | tuple) and value and all(_is_prose(item) for item in value):
        return "\n".join(f"[{number}] {to_text(item)}" for number, item in enumerate(value, 1))
    if isinstance(value, int | float):
        return str(value)
    text = to_json(value, fallback=str).decode()
    if isinstance(value, Mapping | list | tuple | set | frozenset) or text.startswith("{"):
        return json.dumps(json.loads(text), ensure_ascii=False)
    return text.strip('"')


def output_text(value: Any, annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return an output value as the model would write it, for demos."""
    shape = shape_of("demo", annotation, metadata)
    if isinstance(shape.constraint, Json) and not isinstance(value, str | int | float):
        return json.dumps(json.loads(to_json(value, fallback=str)), ensure_ascii=False)
    return to_text(value)


def from_text(
    name: str, annotation: Any, text: str, metadata: Sequence[Any] = (), cut: bool = False
) -> Any:
    """Return the value that ``text`` stands for; ``cut`` where it ended at its token limit.

    Raises ParseError.
    """
    annotation, metadata = _unwrapped(annotation, metadata)
    shape = shape_of(name, annotation, metadata)
    if isinstance(shape.constraint, Choice):
        return _option(name, annotation, text.strip(), shape)
    if annotation is str and not isinstance(shape.constraint, Json):
        return text.strip() if shape.constraint is None else text
    try:
        return _read(annotation, metadata, text.strip(), shape, cut)
    except (ValidationError, ValueError) as error:
        fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        why = "ran out of tokens; raise max_tokens" if cut else fault
        raise ParseError(
            f"output {name!r}: {text[:80]!r} is no {_shown(annotation)}: {why}"
        ) from error


def _read(annotation: Any, metadata: Sequence[Any], text: str, shape: Shape, cut: bool) -> Any:
    adapter = _adapter(annotation, tuple(metadata))
    if not isinstance(shape.constraint, Json):
        return adapter.validate_python(text)
    value = schemas.closed(text) if cut else json.loads(text)
    return adapter.validate_json(json.dumps(value))


def _option(name: str, annotation: Any, text: str, shape: Shape) -> Any:
    found = _options(annotation).get(text)
    if found is None and text not in _options(annotation):
        # Text that a demo or another model wrote: forgive the case.
        folded = {option.casefold(): value for option, value in _options(annotation).items()}
        if text.casefold() not in folded:
            raise ParseError(f"output {name!r}: {text!r} is none of {', '.join(shape.options)}")
        return folded[text.casefold()]
    return found


@functools.lru_cache(maxsize=512)
def _shape_cached(name: str, annotation: Any, metadata: tuple[Any, ...]) -> Shape:
    return _shape(name, annotation, metadata)


def _shape(name: str, annotation: Any, metadata: tuple[Any, ...]) -> Shape:
    for item in metadata:
        if isinstance(item, Quote):
            return Shape(quotes=item.field, kind="quote")
    if options := _options(annotation):
        longest = max(len(option.encode()) for option in options)
        return Shape(Choice(tuple(options)), longest + 8, tuple(options), kind="choice")
    limits = _limits(metadata)
    if annotation is str:
        return _text_shape(name, limits)
    if not limits and isinstance(annotation, type) and annotation in _FORMATS:
        form = _FORMATS[annotation]
        return Shape(Regex(schemas.FORMATS[form]), 48, kind=form)
    return _json_shape(name, annotation, metadata, limits)


def _text_shape(name: str, limits: Mapping[str, Any]) -> Shape:
    pattern = limits.get("pattern")
    low, high = limits.get("min_length", 0), limits.get("max_length")
    if pattern is not None:
        if low or high is not None:
            return _json_shape(name, str, (), limits)
        text = pattern if isinstance(pattern, str) else pattern.pattern
        if "(?" in text.replace("(?:", "") or re.search(r"\\[1-9bB]", text):
            raise UnsupportedType(
                f"output {name!r}: the pattern {text!r} looks around or back; "
                "write it without (?=...), (?!...), (?<...), \\b and \\1"
            )
        return Shape(Regex(text.removeprefix("^").removesuffix("$")))
    if high is None and not low:
        return Shape()
    char = r"[^\n]" if high is not None and high <= LINE else r"(?s:.)"
    upper = "" if high is None else high
    return Shape(Regex(f"{char}{{{max(low, 1)},{upper}}}"), None if high is None else 4 * high + 8)


def _json_shape(
    name: str, annotation: Any, metadata: tuple[Any, ...], limits: Mapping[str, Any]
) -> Shape:
    shown = _shown(annotation)
    where = f"output {name!r} of type {shown}"
    _check_keys(annotation, where)
    try:
        adapter = _adapter(annotation, metadata)
        whole = adapter.json_schema()
    except (PydanticUserError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UnsupportedType(
            f"{where} cannot be constrained ({reason}); use str, int, float, bool, Literal, "
            "an Enum, a date, a list or dict of these, or a pydantic model"
        ) from error
    if annotation is str:
        whole |= {"pattern": limits["pattern"]}
        whole |= {"minLength": limits.get("min_length", 0)}
        whole |= {"maxLength": limits["max_length"]} if "max_length" in limits else {}
    made, cost = schemas.bounded(whole, where, BUDGET)
    made = {**made, "x-guidance": {"json_allowed_escapes": 'nrt"\\'}}
    constraint = Json(json.dumps(made, ensure_ascii=False))
    if (kind := made.get("type")) in ("integer", "number"):
        low, high = _bound(limits, "ge", "gt"), _bound(limits, "le", "lt")
        return Shape(constraint, cost, low=low, high=high, kind=kind)
    return Shape(constraint, cost, sketch=schemas.sketch(made), kind="json")


def _bound(limits: Mapping[str, Any], inclusive: str, exclusive: str) -> float | None:
    value = limits.get(inclusive, limits.get(exclusive))
    return None if value is None or math.isinf(value) else value


def _options(annotation: Any) -> dict[str, Any]:
    """Return the values of a choice by their text; empty where the type is none."""
    origin, arms = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is bool:
        return {"yes": True, "no": False}
    if annotation is type(None):
        return {"none": None}
    if origin is Literal:
        return {to_text(value): value for value in arms}
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return {to_text(member.value): member for member in annotation}
    if origin in (Union, types.UnionType) and all(_options(arm) for arm in arms):
        return {text: value for arm in arms for text, value in _options(arm).items()}
    return {}


def _unwrapped(annotation: Any, metadata: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    if typing.get_origin(annotation) is Annotated:
        inner, *more = typing.get_args(annotation)
        return _unwrapped(inner, (*metadata, *more))
    if annotation is None:
        return type(None), tuple(metadata)
    return annotation, tuple(metadata)


def _limits(metadata: Sequence[Any]) -> dict[str, Any]:
    names = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern")
    found: dict[str, Any] = {}
    for item in metadata:
        if hasattr(item, "metadata"):
            found |= _limits(item.metadata)
        found |= {n: v for n in names if (v := getattr(item, n, None)) is not None}
    return found


def _check_keys(annotation: Any, where: str) -> None:
    """Refuse dictionaries whose keys JSON would not limit: they may fail to parse."""
    origin, arms = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (dict, Mapping) and arms:
        key = _unwrapped(arms[0], ())[0]
        if key is not str and not _options(key):
            raise UnsupportedType(
                f"{where}: keys of type {_shown(key)} cannot be constrained; use dict[str, ...]"
            )
    for arm in arms:
        if arm is not annotation and not isinstance(arm, str):
            _check_keys(arm, where)


def _is_prose(item: Any) -> bool:
    return isinstance(item, str) or isinstance(getattr(item, "text", None), str)


@functools.lru_cache(maxsize=512)
def _cached_adapter(annotation: Any, metadata: tuple[Any, ...]) -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[(annotation, *metadata)] if metadata else annotation)


def _adapter(annotation: Any, metadata: tuple[Any, ...]) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(annotation, metadata)
    except TypeError:
        return TypeAdapter(Annotated[(annotation, *metadata)] if metadata else annotation)


def _shown(annotation: Any) -> str:
    name = getattr(annotation, "__name__", None)
    return name if name and not typing.get_args(annotation) else str(annotation)


def read_fill(name: str, info: Any, fill: Fill) -> Any:
    """Return the value of a filled slot. Raises ParseError."""
    cut = fill.finish == "length"
    return from_text(name, info.annotation, fill.text, info.metadata, cut)
