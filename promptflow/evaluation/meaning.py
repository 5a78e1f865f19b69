"""What two values have in common by what they mean, whatever form a file gave them.

The side that has a type decides: the other is read as that type, and compared as text where it
cannot be read. ``same`` is symmetric.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import enum
import json
import numbers
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set as AbstractSet, Sized
from decimal import Decimal
from functools import cache
from typing import Any

from pydantic import BaseModel, PydanticUserError, RootModel, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from promptflow.evaluation.dates import read_moment, same_moment
from promptflow.normal import is_unspaced, normalize, words
from promptflow.numerals import Reading, number_of, read_number

_YES = frozenset({"yes", "true", "y", "t", "on", "1"})
_NO = frozenset({"no", "false", "n", "f", "off", "0"})
_SPOKEN = ({"yes", "true"}, {"no", "false"})
_NOTHING = frozenset({"", "none", "null", "nan", "unknown"})
_UNANSWERED = frozenset({"", "unknown"})
_MOMENTS = (datetime.date, datetime.time, datetime.timedelta)
_READ = (str, Mapping, numbers.Number, enum.Enum, *_MOMENTS)  # by rules of their own


def same(value: Any, gold: Any) -> bool:
    """Say whether two values mean the same."""
    value, gold = _bare(value), _bare(gold)
    typed = _compared(value, gold)
    return _same_text(text_of(value), text_of(gold)) if typed is None else typed


def overlap(value: Any, gold: Any) -> float:
    """Return 1.0 if two values mean the same, else their F1: of items, of fields, or of words.

    Values that are neither text nor made of parts have nothing in common if they differ.
    """
    value, gold = _bare(value), _bare(gold)
    typed = _compared(value, gold)
    if typed:
        return 1.0
    if typed is False:
        return _shared_parts(value, gold)
    one, other = text_of(value), text_of(gold)
    if _same_text(one, other):
        return 1.0
    if _numbers(one, other):
        return 0.0
    apart = is_unspaced(one) or is_unspaced(other)
    return _f1(words(one, apart=apart), words(other, apart=apart))


def is_nothing(value: Any) -> bool:
    """Say whether a value says that there is no answer: None, no text, or an empty container."""
    value = _bare(value)
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Sized) and len(value) == 0)


def is_many(value: Any) -> bool:
    """Say whether a value is a list, tuple, set or the like."""
    return isinstance(value, Sequence | AbstractSet) and not isinstance(value, str | bytes)


def has_fields(value: Any) -> bool:
    """Say whether a value is a mapping, a model, a dataclass or a named tuple."""
    return _fields(_bare(value)) is not None


def parsed(text: str) -> Any:
    """Return the list or object that a text holds as JSON or as Python shows it, else None."""
    text = text.strip()
    if text[:1] + text[-1:] not in ("[]", "{}", "()"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if re.search(r"""['"]\s+['"]""", text):  # numpy's form, whose texts Python would join
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def text_of(value: Any) -> str:
    """Return the text of a value, as a model would write it."""
    value = _bare(value)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, enum.Enum):
        return text_of(value.value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if (fields := _fields(value)) is not None:
        return " ".join(f"{name} {text_of(item)}" for name, item in fields.items())
    if is_many(value):
        return " ".join(map(text_of, value))
    return str(value)


def _bare(value: Any) -> Any:
    """Take a value out of numpy's and pydantic's wrappings; NaN is None."""
    if type(value).__module__ == "numpy" and not isinstance(value, numbers.Number):
        value = value.tolist()
    while isinstance(value, RootModel):
        value = value.root
    return None if isinstance(value, numbers.Real) and value != value else value


def _compared(value: Any, gold: Any) -> bool | None:
    """Compare by the type of the side that has one; None where only their texts can be."""
    for compare in _COMPARISONS:
        for one, other in ((value, gold), (gold, value)):
            if (found := compare(one, other)) is not None:
                return found
    return None


def _enums(one: Any, other: Any) -> bool | None:
    if not isinstance(one, enum.Enum):
        return None
    if isinstance(other, enum.Enum):
        return one is other if type(one) is type(other) else same(one.value, other.value)
    member = _member(type(one), other)
    return None if member is None else member is one


def _member(kind: type[enum.Enum], given: Any) -> enum.Enum | None:
    """Return the one member that is given by value, name or text, the exact form first."""
    members = dict(kind.__members__)
    for member in members.values():
        if type(given) is type(member.value) and given == member.value:
            return member
    if isinstance(given, str):
        text = given.strip().removeprefix(f"{kind.__name__}.")
        if text in members:
            return members[text]
        folded = {m for n, m in members.items() if _unspelled(text) in _spellings(n, m)}
        if folded:
            return folded.pop() if len(folded) == 1 else None
    found = {member for member in members.values() if same(member.value, given)}
    return found.pop() if len(found) == 1 else None


def _spellings(name: str, member: enum.Enum) -> tuple[str, str]:
    return _unspelled(name), _unspelled(str(member.value))


def _unspelled(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text.strip()).casefold()


def _nothing(one: Any, other: Any) -> bool | None:
    if one is None:
        if isinstance(other, str):
            return other.strip().rstrip(".").casefold() in _NOTHING
        return is_nothing(other)
    if is_many(one) and not one and isinstance(other, str) and not other.strip():
        return True
    if isinstance(one, str) and isinstance(other, str) and not one.strip():
        return other.strip().rstrip(".").casefold() in _UNANSWERED
    return None


def _bools(one: Any, other: Any) -> bool | None:
    if not isinstance(one, bool):
        return None
    if isinstance(other, bool):
        return one is other
    if isinstance(other, str):
        text = other.strip().rstrip(".!").casefold()
        if text in _YES or text in _NO:
            return one is (text in _YES)
        reading = read_number(text)  # 1.0, as pandas writes a column in which some are missing
        return None if reading is None or reading.unit else reading.value == int(one)
    number = number_of(other)
    return None if number is None else number == int(one)


def _numeric(one: Any, other: Any) -> bool | None:
    number = number_of(one)
    if number is None:
        return _infinite(one, other)
    if isinstance(other, str):
        reading = read_number(other)
        return None if reading is None else reading.equals(number)
    second = number_of(other)
    return None if second is None else number == second


def _infinite(one: Any, other: Any) -> bool | None:
    if not isinstance(one, float | Decimal) or not isinstance(other, str | float | Decimal):
        return None
    try:
        return float(one) == float(other)
    except ValueError:
        return None


def _moments(one: Any, other: Any) -> bool | None:
    if not isinstance(one, _MOMENTS):
        return None
    if isinstance(other, _MOMENTS):
        return same_moment(one, other)
    read = read_moment(other, one) if isinstance(other, str) else None
    return None if read is None else same_moment(one, read)


def _scalars(one: Any, other: Any) -> bool | None:
    """Compare by any other type that pydantic can read: UUID, Path, a URL, bytes."""
    if one is None or is_many(one) or isinstance(one, _READ):
        return None
    if type(one) is type(other) and _fields(one) is None:
        return bool(one == other)
    if not isinstance(other, str):
        return None
    try:
        kind: Any = type(one)
        read = _adapter(kind).validate_python(other)
    except (PydanticUserError, ValidationError, TypeError, ValueError):
        return None
    fields, others = _fields(one), _fields(read)
    if fields is not None and others is not None:
        return _all_same(fields, others)
    return bool(one == read)


def _parts(one: Any, other: Any) -> bool | None:
    """Compare models, mappings and lists part by part."""
    fields = _fields(one)
    if not is_many(one) and fields is None:
        return None
    if isinstance(other, str):
        text, other = other, parsed(other)
        if other is None:
            return _listed(one, text)
    others = _fields(other)
    if fields is not None and others is not None:
        return _same_fields(one, other)
    if is_many(one) and is_many(other):
        if isinstance(one, AbstractSet) or isinstance(other, AbstractSet):
            one, other = _distinct(one), _distinct(other)
            return len(one) == len(other) == _common(one, other)
        return len(one) == len(other) and all(map(same, one, other))
    if is_many(one) and len(one) == 1 and others is None:
        return same(next(iter(one)), other)
    return None


def _listed(items: Any, text: str) -> bool | None:
    """Compare a list with text that may name its items with commas or semicolons between them."""
    if not is_many(items):
        return None
    named = (re.split(f"{mark}|\n", text) for mark in (",", ";"))
    return True if any(len(n) > 1 and _parts(items, n) for n in named) else None


def _fields(value: Any) -> dict[Any, Any] | None:
    """Return the parts of a value by name; None where it has none."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, BaseModel):
        return {**value.__dict__, **(value.__pydantic_extra__ or {})}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return dict(value._asdict())
    return None


def _same_fields(one: Any, other: Any) -> bool:
    for typed, given in ((one, other), (other, one)):
        if isinstance(given, Mapping) and not isinstance(typed, Mapping):
            return _same_record(typed, given)
    return _all_same(_fields(one) or {}, _fields(other) or {})


def _same_record(record: Any, given: Mapping[Any, Any]) -> bool:
    """Compare a model, dataclass or named tuple with an object of a file."""
    fields, defaults = _fields(record) or {}, _defaults(type(record))
    known = {spelled: name for name in fields for spelled in _spelled(type(record), name)}
    named = {known[key]: item for key, item in given.items() if key in known}
    if given and not named:
        return False
    if _all_same(fields, {**defaults, **named}):
        return True
    try:  # its validators may read what the file says
        kind: Any = type(record)
        read = _adapter(kind).validate_python(dict(given))
    except (PydanticUserError, ValidationError, TypeError, ValueError):
        return False
    return _all_same(fields, _fields(read) or {})


def _defaults(kind: type[Any]) -> dict[str, Any]:
    if issubclass(kind, BaseModel):
        found = {n: f.get_default(call_default_factory=False) for n, f in kind.model_fields.items()}
        made = {n: f.default_factory for n, f in kind.model_fields.items() if f.default_factory}
        found |= {name: make() for name, make in made.items()}  # type: ignore[call-arg]
        return {name: value for name, value in found.items() if value is not PydanticUndefined}
    if dataclasses.is_dataclass(kind):
        found = {field.name: field.default for field in dataclasses.fields(kind)}
        factories = {f.name: f.default_factory for f in dataclasses.fields(kind)}
        found |= {n: f() for n, f in factories.items() if f is not dataclasses.MISSING}
        return {name: value for name, value in found.items() if value is not dataclasses.MISSING}
    return dict(getattr(kind, "_field_defaults", {}))


def _spelled(kind: type[Any], name: str) -> set[str]:
    """Return the names under which a file may give a field."""
    field = kind.model_fields.get(name) if issubclass(kind, BaseModel) else None
    aliases = () if field is None else (field.alias, field.validation_alias)
    return {name, *(alias for alias in aliases if isinstance(alias, str))}


def _all_same(fields: Mapping[Any, Any], others: Mapping[Any, Any]) -> bool:
    """Compare by keys that mean the same; a key without a value is as good as none."""
    fields, others = _present(fields), _present(others)
    pairs = _paired(fields, others)
    return len(fields) == len(others) == len(pairs) and all(same(a, b) for a, b in pairs)


def _present(fields: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: item for key, item in fields.items() if item is not None}


def _paired(fields: Mapping[Any, Any], others: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Return the values of both under keys that mean the same."""
    pairs, left = [], dict(others)
    for key, item in fields.items():
        match = [key] if key in left else [other for other in left if same(key, other)]
        if match:
            pairs.append((item, left.pop(match[0])))
    return pairs


def _shared_parts(value: Any, gold: Any) -> float:
    """Return the F1 of items or fields of values that are not the same."""
    value = parsed(value) if isinstance(value, str) else value
    gold = parsed(gold) if isinstance(gold, str) else gold
    fields, others = _fields(value), _fields(gold)
    if fields is not None and others is not None:
        fields = _present({**_defaults(type(gold)), **fields})
        others = _present({**_defaults(type(value)), **others})
        common = sum(same(a, b) for a, b in _paired(fields, others))
        return _ratio(common, len(fields), len(others))
    if is_many(value) and is_many(gold):
        return _ratio(_common(value, gold), len(value), len(gold))
    return 0.0


def _distinct(items: Iterable[Any]) -> list[Any]:
    kept: list[Any] = []
    for item in items:
        if not any(same(item, other) for other in kept):
            kept.append(item)
    return kept


def _common(items: Iterable[Any], others: Iterable[Any]) -> int:
    """Return how many items of both mean the same, each counted once."""
    left, found = list(others), 0
    for item in items:
        place = next((n for n, other in enumerate(left) if same(item, other)), None)
        if place is not None:
            del left[place]
            found += 1
    return found


def _same_text(one: str, other: str) -> bool:
    if one.strip() == other.strip():
        return True
    if (both := _numbers(one, other)) is not None:
        first, second = both
        units = first.unit == second.unit or not (first.unit and second.unit)
        return units and first.value == second.value
    one, other = normalize(one), normalize(other)
    return one == other or any(one in words and other in words for words in _SPOKEN)


def _numbers(one: str, other: str) -> tuple[Reading, Reading] | None:
    """Return what two texts read as where both are numbers and nothing else."""
    first, second = read_number(one), read_number(other)
    if first is None or second is None or not (first.sure and second.sure):
        return None
    return None if first.ratio and second.ratio else (first, second)


def _f1(value: list[str], gold: list[str]) -> float:
    return _ratio(sum((Counter(value) & Counter(gold)).values()), len(value), len(gold))


def _ratio(common: int, first: int, second: int) -> float:
    return 2.0 * common / (first + second) if common else 0.0


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


_COMPARISONS: tuple[Callable[[Any, Any], bool | None], ...] = (
    _enums,
    _nothing,
    _bools,
    _numeric,
    _moments,
    _scalars,
    _parts,
)
