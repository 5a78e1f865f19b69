from __future__ import annotations

import enum
import math
from collections.abc import Callable

import dspy
import pytest

import promptflow as pf
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import EngineLost, ProgramError, UnknownField
from promptflow.flow import Module, Prediction, run, run_many
from promptflow.modules.predict import Predict
from promptflow.modules.voting import (
    BestOf,
    SelfConsistency,
    Votes,
    count_votes,
    mean_logprob,
    vote_key,
)


class Colour(enum.Enum):
    RED = "red"


def scripted(answers: list[str | Exception]) -> tuple[pf.LocalLM, ScriptedEngine]:
    """An LM that gives these answers in order, to whatever is asked."""
    left = iter(answers)

    def answer(text: str, slot: pf.Slot) -> str:
        given = next(left)
        if isinstance(given, Exception):
            raise given
        return given

    engine = ScriptedEngine(answer)
    return pf.load("scripted", engine=engine).copy(num_retries=0), engine


def sample(answer: object, logprob: float = 0.0, tokens: int = 1) -> Prediction:
    """A prediction whose one call sampled ``tokens`` tokens of this total log-probability."""
    call = Prediction(answer=answer)
    call._fills = {"answer": pf.Fill(str(answer), "stop", tokens, logprob=logprob)}
    prediction = Prediction(answer=answer)
    prediction._trace = ((None, {}, call),)
    return prediction


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (3, 3.0),
        ("Paris", " paris\n"),
        ("New  York", "new york"),
        ([1, "a"], [1.0, "A"]),
        ({"x": 1, "y": 2}, {"y": 2.0, "x": 1}),
        (Colour.RED, "RED"),
    ],
)
def test_equal_values_are_one_vote(a: object, b: object) -> None:
    assert vote_key(a) == vote_key(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [(3.5, 35), ("3.5", "35"), ("-5", "5"), (-5, 5), ("5", 5), (1, True), ("", None), ([], {})],
)
def test_different_values_are_two_votes(a: object, b: object) -> None:
    assert vote_key(a) != vote_key(b)


def test_most_votes_win_and_are_reported() -> None:
    lm, engine = scripted(["7", "8", "8", "9", "8"])
    module = SelfConsistency(Predict("question -> answer: int"), n=5)
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
    lm, engine = scripted(["1", "1", "2", "1", "1"] + ["3"] * 15)
    module = SelfConsistency(Predict("q -> answer: int"), n=7, batch=2)
    result = run(module, lm=lm, q="?")
    assert engine.batches == [2, 2, 2]  # 4 of 6 for 1: the seventh could not change it
    assert (result.answer, result.samples) == (1, 6)


def test_decided_agrees_with_trying_every_ending() -> None:
    """The rule against the slow truth: append every sequence of further votes and look."""

    def winner(cast: list[str]) -> str:
        return max(dict.fromkeys(cast), key=lambda v: (cast.count(v), -cast.index(v)))

    def endings(remaining: int) -> list[list[str]]:
        if not remaining:
            return [[]]
        return [[v, *rest] for v in "abcd" for rest in endings(remaining - 1)]

    for length in range(1, 5):
        for cast in endings(length):
            votes = count_votes([sample(v) for v in cast], "answer", "count")
            for remaining in range(3):
                certain = {winner(cast + ending) for ending in endings(remaining)} == {winner(cast)}
                assert votes.decided(remaining) == certain, (cast, remaining)


def test_no_vote_decides_nothing() -> None:
    assert not Votes((), (), (), ()).decided(1)


def test_logprob_votes_weigh_by_probability_a_token() -> None:
    samples = [
        sample("sure", math.log(0.9) * 4, 4),
        sample("vague", math.log(0.4) * 2, 2),
        sample("vague", math.log(0.4) * 30, 30),
    ]
    votes = count_votes(samples, "answer", "logprob")
    assert votes.values[votes.leader] == "sure"
    assert votes.weights == pytest.approx((0.9, 0.8))
    assert count_votes(samples, "answer", "count").leader == 1


def test_a_sample_that_was_forced_entirely_has_probability_one() -> None:
    assert mean_logprob(sample("x", 0.0, 0)) == 0.0


def test_every_call_of_a_flow_counts_in_its_weight() -> None:
    first, second = sample("a", -1.0, 1), sample("b", -5.0, 2)
    both = Prediction(answer="b")
    both._trace = first.trace + second.trace
    assert mean_logprob(both) == pytest.approx(-2.0)


