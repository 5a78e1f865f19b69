"""One typed field to text and back: how each output type is constrained, written and read.

A value that was written under its constraint can always be read, unless a validator of the type
refuses it. Knows nothing of prompts.
"""

from __future__ import annotations

import enum
import functools
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, Union, cast

import dspy
from pydantic import Json, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError, to_json

from promptflow.engine.request import (
    Alone,
    Choice,
    Constraint,
    Dependent,
    Fill,
    Lark,
    Regex,
    Substring,
)
from promptflow.errors import (
    ConstraintError,
    EngineError,
    ParseError,
    UnknownField,
    UnsupportedType,
    ValueRefused,
)
from promptflow.grammar import grammar_of, longest, sketch, terminal, text_grammar
from promptflow.notation import Quote
from promptflow.plain import to_text
from promptflow.schema import Schema, schema_of, text_of

__all__ = ["Confined", "DependsOn", "Ended", "Quote", "Shape", "TypedField", "call_of", "to_text"]

_JSON: Any = Json  # a class that passes for Annotated where types are checked
LINE = 200  # up to so many characters a limited text stays on one line
SMALL = 128
WALKS = 12  # texts of a constraint that are read back before it is used
_BROKEN = (
    PydanticUserError,
    SchemaError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    NameError,
    ImportError,
    RecursionError,
)
"""What pydantic raises for types that it cannot read or describe."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How an output is written: its constraint, the tokens it can take, and what a prompt may say.

    ``tokens`` is None where the call's ``max_tokens`` decides. ``options`` are the texts of a
    choice, ``low`` and ``high`` the bounds of a number, ``sketch`` a picture of a JSON value,
    ``kind`` what else it is: text, quote, code, integer, number, date, ... ``written`` tells how it
    is read: ``free`` and ``text`` as they stand, ``choice``, ``number`` and ``json``.
    ``in_json`` is the constraint of a limited text as a JSON string.
    """

    constraint: Constraint | None = None
    tokens: int | None = None
    options: tuple[str, ...] = ()
    low: float | str | None = None
    high: float | str | None = None
    sketch: str = ""
    quotes: str = ""
    kind: str = "text"
    written: str = "free"
    in_json: Constraint | None = None

    @property
    def is_small(self) -> bool:
        """Return whether it takes so few tokens that nobody's limit is asked."""
        return self.tokens is not None and self.tokens <= SMALL


