from __future__ import annotations

import math
import random

import pytest
from sklearn.metrics import cohen_kappa_score

from promptflow.errors import EngineLost
from promptflow.flow import Prediction
from promptflow.modules.reliability import (
    cohen_kappa,
    krippendorff_alpha,
    reliability,
    wilson,
)


@pytest.mark.parametrize("seed", range(20))
def test_kappa_is_that_of_scikit_learn(seed):
    draw = random.Random(seed)
    one = [draw.choice("abc") for _ in range(30)]
    other = [draw.choice([label, label, "a", "b"]) for label in one]
    assert cohen_kappa(one, other) == pytest.approx(cohen_kappa_score(one, other))


def test_kappa_of_raters_who_cannot_differ_is_no_number():
    assert math.isnan(cohen_kappa(["a", "a"], ["a", "a"]))
    assert math.isnan(cohen_kappa([], []))


X = None
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, X, X, X],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, X, 3],
    [X, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, X],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, X],
]
"""The worked example of Krippendorff 2011: 4 observers, 12 units, with gaps."""


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_is_that_of_the_published_example(level, alpha):
    units = list(zip(*OBSERVERS, strict=True))
    assert krippendorff_alpha(units, level) == pytest.approx(alpha, abs=0.0006)


def test_alpha_without_anything_to_compare_is_no_number():
    assert math.isnan(krippendorff_alpha([("a", None), (None, "b")]))
    assert math.isnan(krippendorff_alpha([("a", "a"), ("a", "a")]))


def test_wilson_intervals_are_the_published_ones():
    assert wilson(9, 24) == pytest.approx((0.2116, 0.5729), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def pair(given, exchanged, **more):
    return Prediction(verdicts=(given, exchanged), **more)


def test_what_stands_beside_the_verdicts_of_a_pair_judge():
    """In the second order the answers are exchanged: first, second is A both times."""
    given = [
        pair("first", "first"),
        pair("first", "second"),
        pair("second", "first"),
        pair("first", "tie", own=True),
        EngineLost("gone"),
    ]
    found = reliability(given)
    assert (found.n, found.failed, found.own, found.consistency) == (4, 1, 1, 0.25)
    assert found.first == pytest.approx(4 / 7)
    assert (found.low, found.high) == wilson(1, 4)
    one, other = zip(*((g.verdicts) for g in given[:4]), strict=True)
    assert found.kappa == pytest.approx(cohen_kappa_score(one, other))
    assert "own text" in found.warning


def test_many_inconsistent_pairs_warn_and_consistent_ones_do_not():
    assert "kept its verdict" in reliability([pair("first", "second")] * 8).warning
    assert reliability([pair("first", "first"), pair("second", "second")] * 4).warning == ""
    assert reliability([]).warning == ""


def test_several_judges_are_compared_by_alpha():
    panels = [Prediction(ratings=("first", "first")), Prediction(ratings=("second", "tie"))] * 4
    found = reliability(panels)
    assert found.alpha == pytest.approx(krippendorff_alpha([p.ratings for p in panels]))
    numbers = [Prediction(ratings=(0.5, 0.75)), Prediction(ratings=(0.0, 0.25))]
    ratings = [p.ratings for p in numbers]
    assert reliability(numbers).alpha == pytest.approx(krippendorff_alpha(ratings, "interval"))
