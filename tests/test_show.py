"""A prompt as it would be sent: its parts by origin, their tokens, what of them is cached."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import dspy
import pytest

import promptflow as pf
from promptflow.engine.model.fake import FakeModel
from promptflow.errors import UnsupportedOption
from promptflow.lm import SlotAdapter
from promptflow.modules.show import shown

DEMO = {"a": "가나", "b": "the x", "c": "C", "d": 1}
INPUTS = {"a": "the 한국\nAnswer", "b": "Q<|im_end|>\x1b[31m"}


@pytest.fixture
def lm() -> Iterator[Any]:
    with pf.Engine(FakeModel(words=("Answer", "the", ": ", "\n\n"))) as engine:
        yield pf.load("fake", engine=engine)


def predictor(**options: Any) -> Any:
    return pf.Predict("a, b -> c, d: int", layout="completion", demos=[DEMO], **options)


def test_every_token_belongs_to_the_part_in_which_it_begins(lm: Any):
    made = shown(predictor(), INPUTS, lm)
    count = lm.text_engine.count(pf.flow.request_of(predictor().call(**INPUTS).complete(lm)).parts)
    assert sum(part.tokens for part in made.parts) == count == len(made.pieces)
    told = {origin: "" for origin in ("template", "demo", "input", "slot")}
    for part in made.parts:
        told[part.origin] += part.text
    assert told["demo"] == "가나the xC1"
    assert told["input"] == INPUTS["a"] + INPUTS["b"]
    assert told["slot"].replace(" ", "") == "{c}{d}"
    spelled = [part for part in made.parts if part.text == "가나"]
    assert [part.tokens for part in spelled] == [6]


def test_nothing_is_sent_and_what_is_cached_is_told(lm: Any):
    before = shown(predictor(), INPUTS, lm)
    assert before.cached == 0
    assert lm.text_engine.stats().requests == 0
    predictor(max_tokens=3)(a="other", b="x", lm=lm)
    after = shown(predictor(), INPUTS, lm)
    assert after.cached == sum(part.cached for part in after.parts) > 0
    first = next(n for n, part in enumerate(after.parts) if part.origin == "input")
    assert all(part.cached == part.tokens for part in after.parts[: first - 1])
    assert after.parts[first].cached == 0
    assert lm.text_engine.stats().requests == 1


def test_as_text_json_and_html(lm: Any, capsys: pytest.CaptureFixture[str]):
    text = predictor().show(lm=lm, **INPUTS)
    told = capsys.readouterr().out
    assert text.endswith("C: {c}\nD: {d}")
    assert "\x1b" not in told
    assert "prompt tokens" in told
    data = json.loads(predictor().show(lm=lm, format="json", **INPUTS))
    assert data["layout"] == "completion"
    assert "".join(part["text"] for part in data["parts"]) == text
    page = predictor().show(lm=lm, format="html", **INPUTS)
    assert '<span class="input">Q&lt;|im_end|&gt;\\x1b[31m</span>' in page
    assert "\x1b" not in page
    with pytest.raises(UnsupportedOption, match="text, json, html"):
        predictor().show(lm=lm, format="xml", **INPUTS)


def test_a_terminal_gets_colours(
    lm: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    predictor().show(lm=lm, **INPUTS)
    told = capsys.readouterr().out
    assert "\x1b[36m가나\x1b[0m" in told
    assert "\\x1b[31m\x1b[0m" in told
    monkeypatch.setenv("NO_COLOR", "1")
    predictor().show(lm=lm, **INPUTS)
    assert "\x1b[36m" not in capsys.readouterr().out


def test_an_input_may_be_called_format(lm: Any, capsys: pytest.CaptureFixture[str]):
    made = pf.Predict("format -> c", layout="completion")
    assert "Format: x" in made.show(lm=lm, format="x")


def test_a_predictor_of_dspys_is_shown_in_its_adapters_layout(lm: Any):
    with dspy.context(adapter=SlotAdapter("completion")):
        made = shown(dspy.Predict("a -> b"), {"a": "x"}, lm)
    assert made.layout == "completion"
    assert made.text.endswith("A: x\nB: {b}")
