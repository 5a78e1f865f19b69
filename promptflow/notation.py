"""The notation of signatures: fields and their types as text, and types back to text.

::

    signature  = fields "->" fields            passage, question -> answer, page: int(ge=1)
    fields     = field {"," field}
    field      = name [":" type]
    type       = arm {"|" arm}
    arm        = (name ["[" inside "]"] | "(" type ")") ["(" limit {"," limit} ")"]
    limit      = name "=" literal

Names resolve to a fixed vocabulary and to the types that a caller passes, never to variables. No
Python is parsed or run, so that text of strangers can neither hang the reader nor exhaust it.
"""

from __future__ import annotations

import ast
import datetime
import decimal
import difflib
import re
import reprlib
import types
import typing
import unicodedata
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, Optional, Union

from pydantic import Field, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError, to_jsonable_python

from promptflow.errors import SignatureError

LENGTH, DEPTH, ARMS, FIELDS = 50_000, 20, 64, 200
"""What is read at most: characters of a text, brackets in brackets, arms of a type, fields."""

LIMITS = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern")


@dataclass(frozen=True, slots=True)
class Quote:
    """The marker of an output that is a verbatim span of an input: ``Quote["passages"]``."""

    field: str

    def __class_getitem__(cls, name: str) -> Any:
        """Return ``str`` marked as a quotation from the input field ``name``."""
        return Annotated[str, cls(name)]


@dataclass(frozen=True, slots=True)
class Data:
    """The marker of an input that holds what others wrote: ``Data[list[str]]``.

    Prompts show it between marks that it cannot forge (see ``marks``). ``space`` is written in the
    place of every space of it, so that its words look unlike the program's: ``Data[str, '^']``.
    """

    space: str = ""

    def __class_getitem__(cls, held: Any) -> Any:
        """Return a type marked as data."""
        kind, space = held if isinstance(held, tuple) else (held, "")
        return Annotated[kind, cls(space)]


_TYPES: dict[str, Any] = {
    "Any": Any,
    "Data": Data,
    "Decimal": decimal.Decimal,
    "Dict": dict,
    "List": list,
    "Literal": Literal,
    "None": types.NoneType,
    "Optional": Optional,
    "Quote": Quote,
    "Set": set,
    "Tuple": tuple,
    "UUID": uuid.UUID,
    "Union": Union,
    "bool": bool,
    "date": datetime.date,
    "datetime": datetime.datetime,
    "dict": dict,
    "float": float,
    "frozenset": frozenset,
    "int": int,
    "list": list,
    "object": object,
    "set": set,
    "str": str,
    "time": datetime.time,
    "timedelta": datetime.timedelta,
    "tuple": tuple,
}
# How each is used, for those that take or need something in brackets.
_USES: dict[Any, str] = {
    Literal: "Literal['a', 'b']",
    Optional: "Optional[int]",
    Union: "Union[int, str]",
    Quote: "Quote[field]",
    Data: "Data[list[str]] or Data[list[str], '^']",
    dict: "dict[str, int]",
    frozenset: "frozenset[str]",
    list: "list[str]",
    set: "set[str]",
    tuple: "tuple[int, str] or tuple[int, ...]",
}
_BARE = {dict, frozenset, list, set, tuple}
_NUMBERS = {int, float, decimal.Decimal}
_MOMENTS = {datetime.date, datetime.datetime, datetime.time, datetime.timedelta}
_TAKES: dict[str, set[Any]] = {
    **{name: _NUMBERS | _MOMENTS for name in ("ge", "gt", "le", "lt")},
    "multiple_of": _NUMBERS,
    **{name: {str, *_BARE} for name in ("min_length", "max_length")},
    "pattern": {str},
}


def read_signature(
    text: str, named: Mapping[str, Any]
) -> tuple[dict[str, tuple[Any, str]], dict[str, tuple[Any, str]]]:
    """Return the inputs and outputs of ``inputs -> outputs``: type and description by name.

    ``named`` holds further types. Raises SignatureError.
    """
    reader = _Reader(text, f"the signature {brief(text)}", named)
    inputs = reader.fields("->")
    outputs = reader.fields("")
    return inputs, outputs


