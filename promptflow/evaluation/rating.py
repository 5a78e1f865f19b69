"""From judged pairs to win rates and ratings: length taken off, Bradley-Terry, intervals.

Length-controlled win rates are those of Dubois and others 2024 (arXiv 2404.04475): a logistic
regression tells what the difference of lengths adds, and the rate is given without it. Ratings are
the model of Bradley and Terry 1952, fitted as Hunter 2004 does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptflow.errors import DataError
from promptflow.evaluation.stats import bootstrap_interval

RESAMPLES = 500
SCALE, MIDDLE = 400.0, 1000.0
"""A rating 400 above another's wins ten times as often, as with Elo; the mean is 1000."""

OUTCOMES = {"first": 1.0, "second": 0.0, "tie": 0.5}
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Played:
    """One judged pair: who wrote the two answers, and the probability that the first is better.

    ``lengths`` are those of the two answers, in characters say.
    """

    first: str
    second: str
    preference: float
    lengths: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, given: Any) -> Played:
        """Read a pair, a tuple (first, second, outcome), or an object with those names.

        The outcome is "first", "second", "tie", the name of the winner, or the probability that the
        first is better: ``winner`` or ``preference`` of an object. Raises DataError.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, Mapping):
            outcome = given.get("preference", given.get("winner"))
            given = (given.get("first"), given.get("second"), outcome)
        first, second, outcome = given
        if outcome in (first, second) and outcome not in OUTCOMES and first != second:
            outcome = "first" if outcome == first else "second"
        if first is None or second is None or outcome is None:
            raise DataError(
                "a judged pair needs first, second and winner, or preference, the probability "
                "that the first is better"
            )
        preference = OUTCOMES.get(outcome) if isinstance(outcome, str) else float(outcome)
        if preference is None or not 0.0 <= preference <= 1.0:
            raise DataError(
                f"the outcome {outcome!r:.40} is none of first, second, tie or a number from 0 to 1"
            )
        return cls(str(first), str(second), preference)


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often the first answers win, ties counting half, with 95 % intervals.

    ``controlled`` is the rate that answers of equal length would have; ``length_effect`` what a
    difference of one standard deviation adds to the log-odds for the longer one. NaN where all
    differ alike or lengths are not known.
    """

    rate: float
    low: float
    high: float
    controlled: float
    controlled_low: float
    controlled_high: float
    length_effect: float
    n: int

    def __str__(self) -> str:
        """Return the rates in one line."""
        shown = f"win rate {self.rate:.3f} ({self.low:.3f} to {self.high:.3f}, n={self.n})"
        if math.isnan(self.controlled):
            return shown
        return (
            f"{shown}; at equal lengths {self.controlled:.3f} ({self.controlled_low:.3f} to "
            f"{self.controlled_high:.3f}), length effect {self.length_effect:+.2f}"
        )


def win_rate(played: Iterable[Any], *, seed: int = 0) -> WinRate:
    """Return the win rate of the first answers over the second ones. Raises DataError for none."""
    pairs = [Played.of(one) for one in played]
    if not pairs:
        raise DataError("win_rate: there are no judged pairs")
    won = np.array([pair.preference for pair in pairs])
    raw = bootstrap_interval(won.tolist(), seed=seed)
    gaps = np.array([pair.lengths[0] - pair.lengths[1] for pair in pairs], dtype=np.float64)
    spread = float(gaps.std())
    if not spread:
        none = math.nan
        return WinRate(raw.mean, raw.low, raw.high, none, none, none, none, raw.n)
    longer = np.tanh(gaps / spread)
    base, effect = _logistic(longer, won)
    drawn = np.random.default_rng(seed).integers(0, len(won), (RESAMPLES, len(won)))
    rates = [_sigmoid(_logistic(longer[picks], won[picks])[0]) for picks in drawn]
    low, high = np.quantile(rates, (0.025, 0.975))
    return WinRate(
        raw.mean, raw.low, raw.high, _sigmoid(base), float(low), float(high), effect, raw.n
    )


def _sigmoid(odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-odds))


def _logistic(x: Floats, y: Floats, ridge: float = 0.1) -> tuple[float, float]:
    """Return intercept and slope of a logistic regression, by Newton's method.

    A slight penalty keeps them finite where all go to one side.
    """
    rows = np.stack([np.ones_like(x), x], axis=1)
    weights = np.zeros(2)
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-rows @ weights))
        slope = rows.T @ (y - p) - ridge * weights
        curve = (rows * (p * (1.0 - p))[:, None]).T @ rows + ridge * np.eye(2)
        step = np.linalg.solve(curve, slope)
        weights = weights + step
        if np.abs(step).max() < 1e-10:
            break
    return float(weights[0]), float(weights[1])


