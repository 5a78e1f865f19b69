from __future__ import annotations

import datetime
import decimal
import enum
import json
import re
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, Optional

import jsonschema
import pytest
from pydantic import BaseModel, Field, HttpUrl, TypeAdapter
from pydantic.fields import FieldInfo

from promptflow.engine.request import Choice, Fill, Json, Regex, Substring
from promptflow.errors import ParseError, UnknownField, UnsupportedType
from promptflow.fields import Quote, TypedField, to_text


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
        (int, ["0", "-7", "999999999999999"], ["007", "1.5", "", "1234567890123456"]),
        (float, ["0.5", "12", "-3.25"], ["1e9", ".5", "1.", "0.1234567"]),
        (datetime.date, ["2000-02-29", "1999-12-31"], ["1900-02-29", "2023-02-30", "0000-01-01"]),
        (datetime.time, ["23:59", "00:00:01"], ["24:00", "7:00"]),
        (Annotated[str, Field(max_length=3)], ["abc"], ["abcd", "a\nb", ""]),
        (Annotated[str, Field(pattern="^[A-Z]{2}$")], ["AB"], ["ab", "ABC"]),
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


def schema_of(annotation: Any) -> dict:
    constraint = field(annotation).constraint({})
    assert isinstance(constraint, Json)
    return json.loads(constraint.schema)


def test_schemas_are_bounded_and_keep_the_order_of_fields():
    schema = schema_of(Person)
    assert list(schema["properties"]) == ["name", "age", "home", "tags"]
    assert schema["properties"]["age"] == {"minimum": 0, "maximum": 130, "type": "integer"}
    assert schema["properties"]["name"]["maxLength"] <= 200
    assert schema["properties"]["tags"]["maxItems"] <= 16
    assert schema["additionalProperties"] is False
    assert "$ref" not in json.dumps(schema)


def test_limits_of_the_type_win_over_the_default_ones():
    items = schema_of(Annotated[list[Annotated[str, Field(max_length=900)]], Field(max_length=40)])
    assert items["maxItems"] == 40
    assert items["items"]["maxLength"] == 900


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Person, {"name": "", "age": 5, "home": {"city": "x", "founded": None}, "tags": []}),
        (Tree, {"name": "a", "children": [{"name": "b", "children": []}]}),
        (dict[str, Any], {"a": 1.5, "b": ["x", None], "c": True}),
        (list[Mood], ["good", 2]),
        (dict[Literal["a", "b"], int], {"a": 1}),
        (list[datetime.date], ["2024-02-29"]),
        (Optional[int], None),  # noqa: UP045
        (Annotated[float, Field(gt=0, lt=1)], 0.25),
    ],
)
def test_values_of_the_schema_parse(annotation: Any, value: Any):
    schema = {k: v for k, v in schema_of(annotation).items() if k != "x-guidance"}
    jsonschema.validate(value, schema)
    TypeAdapter(annotation).validate_python(field(annotation).parse(json.dumps(value)))


def test_the_budget_covers_the_longest_value():
    shape = field(Person).shape
    assert shape.tokens is not None
    longest = {
        "name": "n" * 200,
        "age": 130,
        "home": {"city": "c" * 200, "founded": "2024-02-29"},
        "tags": ["t" * 200] * 16,
    }
    schema = json.loads(shape.constraint.schema)
    limit = schema["properties"]["tags"]
    longest["tags"] = ["t" * limit["items"]["maxLength"]] * limit["maxItems"]
    longest["name"] = "n" * schema["properties"]["name"]["maxLength"]
    longest["home"]["city"] = "c" * schema["properties"]["home"]["properties"]["city"]["maxLength"]
    keys = sum(len(key) for key in ("name", "age", "home", "city", "founded", "tags"))
    assert len(json.dumps(longest)) - keys <= shape.tokens + 30


def test_the_budget_covers_scripts_whose_characters_are_several_tokens():
    class Name(BaseModel):
        name: str = Field(max_length=16)

    assert (field(Name).shape.tokens or 0) >= len('{"name": ""}') // 2 + 4 * 16


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (bytes, "bytes"),
        (Callable[[], int], "Callable"),
        (HttpUrl, "uri"),
        (dict[int, str], "int"),
        (Endless, "without end"),
        (Annotated[str, Field(pattern=r"(?=a)b")], "looks around"),
        (re.Pattern, "regex"),
    ],
)
def test_a_type_that_cannot_be_constrained_is_named(annotation: Any, says: str):
    with pytest.raises(UnsupportedType, match=says) as caught:
        field(annotation, "when").constraint({})
    assert "'when'" in str(caught.value)


def test_quotes_come_from_their_field():
    annotation = Quote["passages"]
    found = field(annotation).constraint({"passages": ["one", "two"]})
    assert found == Substring(("one", "two"))
    assert field(annotation).parse(" wo ") == "wo"
    with pytest.raises(UnknownField, match="passages"):
        field(annotation).constraint({"passage": "x"})


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (list[int], "[1, 2, 3", [1, 2]),
        (list[str], '["ab", "c', ["ab", "c"]),
        (dict[str, Any], '{"a": 1, "b": {"c"', {"a": 1, "b": {}}),
        (int, "12", 12),
    ],
)
def test_a_value_that_was_cut_is_closed(annotation: Any, text: str, value: Any):
    assert field(annotation).read(Fill(text, "length")) == value


def test_a_cut_value_without_its_fields_says_to_raise_max_tokens():
    with pytest.raises(ParseError, match="max_tokens"):
        field(Person).read(Fill('{"name": "Ada', "length"))


def test_wrong_text_is_a_parse_error():
    with pytest.raises(ParseError, match="'year'"):
        field(int, "year").parse("soon")
    with pytest.raises(ParseError, match="low, high"):
        field(Literal["low", "high"], "level").parse("medium")
