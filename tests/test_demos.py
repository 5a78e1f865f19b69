from __future__ import annotations

from typing import Literal

import dspy
import numpy as np
import pytest

from promptflow.engine.scripted import ScriptedEngine
from promptflow.evaluation.metrics import exact_match
from promptflow.flow import Module, Prediction
from promptflow.lm import LocalLM
from promptflow.modules.decomposition import LeastToMost
from promptflow.modules.predict import Predict
from promptflow.optimization.demos import Bootstrap, Demo, bootstrap, draw, labelled
from promptflow.optimization.study import UNLIMITED, Budget, Study

ALL = Bootstrap()


def doubles(count):
    return [
        dspy.Example(question=f"{i} doubled", answer=str(2 * i)).with_inputs("question")
        for i in range(count)
    ]


def number_in(text):
    return int(text.rsplit("Question:", 1)[1].split()[0])


def even(text, slot):
    n = number_in(text)
    if slot.name == "reasoning":
        return f"{n} and {n}"
    return str(2 * n) if n % 2 == 0 else "no"


def collected(program, count, settings=ALL, budget=UNLIMITED):
    engine = ScriptedEngine(even)
    study = Study(None, {}, budget)
    pool = bootstrap(
        study, program, doubles(count), exact_match, settings, lm=LocalLM(engine), seed=0
    )
    return pool, engine, study


def test_runs_that_pass_become_demos_with_their_reasoning():
    pool, engine, _ = collected(Predict("question -> reasoning, answer"), 6)
    assert engine.batches == [6]
    assert pool["self"] == [
        Demo(i, {"question": f"{i} doubled", "reasoning": f"{i} and {i}", "answer": str(2 * i)})
        for i in (0, 2, 4)
    ]


def test_the_bootstrap_runs_in_batches_and_stops_when_it_has_enough():
    pool, engine, study = collected(Predict("question -> answer"), 90, Bootstrap(wanted=10))
    assert engine.batches == [16, 16]
    assert len(pool["self"]) == 16
    assert study.spent.calls == 32


def test_the_bootstrap_takes_its_share_of_the_budget():
    _, _, study = collected(Predict("question -> answer"), 90, budget=Budget(calls=100))
    assert study.spent.calls == 32


class TwoSteps(Module):
    def __init__(self):
        super().__init__()
        self.think = Predict("question -> reasoning")
        self.final = Predict("question, reasoning -> answer")

    def flow(self, question):
        thoughts = yield [self.think.call(question=question) for _ in range(3)]
        [last] = yield [self.final.call(question=question, reasoning=thoughts[0].reasoning)]
        return Prediction(answer=last.answer)


def test_every_predictor_gets_one_demo_a_run():
    pool, _, _ = collected(TwoSteps(), 4)
    assert [demo.index for demo in pool["think"]] == [0, 2]
    assert [demo.index for demo in pool["final"]] == [0, 2]
    assert pool["final"][1].fields == {
        "question": "2 doubled",
        "reasoning": "2 and 2",
        "answer": "4",
    }


def test_labelled_demos_come_from_gold_answers_without_a_call():
    [first, *rest] = labelled(Predict("question -> answer: int"), doubles(3))["self"]
    assert first == Demo(0, {"question": "0 doubled", "answer": 0})
    assert len(rest) == 2


def test_gold_answers_are_converted_or_left_out():
    data = [
        dspy.Example(question="a", answers=["x", "y"]).with_inputs("question"),
        dspy.Example(question="b", answer="Half of 4 is 2.\n#### 2").with_inputs("question"),
        dspy.Example(question="c", answer="small").with_inputs("question"),
    ]
    text = labelled(Predict("question -> answer"), data)["self"]
    assert text[0].fields["answer"] == "x"
    number = labelled(Predict("question -> answer: int"), data)["self"]
    assert [(demo.index, demo.fields["answer"]) for demo in number] == [(1, 2)]

    class Size(dspy.Signature):
        question: str = dspy.InputField()
        answer: Literal["small", "big"] = dspy.OutputField()

    assert [demo.index for demo in labelled(Predict(Size), data)["self"]] == [2]
    assert labelled(Predict("passage -> answer"), data)["self"] == []


def test_labelled_demos_may_lack_their_reasoning():
    [demo] = labelled(Predict("question -> reasoning, answer"), doubles(1))["self"]
    assert demo == Demo(0, {"question": "0 doubled", "answer": "0"}, complete=False)


def test_demos_are_drawn_for_all_predictors_from_the_same_examples():
    pool = {
        name: [Demo(i, {"n": f"{name}{i}"}, complete=i != 3) for i in range(8)] for name in "ab"
    }
    drawn = draw(pool, 3, np.random.default_rng(0))
    assert [demo["n"][1:] for demo in drawn["a"]] == [demo["n"][1:] for demo in drawn["b"]]
    assert len(drawn["a"]) == 3
    assert drawn == draw(pool, 3, np.random.default_rng(0))
    everything = draw(pool, 8, np.random.default_rng(0))
    assert everything["a"][-1] == {"n": "a3"}
    assert not any(
        {"n": "a3"} in draw(pool, 7, np.random.default_rng(seed))["a"] for seed in range(20)
    )


@pytest.mark.parametrize("count", [0, 1])
def test_a_pool_may_be_small(count):
    drawn = draw({"self": [Demo(0, {"n": 1})][:count]}, 4, np.random.default_rng(0))
    assert len(drawn["self"]) == count


@pytest.mark.parametrize(
    ("signature", "fields", "demo"),
    [
        ("question -> answer", {"answers": '["a", "b"]'}, {"answer": "a"}),
        ("question -> answer", {"answers": {"text": ["a"], "answer_start": [1]}}, {"answer": "a"}),
        ("question -> answer", {"answer": None, "answers": ["a"]}, {"answer": "a"}),
        ("question -> answer", {"answer": None}, None),
        ("question -> answer", {"answers": []}, None),
        ("question -> reasoning, answer", {"answer": "a", "reasoning": None}, {"answer": "a"}),
        ("question -> answer: Optional[int]", {"answer": None}, {"answer": None}),
        ("question, hint: Optional[str] -> answer", {"answer": "a"}, {"hint": None, "answer": "a"}),
        ("question, hint -> answer", {"answer": "a"}, None),
        ("question -> answer: list[int]", {"answer": "[1, 2]"}, {"answer": [1, 2]}),
        ("question -> answer: int", {"answer": "#### 1,200"}, {"answer": 1200}),
        ("question -> answer: float", {"answer": "about 2.5"}, {"answer": 2.5}),
    ],
)
def test_gold_answers_of_files_make_labelled_demos(signature, fields, demo):
    example = dspy.Example(question="q", **fields).with_inputs("question")
    [made] = labelled(Predict(signature), [example]).values()
    assert [one.fields for one in made] == ([] if demo is None else [{"question": "q", **demo}])


def test_an_answer_written_step_by_step_is_one_whole_demo():
    def said(text, slot):
        if slot.name == "subquestions":
            return '["how many?", "twice?"]'
        return str(2 * number_in(text)) if slot.name == "answer" else "so many"

    study = Study(None, {}, UNLIMITED)
    program = LeastToMost("question -> answer")
    lm = LocalLM(ScriptedEngine(said))
    pool = bootstrap(study, program, doubles(8), exact_match, ALL, lm=lm, seed=0)
    assert len(pool["predict"]) == 8
    for demo in pool["predict"]:
        assert demo.fields["answer"] == str(2 * demo.index)
        assert demo.fields["subanswer_2"] == "so many"
