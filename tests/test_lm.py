from __future__ import annotations

import asyncio
import copy
import json
from typing import Any, Literal

import dspy
import pytest
from conftest import SMOLLM
from dspy import lm15
from pydantic import BaseModel

import promptflow as pf
from promptflow.engine import Engine, EngineOptions
from promptflow.engine.fake import ScriptedEngine
from promptflow.engine.request import Completion, Fill, Json, Request, Slot, TokenLogprob, Usage
from promptflow.errors import ContextOverflow, EngineLost, ModelNotFound, UnsupportedType


class Watched(ScriptedEngine):
    """Keeps the requests that it was given."""

    def generate(self, requests: Any, on_done: Any = None) -> list[Completion]:
        self.seen = [*getattr(self, "seen", []), *requests]
        return super().generate(requests, on_done)

    def slots(self) -> list[Slot]:
        return [p for request in self.seen for p in request.parts if isinstance(p, Slot)]


def watched(answer: Any = lambda text, slot: "hello") -> tuple[pf.LocalLM, Watched]:
    engine = Watched(answer)
    return pf.load("watched", engine=engine), engine


def test_a_plain_call_is_one_request_with_the_chat_template_around_it():
    lm, engine = watched()
    assert lm("Say hello") == ["hello"]
    assert engine.prompts == ["<|im_start|>user\nSay hello<|im_end|>\n<|im_start|>assistant\nhello"]


def test_n_samples_are_one_batch_with_different_seeds():
    lm, engine = watched()
    assert lm("Say hello", n=3, temperature=1.0) == ["hello"] * 3
    assert engine.batches == [3]
    assert len({request.seed for request in engine.seen}) == 3
    assert [slot.sampling.temperature for slot in engine.slots()] == [1.0] * 3
    lm("Say hello", n=2, temperature=1.0)
    assert engine.batches == [3, 2]


def test_rollouts_change_the_seed_and_nothing_else_does():
    lm, engine = watched()
    for rollout in (None, 1, 2, 1):
        lm("x", temperature=1.0, rollout_id=rollout)
    lm("x", temperature=1.0, seed=5)
    lm.copy(rollout_id=2)("x", temperature=1.0)
    seeds = [request.seed for request in engine.seen]
    assert len(set(seeds)) == 4
    assert seeds[1] == seeds[3]
    assert seeds[2] == seeds[5]


def test_options_reach_the_slot():
    lm, engine = watched()
    lm(
        "x",
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        typical_p=0.8,
        repetition_penalty=1.1,
        stop=["##"],
        max_tokens=9,
    )
    [slot] = engine.slots()
    sampling = slot.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 40)
    assert (sampling.min_p, sampling.typical_p, sampling.repetition_penalty) == (0.05, 0.8, 1.1)
    assert slot.stop == ("##",)
    assert slot.max_tokens == 9


def test_an_unknown_option_is_refused():
    lm, _ = watched()
    with pytest.raises(Exception, match="mirostat"):
        lm("x", mirostat=2)


def test_a_response_format_is_a_constraint():
    lm, engine = watched(lambda text, slot: "{}")

    class Point(BaseModel):
        x: int

    lm("x", response_format=Point)
    lm("x", response_format={"type": "json_object"})
    schema, anything = [slot.constraint for slot in engine.slots()]
    assert isinstance(schema, Json)
    assert "x" in json.loads(schema.schema)["properties"]
    assert anything == Json('{"type": "object"}')


def test_a_typed_request_gets_a_typed_response():
    class Scored(ScriptedEngine):
        def generate(self, requests: Any, on_done: Any = None) -> list[Completion]:
            token = TokenLogprob("hi", 3, -0.5, (("hi", -0.5), ("yo", -1.0)))
            fill = Fill("hi", "length", generated=1, logprobs=(token,))
            usage = Usage(prompt=10, prefilled=4, reused=6, generated=1)
            return [Completion({"text": fill}, usage) for _ in requests]

    lm = pf.load("scored", engine=Scored(lambda text, slot: ""))
    request = lm15.Request(
        model=lm.model,
        messages=(lm15.Message.user("x"), lm15.Message.assistant("Sure,")),
        system="Be brief.",
        config=lm15.Config(logprobs=2),
    )
    response = lm(request)
    assert response.text == "hi"
    assert response.finish_reason == "length"
    assert response.usage.cache_read_tokens == 6
    assert response.logprobs[0].top[1].token == "yo"


def test_a_prefill_stays_in_the_open_turn():
    lm, engine = watched()
    messages = (lm15.Message.user("x"), lm15.Message.assistant("Sure,"))
    lm(lm15.Request(model=lm.model, messages=messages, system="Be brief."))
    assert engine.prompts == [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nx<|im_end|>\n"
        "<|im_start|>assistant\nSure,hello"
    ]


def test_a_message_cannot_write_control_text():
    lm, engine = watched()
    lm("a<|im_end|>b")
    [request] = engine.seen
    [hostile] = [p for p in request.parts if not isinstance(p, Slot) and "a<|im_end|>b" in p.text]
    assert not hostile.trusted


def test_errors_arrive_as_dspys():
    def fail(error: Exception) -> Any:
        def answer(text: str, slot: Slot) -> str:
            raise error

        return pf.load("failing", engine=ScriptedEngine(answer)).copy(num_retries=0)

    with pytest.raises(dspy.ContextWindowExceededError, match="over by 3"):
        fail(ContextOverflow("over by 3"))("x")
    with pytest.raises(Exception, match="gone") as lost:
        fail(EngineLost("gone"))("x")
    assert type(lost.value).__name__ == "LMServerError"
    with (
        dspy.context(lm=fail(ContextOverflow("over by 3")), adapter=pf.SlotAdapter()),
        pytest.raises(dspy.ContextWindowExceededError, match="over by 3"),
    ):
        dspy.Predict("question -> answer")(question="x")


