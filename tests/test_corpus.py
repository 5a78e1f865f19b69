from __future__ import annotations

import math
import random
from functools import partial

import dspy
import pytest

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import DataError
from promptflow.evaluation.corpus import Corpus, corpus_of, mean_of, statistic_of
from promptflow.evaluation.evaluate import compare, evaluate
from promptflow.evaluation.stats import bootstrap_interval
from promptflow.lm import LocalLM


def off(example, prediction, *, field=None):
    return abs(float(prediction.answer) - float(example.answer))


def root(errors):
    return math.sqrt(mean_of([error**2 for error in errors]))


ERROR = Corpus("rmse", off, root, lower_is_better=True, bounds=(0.0, math.inf))


def test_the_interval_of_a_mean_is_that_of_the_bootstrap():
    draw = random.Random(0)
    values = [draw.random() for _ in range(60)]
    ours = Corpus("mean", off, mean_of).interval(values)
    theirs = bootstrap_interval(values)
    assert ours.mean == pytest.approx(theirs.mean)
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_or_equal_runs_have_an_interval_too(count):
    mean = Corpus("mean", off, mean_of)
    found = mean.interval([1.0] * count)
    assert (found.mean, found.high, found.n) == (1.0, 1.0, count)
    assert found.low < 1.0
    assert math.isnan(mean.interval([]).mean)


def test_intervals_cover_what_they_should():
    """The root of the mean square of a uniform draw is 0.577: 95 % should hold it, or nearly."""
    draw = random.Random(1)
    held = 0
    for _ in range(30):
        found = ERROR.interval([draw.random() for _ in range(20)])
        held += found.low <= math.sqrt(1 / 3) <= found.high
    assert held >= 25


def numbers(count):
    return [
        dspy.Example(question=f"{n} ?", answer=str(n)).with_inputs("question") for n in range(count)
    ]


def scored(error, count=24, metric=ERROR, **options):
    def answer(text, slot):
        n = int(text.rsplit("Question:", 1)[1].split()[0])
        return str(n + error(n))

    lm = LocalLM(ScriptedEngine(answer))
    return evaluate(pf.Predict("question -> answer"), numbers(count), metric, lm=lm, **options)


def test_an_evaluation_scores_all_runs_together():
    result = scored(lambda n: n % 4)
    assert result.score == pytest.approx(math.sqrt((0 + 1 + 4 + 9) / 4))
    assert result.low < result.score < result.high
    assert [record.score for record in result.records[:4]] == [0, 1, 2, 3]
    assert result.records[3].statistics == {"score": 3.0}


def test_a_metric_beside_is_scored_on_the_same_runs(tmp_path):
    again = []
    for _ in range(2):  # the second time from the journal
        result = scored(
            lambda n: n % 4,
            metric="exact_match",
            beside=[ERROR, "rouge_l"],
            journal=tmp_path / "run.sqlite",
        )
        again.append(result)
        assert result.score == 0.25
        assert result.beside["rmse"].mean == pytest.approx(math.sqrt(3.5))
        assert result.beside["rouge_l"].mean == 0.25
        assert result.to_json()["beside"]["rmse"]["n"] == 24
    assert again[0].beside == again[1].beside


def test_two_corpora_are_compared_in_pairs_and_lower_may_be_better():
    near, far = scored(lambda n: n % 2), scored(lambda n: 2 + n % 4)
    found = compare(near, far)
    assert found.difference == pytest.approx(near.score - far.score)
    assert found.high < 0
    assert found.p < 0.01
    assert found.better
    assert (found.wins, found.losses) == (24, 0)
    assert not compare(far, near).better
    same = compare(near, near)
    assert (same.difference, same.better) == (0.0, False)


def test_a_corpus_metric_bound_to_a_field_is_still_one():
    bound = partial(ERROR, field="answer")
    assert corpus_of(bound) is ERROR
    prediction = dspy.Prediction(answer="3")
    assert statistic_of(bound, dspy.Example(answer="1"), prediction) == 2.0
    assert corpus_of(len) is None


def test_a_search_refuses_a_score_that_is_none_of_single_runs():
    program = pf.Predict("question -> answer")
    lm = LocalLM(ScriptedEngine(lambda text, slot: "1"))
    with pytest.raises(DataError, match="'rmse' is a score of all runs together"):
        pf.optimize(program, numbers(40), metric=ERROR, lm=lm)
