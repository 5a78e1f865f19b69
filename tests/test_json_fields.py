"""Values as JSON: what a walk writes is JSON and reads as what a plain layout would have held."""

from __future__ import annotations

import enum
import json
from typing import Annotated, Any, Literal

import dspy
import pytest
from hypothesis import given, settings, strategies as st
from pydantic import Field
from pydantic.fields import FieldInfo
from test_typed_values import HELD, has_a_key_twice

from promptflow.engine.model.constraint import Walks
from promptflow.engine.request import Choice, Fill
from promptflow.fields import Quote, TypedField
from promptflow.json_fields import as_json, from_json, json_constraint
from promptflow.notation import Quote as QuoteMark


class Mood(enum.Enum):
    GOOD = "good"
    TWO = 2


def field(annotation: Any) -> TypedField:
    return TypedField.of("x", FieldInfo.from_annotation(annotation))


@pytest.mark.parametrize("annotation", [*HELD, dspy.Code], ids=lambda a: str(a)[:60])
def test_what_a_walk_writes_is_json_and_is_read(annotation: Any):
    typed = field(annotation)
    constraint, walks = json_constraint(typed, {}), Walks(seed=7)
    for _ in range(20):
        text = walks.text(constraint, 60)
        written = json.loads(text)
        plain = from_json(typed, text)
        assert not isinstance(written, str) or typed.shape.written == "json" or plain == written
        if not has_a_key_twice(plain):
            typed.read(Fill(plain, "constraint"))


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (str, 'say "a\\b"\n가', '"say \\"a\\\\b\\"\\n가"'),
        (bool, True, "true"),
        (Literal["low", 'a "b"', 3, None], 3, "3"),
        (Literal["low", 'a "b"', 3, None], None, "null"),
        (Literal["low", 'a "b"', 3, None], 'a "b"', '"a \\"b\\""'),
        (Mood, Mood.TWO, "2"),
        (Mood, Mood.GOOD, '"good"'),
        (int, -3, "-3"),
        (float, 2.5, "2.5"),
        (list[str], ["a", "b"], '["a", "b"]'),
        (str | None, None, "null"),
        (Annotated[str, Field(max_length=9)], "/a\tb/", '"/a\\tb/"'),
    ],
)
def test_a_value_and_its_json(annotation: Any, value: Any, text: str):
    typed = field(annotation)
    assert as_json(typed, typed.text(value)) == text
    assert typed.parse(from_json(typed, text)) == value


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str):
    typed = field(str)
    assert from_json(typed, as_json(typed, text)) == text


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('a"\\\n\t가 ')), st.integers(0, 30))
def test_a_text_that_is_cut_is_the_beginning_of_the_whole(text: str, length: int):
    typed = field(str)
    assert text.startswith(from_json(typed, as_json(typed, text)[:length]))


def test_a_quotation_cuts_no_escape_and_is_not_empty():
    source = 'He said "go\\on",\nand left. 가나'
    typed = field(Annotated[str, QuoteMark("passage")])
    constraint, walks = json_constraint(typed, {"passage": [source, "b"]}), Walks()
    found = {from_json(typed, walks.text(constraint, 12)) for _ in range(200)}
    assert all(text and (text in source or text == "b") for text in found)
    assert any('"' in text for text in found)
    assert any("\n" in text for text in found)
    assert Quote is QuoteMark


@pytest.mark.parametrize("stop", ["!", "\n", 'a"', "b c", "/", ".)", "\\"])
def test_free_text_ends_after_a_stop(stop: str):
    constraint, walks = json_constraint(field(str), {}, (stop, "##")), Walks()
    for _ in range(60):
        text = json.loads(walks.text(constraint, 400))
        assert text.strip()
        assert stop not in text or text.find(stop) == len(text) - len(stop)


def test_a_weighed_choice_has_its_options_as_json():
    typed = field(Literal["low", "high"])
    assert json_constraint(typed, {}) == Choice(('"low"', '"high"'))
    assert json_constraint(field(bool), {}) == Choice(("true", "false"))
