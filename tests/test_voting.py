from __future__ import annotations

import dspy
import pytest
from scripted_samples import scripted

import promptflow as pf
from promptflow.engine.model.fake import FakeModel
from promptflow.errors import EngineLost, UnknownField
from promptflow.flow import Prediction, run, run_many
from promptflow.modules.predict import Predict
from promptflow.modules.rewards import BestOf
from promptflow.modules.voting import SelfConsistency


def test_most_votes_win_and_are_reported() -> None:
    lm, engine = scripted(["7", "8", "8", "9", "8"])
    module = SelfConsistency(Predict("question -> answer: int"), n=5, sure="all")
    result = run(module, lm=lm, question="How many?")
    assert result.answer == 8
    assert result.votes == {8: 3.0, 7: 1.0, 9: 1.0}
    assert result.agreement == pytest.approx(0.6)
    assert (result.samples, result.failed) == (5, 0)
    assert engine.batches == [5]
    assert len(set(engine.prompts)) == 3  # the prompts differ in their answers alone


def test_ties_go_to_the_first_seen() -> None:
    lm, _ = scripted(["b", "a", "a", "b"])
    assert run(SelfConsistency(Predict("q -> answer"), n=4), lm=lm, q="?").answer == "b"


def test_failed_samples_are_no_votes() -> None:
    lm, _ = scripted([EngineLost("gone"), "4", EngineLost("gone"), EngineLost("gone"), "4"])
    result = run(SelfConsistency(Predict("q -> answer: int"), n=5), lm=lm, q="?")
    assert (result.answer, result.votes, result.agreement) == (4, {4: 2.0}, 1.0)
    assert (result.samples, result.failed) == (5, 3)


def test_the_error_is_raised_where_every_sample_failed() -> None:
    lm, _ = scripted([EngineLost("gone")] * 3)
    with pytest.raises(EngineLost, match="gone"):
        run(SelfConsistency(Predict("q -> answer"), n=3), lm=lm, q="?")


def test_stops_when_the_vote_is_decided() -> None:
    lm, engine = scripted(["1", "1", "2", "1", "1", "1"] + ["3"] * 15)
    module = SelfConsistency(Predict("q -> answer: int"), n=7, batch=2, sure=1.0)
    result = run(module, lm=lm, q="?")
    assert engine.batches == [2, 2, 2]  # 5 of 6 for 1: the seventh could not change it
    assert (result.answer, result.samples) == (1, 6)


def test_lists_are_votes() -> None:
    lm, _ = scripted(["[1, 2]", "[1, 2]", "[3]"])
    result = run(SelfConsistency(Predict("q -> answer: list[int]"), n=3, sure="all"), lm=lm, q="?")
    assert result.answer == [1, 2]
    assert result.votes == {"[1, 2]": 2.0, "[3]": 1.0}


def test_examples_and_samples_make_one_batch() -> None:
    lm, engine = scripted(["1"] * 12)
    run_many(
        SelfConsistency(Predict("q -> answer"), n=3, sure="all"),
        [{"q": str(i)} for i in range(4)],
        lm=lm,
    )
    assert engine.batches == [12]


def test_samples_differ_and_repeat_with_the_seed() -> None:
    lm = pf.load("fake", engine=pf.Engine(FakeModel()))
    module = SelfConsistency(Predict("q -> answer", max_tokens=8), n=6, temperature=1.0)
    first = run(module, lm=lm, q="?", seed=3)
    assert len(first.votes) > 1
    assert run(module, lm=lm, q="?", seed=3).votes == first.votes
    assert run(module, lm=lm, q="?", seed=4).votes != first.votes


def test_a_vote_on_a_missing_field_names_the_fields() -> None:
    lm, _ = scripted(["1"] * 2)
    with pytest.raises(UnknownField, match=r"'answer', but the module returns total; pass field="):
        run(SelfConsistency(Predict("q -> total"), n=2), lm=lm, q="?")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"temperature": 0.0}, "5 equal samples"),
        ({"vote": "majority"}, "none of count, logprob, confidence"),
        ({"same": "meaning"}, "no function of values"),
        ({"sure": 0.3}, "is no probability"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfConsistency(Predict("q -> answer"), **wrong)


def test_dspys_majority_votes_on_the_answer() -> None:
    lm, _ = scripted(["b", "a", "a", "c", "b"] * 2)
    vote = run(SelfConsistency(Predict("q -> answer"), n=5), lm=lm, q="?")
    assert list(vote.keys())[-1] == "answer"
    assert list(run(BestOf(Predict("q -> answer"), n=5), lm=lm, q="?").keys())[-1] == "answer"
    assert dspy.majority(vote).answer == vote.answer == "b"
    assert sorted(vote.completions.answer) == ["a", "a", "b", "b", "c"]
    others = [Prediction(votes={}, failed=3, answer=text) for text in ("x", "y", "y")]
    assert dspy.majority(others).answer == "y"


def test_a_clear_vote_ends_early_and_a_close_one_does_not() -> None:
    lm, engine = scripted(["1"] * 16)
    result = run(SelfConsistency(Predict("q -> answer: int"), n=16), lm=lm, q="?")
    assert (result.samples, engine.batches) == (4, [4])
    lm, engine = scripted(["1", "2"] * 8)
    result = run(SelfConsistency(Predict("q -> answer: int"), n=16), lm=lm, q="?")
    assert (result.samples, engine.batches) == (16, [4, 4, 4, 4])


def test_confidence_follows_agreement_unless_the_module_has_its_own() -> None:
    module = SelfConsistency(Predict("q -> answer: int"), n=4, sure="all")
    result = run(module, lm=scripted(["1", "1", "1", "2"])[0], q="?")
    assert 0 < result.confidence < 1
    unanimous = run(module, lm=scripted(["1"] * 4)[0], q="?")
    assert unanimous.confidence > result.confidence
    own = Predict("q -> answer: int, confidence: float")
    texts = ["1", "0.2", "2", "0.9", "1", "0.3"]
    weighed = SelfConsistency(own, n=3, vote="confidence", sure="all")
    result = run(weighed, lm=scripted(texts)[0], q="?")
    assert (result.answer, result.confidence) == (2, 0.9)
    assert result.votes == pytest.approx({2: 0.9, 1: 0.5})
    fitted = SelfConsistency(Predict("q -> answer"), n=3, calibration=lambda votes: 0.25)
    assert run(fitted, lm=scripted(["a"] * 3)[0], q="?").confidence == 0.25


def test_texts_of_one_meaning_win_together() -> None:
    texts = ["cab", "ddd", "abc", "ddd", "bca"]
    module = SelfConsistency(
        Predict("q -> answer"),
        n=5,
        same=lambda values: ["".join(sorted(v)) for v in values],
        sure="all",
    )
    result = run(module, lm=scripted(texts)[0], q="?")
    assert (result.answer, result.votes) == ("cab", {"cab": 3.0, "ddd": 2.0})
    assert module.settings()["same"]["code"].endswith("<lambda>")
