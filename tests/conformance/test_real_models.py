"""The small models that the tests fetch, end to end: what runs together equals what runs alone.

Each is loaded ``batch_invariant``, so that equal means to the last bit. A model that is not on this
machine is skipped by name: ``make test-models`` fetches all but the
1.5B, which ``promptflow models get`` does.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from conftest import SMOLLM

import promptflow as pf
from promptflow import catalog
from promptflow.engine.request import Completion, Request, Text
from promptflow.errors import ModelNotFound
from promptflow.layout import layout_for
from promptflow.retrieval import HashingEmbedder

MODELS = {
    "smollm2-135m": "chat",
    "qwen2.5-coder-0.5b": "chat",
    "qwen2.5-coder-1.5b": "chat",
    "gemma3-270m": "completion",
}
"""The layout that each has of itself: the last is no chat model."""
WINDOWED = {"gemma3-270m": 512}
Boat = Literal["Alba", "Bruma", "Cove"]


class Logged(dspy.Signature):
    """Answer from the harbour's log."""

    log: str = dspy.InputField()
    question: str = dspy.InputField()
    boat: Boat = dspy.OutputField()
    hour: int = dspy.OutputField(ge=0, le=23)
    remark: str = dspy.OutputField()


LOG = "\n".join(
    f"{hour:02}:{minute:02} {boat} {what} with {crew} aboard, wind from the {wind}."
    for hour, minute, boat, what, crew, wind in (
        (6, 10, "Alba", "left for the outer bank", 3, "west"),
        (7, 45, "Bruma", "came in for ice", 5, "west"),
        (11, 5, "Alba", "reported a torn net", 3, "south"),
        (15, 40, "Cove", "came in with forty pots emptied", 2, "south-east"),
    )
)
INPUTS = [
    {"log": LOG, "question": "Which boat reported a torn net, and when?"},
    {"log": LOG, "question": "Which boat came in for ice, and when?"},
    {"log": LOG.splitlines()[0], "question": "Which boat left, and when?"},
]


@pytest.fixture(scope="module", params=MODELS)
def lm(request: pytest.FixtureRequest) -> Iterator[Any]:
    try:
        catalog.locate(request.param)
    except ModelNotFound as error:
        pytest.skip(f"{request.param} is not on this machine: {error}")
    lm = pf.load(
        request.param,
        # On two threads llama.cpp's spin, and a busy machine makes them ten times as slow.
        options=pf.EngineOptions(context=4096, batch_invariant=True, threads=1),
        max_tokens=16,
    )
    yield lm
    lm.text_engine.close()


