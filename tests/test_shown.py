from __future__ import annotations

import json
from typing import Any

import dspy
import pytest
from conftest import SMOLLM
from pydantic import TypeAdapter

import promptflow as pf
from promptflow.engine import Engine
from promptflow.engine.model.constraint import Walks
from promptflow.engine.request import Completion, Fill
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import ParseError, ProgramError
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
    return TypeAdapter(
        Shown.of(Act, GIVEN, options).signature.output_fields["tool_calls"].annotation
    )


def test_only_the_tools_that_are_there_can_be_called_with_their_own_arguments():
    made = kind_of()
    made.validate_python({"tool_calls": [{"name": "add", "args": {"first": 1}}]})
    made.validate_python({"tool_calls": []})
    for name, args in (("sub", {"first": 1}), ("add", {"name": "x"}), ("add", {"first": "x"})):
        with pytest.raises(ValueError, match="validation error"):
            made.validate_python({"tool_calls": [{"name": name, "args": args}]})


def test_a_choice_of_a_tool_is_honoured():
    forced = kind_of({"tool_choice": {"type": "function", "function": {"name": "find"}}})
    forced.validate_python({"tool_calls": [{"name": "find", "args": {"name": "x"}}]})
    twice = [{"name": "find", "args": {"name": "x"}}] * 2
    for calls in ([], [{"name": "add", "args": {"first": 1}}], twice):
        with pytest.raises(ValueError, match="validation error"):
            forced.validate_python({"tool_calls": calls})
    one = kind_of({"parallel_tool_calls": False})
    with pytest.raises(ValueError, match="validation error"):
        one.validate_python({"tool_calls": [{"name": "find", "args": {"name": "x"}}] * 2})


@pytest.mark.parametrize("kind", [dspy.Predict, pf.Predict])
def test_what_comes_back_is_dspys_tool_calls(kind: Any):
    call = '{"tool_calls": [{"name": "add", "args": {"first": 1}}]}'
    lm = pf.load("s", engine=ScriptedEngine(lambda text, slot: call))
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        calls = kind(Act)(**GIVEN).tool_calls
    assert isinstance(calls, dspy.ToolCalls)
    assert [(c.name, c.args) for c in calls.tool_calls] == [("add", {"first": 1})]
    assert calls.tool_calls[0].execute([dspy.Tool(add)]) == 1


def reacting(fill: Any, *tools: Any, **options: Any) -> tuple[Any, list[pf.Slot]]:
    """The trajectory of ``dspy.ReAct`` on a model that answers by ``fill``, and its slots."""
    slots: list[pf.Slot] = []

    def answer(text: str, slot: pf.Slot) -> str:
        slots.append(slot)
        return str(fill(slot))

    with dspy.context(lm=pf.load("s", engine=ScriptedEngine(answer)), adapter=pf.SlotAdapter()):
        agent = dspy.ReAct("question -> answer", tools=list(tools), max_iters=1)
        return agent(question="?").trajectory, slots


def colours(some: set[int], table: dict[str, int]) -> str:
    """Count colours."""
    return f"{sorted(some)} {table}"


@pytest.mark.parametrize("predict", [dspy.Predict, pf.Predict])
def test_react_holds_arguments_to_the_tool_that_it_named(predict: Any):
    texts = {"next_thought": "t", "next_tool_name": "add", "next_tool_args": '{"first": 40}'}
    seen: list[pf.Slot] = []

    def answer(text: str, slot: pf.Slot) -> str:
        seen.append(slot)
        return texts.get(slot.name, "42")

    with dspy.context(lm=pf.load("s", engine=ScriptedEngine(answer)), adapter=pf.SlotAdapter()):
        agent = dspy.ReAct("question -> answer", tools=[find, add], max_iters=1)
        agent.react = predict(agent.react.signature)
        result = agent(question="?")
    assert result.trajectory["observation_0"] == 40
    [slot] = [slot for slot in seen if slot.name == "next_tool_args"]
    walks = Walks()
    for _ in range(20):
        made = json.loads(walks.text(slot.constraint))
        assert isinstance(made["first"], int)
        assert set(made) <= {"first", "second"}


def test_react_ends_without_arguments():
    _, slots = reacting(lambda slot: {"next_tool_name": "finish"}.get(slot.name, "{}"), add)
    [slot] = [slot for slot in slots if slot.name == "next_tool_args"]
    assert Walks().text(slot.constraint) == "{}"


def test_what_a_set_drops_is_not_held_against_a_call():
    texts = {
        "next_tool_name": "colours",
        "next_tool_args": '{"some": [2, 1, 2], "table": {"a": 1, "a": 2}}',
    }
    steps, _ = reacting(lambda slot: texts.get(slot.name, "x"), colours)
    assert steps["tool_args_0"] == {
        "some": [2, 1],
        "table": {"a": 2},
    }
    assert steps["observation_0"] == "[1, 2] {'a': 2}"


def test_a_call_that_was_cut_is_ended_and_said(caplog: pytest.LogCaptureFixture):
    shown = Shown.of(Act, GIVEN)

    def read(text: str) -> list[Any]:
        cut = Completion({"tool_calls": Fill(text, "length")})
        return [(call.name, call.args) for call in shown.read(cut)["tool_calls"].tool_calls]

    one = '{"tool_calls": [{"name": "add", "args": {"first": 1, "second": 2}}'
    assert read(f'{one}, {{"name": "find", "args": {{"name": "a') == [
        ("add", {"first": 1, "second": 2})
    ]
    assert read(one) == [("add", {"first": 1, "second": 2})]
    assert read('{"tool_calls": [{"name": "find", "args": {"name": "ab') == [
        ("find", {"name": "ab"})
    ]
    assert "was cut" in caplog.text
    with pytest.raises(ParseError, match="before it named a tool"):
        read('{"tool_calls": [{"name": "fi')


def test_a_step_of_react_alone_takes_any_arguments():
    """Its signature has the names of the tools, and not what they take."""
    engine = ScriptedEngine(
        lambda text, slot: {"next_tool_name": "add", "next_tool_args": '{"x": 1}'}.get(
            slot.name, ""
        )
    )
    with dspy.context(lm=pf.load("s", engine=engine), adapter=pf.SlotAdapter()):
        step = dspy.ReAct("question -> answer", tools=[add]).react
        assert step(question="?", trajectory="").next_tool_args == {"x": 1}


def positional(first: int, /) -> int:
    """Add."""
    return first


@pytest.mark.parametrize("kind", [dspy.ReAct, dspy.ReActV2])
def test_a_tool_that_cannot_be_called_is_refused_before_the_model_is(kind: Any):
    engine = ScriptedEngine(lambda text, slot: "")
    agent = kind("question -> answer", tools=[positional])
    lm = pf.load("s", engine=engine)
    with (
        dspy.context(lm=lm, adapter=pf.SlotAdapter()),
        pytest.raises(ProgramError, match="positional"),
    ):
        agent(question="?")
    assert engine.prompts == []


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
