from __future__ import annotations

import enum
import math

import pytest
from scripted_samples import sample

from promptflow.modules.votes import Votes, count_votes, vote_key


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (3, 3.0),
        ("Paris", " paris\n"),
        ("New  York", "new york"),
        ([1, "a"], [1.0, "A"]),
        ({"x": 1, "y": 2}, {"y": 2.0, "x": 1}),
        (Colour.RED, "RED"),
    ],
)
def test_equal_values_are_one_vote(a: object, b: object) -> None:
    assert vote_key(a) == vote_key(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [(3.5, 35), ("3.5", "35"), ("-5", "5"), (-5, 5), ("5", 5), (1, True), ("", None), ([], {})],
)
def test_different_values_are_two_votes(a: object, b: object) -> None:
    assert vote_key(a) != vote_key(b)


def test_decided_agrees_with_trying_every_ending() -> None:
    """The rule against the slow truth: append every sequence of further votes and look."""

    def winner(cast: list[str]) -> str:
        return max(dict.fromkeys(cast), key=lambda v: (cast.count(v), -cast.index(v)))

    def endings(remaining: int) -> list[list[str]]:
        if not remaining:
            return [[]]
        return [[v, *rest] for v in "abcd" for rest in endings(remaining - 1)]

    for length in range(1, 5):
        for cast in endings(length):
            votes = count_votes([sample(v) for v in cast], "answer", "count")
            for remaining in range(3):
                certain = {winner(cast + ending) for ending in endings(remaining)} == {winner(cast)}
                assert votes.decided(remaining) == certain, (cast, remaining)


def test_no_vote_decides_nothing() -> None:
    assert not Votes((), (), (), ()).decided(1)


def test_logprob_votes_weigh_by_probability_a_token() -> None:
    samples = [
        sample("sure", math.log(0.9) * 4, 4),
        sample("vague", math.log(0.4) * 2, 2),
        sample("vague", math.log(0.4) * 30, 30),
    ]
    votes = count_votes(samples, "answer", "logprob")
    assert votes.values[votes.leader] == "sure"
    assert votes.weights == pytest.approx((0.9, 0.8))
    assert count_votes(samples, "answer", "count").leader == 1
