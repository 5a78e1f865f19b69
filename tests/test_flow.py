from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import dspy
import pytest
from pydantic import AfterValidator

import promptflow as pf
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.request import Sampling, Slot, Text, Usage
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import (
    ContextOverflow,
    EngineLost,
    ParseError,
    ProgramError,
    PromptflowError,
    UnknownField,
    ValueRefused,
)
from promptflow.flow import (
    Attempts,
    Call,
    Module,
    Prediction,
    changed,
    run,
    run_flows,
    run_many,
    streamed,
    together,
)
from promptflow.layout import Decoding


def scripted(answer: Callable[[str, Slot], str]) -> tuple[pf.LocalLM, ScriptedEngine]:
    engine = ScriptedEngine(answer)
    return pf.load("scripted", engine=engine).copy(num_retries=0), engine


def last_word(text: str, slot: Slot) -> str:
    """Answer with the last word of the last input, counted on."""
    question = text.rsplit("Question: ", 1)[1].split("<|im_end|>")[0]
    return question.split()[-1] + "'"


class Twice(Module):
    """Ask, then ask about the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = pf.Predict("question -> answer")

    def flow(self, question: str) -> Any:
        [draft] = yield [self.predict.call(question=question)]
        [final] = yield [self.predict.call(question=draft.answer)]
        return Prediction(answer=final.answer)


class Sometimes(Twice):
    """Ask as often as the question is long."""

    def flow(self, question: str) -> Any:
        answer = question
        for _ in range(len(question)):
            [prediction] = yield [self.predict.call(question=answer)]
            answer = prediction.answer
        return dspy.Prediction(answer=answer)


def test_a_flow_runs_to_its_prediction():
    lm, engine = scripted(last_word)
    prediction = run(Twice(), lm=lm, question="a")
    assert prediction.answer == "a''"
    assert engine.batches == [1, 1]
    assert isinstance(prediction, Prediction)
    assert prediction.usage.generated == 2
    assert [step[1]["question"] for step in prediction.trace] == ["a", "a'"]


def test_many_flows_share_a_batch_at_every_step():
    lm, engine = scripted(last_word)
    results = run_many(Twice(), [{"question": str(n)} for n in range(5)], lm=lm)
    assert [r.answer for r in results] == [f"{n}''" for n in range(5)]
    assert engine.batches == [5, 5]


def test_flows_of_different_length_leave_when_they_are_done():
    lm, engine = scripted(last_word)
    results = run_many(Sometimes(), [{"question": "x" * n} for n in (3, 0, 1)], lm=lm)
    assert [r.answer for r in results] == ["xxx'''", "", "x'"]
    assert engine.batches == [2, 1, 1]
    assert results[1].usage == Usage()


def test_progress_counts_calls():
    lm, _ = scripted(last_word)
    seen: list[tuple[int, int]] = []
    inputs = [{"question": "a"}, {"question": "b"}]
    run_many(Twice(), inputs, lm=lm, progress=lambda done, known: seen.append((done, known)))
    assert seen == [(1, 2), (2, 2), (3, 4), (4, 4)]


def failing(text: str, slot: Slot) -> str:
    if "bad" in text:
        raise EngineLost("gone")
    return last_word(text, slot)


def test_an_error_is_a_value_in_its_place():
    lm, _ = scripted(failing)
    results = run_many(Twice(), [{"question": q} for q in ("a", "bad", "b")], lm=lm)
    for result, kind in zip(results, (Prediction, EngineLost, Prediction), strict=True):
        assert isinstance(result, kind)
    with pytest.raises(EngineLost, match="gone"):
        run(Twice(), lm=lm, question="bad")


def test_a_flow_may_handle_its_error():
    class Careful(Twice):
        def flow(self, question: str) -> Any:
            try:
                [prediction] = yield [self.predict.call(question=question)]
            except EngineLost:
                [prediction] = yield [self.predict.call(question="plan B")]
            return prediction

    lm, _ = scripted(failing)
    assert run(Careful(), lm=lm, question="bad").answer == "B'"


def test_attempts_get_their_failures_as_values():
    class Some(Twice):
        def flow(self, **inputs: Any) -> Any:
            calls = Attempts(self.predict.call(question=q) for q in ("a", "bad", "c"))
            results = yield calls
            return Prediction(kinds=[isinstance(r, PromptflowError) for r in results])

    lm, _ = scripted(failing)
    assert run(Some(), lm=lm).kinds == [False, True, False]


def test_together_advances_inner_flows_as_one_batch():
    class Outer(Twice):
        def flow(self, questions: list[str]) -> Any:
            inner = Twice()
            inner.predict = self.predict
            results = yield from together(inner.flow(question=q) for q in questions)
            return Prediction(results=results)

    lm, engine = scripted(failing)
    outer = Outer()
    one, two = run_many(outer, [{"questions": ["a", "bad"]}, {"questions": ["b"]}], lm=lm)
    assert engine.batches == [3, 2]
    assert one.results[0].answer == "a''"
    assert isinstance(one.results[1], EngineLost)
    assert two.results[0].answer == "b''"
    assert one.usage.generated == 2


def test_a_changed_flow_asks_other_calls_and_handles_the_same_errors():
    class Careful(Twice):
        def flow(self, question: str) -> Any:
            try:
                yield [self.predict.call(question="bad")]
            except EngineLost:
                two = yield [self.predict.call(question=q) for q in (question, "b")]
            return Prediction(answer=" ".join(p.answer for p in two))

    seen: list[tuple[str, int, int]] = []

    def change(call: Call, step: int, position: int) -> Call:
        seen.append((call.inputs["question"], step, position))
        return replace(call, inputs={"question": call.inputs["question"] + "!"})

    lm, engine = scripted(failing)
    [result] = run_flows([changed(Careful().flow(question="a"), change)], lm=lm)
    assert result.answer == "a!' b!'"
    assert seen == [("bad", 0, 0), ("a", 1, 0), ("b", 1, 1)]
    assert engine.batches == [1, 2]


def test_flows_of_several_modules_share_a_batch():
    lm, engine = scripted(last_word)
    plain = pf.Predict("question -> answer")
    flows = [Twice().flow(question="a"), plain.flow(question="b")]
    assert [r.answer for r in run_flows(flows, lm=lm)] == ["a''", "b'"]
    assert engine.batches == [2, 1]


def test_an_extended_prediction_keeps_what_was_written_and_what_it_cost():
    lm, _ = scripted(last_word)
    first = run(Twice(), lm=lm, question="a")
    more = first.extended(note="x", answer="y")
    assert dict(more.items()) == {"answer": "y", "note": "x"}
    assert (more.fills, more.usage, more.trace) == (first.fills, first.usage, first.trace)
    assert first.answer == "a''"


def test_a_mistake_in_a_flow_is_raised_by_run_and_a_value_of_run_many():
    class Broken(Twice):
        def flow(self, question: str) -> Any:
            yield [self.predict.call(question=question)]
            raise KeyError("oops")

    lm, _ = scripted(last_word)
    with pytest.raises(KeyError):
        run(Broken(), lm=lm, question="a")
    [result] = run_many(Broken(), [{"question": "a"}], lm=lm)
    assert isinstance(result, ProgramError)
    assert isinstance(result.__cause__, KeyError)


def test_a_flow_must_return_a_prediction():
    class Silent(Twice):
        def flow(self, question: str) -> Any:
            yield [self.predict.call(question=question)]

    lm, _ = scripted(last_word)
    with pytest.raises(ProgramError, match="NoneType"):
        run(Silent(), lm=lm, question="a")


def test_wrong_inputs_are_an_error_of_their_flow():
    lm, _ = scripted(last_word)
    good, bad = run_many(pf.Predict("question -> answer"), [{"question": "a"}, {"q": "a"}], lm=lm)
    assert isinstance(good, Prediction)
    assert isinstance(bad, UnknownField)


def test_a_plain_dspy_module_runs_too():
    class Plain(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predict = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            if question == "bad":
                raise ValueError("no")
            return self.predict(question=question)

    lm, _ = scripted(last_word)
    seen: list[tuple[int, int]] = []
    inputs = [{"question": "a"}, {"question": "bad"}]
    with dspy.context(adapter=pf.SlotAdapter(), trace=[]):
        good, bad = run_many(Plain(), inputs, lm=lm, progress=lambda *done: seen.append(done))
        assert len(dspy.settings.trace) == 1
    assert seen == [(1, 2), (2, 2)]
    assert good.answer == "a'"
    assert isinstance(bad, ProgramError)
    assert good.usage.generated == 1
    assert good.usage.prompt == good.usage.prefilled + good.usage.reused > 1
    assert [inputs["question"] for _, inputs, _ in good.trace] == ["a"]


def test_seeds_depend_on_the_place_and_not_on_the_batch():
    seeds: dict[str, list[int]] = {}

    class Watched(ScriptedEngine):
        def generate(self, requests, on_done=None):
            for request in requests:
                seeds.setdefault(name, []).append(request.seed)
            return super().generate(requests, on_done)

    lm = pf.load("watched", engine=Watched(last_word))
    inputs = [{"question": "same"}] * 3
    for case, chosen, seed in (("all", inputs, 0), ("two", inputs[:2], 0), ("other", inputs, 1)):
        name = case
        run_many(Twice(), chosen, lm=lm, seed=seed)
    assert len({*seeds["all"], *seeds["other"]}) == 12
    assert seeds["two"] == [*seeds["all"][:2], *seeds["all"][3:5]]
    name = "rollout"
    run(Twice(), lm=lm.copy(rollout_id=1, temperature=1.0), question="same")
    assert not set(seeds["rollout"]) & set(seeds["all"])


def test_what_a_call_leaves_out_comes_from_predictor_then_lm():
    asked: list[Slot] = []

    def watch(text: str, slot: Slot) -> str:
        asked.append(slot)
        return "x"

    lm, _ = scripted(watch)
    warm = lm.copy(temperature=0.9, max_tokens=7)
    predict = pf.Predict("question -> answer")
    run(predict, lm=lm, question="a")
    run(predict, lm=warm, question="a")
    fixed = pf.Predict("question -> answer", sampling=Sampling(temperature=0.2), max_tokens=5)
    run(fixed, lm=warm, question="a")

    class Hot(Twice):
        def flow(self, **inputs: Any) -> Any:
            call = fixed.call(question="a")
            hot = Decoding(Sampling(temperature=1.5), max_tokens=3)
            [prediction] = yield [Call(call.predictor, call.inputs, hot)]
            return prediction

    run(Hot(), lm=warm)
    assert [slot.sampling.temperature for slot in asked] == [0.0, 0.9, 0.2, 1.5]
    assert [slot.max_tokens for slot in asked] == [4096, 7, 5, 3]
    assert [slot.least for slot in asked if slot.fits] == [32, 7, 5, 3]


def test_a_predictor_keeps_its_own_lm():
    lm, _ = scripted(last_word)
    other, _ = scripted(lambda text, slot: "other")
    program = Twice()
    program.predict.lm = other
    assert run(program, lm=lm, question="a").answer == "other"


def test_no_model_says_how_to_configure_one():
    with dspy.context(lm=None), pytest.raises(ProgramError, match=r"pf\.configure"):
        run(Twice(), question="a")


def test_an_lm_that_is_not_local_is_asked_through_dspys_adapter():
    other = dspy.utils.DummyLM([{"answer": "4"}])
    with dspy.context(adapter=dspy.ChatAdapter()):
        prediction = run(pf.Predict("question -> answer: int"), lm=other, question="2+2")
    assert prediction.answer == 4
    assert isinstance(prediction, Prediction)


def test_traces_are_those_of_dspy():
    lm, _ = scripted(last_word)
    program = Twice()
    with dspy.context(lm=lm, trace=[], adapter=pf.SlotAdapter()):
        program(question="a")
        ours = dspy.settings.trace
        with dspy.context(trace=[]):
            dspy.Predict("question -> answer")(question="a")
            theirs = dspy.settings.trace
    assert [len(step) for step in ours] == [3, 3]
    assert ours[0][0] is program.predict
    assert ours[0][1] == theirs[0][1]
    assert dict(ours[0][2]) == dict(theirs[0][2])


def test_usage_reaches_dspys_tracker_and_history():
    lm, _ = scripted(last_word)
    with dspy.context(lm=lm, track_usage=True):
        prediction = Twice()(question="a")
    [usage] = prediction.get_lm_usage().values()
    assert usage["completion_tokens"] == prediction.usage.generated == 2
    assert usage["prompt_tokens"] == prediction.usage.prompt
    assert len(lm.history) == 2
    with dspy.context(lm=lm, disable_history=True):
        Twice()(question="a")
    assert len(lm.history) == 2
    lm.inspect_history(1)


def test_a_prompt_that_is_too_long_says_by_how_much():
    engine = pf.Engine(FakeModel(context=512))
    lm = pf.load("fake", engine=engine)
    predict = pf.Predict("question -> answer", layout="completion")
    with pytest.raises(ContextOverflow, match=r"\d+ over the context of 512"):
        run(predict, lm=lm, question="x " * 300)
    engine.close()


def test_a_limit_beyond_the_context_is_cut_to_what_is_left():
    with pf.Engine(FakeModel(context=512)) as engine:
        lm = pf.load("fake", engine=engine).copy(max_tokens=10_000)
        predict = pf.Predict("question -> answer, size: int", layout="completion")
        first = run(predict, lm=lm, question="x")
        assert isinstance(first.size, int)
        assert first.cut == (first.fills["answer"].finish == "length")
        room = 512 - engine.count((Text(predict.show(question="x", lm=lm)),))
        assert 0 < first.usage.generated + first.usage.forced <= room


def test_random_text_under_constraints_always_parses():
    engine = pf.Engine(FakeModel(context=8192))
    lm = pf.load("fake", engine=engine)
    predict = pf.Predict(
        "q -> level: Literal['low', 'high'], year: int, share: float(ge=0, le=1), day: date, "
        "tags: list[str(max_length=9)](max_length=3), extra: dict[Literal['a', 'b'], int], "
        "note: str(max_length=12)",
        layout="completion",
    )
    results = run_many(predict, [{"q": str(n)} for n in range(12)], lm=lm)
    engine.close()
    assert [r for r in results if isinstance(r, ParseError)] == []
    assert all(isinstance(r, Prediction) for r in results), results
    assert all(0 <= r.share <= 1 and len(r.tags) <= 3 for r in results)


CHAIN = "question -> reasoning, answer"


def cutting(engine_class: type = ScriptedEngine) -> pf.LocalLM:
    """An LM whose reasoning ends at its limit where the question says so."""

    class Cutting(engine_class):
        def generate(self, requests, on_done=None):
            done = super().generate(requests, on_done)
            return [self.shortened(r, c) for r, c in zip(requests, done, strict=True)]

        def shortened(self, request, completion):
            said = "".join(part.text for part in request.parts if isinstance(part, Text))
            if "long" not in said:
                return completion
            fills = {n: replace(f, finish="length") for n, f in completion.fills.items()}
            return replace(completion, fills=fills)

    return pf.load("cutting", engine=Cutting(lambda text, slot: "x"))


@pytest.mark.parametrize(
    "program",
    [
        pf.Predict(CHAIN),
        pf.Predict(CHAIN, n=2),
        pf.ChainOfThought("question -> answer"),
        pf.ZeroShotCoT("question -> answer"),
        pf.SelfConsistency(pf.ChainOfThought("question -> answer"), n=3),
        pf.BestOf(pf.SelfConsistency(pf.Predict(CHAIN), n=2), n=2, reward="first"),
        dspy.Predict(CHAIN),
        dspy.ChainOfThought("question -> answer"),
    ],
)
def test_a_cut_answer_is_marked_however_deep_it_is(program: Any):
    inputs = [{"question": "long"}, {"question": "short"}]
    with dspy.context(adapter=pf.SlotAdapter()):
        cut, whole = run_many(program, inputs, lm=cutting())
    assert (cut.cut, whole.cut) == (True, False)
    assert cut.extended(note=1).cut


def test_a_tree_with_a_cut_thought_is_marked():
    tree = pf.TreeOfThoughts(
        "state, question -> thought", "state -> worth: float", depth=2, breadth=1
    )
    lm = cutting()
    lm.text_engine.answer = lambda text, slot: "1.5" if slot.constraint else "x"
    assert run(tree, lm=lm, question="long").cut
    assert not run(tree, lm=lm, question="short").cut


def test_failed_calls_cost_their_tokens():
    def answer(text: str, slot: Slot) -> str:
        return "no number"

    lm, _ = scripted(answer)
    predict = pf.Predict("question -> answer: int")
    [result] = run_many(predict, [{"question": "a"}], lm=lm)
    assert isinstance(result, ParseError)
    assert result.usage.generated == 2  # words
    assert result.usage.prompt > 1


def even(value: int) -> int:
    if value % 2:
        raise ValueError("odd")
    return value


class Count(dspy.Signature):
    question: str = dspy.InputField()
    answer: Annotated[int, AfterValidator(even)] = dspy.OutputField()


def test_what_a_validator_refuses_is_asked_for_once_more():
    written = iter(["3", "4", "3", "8", "5"])
    temperatures = []
    seeds = []

    class Watched(ScriptedEngine):
        def generate(self, requests, on_done=None):
            seeds.append([request.seed for request in requests])
            return super().generate(requests, on_done)

    def answer(text: str, slot: Slot) -> str:
        temperatures.append(slot.sampling.temperature)
        return next(written)

    engine = Watched(answer)
    lm = pf.load("scripted", engine=engine)
    first = run(pf.Predict(Count), lm=lm, question="a")
    assert first.answer == 4
    assert temperatures == [0.0, 0.7]
    assert first.usage.generated == 2
    assert seeds[0] != seeds[1]
    refused, good = run_many(pf.Predict(Count), [{"question": "a"}, {"question": "b"}], lm=lm)
    assert isinstance(refused, ValueRefused)
    assert "asked for twice" in str(refused)
    assert refused.usage.generated == 2
    assert good.answer == 8
    assert engine.batches == [1, 1, 2, 1]


def test_a_field_comes_before_what_a_prediction_knows_beside_it():
    names = ["usage", "trace", "fills", "weighed", "cut"]
    lm, _ = scripted(lambda text, slot: f"<{slot.name}>")
    predict = pf.Predict(f"question -> {', '.join(names)}")
    program = pf.SelfConsistency(predict, n=3, field="usage", sure="all")
    for prediction in (run(predict, lm=lm, question="a"), run(program, lm=lm, question="a")):
        assert [getattr(prediction, name) for name in names] == [f"<{name}>" for name in names]
    data = [dspy.Example(question="a", cut="<cut>").with_inputs("question")]
    result = pf.evaluate(program, data, "exact_match:cut", lm=lm, progress=False)
    assert (result.score, result.cut) == (1.0, 0)
    assert result.usage.generated == 15


class Continued(Twice):
    """Ask, then go on where that ended."""

    continued = True

    def flow(self, question: str) -> Any:
        call = replace(self.predict.call(question=question), continued=self.continued)
        [draft] = yield [call]
        [final] = yield [self.predict.call(question=draft.answer)]
        return Prediction(answer=final.answer)


def test_calls_to_be_continued_enter_a_few_at_a_time():
    """The same calls get the same seeds and answers as in lockstep; progress knows of all."""
    inputs = [{"question": str(n)} for n in range(100)]
    seen: list[Any] = []
    told: list[tuple[int, int]] = []

    class Seeds(ScriptedEngine):
        def generate(self, requests: Any, on_done: Any = None) -> Any:
            seen.append([(request.seed, request.continued) for request in requests])
            return super().generate(requests, on_done)

    module = Continued()
    asked = []
    for module.continued in (False, True):
        lm = pf.load("seeds", engine=Seeds(last_word))
        results = run_many(module, inputs, lm=lm, progress=lambda *now: told.append(now))
        assert [one.answer for one in results] == [f"{n}''" for n in range(100)]
        assert told[-1] == (200, 200)
        assert all(done <= known for done, known in told)
        asked.append(sorted(seed for batch in seen for seed, _ in batch))
        if module.continued:
            first = [sum(continued for _, continued in batch) for batch in seen]
            assert first[0] == 16
            assert max(first) <= 32
            assert [len(batch) for batch in seen] == [
                new + old for new, old in zip(first, [0, *first], strict=False)
            ]
        seen.clear()
        told.clear()
    assert asked[0] == asked[1]


def heard(steps: Any) -> tuple[list[tuple[str, str]], Any]:
    """What a streamed program tells, and what it returns."""
    told: list[tuple[str, str]] = []
    while True:
        try:
            _, delta = next(steps)
        except StopIteration as stop:
            return told, stop.value
        told.append((delta.slot, delta.text))


class Wide(Twice):
    """Ask twice side by side, then ask about one of the answers."""

    def flow(self, question: str) -> Any:
        drafts = yield [self.predict.call(question=f"{question} {n}") for n in range(2)]
        [final] = yield [self.predict.call(question=drafts[1].answer)]
        return Prediction(answer=final.answer)


@pytest.mark.parametrize("module", [Twice(), Wide(), pf.Predict("question -> answer")])
def test_what_is_streamed_is_what_run_returns(module: Any):
    lm, _ = scripted(last_word)
    plain = run(module, lm=lm, seed=3, question="count on")
    told, streamed_one = heard(streamed(module, lm=lm, seed=3, question="count on"))
    assert streamed_one.answer == plain.answer
    assert streamed_one.usage == plain.usage
    assert [p.answer for _, _, p in streamed_one.trace] == [p.answer for _, _, p in plain.trace]
    assert told[-1] == ("answer", plain.answer)
    assert len(told) == (2 if isinstance(module, Twice) and not isinstance(module, Wide) else 1)


def test_sampled_tries_are_not_streamed():
    votes = pf.SelfConsistency(pf.Predict("question -> answer"), n=3)
    lm, _ = scripted(last_word)
    told, result = heard(streamed(votes, lm=lm, question="a"))
    assert (told, result.answer) == ([], "a'")


def test_an_error_of_a_streamed_call_is_thrown_into_its_flow():
    def answer(text: str, slot: Slot) -> str:
        raise ContextOverflow("too long")

    class Careful(Twice):
        def flow(self, question: str) -> Any:
            try:
                yield [self.predict.call(question=question)]
            except PromptflowError as error:
                return Prediction(answer=f"caught {error}")

    lm, _ = scripted(answer)
    _, result = heard(streamed(Careful(), lm=lm, question="a"))
    assert result.answer == "caught too long"
    with pytest.raises(ContextOverflow):
        heard(streamed(pf.Predict("question -> answer"), lm=lm, question="a"))
    with pytest.raises(UnknownField):
        heard(streamed(pf.Predict("question -> answer"), lm=lm, query="a"))


def test_a_value_that_is_refused_is_streamed_and_asked_for_once_more():
    answers = iter(["odd", "even"])
    lm, _ = scripted(lambda text, slot: next(answers))

    def check(text: str) -> str:
        if text != "even":
            raise ValueError("not even")
        return text

    even = Annotated[str, AfterValidator(check)]
    fields = {"q": (str, dspy.InputField()), "a": (even, dspy.OutputField())}
    program = pf.Predict(dspy.Signature(fields))
    told, result = heard(streamed(program, lm=lm, q="?"))
    assert result.a == "even"
    assert told == [("a", "odd")]


def test_closing_a_stream_cancels_its_call_and_leaves_settings_alone():
    lm, engine = scripted(lambda text, slot: "one two three")
    closed: list[bool] = []
    opened = engine.stream

    def stream(request: Any) -> Any:
        made = opened(request)
        ended = made.close
        made.close = lambda: (closed.append(True), ended())
        return made

    engine.stream = stream  # type: ignore[method-assign]
    before = dspy.settings.lm
    steps = streamed(pf.Predict("question -> answer"), lm=lm, question="a")
    next(steps)
    assert dspy.settings.lm is before
    steps.close()
    assert closed == [True]
