from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest
from dspy.utils import DummyLM

import promptflow as pf
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import EngineLost, ProgramError
from promptflow.flow import Prediction, run, run_flows, run_many, streamed
from promptflow.flow.programs import plain_flow


class Chain(dspy.Module):
    """Two steps of DSPy's own; what it does between them is the test's."""

    def __init__(self, between: Any = lambda text: text) -> None:
        super().__init__()
        self.draft = dspy.Predict("question -> thought")
        self.final = dspy.ChainOfThought("question, thought -> answer")
        self.between = between

    def forward(self, question: str) -> Any:
        thought = self.between(self.draft(question=question).thought)
        return self.final(question=question, thought=thought)


class Asking(dspy.Module):
    """A program of one predictor; what it does with it is the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")


@pytest.fixture(autouse=True)
def _adapter() -> Any:
    with dspy.context(adapter=pf.SlotAdapter()):
        yield


def local(answer: Any = lambda text, slot: f"{slot.name} {len(text)}") -> tuple[Any, Any]:
    engine = ScriptedEngine(answer)
    return pf.load("scripted", engine=engine).copy(num_retries=0), engine


def questions(count: int) -> list[dict[str, str]]:
    return [{"question": "why " * (n + 1)} for n in range(count)]


def shown(predictions: list[Any]) -> list[Any]:
    return [
        (
            dict(p.items()),
            p.usage.prompt,
            p.usage.generated,
            [(inputs, dict(outputs.items())) for _, inputs, outputs in p.trace],
        )
        for p in predictions
    ]


def test_programs_ask_in_one_batch_a_step() -> None:
    lm, engine = local()
    run_many(Chain(), questions(5), lm=lm)
    assert engine.batches == [5, 5]


@pytest.mark.parametrize(
    "program", [Chain(), dspy.Predict("question -> answer: int", n=2, temperature=1.0)]
)
def test_batched_is_exactly_as_alone(program: Any) -> None:
    engine = pf.Engine(FakeModel(context=1 << 15))
    lm = pf.load("fake", engine=engine).copy(max_tokens=24)
    alone = [run(program, lm=lm, **one) for one in questions(4)]
    with dspy.context(lm=lm):
        called = [program(**one) for one in questions(4)]
    before = engine.stats()
    batched = run_many(program, questions(4), lm=lm)
    assert shown(batched) == shown(alone)
    assert [dict(p.items()) for p in batched] == [dict(p.items()) for p in called]
    spent = engine.stats()
    assert spent.decodes - before.decodes < before.decodes / 4
    assert sum(p.usage.generated for p in batched) > 0
    assert sum(p.usage.prompt for p in batched) == sum(p.usage.prompt for p in alone)


def test_tokens_are_those_of_the_engine() -> None:
    engine = pf.Engine(FakeModel(context=1 << 15))
    lm = pf.load("fake", engine=engine).copy(max_tokens=8)
    results = run_many(Chain(), questions(3), lm=lm)
    stats = engine.stats()
    for name in ("prefilled", "reused", "generated", "forced"):
        assert sum(getattr(p.usage, name) for p in results) == getattr(stats, name), name


def test_other_models_are_counted_as_dspy_counts_them() -> None:
    lm, _ = local()
    program = Chain()
    program.final.set_lm(DummyLM([{"reasoning": "so", "answer": "42"}] * 2))
    with dspy.context(track_usage=True):
        called = program.final(question="?", thought="!")
    [theirs] = called.get_lm_usage().values()
    [result] = run_many(program, questions(1), lm=lm)
    [only] = run_many(program.draft, questions(1), lm=lm)
    assert result.answer == "42"
    assert result.usage.prompt == only.usage.prompt + theirs["prompt_tokens"]
    assert result.usage.generated == only.usage.generated + theirs["completion_tokens"]


def test_an_error_ends_its_own_program_alone() -> None:
    def between(text: str) -> str:
        if text.endswith("2"):
            raise ValueError("no")
        return text

    lm, engine = local(lambda text, slot: f"{slot.name} {text.count('why') % 3}")
    good, bad, other = run_many(Chain(between), questions(3), lm=lm)
    assert isinstance(bad, ProgramError)
    assert isinstance(bad.__cause__, ValueError)
    assert bad.usage.generated == 2
    assert {type(good), type(other)} == {Prediction}
    assert engine.batches == [3, 2]


def test_an_engines_error_is_one_that_the_program_can_catch() -> None:
    class Careful(Asking):
        def forward(self, question: str) -> Any:
            try:
                return self.ask(question=question)
            except EngineLost:
                return dspy.Prediction(answer="lost")

    def answer(text: str, slot: Any) -> str:
        if "why why" in text:
            raise EngineLost("gone")
        return "well"

    lm, _ = local(answer)
    assert [p.answer for p in run_many(Careful(), questions(2), lm=lm)] == ["well", "lost"]


def test_settings_are_each_programs_own() -> None:
    seen = []

    class Settled(Asking):
        def forward(self, question: str) -> Any:
            with dspy.context(max_errors=len(question)):
                answer = self.ask(question=question)
                seen.append((len(question), dspy.settings.max_errors))
            return answer

    lm, engine = local()
    outside = dspy.settings.max_errors
    run_many(Settled(), questions(3), lm=lm)
    assert engine.batches == [3]
    assert all(given == found for given, found in seen)
    assert dspy.settings.max_errors == outside


def test_the_trace_is_that_of_one_program_after_the_other() -> None:
    lm, _ = local()
    program = Chain()
    with dspy.context(trace=[]):
        results = run_many(program, questions(2), lm=lm)
        steps = [(p, i["question"]) for p, i, _ in dspy.settings.trace]
    asked = [one["question"] for one in questions(2)]
    final = program.final.predict
    assert steps == [(p, question) for question in asked for p in (program.draft, final)]
    assert [p for p, _, _ in results[1].trace] == [program.draft, final]
    assert results[1].trace[1][2].fills["answer"].text.startswith("answer ")


def test_our_modules_in_a_program_are_batched_too() -> None:
    class Mixed(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reason = pf.ZeroShotCoT("question -> answer")
            self.vote = pf.SelfConsistency(
                dspy.Predict("question, draft -> answer"), n=3, sure="all"
            )

        def forward(self, question: str) -> Any:
            draft = self.reason(question=question).answer
            return self.vote(question=question, draft=draft)

    lm, engine = local()
    results = run_many(Mixed(), questions(4), lm=lm)
    assert engine.batches == [4, 4, 12]
    assert [len(p.trace) for p in results] == [5] * 4


def test_a_program_may_drive_programs() -> None:
    inner = Chain()

    class Outer(dspy.Module):
        def forward(self, question: str) -> Any:
            parts = run_many(inner, [{"question": question + c} for c in "ab"])
            return dspy.Prediction(answer=" ".join(p.answer for p in parts))

    lm, engine = local()
    results = run_many(Outer(), questions(3), lm=lm)
    assert engine.batches == [6, 6]
    alone = [run(Outer(), lm=lm, **one) for one in questions(3)]
    assert [p.answer for p in results] == [p.answer for p in alone]
    assert [p.usage for p in results] == [p.usage for p in alone]


def test_dspys_agent_is_batched() -> None:
    def look(word: str) -> str:
        """Look a word up."""
        return word.upper()

    def answer(text: str, slot: Any) -> str:
        said = {"next_tool_name": "finish" if "LIGHT" in text else "look"}
        said["next_tool_args"] = "{}" if "LIGHT" in text else '{"word": "light"}'
        return said.get(slot.name, "so")

    lm, engine = local(answer)
    agent = dspy.ReAct("question -> answer", tools=[look], max_iters=3)
    results = run_many(agent, questions(4), lm=lm)
    assert engine.batches == [4, 4, 4]
    assert [p.trajectory["observation_0"] for p in results] == ["LIGHT"] * 4


def test_threads_and_loops_of_a_programs_own_do_not_wait() -> None:
    class Threaded(Asking):
        def forward(self, question: str) -> Any:
            lm = dspy.settings.lm
            with ThreadPoolExecutor(1) as pool:
                pool.submit(lm, question).result()

            async def both() -> Any:
                lm(question)
                return await self.ask.acall(question=question)

            return asyncio.run(both())

    lm, engine = local()
    results = run_many(Threaded(), questions(2), lm=lm)
    assert [type(p) for p in results] == [Prediction] * 2
    assert engine.batches == [1] * 6


def test_programs_run_under_a_loop_too() -> None:
    lm, engine = local()

    async def notebook() -> Any:
        return run_many(Chain(), questions(3), lm=lm)

    asyncio.run(notebook())
    assert engine.batches == [3, 3]


def test_what_is_not_driven_to_its_end_is_cleaned_up() -> None:
    left = []

    class Holding(Asking):
        def forward(self, question: str) -> Any:
            try:
                return self.ask(question=question)
            finally:
                left.append(question)
                self.ask(question="once more")

    lm, _ = local()
    with dspy.context(lm=lm):
        flow = plain_flow(Holding(), {"question": "a"})
        assert len(next(flow)) == 1
        flow.close()
        assert left == ["a"]
        flow = plain_flow(Holding(), {"question": "b"})
        next(flow)
        del flow
        gc.collect()
    assert left == ["a", "b"]


def test_an_interruption_reaches_every_program() -> None:
    left = []

    def between(text: str) -> str:
        left.append(text)
        raise KeyboardInterrupt

    lm, _ = local()
    with pytest.raises(KeyboardInterrupt):
        run_many(Chain(between), questions(2), lm=lm)
    assert len(left) == 1


def test_samples_of_a_program_differ_and_repeat() -> None:
    lm = pf.load("fake", engine=pf.Engine(FakeModel())).copy(max_tokens=8)
    module = pf.SelfConsistency(dspy.Predict("question -> answer"), n=6, temperature=1.0)
    first = run(module, lm=lm, question="?")
    assert len(first.votes) > 1
    assert first.samples == len(first.trace) == 6
    assert run(module, lm=lm, question="?").votes == first.votes
    cached = lm.copy(cache=True)
    run(module, lm=cached, question="?")
    assert len(run(module, lm=cached, question="?").votes) > 1


def test_samples_are_heated_whatever_their_predictors_say() -> None:
    asked = []

    def answer(text: str, slot: Any) -> str:
        asked.append(slot.sampling.temperature)
        return "x"

    lm, engine = local(answer)
    own = dspy.Predict("question -> answer", temperature=0.1)
    own.set_lm(lm)
    run(pf.BestOf(own, n=3, temperature=0.9), lm=lm, question="?")
    assert (asked, engine.batches) == ([0.9] * 3, [3])


def test_samples_of_a_remote_model_of_a_predictors_own_are_refused() -> None:
    program = dspy.Predict("question -> answer")
    program.set_lm(DummyLM([{"answer": "1"}] * 3))
    with pytest.raises(ProgramError, match="model or a temperature of its own"):
        run(pf.SelfConsistency(program, n=3), lm=local()[0], question="?")


def test_samples_of_another_model_are_rollouts() -> None:
    lm = DummyLM([{"answer": text} for text in ("a", "b", "b")])
    result = run(pf.SelfConsistency(dspy.Predict("question -> answer"), n=3), lm=lm, question="?")
    assert result.answer == "b"
    options = [entry["kwargs"] for entry in lm.history]
    assert {one["temperature"] for one in options} <= {0.7}


def test_flows_and_programs_share_batches() -> None:
    lm, engine = local()
    ours = pf.Predict("question -> answer")
    with dspy.context(lm=lm):
        flows = [ours.flow(question="a"), plain_flow(Chain(), {"question": "b"})]
        results = run_flows(flows, lm=lm)
    assert engine.batches == [2, 1]
    assert [type(p) for p in results] == [Prediction] * 2


def test_drivers_of_several_threads_do_not_meet() -> None:
    lm, engine = local()
    results: dict[int, Any] = {}

    def drive(number: int) -> None:
        with dspy.context(adapter=pf.SlotAdapter()):
            results[number] = run_many(Chain(), questions(3), lm=lm)

    threads = [threading.Thread(target=drive, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.batches == [3] * 8
    assert len({str(shown(r)) for r in results.values()}) == 1


def test_a_program_may_be_read_by_several_threads() -> None:
    lm, _ = local()
    with dspy.context(lm=lm):
        alone = run(Chain(), question="?")
    reader = streamed(Chain(), lm=lm, question="?")
    found: list[Any] = []

    def read() -> None:
        try:
            with dspy.context(adapter=pf.SlotAdapter()):
                next(reader)
        except StopIteration as stop:
            found.append(stop.value)

    for _ in range(3):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    assert [shown([p]) for p in found if p is not None] == [shown([alone])]
