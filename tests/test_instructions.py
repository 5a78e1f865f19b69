from __future__ import annotations

import dspy

from promptflow.engine.scripted import ScriptedEngine
from promptflow.lm import LocalLM
from promptflow.modules.predict import Predict
from promptflow.optimization.instructions import additions, is_copied, propose, with_addition
from promptflow.optimization.study import Study

DATA = [
    dspy.Example(
        question="Which of the two rivers that meet at Passau is the longer one?", answer="Danube"
    ).with_inputs("question")
]


def test_additions_are_short_sentences_of_the_document():
    found = additions()
    assert len(found) >= 3
    assert all(text.endswith(".") and len(text.split()) <= 20 for text in found.values())


def test_an_addition_follows_the_instruction_of_every_predictor():
    made = with_addition({"a": "Answer.\n", "b": ""}, "Be brief.")
    assert made == {"a": "Answer.\nBe brief.", "b": "Be brief."}


def proposals(texts, count=4):
    texts = iter(texts)
    engine = ScriptedEngine(lambda text, slot: next(texts))
    study = Study(None, {})
    program = Predict("question -> answer")
    found = propose(study, program, DATA, count, lm=LocalLM(engine), seed=0)
    return found, engine, study


def test_proposals_are_asked_in_one_batch_and_filtered():
    copy = "Say which of the two rivers that meet at Passau is the longer one."
    found, engine, study = proposals(["Name the river.", copy, "name the river", "Be  exact."])
    assert found == [{"self": "Name the river."}, {"self": "Be exact."}]
    assert engine.batches == [4]
    assert study.spent.tokens > 0
    assert "Passau" in engine.prompts[0]


def test_the_instruction_in_use_is_no_proposal():
    program = Predict("question -> answer")
    found, _, _ = proposals([program.signature.instructions], count=1)
    assert found == []


def test_eight_words_in_a_row_are_a_copy():
    assert is_copied("Ask: which of the two rivers that meet at Passau!", DATA)
    assert not is_copied("Ask which of the two rivers that is.", DATA)
    assert not is_copied("Short.", DATA)
