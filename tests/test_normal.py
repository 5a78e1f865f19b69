from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, strategies as st

from promptflow.normal import folded, is_unspaced, normalize, stands_in, words


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("Cafe\u0301", "caf\u00e9"),
        ("\uff21\uff22\uff23\uff11", "abc1"),
        ("\uff76\uff9e", "\u30ac"),
        ("\u300c\u6771\u4eac\u300d\u3001", "\u6771\u4eac"),
        ("\u201cdon\u2019t\u201d", "dont"),
        ("\ufb01nal", "final"),
        ("5\u338f", "5kg"),
        ("Stra\u00dfe", "strasse"),
        ("so\u00adft\u200b", "soft"),
        ("A", "a"),
        ("+", "+"),
        ("...", "..."),
        ("a 1,000,000", "1000000"),
        ("covid-19", "covid19"),
        ("24-10", "24-10"),
        ("\u0663\u066b\u0665", "3.5"),
        ("10\u00b2", "10\u00b2"),
        ("\u00bd", "\u00bd"),
        ("3.5.", "3.5"),
        ("x-5", "x5"),
        ("-5 \u00b0C", "-5 \u00b0c"),
        ("", ""),
        (" \t\u3000", ""),
    ],
)
def test_the_normal_form(text, normal):
    assert normalize(text) == normal


@given(st.text())
def test_composed_and_decomposed_text_agree(text):
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert normalize(composed) == normalize(decomposed)
    assert normalize(composed.upper()) == normalize(composed.upper().lower())
    assert folded(folded(text)) == folded(text)


def test_characters_are_counted_where_no_space_parts_words():
    assert words("iPhone\uc740 3.5\ub144", apart=True) == ["iphone", "\uc740", *"3.5\ub144"]
    assert words("two words") == ["two", "words"]
    assert [
        is_unspaced(text) for text in ("\u0e01", "\u1000", "\u1780", "\u0e81", "\u0915", "a")
    ] == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]


@given(st.text("ab \ud55c\u6771", max_size=6), st.text("ab \ud55c\u6771", max_size=12))
def test_a_part_is_found_between_spaces(part, whole):
    part = part.strip()
    if part and f" {part} " in f" {whole} ":
        assert stands_in(part, whole)
    if stands_in(part, whole):
        assert part in whole
