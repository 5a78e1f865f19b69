"""What one sentence of a passage says of a query."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from promptflow.retrieval.closeness import Asked
from promptflow.retrieval.text import query_words, sentence_spans, words

TEXT = "Osmium is dense. Gold is a soft metal. 본사는 서울에 있다."


def asked(query: str, language: str = "en", rarity: dict[str, float] | None = None) -> Asked:
    said = query_words(query, [language], grammar=True)
    weights = [(rarity or {}).get(word.terms[0], 1.0) for word in said]
    return Asked(said, weights, pairs=True)


@pytest.mark.parametrize(
    ("query", "heading", "share"),
    [
        ("metal", "", 1.0),
        ("soft metals", "", 1.0),
        ("metal soft", "", 0.5),
        ("dense metal", "", 0.25),
        ("is a soft", "", 1.0),
        ("is soft a", "", 0.5),
        ("dense metal", "On metals", 0.5),
        ("dense metal", "Of dense metals", 1.0),
        ("silver", "", 0.0),
        ("gold gold dense", "", 0.25),
        ("gold", "", 1.0),
    ],
)
def test_the_best_sentence_counts(query: str, heading: str, share: float) -> None:
    assert asked(query).closeness(heading, TEXT, "en") == pytest.approx(share)


def test_words_and_pairs_count_by_their_rarity() -> None:
    rare = {"dens": 3.0, "metal": 1.0}
    assert asked("dense metal", rarity=rare).closeness("", TEXT, "en") == 0.75 / 2
    rare = {"soft": 4.0, "metal": 1.0, "dens": 9.0}
    # The pairs weigh sqrt(4) and sqrt(9), and the first of them is there.
    close = asked("soft metal dense", rarity=rare).closeness("", TEXT, "en")
    assert close == pytest.approx((5 / 14 + 2 / 5) / 2)
    assert asked("dense metal", rarity={"dens": 0, "metal": 0}).closeness("", TEXT, "en") == 0.0
    assert Asked([], [], pairs=True).closeness("", TEXT, "en") == 0.0
    assert asked("gold").closeness("", "", "en") == 0.0


def test_pairs_count_where_they_are_asked_for() -> None:
    said = query_words("metal soft", ["en"])
    assert Asked(said, [1.0, 1.0], pairs=False).closeness("", TEXT, "en") == 1.0


def test_pairs_of_characters_are_words_too() -> None:
    text = "본사는 서울에 있다. 공장은 부산에 있다."
    assert asked("부산 공장", "ko").closeness("", text, "ko") == 0.5
    assert asked("공장은", "ko").closeness("", text, "ko") == 1.0
    assert asked("서울 공장", "ko").closeness("", text, "ko") == 0.25


def test_a_word_is_found_by_its_stem_of_any_language() -> None:
    said = query_words("große Stadt", ["de", "en"], grammar=True)
    assert Asked(said, [1.0, 1.0], pairs=True).closeness("", "Eine große Stadt.", "de") == 1.0


WORDS = st.lists(st.sampled_from(["the", "soft", "dense", "metal", "gold", "of"]), max_size=6)


@given(WORDS, st.lists(WORDS, max_size=4), WORDS)
def test_shares_are_those_of_the_definition(
    query: list[str], sentences: list[list[str]], heading: list[str]
) -> None:
    text = " ".join(" ".join(s).capitalize() + "." for s in sentences)
    terms = [words(word, "en")[0] for word in query]
    pairs = {*pairwise(terms)}
    best = 0.0
    for start, end in sentence_spans(text, "en"):
        said, above = words(text[start:end], "en"), words(" ".join(heading), "en")
        share = len({*terms} & {*said, *above}) / max(1, len({*terms}))
        follow = {*pairwise(said), *pairwise(above)}
        close = (share + len(pairs & follow) / len(pairs)) / 2 if pairs else share
        best = max(best, close)
    found = asked(" ".join(query)).closeness(" ".join(heading), text, "en")
    assert math.isclose(found, best)
