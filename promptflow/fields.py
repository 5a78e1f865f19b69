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
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import to_json

from promptflow import schema as schemas
from promptflow.engine.request import Choice, Constraint, Fill, Json, Regex, Substring
from promptflow.errors import ParseError, UnknownField, UnsupportedType
from promptflow.signatures import Quote, limits_of

__all__ = ["Quote", "Shape", "TypedField", "to_text"]

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


@dataclass(frozen=True, slots=True)
class TypedField:
    """A field and its type: how a value of it is constrained, shown and read back."""

    name: str
    annotation: Any
    metadata: tuple[Any, ...] = ()

    @classmethod
    def of(cls, name: str, info: Any) -> TypedField:
        """Return the field that a pydantic ``FieldInfo`` describes."""
        return cls(name, *_unwrapped(info.annotation, info.metadata))

    @property
    def shape(self) -> Shape:
        """Return how it is written. Raises UnsupportedType naming the field and its type."""
        try:
            return _shape_cached(self)
        except TypeError:  # metadata that cannot be hashed
            return _shape(self)

    def constraint(self, inputs: Mapping[str, Any]) -> Constraint | None:
        """Return the constraint of an output; None where any text will do.

        ``inputs`` are the values that a Quote quotes from. Raises UnsupportedType or UnknownField.
        """
        shape = self.shape
        if not shape.quotes:
            return shape.constraint
        if shape.quotes not in inputs:
            raise UnknownField(
                f"output {self.name!r} quotes {shape.quotes!r}, which is no input field"
            )
        source = inputs[shape.quotes]
        texts = source if isinstance(source, list | tuple) else [source]
        return Substring(tuple(to_text(text) for text in texts))

    def text(self, value: Any) -> str:
        """Return an output value as the model would write it, for demos; ``read`` reads it back."""
        if isinstance(self.shape.constraint, Json) and not isinstance(value, str | int | float):
            return json.dumps(json.loads(to_json(value, fallback=str)), ensure_ascii=False)
        return to_text(value)

    def read(self, fill: Fill) -> Any:
        """Return the value of a filled slot. Raises ParseError."""
        return self.parse(fill.text, cut=fill.finish == "length")

    def parse(self, text: str, cut: bool = False) -> Any:
        """Return the value that ``text`` stands for; ``cut`` where it ended at its token limit.

        Raises ParseError.
        """
        shape = self.shape
        if isinstance(shape.constraint, Choice):
            return _option(self, text.strip(), shape)
        if self.annotation is str and not isinstance(shape.constraint, Json):
            return text.strip() if shape.constraint is None else text
        try:
            return _read(self, text.strip(), shape, cut)
        except (ValidationError, ValueError) as error:
            fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            why = "ran out of tokens; raise max_tokens" if cut else fault
            raise ParseError(
                f"output {self.name!r}: {text[:80]!r} is no {_shown(self.annotation)}: {why}"
            ) from error


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


def _read(field: TypedField, text: str, shape: Shape, cut: bool) -> Any:
    adapter = _adapter(field)
    if not isinstance(shape.constraint, Json):
        return adapter.validate_python(text)
    value = schemas.closed(text) if cut else json.loads(text)
    return adapter.validate_json(json.dumps(value))


def _option(field: TypedField, text: str, shape: Shape) -> Any:
    options = _options(field.annotation)
    if text in options:
        return options[text]
    # Text that a demo or another model wrote: forgive the case.
    folded = {option.casefold(): value for option, value in options.items()}
    if text.casefold() not in folded:
        raise ParseError(f"output {field.name!r}: {text!r} is none of {', '.join(shape.options)}")
    return folded[text.casefold()]


@functools.lru_cache(maxsize=512)
def _shape_cached(field: TypedField) -> Shape:
    return _shape(field)


def _shape(field: TypedField) -> Shape:
    annotation = field.annotation
    for item in field.metadata:
        if isinstance(item, Quote):
            return Shape(quotes=item.field, kind="quote")
    if options := _options(annotation):
        longest = max(len(option.encode()) for option in options)
        return Shape(Choice(tuple(options)), longest + 8, tuple(options), kind="choice")
    limits = limits_of(field.metadata)
    if annotation is str:
        return _text_shape(field, limits)
    if not limits and isinstance(annotation, type) and annotation in _FORMATS:
        form = _FORMATS[annotation]
        return Shape(Regex(schemas.FORMATS[form]), 48, kind=form)
    return _json_shape(field, limits)


def _text_shape(field: TypedField, limits: Mapping[str, Any]) -> Shape:
    pattern = limits.get("pattern")
    low, high = limits.get("min_length", 0), limits.get("max_length")
    if pattern is not None:
        if low or high is not None:
            return _json_shape(replace(field, metadata=()), limits)
        text = pattern if isinstance(pattern, str) else pattern.pattern
        if "(?" in text.replace("(?:", "") or re.search(r"\\[1-9bB]", text):
            raise UnsupportedType(
                f"output {field.name!r}: the pattern {text!r} looks around or back; "
                "write it without (?=...), (?!...), (?<...), \\b and \\1"
            )
        return Shape(Regex(text.removeprefix("^").removesuffix("$")))
    if high is None and not low:
        return Shape()
    char = r"[^\n]" if high is not None and high <= LINE else r"(?s:.)"
    upper = "" if high is None else high
    return Shape(Regex(f"{char}{{{max(low, 1)},{upper}}}"), None if high is None else 4 * high + 8)


def _json_shape(field: TypedField, limits: Mapping[str, Any]) -> Shape:
    where = f"output {field.name!r} of type {_shown(field.annotation)}"
    _check_keys(field.annotation, where)
    try:
        whole = _adapter(field).json_schema()
    except (PydanticUserError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UnsupportedType(
            f"{where} cannot be constrained ({reason}); use str, int, float, bool, Literal, "
            "an Enum, a date, a list or dict of these, or a pydantic model"
        ) from error
    if field.annotation is str:
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


def _adapter(field: TypedField) -> TypeAdapter[Any]:
    annotation, metadata = field.annotation, field.metadata
    try:
        return _cached_adapter(annotation, metadata)
    except TypeError:
        return TypeAdapter(Annotated[(annotation, *metadata)] if metadata else annotation)


def _shown(annotation: Any) -> str:
    name = getattr(annotation, "__name__", None)
    return name if name and not typing.get_args(annotation) else str(annotation)
