from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import pathlib
import typing
import uuid
from dataclasses import dataclass, field

import numpy as np
import pydantic
import pytest
from hypothesis import given, strategies as st

from promptflow.evaluation.meaning import overlap, parsed, same


class Colour(enum.Enum):
    RED = "red"
    DARK_BLUE = "dark blue"


class Crossed(enum.Enum):
    A = "B"
    B = "A"


class Tuple(enum.Enum):
    P = (1, 2)
    Q = (3, 4)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    YES = "yes"
    NO = "no"


class Item(pydantic.BaseModel):
    name: str
    count: int = 3
    colour: Colour = Colour.RED
    when: dt.date | None = None


class Stars(pydantic.BaseModel):
    stars: int = pydantic.Field(alias="Stars")

    @pydantic.field_validator("stars", mode="before")
    @classmethod
    def read(cls, value: object) -> object:
        return len(value) if isinstance(value, str) and set(value) == {"*"} else value


class Tags(pydantic.RootModel[list[str]]):
    pass


@dataclass
class Point:
    x: int
    y: float = 0.5
    tags: list[str] = field(default_factory=list)


class Pair(typing.NamedTuple):
    a: int
    b: str = "b"


SEOUL = dt.timezone(dt.timedelta(hours=9))
DAY = dt.date(2024, 5, 1)
MOMENT = dt.datetime(2024, 5, 1, 14, 30)
KEY = uuid.UUID(int=5)

SAME = [
    *[(Colour.RED, gold) for gold in ("red", "RED", "Red", "Colour.RED", " red ", Colour.RED)],
    (Colour.DARK_BLUE, "Dark Blue"),
    (Colour.DARK_BLUE, "dark_blue"),
    (Crossed.A, "B"),
    *[(Level.LOW, gold) for gold in (1, 1.0, "1", "LOW", "low")],
    *[(Word.YES, gold) for gold in ("yes", "YES", Word.YES)],
    *[(Item(name="a"), gold) for gold in ({"name": "A"}, '{"name": "a", "count": "3"}')],
    (Item(name="a", when=DAY), {"name": "a", "colour": "RED", "when": "2024-05-01", "id": 7}),
    (Item(name="a"), {"name": "a", "when": None}),
    (Stars(Stars=3), {"Stars": 3}),
    (Stars(Stars=3), '{"Stars": "***"}'),
    (Tags(["a", "b"]), '["a", "b"]'),
    *[(Point(1), gold) for gold in ({"x": 1}, {"x": "1.0", "y": 0.5}, '{"x": 1, "tags": []}')],
    *[(Pair(1), gold) for gold in ([1, "b"], '[1, "b"]', {"a": 1}, Pair(1, "b"), (1, "b"))],
    *[((1, 2), gold) for gold in ([1, 2], "[1, 2]", "(1, 2)", ["1", "2.0"])],
    *[({"a", "b"}, gold) for gold in (["b", "a"], '["b", "a", "b"]', "{'a', 'b'}")],
    (frozenset({DAY}), ["2024-05-01"]),
    (["New York", "Paris"], '["new york", "Paris."]'),
    (["New York", "Paris"], "['New York', 'Paris']"),
    (["Paris"], "paris"),
    ([3], 3),
    ([], "[]"),
    ([], ""),
    ([[1, 2], [3]], "[[1, 2], [3]]"),
    ({"a": 1, "b": [DAY]}, '{"b": ["2024-05-01"], "a": 1.0}'),
    ({"a": 1}, {"a": 1, "b": None}),
    ({1: "x"}, '{"1": "x"}'),
    ({Colour.RED: True}, {"RED": "yes"}),
    ({DAY: 2.5}, {"2024-05-01": "2.50"}),
    *[
        (DAY, gold)
        for gold in (
            "2024-05-01",
            "20240501",
            "2024/5/1",
            "2024. 5. 1.",
            "2024년 5월 1일",
            "2024年5月1日",
            "May 1, 2024",
            "1 May 2024",
            "1-May-2024",
            "2024-05-01 00:00:00",
            "2024-05-01T00:00:00",
            dt.datetime(2024, 5, 1),
        )
    ],
    (dt.date(2024, 5, 31), "31.5.2024"),
    (dt.date(2024, 5, 31), "5/31/2024"),
    (dt.date(2024, 5, 5), "5/5/2024"),
    *[
        (MOMENT, gold)
        for gold in ("2024-05-01T14:30:00", "2024-05-01 14:30", "2024/5/1 2:30 PM", "20240501T1430")
    ],
    (MOMENT.replace(tzinfo=SEOUL), "2024-05-01T05:30:00Z"),
    (MOMENT.replace(tzinfo=SEOUL), "2024-05-01 14:30:00+09:00"),
    (dt.datetime(2024, 5, 1), "2024-05-01"),
    *[(dt.time(14, 30), gold) for gold in ("14:30", "14:30:00", "2:30 pm", "2:30 P.M.")],
    (dt.time(9, 5), "9:05"),
    (dt.time(0, 5), "12:05 am"),
    *[(dt.timedelta(hours=26), gold) for gold in ("P1DT2H", "1 day, 2:00:00")],
    *[(decimal.Decimal("3.50"), gold) for gold in ("3.5", 3.5, "3.50", decimal.Decimal("3.5"))],
    (decimal.Decimal("0.1"), 0.1),
    (fractions.Fraction(1, 3), "1/3"),
    *[(KEY, gold) for gold in (str(KEY), KEY.hex.upper(), f"{{{KEY}}}", f"urn:uuid:{KEY}")],
    *[(True, gold) for gold in ("yes", "Yes.", "true", "True", "TRUE", "1", 1, 1.0, "on", True)],
    *[(False, gold) for gold in ("no", "false", "FALSE", "0", 0, "off", False)],
    *[(3.0, gold) for gold in (3, "3", "3.0", "3.", "+3", "\uff13", "3e0", "$3")],
    *[(None, gold) for gold in ("", "none", "None", "null", None, float("nan"), [], "unknown")],
    (np.float64(3.5), "3.5"),
    (np.int64(3), 3.0),
    (np.float32(0.1), "0.1"),
    (np.array([1, 2]), [1, 2]),
    (np.bool_(True), "yes"),
    (pathlib.Path("a/b"), "a/b"),
    (b"ab", "ab"),
    ("", "unknown"),
]

