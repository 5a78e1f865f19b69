"""Scores with intervals: metrics, evaluation of a program on data, paired comparison."""

from promptflow.evaluation.data import load_data, split
from promptflow.evaluation.evaluate import (
    Comparison,
    Evaluation,
    compare,
    evaluate,
)
from promptflow.evaluation.inputs import input_fields, read_examples
from promptflow.evaluation.metrics import (
    METRICS,
    Metric,
    cited,
    contains,
    exact_match,
    f1,
    find_metric,
    numeric,
    retrieved,
)
from promptflow.evaluation.scoring import Record

__all__ = [
    "METRICS",
    "Comparison",
    "Evaluation",
    "Metric",
    "Record",
    "cited",
    "compare",
    "contains",
    "evaluate",
    "exact_match",
    "f1",
    "find_metric",
    "input_fields",
    "load_data",
    "numeric",
    "read_examples",
    "retrieved",
    "split",
]
