from __future__ import annotations

from typing import Any

import dspy
import pytest
from conftest import SMOLLM

import promptflow as pf
from promptflow.engine import Engine
from promptflow.engine.scripted import ScriptedEngine
from promptflow.lm.shown import Shown


class Chat(dspy.Signature):
    question: str = dspy.InputField()
    history: dspy.History = dspy.InputField()
    answer: str = dspy.OutputField()


PAST = dspy.History(messages=[{"question": "one", "answer": "two"}])
TURNS = "Question: one<|im_end|>\n<|im_start|>assistant\nAnswer: two<|im_end|>"


@pytest.mark.parametrize("kind", [dspy.Predict, pf.Predict])
def test_a_history_is_turns_whoever_asks(kind: Any):
    engine = ScriptedEngine(lambda text, slot: "four")
    with dspy.context(lm=pf.load("s", engine=engine), adapter=pf.SlotAdapter()):
        assert kind(Chat)(question="three", history=PAST).answer == "four"
        assert kind(Chat)(question="three", history=dspy.History(messages=[])).answer == "four"
    first, second = engine.prompts
    assert TURNS in first
    assert "Question: three" in first
    assert "History" not in first + second


def find(name: str) -> str:
    """Find a thing."""
    return f"{name} is 42"


def add(first: int, second: int = 0) -> int:
    """Add numbers."""
    return first + second


class Act(dspy.Signature):
    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    tool_calls: dspy.ToolCalls = dspy.OutputField()


GIVEN: dict[str, Any] = {"question": "q", "tools": [dspy.Tool(find), dspy.Tool(add)]}


def kind_of(options: dict[str, Any] | None = None) -> Any:
    return Shown.of(Act, GIVEN, options).signature.output_fields["tool_calls"].annotation


def test_only_the_tools_that_are_there_can_be_called_with_their_own_arguments():
    made = kind_of()
    made.model_validate({"tool_calls": [{"name": "add", "args": {"first": 1}}]})
    made.model_validate({"tool_calls": []})
    for name, args in (("sub", {"first": 1}), ("add", {"name": "x"}), ("add", {"first": "x"})):
        with pytest.raises(ValueError, match="validation error"):
            made.model_validate({"tool_calls": [{"name": name, "args": args}]})


def test_a_choice_of_a_tool_is_honoured():
    forced = kind_of({"tool_choice": {"type": "function", "function": {"name": "find"}}})
    forced.model_validate({"tool_calls": [{"name": "find", "args": {"name": "x"}}]})
    twice = [{"name": "find", "args": {"name": "x"}}] * 2
    for calls in ([], [{"name": "add", "args": {"first": 1}}], twice):
        with pytest.raises(ValueError, match="validation error"):
            forced.model_validate({"tool_calls": calls})
    one = kind_of({"parallel_tool_calls": False})
    with pytest.raises(ValueError, match="validation error"):
        one.model_validate({"tool_calls": [{"name": "find", "args": {"name": "x"}}] * 2})


@pytest.mark.parametrize("kind", [dspy.Predict, pf.Predict])
def test_what_comes_back_is_dspys_tool_calls(kind: Any):
    call = '{"tool_calls": [{"name": "add", "args": {"first": 1}}]}'
    lm = pf.load("s", engine=ScriptedEngine(lambda text, slot: call))
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        calls = kind(Act)(**GIVEN).tool_calls
    assert isinstance(calls, dspy.ToolCalls)
    assert [(c.name, c.args) for c in calls.tool_calls] == [("add", {"first": 1})]
    assert calls.tool_calls[0].execute([dspy.Tool(add)]) == 1


def test_react_v2_sees_what_its_tools_gave_and_ends():
    steps = iter(
        (
            "look it up",
            '{"tool_calls": [{"name": "find", "args": {"name": "x"}}]}',
            "done",
            '{"tool_calls": [{"name": "submit", "args": {"answer": 42}}]}',
        )
    )
    engine = ScriptedEngine(lambda text, slot: next(steps))
    with dspy.context(lm=pf.load("s", engine=engine), adapter=pf.SlotAdapter()):
        prediction = dspy.ReActV2("question -> answer: int", tools=[find])(question="x?")
    assert (prediction.answer, prediction.termination_reason) == (42, "submit")
    assert "Question: x?" in engine.prompts[1]
    assert "x is 42" in engine.prompts[1].split("look it up")[1]


def test_react_v2_is_made_to_submit_where_it_calls_nothing():
    engine = ScriptedEngine(lambda text, slot: "")
    submit = '{"tool_calls": [{"name": "submit", "args": {"answer": "42"}}]}'

    def answer(text: str, slot: Any) -> str:
        if slot.name == "next_thought":
            return "well"
        return submit if len(engine.prompts) else '{"tool_calls": []}'

    engine.answer = answer
    with dspy.context(lm=pf.load("s", engine=engine), adapter=pf.SlotAdapter()):
        prediction = dspy.ReActV2("question -> answer", tools=[find])(question="x?")
    assert (prediction.answer, prediction.termination_reason) == ("42", "forced_submit")


def test_react_v2_runs_to_its_end_on_a_small_model(smollm: Engine):
    lm = pf.load(SMOLLM, engine=smollm).copy(max_tokens=200)
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        agent = dspy.ReActV2("a: int, b: int -> sum: int", tools=[add], max_iters=2)
        prediction = agent(a=3, b=4)
    assert isinstance(prediction.sum, int)
    assert prediction.termination_reason in ("submit", "forced_submit")