def read_type(text: str, named: Mapping[str, Any], where: str) -> tuple[Any, str]:
    """Return the type and the description of ``type: description``; without a type it is text.

    ``named`` holds further types; ``where`` begins an error. Raises SignatureError.
    """
    reader = _Reader(text, where, named)
    annotation = str if reader.next in ("", ":") else reader.type()
    if reader.next == ":":
        return annotation, text[reader.end :].strip()
    if reader.next:
        raise reader.fault("the end, or ':' and a description")
    return annotation, ""


def field_name(text: str) -> str:
    """Return a field's name as Python reads it (NFKC). Raises SignatureError if it is none."""
    name = unicodedata.normalize("NFKC", text)
    if not name.isidentifier():
        raise SignatureError(f"{brief(text)} is no field name; use letters, digits and _")
    if name.startswith("_"):
        raise SignatureError(
            f"the field name {brief(text)} begins with '_', which pydantic keeps for itself; "
            f"write {name.lstrip('_') or 'answer'!r}"
        )
    if (owner := _RESERVED.get(name)) is not None:
        raise SignatureError(f"the field name {name!r} is {owner} own; write {name + '_text'!r}")
    return name


_RESERVED = {
    **dict.fromkeys(
        ("fields", "input_fields", "instructions", "output_fields", "signature"), "DSPy's"
    ),
    **dict.fromkeys(
        (
            *("model_config", "model_dump", "model_dump_json"),
            *("model_validate", "model_validate_json", "model_validate_strings"),
        ),
        "pydantic's",
    ),
}


def brief(value: Any) -> str:
    """Return the beginning of what somebody gave, for a message."""
    return _BRIEF.repr(value)


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 100

_TOKENS = {
    "text": r"""[bBrRuU]{0,2}(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")""",
    "name": r"[^\W\d]\w*(?:\.[^\W\d]\w*)*",
    "number": r"(?:\d|\.\d)(?:[eE][+-]\d|[\w.])*",
    "mark": r"->|\.\.\.|\S",
}
_TOKEN = re.compile("|".join(f"(?P<{kind}>{form})" for kind, form in _TOKENS.items()))
_SPACE = re.compile(r"\s*")


