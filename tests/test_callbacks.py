from __future__ import annotations

import asyncio
from typing import Any

import dspy
import pytest
from dspy.clients.base_lm import GLOBAL_HISTORY
from dspy.utils import callback_context
from dspy.utils.callback import BaseCallback

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import ConstraintError

OWNERS = (dspy.Module, dspy.Adapter, dspy.BaseLM)
STEPS = ("module", "lm", "adapter_format", "adapter_parse")


class Heard(BaseCallback):
    """Keeps what it hears, as (step, class, the step around it) and (step, what it ended in)."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.inputs: list[Any] = []
        self.names: dict[Any, str] = {None: ""}
        for kind in STEPS:
            setattr(self, f"on_{kind}_start", self._start(kind))
            setattr(self, f"on_{kind}_end", self._end(kind))

    def _start(self, kind: str) -> Any:
        def start(call_id: str, instance: Any, inputs: Any) -> None:
            around = self.names[callback_context.ACTIVE_CALL_ID.get()]
            self.names[call_id] = kind
            [owner] = {c.__name__ for c in OWNERS if isinstance(instance, c)}
            self.told.append((kind, owner, around))
            self.inputs.append(inputs)

        return start

    def _end(self, kind: str) -> Any:
        def end(call_id: str, outputs: Any, exception: Any = None) -> None:
            assert self.names[call_id] == kind
            self.told.append((kind, type(exception).__name__ if exception else "done"))

        return end


def scripted(**said: str) -> pf.LocalLM:
    return pf.load("scripted", engine=ScriptedEngine(lambda text, slot: said[slot.name]))


def hear(program: Any, lm: Any, adapter: Any, how: str = "sync", **inputs: Any) -> Heard:
    heard = Heard()
    with dspy.context(lm=lm, adapter=adapter, callbacks=[heard]):
        if how == "async":
            asyncio.run(program.acall(**inputs))
        elif how == "stream":
            list(dspy.streamify(program, async_streaming=False)(**inputs))
        else:
            program(**inputs)
    return heard


ONE_CALL = [
    ("module", "Module", ""),
    ("adapter_format", "Adapter", "module"),
    ("adapter_format", "done"),
    ("lm", "BaseLM", "module"),
    ("lm", "done"),
    ("adapter_parse", "Adapter", "module"),
    ("adapter_parse", "done"),
    ("module", "done"),
]


def kinds(told: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [(step[0], *step[2:]) if len(step) == 3 else step for step in told]


@pytest.mark.parametrize("how", ["sync", "async", "stream"])
@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        (dspy.Predict, dspy.Predict),
        (pf.Predict, dspy.Predict),
        (dspy.ChainOfThought, dspy.ChainOfThought),
        (pf.ChainOfThought, dspy.ChainOfThought),
    ],
)
def test_a_call_is_told_as_dspy_tells_its_own(kind: Any, theirs: Any, how: str):
    said = {"answer": "x", "reasoning": "because"}
    dummy = dspy.utils.DummyLM([said])
    own = hear(theirs("question -> answer"), dummy, dspy.ChatAdapter(), question="q")
    heard = hear(kind("question -> answer"), scripted(**said), pf.SlotAdapter(), how, question="q")
    assert kinds(heard.told) == kinds(own.told)
    if theirs is dspy.Predict:
        assert heard.told == own.told == ONE_CALL
    [call] = [given for given in heard.inputs if "messages" in given]
    assert [message["role"] for message in call["messages"]] == ["system", "user"]
    assert call["messages"][-1]["content"] == "Question: q"


class Twice(pf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = pf.Predict("question -> answer")
        self.second = pf.Predict("answer -> verdict")

    def flow(self, **inputs: Any) -> Any:
        [one] = yield [self.first.call(**inputs)]
        [two] = yield [self.second.call(answer=one.answer)]
        return two


def test_inner_predictors_are_steps_of_their_module_and_keep_histories():
    lm, program = scripted(answer="x", verdict="good"), Twice()
    heard = hear(program, lm, pf.SlotAdapter(), question="q")
    inner = [*ONE_CALL]
    inner[0] = ("module", "Module", "module")
    assert kinds(heard.told) == kinds([ONE_CALL[0], *inner, *inner, ONE_CALL[-1]])
    assert len(program.history) == len(lm.history) == 2
    assert GLOBAL_HISTORY[-2:] == lm.history  # it keeps the last 10,000
    [first], [second] = program.first.history, program.second.history
    assert first["outputs"] == ["Answer: x"]
    assert second["messages"][-1] == {"role": "user", "content": "Answer: x"}


def test_histories_show_every_option():
    lm = scripted(answer="x").copy(temperature=0.5, seed=3)
    for kind in (dspy.Predict, pf.Predict):
        with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
            kind("question -> answer", max_tokens=9, top_k=4, min_p=0.1)(question="q")
        kwargs = lm.history[-1]["kwargs"]
        for name, value in (("temperature", 0.5), ("max_tokens", 9), ("top_k", 4), ("min_p", 0.1)):
            assert kwargs[name] == value
        assert "seed" in kwargs
        assert "metadata" not in kwargs


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("kind", [dspy.Predict, pf.Predict])
def test_errors_are_told(kind: Any, how: str):
    def fail(text: str, slot: Any) -> str:
        raise ConstraintError("no such grammar")

    lm = pf.load("failing", engine=ScriptedEngine(fail))
    heard = Heard()
    with dspy.context(lm=lm, adapter=pf.SlotAdapter(), callbacks=[heard]):
        predict = kind("question -> answer")
        with pytest.raises(ConstraintError, match="no such grammar"):
            asyncio.run(predict.acall(question="q")) if how == "async" else predict(question="q")
    assert heard.told[-2:] == [("lm", "ConstraintError"), ("module", "ConstraintError")]


def test_a_callback_that_fails_breaks_nothing():
    class Broken(BaseCallback):
        def on_lm_start(self, **told: Any) -> None:
            raise RuntimeError("broken")

    with dspy.context(lm=scripted(answer="x"), callbacks=[Broken()]):
        assert pf.Predict("question -> answer")(question="q").answer == "x"
