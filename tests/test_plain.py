from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import json
from typing import Any, NamedTuple

import dspy
import numpy as np
import pytest
from dspy.experimental import Document
from pydantic import BaseModel, Field, RootModel, field_serializer, model_serializer

from promptflow.errors import UnsupportedType
from promptflow.plain import to_text
from promptflow.retrieval.passages import Passage


class Grade(enum.Enum):
    GOOD = "good"
    FIVE = 5


class Review(BaseModel):
    author: str
    stars: int
    text: str
    day: datetime.date | None = None


@dataclasses.dataclass
class Note:
    title: str
    text: str
    review: Review


class Pair(NamedTuple):
    left: str
    text: str


class Written(BaseModel):
    a: str

    @model_serializer
    def shown(self) -> str:
        return f"two\nlines of {self.a}"


class Rounded(BaseModel):
    price: float
    secret: str = Field("s", exclude=True)

    @field_serializer("price")
    def short(self, price: float) -> str:
        return f"{price:.1f}"


class Plain:
    pass


class Own:
    text = "not this"

    def prompt_text(self) -> str:
        return "this"


REVIEW = Review(author="A", stars=4, text="good", day=datetime.date(2024, 1, 2))
AS_JSON = '{"author": "A", "stars": 4, "text": "good", "day": "2024-01-02"}'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("two\nlines", "two\nlines"),
        (True, "yes"),
        (None, "none"),
        (3, "3"),
        (1.5, "1.5"),
        (10**30, str(10**30)),
        (decimal.Decimal("1.10"), "1.10"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (Grade.FIVE, "5"),
        (["one", "two"], "[1] one\n[2] two"),
        ([1, 2], "[1, 2]"),
        ({"\u00e4": None}, '{"\u00e4": null}'),
        ({Grade.GOOD: 1, datetime.date(2024, 1, 2): True}, '{"good": 1, "2024-01-02": true}'),
        (REVIEW, AS_JSON),
        ([REVIEW], f"[{AS_JSON}]"),
        ({"r": (REVIEW,)}, f'{{"r": [{AS_JSON}]}}'),
        (Note("T", "x", REVIEW), f'{{"title": "T", "text": "x", "review": {AS_JSON}}}'),
        ([Pair("a", "b")], '[{"left": "a", "text": "b"}]'),
        (Pair("a", "b"), '{"left": "a", "text": "b"}'),
        (RootModel[list[int]]([1]), "[1]"),
        (Written(a="x"), "two\nlines of x"),
        ([Written(a="x")], '["two\\nlines of x"]'),
        (Rounded(price=1.25), '{"price": "1.2"}'),
        (collections.deque([1]), "[1]"),
        (frozenset({7}), "[7]"),
        (b"abc", "abc"),
        (Passage("d.md", 1, 0, 4, "text", 0.5, "Heading"), "text"),
        ([Passage("d.md", 1, 0, 4, "text", 0.5)], "[1] text"),
        (Own(), "this"),
        ([Own()], "[1] this"),
        (dspy.Code(code="x = 1\ny = 2"), "x = 1\ny = 2"),
        (dspy.Reasoning(content="so"), "so"),
        (Document(data="line\nline", title="T"), "T\nline\nline"),
        ([Document(data="a"), Document(data="b")], "[1] a\n[2] b"),
        ({"doc": Document(data="a")}, '{"doc": "a"}'),
    ],
)
def test_every_part_of_a_value_is_shown(value: Any, text: str):
    assert to_text(value) == text


class Holder(BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    picture: dspy.Image | None = None
    others: list[Any] = []


IMAGE = dspy.Image("data:image/png;base64,iVBORw0KGgo=")
AUDIO = dspy.Audio(data="AAAA", audio_format="wav")
FILE = dspy.File(file_data="data:application/pdf;base64,AAAA", filename="a.pdf")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (IMAGE, "Image"),
        ([IMAGE], "Image"),
        (["text", IMAGE], "Image"),
        ({"a": [IMAGE]}, "Image"),
        (Holder(picture=IMAGE), "Image"),
        (Holder(others=[{"deep": AUDIO}]), "Audio"),
        (AUDIO, "Audio"),
        ((FILE,), "File"),
        (b"\xff\xfe\x00", "bytes"),
        (Plain(), "Plain"),
        ([{"a": Plain()}], "Plain"),
    ],
)
def test_what_is_no_text_is_refused_by_name(value: Any, says: str):
    with pytest.raises(UnsupportedType, match=says):
        to_text(value)


class Table:
    columns = ("a",)

    def to_dict(self, orient: str) -> list[dict[str, int]]:
        assert orient == "records"
        return [{"a": 1}, {"a": 2}]

    def __str__(self) -> str:
        return "a\n1\n..."


def test_arrays_tables_and_examples_are_shown_whole():
    assert to_text(np.arange(3_000)) == json.dumps(list(range(3_000)))
    assert to_text([np.float64(0.5), np.array([[1], [2]])]) == "[0.5, [[1], [2]]]"
    assert to_text(Table()) == '[{"a": 1}, {"a": 2}]'
    assert to_text([dspy.Example(text="t", n=5).with_inputs("n")]) == '[{"text": "t", "n": 5}]'


class Picture:
    def __repr__(self) -> str:
        return "<Picture 3 x 4>"


@pytest.mark.parametrize("value", [Picture(), [Picture()], lambda: 3, len, json, int, {"a": int}])
def test_what_has_no_text_but_a_name_is_refused(value: object):
    with pytest.raises(UnsupportedType, match="has no text"):
        to_text(value)