def test_lists_are_votes() -> None:
    lm, _ = scripted(["[1, 2]", "[1, 2]", "[3]"])
    result = run(SelfConsistency(Predict("q -> answer: list[int]"), n=3), lm=lm, q="?")
    assert result.answer == [1, 2]
    assert result.votes == {"[1, 2]": 2.0, "[3]": 1.0}


class TwoSteps(Module):
    def __init__(self) -> None:
        super().__init__()
        self.think = Predict("question -> thought")
        self.conclude = Predict("question, thought -> answer")

    def flow(self, **inputs: str) -> pf.flow.Flow:
        [thought] = yield [self.think.call(**inputs)]
        [final] = yield [self.conclude.call(**inputs, thought=thought.thought)]
        return Prediction(answer=final.answer)


def test_flows_of_several_steps_advance_together() -> None:
    lm, engine = scripted(["x", "y", "z", "1", "2", "1"] * 2)
    results = run_many(SelfConsistency(TwoSteps(), n=3), [{"question": "?"}], lm=lm)
    assert engine.batches == [3, 3]
    assert results[0].answer == "1"


def test_examples_and_samples_make_one_batch() -> None:
    lm, engine = scripted(["1"] * 12)
    run_many(SelfConsistency(Predict("q -> answer"), n=3), [{"q": str(i)} for i in range(4)], lm=lm)
    assert engine.batches == [12]


def test_only_the_temperature_is_replaced() -> None:
    temperatures = []

    def answer(text: str, slot: pf.Slot) -> str:
        temperatures.append((slot.sampling.temperature, slot.sampling.top_p))
        return "1"

    lm = pf.load("scripted", engine=ScriptedEngine(answer))
    inner = Predict("q -> answer", sampling=pf.Sampling(temperature=0.1, top_p=0.9))
    run(SelfConsistency(inner, n=2, temperature=0.8), lm=lm, q="?")
    assert temperatures == [(0.8, 0.9)] * 2
    assert inner.decoding.sampling.temperature == 0.1


def test_samples_differ_and_repeat_with_the_seed() -> None:
    lm = pf.load("fake", engine=pf.Engine(FakeModel()))
    module = SelfConsistency(Predict("q -> answer", max_tokens=8), n=6, temperature=1.0)
    first = run(module, lm=lm, q="?", seed=3)
    assert len(first.votes) > 1
    assert run(module, lm=lm, q="?", seed=3).votes == first.votes
    assert run(module, lm=lm, q="?", seed=4).votes != first.votes


def test_samples_of_a_seeded_call_are_not_equal() -> None:
    lm = pf.load("fake", engine=pf.Engine(FakeModel()))
    module = SelfConsistency(Predict("q -> answer", max_tokens=8), n=6, temperature=1.0)
    config = {"rollout_id": 3}
    first = run(module, lm=lm, q="?", config=config)
    assert len(first.votes) > 1
    assert run(module, lm=lm, q="?", config=config).votes == first.votes


def test_a_sample_keeps_what_the_models_own_settings_choose() -> None:
    asked = []

    def answer(text: str, slot: pf.Slot) -> str:
        asked.append(slot.sampling)
        return "1"

    lm = pf.load("scripted", engine=ScriptedEngine(answer)).copy(top_k=5, temperature=0.1)
    run(SelfConsistency(Predict("q -> answer"), n=2, temperature=0.8), lm=lm, q="?")
    assert asked == [pf.Sampling(temperature=0.8, top_k=5)] * 2


def test_samples_share_one_prefill() -> None:
    engine = pf.Engine(FakeModel())
    lm = pf.load("fake-prefill", engine=engine)
    predict = Predict("q -> answer", max_tokens=8)
    prompt = engine.count(pf.flow.request_of(predict.call(q="?").complete(lm)).parts)
    run(SelfConsistency(predict, n=8), lm=lm, q="?")
    stats = engine.stats()
    assert prompt <= stats.prefilled <= prompt + 8
    assert stats.reused >= 7 * (prompt - 1)


def test_twenty_chains_under_the_widest_limit_run_side_by_side() -> None:
    engine = pf.Engine(FakeModel(context=8192))
    lm = pf.load("fake-chains", engine=engine)
    module = SelfConsistency(pf.ChainOfThought("q -> answer: int"), n=20, temperature=1.0)
    prediction = run(module, lm=lm, q="?")
    longest = max(p.usage.generated + p.usage.forced for _, _, p in prediction.trace)
    assert engine.stats().requests == 20
    assert engine.stats().decodes < longest + 30
    assert sum(p.usage.generated for _, _, p in prediction.trace) > 3 * longest


