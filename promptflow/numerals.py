"""Numbers as values hold and texts write them, read exactly: no float comes between.

``1,000`` and ``1 000 000`` are read where the groups are right, ``1.000,50`` and ``3만 5천`` too.
``3,5`` is not read: it may be a decimal or two numbers. Dates, times and versions are no numbers.
"""

from __future__ import annotations

import numbers
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from promptflow.normal import folded

Number = Decimal | Fraction
"""A Decimal; a Fraction where no Decimal holds the value."""

_CURRENCY = "[$¢£¤¥฿\u20a0-\u20c0]"
_WORDS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SIGNS = {
    **dict(zip("백천만억조", (2, 3, 4, 8, 12), strict=True)),
    **dict(zip("百千万萬億亿兆", (2, 3, 4, 4, 8, 8, 12), strict=True)),
}
_SCALES = _WORDS | _SIGNS
_SINGLE = "".join(_SIGNS)

_GROUPS = r"\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}"
_PARTED = r"\d{1,3}(?:[\u00a0\u2009\u202f'\u2019]\d{3})+"
_SPACED = r"\d{1,3}(?: \d{3})+"
_EUROPEAN = r"\d{1,3}(?:\.\d{3})+,\d+"
_POWER = (
    r"(?:e(?P<e>[-+]?\d+)(?!\w)"
    r"|\s?[\u00d7x*·⋅]\s?10(?:\^[({]?(?P<ten>[-+]?\d+)[)}]?|(?P<high>[⁻⁺]?[⁰¹²³⁴-⁹]+)))"
)
_SCALE = rf"(?:\s?(?P<scale>{'|'.join(_SCALES)})(?![a-z]))"
_NAMELESS = re.sub("[?]P<[a-z]+>", "?:", f"{_POWER}?{_SCALE}")
_WHOLE = re.compile(
    rf"(?P<sign>[-+]?)\s?(?P<before>{_CURRENCY}?)\s?(?P<inner>[-+]?)"
    rf"(?P<body>{_EUROPEAN}|(?:{_GROUPS}|{_PARTED}|{_SPACED}|\d+)(?:\.\d*)?|\.\d+){_POWER}?{_SCALE}?"
    rf"\s?(?P<after>[%‰]|{_CURRENCY}|percent)?\.?",
    re.IGNORECASE,
)
_RATIO = re.compile(r"(?P<sign>[-+]?)(?:(?P<whole>\d{1,9}) )?(?P<over>\d{1,9})/(?P<under>\d{1,9})")
_COUNTED = re.compile(
    rf"(?P<sign>[-+]?)(?P<parts>(?:\d[\d,]*(?:\.\d+)?\s?[{_SINGLE}]+\s?)+)(?P<rest>[\d,]*)"
)
_COUNT = re.compile(rf"([\d,.]+)\s?([{_SINGLE}]+)")
_NO_NUMBER = re.compile(
    r"\d+(?::\d+)+|\d+(?:/\d+){2,}|\d++(?:\.\d++){2,}+(?!,\d)|\d{4}-\d\d?-\d\d?(?!\d)"
)
# A minus is a sign only where no digit, letter or closing bracket stands before it: 5-3 holds 5, 3.
_INSIDE = re.compile(
    rf"(?:(?<![\w.)\]])-?{_CURRENCY}?-?)?"
    r"(?:(?:\d{1,9} )?\d{1,9}/\d{1,9}(?![\d/])"
    rf"|(?:\d[\d,]*(?:\.\d+)?\s?[{_SINGLE}]+\s?)+(?:\d[\d,]*)?"
    rf"|(?:{_EUROPEAN}|(?:{_GROUPS}|{_PARTED}|\d+)(?!,\d{{3}})(?:\.\d+)?){_NAMELESS}?|(?<![\w.])\.\d+)",
    re.IGNORECASE,
)
_MEASURED = re.compile(rf"(?:{_INSIDE.pattern})(?:\s?(?:[%‰]|percent(?!\w)))?", re.IGNORECASE)
_FRAC = re.compile(r"(\d|)\\[dt]?frac\s?\{(\d+)\}\s?\{(\d+)\}")  # LaTeX's
_HIGH = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_EN_DASH = re.compile(rf"(?<![\w.)\]])\u2013(?={_CURRENCY}?[.\d])")
_VULGAR = re.compile("(\\d?)\\s?([¼½¾⅐-⅞])")


@dataclass(frozen=True, slots=True)
class Reading:
    """A number that a text is: its value, its unit (a currency sign, %, or none).

    ``sure`` is False of what is a number only where one is expected: 007, 1 000. A ``ratio`` such
    as 1/2 may be a date beside another.
    """

    value: Number
    unit: str = ""
    sure: bool = True
    ratio: bool = False

    def equals(self, number: Number) -> bool:
        """Say whether a number without a unit is this one; 5 % is 5 or 0.05."""
        return number == self.value or (self.unit == "%" and number == _hundredth(self.value))


