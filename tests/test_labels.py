from __future__ import annotations

import enum
import random
from typing import Literal

import dspy
import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import DataError
from promptflow.evaluation.evaluate import evaluate
from promptflow.evaluation.labels import (
    accuracy,
    brier,
    confusion,
    ece,
    expected_calibration_error,
    macro_f1,
    macro_f1_of,
    options_of,
)
from promptflow.flow import Prediction
from promptflow.lm import LocalLM

NAMES = ["cat", "dog", "eel"]


def example(label):
    return dspy.Example(question="?", label=label).with_inputs("question")


def said(value, **shares):
    prediction = Prediction(label=value)
    if shares:
        prediction._weighed = {"label": shares}
    return prediction


@pytest.mark.parametrize("seed", range(20))
def test_macro_f1_is_that_of_scikit_learn(seed):
    draw = random.Random(seed)
    pairs = [(draw.choice(NAMES[: 1 + seed % 3]), draw.choice(NAMES)) for _ in range(1 + seed)]
    golds, saids = zip(*pairs, strict=True)
    expected = f1_score(golds, saids, average="macro", zero_division=0.0)
    assert macro_f1_of(pairs) == pytest.approx(expected)


def test_a_confusion_table_has_a_row_a_gold_label():
    table = confusion([("cat", "dog"), ("cat", "cat"), ("dog", "dog"), ("cat", "eel")])
    assert table == {"cat": {"cat": 1, "dog": 1, "eel": 1}, "dog": {"cat": 0, "dog": 1, "eel": 0}}


def binned(sure, bins):
    """The definition, bin by bin."""
    total = 0.0
    for b in range(bins):
        inside = [(c, r) for c, r in sure if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)]
        if inside:
            confidence, right = np.mean(inside, axis=0)
            total += len(inside) / len(sure) * abs(confidence - right)
    return total


@pytest.mark.parametrize("seed", range(20))
def test_the_calibration_error_is_its_definition(seed):
    draw = random.Random(seed)
    sure = [(draw.random(), float(draw.random() < 0.6)) for _ in range(40)] + [
        (1.0, 1.0),
        (0.0, 1.0),
    ]
    for bins in (1, 10, 15):
        assert expected_calibration_error(sure, bins) == pytest.approx(binned(sure, bins))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("count", [2, 3])
def test_the_brier_score_is_that_of_scikit_learn(seed, count):
    draw = np.random.default_rng(seed)
    shares = draw.dirichlet(np.ones(count), size=12)
    golds = [NAMES[i] for i in draw.integers(0, count, 12)]
    names = NAMES[:count]
    runs = [
        (example(gold), said(names[int(row.argmax())], **dict(zip(names, row, strict=True))))
        for gold, row in zip(golds, shares, strict=True)
    ]
    ours = brier.score([brier.statistic(*run) for run in runs])
    theirs = (
        brier_score_loss([g == names[1] for g in golds], shares[:, 1])
        if count == 2
        else brier_score_loss(golds, shares, labels=names, scale_by_half=False)
    )
    assert ours == pytest.approx(theirs)


def test_a_stated_confidence_stands_in_for_probabilities():
    prediction = Prediction(label="cat", confidence=0.9)
    assert ece(example("cat"), prediction) == pytest.approx(0.1)
    assert brier(example("dog"), prediction) == pytest.approx(0.81)
    with pytest.raises(DataError, match="weigh=True"):
        ece(example("cat"), Prediction(label="cat"))
    with pytest.raises(DataError, match="weigh=True"):
        ece(example("cat"), Prediction(label="cat", confidence=90))


class Mood(enum.Enum):
    GLAD = "very glad"
    SAD = "sad"


@pytest.mark.parametrize(
    ("annotation", "options"),
    [
        (bool, [True, False]),
        (Literal["a", 2], ["a", 2]),
        (Mood, [Mood.GLAD, Mood.SAD]),
        (Mood | None, [Mood.GLAD, Mood.SAD, None]),
        (str, []),
        (str | None, []),
        (int | Literal["x"], []),
    ],
)
def test_options_of_a_type(annotation, options):
    assert options_of(annotation) == options


def judged(answers, golds, program, metric=None, **options):
    """Evaluate a program that gives ``answers`` in order on rows with ``golds``."""
    left = dict(enumerate(answers))

    def answer(text, slot):
        return left[int(text.rsplit("Question:", 1)[1].split()[0])]

    data = [
        dspy.Example(question=f"{n} ?", label=gold).with_inputs("question")
        for n, gold in enumerate(golds)
    ]
    return evaluate(program, data, metric, lm=LocalLM(ScriptedEngine(answer)), **options)


def test_labels_are_scored_with_macro_f1_and_a_confusion_table_beside():
    program = pf.Predict("question -> label: Literal['cat', 'dog', 'eel']")
    golds = ["cat", "cat", "Dog", "eel"] * 5
    result = judged(["cat", "dog", "dog", "dog"] * 5, golds, program)
    assert result.about["metric"] == "accuracy"
    assert result.score == 0.5
    macro = result.beside["macro_f1"]
    assert macro.mean == pytest.approx((2 / 3 + 0.5 + 0.0) / 3)
    assert macro.low < macro.mean < macro.high
    assert result.confusion["cat"] == {"cat": 5, "dog": 5, "eel": 0}
    assert result.confusion["eel"] == {"cat": 0, "dog": 5, "eel": 0}
    assert result.to_json()["confusion"] == result.confusion


def test_gold_labels_that_the_program_cannot_say_are_an_error_and_no_zero():
    program = pf.Predict("question -> label: Literal['cat', 'dog']")
    with pytest.raises(pf.errors.MetricError, match="'feline' is none of the options 'cat', 'dog'"):
        judged(["cat"] * 4, ["feline"] * 4, program)


def test_macro_f1_over_all_runs_is_no_mean_of_runs():
    program = pf.Predict("question -> label: Literal['cat', 'dog']")
    golds = ["cat"] * 18 + ["dog"] * 2
    result = judged(["cat"] * 20, golds, program, "macro_f1")
    assert result.score == pytest.approx(f1_score(golds, ["cat"] * 20, average="macro"))
    assert sum(record.score for record in result.records) == 18
    assert result.low <= result.score <= result.high


def test_enums_and_bools_are_labels():
    gold = example("GLAD")
    assert accuracy(gold, Prediction(label=Mood.GLAD)) == 1.0
    assert macro_f1.statistic(gold, Prediction(label=Mood.SAD)) == ["glad", "sad"]
    assert macro_f1.statistic(example("true"), Prediction(label=True)) == ["true", "true"]


def test_calibration_beside_accuracy_from_weighed_options():
    program = pf.Predict("question -> label: Literal['cat', 'dog']", weigh=True)
    result = judged(["cat"] * 10, ["cat"] * 6 + ["dog"] * 4, program, beside=["ece", "brier"])
    assert result.score == 0.6
    assert result.beside["ece"].mean == pytest.approx(0.4)
    assert result.beside["brier"].mean == pytest.approx(0.4)
