from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from promptflow.evaluation.stats import bootstrap_interval, paired_interval, permutation_p


def test_the_interval_matches_the_textbook_for_many_normal_scores():
    scores = np.random.default_rng(1).normal(0.5, 0.1, 400)
    interval = bootstrap_interval(scores)
    half = 1.96 * scores.std(ddof=1) / 20
    assert interval.mean == pytest.approx(scores.mean())
    assert interval.low == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(scores.mean() + half, abs=0.1 * half)


def test_bca_follows_the_skew_that_the_percentile_interval_misses():
    scores = [0.0] * 38 + [1.0, 1.0]
    interval = bootstrap_interval(scores)
    assert interval.high - interval.mean > interval.mean - interval.low
    # Exact binomial (Clopper-Pearson) bounds of 2 in 40 are 0.006 and 0.169; plain percentiles
    # end at 0.125.
    assert 0.0 <= interval.low < 0.03
    assert 0.15 < interval.high < 0.2


@pytest.mark.parametrize("power", [0.2, 1.0, 3.0])
def test_the_interval_agrees_with_scipys(power):
    from scipy.stats import bootstrap

    scores = np.random.default_rng(2).random(50) ** power
    ours = bootstrap_interval(scores)
    theirs = bootstrap((scores,), np.mean, n_resamples=20_000, method="BCa", rng=3)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.04 * width)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        interval = bootstrap_interval(random.random(40) < 0.3, seed=trial)
        hits += interval.low <= 0.3 <= interval.high
    assert hits / 200 > 0.89


def test_equal_scores_are_not_certain():
    interval = bootstrap_interval([1.0] * 20)
    assert (interval.mean, interval.high) == (1.0, 1.0)
    # The exact binomial bound for 20 of 20: 0.025 ** (1 / 20).
    assert interval.low == pytest.approx(0.8316, abs=1e-4)
    assert bootstrap_interval([0.0] * 20).high == pytest.approx(0.1684, abs=1e-4)
    assert bootstrap_interval([]).n == 0
    assert math.isnan(bootstrap_interval([]).mean)


def test_the_same_seed_gives_the_same_interval():
    scores = [0.0, 1.0, 0.5, 0.25, 1.0]
    assert bootstrap_interval(scores, seed=3) == bootstrap_interval(scores, seed=3)


def test_pairing_removes_what_both_share():
    random = np.random.default_rng(0)
    hard = random.random(60)
    better = np.clip(hard + 0.05 + random.normal(0, 0.01, 60), 0, 1)
    paired = paired_interval(list(better), list(hard))
    assert paired.low > 0.03
    assert bootstrap_interval(better).low < bootstrap_interval(hard).high


def test_six_wins_of_six_are_evidence_and_five_are_not():
    assert paired_interval([1.0] * 6, [0.0] * 6).low > 0
    assert paired_interval([1.0] * 5, [0.0] * 5).low < 0
    assert permutation_p([1.0] * 6, [0.0] * 6) == pytest.approx(2 / 64)


def test_unpaired_scores_are_refused():
    with pytest.raises(ValueError, match="3 and 2"):
        paired_interval([1, 1, 1], [0, 0])


def slow_p(a, b):
    differences = [x - y for x, y in zip(a, b, strict=True)]
    observed = abs(sum(differences))
    flips = list(itertools.product((1, -1), repeat=len(differences)))
    extreme = [f for f in flips if abs(np.dot(f, differences)) >= observed - 1e-9]
    return len(extreme) / len(flips)


def test_the_exact_test_agrees_with_slow_code():
    random = np.random.default_rng(5)
    for _ in range(20):
        a, b = random.random(8).round(1), random.random(8).round(1)
        assert permutation_p(a, b) == pytest.approx(slow_p(a, b))


def test_the_sampled_test_agrees_with_the_exact_one():
    # 15 wins and 3 losses of 18: the sign test's p is 2 * (1 + 18 + 153 + 816) / 2**18.
    a, b = [1.0] * 15 + [0.0] * 3, [0.0] * 15 + [1.0] * 3
    assert permutation_p(a, b) == pytest.approx(2 * 988 / 2**18, abs=0.003)
    assert permutation_p([0.5, 0.5], [0.5, 0.5]) == 1.0
