"""Values as prompts show them: text as it stands, whatever has parts as JSON with all of them.

Pictures, sounds and files are refused by name: these models read text. Knows neither fields nor
prompts.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections import deque
from collections.abc import Mapping, Set
from typing import Any

import dspy
from pydantic import BaseModel, RootModel
from pydantic_core import PydanticSerializationError, to_json

from promptflow.errors import UnsupportedType


def to_text(value: Any) -> str:
    """Return a value as a prompt shows it.

    Lists of texts are numbered from 1, one a line. A type of one's own says how it is shown by a
    method ``prompt_text``. Raises UnsupportedType for what is no text: a picture, a sound, a file.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, enum.Enum):
        return to_text(value.value)
    if _is_list(value) and value and all(map(_is_prose, value)):
        return "\n".join(f"[{number}] {to_text(item)}" for number, item in enumerate(value, 1))
    plain = _plain(value)
    if isinstance(plain, str):
        return plain
    if isinstance(plain, int | float):
        return str(plain)
    return json.dumps(plain, ensure_ascii=False)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and _names(value) is None


def _is_prose(item: Any) -> bool:
    return isinstance(item, str | dspy.Type) or _shows_itself(item)


def _shows_itself(value: Any) -> bool:
    return callable(getattr(type(value), "prompt_text", None))


def _plain(value: Any) -> Any:
    """Return a value as JSON data, with every part that it has."""
    if _shows_itself(value):
        return value.prompt_text()
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dspy.Type):
        return _of_dspy(value)
    if isinstance(value, Mapping):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, BaseModel):
        return _of_model(value)
    if (names := _names(value)) is not None:
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, list | tuple | Set | deque):
        return [_plain(item) for item in value]
    if (held := _held(value)) is not None:
        return _plain(held)
    return _scalar(value)


def _classes(value: Any) -> tuple[type, ...]:
    return type(value).__mro__[:-1]  # without object


def _held(value: Any) -> Any:
    """Return what an array, a table or an example holds: their own text leaves the middle out."""
    if isinstance(value, dspy.Example):
        return dict(value.items())
    if callable(getattr(value, "tolist", None)):  # numpy's arrays, pandas' columns
        return value.tolist()
    if hasattr(value, "columns") and callable(getattr(value, "to_dict", None)):  # pandas' tables
        return value.to_dict(orient="records")
    return None


def _names(value: Any) -> list[str] | None:
    """Return the names of a dataclass's or a named tuple's parts, None for other values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value)]
    return list(value._fields) if isinstance(value, tuple) and hasattr(value, "_fields") else None


def _key(key: Any) -> str:
    shown = _plain(key)
    return shown if isinstance(shown, str) else json.dumps(shown)


def _of_model(value: BaseModel) -> Any:
    """Return a model's fields; as its own serializers write them where it has some."""
    decorators = type(value).__pydantic_decorators__
    if decorators.model_serializers:
        return _plain(value.model_dump(mode="json"))
    dumped = value.model_dump(warnings=False)
    if isinstance(value, RootModel):
        return _plain(value.root)
    own = {name for d in decorators.field_serializers.values() for name in d.info.fields}
    return {
        name: _plain(item if name in own or "*" in own else getattr(value, name, item))
        for name, item in dumped.items()
    }


def _of_dspy(value: Any) -> Any:
    """Return the text of one of DSPy's types. Raises UnsupportedType where it is none."""
    made = value.format()
    if isinstance(made, list):
        texts = [_text_part(part) for part in made]
        if None in texts:
            raise UnsupportedType(
                f"a value of type {type(value).__name__} is no text, and the model reads text "
                "alone; give its text, or a description of it"
            )
        return "\n".join(text for text in texts if text is not None)
    return _plain(made)


def _text_part(part: Any) -> str | None:
    """Return the text of one part of a message's content, None for a picture or the like."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return None
    if part.get("type") == "text":
        return str(part.get("text", ""))
    source = part.get("source")
    if isinstance(source, Mapping) and source.get("type") == "text":
        title, data = part.get("title"), str(source.get("data", ""))
        return f"{title}\n{data}" if title else data
    return None


def _scalar(value: Any) -> Any:
    """Return a date, a number, a path or the like as its text. Raises UnsupportedType."""
    if isinstance(value, bytes | bytearray):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            raise UnsupportedType(
                f"{len(value):,} bytes that are no text, and the model reads text alone"
            ) from None
    try:
        return json.loads(to_json(value))
    except (PydanticSerializationError, ValueError):
        shown = str(value)
        if shown.startswith("<") and not any("__str__" in vars(c) for c in _classes(value)):
            raise UnsupportedType(
                f"a value of type {type(value).__name__} has no text; give it a method "
                "prompt_text or __str__, or pass its text"
            ) from None
        return shown
