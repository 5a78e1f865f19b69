from __future__ import annotations

from dataclasses import replace

import dspy
import pytest

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import DataError, EngineLost
from promptflow.evaluation.evaluate import evaluate
from promptflow.evaluation.judged import groundedness, judge, judged_by
from promptflow.flow import Prediction
from promptflow.lm import LocalLM
from promptflow.modules import Judge, Panel


def grading(text, slot):
    """Answers right or wrong, grades what is right with 5, and says Yes to the Rhine."""
    if slot.name == "score":
        return "5" if "Answer: right" in text else "2"
    if slot.name == "verdict":
        return "Yes" if "Rhine" in text.rsplit("Statement:", 1)[1] else "No"
    return "right" if "odd" not in text else "wrong"


def rows(*questions, **more):
    return [dspy.Example(question=q, **more).with_inputs("question") for q in questions]


def test_all_runs_are_judged_in_one_batch():
    engine = ScriptedEngine(grading)
    data = rows("one ?", "an odd one ?", "two ?")
    result = evaluate(pf.Predict("question -> answer"), data, "judge", lm=LocalLM(engine))
    assert engine.batches == [3, 3]
    assert [record.score for record in result.records] == [1.0, 0.25, 1.0]
    assert result.about["self_judged"] == ["judge"]


def test_the_judge_sees_the_gold_value_as_reference():
    seen = []

    def answer(text, slot):
        seen.append(text)
        return "4" if slot.name == "score" else "x"

    data = rows("6 x 7 ?", answer="forty-two")
    evaluate(pf.Predict("question -> answer"), data, "judge", lm=LocalLM(ScriptedEngine(answer)))
    assert "forty-two" not in seen[0]
    assert "Reference: forty-two" in seen[1]


def test_a_judge_of_another_model_may_be_the_metric():
    other = LocalLM(ScriptedEngine(lambda text, slot: "3"))
    other.text_engine.info = replace(other.text_engine.info, name="other")
    program, lm = pf.Predict("question -> answer"), LocalLM(ScriptedEngine(grading))
    result = evaluate(program, rows("one ?"), Judge("right?", lm=other), lm=lm)
    assert result.score == 0.5
    assert "self_judged" not in result.about
    panel = Panel([Judge("right?", lm=other), Judge("right?")])
    assert evaluate(program, rows("one ?"), panel, lm=lm).score == 0.75


def test_a_judge_that_dies_gives_no_score():
    def lost(text, slot):
        raise EngineLost("killed")

    dead = LocalLM(ScriptedEngine(lost), num_retries=0)
    metric = judged_by(Judge("right?"), lm=dead)
    lm = LocalLM(ScriptedEngine(grading))
    with pytest.raises(EngineLost):
        evaluate(pf.Predict("question -> answer"), rows("one ?"), metric, lm=lm)


def grounded(answer, **prediction):
    lm = LocalLM(ScriptedEngine(grading))
    example = dspy.Example(question="Where?").with_inputs("question")
    with dspy.context(lm=lm):
        return groundedness(example, Prediction(answer=answer, **prediction))


def test_groundedness_is_the_mean_over_sentences():
    passages = ["It rises there.", "The Rhine is long."]
    long = "The Rhine rises in the Alps of the south. The Danube on the other hand does not at all."
    assert grounded(long, passages=passages) == 0.5
    assert grounded("The Rhine", passages=passages) == 1.0
    assert grounded("", passages=passages) == 1.0


def test_a_number_that_no_passage_holds_is_not_grounded():
    assert grounded("The Rhine is 1230 km long.", passages=["The Rhine is 1,230 km long."]) == 1.0
    assert grounded("The Rhine is 1330 km long.", passages=["The Rhine is 1,230 km long."]) == 0.0


def test_citations_come_before_passages_and_the_example_is_last():
    quoted = [{"quote": "The Rhine is 5 km."}]
    assert grounded("The Rhine is 5 km.", citations=quoted, passages=["nothing"]) == 1.0
    example = dspy.Example(question="?", knowledge="The Rhine is 5 km.").with_inputs("question")
    with dspy.context(lm=LocalLM(ScriptedEngine(grading))):
        assert groundedness(example, Prediction(answer="The Rhine is 5 km.")) == 1.0


def test_without_anything_to_follow_from_it_is_an_error():
    lm = LocalLM(ScriptedEngine(grading))
    with pytest.raises(DataError, match="made from"):
        evaluate(pf.Predict("question -> answer"), rows("one ?"), groundedness, lm=lm)


def test_called_alone_in_the_form_of_dspy():
    example = dspy.Example(question="?").with_inputs("question")
    with dspy.context(lm=LocalLM(ScriptedEngine(grading))):
        assert judge(example, Prediction(answer="right"), None) == 1.0
