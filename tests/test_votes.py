from __future__ import annotations

import enum
import math
import random
from typing import Annotated, Literal

import numpy as np
import pytest
from pydantic import Field
from scripted_samples import sample

import promptflow as pf
from promptflow.errors import ProgramError, UnknownField
from promptflow.flow import Prediction
from promptflow.modules.votes import (
    WEIGHTINGS,
    ByMeaning,
    Grouping,
    Votes,
    Weighting,
    by_value,
    count_votes,
    vote_key,
    weight_of,
)


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

    def winners(cast: list[str]) -> set[str]:
        """Every value that may win, since what decides ties comes with the votes."""
        return {v for v in cast if cast.count(v) == max(map(cast.count, cast))}

    def endings(remaining: int) -> list[list[str]]:
        if not remaining:
            return [[]]
        return [[v, *rest] for v in "abcd" for rest in endings(remaining - 1)]

    for length in range(1, 5):
        for cast in endings(length):
            votes = count_votes([sample(v) for v in cast], "answer", "count")
            for remaining in range(3):
                if not remaining:
                    continue
                ends = [winners(cast + ending) for ending in endings(remaining)]
                certain = len(set().union(*ends)) == 1
                assert votes.decided(remaining) == certain, (cast, remaining)


def test_no_vote_decides_nothing() -> None:
    assert not Votes().decided(1)
    assert Votes().decided(0)


def test_ties_go_to_the_likelier_samples_then_to_the_first() -> None:
    samples = [sample("a", -2.0), sample("b", -0.1), sample("a", -2.0), sample("b", -1.0)]
    assert count_votes(samples, "answer").values[count_votes(samples, "answer").leader] == "b"
    equal = [sample("b"), sample("a"), sample("a"), sample("b")]
    assert count_votes(equal, "answer").leader == 0
    assert list(count_votes(samples, "answer").table()) == ["b", "a"]


def test_texts_are_one_vote_in_their_normal_form() -> None:
    texts = ["The Beatles.", "beatles", "the  BEATLES!", "Beetles", "-5", "5", "3.5", "35"]
    votes = count_votes([sample(text) for text in texts], "answer")
    assert votes.weights == (3.0, 1.0, 1.0, 1.0, 1.0, 1.0)


class Letters:
    """Texts as counts of their letters: anagrams mean the same."""

    def encode(self, texts: list[str]) -> np.ndarray:
        counts = np.array(
            [[text.lower().count(c) for c in "abcdefgh"] for text in texts], np.float32
        )
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("texts", "groups"),
    [
        (["abc", "cab", "ddd"], [0, 0, 2]),
        (["abc", "ABC!", "ddd", "bca"], [0, 0, 2, 0]),
        (["abc", 5, "cab", 5.0], [0, 1, 0, 1]),
        (["aaab", "aabb", "abbb"], [0, 0, 2]),  # the last is like the second, not like the first
        (["abc"], [0]),
        ([], []),
    ],
)
def test_texts_that_mean_the_same_are_one_vote(texts: list[object], groups: list[int]) -> None:
    keys = ByMeaning(Letters(), 0.8)(texts)
    assert [keys.index(key) for key in keys] == groups


def test_clusters_do_not_depend_on_the_order() -> None:
    rng = random.Random(1)
    for _ in range(40):
        texts = ["".join(rng.choices("abcd", k=4)) for _ in range(6)]
        shuffled = rng.sample(texts, 6)

        def clusters(given: list[str]) -> set[frozenset[str]]:
            keys = ByMeaning(Letters(), 0.9)(given)
            return {
                frozenset(t for t, k in zip(given, keys, strict=True) if k == key) for key in keys
            }

        texts = [t for t in dict.fromkeys(texts)]
        if len({round(float(c), 6) for c in _cosines(texts)}) == len(_cosines(texts)):
            assert clusters(texts) == clusters([t for t in dict.fromkeys(shuffled)])


def _cosines(texts: list[str]) -> list[float]:
    vectors = Letters().encode(texts)
    return [float(vectors[i] @ vectors[j]) for i in range(len(texts)) for j in range(i)]


def said(confidence: object, type_: object) -> Prediction:
    predict = pf.Predict(
        pf.signature("q -> answer, confidence").with_updated_fields("confidence", type_=type_)
    )
    made = Prediction(answer="x", confidence=confidence)
    made._trace = ((predict, {}, made),)
    return made


@pytest.mark.parametrize(
    ("value", "type_", "weight"),
    [
        (0.25, float, 0.25),
        (80, Annotated[int, Field(ge=0, le=100)], 0.8),
        (1, Annotated[int, Field(ge=0, le=100)], 0.01),
        (4, Annotated[int, Field(ge=1, le=5)], 0.75),
        ("low", Literal["low", "medium", "high"], 1 / 3),
        ("high", Literal["low", "medium", "high"], 1.0),
        (True, bool, 1.0),
    ],
)
def test_a_stated_confidence_is_read_by_its_type(
    value: object, type_: object, weight: float
) -> None:
    assert weight_of(said(value, type_), "confidence") == pytest.approx(weight)


@pytest.mark.parametrize(("value", "type_"), [(80, int), ("rather", str), (7.0, float)])
def test_a_confidence_without_a_scale_is_refused(value: object, type_: object) -> None:
    with pytest.raises(ProgramError, match="has no scale: declare"):
        weight_of(said(value, type_), "confidence")


def test_a_vote_by_confidence_needs_it() -> None:
    with pytest.raises(UnknownField, match="needs an output 'confidence'"):
        weight_of(sample("x"), "confidence")


def test_a_function_weighs() -> None:
    samples = [sample("a"), sample("bbb"), sample("a")]
    votes = count_votes(samples, "answer", lambda prediction: len(prediction.answer))
    assert votes.weights == (2.0, 3.0)
    assert votes.counts() == pytest.approx([1.2, 1.8])
    with pytest.raises(ProgramError, match="a weight is 0 or more"):
        count_votes(samples, "answer", lambda prediction: -1.0)


@pytest.mark.parametrize(
    "grouping", [by_value, ByMeaning(Letters()), lambda values: [len(v) for v in values]]
)
def test_a_grouping_gives_each_value_a_key(grouping: Grouping) -> None:
    """The contract of ``same=``: a key for each value, equal for equal values, in any order."""
    for values in ([], ["abc"], ["abc", "abc", "dd"], ["dd", "abc", "abc"]):
        keys = list(grouping(values))
        assert len(keys) == len(values)
        assert len(set(keys)) <= len(set(values))
        assert all(hash(key) is not None for key in keys)
    votes = count_votes([sample(v) for v in ("abc", "dd", "abc")], "answer", "count", grouping)
    assert sum(votes.weights) == votes.cast == 3


def test_a_grouping_that_forgets_a_value_is_refused() -> None:
    with pytest.raises(ProgramError, match="gave 1 keys for 2 values"):
        count_votes([sample("a"), sample("b")], "answer", "count", lambda values: ["x"])


@pytest.mark.parametrize("weight", [*WEIGHTINGS, lambda p: 2.0, lambda p: len(p.answer)])
def test_a_weight_is_a_number_from_zero(weight: Weighting) -> None:
    """The contract of ``vote=``."""
    given = said(0.5, float)
    given._trace = ((given._trace[0][0], {}, sample("x", -1.0, 2)),)
    assert 0 <= weight_of(given, weight) < math.inf


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
