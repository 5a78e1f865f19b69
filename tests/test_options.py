from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import promptflow as pf
from promptflow.engine.fake import FakeModel, ScriptedEngine
from promptflow.engine.request import Regex
from promptflow.fields import constraint_of
from promptflow.flow import Order, request_of, run
from promptflow.modules.options import confined
from promptflow.modules.predict import Predict


def constraint(options: list[str]) -> Regex:
    info = confined(pf.signature("q -> a"), "a", options).output_fields["a"]
    found = constraint_of("a", info.annotation, info.metadata, {})
    assert isinstance(found, Regex)
    return found


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4))
def test_any_text_is_an_option(options: list[str]) -> None:
    """No text reads as a part of the pattern: neither ``(?=``, nor ``\\1``, nor ``|``."""
    pattern = constraint(options).pattern
    assert pattern.count("|") == len(options) - 1
    assert not set(pattern) & set("()[]*+?^$.")


@pytest.mark.parametrize("options", [["8 + 4 = 12 (left: 6)", "8 - 4 = 4"], ["a\\b|c", "(?=x)"]])
def test_a_model_can_write_nothing_else(options: list[str]) -> None:
    lm = pf.load("fake", engine=pf.Engine(FakeModel()))
    predict = Predict("question -> answer")
    signature = confined(predict.signature, "answer", options)
    for seed in range(4):
        [prediction] = [run(predict, lm=lm, seed=seed, question="?", signature=signature)]
        assert prediction.answer in options


def test_the_prompt_does_not_show_the_options() -> None:
    predict = Predict("question -> answer")
    lm = pf.load("scripted", engine=ScriptedEngine(lambda text, slot: ""))
    prompts = []
    for options in (["zebra"], ["heron", "stork"]):
        call = predict.call(question="?", signature=confined(predict.signature, "answer", options))
        parts = request_of(Order.of(call, lm, (0,))).parts
        prompts.append([part.text for part in parts if isinstance(part, pf.Text)])
    assert prompts[0] == prompts[1]


def test_the_signature_itself_stays_as_it_was() -> None:
    predict = Predict("question -> answer")
    confined(predict.signature, "answer", ["x"])
    assert predict.signature.output_fields["answer"].metadata == []
