from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from promptflow.errors import DataError
from promptflow.evaluation.rating import Played, rate, win_rate


def season(strengths, rounds, seed=0):
    """Games drawn from the model of Bradley and Terry."""
    draw = random.Random(seed)
    return [
        (
            a,
            b,
            "first" if draw.random() < strengths[a] / (strengths[a] + strengths[b]) else "second",
        )
        for _ in range(rounds)
        for a, b in itertools.permutations(strengths, 2)
    ]


def test_ratings_are_the_strengths_that_drew_the_games():
    strengths = {"a": 4.0, "b": 2.0, "c": 1.0, "d": 0.5}
    found = rate(season(strengths, 60))
    assert [rating.name for rating in found] == ["a", "b", "c", "d"]
    mean = np.mean([math.log10(s) for s in strengths.values()])
    for rating in found:
        true = 1000 + 400 * (math.log10(strengths[rating.name]) - mean)
        assert rating.low < true < rating.high
        assert rating.low < rating.score < rating.high
        assert rating.games == 360


def likelihood(scores, games):
    total = 0.0
    for a, b, outcome in games:
        odds = (scores[a] - scores[b]) / 400 * math.log(10)
        total -= math.log1p(math.exp(-odds if outcome == "first" else odds))
    return total


@pytest.mark.parametrize("seed", range(3))
def test_no_rating_near_by_fits_better(seed):
    games = season({"a": 2.0, "b": 1.0, "c": 0.7}, 200, seed)  # the added ties count for little
    scores = {rating.name: rating.score for rating in rate(games)}
    best = likelihood(scores, games)
    for name, step in itertools.product(scores, (-15, 15)):
        assert likelihood({**scores, name: scores[name] + step}, games) < best


def test_one_that_always_wins_has_a_finite_rating():
    best, worst = rate([("a", "b", "first")] * 10)
    assert (best.name, best.won, worst.won) == ("a", 1.0, 0.0)
    assert 1000 < best.score < 2500


def test_ties_and_probabilities_count():
    [a, b] = rate([("a", "b", "tie"), ("b", "a", 0.5)])
    assert a.score == pytest.approx(b.score) == pytest.approx(1000.0)
    found = rate([("a", "b", 0.75)] * 50)
    assert found[0].won == 0.75
    assert found[0].score - found[1].score == pytest.approx(400 * math.log10(3), abs=5)


@pytest.mark.parametrize(
    ("played", "message"),
    [
        ([], "no judged pairs"),
        ([("a", "a", "tie")], "with itself"),
        ([("a", "b", "tie"), ("c", "d", "tie")], "'c', 'd' and 'a' were never compared"),
        ([("a", "b", "A")], "none of first, second, tie"),
        ([("a", "b", 2)], "none of first, second, tie"),
    ],
)
def test_what_cannot_be_rated_is_named(played, message):
    with pytest.raises(DataError, match=message):
        rate(played)


def test_a_judge_that_likes_length_is_corrected():
    """Both answers are as good; the judge prefers the longer one, and the first are longer."""
    draw = random.Random(0)
    played = []
    for _ in range(400):
        gap = draw.gauss(100, 80)
        odds = 0.02 * gap
        won = float(draw.random() < 1 / (1 + math.exp(-odds)))
        played.append(Played("a", "b", won, (1000 + int(gap), 1000)))
    found = win_rate(played)
    assert found.low > 0.6
    assert found.controlled_low < 0.5 < found.controlled_high or found.controlled < found.low
    assert found.length_effect > 0.5
    assert "at equal lengths" in str(found)


def test_without_lengths_there_is_nothing_to_correct():
    found = win_rate([("a", "b", "first")] * 3 + [("a", "b", "tie")])
    assert found.rate == 0.875
    assert math.isnan(found.controlled)
    with pytest.raises(DataError, match="no judged pairs"):
        win_rate([])


def test_length_that_decides_nothing_changes_nothing():
    draw = random.Random(1)
    played = [
        Played("a", "b", float(draw.random() < 0.7), (draw.randint(1, 99), draw.randint(1, 99)))
        for _ in range(300)
    ]
    found = win_rate(played)
    assert found.controlled == pytest.approx(found.rate, abs=0.03)
    assert abs(found.length_effect) < 0.6


@pytest.mark.parametrize(
    ("given", "preference"),
    [
        (("a", "b", "a"), 1.0),
        (("a", "b", "b"), 0.0),
        (("first", "second", "second"), 0.0),
        (["a", "b", "tie"], 0.5),
        ({"first": "a", "second": "b", "winner": "second"}, 0.0),
        ({"first": "a", "second": "b", "winner": "tie", "preference": 0.75}, 0.75),
    ],
)
def test_a_judged_pair_has_several_forms(given, preference):
    assert Played.of(given).preference == preference


def test_a_judged_pair_without_an_outcome_is_named():
    with pytest.raises(DataError, match="needs first, second and winner"):
        rate([{"first": "a", "second": "b"}])