SAME += [
    (MOMENT.replace(tzinfo=dt.UTC), "2024-05-01 14:30 UTC"),
    (MOMENT.replace(tzinfo=dt.UTC), "Wed, 01 May 2024 14:30:00 GMT"),
    (Point(1), "{'x': 1}"),
    (Tuple.P, [1, 2]),
    (Colour.DARK_BLUE, "dark-blue"),
    ([Colour.RED, Colour.DARK_BLUE], "red, DARK BLUE"),
    ([1, 2], "1;2"),
    (Pair(1), "1, b"),
    ([1000], "1,000"),
    (100000, "100 000"),
    (True, "1.0"),
    (float("inf"), "Infinity"),
    (1e22, "1" + "0" * 22),
    ("\u00bd", "1/2"),
    ("1/2", "0.5"),
    ("5\u20ac", "\u20ac5"),
    ("\u2764\ufe0f", "\u2764"),
    ("**5**", 5),
    (pydantic.SecretStr("x"), "x"),
    (pydantic.AnyUrl("http://a.b/c"), "http://a.b/c"),
    (dt.date(2024, 5, 1), "Wed, 1st May 2024"),
]

DIFFERENT = [
    ([12], "1,2"),
    ("1/2", "2/4"),
    ("100 000", "100000"),
    ("A+", "A-"),
    ("A+", "A"),
    ("C++", "C"),
    ("O-", "O+"),
    (float("inf"), "-inf"),
    (pydantic.AnyUrl("http://a.b/c"), "http://ab/c"),
    ("**-5**", "5"),
    (1e22, 10**22 + 1),
    (None, "N/A"),
    (Colour.RED, "blue"),
    (Colour.RED, ""),
    (Colour.RED, Colour.DARK_BLUE),
    (Crossed.A, "A"),
    (Level.LOW, 2),
    (Item(name="a"), {"nome": "a"}),
    (Item(name="a"), "a"),
    (Item(name="a", count=4), {"name": "a"}),
    (Item(name="a"), {}),
    (Point(1), {"y": 0.5}),
    (Pair(1), [1]),
    ((1, 2), [2, 1]),
    ({"a", "b"}, ["a", "a"]),
    (["NewYork"], "['New' 'York']"),
    ([1, 2], [1, 2, 2]),
    ({"a": 1}, {"a": 1, "b": 2}),
    (DAY, "2024-05-02"),
    (DAY, 1714521600),
    (DAY, "1714521600"),
    (DAY, "2024-05-01 14:30"),
    (DAY, "2024-13-01"),
    (MOMENT, "2024-05-01T14:30:00Z"),
    (MOMENT.replace(tzinfo=SEOUL), "2024-05-01T14:30:00Z"),
    (MOMENT, DAY),
    (dt.time(14, 30), "2:30"),
    (dt.timedelta(seconds=90), "90"),
    (KEY, str(uuid.UUID(int=6))),
    (True, "no"),
    (True, "yes and no"),
    (False, ""),
    (False, None),
    (True, 2),
    (0, None),
    (0, ""),
    (None, "x"),
    ("", "x"),
    ("", "none"),
    ([], ["a"]),
    (pathlib.Path("a/b"), "ab"),
]


@pytest.mark.parametrize(("value", "gold"), SAME)
def test_what_means_the_same(value, gold):
    assert same(value, gold)
    assert same(gold, value)
    assert overlap(value, gold) == overlap(gold, value) == 1.0


