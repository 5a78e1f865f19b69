"""The metrics that have a name, and which of them a program is scored by if none is chosen."""

from __future__ import annotations

import datetime
import numbers
from collections.abc import Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from functools import partial
from types import UnionType
from typing import Any, Union, get_args, get_origin

from promptflow.errors import DataError, ProgramError
from promptflow.evaluation.extraction import stated
from promptflow.evaluation.judged import groundedness, judge, judged_by
from promptflow.evaluation.labels import accuracy, brier, ece, has_labels, macro_f1
from promptflow.evaluation.likeness import cosine, perplexity
from promptflow.evaluation.metrics import Metric, bound, contains, exact_match, f1, numeric
from promptflow.evaluation.ngrams import bleu, chrf, rouge_1, rouge_2, rouge_l
from promptflow.evaluation.ranking import (
    citation_precision,
    citation_recall,
    mrr,
    ndcg,
    retrieved,
)
from promptflow.modules import Judge, Panel
from promptflow.program.resolve import find_code

METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (
        exact_match,
        f1,
        numeric,
        contains,
        stated,
        accuracy,
        macro_f1,
        ece,
        brier,
        rouge_1,
        rouge_2,
        rouge_l,
        bleu,
        chrf,
        cosine,
        perplexity,
        mrr,
        ndcg,
        retrieved,
        citation_precision,
        citation_recall,
        groundedness,
        judge,
    )
}


def find_metric(name: str) -> Metric:
    """Return a metric by name: ``f1``, ``f1:field``, ``module:function`` or ``file.py:function``.

    Raises DataError naming the metrics that exist.
    """
    head, _, tail = name.partition(":")
    if head in METRICS:
        return partial(METRICS[head], field=tail) if tail else METRICS[head]
    if tail:
        try:
            metric = find_code(name)
        except ProgramError as error:
            raise DataError(f"metric {error}") from error
        if not callable(metric):
            raise DataError(f"metric {name!r} is {type(metric).__name__}, not a function")
        return metric  # type: ignore[no-any-return]
    near = get_close_matches(name, METRICS, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise DataError(
        f"no metric {name!r}. {hint}There are {', '.join(METRICS)}, or module:function, "
        "or file.py:function"
    )


def as_metric(metric: Metric | Judge | Panel | str) -> Metric:
    """Return a metric of a name, of a judge, or of a function, which it is."""
    if isinstance(metric, str):
        return find_metric(metric)
    return judged_by(metric) if isinstance(metric, Judge | Panel) else metric


def default_metric(outputs: Mapping[str, Any] | None, data: Sequence[Any]) -> Metric:
    """Return the metric that suits the type of the field with gold values in ``data``.

    ``accuracy`` for options, ``exact_match`` for numbers, dates and times, ``f1`` for all else:
    by words of text, by items of lists, by fields of objects. ``f1`` where only running the program
    tells what it puts out. Raises DataError where several fields have gold values.
    """
    if outputs is None:
        return f1
    chosen = bound(f1, data, outputs)
    field = chosen.keywords["field"] if isinstance(chosen, partial) else next(iter(outputs))
    return _by_type(outputs[field])


def _by_type(annotation: Any) -> Metric:
    if has_labels(annotation):
        return accuracy
    if get_origin(annotation) in (Union, UnionType):
        found = {_by_type(part) for part in get_args(annotation) if part is not type(None)}
        return found.pop() if len(found) == 1 else f1
    bare = get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    kinds = (numbers.Number, Decimal, datetime.date, datetime.time, datetime.timedelta)
    return exact_match if isinstance(bare, type) and issubclass(bare, kinds) else f1