@dataclass(frozen=True, slots=True)
class Confined:
    """The mark of a text output that is one of ``options``, which the prompt does not show."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DependsOn:
    """The mark of an output that is JSON of the type which the text of an earlier one chooses.

    ``kinds`` pairs each text that the output ``field`` may hold with a type.
    """

    field: str
    kinds: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The mark of a JSON output that calls something: where it is cut, it is ended."""


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
            return _shape_cached(self.annotation, self.metadata)
        except UnsupportedType as error:
            where = f"output {self.name!r} of type {_shown(self.annotation)}"
            raise UnsupportedType(f"{where}: {error}") from error

    @property
    def options(self) -> Mapping[str, Any]:
        """Return the values of a choice by their text; empty where the type is none."""
        return _options(self.annotation)

    def constraint(self, inputs: Mapping[str, Any]) -> Constraint | None:
        """Return the constraint of an output; None where any text will do.

        ``inputs`` are the values that a Quote quotes from. Raises UnsupportedType or UnknownField.
        """
        shape = self.shape
        for mark in self.metadata:
            if isinstance(mark, DependsOn):
                return self._depending(mark, inputs)
        if not shape.quotes:
            return shape.constraint
        if shape.quotes not in inputs:
            raise UnknownField(
                f"output {self.name!r} quotes {shape.quotes!r}, which is no input field"
            )
        source = inputs[shape.quotes]
        texts = source if isinstance(source, list | tuple) else [source]
        return Substring(tuple(to_text(text) for text in texts))

    def _depending(self, mark: DependsOn, inputs: Mapping[str, Any]) -> Constraint:
        found: list[tuple[str, Alone]] = []
        for text, kind in mark.kinds:
            constraint = TypedField(f"{self.name} of {text}", kind).shape.constraint
            assert constraint is not None, "JSON is always held"
            found.append((text, cast(Alone, constraint)))
        made = Dependent(mark.field, tuple(found))
        return made.on(to_text(inputs[mark.field])) if mark.field in inputs else made

    def text(self, value: Any) -> str:
        """Return an output value as the model would write it, for demos; ``read`` reads it back."""
        shape = self.shape
        if shape.written == "json":
            return self._as_json(value)
        if shape.written == "choice" and (text := _option_text(value)) in shape.options:
            return text
        if shape.written in ("text", "number") and not isinstance(value, str):
            shown = json.loads(to_json(value, fallback=str))
            return shown if isinstance(shown, str) else to_text(shown)
        return to_text(value)

    def _as_json(self, value: Any) -> str:
        """Return a value as JSON that reads back: as it stands, by its aliases, or by its names."""
        texts = [value] if isinstance(value, str) else []
        for by_alias in (True, False):
            plain = json.loads(to_json(value, fallback=str, by_alias=by_alias))
            texts.append(json.dumps(plain, ensure_ascii=False))
        for text in texts:
            try:
                self.parse(text)
            except ParseError:
                continue
            return text
        return texts[-1]

    def read(self, fill: Fill) -> Any:
        """Return the value of a filled slot.

        Raises ParseError where the fill was cut at its token limit or does not fit the type; it is
        a ValueRefused where a validator of the type refuses the value.
        """
        shape = self.shape
        if any(isinstance(mark, Ended) for mark in self.metadata) and shape.constraint:
            return self.parse(json.dumps(call_of(fill, shape.constraint), ensure_ascii=False))
        if fill.finish == "length" and (shape.written != "free" or shape.quotes):
            self._fail(fill.text, "it was cut at its token limit; raise max_tokens")
        return self.parse(fill.text)

    def parse(self, text: str) -> Any:
        """Return the value that a whole ``text`` stands for. Raises ParseError."""
        shape = self.shape
        if shape.quotes or (
            shape.written == "free" and (self.annotation, self.metadata) == (str, ())
        ):
            return text.strip()
        adapter = _adapter(self.annotation, self.metadata)
        whole = text if shape.written == "text" else text.strip()
        try:
            if shape.written == "choice":
                value = self._option(text)
                return adapter.validate_python(value) if self.metadata else value
            return _read(adapter, _unfenced(whole) if shape.kind == "code" else whole, shape)
        except ValidationError as error:
            why = "; ".join(_fault(detail) for detail in error.errors()[:3])
            checked = _is_whole(whole, shape) and _has_validators(adapter.core_schema)
            raise (ValueRefused if checked else ParseError)(self._no(text, why)) from error
        except (ValueError, RecursionError) as error:
            raise ParseError(self._no(text, str(error))) from error

    def _fail(self, text: str, why: str) -> NoReturn:
        raise ParseError(self._no(text, why))

    def _no(self, text: str, why: str) -> str:
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        return f"output {self.name!r}: {shown!r} is no {_shown(self.annotation)}: {why}"

    def _option(self, text: str) -> Any:
        options = _options(self.annotation)
        for written in (text, text.strip()):
            if written in options:
                return options[written]
        # Text that a demo or another model wrote: forgive the case.
        near = [option for option in options if option.casefold() == text.strip().casefold()]
        if len(near) != 1:
            raise ParseError(
                f"output {self.name!r}: {text.strip()!r} is none of {', '.join(options)}"
            )
        return options[near[0]]


def _read(adapter: TypeAdapter[Any], text: str, shape: Shape) -> Any:
    if shape.written == "json":
        written = _check_json(text)
        value = adapter.validate_json(text)
        if isinstance(value, dict) and isinstance(written, dict) and len(value) < len(written):
            raise ValueError("a key stands there twice, in two spellings")
        return value
    if shape.written == "number":
        _number(text)
        try:
            return adapter.validate_json(text)
        except ValidationError:
            return adapter.validate_python(text)  # as people write: 007
    return adapter.validate_json(json.dumps(text))


