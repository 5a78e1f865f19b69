from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from promptflow.numerals import Reading, number_of, numbers_in, read_number


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
    ],
)
def test_a_text_that_is_a_number(text, value, unit):
    found = read_number(text)
    assert found is not None
    assert (found.value, found.unit) == (value, unit)


@pytest.mark.parametrize(
    "text",
    ["", "-", "3,5", "10,00", "1,0000", "10:30", "2024-05-01", "1.2.3", "5-3", "--5", "-$-5", "1e",
     "five", "5 apples", "$5%", "1/0", "0x10", "nan", "inf", "1" * 10_001],
)  # fmt: skip
def test_a_text_that_is_none(text):
    assert read_number(text) is None


def test_what_is_a_number_only_where_one_is_expected():
    assert read_number("007") == Reading(Decimal(7), sure=False)
    assert read_number("1/2") == Reading(Decimal("0.5"), ratio=True)
    percent = read_number("5%")
    assert percent is not None
    assert [percent.equals(Decimal(n)) for n in ("5", "0.05", "0.5")] == [True, True, False]


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
