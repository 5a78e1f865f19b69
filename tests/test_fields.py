from __future__ import annotations

import datetime
import decimal
import enum
import json
import re
import uuid
from typing import Annotated, Any, Literal, Optional

import dspy
import pytest
from pydantic import BaseModel, Field, TypeAdapter
from pydantic.fields import FieldInfo

from promptflow.engine.model.constraint import Constraints, byte_tokenizer
from promptflow.engine.request import Choice, Fill, Lark, Regex, Substring
from promptflow.errors import ParseError, UnknownField, UnsupportedType
from promptflow.fields import Quote, TypedField, to_text

BYTES = Constraints(byte_tokenizer(), 257)


def field(annotation: Any, name: str = "x") -> TypedField:
    return TypedField.of(name, FieldInfo(annotation=annotation))


class Mood(enum.Enum):
    GOOD = "good"
    BAD = 2


class Place(BaseModel):
    city: str
    founded: datetime.date | None = None


class Person(BaseModel):
    name: str
    age: int = Field(ge=0, le=130)
    home: Place
    tags: list[str]


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


class Endless(BaseModel):
    next: Endless


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (str, " Paris ", "Paris"),
        (int, "-42", -42),
        (float, "3.25", 3.25),
        (decimal.Decimal, "0.1", decimal.Decimal("0.1")),
        (bool, "yes", True),
        (bool, "No", False),
        (Literal["a", 3, None], "3", 3),
        (Literal["a", 3, None], "none", None),
        (Mood, "2", Mood.BAD),
        (Optional[bool], "none", None),  # noqa: UP045
        (Optional[str], '"x"', "x"),  # noqa: UP045
        (Optional[str], "null", None),  # noqa: UP045
        (datetime.date, "2024-02-29", datetime.date(2024, 2, 29)),
        (datetime.datetime, "2024-01-02T03:04", datetime.datetime(2024, 1, 2, 3, 4)),
        (datetime.timedelta, "PT15M", datetime.timedelta(minutes=15)),
        (uuid.UUID, str(uuid.UUID(int=7)), uuid.UUID(int=7)),
        (list[int], "[1, 2]", [1, 2]),
        (dict[str, float], '{"a": 0.5}', {"a": 0.5}),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (set[str], '["a", "a"]', {"a"}),
        (Annotated[int, Field(ge=3)], "4", 4),
    ],
)
def test_text_to_value(annotation: Any, text: str, value: Any):
    assert field(annotation).parse(text) == value


@pytest.mark.parametrize(
    "value",
    [
        Person(name="Ada", age=36, home=Place(city="London"), tags=["x"]),
        [1, 2],
        {"a": [0.5]},
        True,
        Mood.BAD,
        3,
        datetime.date(1815, 12, 10),
        "two\nlines",
    ],
)
def test_what_a_demo_shows_reads_back(value: Any):
    kinds = {list: list[int], dict: dict[str, list[float]]}
    annotation = kinds.get(type(value), type(value))
    assert field(annotation).parse(field(annotation).text(value)) == value


def test_input_lists_of_texts_are_numbered():
    assert to_text(["one", "two"]) == "[1] one\n[2] two"
    assert to_text([1, 2]) == "[1, 2]"
    assert to_text({"ä": None}) == '{"ä": null}'


@pytest.mark.parametrize(
    ("annotation", "constraint"),
    [
        (Literal["low", "high"], Choice(("low", "high"))),
        (bool, Choice(("yes", "no"))),
        (Mood, Choice(("good", "2"))),
        (Mood | None, Choice(("good", "2", "none"))),
        (str, None),
    ],
)
def test_choices_and_free_text(annotation: Any, constraint: Any):
    assert field(annotation).constraint({}) == constraint


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (int, ["0", "-7", "11234567890123456", "9" * 40], ["007", "1.5", "", "-0", "9" * 41]),
        (float, ["0.5", "12", "-3.25", "6.02e23", "0.00000042", "1E-300"], [".5", "1.", "1e400"]),
        (datetime.date, ["2000-02-29", "0079-08-24"], ["1900-02-29", "2023-02-30", "0000-01-01"]),
        (datetime.time, ["23:59", "00:00:01.5", "14:30Z"], ["24:00", "7:00"]),
        (
            datetime.datetime,
            ["2024-05-01T14:30:00+09:00", "2024-05-01 14:30"],
            ["2024-05-01T25:00"],
        ),
        (Annotated[str, Field(max_length=3)], ["abc"], ["abcd", "a\nb", ""]),
        (Annotated[str, Field(pattern="^[A-Z]{2}$")], ["AB"], ["ab", "ABC"]),
        (Annotated[int, Field(ge=10**16)], [str(10**16), "9" * 40], [str(10**16 - 1), "-1"]),
    ],
)
def test_patterns_admit_what_parses_and_nothing_else(annotation: Any, good: list, bad: list):
    constraint = field(annotation).constraint({})
    assert isinstance(constraint, Regex)
    for text in good:
        assert re.fullmatch(constraint.pattern, text), text
        field(annotation).parse(text)
    for text in bad:
        assert not re.fullmatch(constraint.pattern, text), text


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, ["Order", "11234567890123456"][1], 11234567890123456),
        (int, "4111111111111111", 4111111111111111),
        (list[int], "[1234567890123456789, -1]", [1234567890123456789, -1]),
        (float, "0.00000042", 4.2e-7),
        (float, "6.02e23", 6.02e23),
        (list[float], "[6.02e23, 4.2E-7]", [6.02e23, 4.2e-7]),
        (decimal.Decimal, "1.10", decimal.Decimal("1.10")),
        (
            datetime.datetime,
            "2024-05-01T14:30:00+09:00",
            datetime.datetime(
                2024, 5, 1, 14, 30, tzinfo=datetime.timezone(datetime.timedelta(hours=9))
            ),
        ),
    ],
)
def test_no_digit_and_no_zone_is_lost(annotation: Any, text: str, value: Any):
    read = field(annotation).parse(text)
    assert read == value
    if isinstance(value, datetime.datetime):
        assert read.utcoffset() == value.utcoffset()


