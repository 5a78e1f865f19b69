from __future__ import annotations

import random

import pytest

from promptflow.modules.agreement import Agreement, fit_agreement
from promptflow.modules.votes import Votes


def votes(lead: int, cast: int) -> Votes:
    weights = (float(lead), *([1.0] * (cast - lead)))
    names = tuple(map(str, range(len(weights))))
    return Votes(names, names, weights, tuple(range(len(weights))), weights, cast)


def test_more_votes_for_the_leader_are_surer() -> None:
    sure = Agreement(1.2, -0.3)
    chances = [sure(votes(lead, 8)) for lead in range(1, 9)]
    assert chances == sorted(chances)
    assert all(0 < chance < 1 for chance in chances)
    assert sure(votes(8, 8)) > sure(votes(2, 2))


def test_no_votes_are_half_sure_before_the_bias() -> None:
    assert Agreement()(Votes()) == pytest.approx(0.5)


def test_a_fit_finds_what_made_the_votes() -> None:
    rng = random.Random(0)
    truth = Agreement(1.5, -0.5)
    cast = [votes(rng.randint(1, 16), 16) for _ in range(4000)]
    right = [rng.random() < truth(v) for v in cast]
    found = fit_agreement(cast, right)
    assert (found.slope, found.bias) == pytest.approx((1.5, -0.5), abs=0.15)
    errors = [found(v) - truth(v) for v in cast]
    assert max(map(abs, errors)) < 0.05