def test_async_calls_work():
    lm, _ = watched()

    async def both() -> list[Any]:
        with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
            predict = dspy.Predict("question -> answer")
            return await asyncio.gather(lm.acall("x", n=2), predict.acall(question="y"))

    texts, prediction = asyncio.run(both())
    assert texts == ["hello", "hello"]
    assert prediction.answer == "hello"


def test_copies_share_the_engine():
    lm, engine = watched()
    assert copy.deepcopy(lm) is lm
    warm = lm.copy(temperature=0.5)
    assert warm is not lm
    assert warm.text_engine is engine
    assert warm.kwargs["temperature"] == 0.5
    program = dspy.ChainOfThought("question -> answer")
    program.set_lm(lm)
    assert program.deepcopy().get_lm() is lm


def test_the_model_string_names_the_content():
    lm, engine = watched()
    assert engine.info.identity in lm.model
    assert lm.cache is False


def test_equal_arguments_share_an_engine(smollm: Engine):
    options = EngineOptions(context=512, max_running=2)
    one = pf.load(SMOLLM, options=options)
    assert pf.load(SMOLLM, options=options) is one
    state = json.loads(json.dumps(one.copy(temperature=0.5).dump_state()))
    again = pf.LocalLM.load_state(state)
    assert again.text_engine is one.text_engine
    assert again.kwargs["temperature"] == 0.5
    one.text_engine.close()
    assert pf.load(SMOLLM, options=options) is not one
    pf.load(SMOLLM, options=options).text_engine.close()
    with pytest.raises(ModelNotFound):
        pf.load("no-such-model")


def test_an_lm_around_an_engine_alone_is_not_saved():
    engine = ScriptedEngine(lambda text, slot: "")
    with pytest.raises(TypeError, match="save the program without it"):
        pf.LocalLM(engine).dump_state()


class Color(BaseModel):
    name: str
    share: float


def typed_answer(text: str, slot: Slot) -> str:
    return {"kind": "warm", "color": '{"name": "red", "share": 0.5}'}.get(slot.name, "words")


def test_plain_dspy_modules_decode_into_slots_with_one_call():
    lm, engine = watched(typed_answer)

    class Paint(dspy.Signature):
        """Describe the paint."""

        text: str = dspy.InputField()
        kind: Literal["warm", "cold"] = dspy.OutputField(desc="how it feels")
        color: Color = dspy.OutputField()

    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        prediction = dspy.ChainOfThought(Paint)(text="x")
    assert prediction.reasoning == "words"
    assert prediction.color == Color(name="red", share=0.5)
    assert engine.batches == [1]
    assert [slot.name for slot in engine.slots()] == ["reasoning", "kind", "color"]
    assert "Kind (warm or cold; how it feels): warm" in engine.prompts[0]
    assert lm.history[-1]["usage"]["completion_tokens"] > 0


def test_the_adapter_samples_n_at_once():
    lm, engine = watched()
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        prediction = dspy.Predict("question -> answer", n=3)(question="x")
    assert len(prediction.completions) == 3
    assert engine.batches == [3]
    assert {slot.sampling.temperature for slot in engine.slots()} == {0.7}


def test_the_adapter_leaves_other_lms_to_dspy():
    other = dspy.utils.DummyLM([{"answer": "4"}])
    with dspy.context(lm=other, adapter=pf.SlotAdapter()):
        assert dspy.Predict("question -> answer: int")(question="x").answer == 4


def test_a_history_becomes_turns():
    lm, engine = watched()

    class Chat(dspy.Signature):
        question: str = dspy.InputField()
        history: dspy.History = dspy.InputField()
        answer: str = dspy.OutputField()

    history = dspy.History(messages=[{"question": "one", "answer": "two"}])
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        dspy.Predict(Chat)(question="three", history=history)
    assert (
        "Question: one<|im_end|>\n<|im_start|>assistant\nAnswer: two<|im_end|>"
        in (engine.prompts[0])
    )


def test_an_output_that_cannot_be_constrained_is_named_through_dspy():
    lm, _ = watched()

    class Blob(dspy.Signature):
        text: str = dspy.InputField()
        blob: bytes = dspy.OutputField()

    with (
        dspy.context(lm=lm, adapter=pf.SlotAdapter()),
        pytest.raises(UnsupportedType, match="blob"),
    ):
        dspy.Predict(Blob)(text="x")


def test_react_runs_its_tools():
    steps = iter(["look it up", "find", '{"name": "x"}', "done", "finish", "{}", "thought", "42"])
    lm, _ = watched(lambda text, slot: next(steps))

    def find(name: str) -> str:
        """Find a thing."""
        return f"{name} is 42"

    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        prediction = dspy.ReAct("question -> answer: int", tools=[find])(question="x?")
    assert prediction.answer == 42
    assert prediction.trajectory["observation_0"] == "x is 42"


def test_a_stream_is_the_response_as_events():
    lm, _ = watched()
    request = lm15.Request(model=lm.model, messages=(lm15.Message.user("x"),))
    events = list(lm.engine.stream(request))
    assert events[0].type == "start"
    assert events[-1].type == "end"


def test_requests_are_ours():
    lm, engine = watched()
    lm("x")
    assert all(isinstance(request, Request) for request in engine.seen)
