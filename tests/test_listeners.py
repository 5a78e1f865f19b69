from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from conftest import SMOLLM
from dspy.streaming import StreamListener, StreamResponse

import promptflow as pf
from promptflow.engine import Engine, EngineOptions
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Completion, Fill, Request, Slot, Text
from promptflow.engine.scripted import ScriptedEngine
from promptflow.engine.stream import Delta
from promptflow.errors import ContextOverflow
from promptflow.lm.listeners import _Everybody, audiences

SAID = {"reasoning": " first this,\n then that \n", "answer": "forty two"}
STREAMED = [
    ("reasoning", "first", False),
    ("reasoning", " this,", False),
    ("reasoning", "\n then", False),
    ("reasoning", " that", False),
    ("reasoning", "", True),
    ("answer", "forty", False),
    ("answer", " two", False),
    ("answer", "", True),
]


def scripted(said: dict[str, str] = SAID) -> tuple[pf.LocalLM, ScriptedEngine]:
    engine = ScriptedEngine(lambda text, slot: said[slot.name])
    return pf.load("scripted", engine=engine), engine


def listen(program: Any, *fields: str, how: str = "sync", **options: Any) -> list[Any]:
    """Everything that a streamified program sends for one question."""
    listeners = [StreamListener(field, allow_reuse=how == "again") for field in fields]
    streamed = dspy.streamify(
        program,
        stream_listeners=listeners,
        is_async_program=how == "async",
        async_streaming=how in ("async", "in a thread"),
        **options,
    )
    if how not in ("async", "in a thread"):
        return list(streamed(question="q"))

    async def every() -> list[Any]:
        return [value async for value in streamed(question="q")]

    return asyncio.run(every())


def heard(values: list[Any]) -> list[tuple[str, str, bool]]:
    return [
        (value.signature_field_name, value.chunk, value.is_last_chunk)
        for value in values
        if isinstance(value, StreamResponse)
    ]


PROGRAMS = [dspy.ChainOfThought("question -> answer"), pf.ChainOfThought("question -> answer")]


@pytest.mark.parametrize("how", ["sync", "in a thread", "async"])
@pytest.mark.parametrize("program", PROGRAMS, ids=["dspy", "promptflow"])
def test_listeners_hear_their_fields_stripped_as_values_are(program: Any, how: str):
    lm, _ = scripted()
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        values = listen(program, "answer", "reasoning", how=how)
    assert heard(values) == STREAMED
    assert isinstance(values[-1], dspy.Prediction)
    for field in ("answer", "reasoning"):
        text = "".join(chunk for name, chunk, _ in heard(values) if name == field)
        assert text == getattr(values[-1], field)


@pytest.mark.parametrize("program", PROGRAMS, ids=["dspy", "promptflow"])
def test_one_field_is_heard_alone_and_the_prediction_may_be_left_out(program: Any):
    lm, _ = scripted()
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        values = listen(program, "answer", include_final_prediction_in_output_stream=False)
    assert heard(values) == STREAMED[5:]
    assert len(values) == 3


@pytest.mark.parametrize("program", PROGRAMS, ids=["dspy", "promptflow"])
def test_without_listeners_the_whole_answer_comes_in_chunks(program: Any):
    lm, engine = scripted()
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        *chunks, prediction = listen(program)
    contents = [chunk.choices[0].delta.content for chunk in chunks]
    assert contents.pop() is None
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert engine.prompts[0].endswith("".join(contents))
    assert "".join(contents) == "  first this,\n then that \n\nAnswer: forty two"
    assert len(contents) > 5
    assert prediction.answer == "forty two"


@pytest.mark.parametrize("how", ["sync", "async"])
def test_dspys_own_adapter_streams_by_its_markers(how: str):
    said = {"text": "[[ ## answer ## ]]\nforty two words at most\n\n[[ ## completed ## ]]"}
    lm, _ = scripted(said)
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        values = listen(dspy.Predict("question -> answer"), "answer", how=how)
    chunks = [chunk for _, chunk, _ in heard(values)]
    assert "".join(chunks) == values[-1].answer == "forty two words at most"
    assert len(chunks) > 2


