"""Quotes are ordered by the words of a text in any language; numbers compare by value."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given, strategies as st

from promptflow.modules.evidence import (
    agreements,
    asks_to_explain,
    best_place,
    nearness,
    overlaps,
    rank,
    ranked,
    repeated,
    strange_numbers,
)
from promptflow.retrieval import Passage, read_passage


def passage(text: str, start: int = 0, score: float = 0.5, heading: str = "") -> Passage:
    return Passage("guide.md", 7, start, start + len(text), text, score, heading)


def test_the_quote_that_speaks_of_the_question_is_first() -> None:
    text = (
        "The phrase itself can be optimized further. "
        "On MultiArith the accuracy rose to 78.7 %. "
        "The accuracy on CommonsenseQA fell a little."
    )
    best, *_ = rank("Which accuracy did it reach on MultiArith?", [passage(text)], 3)
    assert "78.7" in best.text
    assert len(rank("accuracy?", [passage(text)], 2)) == 2


def test_korean_words_are_found_whatever_their_particles_and_normal_form() -> None:
    text = "직원은 12명이다. 본사는 서울에 있다. 공장은 부산에 있다."
    for written in (text, unicodedata.normalize("NFD", text)):
        best, *_ = rank("본사가 어디에 있나요?", [passage(written)], 3)
        assert best.text == "본사는 서울에 있다."


def test_of_equal_quotes_the_better_passage_is_cited_once() -> None:
    text = "Beams keep the best texts."
    near, copy = passage(text), passage("beams  keep the best texts.", start=100)
    assert [e.citation.start for e in rank("beams?", [near, copy], 2)] == [0]


def test_headings_count_for_their_quotes() -> None:
    under = passage("It samples several answers and votes.", heading="Self-consistency")
    other = passage("It samples several answers in a row.", heading="Decoding")
    assert rank("What is self-consistency?", [other, under], 1)[0].heading == "Self-consistency"


def test_an_answer_stands_in_the_quote_that_says_most_of_the_question() -> None:
    reading = read_passage(passage("Paris has a tower. The capital of France is Paris."))
    scores = overlaps("What is the capital of France?", reading.quotes())
    place = best_place(scores, reading, "Paris")
    assert place is not None
    assert [c.quote for c in reading.cited(*place)] == ["The capital of France is Paris."]
    assert best_place(scores, reading, "London") is None


@pytest.mark.parametrize(
    ("text", "answer", "whole"),
    [
        ("It has 3 million users.", "3", "3 million"),
        ("It has 1,319 problems.", "319", "1,319"),
        ("It rose to 78.7 % then.", "78", "78.7 %"),
        ("In 1967 it began.", "19", "1967"),
        ("Wang published it.", "Wan", "Wang"),
        ("인구는 3만 5천 명이다.", "3만", "3만 5천"),
        ("본사는 서울에 있다.", "서울", "서울"),
        ("首都は東京です。", "東京", "東京"),
        ("Version A-7 is out.", "A-7", "A-7"),
    ],
)
def test_an_answer_that_breaks_off_goes_on(text: str, answer: str, whole: str) -> None:
    reading = read_passage(passage(text))
    place = best_place({}, reading, answer)
    assert place is not None
    assert reading.text[slice(*place)] == whole


@pytest.mark.parametrize(
    ("answer", "texts", "strange"),
    [
        ("3 million people", ["3,000,000 people live there"], []),
        ("3,000,000", ["about 3 million"], []),
        ("78.7%", ["from 17.7 % to 78.70 %"], []),
        ("1,319 problems", ["1319 problems"], []),
        ("35,000명", ["3만 5천 명이다"], []),
        ("3 million", ["3 thousand"], ["3 million"]),
        ("125 parameters", ["gpt-3.5-turbo-0125"], ["125"]),
        ("none", [], []),
        ("5,000만 원", ["예산은 오천만 원이다"], []),
        ("2022년 1월 1일", ["2022.1.1. 이후 양도하는 분부터"], []),
        ("2024년 3월 4일", ["'24.3.4.부터"], []),
        ("2023년 12월", ["추진 전략('23.12월 발표)"], []),
        ("10시 30분", ["10:30에 시작한다"], []),
        ("10시 31분", ["10:30에 시작한다"], ["31"]),
        ("2024년 4월 5일", ["2022.1.1"], ["2024", "4", "5"]),
        ("1/3", ["3분의 1이 찬성했다"], []),
        ("May 1, 2024", ["on 2024-05-01"], []),
        ("3.14159", ["version 3.14.159"], ["3.14159"]),
        ("12 cats", ["twelve cats"], []),
        ("1조 2천억 원", ["1.2조 원이다"], []),
        ("40%", ["40퍼센트가 찬성했다"], []),
        ("제5조", ["제3조에 따라 5조 원을 쓴다"], ["5"]),
        ("1조 3,000억", ["$1조 3,000억 규모"], []),
        ("1조 4,000억", ["$1조 3,000억 규모"], ["1조 4,000억"]),
    ],
)
def test_numbers_compare_by_value(answer: str, texts: list[str], strange: list[str]) -> None:
    assert strange_numbers(answer, texts) == strange
    apart = [unicodedata.normalize("NFD", text) for text in texts]
    assert strange_numbers(unicodedata.normalize("NFD", answer), apart) == strange


def test_answers_agree_by_words_each_counted_by_its_probability() -> None:
    assert agreements([]) == []
    assert agreements([("the July of 1967", -9.0), ("July of 1967!", -9.0)]) == [1.0, 1.0]
    assert agreements([("1967", -2.0), ("1968", -2.0)]) == [0.5, 0.5]
    likely, other = agreements([("1967", math.log(0.75)), ("Paris", math.log(0.25))])
    assert (likely, other) == (pytest.approx(0.75), pytest.approx(0.25))
    assert agreements([("2015년", -1.0), ("2015년에", -1.0)])[0] > 0.95
    assert agreements([("1조 2천억 원", -1.0), ("1조2천억원", -1.0)]) == [1.0, 1.0]
    assert agreements([("東京", -1.0), ("東京都", -1.0)])[0] == 0.9
    assert agreements([("서울", -1.0), ("부산", -1.0)]) == [0.5, 0.5]
    whole, part = agreements([("in July 1967", -1.0), ("1967", -1.0)])
    assert whole == part == pytest.approx((1.0 + 2 / 3.0) / 2, abs=0.2)


@given(st.lists(st.tuples(st.text("ab ", max_size=5), st.floats(-800, 0)), min_size=1))
def test_agreements_are_shares_whatever_the_probabilities(answers: list[tuple[str, float]]) -> None:
    assert all(0.0 <= share <= 1.0 + 1e-9 for share in agreements(answers))


def test_the_nearer_the_words_of_a_question_the_higher() -> None:
    quote = "Tesla moved to Prague in January 1880, and Edison to Boston in 1868."
    asked = "When did Tesla move to Prague?"
    right, wrong = (nearness(asked, year, [quote]) for year in ("1880", "1868"))
    assert right is not None
    assert wrong is not None
    assert 0.0 < wrong < right < 1.0
    assert nearness(asked, "1880", ["Nothing.", quote]) == right
    assert nearness(asked, "1999", [quote]) is None
    assert nearness(asked, "1868", []) is None
    assert nearness("?", "1868", [quote]) is None
    assert nearness("Tesla?", "moved", ["Tesla moved"]) == 1.0
    assert nearness("Tesla?", "Tesla moved", ["Tesla moved"]) == 0.0


@given(st.text(), st.text(min_size=1), st.text())
def test_nearness_is_a_share_of_any_texts(question: str, answer: str, quote: str) -> None:
    near = nearness(question, answer, [quote])
    assert near is None or 0.0 <= near <= 1.0


def test_an_echo_is_what_the_question_says_already() -> None:
    assert repeated("When did Tesla move to Prague?", "Prague") == 1.0
    assert repeated("When did Tesla move to Prague?", "in January 1880") == 0.0
    assert repeated("When did Tesla move to Prague?", "Tesla, 1880") == 0.5
    assert repeated("?", "...") == 0.0


@pytest.mark.parametrize(
    ("question", "explains"),
    [
        ("Why does it vote?", True),
        ("How does tree of thoughts search?", True),
        ("What is the difference between BM25 and embeddings?", True),
        ("How many demonstrations should I use?", False),
        ("How did she die?", False),
        ("Who published self-consistency?", False),
        ("Which phrase does it add?", False),
        ("예비인가를 받지 않는 이유는 무엇인가요?", True),
        (unicodedata.normalize("NFD", "차이점을 설명하시오."), True),
        ("본사는 어디에 있나요?", False),
        ("なぜですか", True),
        ("为什么投票?", True),
        ("Warum stimmt es ab?", True),
        ("Wie viele sind es?", False),
    ],
)
def test_questions_that_ask_to_explain(question: str, explains: bool) -> None:
    assert asks_to_explain(question) is explains


def test_quotes_of_several_passages_are_ranked_together() -> None:
    readings = [read_passage(passage("One word here.")), read_passage(passage("Beams win.", 50))]
    best = ranked("Do beams win?", readings)[0]
    assert (best.text, best.place) == ("Beams win.", 1)
