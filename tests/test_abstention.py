"""The calibration finds what its signals say, and its curve counts what it says it counts."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from promptflow.errors import StoreCorrupt
from promptflow.modules.abstention import (
    Calibration,
    calibration_for,
    choose_threshold,
    default_calibration,
    fit_logistic,
    logit,
    risk_coverage,
)

FITTED = Calibration({"a": 2.0}, {"a": 0.5}, -1.0, 0.6, "m" * 64, "e" * 64, "fitted", {"n": 3})


def test_a_fit_finds_the_weights_that_made_the_data() -> None:
    rng = random.Random(1)
    rows = [
        {"a": rng.gauss(3, 2), "b": rng.gauss(0, 1), "noise": rng.random()} for _ in range(4000)
    ]
    chance = [1 / (1 + math.exp(-(1.5 * row["a"] - 2.0 * row["b"] - 4.0))) for row in rows]
    right = [rng.random() < p for p in chance]
    weights, bias = fit_logistic(rows, right, ["a", "b", "noise"])
    assert weights["a"] == pytest.approx(1.5, abs=0.15)
    assert weights["b"] == pytest.approx(-2.0, abs=0.2)
    assert weights["noise"] == pytest.approx(0.0, abs=0.4)
    assert bias == pytest.approx(-4.0, abs=0.5)


def test_what_parts_all_has_finite_weights_and_what_says_nothing_has_none() -> None:
    rows = [{"a": float(n), "same": 1.0} for n in range(10)]
    weights, bias = fit_logistic(rows, [n > 4 for n in range(10)], ["a", "same"])
    assert 0 < weights["a"] < 10
    assert weights["same"] == 0
    assert math.isfinite(bias)


def test_a_missing_signal_counts_as_its_mean() -> None:
    assert FITTED.probability({}) == FITTED.probability({"a": 0.5}) == 0.5
    assert FITTED.probability({"a": 9.0}) > 0.99


@given(st.floats(0, 1))
def test_logits_are_bounded_and_turn_back(probability: float) -> None:
    assert abs(logit(probability)) <= 12.1
    assert 1 / (1 + math.exp(-logit(probability))) == pytest.approx(probability, abs=1e-5)


scored = st.lists(st.tuples(st.integers(0, 5).map(lambda n: n / 5), st.booleans()), min_size=1)


@given(scored, st.lists(st.integers(0, 5).map(lambda n: n / 5)))
def test_the_curve_counts_as_a_person_would(
    answerable: list[tuple[float, bool]], others: list[float]
) -> None:
    points = risk_coverage(answerable, others)
    assert [p.threshold for p in points] == sorted({s for s, _ in answerable} | {*others})[::-1]
    for point in points:
        answered = [right for score, right in answerable if score >= point.threshold]
        assert point.coverage == pytest.approx(len(answered) / len(answerable))
        wrong = answered.count(False) / len(answered) if answered else 0.0
        assert point.risk == pytest.approx(wrong)
        given_anyway = sum(score >= point.threshold for score in others)
        assert point.false_answers == pytest.approx(given_anyway / len(others) if others else 0.0)


def test_the_threshold_answers_most_within_both_bounds() -> None:
    curve = risk_coverage([(0.9, True), (0.8, True), (0.7, False), (0.6, True)], [0.75, 0.1])
    chosen = choose_threshold(curve, risk=0.2, false_answers=0.5)
    assert chosen is not None
    assert (chosen.threshold, chosen.coverage) == (0.8, 0.5)
    chosen = choose_threshold(curve, risk=0.25, false_answers=0.5)
    assert chosen is not None
    assert chosen.threshold == 0.6
    assert choose_threshold(risk_coverage([(0.9, False)], []), 0.2, 0.5) is None


def test_is_saved_and_read_and_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "abstention.json"
    FITTED.save(path)
    assert Calibration.open(path) == FITTED
    table = json.loads(path.read_text())
    table["threshold"] = 0.0
    path.write_text(json.dumps(table))
    with pytest.raises(StoreCorrupt, match="tune-abstention"):
        Calibration.open(path)
    path.write_text("[]")
    with pytest.raises(StoreCorrupt):
        Calibration.open(path)


class Fitted:
    """What of an index and a model a calibration is found by."""

    def __init__(self, built: Path, embedder: str) -> None:
        self.recipe = type("Recipe", (), {"built": built})()
        self.manifest = type("Manifest", (), {"embedder": {"sha256": embedder}})()


def model(sha256: str) -> object:
    info = type("Info", (), {"sha256": sha256})()
    return type("LM", (), {"text_engine": type("Engine", (), {"info": info})()})()


def test_the_calibration_of_model_and_embedder_is_found_beside_the_index(tmp_path: Path) -> None:
    FITTED.save(tmp_path / f"abstention-{'m' * 12}.json")
    assert calibration_for(Fitted(tmp_path, "e" * 64), model("m" * 64)) == FITTED
    for index, lm in (
        (Fitted(tmp_path, "f" * 64), model("m" * 64)),
        (Fitted(tmp_path, "e" * 64), model("n" * 64)),
        (object(), model("m" * 64)),
    ):
        found = calibration_for(index, lm)
        assert found.weights == default_calibration().weights
        assert "default" in found.source
        assert "tune-abstention" in found.source
