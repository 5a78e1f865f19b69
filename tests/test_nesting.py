"""Every technique in every other: batched exactly as alone, traced, counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

import promptflow as pf
from promptflow.engine.model.fake import FakeModel
from promptflow.errors import PromptflowError
from promptflow.flow import changed, flow_of, run_flows
from promptflow.lm import seed_of

QA = "question -> answer: int"
SHORT: dict[str, Any] = {"max_tokens": 6}
CHAIN: dict[str, Any] = {**SHORT, "reasoning_tokens": 8}


class Program(dspy.Module):
    """A plain program of DSPy's own modules."""

    def __init__(self) -> None:
        super().__init__()
        self.draft = dspy.Predict("question -> thought", max_tokens=6)
        self.final = dspy.Predict("question, thought -> answer: int")

    def forward(self, question: str) -> Any:
        return self.final(question=question, thought=self.draft(question=question).thought)


class Nothing(dspy.Module):
    """A program without a model."""

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=len(question))


def looked_up(question: str) -> str:
    return f"about {len(question)}"


TECHNIQUES: dict[str, Callable[[], Any]] = {
    "predict": lambda: pf.Predict(QA),
    "samples": lambda: pf.Predict(QA, n=2),
    "chain of thought": lambda: pf.ChainOfThought(QA, **CHAIN),
    "zero-shot": lambda: pf.ZeroShotCoT(QA, **CHAIN),
    "plan and solve": lambda: pf.ZeroShotCoT(QA, triggers="plan_and_solve", **CHAIN),
    "least to most": lambda: pf.LeastToMost(QA, most=2, **SHORT),
    "self-ask": lambda: pf.SelfAsk(QA, most=2, **SHORT),
    "searching": lambda: pf.SelfAsk(QA, most=2, search=looked_up, **SHORT),
    "step back": lambda: pf.StepBack(QA, **SHORT),
    "chains": lambda: pf.MultiChainComparison(QA, m=2, **CHAIN),
    "program": Program,
    "dspy": lambda: dspy.ChainOfThought(QA, max_tokens=8),
    "nothing": Nothing,
}


def reward(inputs: Any, prediction: Any) -> float:
    return float(prediction.answer % 5)


OUTER: dict[str, Callable[[Any], Any]] = {
    "alone": lambda inner: inner,
    "vote": lambda inner: pf.SelfConsistency(inner, n=3),
    "best": lambda inner: pf.BestOf(inner, n=2, reward=reward),
    "best of votes": lambda inner: pf.BestOf(pf.SelfConsistency(inner, n=2), n=2, batch=1),
    "refined": lambda inner: pf.Refine(inner, reward, threshold=9.0, n=2),
    "vote of refined": lambda inner: pf.SelfConsistency(
        pf.Refine(inner, reward, threshold=3.0, n=2), n=2
    ),
    "refined vote": lambda inner: pf.Refine(
        pf.SelfConsistency(inner, n=2), reward, threshold=9.0, n=2
    ),
    "in a program": lambda inner: Holding(inner),
}


class Holding(dspy.Module):
    """A plain program that calls a technique."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, question: str) -> Any:
        return self.inner(question=question)


INPUTS = [{"question": text} for text in ("how many?", "and then?", "why is that so?")]


def seeded(module: Any, number: int) -> Any:
    """The flow of an example, its calls seeded by its number and not by its place in the batch."""

    def change(call: Any, step: int, position: int) -> Any:
        if call.seed is not None:
            return call
        return dataclasses.replace(call, seed=seed_of(number, step, position))

    return changed(flow_of(module, INPUTS[number]), change)


def together(module: Any, numbers: list[int], lm: Any) -> list[Any]:
    with dspy.context(lm=lm, adapter=pf.SlotAdapter(), trace=[]):
        results = run_flows((seeded(module, n) for n in numbers), lm=lm)
        seen = len(dspy.settings.trace)
    for result in results:
        assert not isinstance(result, PromptflowError), result
    assert seen == sum(len(p.trace) for p in results)
    return results


def shown(prediction: Any) -> Any:
    usage = prediction.usage
    return (
        {k: str(v) for k, v in prediction.items()},
        (usage.prompt, usage.generated, usage.forced),
        [(dict(inputs), dict(made.items())) for _, inputs, made in prediction.trace],
    )


def check(module: Any, engine: Any) -> None:
    """Batched as alone, every call in the trace, its tokens those that the engine counted."""
    lm = pf.load("nested", engine=engine)
    alone = [together(module, [n], lm)[0] for n in range(len(INPUTS))]
    before = engine.stats()
    batched = together(module, [0, 1, 2], lm)
    after = engine.stats()
    assert [shown(p) for p in batched] == [shown(p) for p in alone]
    for prediction in batched:
        steps = [made.usage for _, _, made in prediction.trace]
        assert sum(u.generated + u.forced for u in steps) == (
            prediction.usage.generated + prediction.usage.forced
        )
    for name in ("generated", "forced", "prefilled"):
        spent = sum(getattr(p.usage, name) for p in batched)
        assert spent == getattr(after, name) - getattr(before, name), name
    requests = after.requests - before.requests
    assert requests == sum(len(p.trace) for p in batched)


@pytest.fixture(scope="module")
def fake() -> pf.Engine:
    return pf.Engine(FakeModel(context=1 << 15))


WIDE = {"alone", "vote", "in a program"}
PAIRS = [
    (inner, outer)
    for inner in TECHNIQUES
    for outer in OUTER
    if outer in WIDE or inner in ("zero-shot", "self-ask", "program")
]


@pytest.mark.parametrize(("inner", "outer"), PAIRS)
def test_every_technique_in_every_other(inner: str, outer: str, fake: pf.Engine) -> None:
    module = OUTER[outer](TECHNIQUES[inner]())
    check(module, fake)


@pytest.mark.parametrize("inner", ["zero-shot", "self-ask", "program"])
def test_nested_on_a_model_file(inner: str, tiny: Callable[[str], Path]) -> None:
    """The same on llama.cpp, with a model of a few random weights."""
    options = pf.EngineOptions(batch_invariant=True, isolate=False, threads=1)
    engine = pf.Engine(tiny("qwen2"), options)
    try:
        check(pf.SelfConsistency(TECHNIQUES[inner](), n=2), engine)
    finally:
        engine.close()
