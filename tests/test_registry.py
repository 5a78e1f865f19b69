from __future__ import annotations

import datetime
import enum
import sys
from decimal import Decimal
from typing import Literal

import dspy
import pytest

from promptflow.errors import DataError
from promptflow.evaluation.metrics import contains
from promptflow.evaluation.registry import METRICS, default_metric, find_metric


class Mood(enum.Enum):
    GLAD = "glad"
    SAD = "sad"


@pytest.mark.parametrize(
    ("annotation", "metric"),
    [
        (str, "f1"),
        (str | None, "f1"),
        (list[str], "f1"),
        (dict[str, int], "f1"),
        (Literal["a", "b"], "accuracy"),
        (Literal["a", "b"] | None, "accuracy"),
        (Mood, "accuracy"),
        (bool, "accuracy"),
        (int, "exact_match"),
        (float | None, "exact_match"),
        (int | float, "exact_match"),
        (Decimal, "exact_match"),
        (datetime.date, "exact_match"),
        (int | str, "f1"),
    ],
)
def test_the_default_follows_the_type_of_the_output(annotation, metric):
    data = [dspy.Example(question="?", kind="x").with_inputs("question")]
    assert default_metric({"reasoning": str, "kind": annotation}, data) is METRICS[metric]


def test_the_default_of_a_program_that_does_not_tell_its_outputs_is_f1():
    assert default_metric(None, []) is METRICS["f1"]


def test_several_fields_with_gold_values_have_no_default():
    data = [dspy.Example(question="?", kind="x", mood="y").with_inputs("question")]
    with pytest.raises(DataError, match="no single field"):
        default_metric({"kind": str, "mood": Mood}, data)


def test_a_field_follows_the_name():
    example = dspy.Example(title="x", summary="y")
    prediction = dspy.Prediction(title="x", summary="z")
    assert find_metric("f1:title")(example, prediction) == 1.0
    assert find_metric("f1:summary")(example, prediction) == 0.0


@pytest.mark.parametrize("spec", ["scores.py:metric", "scores:metric", "scores.py:Held.metric"])
def test_a_metric_is_found_as_a_program_is(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("nowhere")
    monkeypatch.delitem(sys.modules, "scores", raising=False)
    (tmp_path / "scores.py").write_text(
        "def metric(example, prediction, trace=None):\n    return 0.5\n\n\n"
        "class Held:\n    metric = staticmethod(metric)\n"
    )
    assert find_metric(spec)(None, None) == 0.5
    monkeypatch.delitem(sys.modules, "scores", raising=False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no.py:metric", "no.py"),
        ("bad.py:metric", "SyntaxError"),
        ("good.py:other", "no attribute 'other'"),
        ("good.py:number", "is int, not a function"),
    ],
)
def test_a_metric_that_is_not_there_is_named(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("def (")
    (tmp_path / "good.py").write_text("number = 3\n")
    with pytest.raises(DataError, match=message):
        find_metric(spec)


def test_metrics_are_found_by_name():
    assert find_metric("f1") is METRICS["f1"]
    assert find_metric("promptflow.evaluation.metrics:contains") is contains
    with pytest.raises(DataError, match="Did you mean 'exact_match'"):
        find_metric("exact_mach")
    with pytest.raises(DataError, match="nowhere"):
        find_metric("nowhere_at_all:metric")
