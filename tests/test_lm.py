from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import pickle
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import dspy
import pytest
from conftest import SMOLLM
from dspy import lm15
from dspy.utils.exceptions import LMServerError
from pydantic import BaseModel
from test_layout import THINKING

import promptflow as pf
from promptflow.engine import Engine, EngineOptions
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import (
    Completion,
    Fill,
    Json,
    Request,
    Slot,
    Text,
    TokenLogprob,
    Usage,
)
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import (
    ContextOverflow,
    EngineError,
    EngineLost,
    ModelNotFound,
    NoReasoningBlock,
    UnsupportedType,
)
from promptflow.lm import local


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


OPENAI_STYLE = pytest.mark.filterwarnings("ignore:Passing OpenAI-style:DeprecationWarning")


def templated(template: str, answer: Any = lambda text, slot: slot.name) -> Any:
    lm, engine = watched(answer)
    engine.info = dataclasses.replace(engine.info, template=template)
    return lm, engine


def test_a_plain_call_answers_with_the_block_closed_and_thinks_where_it_is_asked_to():
    lm, engine = templated(THINKING)
    closed = "<|user|>x<|end|><|assistant|><think>\n\n</think>\n\ntext"
    for thinking in (None, False, "auto"):
        assert lm("x", thinking=thinking) == ["text"]
    assert engine.prompts == [closed] * 3
    thought = {"text": "text", "reasoning_content": "thinking"}
    assert lm("x", thinking=True, max_tokens=40, logprobs=True)[0].items() >= thought.items()
    assert lm.copy(thinking=True)("x", n=2) == [thought] * 2
    assert lm.copy(thinking=True)("x", thinking=False) == ["text"]
    assert engine.prompts[3] == ("<|user|>x<|end|><|assistant|><think>\nthinking\n</think>\n\ntext")
    slot, text = [part for part in engine.seen[3].parts if isinstance(part, Slot)]
    assert slot.stop == ("\n</think>", "</think>")
    assert (slot.max_tokens, text.max_tokens, text.least, slot.logprobs) == (40, 40, 32, None)
    with pytest.raises(NoReasoningBlock, match="thinking=True"):
        watched()[0]("x", thinking=True)


def test_a_stream_tells_reasoning_apart():
    lm, _ = templated(THINKING)
    told = [*lm.engine.stream(typed(lm, {"thinking": True}))]
    deltas = [event.delta for event in told if event.type == "delta"]
    assert deltas == [lm15.ThinkingDelta("thinking", 0), lm15.TextDelta("text", 1)]
    assert told[-1].usage.reasoning_tokens == 1
    closed = [event.delta for event in lm.engine.stream(typed(lm)) if event.type == "delta"]
    assert closed == [lm15.TextDelta("text", 0)]


@OPENAI_STYLE
def test_reasoning_in_messages_stands_in_the_block_of_its_turn():
    lm, engine = templated(THINKING)
    asked: Any = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "because</think>"},
        {"role": "user", "content": "c"},
    ]
    lm(messages=asked)
    assert engine.prompts[0].startswith(
        "<|user|>a<|end|><|assistant|><think>\nbecause</think>\n</think>\n\nb<|end|><|user|>c<|end|>"
    )
    assert any(not part.trusted and part.text == "because</think>" for part in engine.seen[0].parts)
    lm(messages=asked[:2])  # begun: the model goes on after b
    assert engine.prompts[1] == (
        "<|user|>a<|end|><|assistant|><think>\nbecause</think>\n</think>\n\nbtext"
    )
    for messages in (asked, asked[:2]):
        with pytest.raises(EngineError, match="leave out its reasoning_content"):
            watched()[0](messages=messages)
    late = lm15.Message.assistant([lm15.TextPart("b"), lm15.ThinkingPart("because")])
    with pytest.raises(EngineError, match="ThinkingPart; reasoning comes before"):
        lm(lm15.Request(model=lm.model, messages=(lm15.Message.user("a"), late)))