def _check_json(text: str) -> Any:
    """Return a JSON value; raise ValueError for what is none, or what pydantic reads otherwise."""
    return json.loads(
        text, object_pairs_hook=_distinct, parse_float=_number, parse_constant=_number
    )


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise ValueError(f"the key {key!r} stands there twice, with two values")
        found[key] = value
    return found


def call_of(fill: Fill, constraint: Constraint) -> Any:
    """Return the JSON value of a call; one that was cut is ended as ``constraint`` allows.

    Of a key that stands twice the last value counts, as in Python. Raises ParseError for what
    cannot be ended.
    """
    from promptflow.engine.model.constraint import ended

    text = fill.text
    try:
        if fill.finish == "length":
            text = ended(constraint, text)
        return json.loads(text)
    except (EngineError, ValueError, RecursionError) as error:
        why = "it was cut at its token limit; raise max_tokens"
        why = why if fill.finish == "length" else str(error)
        raise ParseError(f"{text[-80:]!r} is no call: {why}") from error


def _number(text: str) -> float:
    """Return a float; raise ValueError where it is beyond what a float can hold."""
    try:
        number = float(text)
    except ValueError:
        return 0.0  # the type says what is wrong
    mantissa = re.split("[eE]", text)[0]
    if math.isinf(number) or (number == 0 and re.search("[1-9]", mantissa)):
        raise ValueError("a float cannot hold it")
    return number


def _unfenced(text: str) -> str:
    """Return code without the fence around it."""
    return re.sub(r"\n?```\s*$", "", re.sub(r"^```[^\n]*\n", "", text))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _is_whole(text: str, shape: Shape) -> bool:
    return shape.written != "json" or _is_json(text)


def _fault(detail: Any) -> str:
    where = ".".join(map(str, detail["loc"]))
    return f"{where}: {detail['msg']}" if where else str(detail["msg"])


def _shape_cached(annotation: Any, metadata: tuple[Any, ...]) -> Shape:
    try:
        return _shape_kept(annotation, metadata)
    except TypeError:  # metadata that cannot be hashed
        return _shape(annotation, metadata)


@functools.lru_cache(maxsize=512)
def _shape_kept(annotation: Any, metadata: tuple[Any, ...]) -> Shape:
    return _shape(annotation, metadata)


def _shape(annotation: Any, metadata: tuple[Any, ...]) -> Shape:
    for item in metadata:
        if isinstance(item, Quote):
            return Shape(quotes=item.field, kind="quote")
        if isinstance(item, DependsOn):
            return Shape(sketch="{name: value, ...}", kind="json", written="json")
        if isinstance(item, Confined):
            return Shape(Choice(item.options), _room(item.options), written="text")
    if options := _options(annotation):
        return _choice(options)
    if isinstance(annotation, type) and issubclass(annotation, dspy.Image | dspy.Audio | dspy.File):
        raise UnsupportedType("it is no text, and the model writes text alone")
    if isinstance(annotation, type) and issubclass(annotation, dspy.Code | dspy.Reasoning):
        return Shape(kind="code" if issubclass(annotation, dspy.Code) else "text")
    if annotation is str and not metadata:
        return Shape()
    return _constrained(_built(annotation, metadata))


def _constrained(adapter: TypeAdapter[Any]) -> Shape:
    """Return the shape of a type that its schema tells, by its aliases or by its names."""
    first: tuple[Shape, str] | None = None
    for by_alias in (True, False):
        try:
            shape = _written(_described(adapter, by_alias))
        except RecursionError as error:
            raise UnsupportedType("it has too many parts; split it over several fields") from error
        if (fault := _fault_in(shape, adapter)) is None:
            return shape
        first = first or (shape, fault)
    assert first is not None
    if _has_validators(adapter.core_schema):
        return first[0]
    raise UnsupportedType(first[1])


