from __future__ import annotations

import math
from dataclasses import replace

import pytest
from conftest import SMOLLM

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import EngineLost, SignatureError
from promptflow.flow import Prediction, run, run_many
from promptflow.modules.judge import Judge, PairJudge, Panel, shares


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


class Weighing(ScriptedEngine):
    """A scripted engine whose weighed options have the probabilities that ``weights`` says."""

    def __init__(self, weights):
        self.weights = weights
        super().__init__(lambda text, slot: max(weights(text), key=weights(text).get))

    def _complete(self, request):
        done = super()._complete(request)
        text = "".join(part.text for part in request.parts if isinstance(part, pf.Text))
        ranked = [
            pf.Alternative(o, math.log(p), math.log(p)) for o, p in self.weights(text).items()
        ]
        fills = {name: replace(f, alternatives=tuple(ranked)) for name, f in done.fills.items()}
        return replace(done, fills=fills)


def leaning(text):
    """What a judge says that likes the answer "good", and the place A much more."""
    good_first = text.index("good") < text.index("poor")
    odds = 2.0 + (0.5 if good_first else -0.5)
    return {"A": 0.9 / (1 + math.exp(-odds)), "B": 0.9 / (1 + math.exp(odds)), "tie": 0.1}


def lean(judge, first="good", second="poor"):
    lm = pf.load("scripted", engine=Weighing(leaning))
    return run(judge, lm=lm, question="?", first=first, second=second)


def test_what_goes_with_the_place_is_known_and_taken_off():
    result = lean(PairJudge())
    assert result.verdicts == ("first", "second")  # A both times
    assert (result.winner, result.consistent) == ("tie", False)
    assert result.place == pytest.approx(2.0)
    assert result.preference == pytest.approx(0.05 + 0.9 / (1 + math.exp(-0.5)))
    given, exchanged = result.probabilities
    assert given["first"] == pytest.approx(0.9 / (1 + math.exp(-2.5)))
    assert exchanged["first"] == pytest.approx(0.9 / (1 + math.exp(1.5)))
    assert math.fsum(given.values()) == pytest.approx(1.0)


def test_a_calibrated_judge_keeps_its_verdict():
    lm = pf.load("scripted", engine=Weighing(leaning))
    pairs = [{"question": "?", "first": "poor", "second": "good"}] * 3
    judge = PairJudge().calibrated(pairs, lm=lm)
    assert judge.prior == pytest.approx(2.0)
    assert lean(judge).winner == "first"
    assert lean(judge, "poor", "good").winner == "second"
    assert judge.settings() == {"prior": judge.prior}


def test_a_judge_that_follows_the_order_warns_once():
    lm = pf.load("scripted", engine=ScriptedEngine(lambda text, slot: "A"))
    pairs = [{"question": str(n), "first": "one", "second": "two"} for n in range(30)]
    judge = PairJudge()
    with pytest.warns(UserWarning, match="kept its verdict in 0% of") as warned:
        run_many(judge, pairs, lm=lm)
    assert len(warned) == 1
    assert judge.reliability.n == 30
    assert (judge.reliability.consistency, judge.reliability.first) == (0.0, 1.0)


def test_a_consistent_judge_does_not_warn():
    def longer(text, slot):
        return "A" if text.index("long") < text.index("short") else "B"

    lm = pf.load("scripted", engine=ScriptedEngine(longer))
    pairs = [{"question": "?", "first": "long" * 9, "second": "short ones"}] * 20
    judge = PairJudge()
    assert {one.winner for one in run_many(judge, pairs, lm=lm)} == {"first"}
    assert judge.reliability.consistency == 1.0