ROLES = (
    "{% for m in messages %}{% if m.role == 'tool' %}<|result|>{{ m.content }}"
    "{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}<|assistant|>"
)


@OPENAI_STYLE
def test_developer_and_tool_roles_are_written_as_the_template_does():
    asked: Any = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "developer", "content": "d"},
        {"role": "tool", "tool_call_id": "1", "content": "r"},
        {"role": "tool", "tool_call_id": "2", "content": "t"},
    ]
    lm, engine = templated(ROLES)
    lm(messages=asked)
    assert engine.prompts == [
        "<|system|>s<|user|>a<|system|>d<|result|>r<|result|>t<|assistant|>text"
    ]
    lm, engine = templated(ROLES.replace("'tool'", "'none'") + "{# 'developer' #}")
    lm(messages=asked)
    assert engine.prompts == [
        "<|system|>s<|user|>a<|developer|>d<|user|>r<|user|>t<|assistant|>text"
    ]


@OPENAI_STYLE
def test_what_a_message_holds_beside_text_is_refused_by_name():
    lm, engine = watched()
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = [
        (
            {"role": "assistant", "content": "x", "tool_calls": [call]},
            "ToolCallPart; write the call",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "http://a/b"}}],
            },
            "ImagePart; local models read text alone",
        ),
    ]
    for message, refused in said:
        with pytest.raises(EngineError, match=refused):
            lm(messages=[{"role": "user", "content": "a"}, message])
    wrong = lm15.Message.tool("1", "gone", is_error=True)
    with pytest.raises(EngineError, match="'1' is marked as an error"):
        lm(lm15.Request(model=lm.model, messages=(lm15.Message.user("a"), wrong)))
    assert engine.prompts == []


def test_errors_arrive_as_dspys():
    def fail(error: Exception) -> Any:
        def answer(text: str, slot: Slot) -> str:
            raise error

        return pf.load("failing", engine=ScriptedEngine(answer)).copy(num_retries=0)

    with pytest.raises(dspy.ContextWindowExceededError, match="over by 3"):
        fail(ContextOverflow("over by 3"))("x")
    with pytest.raises(LMServerError, match="gone"):
        fail(EngineLost("gone"))("x")
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
        blob: re.Pattern = dspy.OutputField()

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


# On an engine that decodes, with a model that is not one


class Templated(Engine):
    """An engine with a chat template, whose model decodes nothing until ``first`` have come."""

    def __init__(self, first: int = 1, model: FakeModel | None = None) -> None:
        self.model = model or Held()
        self.left = first
        super().__init__(self.model)

    def scaffold(self, roles: Any) -> tuple[str, ...]:
        return ScriptedEngine(lambda text, slot: "").scaffold(roles)

    def _post(self, messages: Any, *more: Any) -> Any:
        issued = super()._post(messages, *more)
        self.left -= sum("job" in message for message in messages)
        if self.left <= 0:
            self.model.may.set()
        return issued


class Held(FakeModel):
    def __init__(self, context: int = 4096) -> None:
        super().__init__(context=context)
        self.may = threading.Event()

    def decode(self, *batch: Any) -> int:
        assert self.may.wait(60)
        return super().decode(*batch)


@pytest.fixture
def decoding() -> Iterator[pf.LocalLM]:
    with Templated() as engine:
        yield pf.load("fake", engine=engine).copy(max_tokens=12)


def test_n_samples_differ_and_come_from_one_prefill(decoding: pf.LocalLM):
    texts = decoding("Say hello", n=5, temperature=1.0)
    assert len(set(texts)) == 5
    prompt = decoding.text_engine.count([Text("<|im_start|>user\nSay hello\n")])
    stats = decoding.text_engine.stats()
    assert stats.requests == 5
    assert stats.prefilled <= prompt + 30, "one prompt, not five"
    assert stats.occupancy > 2
    assert decoding("Say hello", n=5, temperature=1.0) == texts
    assert decoding("Say hello", n=5, temperature=1.0, seed=1) != texts


