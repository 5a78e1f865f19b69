"""Regular expressions of written numbers, and of other texts of digits, between limits.

They are written in what all dialects share: classes, groups, alternatives, counts. Limits are
inclusive. An integer has up to 40 digits where no limit asks for more, a decimal 40 on each side of
its point: a small model may write digits without end, and nothing real has so many.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal, localcontext

DIGITS = 40
LARGEST = 307  # the exponent of ten up to which a float neither overflows nor loses digits
_WHOLE = f"(0|[1-9][0-9]{{0,{DIGITS - 1}}})"
_PLACES = rf"(\.[0-9]{{1,{DIGITS}}})?"
_SMALL = "[eE][+-]?0?[0-9]{1,2}"
_LARGE = "[eE][+-]?([12][0-9]{2}|30[0-7])"

DECIMAL = f"-?{_WHOLE}{_PLACES}({_SMALL})?"
FLOAT = f"{DECIMAL}|-?[1-9]{_PLACES}{_LARGE}"


def either(parts: Sequence[str]) -> str:
    """Return the alternatives in a group; a class that matches nothing where there is none."""
    found = list(dict.fromkeys(parts))
    return found[0] if len(found) == 1 else f"({'|'.join(found)})" if found else "[^\\s\\S]"


def between(low: str, high: str) -> str:
    """Return the texts from ``low`` to ``high`` in their order: digits, other signs in place.

    Both have the same length and the same signs that are no digits. ``low`` is not above ``high``.
    """
    if low == high:
        return re.escape(low)
    if low[0] == high[0]:
        return re.escape(low[0]) + between(low[1:], high[1:])
    first, last = int(low[0]), int(high[0])
    parts = []
    if re.search("[1-9]", low[1:]):
        parts.append(f"{first}{_from(low[1:])}")
        first += 1
    if re.search("[0-8]", high[1:]):
        parts.append(f"{last}{_to(high[1:])}")
        last -= 1
    if first <= last:
        parts.append(_digit(first, last) + _any(low[1:]))
    return either(parts)


def _from(low: str) -> str:
    return between(low, re.sub("[0-9]", "9", low)) if low else ""


def _to(high: str) -> str:
    return between(re.sub("[0-9]", "0", high), high) if high else ""


def _any(shape: str) -> str:
    return "".join(
        f"[0-9]{{{len(part)}}}" if part.isdigit() else re.escape(part)
        for part in re.findall("[0-9]+|[^0-9]+", shape)
    )


def _digit(first: int, last: int) -> str:
    return str(first) if first == last else f"[{first}-{last}]"


def integers(low: int | None = None, high: int | None = None) -> str:
    """Return the integers between limits, without ``-0`` and leading zeros."""
    digits = max([DIGITS, *(len(str(abs(limit))) + 1 for limit in (low, high) if limit)])
    bottom = 1 - 10**digits if low is None else low
    top = 10**digits - 1 if high is None else high
    parts = []
    if top >= max(bottom, 0):
        parts.append(_natural(max(bottom, 0), top))
    if bottom < 0 and min(top, -1) >= bottom:
        parts.append(f"-{_natural(max(-top, 1), -bottom)}")
    return either(parts)


def _natural(low: int, high: int) -> str:
    """Return the natural numbers from ``low`` to ``high``, a range of them for each length."""
    parts, whole = [], []
    for length in range(len(str(low)), len(str(high)) + 1):
        first, last = max(low, 10 ** (length - 1)), min(high, 10**length - 1)
        if length == 1:
            first = low if low < 10 else first
        if length > 1 and first == 10 ** (length - 1) and last == 10**length - 1:
            whole.append(length)
        else:
            parts.append(between(str(first), str(last)))
    if whole:
        parts.append(f"[1-9][0-9]{{{whole[0] - 1},{whole[-1] - 1}}}")
    return either(parts)


def decimals(low: Decimal | None = None, high: Decimal | None = None, places: int = DIGITS) -> str:
    """Return the decimals between limits, with up to ``places`` digits after the point."""
    most = Decimal("9" * DIGITS)
    bottom, top = -most if low is None else low, most if high is None else high
    zero = Decimal(0)
    parts = []
    if top >= max(bottom, zero):
        parts.append(_positive(max(bottom, zero), top, places))
    if bottom < 0:
        parts.append(f"-{_positive(max(-top, zero), -bottom, places)}")
    return either(parts)


def _positive(low: Decimal, high: Decimal, places: int) -> str:
    """Return the decimals from ``low``, which is at least 0, to ``high``."""
    (first, after), (last, before) = _split(low, places), _split(high, places)
    point = r"\." if places else "[^\\s\\S]"
    if first == last:
        if not after:
            return f"{first}({point}{_at_most(before, places)})?"
        return f"{first}{point}{_within(after, before, places)}"
    rest = f"({point}[0-9]{{1,{places}}})?" if places else ""
    parts = [f"{first}{point}{_at_least(after, places)}" if after else f"{first}{rest}"]
    if first + 1 < last:
        parts.append(f"{_natural(first + 1, last - 1)}{rest}")
    parts.append(f"{last}({point}{_at_most(before, places)})?")
    return either(parts)


def _split(number: Decimal, places: int) -> tuple[int, str]:
    """Return the whole part and the digits after the point, without zeros at their end."""
    whole, _, digits = f"{number:f}".partition(".")
    return int(whole), digits.rstrip("0")


# Digits after a point, as fractions: "5" stands for 0.5. ``places`` is how many may be written.


def _at_least(low: str, places: int) -> str:
    if places < len(low):
        low, places = low[:places], places
        raised = str(int(low) + 1).zfill(len(low)) if low else ""
        return _at_least(raised.rstrip("0"), places) if len(raised) == len(low) else "[^\\s\\S]"
    if not low:
        return f"[0-9]{{0,{places}}}"
    first = int(low[0])
    parts = [f"{first}{_at_least(low[1:], places - 1)}"]
    if first < 9:
        parts.append(f"{_digit(first + 1, 9)}[0-9]{{0,{places - 1}}}")
    return either(parts)


def _at_most(high: str, places: int) -> str:
    """Return one digit or more."""
    if not places:
        return "[^\\s\\S]"
    if not high:
        return f"0{{1,{places}}}"
    first = int(high[0])
    after = _at_most(high[1:], places - 1)
    parts = [f"{first}({after})?"]
    if first > 0:
        parts.append(f"{_digit(0, first - 1)}[0-9]{{0,{places - 1}}}")
    return either(parts)


def _within(low: str, high: str, places: int) -> str:
    """Return one digit or more; ``low`` is not empty, and not above ``high``."""
    if not places:
        return "[^\\s\\S]"
    first, last = int(low[0]), int(high[0])
    if first == last:
        if low[1:]:
            return f"{first}{_within(low[1:], high[1:], places - 1)}"
        return f"{first}({_at_most(high[1:], places - 1)})?"
    parts = [f"{first}{_at_least(low[1:], places - 1)}"]
    if first + 1 < last:
        parts.append(f"{_digit(first + 1, last - 1)}[0-9]{{0,{places - 1}}}")
    parts.append(f"{last}({_at_most(high[1:], places - 1)})?")
    return either(parts)


def floats(low: float | None = None, high: float | None = None) -> str:
    """Return the floats between limits, with and without an exponent."""
    if low is None and high is None:
        return FLOAT
    if low == 0 and high is None:
        return FLOAT.replace("-?(0", "(0", 1).replace("|-?[1", "|[1", 1)
    bottom = None if low is None else Decimal(repr(float(low)))
    top = None if high is None else Decimal(repr(float(high)))
    parts = [decimals(bottom, top)]
    if top is None or top > 0:
        parts.append(_scientific(max(bottom or Decimal(0), Decimal(0)), top))
    if bottom is None or bottom < 0:
        above = Decimal(0) if top is None else max(-top, Decimal(0))
        parts.append(f"-{_scientific(above, None if bottom is None else -bottom)}")
    return either(parts)


def _scientific(low: Decimal, high: Decimal | None) -> str:
    """Return positive floats with an exponent, and one to three digits before the point."""
    parts = []
    with localcontext(prec=800):
        smallest, largest = Decimal(10) ** -LARGEST, Decimal("9.9") * Decimal(10) ** LARGEST
        low, high = max(low, smallest), largest if high is None else min(high, largest)
        for digits in range(3) if low <= high else ():
            first, last = low.adjusted() - digits, high.adjusted() - digits
            least, most = low.scaleb(-first), high.scaleb(-last)
            end = Decimal(10) ** (digits + 1) - Decimal(10) ** -DIGITS
            if first == last:
                parts.append(_positive(least, most, DIGITS) + _exponents(first, first))
                continue
            parts.append(_positive(least, end, DIGITS) + _exponents(first, first))
            parts.append(_positive(Decimal(10) ** digits, most, DIGITS) + _exponents(last, last))
            if first + 1 < last:
                any_ = f"[1-9][0-9]{{{digits}}}{_PLACES}"
                parts.append(any_ + _exponents(first + 1, last - 1))
    return either(parts)


def _exponents(first: int, last: int) -> str:
    parts = []
    if last >= 0:
        parts.append(rf"\+?0?{_natural(max(first, 0), last)}")
    if first < 0:
        parts.append(f"-0?{_natural(max(-last, 1), -first)}")
    return f"[eE]{either(parts)}"


def multiples(step: int, low: int | None, high: int | None) -> list[str] | None:
    """Return patterns that all hold for the multiples of ``step`` between limits, or None.

    None stands for steps that patterns are too small for.
    """
    if low is not None and high is not None and (high - low) // step <= 500:
        first = math.ceil(low / step) if abs(low) < 2**53 else -(-low // step)
        return [either([str(n) for n in range(first * step, high + 1, step)])]
    for digits in (1, 2, 3):
        if 10**digits % step == 0:
            ends = range(0, 10**digits, step)
            padded = either([str(n).zfill(digits) for n in ends])
            small = either([str(n) for n in ends])
            return [integers(low, high), f"-?({small}|[0-9]{{1,80}}{padded})"]
    return None
