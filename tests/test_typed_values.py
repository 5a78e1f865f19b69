"""Types against random walks through their constraints: what is written is what is read.

Each type is walked WALKS times; ``PROMPTFLOW_WALKS=2000`` walks longer.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import ipaddress
import json
import math
import os
import pathlib
import re
import uuid
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypeVar,
    Union,
)

import dspy
import pydantic
import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from typing_extensions import TypeAliasType, TypedDict

from promptflow.engine.model.constraint import Walks
from promptflow.engine.request import Fill
from promptflow.errors import ParseError, UnsupportedType, ValueRefused
from promptflow.fields import TypedField

WALKS = int(os.environ.get("PROMPTFLOW_WALKS", "200"))

D, date, datetime_ = decimal.Decimal, datetime.date, datetime.datetime
KST = datetime.timezone(datetime.timedelta(hours=9))


class Mood(enum.Enum):
    GOOD = "good"
    BAD = 2
    HAPPY = "good"  # noqa: PIE796


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 10


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Ratio(enum.Enum):
    HALF = 0.5
    WHOLE = 1.0


class Planet(enum.Enum):
    EARTH = (5.97e24, 6.37e6)
    MARS = (6.4e23, 3.39e6)


class Place(BaseModel):
    city: str
    founded: date | None = None


class Person(BaseModel):
    name: str
    age: int = Field(ge=0, le=130)
    home: Place
    tags: list[str] = []


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


class Chain(BaseModel):
    value: int
    next: Chain | None = None


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Aliased(BaseModel):
    full: str = Field(alias="fullName")
    other: int = Field(alias="o", default=0)


class ByName(BaseModel):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=False)
    full: str = Field(alias="fullName")


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    stamp: float = Field(default_factory=float)


class Strictly(BaseModel):
    model_config = ConfigDict(strict=True)
    day: date
    cost: D
    ok: bool
    key: uuid.UUID
    parts: tuple[int, ...]


class Numbers(BaseModel):
    order: int
    card: int = Field(ge=10**15)
    price: D = Field(max_digits=8, decimal_places=2)
    mass: float
    share: float = Field(ge=0, le=1)

    @pydantic.computed_field
    @property
    def double(self) -> float:
        return 2 * self.share


class Keys(BaseModel):
    by_number: dict[int, str]
    by_day: dict[date, float]


T = TypeVar("T")


class Box(BaseModel, Generic[T]):
    content: T
    more: list[T] = []


class Names(pydantic.RootModel[list[str]]):
    pass


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


@pydantic.dataclasses.dataclass
class Segment:
    start: Point
    end: Point


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Partial(TypedDict, total=False):
    a: int
    b: str


class Pair(NamedTuple):
    left: int
    right: str = "x"


UserId = NewType("UserId", int)
Scores = TypeAliasType("Scores", dict[str, list[int]])
Level3 = TypeAliasType("Level3", Literal["low", "high"])


Recursive = TypeAliasType("Recursive", "int | list[Recursive] | dict[str, Recursive]")


class Short(BaseModel):
    model_config = ConfigDict(str_max_length=5, str_min_length=1)
    text: str


class Empty(enum.Enum):
    pass


def limited(annotation: Any, **limits: Any) -> Any:
    return Annotated[annotation, Field(**limits)]


HELD: list[Any] = [
    str,
    int,
    float,
    bool,
    None,
    D,
    complex,
    fractions.Fraction,
    limited(int, ge=1, le=5),
    limited(int, gt=-7, lt=100),
    limited(int, ge=10**16),
    limited(int, ge=-(10**45), le=10**45),
    limited(int, multiple_of=5),
    limited(int, multiple_of=7, ge=100),
    limited(int, multiple_of=3, ge=1, le=99),
    pydantic.PositiveInt,
    pydantic.conint(ge=3, le=2**70),
    pydantic.StrictInt,
    limited(float, ge=0),
    limited(float, gt=0),
    limited(float, ge=0, le=1),
    limited(float, gt=-1.5, lt=2.75),
    limited(float, ge=0.1, allow_inf_nan=False),
    limited(float, le=-1e-7),
    limited(float, multiple_of=0.25),
    limited(float, multiple_of=0.01, ge=0, le=10),
    pydantic.FiniteFloat,
    limited(D, max_digits=5, decimal_places=2),
    limited(D, decimal_places=2, ge=0),
    limited(D, max_digits=12),
    limited(D, gt=0, lt=1),
    limited(D, ge=D("0.05"), le=D("99.95"), decimal_places=2),
    limited(D, multiple_of=D("0.01")),
    date,
    limited(date, ge=date(2020, 2, 28), le=date(2024, 3, 1)),
    limited(date, gt=date(1999, 12, 31)),
    pydantic.PastDate,
    pydantic.FutureDate,
    datetime.time,
    limited(datetime.time, ge=datetime.time(9), lt=datetime.time(17, 30)),
    datetime_,
    pydantic.AwareDatetime,
    pydantic.NaiveDatetime,
    pydantic.PastDatetime,
    pydantic.FutureDatetime,
    limited(datetime_, ge=datetime_(2024, 1, 1), lt=datetime_(2025, 1, 1)),
    limited(pydantic.AwareDatetime, ge=datetime_(1990, 1, 1, tzinfo=KST)),
    datetime.timedelta,
    uuid.UUID,
    pydantic.UUID1,
    pydantic.UUID4,
    pydantic.UUID7,
    Mood,
    Colour,
    Level,
    Access,
    Ratio,
    Planet,
    Literal["a", 3, None, True],
    Literal[Colour.RED, "green"],
    Level3,
    Optional[bool],  # noqa: UP045
    Optional[str],  # noqa: UP045
    Union[int, str],  # noqa: UP007
    int | float | None,
    date | Literal["never"],
    Mood | int,
    Place,
    Person,
    Tree,
    Chain,
    list[Tree],
    Annotated[Cat | Dog, Field(discriminator="kind")],
    list[Annotated[Cat | Dog, Field(discriminator="kind")]],
    dict[str, int],
    dict[Level, int],
    dict[Colour, float],
    dict[int, str],
    dict[float, int],
    dict[bool, int],
    dict[date, float],
    dict[uuid.UUID, str],
    dict[Literal["a", "b"], list[int]],
    dict[D, int],
    dict[pydantic.constr(pattern="^[a-z]+$", max_length=5), int],
    dict[int | Literal["all"], bool],
    limited(dict[str, int], min_length=1, max_length=3),
    limited(dict[Colour, int], min_length=1),
    dict,
    Keys,
    Numbers,
    list[int],
    list,
    limited(list[int], min_length=2, max_length=4),
    pydantic.conlist(str, min_length=1, max_length=2),
    set[int],
    set[Colour],
    limited(set[Colour], min_length=2),
    limited(frozenset[Literal[1, 2, 3]], min_length=1, max_length=2),
    limited(set[int], min_length=1, max_length=3),
    tuple[int, str],
    tuple[int, ...],
    tuple[()],
    tuple[date, D, bool],
    limited(tuple[int, ...], min_length=2, max_length=3),
    limited(str, max_length=3),
    limited(str, min_length=2, max_length=300),
    limited(str, min_length=3),
    pydantic.constr(pattern=r"[A-Z]{2}-[0-9]+", max_length=8),
    pydantic.constr(strip_whitespace=True, min_length=2, max_length=9),
    limited(str, pattern=r"[0-9]+\$"),
    limited(str, pattern=r"(?i)yes"),
    limited(str, pattern=r"(?P<a>x)"),
    limited(str, pattern=r"C:\\bin"),
    limited(str, pattern=r"^a|b$"),
    limited(str, pattern=r"^\d{3}$"),
    limited(str, pattern=r"\w+ \S+[^\W\d]"),
    limited(str, pattern=r"^[\p{L}]{2,4}$"),
    limited(str, pattern=re.compile(r"\Aab/c\Z")),
    list[limited(str, pattern=r'^"\\?[a-z]+\n?$')],
    bytes,
    list[bytes],
    pathlib.Path,
    pydantic.HttpUrl,
    pydantic.AnyUrl,
    list[pydantic.HttpUrl],
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Interface,
    pydantic.IPvAnyAddress,
    pydantic.Base64Bytes,
    pydantic.Json,
    pydantic.Json[list[int]],
    Point,
    Segment,
    list[Point],
    Movie,
    Partial,
    Pair,
    Sequence[int],
    collections.deque[int],
    Mapping[str, float],
    collections.defaultdict[str, int],
    collections.OrderedDict[str, int],
    collections.Counter[str],
    Scores,
    UserId,
    list[UserId],
    Box[int],
    Box[Place],
    Names,
    Any,
    list[dict],
    dict[str, Any],
    list[Any],
    Aliased,
    ByName,
    Open,
    Closed,
    Strictly,
    pydantic.JsonValue,
    Annotated[int, pydantic.WithJsonSchema({"type": "integer", "minimum": 3})],
    list[Annotated[float, pydantic.WithJsonSchema({"type": "number"})]],
    Recursive,
    pydantic.ByteSize,
    pydantic.FileUrl,
    set,
    Short,
    limited(float, multiple_of=7, ge=-70, le=10**9),
    limited(float, multiple_of=0.5),
    limited(str, pattern=""),
    limited(str, pattern=r"x\z"),
    pydantic.StrictStr,
    pydantic.StrictBool,
    list[pydantic.StrictFloat],
]

REFUSED: list[Any] = [
    (Callable[[], int], "Callable"),
    (Empty, "no options"),
    (dspy.Image, "writes text alone"),
    (pydantic.NewPath, "file system"),
    (Annotated[int, pydantic.WithJsonSchema({"type": "string"})], "valid integer"),
    (limited(str, max_length=0), "always empty"),
    (limited(float, multiple_of=7), "15 digits"),
    (pydantic.ImportString, "import the code"),
    (re.Pattern, "regex"),
    (Iterable[int], "Iterable"),
    (type[int], "class"),
    (Hashable, "Hashable"),
    (limited(set[int], min_length=2), "different values"),
    (limited(datetime.timedelta, ge=datetime.timedelta(0)), "duration"),
    (limited(bytes, max_length=3), "bytes"),
    (dict[tuple[int, int], str], "keys"),
    (dict[Mood, int], "'2'|\\\"2\\\""),
    (Literal[1, "1"], "both written '1'"),
    (Literal[True, "yes"], "both written 'yes'"),
    (Mood | Literal["good"], "both written 'good'"),
    (Literal["a", ""], "empty"),
    (limited(int, ge=5, le=3), "at least 5"),
    (limited(str, pattern=r"(?=a)b"), "look-ahead"),
    (limited(str, pattern=re.compile(r"(?=a)b")), "looks ahead"),
    (limited(str, pattern=r"a(?<!b)"), "looks behind|look-around"),
    (limited(str, pattern=re.compile(r"(a)\1")), "looks back"),
    (limited(str, pattern=re.compile(r"\bx")), "edge of a word"),
    (limited(str, pattern=r"a$b"), r"\$ in the middle"),
    (limited(str, pattern=r"\AX\Z"), "unrecognized escape"),
    (list[pydantic.Json[int]], "holds JSON"),
    (ipaddress.IPv4Network, "ipv4network"),
    (pydantic.PostgresDsn, "several hosts"),
    (pydantic.FilePath, "file system"),
    (pydantic.Base64Str, "refuses|base64"),
]


def field(annotation: Any, name: str = "x") -> TypedField:
    return TypedField.of(name, FieldInfo.from_annotation(annotation))


def parsed(text: str) -> list[Any]:
    """What a text may stand for, so that two spellings of one value are equal."""
    found: list[Any] = [text]
    for read in (
        lambda t: fractions.Fraction(t) if re.search("[0-9]", t) else t,
        lambda t: (m := datetime_.fromisoformat(t), m.utcoffset()),
        lambda t: (m := datetime.time.fromisoformat(t), m.utcoffset()),
        pydantic.TypeAdapter(datetime.timedelta).validate_python,
        uuid.UUID,
        ipaddress.ip_interface,
        pydantic.TypeAdapter(pydantic.AnyUrl).validate_python,
        complex,
        pydantic.TypeAdapter(pydantic.ByteSize).validate_python,
        pathlib.Path,
    ):
        try:
            found.append(read(text))
        except (ValueError, ZeroDivisionError, OverflowError):
            continue
    return found


def same(written: Any, kept: Any) -> bool:
    """Whether a JSON value that was written equals what was read, written again."""
    if isinstance(written, dict) and isinstance(kept, dict):
        if set(written) <= set(kept):  # the others have defaults
            return all(same(written[key], kept[key]) for key in written)
        return len({str(parsed(k)[-1]) for k in written}) == len(kept) and all(
            any(same(k, j) and same(written[k], kept[j]) for j in kept) for k in written
        )
    if isinstance(written, list) and isinstance(kept, list):
        if len(written) <= len(kept) and all(map(same, written, kept)):
            return True
        return all(any(same(w, k) for k in kept) for w in written) and all(
            any(same(w, k) for w in written) for k in kept
        )
    if isinstance(written, bool) or isinstance(kept, bool) or written is None or kept is None:
        return written is kept
    if isinstance(written, int | float) and isinstance(kept, int | float):
        return float(written) == kept if isinstance(kept, float) else written == kept
    return any(a == b for a in parsed(str(written)) for b in parsed(str(kept)))


def has_a_key_twice(text: str) -> bool:
    found = []

    def noted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        kept = dict(pairs)
        found.extend(key for key, value in pairs if kept[key] != value)
        return kept

    try:
        json.loads(text, object_pairs_hook=noted)
    except ValueError:
        return False
    return bool(found)


def test_the_table_is_long_enough():
    assert len(HELD) >= 80


@pytest.mark.parametrize("annotation", HELD, ids=lambda a: str(a)[:60])
def test_what_a_walk_writes_is_what_is_read(annotation: Any):
    typed = field(annotation)
    constraint, walks = typed.constraint({}), Walks(seed=len(str(annotation)))
    if constraint is None:
        assert annotation in (str, pydantic.StrictStr, bytes, pathlib.Path)
        return
    adapter = pydantic.TypeAdapter(annotation)
    for _ in range(WALKS):
        text = walks.text(constraint, 60)
        if has_a_key_twice(text):  # the one thing that a grammar cannot hold
            with pytest.raises(ParseError, match="stands there twice"):
                typed.parse(text)
            continue
        value = typed.read(Fill(text, "constraint"))
        if typed.shape.written == "choice":
            assert typed.text(value) == text
            continue
        written = text if typed.shape.written == "text" else json.loads(text)
        # With plain dates, zones and numbers; not what a model leaves unset.
        kept = adapter.dump_python(value, mode="json", by_alias=annotation is not ByName)
        if annotation in (pydantic.Base64Bytes, pydantic.Json, pydantic.Json[list[int]]):
            kept = pydantic.TypeAdapter(Any).dump_python(value, mode="python")
            kept = text if annotation is pydantic.Base64Bytes else kept
        assert same(written, kept), (text, value)
        assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize(("annotation", "says"), REFUSED, ids=lambda a: str(a)[:60])
def test_a_type_that_no_constraint_holds_is_refused_by_name(annotation: Any, says: str):
    with pytest.raises(UnsupportedType, match=says) as caught:
        field(annotation, "when").constraint({})
    assert "'when'" in str(caught.value)


def even(value: int) -> int:
    if value % 2:
        raise ValueError("an odd number")
    return value


class Trip(BaseModel):
    start: int = Field(ge=0, le=9)
    end: int = Field(ge=0, le=9)

    @field_validator("start")
    @classmethod
    def small(cls, value: int) -> int:
        if value > 7:
            raise ValueError("it starts late")
        return value

    @model_validator(mode="after")
    def ordered(self) -> Trip:
        if self.end < self.start:
            raise ValueError("the end is before the start")
        return self


@pytest.mark.parametrize(
    ("annotation", "good", "bad", "says"),
    [
        (Annotated[int, AfterValidator(even)], "4", "5", "odd number"),
        (Annotated[int, BeforeValidator(int)], "4", "five", "five"),
        (Annotated[int, WrapValidator(lambda v, read: even(read(v)))], "4", "5", "odd number"),
        (Annotated[str, AfterValidator(lambda t: even(len(t)) and t)], "ab", "abc", "odd number"),
        (Annotated[Literal[1, 2], AfterValidator(even)], "2", "1", "odd number"),
        (Trip, '{"start": 1, "end": 2}', '{"start": 2, "end": 1}', "before the start"),
        (list[Trip], '[{"start": 1, "end": 2}]', '[{"start": 8, "end": 9}]', "starts late"),
    ],
)
def test_what_a_validator_refuses_is_said_to_be_refused(annotation, good, bad, says):
    typed = field(annotation)
    typed.read(Fill(good, "constraint"))
    with pytest.raises(ValueRefused, match=says):
        typed.read(Fill(bad, "constraint"))