def test_a_vote_on_a_missing_field_names_the_fields() -> None:
    lm, _ = scripted(["1"] * 2)
    with pytest.raises(UnknownField, match=r"'answer', but the module returns total; pass field="):
        run(SelfConsistency(Predict("q -> total"), n=2), lm=lm, q="?")


def test_a_module_without_a_flow_is_refused() -> None:
    import dspy

    lm, _ = scripted(["1"])
    with pytest.raises(ProgramError, match=r"write it as a promptflow\.Module"):
        run(SelfConsistency(dspy.Predict("q -> answer"), n=2), lm=lm, q="?")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"temperature": 0.0}, "5 equal samples"),
        ({"vote": "majority"}, "neither 'count' nor 'logprob'"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfConsistency(Predict("q -> answer"), **wrong)


def best(answers: list[str | Exception], **settings: object) -> tuple[Prediction, ScriptedEngine]:
    lm, engine = scripted(answers)
    return run(BestOf(Predict("q -> answer"), **settings), lm=lm, q="abc"), engine


def length(inputs: dict[str, str], prediction: Prediction) -> float:
    return len(prediction.answer) / len(inputs["q"])


def test_best_of_takes_the_highest_reward() -> None:
    result, _ = best(["a", "abcd", "ab", "dcba"], n=4, reward=length)
    assert (result.answer, result.reward) == ("abcd", pytest.approx(4 / 3))


def test_valid_samples_win_over_better_invalid_ones() -> None:
    accepts: Callable[[Prediction], bool] = lambda p: p.answer != "abcd"  # noqa: E731
    result, _ = best(["a", "abcd", "ab"], n=3, reward=length, valid=accepts)
    assert (result.answer, result.valid) == ("ab", True)
    result, _ = best(["abcd", "abcd"], n=2, reward=length, valid=accepts)
    assert (result.answer, result.valid) == ("abcd", False)


def test_best_of_stops_at_its_threshold() -> None:
    result, engine = best(["a", "abc", "abcd"], n=3, reward=length, threshold=1.0, batch=1)
    assert (result.answer, result.samples) == ("abc", 2)
    assert engine.batches == [1, 1]


def test_the_first_valid_sample_ends_the_search() -> None:
    result, engine = best(
        ["x", EngineLost("gone"), "7", "8"],
        n=4,
        reward="first",
        valid=lambda p: p.answer.isdigit(),
        batch=1,
    )
    assert (result.answer, result.samples, result.failed) == ("7", 3, 1)
    assert engine.batches == [1, 1, 1]


def test_the_most_probable_sample_wins() -> None:
    lm = pf.load("fake", engine=pf.Engine(FakeModel()))
    module = BestOf(Predict("q -> answer", max_tokens=6), n=6, temperature=1.5)
    result = run(module, lm=lm, q="?")
    fill = result.fills["answer"]
    assert result.reward == pytest.approx(fill.logprob / fill.generated)
    answers = [answer for _, _, answer in result.trace]
    means = [a.fills["answer"].logprob / a.fills["answer"].generated for a in answers]
    assert result.reward == pytest.approx(max(means))


def test_functions_are_settings_by_name() -> None:
    assert BestOf(Predict("q -> answer"), n=3).settings()["reward"] == "logprob"
    settings = BestOf(Predict("q -> answer"), reward=length, threshold=1.0).settings()
    assert settings["reward"] == {"code": f"{__name__}:length"}
    assert settings["threshold"] == 1.0


def test_dspys_majority_votes_on_the_answer() -> None:
    lm, _ = scripted(["b", "a", "a", "c", "b"] * 2)
    vote = run(SelfConsistency(Predict("q -> answer"), n=5), lm=lm, q="?")
    assert list(vote.keys())[-1] == "answer"
    assert list(run(BestOf(Predict("q -> answer"), n=5), lm=lm, q="?").keys())[-1] == "answer"
    assert dspy.majority(vote).answer == vote.answer == "b"
    assert sorted(vote.completions.answer) == ["a", "a", "b", "b", "c"]
    others = [Prediction(votes={}, failed=3, answer=text) for text in ("x", "y", "y")]
    assert dspy.majority(others).answer == "y"


def test_a_remote_model_without_probabilities_has_no_weighed_vote() -> None:
    from promptflow.engine.request import Fill

    silent = Prediction(answer="a")
    silent._fills = {"": Fill("a", "stop", generated=3)}
    outer = Prediction(answer="a")
    outer._trace = ((None, {}, silent),)
    with pytest.raises(ProgramError, match="log-probabilities"):
        mean_logprob(outer)
