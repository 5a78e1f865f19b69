from __future__ import annotations

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.flow import Prediction, run
from promptflow.modules.transcript import written


def test_fields_stand_under_the_labels_that_the_model_read() -> None:
    engine = ScriptedEngine(lambda text, slot: "3" if slot.constraint else "one and two")
    module = pf.ZeroShotCoT("question -> answer: int")
    result = run(module, lm=pf.load("said", engine=engine), question="?")
    lines = set(written(result).splitlines())
    assert lines == {"Let's think step by step. one and two", "Therefore, the answer is 3"}


def test_what_a_technique_added_beside_them_is_left_out() -> None:
    engine = ScriptedEngine(lambda text, slot: "3")
    module = pf.SelfConsistency(pf.Predict("question -> answer: int"), n=2)
    result = run(module, lm=pf.load("said", engine=engine), question="?")
    assert written(result) == "Answer: 3"


def test_a_prediction_of_no_model_is_shown_whole() -> None:
    assert written(Prediction(answer=3, why="so")) == "Answer: 3\nWhy: so"