def number_of(value: Any) -> Number | None:
    """Return the number that a value of a numeric type is; None of bool, NaN and infinity too."""
    if isinstance(value, bool) or not isinstance(value, numbers.Number):
        return None
    if isinstance(value, Decimal):
        return value if value.is_finite() else None
    if isinstance(value, numbers.Integral):
        return Decimal(int(value))
    if isinstance(value, numbers.Rational):
        return _ratio(int(value.numerator), int(value.denominator))
    if not isinstance(value, numbers.Real):
        return None
    shortest = Decimal(str(value))
    return shortest if shortest.is_finite() else None


def read_number(text: str) -> Reading | None:
    """Return the number that all of ``text`` is, or None."""
    given, text = text, _plain(text).strip()
    if not text or len(text) > 10_000:
        return None
    if (found := _WHOLE.fullmatch(text)) is not None:
        return _whole(found)
    if (found := _RATIO.fullmatch(text)) is not None and int(found["under"]):
        over = int(found["whole"] or 0) * int(found["under"]) + int(found["over"])
        sign = -1 if found["sign"] == "-" else 1
        return Reading(_ratio(sign * over, int(found["under"])), ratio="/" in given)
    if (found := _COUNTED.fullmatch(text)) is not None:
        return _counted(found)
    return None


def numbers_in(text: str) -> list[Number]:
    """Return the numbers of a text in order; those in dates, times and versions do not count."""
    text = _NO_NUMBER.sub(lambda found: " " * len(found[0]), _plain(text))
    readings = (read_number(found[0]) for found in _INSIDE.finditer(text))
    return [reading.value for reading in readings if reading is not None]


def number_spans(text: str) -> list[tuple[int, int]]:
    """Return where the numbers of a text stand, each with its unit word and percent sign."""
    found = ((m.start(), m.group()) for m in _MEASURED.finditer(text))
    return [(start, start + len(number.rstrip())) for start, number in found]


def _plain(text: str) -> str:
    text = _FRAC.sub(_latex, folded(text))
    return text if text.isascii() else _VULGAR.sub(_vulgar, _EN_DASH.sub("-", text))


def _latex(found: re.Match[str]) -> str:
    return f"{found[1]}{' ' * len(found[1])}{found[2]}/{found[3]}"


def _vulgar(found: re.Match[str]) -> str:
    whole = f"{found[1]} " if found[1] else ""
    return whole + unicodedata.normalize("NFKC", found[2]).replace("\u2044", "/")


def _whole(found: re.Match[str]) -> Reading | None:
    if found["sign"] and found["inner"]:
        return None
    body = found["body"]
    if re.fullmatch(_EUROPEAN, body):
        body = body.replace(".", "").replace(",", ".")
    body = re.sub(r"[^\d.]", "", body)
    exponent = int(found["e"] or found["ten"] or (found["high"] or "0").translate(_HIGH))
    exponent += _SCALES.get((found["scale"] or "").lower(), 0)
    sign = "-" if (found["sign"] or found["inner"]) == "-" else ""
    try:
        value = Decimal(f"{sign}{body}e{exponent}")
    except InvalidOperation:  # an exponent of a billion billions
        return None
    after = (found["after"] or "").lower().replace("percent", "%")
    if found["before"] and after:
        return None
    doubtful = re.match(r"0\d", body) or re.fullmatch(r"\d+ \d+", found["body"])
    return Reading(value, found["before"] or after, sure=doubtful is None)


def _counted(found: re.Match[str]) -> Reading | None:
    total, below = Decimal(0), Decimal("Infinity")
    for digits, scales in [*_COUNT.findall(found["parts"]), (found["rest"] or "0", "")]:
        scale = Decimal(10) ** sum(_SCALES[scale] for scale in scales)
        part = Decimal(digits.replace(",", "") or "0") * scale
        if part >= below:
            return None
        total, below = total + part, scale
    return Reading(-total if found["sign"] == "-" else total)


def _hundredth(number: Number) -> Number:
    if isinstance(number, Fraction):
        return number / 100
    sign, digits, exponent = number.as_tuple()
    return Decimal((sign, digits, int(exponent) - 2))


def _ratio(over: int, under: int) -> Number:
    """Return a quotient as a Decimal where that is exact."""
    quotient = Fraction(over, under)
    rest, twos, fives = quotient.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return quotient
    places = max(twos, fives)
    return Decimal(f"{quotient.numerator * 10**places // quotient.denominator}e-{places}")