class Twice(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.again = pf.Predict("answer -> verdict")

    def forward(self, question: str) -> Any:
        answers = [self.ask(question=question).answer for _ in range(2)]
        return self.again(answer=answers[0])


def test_a_listener_hears_once_or_each_time_and_no_other_predictor():
    lm, engine = scripted({"answer": "yes", "verdict": "no"})
    once = [("answer", "yes", False), ("answer", "", True)]
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        assert heard(listen(Twice(), "answer")) == once
        assert heard(listen(Twice(), "answer", how="again")) == once * 2
        assert heard(listen(Twice(), "verdict")) == [
            ("verdict", "no", False),
            ("verdict", "", True),
        ]
    assert len(engine.prompts) == 9


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("kind", [dspy.Predict, pf.Predict])
def test_of_n_samples_the_first_is_heard(kind: Any, how: str):
    with Engine(FakeModel(context=4096)) as engine:
        lm = pf.load("fake", engine=engine).copy(max_tokens=12, temperature=1.0)
        with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
            plain = kind("question -> answer", n=3)(question="q")
            values = listen(kind("question -> answer", n=3), "answer", how=how)
        prediction = values[-1]
        assert prediction.completions.answer == plain.completions.answer
        assert "".join(chunk for _, chunk, _ in heard(values)) == prediction.answer
        assert len(heard(values)) > 4
        assert engine.stats().requests == 6
        assert engine.stats().occupancy > 1.5


@pytest.mark.parametrize("program", PROGRAMS, ids=["dspy", "promptflow"])
def test_an_error_ends_the_stream(program: Any):
    class Late(ScriptedEngine):
        def generate(self, requests: Any, on_done: Any = None) -> list[Completion]:
            fills = {"reasoning": Fill("first", "error")}
            return [Completion(fills, error=ContextOverflow("too long")) for _ in requests]

    lm = pf.load("late", engine=Late(lambda text, slot: ""))
    with (
        dspy.context(lm=lm, adapter=pf.SlotAdapter()),
        pytest.raises((dspy.ContextWindowExceededError, ContextOverflow), match="too long"),
    ):
        listen(program, "reasoning")


@pytest.mark.parametrize("how", ["sync", "async"])
def test_leaving_cancels_what_is_being_written(how: str):
    with Engine(FakeModel(context=4096), EngineOptions(max_running=1)) as engine:
        lm = pf.load("fake", engine=engine).copy(max_tokens=3_000, temperature=2.0)
        predict = dspy.Predict("question -> answer", logit_bias={256: -100.0})
        streamed = dspy.streamify(predict, is_async_program=how == "async")

        async def leave() -> None:
            values = streamed(question="q")
            async for _ in values:
                break
            await values.aclose()

        with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
            asyncio.run(leave())
        engine.generate([Request((Text("x"), Slot("a", max_tokens=2)))])  # when that has ended
        assert engine.stats().requests == 2
        assert engine.stats().generated < 3_000


def test_nobody_is_told_where_nobody_listens():
    request = Request((Text("x"), Slot("a")))
    assert audiences([("somebody", request)], "model") == {}


def test_slots_that_stay_empty_are_passed_over():
    parts = Text("A:"), Slot("a"), Text("\nB:"), Slot("b", lead=" "), Text("\nC:"), Slot("c")
    fills = {"a": Fill("x", "stop"), "b": Fill("", "stop"), "c": Fill("", "length")}

    def told(*deltas: Delta) -> Iterator[Any]:
        everybody = _Everybody(None, Request(parts), "model")
        for delta in deltas:
            for chunk in everybody.messages(delta):
                yield chunk.choices[0].delta.content or chunk.choices[0].finish_reason

    done = Delta("", "", Completion(fills))
    assert list(told(Delta("a", "x"), Delta("c", "y"), done)) == ["x", "\nB: \nC:y", "length"]
    assert list(told(Delta("a", "x"), done)) == ["x", "\nB: \nC:", "length"]
    failed = Delta("", "", Completion(error=ContextOverflow("too long")))
    assert list(told(Delta("a", "x"), failed)) == ["x"]


def test_a_small_model_is_heard_while_it_writes(smollm: Engine):
    lm = pf.load(SMOLLM, engine=smollm).copy(max_tokens=24)
    story = dspy.Predict("topic -> story")
    with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
        streamed = dspy.streamify(
            story, stream_listeners=[StreamListener("story")], async_streaming=False
        )
        values = list(streamed(topic="A fox and a crow by the river"))
    chunks = [chunk for _, chunk, _ in heard(values)]
    assert len(chunks) > 5
    assert "".join(chunks) == values[-1].story


def taking_turns() -> pf.LocalLM:
    """An LM that gives other answers one after the other."""
    answers = iter(["losing", "winning", "winning", "losing again"] * 9)
    said = {"reasoning": "so"}
    engine = ScriptedEngine(lambda text, slot: said.get(slot.name) or next(answers))
    return pf.load("turns", engine=engine)


COT = pf.ChainOfThought("question -> answer")


class Votes(pf.Module):
    """Vote twice beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.vote = pf.SelfConsistency(COT, n=3, sure="all")

    def flow(self, **inputs: Any) -> Any:
        [first, _] = yield from pf.together(self.vote.flow(**inputs) for _ in range(2))
        return pf.Prediction(answer=first.answer)


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize(
    "program",
    [
        pf.SelfConsistency(COT, n=4, sure="all"),
        pf.BestOf(COT, n=3, reward=lambda _, p: p.answer == "winning"),
        pf.BestOf(pf.SelfConsistency(COT, n=3, sure="all"), n=2, reward="first"),
    ],
)
def test_what_is_heard_of_samples_is_what_is_returned(program: Any, how: str):
    with dspy.context(lm=taking_turns()):
        values = listen(program, "answer", "reasoning", how=how)
    said = [("reasoning", "so"), ("reasoning", ""), ("answer", "winning"), ("answer", "")]
    assert values[-1].answer == "winning"
    assert [(name, chunk) for name, chunk, _ in heard(values)] == said


def test_votes_beside_each_other_are_each_heard_once():
    with dspy.context(lm=taking_turns()):
        values = listen(Votes(), "answer", how="again")
    assert [chunk for _, chunk, _ in heard(values) if chunk] == ["winning", "losing again"]


def test_without_listeners_the_chosen_sample_is_one_text():
    with dspy.context(lm=taking_turns()):
        values = listen(pf.SelfConsistency(COT, n=3, sure="all"))
        alone = listen(COT)
    texts = ["".join(text_of(chunk) for chunk in chunks[:-1]) for chunks in (values, alone)]
    assert texts[0] == "so\nAnswer: winning"
    assert texts[1].lstrip().startswith("so\nAnswer:")


def text_of(chunk: Any) -> str:
    return chunk.choices[0].delta.content or ""