def test_a_rollout_is_another_sample_and_the_same_one_again(decoding: pf.LocalLM):
    def sample(**config: Any) -> str:
        [text] = decoding("Say hello", temperature=1.0, **config)
        return str(text)

    texts = [sample(), *(sample(rollout_id=number) for number in range(1, 6))]
    assert len(set(texts)) == 6
    assert sample(rollout_id=3) == texts[3]
    with dspy.context(lm=decoding, adapter=pf.SlotAdapter()):
        predict = dspy.Predict("question -> answer", temperature=1.0)
        answers = [predict(question="x", config={"rollout_id": n}).answer for n in (1, 2, 1)]
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.parametrize("adapter", [None, pf.SlotAdapter()])
def test_usage_says_how_much_of_the_prompt_was_cached(decoding: pf.LocalLM, adapter: Any):
    cached = []
    for question in ("first", "second"):
        if adapter is None:
            decoding(f"A long beginning that stays the same, then the {question} question")
            usage = decoding.history[-1]["usage"]
        else:
            with dspy.context(lm=decoding, adapter=adapter, track_usage=True):
                predict = dspy.Predict("question -> answer")
                [usage] = predict(question=question * 9).get_lm_usage().values()
        details = usage["prompt_tokens_details"]
        cached.append(details["cached_tokens"])
        assert details["cached_tokens"] < usage["prompt_tokens"]
    assert cached[0] < 10 < cached[1]


def test_threads_of_predict_are_decoded_as_one_batch():
    with Templated(first=8) as engine:
        lm = pf.load("fake", engine=engine).copy(max_tokens=12)
        predict = dspy.Predict("question -> answer")
        questions = [dspy.Example(question=f"{n}").with_inputs("question") for n in range(8)]
        with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
            parallel = dspy.Parallel(num_threads=8, disable_progress_bar=True)
            answers = [p.answer for p in parallel([(predict, q) for q in questions])]
            assert engine.stats().occupancy > 4
            assert answers == [predict(question=f"{n}").answer for n in range(8)]


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), pf.SlotAdapter()])
def test_async_calls_are_one_batch_and_block_no_event_loop(adapter: Any):
    """Twenty calls wait on the loop, more than threads would be given; none has begun before."""
    with Templated(first=20) as engine:
        lm = pf.load("fake", engine=engine).copy(max_tokens=12)

        async def every() -> list[Any]:
            if isinstance(adapter, pf.SlotAdapter):
                predict = dspy.Predict("question -> answer")
                return await asyncio.gather(*(predict.acall(question=f"{n}") for n in range(20)))
            return await asyncio.gather(*(lm.acall(f"{n}") for n in range(20)))

        with dspy.context(lm=lm, adapter=adapter):
            assert len(asyncio.run(every())) == 20
        assert engine.stats().requests == 20
        assert engine.stats().occupancy > 4


def test_a_program_is_copied_and_saved_with_one_lm(tmp_path: Path, monkeypatch: Any):
    with Templated() as engine:
        lm = pf.load("fake", engine=engine)
        monkeypatch.setitem(local._loaded, ("fake", EngineOptions(), False), lm)
        program = dspy.Module()
        program.one, program.two = dspy.Predict("q -> a"), dspy.ChainOfThought("q -> a")
        program.set_lm(lm.copy(temperature=0.5))
        assert program.deepcopy().get_lm() is program.get_lm()
        program.save(tmp_path / "program.json")
        again = dspy.Module()
        again.one, again.two = dspy.Predict("q -> a"), dspy.ChainOfThought("q -> a")
        again.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
        assert again.get_lm().text_engine is engine
        assert again.get_lm().kwargs["temperature"] == 0.5
        assert again.get_lm() is not lm


def typed(lm: pf.LocalLM, own: dict[str, Any] | None = None, **config: Any) -> lm15.Request:
    extensions = {"metadata": {"promptflow": own}} if own else None
    return lm15.Request(
        model=lm.model,
        messages=(lm15.Message.user("x"),),
        config=lm15.Config(**config, extensions=extensions),
    )