def test_a_reference_and_reasons_are_in_the_prompt_where_they_are_asked_for():
    seen = []

    def answer(text, slot):
        seen.append((slot.name, "Reference: 42" in text, "Reference" in text))
        return "because" if slot.name == "reason" else "4"

    lm = pf.load("scripted", engine=ScriptedEngine(answer))
    plain = run(Judge("right?"), lm=lm, question="6 x 7?", answer="42")
    assert seen.pop() == ("score", False, False)
    assert "reason" not in plain
    guided = run(Judge("right?"), lm=lm, question="6 x 7?", answer="42", reference="42")
    assert seen.pop() == ("score", True, True)
    assert guided.score == 4.0
    reasoned = run(Judge("right?", reasons=True), lm=lm, question="6 x 7?", answer="42")
    assert [name for name, _, _ in seen] == ["reason", "score"]
    assert reasoned.reason == "because"


def test_reasons_of_a_pair_are_those_of_both_orders():
    lm = pf.load("scripted", engine=ScriptedEngine(lambda text, slot: "A"))
    result = run(PairJudge(reasons=True), lm=lm, question="?", first="x", second="y")
    assert result.reasons == ("A", "A")
    with pytest.raises(SignatureError, match="reasons=True"):
        PairJudge("question, answer_a, answer_b -> verdict", reasons=True)


@pytest.mark.parametrize(
    ("writer", "own"),
    [
        ("scripted", True),
        ("SCRIPTED-q4_k_m.gguf", True),
        ("local/scripted", True),
        ("scripted-2", False),
        ("gpt-4", False),
        (None, False),
    ],
)
def test_a_judge_of_its_own_text_is_flagged(writer, own):
    engine = ScriptedEngine(lambda text, slot: "4" if slot.name == "score" else "A")
    lm = pf.load("scripted", engine=engine)
    assert engine.info.name == "scripted"
    graded = run(Judge("right?"), lm=lm, question="?", answer="x", model=writer)
    pair = run(PairJudge(), lm=lm, question="?", first="x", second="y", second_model=writer)
    assert (graded.own, pair.own) == (own, own)


def judge_of(answer):
    return pf.load("scripted", engine=ScriptedEngine(lambda text, slot: answer))


def test_several_judges_are_asked_together_and_their_mean_is_the_score():
    panel = Panel([Judge("right?", lm=judge_of(level)) for level in ("5", "3", "1")])
    result = run(panel, question="?", answer="x")
    assert (result.score, result.unit, result.ratings) == (3.0, 0.5, (1.0, 0.5, 0.0))


def test_what_most_judges_of_a_pair_say_counts():
    panel = Panel([PairJudge(lm=judge_of(v)) for v in ("tie", "tie", "A")])
    result = run(panel, question="?", first="x", second="y")
    assert (result.winner, result.ratings) == ("tie", ("tie", "tie", "tie"))
    with pytest.raises(SignatureError, match="two judges"):
        Panel([PairJudge()])


def test_judges_who_disagree_warn():
    panel = Panel([Judge("right?", lm=judge_of(level)) for level in ("5", "1")])
    inputs = [{"question": str(n), "answer": "x"} for n in range(10)]
    with pytest.warns(UserWarning, match="the 2 judges agree with alpha -"):
        run_many(panel, inputs)
    assert panel.reliability.judges == 2


def test_a_judge_that_died_is_no_verdict():
    def lost(text, slot):
        raise EngineLost("killed")

    dead = pf.load("scripted", engine=ScriptedEngine(lost), num_retries=0)
    panel = Panel([Judge("right?", lm=judge_of("5")), Judge("right?", lm=dead)])
    with pytest.raises(EngineLost):
        run(panel, question="?", answer="x")


def test_levels_carry_probabilities_on_a_real_model(smollm: pf.Engine) -> None:
    lm = pf.load(SMOLLM, engine=smollm)
    inputs = [{"question": "2 + 2?", "answer": answer} for answer in ("4", "a potato")]
    for result in run_many(Judge("The answer is correct."), inputs, lm=lm):
        assert isinstance(result, Prediction), result
        assert math.fsum(result.probabilities.values()) == pytest.approx(1.0)
        assert result.probabilities[result.level] == max(result.probabilities.values())
        assert 1.0 < result.score < 5.0