def _choice(options: Mapping[str, Any]) -> Shape:
    for option in options:
        if not option.strip():
            raise UnsupportedType(f"its option {option!r} is empty; give it a name")
    texts = tuple(options)
    return Shape(Choice(texts), _room(texts), texts, kind="choice", written="choice")


def _room(options: Sequence[str]) -> int:
    return max(len(option.encode()) for option in options) + 8


def _text_shape(schema: Schema) -> Shape:
    """Return text with a length or a pattern, as it stands."""
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    patterns = list(schema.get("x-patterns", ()))
    if high == 0:
        raise UnsupportedType("its text is always empty; leave it out")
    if low or high is not None:
        char = r"[^\n]" if high is not None and high <= LINE and not patterns else r"(?s:.)"
        patterns.append(f"{char}{{{max(low, 1)},{'' if high is None else high}}}")
    if not patterns:
        return Shape()
    in_json = Lark(text_grammar(schema))
    return Shape(_matching(patterns), high and 4 * high + 8, written="text", in_json=in_json)


def _matching(patterns: Sequence[str]) -> Constraint:
    if len(patterns) == 1:
        return Regex(patterns[0])
    return Lark(f"start: T\nT: {terminal(patterns)}")


def _written(schema: Schema) -> Shape:
    """Return the shape of a schema's values: as they stand where that is clear, else as JSON."""
    if schema.get("type") == "string" and not {"x-written", "enum", "const"} & set(schema):
        schema = text_of(schema)
        if "x-written" not in schema:
            return _text_shape(schema)
    definitions = schema.get("$defs", {})
    most = longest(schema, definitions)
    kind = schema.get("x-kind", "json")
    given = {"low": schema.get("x-low"), "high": schema.get("x-high"), "kind": kind}
    if (patterns := schema.get("x-patterns")) and "x-written" in schema:
        tokens = most + 6 if most is not None and most < 10**5 else None
        written = schema["x-written"]
        in_json = Lark(text_grammar(schema)) if written == "text" else None
        return Shape(_matching(patterns), tokens, written=written, in_json=in_json, **given)
    constraint = Lark(grammar_of(schema))
    if "x-json" in schema:
        return Shape(constraint, 90, written="number", **given)
    return Shape(constraint, most, sketch=sketch(schema, definitions), kind="json", written="json")


def _fault_in(shape: Shape, adapter: TypeAdapter[Any]) -> str | None:
    """Return why a text of the constraint is none of the type, from some random ones.

    Raises UnsupportedType where the constraint cannot be compiled.
    """
    from promptflow.engine.model.constraint import Walks, WalkTooLong

    if shape.constraint is None:
        for text in ("a", "one two three", "1, x: [y]\nz"):
            try:
                _read(adapter, text, shape)
            except ValidationError as error:
                return f"it refuses {text!r}: {_fault(error.errors()[0])}"
        return None
    walks = Walks()
    for _ in range(WALKS):
        try:
            text = walks.text(shape.constraint, 120)
        except ConstraintError as error:
            fault = str(error).removeprefix("slot 'walk': ").rpartition("llguidance says: ")[2]
            raise UnsupportedType(f"its constraint cannot be compiled: {fault}") from error
        except WalkTooLong:
            return None
        except EngineError as error:
            raise UnsupportedType(f"no value of it was found: {error}") from error
        try:
            _read(adapter, text, shape)
        except ValidationError as error:
            return f"it refuses {text[:80]!r}: {_fault(error.errors()[0])}"
        except ValueError:
            continue  # a key twice
    return None


def _functions(schema: Any) -> Iterator[Any]:
    """Return the functions in a core schema that look at values."""
    if isinstance(schema, list | tuple):
        for item in schema:
            yield from _functions(item)
    if not isinstance(schema, dict):
        return
    if str(schema.get("type", "")).startswith("function-"):
        yield schema["function"]["function"]
    if schema.get("custom_init") or schema.get("post_init"):
        yield schema["cls"].__init__
    for name, part in schema.items():
        if name not in ("metadata", "serialization"):
            yield from _functions(part)


