from __future__ import annotations

import pytest

from promptflow.modules.evidence import (
    missing_numbers,
    missing_terms,
    named_terms,
    rank,
    stems,
)
from promptflow.retrieval import Passage


def passage(text: str, start: int = 0, score: float = 0.5, heading: str = "") -> Passage:
    return Passage("guide.md", 7, start, start + len(text), text, score, heading)


def test_the_sentence_that_speaks_of_the_question_is_first() -> None:
    text = (
        "The phrase itself can be optimized further. "
        "On MultiArith the accuracy rose to 78.7 %. "
        "The accuracy on CommonsenseQA fell a little."
    )
    best, *_ = rank("Which accuracy did it reach on MultiArith?", [passage(text)], 3)
    assert "78.7" in best.text
    assert len(rank("accuracy?", [passage(text)], 2)) == 2


def test_a_nearer_passage_wins_among_equal_sentences() -> None:
    text = "Beams keep the best texts."
    near, far = passage(text, score=0.9), passage(text, start=100, score=0.4)
    assert [e.citation.start for e in rank("beams?", [far, near], 2)] == [0, 100]


def test_headings_count_for_their_sentences() -> None:
    under = passage("It samples several answers and votes.", heading="Self-consistency")
    other = passage("It samples several answers in a row.", heading="Decoding")
    assert rank("What is self-consistency?", [other, under], 1)[0].heading == "Self-consistency"


def test_question_words_are_no_stems() -> None:
    assert stems("What does the model's accuracy do?") == {"model", "accura"}


@pytest.mark.parametrize(
    ("question", "terms"),
    [
        ("What does self-consistency do?", set()),
        ("Which accuracy did it reach on MultiArith?", {"multiarith"}),
        ("How many parameters does GPT-4 have?", {"gpt-4"}),
        ("Who won the 1998 World Cup?", {"1998", "world", "cup"}),
        ("What does the KV cache hold?", {"kv"}),
        ("Is Kojima's phrase best?", {"kojima"}),
    ],
)
def test_names_and_numbers_of_a_question(question: str, terms: set[str]) -> None:
    assert named_terms(question) == terms


def test_missing_terms() -> None:
    question = "Which accuracy did GPT-4 reach on ImageNet in Rust?"
    assert missing_terms(question, ["gpt-4's trust"]) == {"imagenet", "rust"}
    assert missing_terms(question, ["GPT-4 knows ImageNet", "and Rust."]) == set()
    assert missing_terms("Do all LLMs do it?", ["an LLM does it"]) == set()


def test_missing_numbers() -> None:
    assert missing_numbers("78.7%", ["from 17.7 % to 78.70 %"]) == set()
    assert missing_numbers("1,319 problems", ["1319 problems"]) == set()
    assert missing_numbers("125 parameters", ["gpt-3.5-turbo-0125"]) == {"125"}
    assert missing_numbers("none", []) == set()