@pytest.mark.parametrize(("value", "gold"), DIFFERENT)
def test_what_differs(value, gold):
    assert not same(value, gold)
    assert not same(gold, value)


NUMBERS_AS_TEXT = [
    ("3.5", "35", False),
    ("5", "-5", False),
    ("240", "24.0e1", True),
    ("240", "24.0", False),
    ("240", "240.0", True),
    ("10:30", "1030", False),
    ("\u22125", "-5", True),
    ("\u20135", "-5", True),
    ("1e3", "1000", True),
    ("1e3", "13", False),
    ("1e-7", "2e-7", False),
    ("1e-7", "0.0000001", True),
    ("1,000", "1000", True),
    ("10,00", "1000", False),
    ("1,00,000", "100000", True),
    ("1 000 000", "1000000", True),
    ("1.000,50", "1000.5", True),
    ("3,5", "35", False),
    ("3,5", "3.5", False),
    ("$5", "5", True),
    ("$5", "5 dollars", False),
    ("$5", "€5", False),
    ("5%", "5", True),
    ("5%", "$5", False),
    ("$3.50", "$350", False),
    ("-5 °C", "5 °C", False),
    ("3.5 kg", "35 kg", False),
    ("1,000 people", "1000 people", True),
    ("1990\u201391", "1990-91", True),
    ("2-1", "21", False),
    ("1/2", "12", False),
    ("v1.10", "v110", False),
    ("007", "7", False),
    ("11234567890123456", "11234567890123457", False),
    ("6.02 x 10^23", "6.02e23", True),
    ("10\u00b2", "102", False),
    ("1\u00bd cups", "11/2 cups", False),
    ("5 million", "5,000,000", True),
    ("3\ub9cc 5\ucc9c", "35000", True),
    ("1e999999999999999999999999", "1", False),
]


@pytest.mark.parametrize(("one", "other", "equal"), NUMBERS_AS_TEXT)
def test_numbers_in_text_are_not_joined_or_stripped(one, other, equal):
    assert same(one, other) is same(other, one) is equal
    if not equal and " " not in one:
        assert overlap(one, other) < 1.0


@given(
    st.one_of(
        st.integers(),
        st.integers(min_value=10**14, max_value=10**40),
        st.floats(allow_nan=False, allow_infinity=False),
        st.decimals(allow_nan=False, allow_infinity=False),
    ),
    st.one_of(st.integers(-20, 20), st.floats(-20, 20), st.fractions(-3, 3, max_denominator=8)),
)
def test_numbers_compare_as_fractions_do(one, other):
    def exact(number):
        return fractions.Fraction(repr(number) if isinstance(number, float) else number)

    assert same(one, other) is (exact(one) == exact(other))
    assert same(one, str(one))
    assert same(str(one), one)
    if not isinstance(other, fractions.Fraction):
        assert same(str(one), str(other)) is (exact(one) == exact(other))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from(
        [0.5, 1.0, "1", "yes", "no", "", "red", "1.0", "[1, 2]", "{}", DAY, "A", "a b"]
    ),
    st.sampled_from([*Colour, *Level, Item(name="1"), Point(1), (1, 2), {1, 2}, Pair(1)]),
    st.lists(st.integers(0, 2), max_size=2),
    st.dictionaries(st.sampled_from(["x", "name"]), st.integers(0, 2)),
)


@given(VALUES, VALUES)
def test_comparison_is_symmetric_and_exact_is_never_above_f1(one, other):
    assert same(one, other) is same(other, one)
    assert overlap(one, other) == overlap(other, one)
    assert (overlap(one, other) == 1.0) or not same(one, other)
    assert 0.0 <= overlap(one, other) <= 1.0
    assert same(one, one)


def test_parts_are_counted():
    assert overlap(["paris", "Rome"], ["New York", "Paris"]) == pytest.approx(0.5)
    assert overlap(Item(name="a"), {"name": "b"}) == pytest.approx(2 / 3)
    assert overlap(Item(name="a"), '{"name": "b"}') == pytest.approx(2 / 3)
    assert overlap({"a": 1, "b": 2}, {"a": 1}) == pytest.approx(2 / 3)
    assert overlap(Colour.DARK_BLUE, "red") == 0.0
    assert overlap(2400, "24.00") == 0.0
    assert overlap("2400", "24.00") == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["a", 1]', ["a", 1]),
        ("('a', None)", ("a", None)),
        ("{'a'}", {"a"}),
        ("['a' 'b']", None),
        ("[abc", None),
        ("[unquoted, words]", None),
        ("a", None),
        ("[" * 10_000 + "]" * 10_000, None),
        ("[__import__('os')]", None),
    ],
)
def test_lists_in_text(text, value):
    assert parsed(text) == value
