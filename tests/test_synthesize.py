from __future__ import annotations

from dataclasses import dataclass

import pytest

from promptflow.engine.request import Substring
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import EngineLost
from promptflow.lm import LocalLM
from promptflow.optimization.synthesize import is_fit, synthesize

PASSAGES = [f"Tower {i} was built in {1800 + i} by the town of Ulm." for i in range(12)]


def town(text, slot):
    passage = text.rsplit("Passage:", 1)[1].split("\n")[0]
    if slot.name == "answer":
        assert isinstance(slot.constraint, Substring)
        return passage.split()[5]
    number = int(passage.split()[1])
    words = " ".join(f"{letter}{number % 6}" for letter in "abcdef")
    return f"When did {words} rise?"


def test_questions_are_asked_in_one_batch_and_only_once():
    engine = ScriptedEngine(town)
    examples = synthesize(PASSAGES, 6, lm=LocalLM(engine), seed=0)
    assert engine.batches == [12]
    assert len({example.question for example in examples}) == len(examples) == 6
    for example in examples:
        assert example.answer in example.passage
        assert set(example.inputs().keys()) == {"question", "passage"}
    assert examples == synthesize(PASSAGES, 6, lm=LocalLM(ScriptedEngine(town)), seed=0)


@dataclass
class Chunk:
    text: str
    document: str


def test_the_document_of_a_passage_is_kept():
    chunks = [Chunk(text, f"{i}.md") for i, text in enumerate(PASSAGES)]
    [example] = synthesize(chunks, 1, lm=LocalLM(ScriptedEngine(town)))
    [document] = example.documents
    assert PASSAGES[int(document[:-3])] == example.passage


@pytest.mark.parametrize(
    ("question", "answer", "fit"),
    [
        ("When was the tower built?", "1804", True),
        ("When was the tower built", "1804", False),
        ("When?", "1804", False),
        ("What does the passage say about it?", "1804", False),
        ("Was the tower built in 1804?", "1804", False),
        ("When was the tower built?", "1805", False),
        ("When was the tower built?", " ", False),
    ],
)
def test_what_makes_a_question_fit(question, answer, fit):
    assert is_fit(question, answer, PASSAGES[4]) is fit


def test_a_dead_engine_is_an_error_and_not_an_empty_list():
    def lost(text, slot):
        raise EngineLost("killed")

    with pytest.raises(EngineLost):
        synthesize(PASSAGES, 2, lm=LocalLM(ScriptedEngine(lost)))
