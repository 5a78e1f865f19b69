from __future__ import annotations

import json
from typing import Any

import pytest

from promptflow.engine.model.constraint import Constraints, Walks, byte_tokenizer
from promptflow.engine.request import Lark
from promptflow.errors import UnsupportedType
from promptflow.grammar import grammar_of, longest, sketch

BYTES = Constraints(byte_tokenizer(), 257)
NUMBER = {
    "x-written": "number",
    "x-patterns": ["0|[1-9][0-9]{0,2}"],
    "x-kind": "integer",
    "x-most": 3,
}
NODE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"n": NUMBER, "next": {"$ref": "#/$defs/node"}},
            "required": ["n"],
        }
    },
    "$ref": "#/$defs/node",
}


def holds(schema: dict[str, Any], value: Any) -> bool:
    matcher = BYTES.start(Lark(grammar_of(schema)), "", "x")
    text = (value if isinstance(value, str) else json.dumps(value)).encode()
    for byte in text:
        if not matcher.allowed()[byte]:
            return False
        matcher.consume(byte)
    return matcher.can_end(len(text))


def listed(low: int, high: int | None, **more: Any) -> dict[str, Any]:
    return {
        "type": "array",
        "minItems": low,
        **({} if high is None else {"maxItems": high}),
        **more,
    }


@pytest.mark.parametrize("first", range(3))
@pytest.mark.parametrize("low", range(4))
@pytest.mark.parametrize("high", [None, 0, 1, 2, 3])
def test_lists_of_every_length(first: int, low: int, high: int | None):
    if high is not None and low > high:
        return
    schema = listed(low, high, items=NUMBER, prefixItems=[{"type": "boolean"}] * first)
    for count in range(5):
        value = ([True] * first + [7] * count)[:count]
        assert holds(schema, value) == (low <= count and (high is None or count <= high))


@pytest.mark.parametrize("low", range(4))
@pytest.mark.parametrize("high", [None, 1, 2, 3])
def test_sets_of_options_hold_each_once(low: int, high: int | None):
    if high is not None and low > high:
        return
    schema = listed(low, high, items={"enum": ["a", "b", "c"]}, uniqueItems=True)
    for value in ([], ["a"], ["b", "c"], ["a", "b", "c"]):
        assert holds(schema, value) == (low <= len(value) and (high is None or len(value) <= high))
    assert not holds(schema, ["a", "a"])


def test_objects_keep_the_order_and_what_they_need():
    schema = {
        "type": "object",
        "properties": {"a": NUMBER, "b": {"type": "null"}, "c": {"type": "boolean"}},
        "required": ["b"],
    }
    for value in ({"a": 1, "b": None}, {"b": None, "c": True}, {"b": None}):
        assert holds(schema, value)
    for value in ({}, {"a": 1}, {"c": True, "b": None}, {"b": None, "d": 1}):
        assert not holds(schema, value)


def test_further_keys_are_none_of_the_own_ones():
    schema = {"type": "object", "properties": {"a/b": NUMBER}, "additionalProperties": True}
    assert holds(schema, {"a/b": 1, "x": [1, {"y": 2}]})
    assert holds(schema, {"x": 1})
    assert not holds(schema, {"x": 1, "a/b": 1})
    assert not holds(schema, {"a/b": 1, "a/b ": 1} | {"": 1})


@pytest.mark.parametrize(("low", "high"), [(0, None), (1, None), (2, 3), (0, 1)])
def test_dictionaries_count_their_entries(low: int, high: int | None):
    schema = {"type": "object", "x-keys": {"type": "string"}, "x-values": NUMBER}
    schema |= {"minProperties": low} | ({} if high is None else {"maxProperties": high})
    chosen = {**schema, "x-keys": {"enum": ["k0", "k1", "k2", "k3"]}}
    for count in range(5):
        value = {f"k{n}": n for n in range(count)}
        expected = low <= count and (high is None or count <= high)
        assert holds(schema, value) == holds(chosen, value) == expected


def test_a_value_may_hold_itself():
    assert holds(NODE, {"n": 1, "next": {"n": 2, "next": {"n": 3}}})
    assert longest(NODE, NODE["$defs"]) is None
    assert sketch(NODE, NODE["$defs"]) == '{"n": integer, "next": ...}'
    walks = Walks(seed=2)
    assert all(json.loads(walks.text(Lark(grammar_of(NODE)), 40)) for _ in range(20))


def test_what_never_ends_is_refused_or_left_out():
    endless = {"type": "object", "properties": {"e": {"$ref": "#/$defs/e"}}, "required": ["e"]}
    with pytest.raises(UnsupportedType, match="without end"):
        grammar_of({"$defs": {"e": endless}, "$ref": "#/$defs/e"})
    schema = {"$defs": {"e": endless}, "anyOf": [{"$ref": "#/$defs/e"}, NUMBER]}
    assert holds(schema, 1)
    assert not holds(schema, '{"e": ')


def test_blanks_cannot_be_written_without_end():
    assert not holds({"type": "array", "items": NUMBER}, "[1,  2]")
    assert not holds({}, '{ "a": 1}')
