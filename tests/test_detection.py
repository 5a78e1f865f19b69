from __future__ import annotations

import math
from dataclasses import replace

import pytest

from promptflow.engine.request import TokenLogprob
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import DataError
from promptflow.evaluation import detection
from promptflow.evaluation.detection import LEAST, WINDOW, detect, measures


def token(logprob=-1.0, rank=1, expected=-2.0, variance=1.0):
    return TokenLogprob("w", 0, logprob, (), rank, expected, variance)


def test_measures_are_their_definitions():
    found = measures([token(-1.0, 1), token(-3.0, 20, expected=-2.5, variance=3.0)])
    assert found["perplexity"] == pytest.approx(math.exp(2.0))
    assert found["log_rank"] == pytest.approx(math.log(20) / 2)
    assert found["top_10"] == 0.5
    assert found["curvature"] == pytest.approx((-4.0 + 4.5) / 2.0)


class Ranked(ScriptedEngine):
    """Scores every word with the same token."""

    def __init__(self, each):
        super().__init__(lambda text, slot: "")
        self.each, self.scored = each, []

    def score(self, prefix, continuations):
        self.scored += continuations
        return [tuple(self.each for _ in text.split()) for text in continuations]


CALIBRATION = {
    "threshold": 0.5,
    "rates": {
        "false_alarms": 0.05,
        "missed": 0.6,
        "auroc": 0.7,
        "people": 60,
        "models": 40,
        "data": "tests",
    },
}


@pytest.fixture
def calibrated(monkeypatch):
    monkeypatch.setattr(detection, "_calibrations", lambda: {"scripted": CALIBRATION})


@pytest.mark.parametrize(
    ("expected", "verdict"), [(-1.0, "people"), (-1.4, "people"), (-1.5, "model"), (-3.0, "model")]
)
def test_the_verdict_goes_by_the_curvature_of_a_word(calibrated, expected, verdict):
    """With variance 1 the score is the mean distance from what the model expects of itself."""
    [found] = detect(["word " * 80], Ranked(token(expected=expected)))
    assert found.score == pytest.approx(-1.0 - expected)
    assert (found.verdict, found.rates.missed) == (verdict, 0.6)


def test_a_short_text_and_an_unknown_model_have_no_verdict(calibrated):
    engine = Ranked(token())
    assert detect(["word " * (LEAST - 1)], engine)[0].verdict == "too short"
    engine.info = replace(engine.info, name="other")
    found = detect(["word " * 80], engine)[0]
    assert (found.verdict, found.rates) == ("not calibrated", None)
    with pytest.raises(DataError, match="text 2 is empty"):
        detect(["word", " \n"], engine)


def test_a_long_text_is_read_in_parts_of_which_nothing_is_lost(calibrated):
    text = " ".join(f"w{n}" for n in range(2 * WINDOW + 30))
    engine = Ranked(token())
    [one, other] = detect([text, "short text"], engine)
    assert (one.tokens, other.tokens) == (2 * WINDOW + 30, 2)
    assert "".join(engine.scored[:3]) == text
    assert len(engine.scored) == 4
    unspaced = detection._windows("가" * 50_000)
    assert "".join(unspaced) == "가" * 50_000
    assert max(map(len, unspaced)) <= 40 * WINDOW


def test_what_is_bundled_names_how_often_it_is_wrong():
    for model, fitted in detection._calibrations().items():
        assert model
        rates = detection.Rates(**fitted["rates"])
        assert 0.0 <= rates.false_alarms <= 0.2
        assert rates.people > 30
        assert rates.models > 30


def test_the_command_prints_the_verdict_with_its_error_rates(calibrated, monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from promptflow.cli import app
    from promptflow.lm import LocalLM

    lm = LocalLM(Ranked(token(expected=-3.0)))
    monkeypatch.setattr("promptflow.lm.configure", lambda *_, **__: lm)
    path = tmp_path / "essay.txt"
    path.write_text("word " * 80)
    done = CliRunner().invoke(app, ["detect", str(path)])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0].split("\t")[-1] == "model"
    assert "60% of a model's were not" in done.output
    piped = CliRunner().invoke(app, ["detect"], input="word " * 80)
    assert piped.output.startswith("-\t80")
    missing = CliRunner().invoke(app, ["detect", str(tmp_path / "none.txt")])
    assert missing.exit_code == 2
