from __future__ import annotations

import pytest
from scripted_samples import scripted

import promptflow as pf
from promptflow.errors import EngineLost
from promptflow.flow import run


def test_all_chains_are_read_before_the_answer() -> None:
    lm, engine = scripted(["one", "1", "two", "2", "three", "2", "the last two hold", "2"])
    result = run(pf.MultiChainComparison("question -> answer: int"), lm=lm, question="?")
    assert (result.answer, result.reasoning) == (2, "the last two hold")
    assert (result.samples, result.failed, engine.batches) == (3, 0, [3, 1])
    assert result.chains[1] == "Reasoning: two\nAnswer: 2"
    for chain in result.chains:
        for line in chain.splitlines():
            assert line in engine.prompts[-1]
    assert "Compare them" in engine.prompts[-1]
    assert "Compare them" not in engine.prompts[0]
    assert [type(p) for p, _, _ in result.trace] == [pf.Predict] * 4


def test_a_chain_that_fails_is_left_out() -> None:
    lm, _ = scripted(["one", "1", EngineLost("gone"), "three", "3", "well", "3"])
    result = run(pf.MultiChainComparison("question -> answer: int"), lm=lm, question="?")
    assert (len(result.chains), result.failed) == (2, 1)
    lm, _ = scripted([EngineLost("gone")] * 3)
    with pytest.raises(EngineLost):
        run(pf.MultiChainComparison("question -> answer: int"), lm=lm, question="?")


def test_chains_differ_by_their_temperature() -> None:
    with pytest.raises(ValueError, match="equal samples"):
        pf.MultiChainComparison("question -> answer", temperature=0.0)