@pytest.mark.parametrize(
    ("annotation", "text"),
    [(float, "1e999"), (float, "-2e400"), (float, "1e-400"), (list[float], "[1e999]")],
)
def test_a_number_beyond_a_float_is_an_error(annotation: Any, text: str):
    with pytest.raises(ParseError, match="a float cannot hold it"):
        field(annotation).parse(text)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Person, {"name": "", "age": 5, "home": {"city": "x", "founded": None}, "tags": []}),
        (Person, {"name": "n" * 300, "age": 5, "home": {"city": "x"}, "tags": ["t" * 90] * 40}),
        (Tree, {"name": "a", "children": [{"name": "b", "children": [{"name": "c"}]}]}),
        (dict[str, Any], {"a": 1.5, "b": ["x", None, {"d": {}}], "c": True}),
        (dict[str, str], {str(n): "v" * 200 for n in range(20)}),
        (list[str], [f"month {n}" for n in range(12)]),
        (list[Mood], ["good", 2]),
        (list[datetime.date], ["2024-02-29"]),
        (Optional[int], None),  # noqa: UP045
        (Optional[str], "two\nlines " * 60),  # noqa: UP045
    ],
)
def test_nothing_limits_what_the_type_does_not(annotation: Any, value: Any):
    shape = field(annotation).shape
    assert isinstance(shape.constraint, Lark)
    matcher = BYTES.start(shape.constraint, " ", "x")
    text = json.dumps(value, ensure_ascii=False)
    for byte in f" {text}".encode():
        matcher.consume(byte)
    assert matcher.can_end(len(text.encode()) + 1)
    TypeAdapter(annotation).validate_python(field(annotation).parse(text))


def test_a_bound_is_what_the_type_bounds():
    class Name(BaseModel):
        name: str = Field(max_length=16)

    assert (field(Name).shape.tokens or 0) >= len('{"name": ""}') + 4 * 16
    assert field(Person).shape.tokens is None
    assert field(list[int]).shape.tokens is None
    assert field(int).shape.is_small


def test_a_picture_of_the_values():
    assert field(Person).shape.sketch == (
        '{"name": text, "age": integer, "home": {"city": text, "founded": date or null}, '
        '"tags": [text, ...]}'
    )
    assert field(Tree).shape.sketch == '{"name": text, "children": [..., ...]}'
    assert field(dict[str, int]).shape.sketch == "{text: integer}"
    assert field(list[Any]).shape.sketch == "[any value, ...]"
    assert field(list[dict]).shape.sketch == "[{text: any value}, ...]"
    assert field(tuple[int, str]).shape.sketch == "[integer, text]"


def test_a_type_without_finite_values_is_named():
    with pytest.raises(UnsupportedType, match="without end"):
        field(Endless).constraint({})


def test_quotes_come_from_their_field():
    annotation = Quote["passages"]
    found = field(annotation).constraint({"passages": ["one", "two"]})
    assert found == Substring(("one", "two"))
    assert field(annotation).parse(" wo ") == "wo"
    with pytest.raises(UnknownField, match="passages"):
        field(annotation).constraint({"passage": "x"})


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (list[int], "[1, 2, 3"),
        (list[str], '["ab", "c'),
        (Person, '{"name": "Ada'),
        (int, "12"),
        (Literal["a", "ab"], "a"),
        (Annotated[str, Field(max_length=9)], "abc"),
        (Quote["passages"], "half a senten"),
    ],
)
def test_a_value_that_was_cut_is_an_error_that_names_the_limit(annotation: Any, text: str):
    with pytest.raises(ParseError, match="max_tokens"):
        field(annotation).read(Fill(text, "length"))


def test_free_text_that_was_cut_stays():
    assert field(str).read(Fill("and so", "length")) == "and so"


def test_a_key_that_stands_there_twice_is_an_error():
    assert field(dict[str, int]).parse('{"a": 1, "a": 1}') == {"a": 1}
    with pytest.raises(ParseError, match="'a' stands there twice"):
        field(dict[str, int]).parse('{"a": 1, "a": 2}')


@pytest.mark.parametrize(
    "text", ["x = 1\ny = 2", "```python\nx = 1\ny = 2\n```", "```\nx = 1\ny = 2"]
)
def test_code_is_text_without_its_fence(text: str):
    typed = field(dspy.Code["python"])
    assert typed.constraint({}) is None
    assert typed.shape.kind == "code"
    assert typed.read(Fill(text, "stop")).code == "x = 1\ny = 2"


def test_reasoning_is_text():
    typed = field(dspy.Reasoning)
    assert typed.constraint({}) is None
    assert typed.read(Fill(" because\n\nso ", "stop")).content == "because\n\nso"


def test_wrong_text_is_a_parse_error():
    with pytest.raises(ParseError, match="'year'"):
        field(int, "year").parse("soon")
    with pytest.raises(ParseError, match="low, high"):
        field(Literal["low", "high"], "level").parse("medium")
