"""Techniques by name around programs: what each makes of them, and what it refuses by name."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

import promptflow as pf
from promptflow.engine.request import Choice, Slot
from promptflow.errors import UnsupportedOption
from promptflow.program import decode, several, with_technique


def answering(text: str, slot: Slot) -> str:
    if isinstance(slot.constraint, Choice):
        return slot.constraint.options[0]
    return {"answer": "7", "reasoning": "So it is.", "step": "Add 3."}.get(slot.name, "x")


@pytest.fixture
def lm() -> Any:
    return pf.load("scripted", engine=pf.ScriptedEngine(answering))


def test_cot_reasons_first_with_all_that_was_chosen(lm: Any):
    plain = pf.Predict("q -> answer", demos=[{"q": "a", "answer": "b"}], max_tokens=9)
    made = with_technique(plain, "cot")
    assert [*made.predict.signature.output_fields] == ["reasoning", "answer"]
    assert made.predict.decoding == plain.decoding
    assert len(made.predict.demos) == 1
    assert made(q="?", lm=lm).reasoning == "So it is."
    assert with_technique(made, "cot") is made


def test_sc_votes_over_chains_of_a_signature_and_samples_of_a_program(lm: Any):
    made = with_technique(pf.Predict("q -> answer"), "sc", n=3, temperature=0.9)
    assert (made.n, made.temperature, made.field) == (3, 0.9, "answer")
    assert made(q="?", lm=lm).agreement == 1.0
    own = pf.ZeroShotCoT("q -> total: int")
    made = with_technique(own, "sc")
    assert (made.module, made.field, made.n) == (own, "total", 8)


def test_tot_fills_the_outputs_after_the_best_steps(lm: Any):
    made = with_technique(pf.Predict("q, hint -> answer"), "tot", n=2)
    assert made.search.proposals == 2
    found = pf.flow.run(made, lm=lm, q="?", hint="h")
    assert found.answer == "7"
    assert "Add 3." in found.reasoning
    assert found.tree.thoughts
    prompts = lm.text_engine.prompts
    assert any("Q: ?\nHint: h" in prompt for prompt in prompts)


@pytest.mark.parametrize(
    ("technique", "options", "says"),
    [
        ("cat", {}, "cot, sc, tot"),
        ("cot", {"n": 4}, "choose sc"),
        ("sc", {"temperature": 0.0}, "all are the same"),
        ("tot", {"temperature": 0.0}, "all are the same"),
    ],
)
def test_what_cannot_be_honoured_is_refused(technique: str, options: Any, says: str):
    with pytest.raises(UnsupportedOption, match=says):
        with_technique(pf.Predict("q -> answer"), technique, **options)


@pytest.mark.parametrize("technique", ["cot", "tot"])
def test_a_program_of_several_parts_is_no_signature(technique: str):
    with pytest.raises(UnsupportedOption, match="is a SelfConsistency"):
        with_technique(pf.SelfConsistency(pf.Predict("q -> answer")), technique)


def test_decoding_reaches_every_predictor_of_a_program(lm: Any):
    program = pf.ZeroShotCoT("q -> answer", sampling=pf.Sampling(top_k=5, min_p=0.1))
    decode(program, sampling={"temperature": 0.5, "min_p": None}, max_tokens=7)
    for predictor in (program.reason, program.extract):
        assert predictor.decoding.sampling == pf.Sampling(0.5, top_k=5, min_p=0.1)
        assert (predictor.decoding.max_tokens, predictor.decoding.reasoning_tokens) == (7, 7)
    decode(program, beam=3)
    assert program.reason.decoding.beam == pf.Beam(3)
    assert program.reason.decoding.sampling == pf.Sampling()
    decode(program, sampling={"top_p": 0.5})
    assert program.reason.decoding.beam is None
    with pytest.raises(UnsupportedOption, match="top_p=2"):
        decode(program, sampling={"top_p": 2.0})
    theirs = dspy.Predict("q -> answer")
    decode(theirs, sampling={"temperature": 0.5}, max_tokens=7)
    assert theirs.config == {"temperature": 0.5, "max_tokens": 7}
    with pytest.raises(UnsupportedOption, match="know no search"):
        decode(theirs, beam=2)


def test_several_answers_of_what_gives_several(lm: Any):
    program = pf.ChainOfThought("q -> answer")
    several(program, 3)
    assert len(program(q="?", lm=lm).completions.answer) == 3
    with pytest.raises(UnsupportedOption, match="technique sc"):
        several(pf.ZeroShotCoT("q -> answer"), 3)
