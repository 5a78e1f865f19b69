from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from promptflow.numerals import (
    Reading,
    number_of,
    number_spans,
    numbers_in,
    read_number,
    spelled_numbers,
)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("240", 240, ""),
        ("24.0e1", 240, ""),
        ("-$7", -7, "$"),
        ("$-7", -7, "$"),
        ("12 %", 12, "%"),
        ("5 percent", 5, "%"),
        ("1\u202f000", 1000, ""),
        ("1'000", 1000, ""),
        ("5 million", 5_000_000, ""),
        ("1\uc5b5 2,000\ub9cc 5", 120_000_005, ""),
        ("1\u00bd", Fraction(3, 2), ""),
        ("2/3", Fraction(2, 3), ""),
        ("1억 2천 3백만", 123_000_000, ""),
        ("2천 3백", 2_300, ""),
        ("3천억 5백만", 300_005_000_000, ""),
        ("2십억", 2_000_000_000, ""),
        ("3千5百万", 35_000_000, ""),
        ("$1조 3,000억", 1_300_000_000_000, "$"),
        ("40퍼센트", 40, "%"),
    ],
)
def test_a_text_that_is_a_number(text, value, unit):
    found = read_number(text)
    assert found is not None
    assert (found.value, found.unit) == (value, unit)


@pytest.mark.parametrize(
    "text",
    ["", "-", "3,5", "10,00", "1,0000", "10:30", "2024-05-01", "1.2.3", "5-3", "--5", "-$-5", "1e",
     "five", "5 apples", "$5%", "1/0", "0x10", "nan", "inf", "1" * 10_001,
     "3만 5만", "1만 20000", "2백 3천", "5천만 3억"],
)  # fmt: skip
def test_a_text_that_is_none(text):
    assert read_number(text) is None


def test_what_is_a_number_only_where_one_is_expected():
    assert read_number("007") == Reading(Decimal(7), sure=False)
    assert read_number("1/2") == Reading(Decimal("0.5"), ratio=True)
    percent = read_number("5%")
    assert percent is not None
    assert [percent.equals(Decimal(n)) for n in ("5", "0.05", "0.5")] == [True, True, False]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("제3조제2항에 따른 3조 원", [3, 2, 3_000_000_000_000]),
        ("법 12조 1항, 3조의2", [12, 1, 3, 2]),
        ("3만 5만 원대", [30_000, 50_000]),
        ("$1조 3,000억 규모", [1_300_000_000_000]),
        ("매출 2천3백만원, 12,345천원", [23_000_000, 12_345_000]),
    ],
)
def test_the_numbers_of_a_korean_text(text, values):
    assert numbers_in(text) == values
    assert [v for a, b in number_spans(text) for v in numbers_in(text[a:b])] == values


@given(st.integers(1, 10**16 - 1))
def test_numbers_in_signs_read_back(number):
    places = {12: "조", 8: "억", 4: "만", 0: ""}
    groups = [(number // 10**place % 10_000, sign) for place, sign in places.items()]
    plain = " ".join(f"{group}{sign}" for group, sign in groups if group)
    nested = " ".join(_thousands(group) + sign for group, sign in groups if group)
    for text in (plain, nested, nested.replace(" ", "")):
        found = read_number(text)
        assert found is not None
        assert found.value == number


def _thousands(group):
    digits = zip(f"{group:04d}", "천백십", strict=False)
    return "".join(d + sign for d, sign in digits if d != "0") + str(group % 10 or "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("오천만 원", 50_000_000),
        ("백만 명이", 1_000_000),
        ("삼만 오천 명", 35_000),
        ("일억 이천만 원", 120_000_000),
        ("십이 년", 12),
        ("three million people", 3_000_000),
        ("Twelve cats", 12),
    ],
)
def test_numbers_in_words(text, value):
    assert spelled_numbers(text) == [value]


@pytest.mark.parametrize("text", ["이천시에서", "천만에", "만약 그렇다면", "someone", "often"])
def test_words_that_are_none(text):
    assert spelled_numbers(text) == []


@given(st.integers(), st.integers(0, 5))
def test_grouped_digits_read_back(number, places):
    fraction = "." + "0" * places if places else ""
    found = read_number(f"{number:,}{fraction}")
    assert found is not None
    assert found.value == number
    assert numbers_in(f"they are {number:,}{fraction}, all") == [number]


def test_values_of_other_types_are_no_numbers():
    assert [number_of(value) for value in (True, "3", float("nan"), float("inf"), 1j, None)] == [
        None
    ] * 6
    assert number_of(0.1) == Decimal("0.1")
    assert number_of(Fraction(1, 3)) == Fraction(1, 3)
