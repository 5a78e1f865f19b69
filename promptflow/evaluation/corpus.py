"""Metrics of many runs together: of each run a statistic is kept, the score is made of all of them.

A mean of scores is not what BLEU, macro-F1 or a calibration error are. ``evaluate`` keeps the
statistic of each run in its record and gives the score of all with a bootstrap interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from promptflow.evaluation.metrics import FIELD, unbound
from promptflow.evaluation.stats import Interval, bca_interval, unvaried

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Corpus:
    """A metric of many runs together; called on one example it is the score of that run alone.

    ``statistic(example, prediction, field=None)`` returns JSON data of one run, or raises NoGold;
    ``score`` makes one number of many statistics, within ``bounds``. Of ``lower_is_better`` ones
    (errors, perplexity) a smaller score is the better. ``alone`` is the score of one run, where the
    corpus' own is no good for it, ``needs`` what an example must have: see ``metrics.needs``.
    """

    name: str
    statistic: Callable[..., Any]
    score: Callable[[Sequence[Any]], float]
    lower_is_better: bool = False
    bounds: tuple[float, float] = (0.0, 1.0)
    alone: Callable[[Sequence[Any]], float] | None = None
    needs: str = FIELD

    @property
    def __name__(self) -> str:
        """Return the name, as functions have it."""
        return self.name

    def __call__(
        self, example: Any, prediction: Any, trace: Any = None, *, field: str | None = None
    ) -> float:
        """Return the score of one run alone, in DSPy's form."""
        score = self.alone or self.score
        return float(score([self.statistic(example, prediction, field=field)]))

    def interval(self, statistics: Sequence[Any], *, seed: int = 0) -> Interval:
        """Return the score of many runs with its 95 % bootstrap interval (BCa, Efron 1987)."""
        items = list(statistics)
        if not items:
            return Interval(math.nan, math.nan, math.nan, 0)
        whole = float(self.score(items))
        if all(item == items[0] for item in items):
            return unvaried(whole, len(items), bounds=self.bounds)
        drawn = np.random.default_rng(seed).integers(0, len(items), (RESAMPLES, len(items)))
        scores = np.array([self.score([items[i] for i in picks]) for picks in drawn])
        left_out = np.array([self.score(items[:i] + items[i + 1 :]) for i in _places(len(items))])
        lever = np.resize(left_out.mean() - left_out, len(items)) if len(left_out) else np.zeros(1)
        low, high = bca_interval(scores, whole, lever)
        return Interval(whole, low, high, len(items))

    def difference(self, a: Sequence[Any], b: Sequence[Any], *, seed: int = 0) -> Interval:
        """Return score(a) - score(b) of paired runs with its 95 % interval: pairs are resampled."""
        one, other = list(a), list(b)
        if not one:
            return Interval(math.nan, math.nan, math.nan, 0)
        whole = float(self.score(one)) - float(self.score(other))
        drawn = np.random.default_rng(seed).integers(0, len(one), (RESAMPLES, len(one)))
        sides = (([one[i] for i in picks], [other[i] for i in picks]) for picks in drawn)
        scores = [self.score(first) - self.score(second) for first, second in sides]
        low, high = np.quantile(scores, (0.025, 0.975))
        return Interval(whole, float(low), float(high), len(one))

    def p_value(self, a: Sequence[Any], b: Sequence[Any], *, seed: int = 0) -> float:
        """Return the two-sided p of approximate randomization: pairs change sides by chance.

        Riezler and Maxwell 2005; 1,000 seeded exchanges.
        """
        pairs = list(zip(a, b, strict=True))
        observed = abs(self.score(list(a)) - self.score(list(b))) - 1e-12
        flips = np.random.default_rng(seed).integers(0, 2, (RESAMPLES, len(pairs)), dtype=np.int8)
        extreme = 0
        for flip in flips:
            sides = [(y, x) if f else (x, y) for f, (x, y) in zip(flip, pairs, strict=True)]
            one, other = zip(*sides, strict=True)
            extreme += abs(self.score(one) - self.score(other)) >= observed
        return (extreme + 1) / (RESAMPLES + 1)


def _places(count: int) -> range:
    """Return which runs are left out in turn: at most some 500 tell how skewed the score is."""
    return range(0, count, max(1, count // 500)) if count > 1 else range(0)


def mean_of(values: Sequence[float]) -> float:
    """Return the mean: the score of a corpus whose runs count one by one."""
    return math.fsum(values) / len(values)


def corpus_of(metric: Any) -> Corpus | None:
    """Return the corpus metric that a metric is, bound to a field or not; None for any other."""
    function, _ = unbound(metric)
    return function if isinstance(function, Corpus) else None


def statistic_of(metric: Any, example: Any, prediction: Any) -> Any:
    """Return the statistic that a corpus metric, bound to a field or not, keeps of a run."""
    corpus, keywords = unbound(metric)
    return corpus.statistic(example, prediction, **keywords)
