from __future__ import annotations

from typing import Literal

import dspy
import pydantic
import pytest

from promptflow.errors import ProgramError
from promptflow.flow import Module
from promptflow.modules.predict import Predict
from promptflow.optimization.variant import Variant, copied, start_of
from promptflow.program.classes import typed
from promptflow.program.identity import hash_of, program_state


class Pair(Module):
    def __init__(self, index):
        super().__init__()
        self.first = Predict("question -> query")
        self.steps = [Predict("query -> answer")]
        self.same = self.first
        self.index = index


def test_a_variant_is_put_on_by_name():
    program = Pair(index=object())
    start = start_of(program)
    assert set(start.instructions) == {"first", "steps[0]"}
    variant = Variant(
        "x",
        {"steps[0]": "Be brief."},
        {"steps[0]": ({"query": "1+1", "answer": "2"},)},
    )
    made = variant.apply(program)
    assert made.steps[0].signature.instructions == "Be brief."
    assert made.steps[0].demos[0].answer == "2"
    assert made.first.demos == []
    assert program.steps[0].demos == []
    assert hash_of(program_state(program)) != hash_of(program_state(made))


def test_a_layout_is_a_part_of_a_variant():
    program = Pair(index=None)
    start = start_of(program)
    made = Variant("x", start.instructions, start.demos, {"first": "fields"})
    assert made.key != start.key
    assert made.apply(program).first.decoding.layout == "fields"
    assert made.apply(program).steps[0].decoding.layout is None
    assert program.first.decoding.layout is None


def test_the_start_changes_nothing():
    program = Pair(index=None)
    program.first.demos = [dspy.Example(question="a", query="b")]
    made = start_of(program).apply(program)
    assert hash_of(program_state(program)) == hash_of(program_state(made))


def test_a_copy_shares_the_index_and_keeps_its_shape():
    program = Pair(index=object())
    twin = copied(program)
    assert twin.index is program.index
    assert twin.first is not program.first
    assert twin.same is twin.first
    twin.steps[0].demos.append({"query": "x"})
    assert program.steps[0].demos == []


def test_equal_contents_have_equal_keys_whatever_the_label():
    a = Variant("a", {"self": "x"}, {"self": ({"q": 1},)})
    assert a.key == Variant("b", {"self": "x"}, {"self": ({"q": 1},)}).key
    assert a.key != Variant("a", {"self": "y"}, {"self": ({"q": 1},)}).key
    assert a.size == 1


class Town(pydantic.BaseModel):
    name: str
    people: int


def test_demos_get_the_types_of_their_fields():
    class Towns(dspy.Signature):
        question: str = dspy.InputField()
        town: Town = dspy.OutputField()
        size: Literal["small", "big"] = dspy.OutputField()

    demo = typed(Towns, {"question": "?", "town": {"name": "Ulm", "people": 9}, "size": "huge"})
    assert demo["town"] == Town(name="Ulm", people=9)
    assert demo["size"] == "huge"


def test_an_unknown_predictor_is_named():
    with pytest.raises(ProgramError, match=r"no predictor 'last'; it has first, steps\[0\]"):
        Variant("x", {"last": "y"}).apply(Pair(None))
    with pytest.raises(ProgramError, match="no predictor to optimize"):
        start_of(Module())
