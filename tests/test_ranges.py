from __future__ import annotations

import datetime
import re
from decimal import Decimal

from hypothesis import example, given, settings, strategies as st

from promptflow import ranges

WHOLE = st.integers(-(10**4), 10**4) | st.integers(-(10**22), 10**22)
LIMIT = st.none() | WHOLE
PARTS = st.builds(lambda n, places: Decimal(n).scaleb(-places), WHOLE, st.integers(0, 6))


def within(low, high, value) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def in_order(low, high) -> tuple:
    return (high, low) if None not in (low, high) and low > high else (low, high)


def matches(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern, text) is not None


@given(LIMIT, LIMIT, WHOLE, st.sampled_from([-1, 0, 1]))
@example(10**16, None, 10**16, -1)
@example(0, 0, 0, 0)
def test_integers_between_limits(low, high, value, step):
    low, high = in_order(low, high)
    pattern = ranges.integers(low, high)
    for number in (value, *(limit + step for limit in (low, high) if limit is not None)):
        assert matches(pattern, str(number)) == within(low, high, number)
    assert not matches(pattern, "-0")
    assert not matches(pattern, f"0{abs(value)}")


@given(st.none() | PARTS, st.none() | PARTS, PARTS, st.integers(0, 7), st.sampled_from([-1, 0, 1]))
def test_decimals_between_limits(low, high, value, places, step):
    low, high = in_order(low, high)
    pattern = ranges.decimals(low, high, places)
    near = [n + Decimal(step).scaleb(-places) for n in (low, high) if n is not None]
    for number in (value, *near):
        text = f"{number:f}"
        kept = text.partition(".")[2].rstrip("0")
        shown = text.rstrip("0").rstrip(".") if "." in text else text
        if shown != "-0":
            expected = within(low, high, number) and len(kept) <= places
            assert matches(pattern, shown) == expected, (low, high, shown, places)


FLOAT = st.floats(-1e25, 1e25) | st.floats(-1, 1)


@settings(deadline=None)
@given(st.none() | FLOAT, st.none() | FLOAT, FLOAT)
@example(0.0, 1.0, 4.2e-7)
@example(0.0, None, 6.02e23)
@example(1e-5, 2e-5, 1.5e-5)
def test_floats_between_limits_in_every_spelling(low, high, value):
    low, high = in_order(low, high)
    pattern = ranges.floats(low, high)
    for number in (value, *(n for n in (low, high) if n is not None)):
        for text in (repr(number), f"{number:.17e}", f"{number:.30f}"):
            if float(text) == number and not 0 < abs(number) < 1e-300:
                assert not matches(pattern, text) or within(low, high, number), (low, high, text)
        shortest = repr(number)
        if within(low, high, number) and (str(number) == "0.0" or abs(number) > 1e-300):
            assert matches(pattern, shortest), (low, high, shortest)


def test_a_float_of_the_pattern_is_finite_and_not_lost():
    for text in ("9" * 40 + "e99", "9.9e307", "1e-307", "0." + "0" * 39 + "1e-99"):
        assert matches(ranges.FLOAT, text)
        assert 0 < float(text) < float("inf")
    for text in ("1e308", "10e307", "0.1e-307", "1e999"):
        assert not matches(ranges.FLOAT, text)


@given(st.dates(), st.dates(), st.dates())
def test_days_between_days(one, two, other):
    low, high = sorted([one, two])
    pattern = ranges.between(low.isoformat(), high.isoformat())
    for day in (other, low, high, low - (low - low.min) / 2):
        assert matches(pattern, day.isoformat()) == (low <= day <= high)
    assert isinstance(low, datetime.date)


def test_multiples():
    for step in (1, 2, 4, 5, 8, 25, 100):
        patterns = ranges.multiples(step, -300, 20_000)
        assert patterns is not None
        for number in [*range(-400, 1100), *range(19_900, 20_100)]:
            found = all(matches(pattern, str(number)) for pattern in patterns)
            assert found == (number % step == 0 and -300 <= number <= 20_000), (step, number)
    assert ranges.multiples(7, None, None) is None
    assert ranges.multiples(7, 0, 21) == ["(0|7|14|21)"]
