"""Intervals and tests for scores: how far a mean, or a difference of two, may be trusted.

Plain numpy on lists of floats. Everything random is seeded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 4000
EXACT = 14  # sign flips are enumerated up to 2**14
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of ``n`` scores with the bounds of its confidence interval."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap_interval(
    scores: Sequence[float],
    *,
    seed: int = 0,
    level: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Return the bias-corrected and accelerated (BCa) bootstrap interval of the mean.

    Efron 1987. No scores give NaN. Scores that are all equal leave the bootstrap nothing to
    resample; their interval is that of a rare other value within ``bounds`` that has not been seen
    in n draws (the exact binomial bound).
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(values.mean())
    tail = (1.0 - level) / 2.0
    if np.ptp(values) == 0.0:
        return unvaried(mean, values.size, bounds=bounds, level=level)
    means = _resampled_means(values, seed)
    # Leave-one-out means differ from their mean by (mean - value) / (n - 1).
    lever = (values - mean) / max(len(values) - 1, 1)
    low, high = bca_interval(means, mean, lever, tail=tail)
    return Interval(mean, low, high, values.size)


def unvaried(
    score: float, n: int, *, bounds: tuple[float, float] = (0.0, 1.0), level: float = 0.95
) -> Interval:
    """Return the interval of a score of ``n`` runs that are all alike: see bootstrap_interval."""
    unseen = 1.0 - ((1.0 - level) / 2.0) ** (1.0 / n)
    low = score - unseen * (score - min(bounds[0], score))
    high = score + unseen * (max(bounds[1], score) - score)
    return Interval(score, low, high, n)


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    block = max(1, 2_000_000 // values.size)
    for start in range(0, RESAMPLES, block):
        count = min(block, RESAMPLES - start)
        picks = random.integers(0, values.size, size=(count, values.size))
        means[start : start + count] = values[picks].mean(axis=1)
    return means


def bca_interval(
    means: np.ndarray, mean: float, lever: np.ndarray, *, tail: float = 0.025
) -> tuple[float, float]:
    """Return the two quantiles of resampled scores that BCa takes.

    ``lever``: by how much each score without one of the runs falls short of their mean.
    """
    # Ties count half: means of 0/1 scores hit the observed mean often.
    below = float((means < mean).mean() + (means == mean).mean() / 2.0)
    below = min(max(below, 0.5 / len(means)), 1.0 - 0.5 / len(means))
    bias = _NORMAL.inv_cdf(below)
    spread = float((lever**2).sum()) ** 1.5
    acceleration = float((lever**3).sum()) / (6.0 * spread) if spread else 0.0

    def level_at(tail: float) -> float:
        z = bias + _NORMAL.inv_cdf(tail)
        return _NORMAL.cdf(bias + z / (1.0 - acceleration * z))

    low, high = np.quantile(means, (level_at(tail), level_at(1.0 - tail)))
    return float(low), float(high)


def paired_interval(
    a: Sequence[float], b: Sequence[float], *, seed: int = 0, level: float = 0.95
) -> Interval:
    """Return the bootstrap interval of the mean of ``a[i] - b[i]``; scores lie in 0 to 1."""
    if len(a) != len(b):
        raise ValueError(f"paired scores differ in number: {len(a)} and {len(b)}")
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return bootstrap_interval(differences, seed=seed, level=level, bounds=(-1.0, 1.0))


def permutation_p(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> float:
    """Return the two-sided p-value of the paired sign-flip test on the mean difference.

    Exact up to 14 pairs that differ, else from 10,000 seeded flips. For 0/1 scores the exact
    form is the sign test on the pairs that disagree (McNemar).
    """
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    differences = differences[differences != 0.0]
    if differences.size == 0:
        return 1.0
    observed = abs(float(differences.sum())) - 1e-12
    if differences.size <= EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=differences.size)))
        return float((np.abs(signs @ differences) >= observed).mean())
    random = np.random.default_rng(seed)
    flips = random.integers(0, 2, size=(10_000, differences.size), dtype=np.int8) * 2.0 - 1.0
    extreme = int((np.abs(flips @ differences) >= observed).sum())
    return (extreme + 1) / 10_001