def events(lm: pf.LocalLM, **config: Any) -> list[Any]:
    return list(lm.engine.stream(typed(lm, **config)))


def test_a_stream_is_text_while_it_is_written(decoding: pf.LocalLM):
    first, *deltas, last = events(decoding, max_tokens=9, logprobs=0)
    assert first.type == "start"
    assert last.type == "end"
    assert last.finish_reason in ("stop", "length")
    assert last.usage.output_tokens == len(deltas[-1].delta.logprobs) > 1
    assert len(deltas) > 4
    [text] = decoding("x", max_tokens=9)
    assert "".join(event.delta.text for event in deltas) == text


def test_a_limit_beyond_the_context_is_cut_and_a_prompt_beyond_it_refused():
    """DSPy's agents ask for 10,000 tokens."""
    with Templated(model=Held(context=300)) as engine:
        lm = pf.load("fake", engine=engine).copy(max_tokens=10_000, logit_bias={256: -100.0})
        [end] = [e for e in lm.engine.stream(typed(lm, max_tokens=10_000)) if e.type == "end"]
        assert end.finish_reason in ("stop", "length")
        assert len(lm("x")[0]) <= 300
        assert lm.history[-1]["usage"]["total_tokens"] == 300
        with pytest.raises(dspy.ContextWindowExceededError, match=r"has 4\d\d tokens .* 300"):
            lm("x" * 400)


def test_a_stream_says_what_went_wrong_as_dspy_does(decoding: pf.LocalLM):
    with pytest.raises(dspy.ContextWindowExceededError):
        decoding("x" * 5_000)
    with pytest.raises(lm15.InvalidRequestError, match="logprobs"):
        events(decoding, logprobs=5_000)


def test_n_streams_run_beside_each_other(decoding: pf.LocalLM):
    """DSPy asks n times with one request object; the samples are those of a plain call."""
    expected = decoding("x", n=3, temperature=1.0)
    sent: list[Any] = []

    class Stream:
        async def send(self, message: Any) -> None:
            sent.append(message)

    async def call() -> list[Any]:
        with dspy.context(send_stream=Stream()):
            return await decoding.acall("x", n=3, temperature=1.0)

    before = decoding.text_engine.stats()
    assert asyncio.run(call()) == expected
    after = decoding.text_engine.stats()
    assert after.requests == before.requests + 3
    assert after.decodes - before.decodes < 2 * 12, "not one after the other"
    assert len(sent) > 3 * 4
    request = typed(decoding, {"n": 3}, max_tokens=12, temperature=1.0)
    samples = [[*decoding.engine.stream(request)] for _ in range(3)]
    assert decoding.text_engine.stats().requests == after.requests + 3
    texts = ["".join(event.delta.text for event in sample[1:-1]) for sample in samples]
    assert texts == expected


def test_leaving_a_stream_cancels_its_samples(decoding: pf.LocalLM):
    stream = decoding.engine.stream(typed(decoding, {"n": 3}, max_tokens=3_000))
    assert next(stream).type == "start"
    assert next(stream).type == "delta"
    stream.close()
    decoding("y", max_tokens=2)
    assert decoding.text_engine.stats().requests == 4
    assert decoding.text_engine.stats().generated < 3_000


# On a small model


