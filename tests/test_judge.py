from __future__ import annotations

import math

import pytest
from conftest import SMOLLM

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import EngineLost, SignatureError
from promptflow.flow import Prediction, run, run_many
from promptflow.modules.judge import Judge, PairJudge, consistency, shares


def test_shares_come_in_the_order_of_the_options() -> None:
    prediction = Prediction(verdict="B")
    assert shares(prediction, "verdict", ["A", "B"]) == {"A": 0.0, "B": 1.0}
    prediction._weighed = {"verdict": {"B": 0.7, "A": 0.3}}
    assert list(shares(prediction, "verdict", ["A", "B"]).items()) == [("A", 0.3), ("B", 0.7)]


def test_a_score_is_the_expected_level() -> None:
    lm = pf.load("scripted", engine=ScriptedEngine(lambda text, slot: "4"))
    result = run(Judge("Is it right?"), lm=lm, question="2 + 2?", answer="4")
    assert (result.level, result.score, result.unit) == (4, 4.0, 0.75)
    assert result.probabilities == {1: 0.0, 2: 0.0, 3: 0.0, 4: 1.0, 5: 0.0}
    assert float(result) == 4.0


def test_the_judge_sees_rubric_question_and_answer_and_weighs_every_level() -> None:
    asked = []

    def answer(text: str, slot: pf.Slot) -> str:
        asked.append(slot.is_weighed)
        assert all(part in text for part in ("Is it right?", "2 + 2?", "five"))
        return "1"

    lm = pf.load("scripted", engine=ScriptedEngine(answer))
    assert run(Judge("Is it right?"), lm=lm, question="2 + 2?", answer="five").unit == 0.0
    assert asked == [True]


@pytest.mark.parametrize("score", ["str", "Literal['good', 'bad']", "Literal[3, 1]", "bool"])
def test_a_score_must_be_ascending_numbers(score: str) -> None:
    with pytest.raises(SignatureError, match="ascending numbers"):
        Judge("right?", f"rubric, answer -> score: {score}")


def verdicts(*given: str) -> Prediction:
    left = iter(given)
    lm = pf.load("scripted", engine=ScriptedEngine(lambda text, slot: next(left)))
    return run(PairJudge(), lm=lm, question="?", first="one", second="two")


def test_a_pair_is_judged_in_both_orders() -> None:
    result = verdicts("A", "B")
    assert (result.winner, result.consistent, result.preference) == ("first", True, 1.0)
    assert verdicts("B", "A").winner == "second"


def test_a_verdict_that_follows_the_order_is_a_tie() -> None:
    result = verdicts("A", "A")
    assert (result.winner, result.consistent) == ("tie", False)
    assert result.verdicts == ("first", "second")
    assert result.preference == 0.5


def test_two_ties_are_a_consistent_tie() -> None:
    result = verdicts("tie", "tie")
    assert (result.winner, result.consistent, result.preference) == ("tie", True, 0.5)


def test_the_orders_are_exchanged() -> None:
    engine = ScriptedEngine(lambda text, slot: "A")
    lm = pf.load("scripted", engine=engine)
    run(PairJudge(), lm=lm, question="?", first="one", second="two")
    assert engine.batches == [2]
    places = [(prompt.rindex("one"), prompt.rindex("two")) for prompt in engine.prompts]
    assert places[0][0] < places[0][1]
    assert places[1][0] > places[1][1]


def test_consistency_over_many_pairs() -> None:
    given = [verdicts("A", "B"), verdicts("A", "A"), verdicts("B", "B"), verdicts("A", "tie")]
    counted = consistency([*given, EngineLost("gone")])
    assert (counted.n, counted.consistent, counted.first, counted.second) == (4, 1, 1, 1)
    assert (counted.failed, counted.rate) == (1, 0.25)
    assert consistency([]).rate == 0.0


def test_levels_carry_probabilities_on_a_real_model(smollm: pf.Engine) -> None:
    lm = pf.load(SMOLLM, engine=smollm)
    inputs = [{"question": "2 + 2?", "answer": answer} for answer in ("4", "a potato")]
    for result in run_many(Judge("The answer is correct."), inputs, lm=lm):
        assert isinstance(result, Prediction), result
        assert math.fsum(result.probabilities.values()) == pytest.approx(1.0)
        assert result.probabilities[result.level] == max(result.probabilities.values())
        assert 1.0 < result.score < 5.0
