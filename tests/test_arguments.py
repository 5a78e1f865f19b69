from __future__ import annotations

import datetime
import enum
import functools
import json
import random
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal, Optional

import dspy
import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from promptflow.engine.model.constraint import Walks
from promptflow.engine.request import Fill
from promptflow.errors import ProgramError
from promptflow.fields import TypedField, call_of
from promptflow.lm.arguments import of_tool
from promptflow.lm.shown import plain_arguments


class Pace(enum.Enum):
    SLOW = "slow"
    FAST = "fast"


class Place(BaseModel):
    name: str
    height: int = 1
    tags: list[str] = []


class Crew(BaseModel):
    captain: str
    home: Place
    others: Optional[list[Place]] = None  # noqa: UP045


def text(query: str, times: int, share: float, sure: bool = False) -> str:
    return query * min(times, 1)


def options(pace: Pace, port: Literal["Ardel", "Cove", 3], day: Optional[int] = None) -> str:  # noqa: UP045
    return f"{pace.value}{port}{day}"


def lists(names: list[str], table: dict[str, int], rows: list[list[float]]) -> int:
    return len(names) + len(table) + len(rows)


def models(crew: Crew, others: list[Crew] = [], by: dict[str, Place] = {}) -> str:  # noqa: B006
    return crew.home.name


def nothing() -> int:
    return 1


def 항구(이름: str, größe: int) -> str:
    return 이름


def moments(
    day: datetime.date, at: datetime.datetime, key: uuid.UUID, sum_of: Decimal, raw: bytes = b""
) -> str:
    return day.isoformat()


def sets(some: set[int], paces: set[Pace], pair: tuple[int, str]) -> int:
    return len(some) + len(paces) + pair[0]


def limits(count: Annotated[int, Field(ge=3, le=5)], code: Annotated[str, Field(max_length=4)]):
    assert 3 <= count <= 5
    assert len(code) <= 4


def anything(data: dict[str, Any], value, either: int | str | None) -> str:
    return str(value)


def names(schema: str, copy: int, model_x: str, _own: int = 0, **more: Any) -> str:
    return schema


def keys(by: dict[int, str], days: dict[datetime.date, float], few: dict[Literal["a", "b"], int]):
    return len(by)


SCHEMAS = {
    "user-id": {"type": "integer", "minimum": 1, "maximum": 9},
    "mode": {"type": "string", "enum": ["r", "w"], "description": "how"},
    "when": {"type": "string", "format": "date-time"},
    "rows": {
        "type": "object",
        "properties": {"p": {"type": "array", "items": {"type": "number"}, "minItems": 2}},
        "required": ["p"],
        "additionalProperties": False,
    },
}


def served(**given: Any) -> str:
    return str(given)


SERVED = dspy.Tool(
    served,
    name="served",
    args=SCHEMAS,
    arg_types={"user-id": int, "mode": str, "when": str, "rows": dict},
)
TOOLS = [
    *map(
        dspy.Tool,
        (text, options, lists, models, nothing, 항구, moments, sets, limits, anything, names, keys),
    ),
    SERVED,
]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_what_can_be_written_can_be_called_cut_or_not(tool: dspy.Tool):
    """DSPy checks arguments by JSON Schema and by type, and the function takes them."""
    constraint = TypedField("args", of_tool(tool).kind()).shape.constraint
    assert constraint is not None
    walks, chance = Walks(5), random.Random(5)
    for _ in range(12):
        written = walks.text(constraint, 150)
        data = written.encode()
        cut = data[: chance.randrange(len(data))].decode(errors="ignore")
        for fill in (Fill(written, "stop"), Fill(cut, "length")):
            tool(**plain_arguments(tool, call_of(fill, constraint)))