def test_a_small_model_serves_dspy(smollm: Engine):
    lm = pf.load(SMOLLM, engine=smollm)
    story = "Once upon a time there was a small house by the river. " * 6
    before = smollm.stats()
    texts = lm(f"{story}What came then?", n=4, temperature=1.0, max_tokens=12)
    after = smollm.stats()
    assert len(set(texts)) > 1
    prompt = lm.history[-1]["usage"]["prompt_tokens"] // 4
    assert prompt > 70
    assert after.prefilled - before.prefilled < prompt + 8, "one prefill for four samples"
    lm(f"{story}Who lived there?", max_tokens=4)
    assert lm.history[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 60


def test_threads_of_predict_share_a_small_models_batches(smollm: Engine):
    lm = pf.load(SMOLLM, engine=smollm).copy(max_tokens=24)
    predict = dspy.Predict("question -> answer")
    questions = [f"What rhymes with number {number}?" for number in range(24)]
    examples = [dspy.Example(question=question).with_inputs("question") for question in questions]
    before = smollm.stats()
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        parallel = dspy.Parallel(num_threads=8, disable_progress_bar=True)
        predictions = parallel([(predict, example) for example in examples])
    after = smollm.stats()
    assert all(prediction.answer is not None for prediction in predictions)
    rows = after.occupancy * after.decodes - before.occupancy * before.decodes
    assert rows / (after.decodes - before.decodes) > 2


def test_requests_are_ours():
    lm, engine = watched()
    lm("x")
    assert all(isinstance(request, Request) for request in engine.seen)


# Copies, and other processes


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> tuple[pf.LocalLM, Watched]:
    """An LM that ``load`` finds by its name, as it finds a model of the catalogue."""
    lm, engine = watched()
    monkeypatch.setitem(local._loaded, ("watched", EngineOptions(), False), lm)
    return lm, engine


MODULES = [
    lambda: dspy.Predict("question -> answer"),
    lambda: dspy.ChainOfThought("question -> answer"),
    lambda: pf.Predict("question -> answer", max_tokens=9),
    lambda: pf.ChainOfThought("question -> answer"),
    lambda: pf.SelfConsistency(pf.Predict("question -> answer"), n=3),
]


@pytest.mark.parametrize("make", MODULES)
def test_programs_with_an_lm_cross_to_other_processes(make: Any, named: Any, tmp_path: Path):
    lm, engine = named
    program = make()
    program.set_lm(lm.copy(temperature=0.5, num_retries=1))
    for again in (
        pickle.loads(cloudpickle.dumps(program)),
        copy.deepcopy(program),
        copy.copy(program),
        program.deepcopy(),
        saved(program, tmp_path / "program"),
    ):
        moved = again.get_lm()
        assert moved.text_engine is engine
        assert (moved.kwargs["temperature"], moved.num_retries) == (0.5, 1)
        with dspy.context(adapter=pf.SlotAdapter()):
            assert again(question="q").answer == "hello"


def saved(program: Any, folder: Path) -> Any:
    program.save(folder, save_program=True)
    return dspy.load(folder, allow_pickle=True)


def test_an_lm_without_a_source_says_so_when_it_is_pickled():
    lm = pf.LocalLM(ScriptedEngine(lambda text, slot: ""))
    with pytest.raises(TypeError, match="save the program without it"):
        pickle.dumps(lm)
    assert copy.copy(lm).text_engine is copy.deepcopy(lm).text_engine is lm.text_engine


def test_an_adapter_crosses_too():
    adapter = pickle.loads(pickle.dumps(pf.SlotAdapter(layout="completion")))
    assert adapter.layout == "completion"
    assert copy.deepcopy(adapter).layout == "completion"


def test_text_has_one_budget_on_both_paths():
    lm, engine = watched()
    lm("x")
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        dspy.Predict("question -> answer")(question="q")
    with dspy.context(lm=lm):
        pf.Predict("question -> answer")(question="q")
    assert len({slot.max_tokens for slot in engine.slots()}) == 1


def test_a_chat_template_that_was_edited_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "Engine", lambda model, options, trust: Engine(FakeModel(), options))
    path = tmp_path / "t.jinja"
    path.write_text("one")
    options = {"chat_template": path}
    one = local.load("fake", options=options)
    assert local.load("fake", options=options) is one
    path.write_text("two")
    two = local.load("fake", options=options)
    assert (one.text_engine.info.template, two.text_engine.info.template) == ("one", "two")
    for lm in (one, two):
        lm.text_engine.close()