class Recorded:
    """What reached an engine, and what it answered."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = engine
        self.asked: list[tuple[Request, Completion]] = []
        self.batches: list[int] = []
        self._generate = engine.generate
        monkeypatch.setattr(engine, "generate", self.generate)

    def generate(self, requests: Sequence[Request], on_done: Any = None) -> list[Completion]:
        completions: list[Completion] = self._generate(requests, on_done)
        self.asked += zip(requests, completions, strict=True)
        self.batches.append(len(requests))
        return completions

    def check(self) -> None:
        """Ask each request again by itself, the last one first, and compare all that was filled."""
        for request, together in reversed(self.asked):
            [alone] = self._generate([request])
            assert alone.error is None
            assert together.error is None
            assert dict(alone.fills) == dict(together.fills)


@pytest.fixture
def recorded(lm: Any, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(lm.text_engine, monkeypatch)


def test_a_model_is_what_the_table_says(lm: Any):
    info = lm.text_engine.info
    name = lm.source
    assert layout_for(lm.text_engine) == MODELS[name]
    assert info.window == WINDOWED.get(name, 0)
    assert info.memory == ("windowed" if name in WINDOWED else "dense")


def test_a_typed_program_on_several_inputs(lm: Any, recorded: Recorded):
    logprobs = {"logprobs": True, "top_logprobs": 2}
    results = pf.run_many(pf.Predict(Logged, **logprobs), INPUTS, lm=lm)
    for result in results:
        assert isinstance(result, pf.Prediction), result
        assert result.boat in ("Alba", "Bruma", "Cove")
        assert 0 <= result.hour < 24
        assert isinstance(result.remark, str)
    assert recorded.batches == [len(INPUTS)]
    recorded.check()
    one = pf.run(pf.Predict(Logged, **logprobs), lm=lm, **INPUTS[1])
    assert one.toDict() == results[1].toDict()


def test_a_vote(lm: Any, recorded: Recorded):
    predict = pf.Predict("log, question -> boat: Literal['Alba', 'Bruma', 'Cove']")
    vote = pf.SelfConsistency(predict, n=3, temperature=1.0, field="boat")
    results = pf.run_many(vote, INPUTS[:2], lm=lm)
    for result in results:
        assert isinstance(result, pf.Prediction), result
        assert result.boat in ("Alba", "Bruma", "Cove")
        assert result.samples == 3
        assert sum(result.votes.values()) == 3
    assert recorded.batches == [6]
    recorded.check()


def test_options_weighed(lm: Any, recorded: Recorded):
    predict = pf.Predict("log, question -> boat: Literal['Alba', 'Bruma', 'Cove']", weigh=True)
    for result in pf.run_many(predict, INPUTS[:2], lm=lm):
        assert isinstance(result, pf.Prediction), result
        assert sum(result.weighed["boat"].values()) == pytest.approx(1.0)
    recorded.check()


def test_a_score(lm: Any):
    before = [Text(f"{LOG}\nThe boat that reported a torn net is the")]
    boats = [" Alba", " Bruma", " Cove"]
    together = lm.text_engine.score(before, boats)
    assert all(token.logprob < 0 for tokens in together for token in tokens)
    assert len({sum(token.logprob for token in tokens) for tokens in together}) == 3
    for boat, tokens in zip(boats, together, strict=True):
        assert [tokens] == lm.text_engine.score(before, [boat])


def test_dspys_agent_asks_for_ten_thousand_tokens():
    """``dspy.ReAct`` to its end, with the ``max_tokens`` that DSPy's agents give an LM.

    The small model's thoughts have no end of their own: a sentence is one.
    """

    def look_up(boat: str) -> str:
        """Look up in the harbour's log when a boat left."""
        return f"{boat} left at six."

    lm = pf.load(
        SMOLLM,
        options=pf.EngineOptions(context=2048, threads=1),
        max_tokens=10_000,
        stop=[".", "?", "!", "\n"],
    )
    try:
        with dspy.context(lm=lm, adapter=pf.SlotAdapter()):
            agent = dspy.ReAct("question -> answer", tools=[look_up], max_iters=3)
            prediction = agent(question="When did the Alba leave the harbour?")
    finally:
        lm.text_engine.close()
    steps = prediction.trajectory
    names = [steps[f"tool_name_{n}"] for n in range(3) if f"tool_name_{n}" in steps]
    assert len(names) == 3 or names[-1] == "finish"
    assert set(names) <= {"look_up", "finish"}
    for number, name in enumerate(names):
        said = steps[f"observation_{number}"]
        if name == "finish":
            assert said == "Completed."
        else:  # its arguments are any JSON to DSPy, and the tool tells the model what is wrong
            assert said.endswith("left at six.") or said.startswith("Execution error in look_up")
    assert prediction.answer
    assert lm.history[-1]["kwargs"]["max_tokens"] == 10_000


KOREAN = {
    "factory.txt": "제주 공장은 2015. 3. 1. 문을 열었다. 직원 3만 5천 명이 차를 만든다.",
    "office.txt": "본사는 서울에 있다.\n□ (직원) 12명\n□ (대표) 홍길동",
}


def test_decomposed_documents_are_answered_as_composed_ones(
    lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if lm.source in WINDOWED:
        pytest.skip("the prompt is longer than its window")
    monkeypatch.chdir(tmp_path)
    seen = []
    for form in ("NFC", "NFD"):
        normal = partial(unicodedata.normalize, form)
        (tmp_path / form).mkdir()
        for name, text in KOREAN.items():
            (tmp_path / form / name).write_text(normal(text))
        embedder = HashingEmbedder()
        with pf.build_index(form, tmp_path / form, embedder=embedder, progress=False) as index:
            program = pf.GroundedQA(index, reads=1, samples=1, threshold=0.0)
            found = pf.run(program, lm=lm, question=normal("본사는 어디에 있나요?"))
            assert found.quotes_exact
            quotes = [unicodedata.normalize("NFC", c.quote) for c in found.citations]
            seen.append((found.answer, found.support, dict(found.signals), quotes))
    assert seen[0] == seen[1]
