from __future__ import annotations

from functools import partial

import dspy
import pytest

from promptflow.engine.fake import ScriptedEngine
from promptflow.errors import ProgramError
from promptflow.evaluation.identity import (
    data_hash,
    hash_of,
    language_model,
    metric_hash,
    metric_name,
    model_identity,
    program_state,
    versions,
)
from promptflow.evaluation.metrics import f1
from promptflow.layout import Decoding
from promptflow.lm import LocalLM
from promptflow.modules.predict import Predict


def test_the_hash_of_data_follows_values_order_and_inputs():
    a = dspy.Example(question="1", answer="x").with_inputs("question")
    b = dspy.Example(question="2", answer="y").with_inputs("question")
    same = dspy.Example(answer="x", question="1").with_inputs("question")
    assert data_hash([a, b]) == data_hash([same, b])
    assert data_hash([a, b]) != data_hash([b, a])
    assert data_hash([a]) != data_hash([a.with_inputs("question", "answer")])


def test_metrics_differ_by_their_source():
    def one(example, prediction, trace=None):
        return 1.0

    def two(example, prediction, trace=None):
        return 2.0

    assert metric_hash(one) != metric_hash(two)
    assert metric_hash(f1) != metric_hash(partial(f1, field="title"))
    assert metric_hash(partial(f1, field="x")) == metric_hash(partial(f1, field="x"))
    assert (metric_name(one), metric_name(partial(f1, field="title"))) == ("one", "f1:title")


def test_metrics_without_source_differ_too():
    made = [eval(f"lambda e, p, trace=None: {number}") for number in (1.0, 2.0)]
    assert metric_hash(made[0]) != metric_hash(made[1])


@pytest.mark.parametrize(
    "change",
    [
        lambda p: setattr(p, "signature", p.signature.with_instructions("Be brief.")),
        lambda p: p.demos.append(dspy.Example(question="1", answer="2")),
        lambda p: setattr(p, "decoding", Decoding(max_tokens=7)),
        lambda p: setattr(p, "signature", Predict("question -> answer: int(ge=0)").signature),
        lambda p: setattr(p, "signature", Predict("question -> answer: int(ge=1)").signature),
    ],
)
def test_whatever_changes_the_prompt_changes_the_program(change):
    plain, changed = (Predict("question -> answer: int") for _ in range(2))
    assert hash_of(program_state(plain)) == hash_of(program_state(changed))
    change(changed)
    assert hash_of(program_state(plain)) != hash_of(program_state(changed))


def test_bounds_are_part_of_the_program():
    low, high = (Predict(f"question -> answer: int(ge={n})") for n in (0, 1))
    assert hash_of(program_state(low)) != hash_of(program_state(high))


def test_the_model_is_the_given_or_the_configured_one():
    lm = LocalLM(ScriptedEngine(lambda text, slot: "x"))
    assert language_model(lm) is lm
    with dspy.context(lm=lm):
        assert language_model(None) is lm
    with dspy.context(lm=None), pytest.raises(ProgramError, match="no model is configured"):
        language_model(None)
    assert model_identity(lm) == "scripted@000000000000/scripted"


def test_versions_name_what_decides_results():
    assert {"python", "dspy", "llama-cpp-python", "llguidance"} <= versions().keys()