def _has_validators(schema: Any) -> bool:
    """Return whether a core schema holds a user's own code, which may refuse a value."""
    functions = (getattr(function, "func", function) for function in _functions(schema))
    modules = (getattr(function, "__module__", None) or "" for function in functions)
    return not all(module.startswith("pydantic.") for module in modules)


def _options(annotation: Any) -> dict[str, Any]:
    """Return the values of a choice by their text; empty where the type is none."""
    found: dict[str, Any] = {}
    for text, value in _listed(annotation):
        if text in found and found[text] is not value:
            raise UnsupportedType(
                f"its options {found[text]!r} and {value!r} are both written {text!r}; "
                "leave one out"
            )
        found[text] = value
    return found


def _listed(annotation: Any) -> list[tuple[str, Any]]:
    annotation = _unwrapped(annotation, ())[0]
    if type(annotation).__name__ == "TypeAliasType" and not annotation.__type_params__:
        value = annotation.__value__
        return _listed(value) if typing.get_origin(value) is Literal else []
    origin, arms = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is bool:
        return [("yes", True), ("no", False)]
    if annotation is type(None):
        return [("none", None)]
    if origin is Literal:
        return [(_option_text(value), value) for value in arms]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        if not list(annotation):
            raise UnsupportedType("it has no options")
        return [(_option_text(member), member) for member in annotation]
    if origin in (Union, types.UnionType):
        found = [_listed(arm) for arm in arms]
        return [option for arm in found for option in arm] if all(found) else []
    return []


def _option_text(value: Any) -> str:
    inner = value.value if isinstance(value, enum.Enum) else value
    if isinstance(inner, str | int | float) or inner is None:
        return to_text(inner)
    if isinstance(inner, bytes):
        return inner.decode(errors="replace")
    return value.name if isinstance(value, enum.Enum) else to_text(inner)


def _unwrapped(annotation: Any, metadata: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Return a type without the names that stand for it, and all of its metadata."""
    if typing.get_origin(annotation) is Annotated:
        inner, *more = typing.get_args(annotation)
        return _unwrapped(inner, (*more, *metadata))
    if isinstance(annotation, typing.NewType):
        return _unwrapped(annotation.__supertype__, metadata)
    if annotation is None:
        return type(None), tuple(metadata)
    if annotation is _JSON:
        return Any, tuple(metadata)
    # The text of a whole field that holds JSON text is that JSON.
    return annotation, tuple(item for item in metadata if not isinstance(item, _JSON))


@functools.lru_cache(maxsize=512)
def _cached_adapter(annotation: Any, metadata: tuple[Any, ...]) -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[(annotation, *metadata)] if metadata else annotation)


def _adapter(annotation: Any, metadata: tuple[Any, ...]) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(annotation, metadata)
    except TypeError:
        return TypeAdapter(Annotated[(annotation, *metadata)] if metadata else annotation)


def _built(annotation: Any, metadata: tuple[Any, ...]) -> TypeAdapter[Any]:
    try:
        adapter = _adapter(annotation, metadata)
    except _BROKEN as error:
        raise UnsupportedType(f"pydantic cannot read it: {_in_short(error)}") from error
    names = {getattr(function, "__name__", "") for function in _functions(adapter.core_schema)}
    if "import_string" in names:
        raise UnsupportedType("reading it would import the code that the model names; use str")
    if names & {"validate_file", "validate_directory", "validate_new", "validate_socket"}:
        raise UnsupportedType("it asks the file system, which the model cannot see; use Path")
    return adapter


def _described(adapter: TypeAdapter[Any], by_alias: bool) -> Schema:
    try:
        return schema_of(adapter, by_alias)
    except _BROKEN as error:
        raise UnsupportedType(
            f"it cannot be constrained: {_in_short(error)}; use str, int, float, bool, Literal, "
            "an Enum, a date, a list or dict of these, or a pydantic model"
        ) from error


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split("For further information")[0].split())[:300]


def _shown(annotation: Any) -> str:
    name = getattr(annotation, "__name__", None)
    return name if name and not typing.get_args(annotation) else str(annotation)
