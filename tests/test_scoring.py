from __future__ import annotations

import json

import dspy
import pytest

from promptflow.engine.request import Completion, Usage
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import ContextOverflow, EngineLost
from promptflow.evaluation.metrics import exact_match
from promptflow.evaluation.scoring import RETRIES, Job, Record, check_excluded, score_jobs
from promptflow.lm import LocalLM
from promptflow.modules.predict import Predict


def example(question, answer):
    return dspy.Example(question=question, answer=answer).with_inputs("question")


def test_several_programs_share_one_batch():
    engine = ScriptedEngine(lambda text, slot: "polite" if "Please" in text else "plain")
    plain = Predict("question -> answer")
    polite = Predict("question -> answer")
    polite.signature = polite.signature.with_instructions("Please answer.")
    jobs = [Job(p, i, example("how?", "polite")) for p in (0, 1) for i in range(3)]
    outcomes = score_jobs([plain, polite], jobs, exact_match, lm=LocalLM(engine))
    assert engine.batches == [6]
    assert [o.record.score for o in outcomes] == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert [o.record.index for o in outcomes] == [0, 1, 2, 0, 1, 2]


def test_every_program_meets_the_same_seeds():
    seeds = []

    class Spy(ScriptedEngine):
        def generate(self, requests, on_done=None):
            seeds.extend(request.seed for request in requests)
            return super().generate(requests, on_done)

    jobs = [Job(p, i, example("how?", "x")) for p in (0, 1) for i in range(3)]
    programs = [Predict("question -> answer"), Predict("question -> answer, note")]
    score_jobs(programs, jobs, exact_match, lm=LocalLM(Spy(lambda text, slot: "x")))
    assert seeds[:3] == seeds[3:]
    assert len(set(seeds)) == 3


def test_a_lasting_fault_is_tried_a_few_times_and_reported():
    asked = []

    def answer(text, slot):
        asked.append(text)
        raise EngineLost("killed")

    lm = LocalLM(ScriptedEngine(answer), num_retries=0)
    [outcome] = score_jobs(
        [Predict("question -> answer")], [Job(0, 4, example("?", "x"))], exact_match, lm=lm
    )
    assert len(asked) == 1 + RETRIES
    assert isinstance(outcome.failure, EngineLost)
    assert outcome.record.score is None
    with pytest.raises(EngineLost, match=r"1 of 10 .* on example 4: killed. Go on."):
        check_excluded([outcome], 10, "Go on.")
    check_excluded([outcome], 50, "two percent may be left out")


def test_the_trace_goes_to_the_metric_only_when_demos_are_collected():
    seen = []

    def metric(example, prediction, trace=None):
        seen.append(trace)
        return 1.0

    lm = LocalLM(ScriptedEngine(lambda text, slot: "x"))
    program = Predict("question -> answer")
    jobs = [Job(0, 0, example("?", "x"))]
    score_jobs([program], jobs, metric, lm=lm)
    [outcome] = score_jobs([program], jobs, metric, lm=lm, traced=True)
    assert seen[0] is None
    [(predictor, inputs, prediction)] = outcome.trace
    assert (predictor, dict(inputs), prediction.answer) == (program, {"question": "?"}, "x")
    assert seen[1] == outcome.trace


def test_a_score_that_is_no_number_is_an_error_of_the_metric():
    lm = LocalLM(ScriptedEngine(lambda text, slot: "x"))
    jobs = [Job(0, 0, example("?", "x"))]
    [outcome] = score_jobs([Predict("question -> answer")], jobs, lambda *_: float("nan"), lm=lm)
    assert outcome.record.score is None
    assert "nan" in outcome.record.error


def test_progress_reaches_the_end():
    shares = []
    lm = LocalLM(ScriptedEngine(lambda text, slot: "x"))
    jobs = [Job(0, i, example("?", "x")) for i in range(4)]
    score_jobs([Predict("question -> answer")], jobs, exact_match, lm=lm, progress=shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_a_record_survives_json():
    lm = LocalLM(ScriptedEngine(lambda text, slot: "x"))
    [outcome] = score_jobs(
        [Predict("question -> answer")], [Job(0, 0, example("?", "x"))], exact_match, lm=lm
    )
    data = json.loads(json.dumps(outcome.record.to_json()))
    assert Record.from_json(data) == outcome.record


class Plain(dspy.Module):
    """A program of DSPy's own, without a flow."""

    def __init__(self, predict):
        super().__init__()
        self.predict = predict

    def forward(self, **inputs):
        return self.predict(**inputs)


@pytest.mark.parametrize("written", ["[[ ## answer ## ]]\n4\n", "no field at all"])
@pytest.mark.parametrize("kind", [dspy.Predict, dspy.ChainOfThought, Predict])
@pytest.mark.parametrize("wrapped", [False, True])
def test_all_tokens_of_a_program_of_dspys_own_are_counted(written, kind, wrapped):
    engine = ScriptedEngine(lambda text, slot: "4" if slot.name == "answer" else written)
    program = Plain(kind("question -> answer")) if wrapped else kind("question -> answer")
    jobs = [
        Job(0, n, dspy.Example(question=f"{n}?", answer="4").with_inputs("question"))
        for n in range(3)
    ]
    outcomes = score_jobs([program], jobs, exact_match, lm=LocalLM(engine))
    stats = engine.stats()
    usage = sum((o.record.usage for o in outcomes), Usage())
    assert (usage.prefilled, usage.generated) == (stats.prefilled, stats.generated)
    assert usage.prefilled > 0
    assert all(o.record.score in (0.0, 1.0) for o in outcomes)


def test_an_error_that_is_dspys_too_can_be_reported():
    class Full(ScriptedEngine):
        def generate(self, requests, on_done=None):
            error = ContextOverflow("too long")
            return [Completion(error=error) for _ in requests]

    jobs = [Job(0, 0, example("?", "x"))]
    [outcome] = score_jobs(
        [Predict("question -> answer")],
        jobs,
        exact_match,
        lm=LocalLM(Full(lambda text, slot: "x")),
    )
    assert isinstance(outcome.failure, dspy.ContextWindowExceededError)
    with pytest.raises(ContextOverflow, match="1 of 1 runs have no score"):
        check_excluded([outcome], 1, "")
