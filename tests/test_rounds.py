from __future__ import annotations

import pytest
from scripted_samples import sample, scripted

import promptflow as pf
from promptflow.engine.model.fake import FakeModel
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import ProgramError
from promptflow.flow import Module, Prediction, run, run_many
from promptflow.modules.predict import Predict
from promptflow.modules.rounds import mean_logprob
from promptflow.modules.voting import SelfConsistency


def test_a_sample_that_was_forced_entirely_has_probability_one() -> None:
    assert mean_logprob(sample("x", 0.0, 0)) == 0.0


def test_every_call_of_a_flow_counts_in_its_weight() -> None:
    first, second = sample("a", -1.0, 1), sample("b", -5.0, 2)
    both = Prediction(answer="b")
    both._trace = first.trace + second.trace
    assert mean_logprob(both) == pytest.approx(-2.0)


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
    results = run_many(SelfConsistency(TwoSteps(), n=3, sure="all"), [{"question": "?"}], lm=lm)
    assert engine.batches == [3, 3]
    assert results[0].answer == "1"


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
    module = SelfConsistency(
        pf.ChainOfThought("q -> answer: int"), n=20, temperature=1.0, sure="all"
    )
    prediction = run(module, lm=lm, q="?")
    longest = max(p.usage.generated + p.usage.forced for _, _, p in prediction.trace)
    assert engine.stats().requests == 20
    assert engine.stats().decodes < longest + 30
    assert sum(p.usage.generated for _, _, p in prediction.trace) > 3 * longest


def test_a_remote_model_without_probabilities_has_no_weighed_vote() -> None:
    from promptflow.engine.request import Fill

    silent = Prediction(answer="a")
    silent._fills = {"": Fill("a", "stop", generated=3)}
    outer = Prediction(answer="a")
    outer._trace = ((None, {}, silent),)
    with pytest.raises(ProgramError, match="log-probabilities"):
        mean_logprob(outer)
