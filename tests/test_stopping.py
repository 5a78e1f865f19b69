from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from promptflow.modules.stopping import SURE, turned


def simulated(weights: list[float], left: int, draws: int = 40_000) -> float:
    """The slow truth: shares of the posterior, votes of the shares, the heaviest of each."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([*(w + 1.0 for w in weights), 1.0], draws)
    votes = np.array([rng.multinomial(left, p) for p in shares]) + np.array([*weights, 0.0])
    lead = int(np.argmax(weights))
    best = np.delete(votes, lead, axis=1).max(axis=1)
    return float((best > votes[:, lead]).mean() + (best == votes[:, lead]).mean() / 2)


@pytest.mark.parametrize(
    ("weights", "left"),
    [([2.0], 3), ([4.0], 12), ([5.0, 2.0, 1.0], 8), ([6.0, 5.0], 5), ([3.0, 2.0], 1)],
)
def test_it_is_what_simulation_finds(weights: list[float], left: int) -> None:
    assert turned(weights, left) == pytest.approx(simulated(weights, left), abs=0.01)


def test_rivals_are_added_up_to_one() -> None:
    found = turned([3.0, 1.0], 12)
    assert simulated([3.0, 1.0], 12) <= found < simulated([3.0, 1.0], 12) + 0.02
    assert turned([1.0, 1.0, 1.0, 1.0], 12) == 1.0


def test_nothing_is_certain_without_votes_and_all_is_without_samples() -> None:
    assert turned([], 5) == 1.0
    assert turned([1.0, 1.0], 0) == 0.0
    assert turned([5.0, 1.0], 2) == 0.0  # no two votes bring one to five, nor a new one


def test_more_agreement_is_more_certain() -> None:
    chances = [turned([float(lead), 2.0], 8) for lead in range(2, 11)]
    assert chances == sorted(chances, reverse=True)
    assert turned([6.0, 3.0], 4) < turned([6.0, 3.0], 10)
    assert turned([6.0, 1.0, 1.0, 1.0], 7) < turned([6.0, 3.0], 7)


def test_weights_need_not_be_whole() -> None:
    assert turned([2.5], 3) < turned([2.0], 3)
    assert turned([0.0, 0.0], 3) == pytest.approx(1.0)


def test_an_early_end_is_what_all_samples_elect() -> None:
    """Votes of a known chance end early in what all of them elect, as often as was asked for."""
    rng = random.Random(0)
    kept, spent, runs = 0, 0, 600
    for _ in range(runs):
        best = rng.uniform(0.3, 0.9)
        votes = [0 if rng.random() < best else rng.randint(1, 4) for _ in range(16)]
        for drawn in (4, 8, 12, 16):
            counts = Counter(votes[:drawn])
            if turned(list(map(float, counts.values())), 16 - drawn) <= 1.0 - SURE:
                break
        kept += counts.most_common(1)[0][0] == Counter(votes).most_common(1)[0][0]
        spent += drawn
    assert kept >= 0.97 * runs
    assert spent <= 0.6 * 16 * runs
