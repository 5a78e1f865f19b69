"""What metrics say of runs: one number, a statistic for the score of all, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from promptflow.errors import MetricError, NoGold, PromptflowError
from promptflow.evaluation.bymodel import asked_flow
from promptflow.evaluation.corpus import corpus_of, statistic_of
from promptflow.evaluation.metrics import Metric, unbound
from promptflow.flow import Prediction, run_flows


@dataclass(frozen=True, slots=True)
class Measure:
    """What a metric says of one run: ``kept`` is its statistic of a corpus metric, else its score.

    Without a score the run had no gold value, or ``failure`` says what went wrong.
    """

    score: float | None = None
    kept: Any = None
    failure: PromptflowError | None = None


def measure(
    metric: Metric, runs: Sequence[tuple[Any, Any, Any]], *, seed: int = 0
) -> list[Measure]:
    """Return what a metric says of runs (example, prediction, trace), in order.

    A metric that asks a model asks for all of them in one batch, with the configured LM or its own.
    """
    flows = [asked_flow(metric, example, prediction) for example, prediction, _ in runs]
    if runs and flows[0] is not None:
        lm = getattr(unbound(metric)[0], "lm", None)
        given = run_flows((flow for flow in flows if flow is not None), lm=lm, seed=seed)
        return [_asked(answer) for answer in given]
    return [_measured(metric, *run) for run in runs]


def _asked(answer: Any) -> Measure:
    if isinstance(answer, NoGold):
        return Measure()
    if isinstance(answer, PromptflowError):
        return Measure(failure=answer)
    return _guarded(lambda: Measure(_number(answer.score), answer.score))


def _measured(metric: Metric, example: Any, prediction: Any, trace: Any) -> Measure:
    corpus = corpus_of(metric)
    if corpus is None:
        score = _guarded(lambda: Measure(_number(metric(example, prediction, trace))))
        return Measure(score.score, score.score, score.failure)

    def kept() -> Measure:
        statistic = statistic_of(metric, example, prediction)
        return Measure(_number((corpus.alone or corpus.score)([statistic])), statistic)

    return _guarded(kept)


def _number(score: Any) -> float:
    number = float(score)
    if not math.isfinite(number):
        raise ValueError(f"the score is {number}")
    return number


def _guarded(scored: Callable[[], Measure]) -> Measure:
    try:
        return scored()
    except NoGold:
        return Measure()
    except Exception as error:
        failure = MetricError(f"{type(error).__name__}: {error}")
        failure.__cause__ = error
        return Measure(failure=failure)


def measure_unread(metric: Metric, example: Any) -> Measure:
    """Return what a metric says of an answer that does not fit its fields: it is wrong.

    Of a corpus metric the statistic of empty text stands for it; where there is none, a failure.
    """
    if corpus_of(metric) is None:
        return Measure(0.0, 0.0)
    blank = Prediction(**dict.fromkeys(example.labels().keys(), ""))
    return _measured(metric, example, blank, None)
