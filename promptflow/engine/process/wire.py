"""Requests and completions as the JSON data that crosses the pipe to the engine's child."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from promptflow.engine.process.frames import Message
from promptflow.engine.request import Completion, Part, Request, Text, TokenLogprob
from promptflow.errors import ENGINE_ERRORS, EngineError, PromptflowError

Outcome = Completion | tuple[TokenLogprob, ...]
"""What a job came to: the completion of a request, or the scores of a text."""
_PLAIN = (str, int, float, bool, NoneType)
Reader = Callable[[Any], Any]


def submission(request: Request, stream: bool = False) -> Message:
    """Return the message that asks a worker to fill a request, and to tell deltas if asked."""
    return {"op": "submit", "job": to_wire(request), "stream": stream}


def texts(parts: Sequence[Part]) -> list[list[str | bool] | None]:
    """Return texts as JSON data. A slot is null: texts around it are tokenized apart."""
    return [[p.text, p.trusted, p.boundary] if isinstance(p, Text) else None for p in parts]


def to_wire(value: Any) -> Any:
    """Return ``value`` as JSON data; dataclasses carry their class name in ``_``."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, list | tuple):
        return [to_wire(item) for item in value]
    if isinstance(value, PromptflowError):
        return {"_": "error", "type": type(value).__name__, "message": str(value)}
    if _is_dataclass(value):
        names = _hints(value.__class__)
        return {"_": type(value).__name__, **{n: to_wire(getattr(value, n)) for n in names}}
    if isinstance(value, Mapping):
        return {key: to_wire(item) for key, item in value.items()}
    return value


def from_wire(kind: Any, data: Any) -> Any:
    """Return the ``kind`` that ``to_wire`` wrote as ``data``, by the type hints of its fields.

    Reads dataclasses, tuples, mappings, unions of dataclasses with at most one other type, None,
    plain values and errors. Raises EngineError for data of another shape, and what the class raises
    for values that it refuses.
    """
    return _reader(kind)(data)


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@functools.cache
def _reader(kind: Any) -> Reader:
    """Return what reads a ``kind``; made once, since a completion may hold thousands of them."""
    parts, origin = get_args(kind), get_origin(kind)
    if kind is PromptflowError:
        return _error
    if _is_dataclass(kind):
        return _dataclass_reader(kind)
    if origin in (Union, UnionType):
        return _union_reader(kind)
    if origin is tuple and parts[-1] is ...:
        one = _reader(parts[0])
        return lambda data: tuple([one(item) for item in _checked(data, list, kind)])
    if origin is tuple:
        return _tuple_reader(kind)
    if origin is not None:
        value = _reader(parts[1])
        return lambda data: {key: value(v) for key, v in _checked(data, dict, kind).items()}
    accepted = (float, int) if kind is float else kind
    return lambda data: data if type(data) is kind else _checked(data, accepted, kind)


def _is_dataclass(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)  # without a type guard, for which a class is an instance


def _error(data: Any) -> PromptflowError:
    """Return the error that was written; one of a class that stays on its side as EngineError."""
    if not isinstance(data, dict) or data.keys() != {"_", "type", "message"}:
        raise _misshapen(data, PromptflowError)
    return ENGINE_ERRORS.get(str(data["type"]), EngineError)(str(data["message"]))


def _tuple_reader(kind: Any) -> Reader:
    each = [_reader(part) for part in get_args(kind)]

    def read(data: Any) -> Any:
        if len(_checked(data, list, kind)) != len(each):
            raise _misshapen(data, kind)
        return tuple([read(item) for read, item in zip(each, data, strict=True)])

    return read


def _dataclass_reader(kind: Any) -> Reader:
    fields = [(name, _reader(hint)) for name, hint in _hints(kind).items()]

    def read(data: Any) -> Any:
        if _checked(data, dict, kind).get("_") != kind.__name__ or len(data) != len(fields) + 1:
            raise _misshapen(data, kind)
        try:
            return kind(*[read(data[name]) for name, read in fields])
        except KeyError as error:
            raise _misshapen(data, kind) from error

    return read


def _union_reader(kind: Any) -> Reader:
    tagged = {part.__name__: _reader(part) for part in get_args(kind) if _is_dataclass(part)}
    others = [part for part in get_args(kind) if not _is_dataclass(part)]
    rest = next((_reader(part) for part in others if part is not NoneType), None)

    def read(data: Any) -> Any:
        if data is None and NoneType in others:
            return None
        chosen = tagged.get(str(data.get("_")), rest) if isinstance(data, dict) else rest
        if chosen is None:
            raise _misshapen(data, kind)
        return chosen(data)

    return read


def _checked(data: Any, accepted: Any, kind: Any) -> Any:
    if not isinstance(data, accepted):
        raise _misshapen(data, kind)
    return data


def _misshapen(data: Any, kind: Any) -> EngineError:
    shown = f"what holds {', '.join(data)}" if isinstance(data, dict) else repr(data)[:200]
    return EngineError(
        f"a message of another version of promptflow: {shown} is no "
        f"{getattr(kind, '__name__', kind)}. Start the program again after an upgrade"
    )
