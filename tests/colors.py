"""Types of fields, in a module that can be imported by its name."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from typing import Generic, NamedTuple, TypeVar

import pydantic
from typing_extensions import TypedDict

T = TypeVar("T")


class Color(enum.Enum):
    red = "RED"
    green = "GREEN"


class Size(enum.IntEnum):
    small = 1
    large = 2


class Review(pydantic.BaseModel):
    color: Color
    stars: int = pydantic.Field(ge=1, le=5)
    note: str | None = None
    seen: datetime.date = datetime.date(2020, 1, 1)


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Row(TypedDict):
    name: str


class Pair(NamedTuple):
    first: int
    second: int


class Box(pydantic.BaseModel, Generic[T]):
    held: T


class Shelf:
    class Book(pydantic.BaseModel):
        title: str