@dataclass(frozen=True, slots=True)
class Rating:
    """The strength of one writer: ``score`` on Elo's scale with its 95 % interval.

    ``won`` is the share of its ``games`` that it won, ties counting half.
    """

    name: str
    score: float
    low: float
    high: float
    games: int
    won: float


def rate(played: Iterable[Any], *, seed: int = 0) -> list[Rating]:
    """Return the Bradley-Terry rating of each writer, best first, with bootstrap intervals.

    ``played`` are pairs as ``Played.of`` reads them. One tie with an average opponent is added for
    each writer, so that one who always wins has a finite rating. The intervals come from 500
    resamples of the pairs. Raises DataError for no pairs, for a writer against itself, and where
    some were never compared with the others, directly or through others.
    """
    pairs = [Played.of(one) for one in played]
    names = sorted({name for pair in pairs for name in (pair.first, pair.second)})
    _check(pairs, names)
    place = {name: n for n, name in enumerate(names)}
    sides = np.array([[place[pair.first], place[pair.second]] for pair in pairs])
    won = np.array([pair.preference for pair in pairs])
    [scores] = _strengths(sides, won, np.arange(len(pairs))[None, :], len(names))
    drawn = np.random.default_rng(seed).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    resampled = _strengths(sides, won, drawn, len(names))
    bounds = np.quantile(resampled, (0.025, 0.975), axis=0)
    games = np.bincount(sides.ravel(), minlength=len(names))
    wins = np.bincount(sides[:, 0], won, len(names)) + np.bincount(sides[:, 1], 1 - won, len(names))
    ratings = [
        Rating(
            name,
            float(scores[n]),
            float(bounds[0, n]),
            float(bounds[1, n]),
            int(games[n]),
            float(wins[n] / games[n]),
        )
        for name, n in place.items()
    ]
    return sorted(ratings, key=lambda rating: (-rating.score, rating.name))


def _strengths(sides: NDArray[np.int64], won: Floats, picks: NDArray[np.int64], k: int) -> Floats:
    """Return the ratings (samples, k) that fit each sample of pairs.

    Hunter 2004: minorize, then maximize; all samples at once.
    """
    samples = len(picks)
    sample = np.arange(samples)[:, None] * k
    first, second, preferred = sides[picks, 0], sides[picks, 1], won[picks]
    flat = ((sample + first) * k + second).ravel()
    games = np.bincount(flat, minlength=samples * k * k).reshape(samples, k, k).astype(np.float64)
    games += games.transpose(0, 2, 1)
    wins = 0.5 + (
        np.bincount((sample + first).ravel(), preferred.ravel(), samples * k)
        + np.bincount((sample + second).ravel(), 1.0 - preferred.ravel(), samples * k)
    ).reshape(samples, k)
    strength = np.ones((samples, k))
    for _ in range(1000):
        against = games / (strength[:, :, None] + strength[:, None, :])
        fresh = wins / (against.sum(axis=2) + 1.0 / (strength + 1.0))
        moved = float(np.abs(np.log(fresh / strength)).max())
        strength = fresh
        if moved < 1e-6:
            break
    logs = np.log10(strength)
    scores: Floats = MIDDLE + SCALE * (logs - logs.mean(axis=1, keepdims=True))
    return scores


def _check(pairs: Sequence[Played], names: Sequence[str]) -> None:
    """Raise DataError where the pairs do not compare all with all."""
    if not pairs:
        raise DataError("rate: there are no judged pairs")
    group = {name: name for name in names}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    for pair in pairs:
        if pair.first == pair.second:
            raise DataError(f"rate: {pair.first!r} is compared with itself")
        group[root(pair.first)] = root(pair.second)
    apart = [name for name in names if root(name) != root(names[0])]
    if apart:
        raise DataError(
            f"rate: {', '.join(map(repr, apart[:5]))} and {names[0]!r} were never compared, nor "
            "through others; judge some pairs of both"
        )


def to_json(ratings: Iterable[Rating]) -> list[dict[str, Any]]:
    """Return ratings as JSON data."""
    return [asdict(rating) for rating in ratings]
