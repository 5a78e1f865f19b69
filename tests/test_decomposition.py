from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import dspy
import pytest

import promptflow as pf
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import ProgramError, UnknownOption
from promptflow.flow import run

QA = "question -> answer: int"


def model(follow_ups: int = 1) -> tuple[pf.LocalLM, ScriptedEngine]:
    def answer(text: str, slot: pf.Slot) -> str:
        if slot.name.startswith("needed"):
            return "yes" if int(slot.name[-1]) <= follow_ups else "no"
        if slot.name == "subquestions":
            return '["how many?", "how much?"]'
        return "7" if slot.constraint else f"<{slot.name}>"

    engine = ScriptedEngine(answer)
    return pf.load("parts", engine=engine), engine


def asked(engine: ScriptedEngine) -> str:
    return engine.prompts[-1].rpartition("<|im_start|>assistant\n")[2]


def test_least_to_most_answers_each_part_with_those_before() -> None:
    lm, engine = model()
    result = run(pf.LeastToMost(QA), lm=lm, question="?")
    assert result.answer == 7
    assert result.subquestions == ["how many?", "how much?"]
    assert result.subanswer_2 == "<subanswer_2>"
    assert asked(engine).splitlines()[1:5] == [
        "Subquestion 1: how many?",
        "Subanswer 1: <subanswer_1>",
        "Subquestion 2: how much?",
        "Subanswer 2: <subanswer_2>",
    ]
    assert engine.batches == [1] * 4


@pytest.mark.parametrize("follow_ups", [0, 1, 2, 3])
def test_self_ask_asks_until_nothing_is_needed(follow_ups: int) -> None:
    lm, engine = model(follow_ups)
    result = run(pf.SelfAsk(QA, most=3), lm=lm, question="?")
    written = [name for name in result.keys() if name.startswith("follow_up")]  # noqa: SIM118
    assert written == [f"follow_up_{n}" for n in range(1, follow_ups + 1)]
    assert asked(engine).count("Is a follow-up question needed?") == min(3, follow_ups + 1)
    assert result.answer == 7


@pytest.mark.parametrize(
    ("found", "line"),
    [("Yes,\n it is.", "Yes, it is."), (["a", "b"], "a b"), ([dspy.Example(text="x y")], "x y")],
)
def test_a_search_answers_follow_ups(found: Any, line: str) -> None:
    lm, engine = model()
    questions = []

    def search(question: str) -> Any:
        questions.append(question)
        return found

    result = run(pf.SelfAsk(QA, search=search), lm=lm, question="?")
    assert questions == ["<follow_up_1>"]
    assert result.intermediate_answer_1 == line
    assert f"Intermediate answer 1: {line}\nIs a follow-up" in asked(engine)
    result = run(pf.StepBack(QA, search=search), lm=lm, question="?")
    assert (questions[1:], result.principles) == (["<step_back>"], line)


def test_step_back_asks_in_general_first() -> None:
    lm, engine = model()
    result = run(pf.StepBack(QA), lm=lm, question="?")
    assert (result.step_back, result.principles) == ("<step_back>", "<principles>")
    assert asked(engine).splitlines()[0] == "General question: <step_back>"


MODULES: list[Callable[[], Any]] = [
    lambda: pf.LeastToMost(QA, most=3),
    lambda: pf.SelfAsk(QA),
    lambda: pf.SelfAsk(QA, search=lambda question: "so it is"),
    lambda: pf.StepBack(QA),
    lambda: pf.ZeroShotCoT(QA, triggers="plan_and_solve"),
    lambda: pf.ZeroShotCoT(QA),
]


@pytest.mark.parametrize("layout", ["chat", "completion"])
@pytest.mark.parametrize("demos", [(), ({"question": "1+1?", "answer": 2},)])
@pytest.mark.parametrize("made", MODULES)
def test_each_prompt_is_the_one_before_with_what_was_written(
    made: Callable[[], Any], demos: Any, layout: str
) -> None:
    lm, engine = model(2)
    module = made()
    for _, predictor in module.named_predictors():
        predictor.demos = [dspy.Example(**demo) for demo in demos]
        predictor.decoding = predictor.decoding.over(predictor.decoding.__class__(layout=layout))
    run(module, lm=lm, question="?")
    for first, second in itertools.pairwise(engine.prompts):
        assert second.startswith(first)


@pytest.mark.parametrize("made", MODULES)
def test_later_steps_prefill_only_what_is_new(made: Callable[[], Any]) -> None:
    engine = pf.Engine(FakeModel(context=1 << 14))
    lm = pf.load("fake-steps", engine=engine).copy(max_tokens=8)
    module = made()
    result = run(module, lm=lm, question="how many " * 40)
    prompt = result.trace[0][2].usage.prompt
    assert prompt > 200
    assert len(result.trace) > 1
    for _, _, later in result.trace[1:]:
        assert later.usage.reused > 380  # what came before
        assert later.usage.prefilled < 160  # labels, and what the program wrote itself


def test_a_step_is_one_line_and_its_bound_is_that_of_texts() -> None:
    slots: list[pf.Slot] = []

    def answer(text: str, slot: pf.Slot) -> str:
        slots.append(slot)
        return "yes" if slot.name.startswith("needed") else "1"

    lm = pf.load("slots", engine=ScriptedEngine(answer))
    run(pf.SelfAsk(QA, most=1, max_tokens=9), lm=lm, question="?")
    steps = {slot.name: slot for slot in slots}
    assert "\n" in steps["follow_up_1"].stop
    assert steps["intermediate_answer_1"].max_tokens == 9


def test_a_taken_name_and_a_wrong_option_are_refused() -> None:
    lm, _ = model()
    with pytest.raises(ProgramError, match="has a field 'step_back' already"):
        run(pf.StepBack("question, step_back -> answer"), lm=lm, question="?", step_back="!")
    with pytest.raises(UnknownOption, match="did you mean 'max_tokens'"):
        pf.SelfAsk(QA, max_token=3)
    with pytest.raises(ValueError, match="whole number from 1"):
        pf.LeastToMost(QA, most=0)