class _Reader:
    """Reads one text from left to right; ``next`` is the token to come, "" at the end."""

    def __init__(self, text: str, where: str, named: Mapping[str, Any]) -> None:
        self.text, self.where, self.named = text, where, named
        self.start = self.end = self.depth = 0
        self.next = self.kind = ""
        if len(text) > LENGTH:
            raise SignatureError(
                f"{where}: {len(text):,} characters; at most {LENGTH:,} are read: "
                "use a dspy.Signature class, or shorten it"
            )
        self.take()

    def take(self) -> str:
        """Return the token and go on to the one after it."""
        taken = self.next
        space = _SPACE.match(self.text, self.end)
        self.start = space.end() if space else self.end
        found = _TOKEN.match(self.text, self.start)
        self.next, self.kind = (found[0], found.lastgroup or "") if found else ("", "")
        self.end = found.end() if found else self.start
        return taken

    def fault(self, expected: str) -> SignatureError:
        """Return the error of a token that should be something else."""
        found = brief(self.next) if self.next else "the end"
        before = self.text[max(0, self.start - 40) : self.start].strip()
        after = f" after {before!r}" if before else ""
        return SignatureError(f"{self.where}: found {found}{after}; expected {expected}")

    def expect(self, mark: str, expected: str = "") -> None:
        """Take ``mark``, or raise."""
        if self.next != mark:
            raise self.fault(expected or repr(mark))
        self.take()

    def several(self, close: str, one: Callable[[], Any], most: int) -> list[Any]:
        """Take what stands between commas, and the closing bracket."""
        found: list[Any] = []
        while self.next != close:
            if len(found) == most:
                raise SignatureError(f"{self.where}: more than {most} in one bracket")
            found.append(one())
            if self.next != close:
                self.expect(",", f"',' or '{close}'")
        self.take()
        return found

    def fields(self, close: str) -> dict[str, tuple[Any, str]]:
        """Take the fields of one side, and the arrow where one is to follow."""
        side, found = "outputs" if not close else "inputs", dict[str, tuple[Any, str]]()
        while self.next != close:
            if self.kind != "name" or "." in self.next:
                raise self.fault("a field's name, as in 'question: str -> answer: int'")
            name = self._named(field_name)
            if name in found:
                raise SignatureError(f"{self.where}: the field {name!r} stands there twice")
            annotation: Any = str
            if self.next == ":":
                self.take()
                annotation = self.type()
            found[name] = (annotation, "")
            if len(found) > FIELDS:
                raise SignatureError(f"{self.where}: more than {FIELDS} {side}")
            if self.next != close:
                self.expect(",", _after_field(close, self.next))
        if not found:
            raise SignatureError(
                f"{self.where} has no field in its {side}; write 'question -> answer'"
            )
        self.take()
        return found

    def _named(self, made: Callable[[str], str]) -> str:
        try:
            return made(self.take())
        except SignatureError as error:
            raise SignatureError(f"{self.where}: {error}") from None

    def type(self) -> Any:
        """Take a type."""
        start, self.depth = self.start, self.depth + 1
        if self.depth > DEPTH:
            raise SignatureError(f"{self.where}: brackets more than {DEPTH} deep")
        arms = [self.arm()]
        while self.next == "|":
            self.take()
            arms.append(self.arm())
            if len(arms) > ARMS:
                raise SignatureError(f"{self.where}: more than {ARMS} types joined by '|'")
        self.depth -= 1
        if len(arms) == 1 and self.depth == 0:
            return arms[0]
        for arm in arms:
            if marker := _marker(arm):
                side = "output" if marker is Quote else "input"
                name = marker.__name__
                raise self.wrong(start, f"{name} is the whole type of an {side}, not part of one")
        return reduce(or_, arms)

    def arm(self) -> Any:
        """Take a name, what it holds in brackets, and its limits."""
        start = self.start
        if self.next == "(":
            self.take()
            made = self.type()
            self.expect(")")
        elif self.kind == "name":
            made = self.name()
        elif self.kind == "text":
            raise self.fault("a type without quotes, such as str; options are Literal['a', 'b']")
        else:
            raise self.fault("a type, such as str, int or list[str]")
        if self.next == "(":
            made = self.limited(made, start)
        if self.next in ("[", "("):
            raise self.fault("the end of the type: limits stand once, after the brackets")
        return made

    def name(self) -> Any:
        """Take a type's name and what it holds in brackets."""
        start, shown = self.start, self.take()
        if shown in self.named:
            outer = types.NoneType if self.named[shown] is None else self.named[shown]
            if not _is_type(outer):
                raise SignatureError(
                    f"types={{{shown!r}: ...}} holds {brief(outer)}, which is no type; pass a class"
                )
        elif shown in _TYPES:
            outer = _TYPES[shown]
        else:
            raise SignatureError(f"{self.where}: {_unknown_type(shown, self.named)}")
        if self.next == "[":
            self.take()
            outer = self.filled(outer, start)
        elif outer in _USES and outer not in _BARE:
            raise self.wrong(start, f"it needs brackets: {_USES[outer]}")
        return outer

    def filled(self, outer: Any, start: int) -> Any:
        """Take what stands in brackets, and return the type that holds it."""
        if outer is Literal:
            options = self.several("]", self.literal, LENGTH)
            if not options:
                raise self.wrong(start, f"no options; write {_USES[outer]}")
            if len({(type(option), option) for option in options}) < len(options):
                raise self.wrong(start, "an option stands there twice; write each once")
            return Literal[tuple(options)]
        if outer is Quote:
            name = [self._named(field_name)] if self.kind == "name" else self.quoted()
            self.expect("]", "']': one input field is quoted, as in Quote[passages]")
            return Annotated[str, Quote(name[0])]
        if outer is Data:
            return self.data(start)
        if outer not in _USES and not hasattr(outer, "__class_getitem__"):
            raise self.wrong(start, "it holds nothing in brackets")
        held = self.several("]", lambda: self.dots() or self.type(), ARMS)
        if fault := _misfilled(outer, held):
            raise self.wrong(start, f"{fault}; write {_USES.get(outer, 'one type in brackets')}")
        if outer is Union:
            return reduce(or_, held)
        try:
            return outer[tuple(held) if len(held) > 1 else held[0]]
        except TypeError as error:
            raise self.wrong(start, str(error)) from error

    def data(self, start: int) -> Any:
        """Take the type of what others wrote, and what stands for its spaces."""
        held, space = self.type(), ""
        if self.next == ",":
            self.take()
            space = self.literal()
            if not isinstance(space, str) or len(space) != 1 or space.isspace():
                raise self.wrong(start, f"{brief(space)} stands for a space: give one character")
        self.expect("]", f"']', as in {_USES[Data]}")
        return Annotated[held, Data(space)]

    def dots(self) -> Any:
        """Take ``...``, if it comes."""
        return ... if self.next == "..." and self.take() else None

    def quoted(self) -> list[str]:
        """Take a field's name in quotes."""
        name = self.literal() if self.kind == "text" else None
        if not isinstance(name, str):
            raise self.fault("an input field's name, as in Quote[passages]")
        return [field_name(name)]

    def literal(self) -> Any:
        """Take text, a number, True, False, None or a number with its sign."""
        sign = self.take() if self.next in ("-", "+") else ""
        if self.kind == "name" and self.next in _CONSTANTS and not sign:
            return _CONSTANTS[self.take()]
        if self.next == "inf":
            return float(sign + self.take())
        if self.kind == "number" or (self.kind == "text" and not sign):
            shown = self.next
            try:
                with warnings.catch_warnings():  # of '\d': the backslash stays, as meant
                    warnings.simplefilter("ignore")
                    value = ast.literal_eval(shown)
            except (SyntaxError, ValueError):
                value = None
            if isinstance(value, str | bytes | int | float):
                self.take()
                return -value if sign == "-" and isinstance(value, int | float) else value
        raise self.fault("text in quotes, a number, True, False or None")

    def limited(self, inner: Any, start: int) -> Any:
        """Take limits, and return the type within them."""
        limits: dict[str, Any] = {}
        self.take()
        while self.next != ")":
            if self.kind != "name" or self.next not in LIMITS:
                shown = f"{self.next!r} is no limit; " if self.kind == "name" else ""
                close = difflib.get_close_matches(self.next, LIMITS, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                raise self.fault(f"a limit: {shown}the limits are {', '.join(LIMITS)}{hint}")
            name = self.take()
            self.expect("=", f"'=', as in {name}=3")
            if name in limits:
                raise self.wrong(start, f"the limit {name} is given twice")
            limits[name] = _limit(name, self.literal(), inner, lambda why: self.wrong(start, why))
            if self.next != ")":
                self.expect(",", "',' or ')': a limit is written out, without operators")
        self.take()
        if not limits:
            raise self.wrong(start, "no limit in parentheses; write int(ge=1), or int")
        for low, high in (("ge", "le"), ("min_length", "max_length")):
            if low in limits and high in limits and limits[low] > limits[high]:
                raise self.wrong(start, f"nothing fits: {low} is above {high}")
        made = Annotated[inner, Field(**limits)]
        try:
            TypeAdapter(made)
        except (TypeError, ValueError, SchemaError, PydanticUserError, OverflowError) as error:
            raise self.wrong(start, first_line(error)) from error
        return made

    def wrong(self, start: int, why: str) -> SignatureError:
        """Return the error of the type that began at ``start``."""
        return SignatureError(
            f"{self.where}: {brief(self.text[start : self.start].strip())}: {why}"
        )


_CONSTANTS = {"True": True, "False": False, "None": None}


def _after_field(close: str, found: str) -> str:
    if found == "=":
        return "',': a field has no default here; give its value in the call"
    if found == "->":
        return "',' or the end: there is one '->', between inputs and outputs"
    return "',', or ':' and a type" + (", or '->' and the outputs" if close else ", or the end")


def _unknown_type(shown: str, named: Mapping[str, Any]) -> str:
    """Return what to say of a type's name that means nothing."""
    if shown == "Annotated":
        return "Annotated is not written here; limits stand in parentheses, as in int(ge=1, le=5)"
    known = sorted({*_TYPES, *named})
    folded = {name.casefold(): name for name in known}
    close = [folded[c] for c in difflib.get_close_matches(shown.casefold(), folded, n=1)]
    hint = f" (did you mean {close[0]}?)" if close else ""
    return (
        f"unknown type {brief(shown)}{hint}; use a dspy.Signature class, pass "
        f"types={{{brief(shown)}: ...}}, or one of {', '.join(known)}; a description follows a "
        "colon, as in 'str: what it is'"
    )


def _is_type(value: Any) -> bool:
    return typing.get_origin(value) is not None or (
        callable(value) and not isinstance(value, types.FunctionType)
    )


def _misfilled(outer: Any, held: Sequence[Any]) -> str:
    """Return what is wrong with the types in the brackets of ``outer``, or nothing."""
    wanted = {dict: 2, list: 1, set: 1, frozenset: 1, Optional: 1}.get(outer)
    if not held:
        return "nothing in brackets"
    if wanted is not None and len(held) != wanted:
        return f"{len(held)} types in brackets, where {wanted} should stand"
    if ... in held and (outer is not tuple or len(held) != 2 or held[0] is ...):
        return "'...' stands only second in a tuple, for any number of the first type"
    keys = held[:1] if outer in (dict, set, frozenset) else []
    if any(not _hashable(key) for key in keys):
        return "what can be changed (a list, dict or set) is no key and no item of a set"
    return ""


def _hashable(annotation: Any) -> bool:
    origin, arms = typing.get_origin(annotation), typing.get_args(annotation)
    if (origin or annotation) in (list, dict, set):
        return False
    if origin is Literal:
        return True
    held = arms[:1] if origin is Annotated else arms
    return all(_hashable(arm) for arm in held if arm is not ...)


def _marker(annotation: Any) -> type[Quote] | type[Data] | None:
    """Return which marker of a whole field a type has, if any."""
    found = (type(m) for m in getattr(annotation, "__metadata__", ()))
    return next((kind for kind in found if kind in (Quote, Data)), None)


# What \a, \b, \v and \f become in a text that is not raw; a pattern meant the escape.
_SLIPPED = re.compile(r"[\x07\x08\x0b\x0c]")


def _takes(annotation: Any, limit: str) -> bool:
    """Tell whether a limit is one of a type; of a user's own type pydantic decides."""
    origin, arms = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _marker(annotation) is None and _takes(arms[0], limit)
    if origin in (Union, types.UnionType):
        return all(_takes(arm, limit) for arm in arms if arm is not types.NoneType)
    if origin is tuple and ... not in arms:
        return False
    held = origin or annotation
    return held in _TAKES[limit] or (held is not Literal and held not in _TYPES.values())


def _limit(
    name: str, value: Any, inner: Any, wrong: Callable[[str], SignatureError]
) -> float | str | Any:
    """Return a limit's value for the type that it limits: a date of the text of a date."""
    if not _takes(inner, name):
        of = ", ".join(sorted(kind.__name__ for kind in _TAKES[name]))
        raise wrong(f"{name} is no limit of this type, but of {of}")
    if name == "pattern":
        if not isinstance(value, str):
            raise wrong(f"pattern={brief(value)}: expected a regular expression in quotes")
        if _SLIPPED.search(value):
            raise wrong(f"pattern={brief(value)}: a control character; write r'...' before it")
        return value
    if name in ("min_length", "max_length"):
        if type(value) is not int or value < 0:
            raise wrong(f"{name}={brief(value)}: expected a whole number from 0, as in {name}=3")
        return value
    if isinstance(value, str):
        return _limit_of_text(name, value, inner, wrong)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(f"{name}={brief(value)}: expected a number, as in {name}=3")
    return value


def _limit_of_text(
    name: str, value: str, inner: Any, wrong: Callable[[str], SignatureError]
) -> Any:
    kinds = _MOMENTS | {decimal.Decimal}
    for kind in (inner, *typing.get_args(inner)):
        if kind in kinds:
            try:
                return TypeAdapter(kind).validate_python(value)
            except ValueError as error:
                why = f"no {kind.__name__} ({first_line(error)})"
                raise wrong(f"{name}={brief(value)}: {why}") from None
    raise wrong(f"{name}={brief(value)}: expected a number, as in {name}=3")


def first_line(error: Exception) -> str:
    """Return what an error of pydantic's says, on one line."""
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"]
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[1:] if lines[0].endswith(":") else lines)[:200]


