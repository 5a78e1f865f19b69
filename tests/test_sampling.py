"""Each reduction against a slow reference over the whole vocabulary, in double precision."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from promptflow.engine.request import Sampling
from promptflow.engine.slot import sampling
from promptflow.errors import NumericError

SIZE = 1_300  # several blocks
LOGITS = np.random.default_rng(7).normal(0, 3, SIZE).astype(np.float32)
ALLOWED = np.arange(SIZE) % 5 == 3
DRAWS = 20_000


def reference(
    logits: np.ndarray, settings: Sampling, allowed: np.ndarray | None = None
) -> list[float]:
    """The probability of each token: one plain loop a reduction."""
    ids = range(len(logits)) if allowed is None else np.flatnonzero(allowed).tolist()
    scaled = {i: float(logits[i]) / settings.temperature for i in ids}
    order = sorted(scaled, key=lambda i: (-scaled[i], i))
    if settings.top_k:
        order = order[: settings.top_k]
    weights = {i: math.exp(scaled[i] - scaled[order[0]]) for i in order}
    total, before, kept = sum(weights.values()), 0.0, []
    for i in order:
        if before < settings.top_p * total or not kept:
            kept.append(i)
        before += weights[i]
    kept = [i for i in kept if weights[i] >= settings.min_p * weights[kept[0]]]
    if settings.typical_p < 1:
        total = sum(weights[i] for i in kept)
        surprisal = {i: math.log(total / weights[i]) for i in kept if weights[i] > 0}
        entropy = sum(weights[i] / total * surprisal[i] for i in surprisal)
        order, before, kept = sorted(surprisal, key=lambda i: abs(surprisal[i] - entropy)), 0.0, []
        for i in order:
            if before < settings.typical_p * total or not kept:
                kept.append(i)
            before += weights[i]
    total = sum(weights[i] for i in kept)
    probabilities = [0.0] * len(logits)
    for i in kept:
        probabilities[i] = weights[i] / total
    return probabilities


def fits(drawn: Counter[int], probabilities: list[float], draws: int) -> bool:
    """Chi-square, with rare tokens counted together, at about one in a million."""
    expected = {i: p * draws for i, p in enumerate(probabilities)}
    assert all(expected[i] > 0 for i in drawn), "a token of probability zero was drawn"
    common = [i for i, count in expected.items() if count >= 10]
    statistic = sum((drawn[i] - expected[i]) ** 2 / expected[i] for i in common)
    rest = draws - sum(expected[i] for i in common)
    if rest > 10:
        statistic += (draws - sum(drawn[i] for i in common) - rest) ** 2 / rest
    freedom = max(1, len(common) - (rest <= 10))
    # Wilson and Hilferty: the cube root of a chi-square is about normal.
    part = 2 / (9 * freedom)
    return statistic < freedom * (1 - part + 4.9 * math.sqrt(part)) ** 3


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        (Sampling(1.0), None),
        (Sampling(0.3), None),
        (Sampling(100.0), None),
        (Sampling(1.0, top_k=7), None),
        (Sampling(1.0, top_p=0.9), None),
        (Sampling(1.0, min_p=0.05), None),
        (Sampling(0.7, top_k=40, top_p=0.95, min_p=0.02), None),
        (Sampling(1.0, typical_p=0.3), None),
        (Sampling(1.0, typical_p=0.95), None),
        (Sampling(0.8, top_k=60, top_p=0.9, typical_p=0.6), None),
        (Sampling(1.5, typical_p=0.5), ALLOWED),
        (Sampling(1.0), ALLOWED),
        (Sampling(1.0), ALLOWED | (LOGITS.max() == LOGITS)),
        (Sampling(0.7, top_p=0.9), ALLOWED | (LOGITS.max() == LOGITS)),
        (Sampling(2.0, top_k=20, top_p=0.9, min_p=0.02), ALLOWED),
    ],
    ids=repr,
)
def test_draws_follow_the_reference(settings, allowed):
    rng = sampling.generator(3, 0)
    drawn = Counter(sampling.choose(LOGITS, settings, rng, allowed) for _ in range(DRAWS))
    assert fits(drawn, reference(LOGITS, settings, allowed), DRAWS)


@pytest.mark.parametrize(
    "settings",
    [Sampling(0.0), Sampling(1.0, top_k=1), Sampling(1.0, 0, 0.0), Sampling(1.0, 0, 1.0, 1.0)],
)
def test_the_narrowest_settings_are_greedy(settings):
    rng = sampling.generator(3, 0)
    assert {sampling.choose(LOGITS, settings, rng) for _ in range(100)} == {int(LOGITS.argmax())}


def test_the_chi_square_notices_a_small_error():
    rng = sampling.generator(3, 0)
    drawn = Counter(sampling.choose(LOGITS, Sampling(1.0), rng) for _ in range(DRAWS))
    assert not fits(drawn, reference(LOGITS, Sampling(1.1)), DRAWS)


def test_ties_are_cut_by_lowest_id():
    logits = np.zeros(10, dtype=np.float32)
    rng = sampling.generator(0, 0)
    assert sampling.choose(logits, Sampling(0.0), rng) == 0
    assert sampling.choose(logits, Sampling(0.0), rng, np.arange(10) > 3) == 4
    drawn = {sampling.choose(logits, Sampling(1.0, top_k=3), rng) for _ in range(200)}
    assert drawn == {0, 1, 2}


@settings(deadline=None)
@given(
    st.lists(st.floats(-40, 40, width=32), min_size=2, max_size=30),
    st.floats(0.05, 5),
    st.integers(0, 10),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_nothing_improbable_is_drawn(values, temperature, top_k, top_p, min_p):
    logits = np.array(values, dtype=np.float32)
    chosen = Sampling(temperature, top_k, top_p, min_p)
    probabilities = reference(logits, chosen)
    rng = sampling.generator(1, 2)
    edge = 1e-6  # single and double precision may disagree about the last token of a cut
    near = [p > 0 or math.isclose(p, 0, abs_tol=edge) for p in probabilities]
    for _ in range(20):
        assert near[sampling.choose(logits, chosen, rng)]


def penalized(
    logits: np.ndarray, settings: Sampling, sampled: Counter[int], sequence: set[int]
) -> list[float]:
    result = []
    for token, value in enumerate(logits.tolist()):
        if token in sequence:
            value = value * settings.repetition_penalty ** (-1 if value > 0 else 1)
        value -= settings.frequency_penalty * sampled[token]
        value -= settings.presence_penalty * (sampled[token] > 0)
        value += sum(bias for biased, bias in settings.logit_bias if biased == token)
        result.append(value)
    return result


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(repetition_penalty=1.3),
        Sampling(repetition_penalty=0.5),
        Sampling(frequency_penalty=0.7),
        Sampling(presence_penalty=-1.5),
        Sampling(logit_bias=((3, 2.5), (9, -100.0), (3, 1.0))),
        Sampling(
            repetition_penalty=1.1,
            frequency_penalty=-0.2,
            presence_penalty=0.3,
            logit_bias=((2, 1.0),),
        ),
    ],
    ids=repr,
)
def test_penalties_follow_the_reference(settings):
    sampled, sequence = Counter({2: 3, 5: 1, 9: 2}), {2, 5, 9, 11, 300}
    before = LOGITS.copy()
    result = sampling.penalize(LOGITS, settings, sampled, sequence)
    expected = penalized(LOGITS, settings, sampled, sequence)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert (before == LOGITS).all(), "the model's own row must not change"


def test_without_penalties_the_row_is_not_copied():
    assert sampling.penalize(LOGITS, Sampling(1.0), Counter({1: 1}), {1}) is LOGITS


def test_logprobs_follow_the_reference():
    total = math.log(math.fsum(math.exp(value) for value in LOGITS.tolist()))
    for token in (0, 17, int(LOGITS.argmin()), int(LOGITS.argmax())):
        assert sampling.logprob(LOGITS, token) == pytest.approx(LOGITS[token] - total, abs=1e-6)
    best = sorted(range(SIZE), key=lambda i: (-LOGITS[i], i))
    for count in (0, 1, 5, SIZE, SIZE + 1):
        found = sampling.top(LOGITS, count)
        assert [token for token, _ in found] == best[:count]
        for token, value in found:
            assert value == pytest.approx(sampling.logprob(LOGITS, token))


def test_equal_alternatives_are_ordered_by_id():
    logits = np.array([0, 1, 1, 1, 1, 0], dtype=np.float32)
    assert [token for token, _ in sampling.top(logits, 2)] == [1, 2]


def test_huge_logits_neither_overflow_nor_warn():
    logits = np.array([3e38, -3e38, 0, 3e38], dtype=np.float32)
    assert sampling.choose(logits, Sampling(1.0), sampling.generator(0, 0)) in (0, 3)
    assert sampling.logprob(logits, 0) == pytest.approx(math.log(0.5))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_holds_no_number_is_an_error(value):
    logits = LOGITS.copy()
    logits[123] = value
    with pytest.raises(NumericError, match="promptflow models verify"):
        sampling.check(logits)


def test_a_row_of_minus_infinities_is_an_error_and_some_are_not():
    logits = np.full(10, -np.inf, dtype=np.float32)
    with pytest.raises(NumericError):
        sampling.check(logits)
    logits[4] = 0.0
    sampling.check(logits)
    for temperature in (0.0, 1.0):
        chosen = Sampling(temperature)
        assert sampling.choose(logits, chosen, sampling.generator(0, 0)) == 4
        with pytest.raises(NumericError, match="probability of zero"):
            sampling.choose(logits, chosen, sampling.generator(0, 0), np.arange(10) < 3)


def test_generators_depend_on_seed_and_slot_alone():
    seeds = [0, 1, -1, 2**63, 2**63 + 1, 2**64 - 2, 5]
    first = {
        (seed, slot): sampling.generator(seed, slot).random() for seed in seeds for slot in (0, 1)
    }
    assert len(set(first.values())) == len(first)
    assert sampling.generator(5, 1).random() == first[5, 1]
    assert sampling.generator(2**64 + 5, 1).random() == first[5, 1]


@pytest.mark.parametrize("seed", range(5))
def test_the_standing_of_a_token_agrees_with_a_sorted_table(seed):
    logits = np.random.default_rng(seed).normal(size=50).astype(np.float32) * 3
    logits[7] = -np.inf
    shares = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    for token in (0, 20, 49):
        value, rank, expected, variance = sampling.standing(logits, token)
        logprobs = np.log(shares[shares > 0])
        assert value == pytest.approx(math.log(shares[token]), abs=1e-5)
        assert rank == 1 + sum(share > shares[token] for share in shares)
        mean = float(shares[shares > 0] @ logprobs)
        assert expected == pytest.approx(mean, abs=1e-5)
        assert variance == pytest.approx(
            float(shares[shares > 0] @ (logprobs - mean) ** 2), abs=1e-4
        )