def test_limits_in_annotated_are_held_though_dspy_drops_them():
    kind = TypeAdapter(of_tool(dspy.Tool(limits)).kind())
    kind.validate_python({"count": 3, "code": "abcd"})
    for wrong in ({"count": 2, "code": ""}, {"count": 3, "code": "abcde"}, {"count": 3}):
        with pytest.raises(ValidationError):
            kind.validate_python(wrong)


def test_types_that_are_given_come_before_those_of_the_function():
    tool = dspy.Tool(text, arg_types={"query": Literal["a", "b"], "times": int, "share": float})
    assert of_tool(tool).types["query"] == Literal["a", "b"]


def test_what_a_server_needs_stands_in_its_description():
    tool = dspy.Tool(
        served,
        args={"a": {"type": "string"}, "b": {"type": "string"}},
        arg_types={"a": str, "b": str},
        arg_desc={"a": "first (Required)", "b": "second"},
    )
    assert set(of_tool(tool).defaults) == {"b"}
    assert set(of_tool(SERVED).defaults) == set()


def positional(a: int, /) -> int:
    return a


def starred(*all_of: int) -> int:
    return len(all_of)


def pictured(picture: dspy.Image) -> str:
    return ""


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        (dspy.Tool(positional), "cannot be given 'a' by its name"),
        (dspy.Tool(starred), "cannot be given 'all_of' by its name"),
        (dspy.Tool(pictured), "picture"),
        (dspy.Tool(text, args={"query": {"type": "string"}}), "needs 'times'"),
        (dspy.Tool(nothing, args={"x": {"type": "string"}}), "no such argument"),
        (
            dspy.Tool(served, args={"x": {"type": "string", "not": {}}}),
            r"Schema of its argument 'x' cannot be held: Unimplemented keys: .\"not\"",
        ),
    ],
)
def test_what_no_model_can_call_is_refused_by_name(tool: dspy.Tool, says: str):
    with pytest.raises(ProgramError, match=says):
        of_tool(tool)


REMARKED = {
    "type": "object",
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "properties": {
        "format": {"type": "string", "format": "byte", "examples": ["a"]},
        "tags": {"type": "array", "items": {"type": "integer", "format": "int32"}},
        "only": {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True},
    },
    "required": ["format", "only"],
    "additionalProperties": False,
}


def test_a_schema_that_says_what_its_type_says_is_that_type():
    args = {"a": {"type": "integer", "title": "A"}, "b": {"type": "number"}, "c": {}}
    tool = dspy.Tool(served, args=args, arg_types={"a": int, "b": float})
    assert of_tool(tool).types == {"a": int, "b": float, "c": Any}


def test_remarks_of_a_schema_hold_nothing():
    tool = dspy.Tool(served, args={"x": REMARKED}, arg_types={"x": dict})
    constraint = TypedField("args", of_tool(tool).kind()).shape.constraint
    assert constraint is not None
    walks = Walks(1)
    for _ in range(20):
        given = plain_arguments(tool, call_of(Fill(walks.text(constraint, 80), "stop"), constraint))
        tool(**given)
        assert {"format", "only"} <= set(given["x"])


def test_a_tool_is_read_once():
    assert of_tool(dspy.Tool(text)) is of_tool(dspy.Tool(text))


def test_a_bound_function_keeps_what_is_left():
    half = functools.partial(text, times=2)
    schemas = {k: v for k, v in dspy.Tool(text).args.items() if k != "times"}
    tool = dspy.Tool(half, name="half", args=schemas, arg_types={"query": str, "share": float})
    assert set(of_tool(tool).types) == {"query", "share", "sure"}


def test_a_key_that_stands_twice_keeps_its_last_value():
    constraint = TypedField("args", of_tool(dspy.Tool(lists)).kind()).shape.constraint
    assert constraint is not None
    written = json.dumps({"names": [], "table": {"a": 1, "b": 2}, "rows": []})
    twice = written.replace('"b": 2', '"a": 2')
    assert call_of(Fill(twice, "stop"), constraint)["table"] == {"a": 2}