def type_text(
    annotation: Any, limits: Sequence[Any] = (), named: Mapping[str, Any] | None = None
) -> str:
    """Return the grammar's text for a type; ``named`` are further types by their names.

    Raises SignatureError where it has none.
    """
    named = named or {}
    origin, arms = parts_of(annotation)
    if limits:
        return _limited_text(annotation, limits, named)
    if origin is Annotated:
        return type_text(arms[0], arms[1:], named)
    if origin is Literal and all(isinstance(a, str | bytes | int | float | None) for a in arms):
        return f"Literal[{', '.join(map(repr, arms))}]"
    if origin in (Union, types.UnionType):
        return " | ".join(type_text(arm, (), named) for arm in arms)
    if arms and origin is not Literal:
        inside = ", ".join("..." if arm is ... else type_text(arm, (), named) for arm in arms)
        return f"{type_text(origin, (), named)}[{inside}]"
    if origin is None:
        for name in (*named, *sorted(_TYPES, key=str.swapcase)):  # list before List
            if annotation is (named[name] if name in named else _TYPES[name]):
                return name
    shown = getattr(annotation, "__qualname__", str(annotation))
    raise SignatureError(f"the type {shown} has no name in a document; keep its signature in code")


def parts_of(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return what stands before and in the brackets of a type; None and nothing without."""
    made = getattr(annotation, "__pydantic_generic_metadata__", {})
    if made.get("origin") is not None:
        return made["origin"], made["args"]
    return typing.get_origin(annotation), typing.get_args(annotation)


def has_name(annotation: Any) -> bool:
    """Say whether the grammar has a word for a type, or knows this word."""
    if isinstance(annotation, str):
        return annotation in _TYPES
    return any(annotation is known for known in _TYPES.values())


def _limited_text(annotation: Any, limits: Sequence[Any], named: Mapping[str, Any]) -> str:
    match limits:
        case (Quote(field=name),) if annotation is str:
            return f"Quote[{name}]"
        case (*inner, Data(space=space)):
            kind = type_text(annotation, inner, named)
            return f"Data[{kind}, {space!r}]" if space else f"Data[{kind}]"
    given = ", ".join(f"{n}={_limit_text(v)}" for n, v in _written(annotation, limits).items())
    held = type_text(annotation, (), named)
    if typing.get_origin(annotation) in (Union, types.UnionType):
        held = f"({held})"
    return f"{held}({given})" if given else held


def _written(annotation: Any, metadata: Sequence[Any]) -> dict[str, Any]:
    """Return the limits in metadata. Raises SignatureError for what is more than a limit."""
    found = limits_of(metadata)
    plain = typing.get_args(Annotated[Any, Field(**found)])[1].metadata if found else []
    whole = [part for item in metadata for part in getattr(item, "metadata", None) or [item]]
    if more := [repr(part) for part in whole if repr(part) not in map(repr, plain)]:
        raise SignatureError(
            f"{more[0]} of the type {annotation} cannot be written in a document, only limits "
            f"({', '.join(LIMITS)}); keep its signature in code"
        )
    if _SLIPPED.search(str(found.get("pattern", ""))):
        raise SignatureError(
            f"the pattern {found['pattern']!r} holds a control character; write it as an escape"
        )
    return found


def _limit_text(value: Any) -> str:
    if isinstance(value, str | int | float):
        return repr(value)
    if isinstance(value, re.Pattern):
        return repr(value.pattern)
    return repr(to_jsonable_python(value))


def limits_of(metadata: Sequence[Any]) -> dict[str, Any]:
    """Return the limits in a field's metadata, such as ``{"ge": 1}``."""
    found: dict[str, Any] = {}
    for item in metadata:
        found |= limits_of(item.metadata) if hasattr(item, "metadata") else {}
        found |= {n: v for n in LIMITS if (v := getattr(item, n, None)) is not None}
    return found
