"""Numbers as values hold and texts write them, read exactly: no float comes between.

``1,000`` and ``1 000 000`` are read where the groups are right, ``1.000,50`` and ``3만 5천`` too;
``1억 2천 3백만`` is 123,000,000, and the ``3조`` of ``제3조``, an article of a law, is 3.
``3,5`` is not read: it may be a decimal or two numbers. Dates, times and versions are no numbers.
"""

from __future__ import annotations

import math
import numbers
import re
import unicodedata
from collections.abc import Iterator
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
    **dict(zip("십백천만억조", (1, 2, 3, 4, 8, 12), strict=True)),
    **dict(zip("十百千万萬億亿兆", (1, 2, 3, 4, 4, 8, 8, 12), strict=True)),
}
_SCALES = _WORDS | _SIGNS
_SINGLE = "".join(_SIGNS)
_LARGE = "만억조万萬億亿兆"
"""Signs that count what stands before them as a whole: 2천 3백만 is 2,300 times 10,000."""

_GROUPS = r"\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}"
_PARTED = r"\d{1,3}(?:[\u00a0\u2009\u202f'\u2019]\d{3})+"
_SPACED = r"\d{1,3}(?: \d{3})+"
_EUROPEAN = r"\d{1,3}(?:\.\d{3})+,\d+"
_POWER = (
    r"(?:e(?P<e>[-+]?\d+)(?!\w)"
    r"|\s?[\u00d7x*·⋅]\s?10(?:\^[({]?(?P<ten>[-+]?\d+)[)}]?|(?P<high>[⁻⁺]?[⁰¹²³⁴-⁹]+)))"
)
_SCALE = rf"(?:\s?(?P<scale>{'|'.join(_SCALES)})(?![a-z]))"
_PERCENT = "[%‰]|percent|퍼센트|パーセント"
_NAMELESS = re.sub("[?]P<[a-z]+>", "?:", f"{_POWER}?{_SCALE}")
_WHOLE = re.compile(
    rf"(?P<sign>[-+]?)\s?(?P<before>{_CURRENCY}?)\s?(?P<inner>[-+]?)"
    rf"(?P<body>{_EUROPEAN}|(?:{_GROUPS}|{_PARTED}|{_SPACED}|\d+)(?:\.\d*)?|\.\d+){_POWER}?{_SCALE}?"
    rf"\s?(?P<after>{_PERCENT}|{_CURRENCY})?\.?",
    re.IGNORECASE,
)
_RATIO = re.compile(r"(?P<sign>[-+]?)(?:(?P<whole>\d{1,9}) )?(?P<over>\d{1,9})/(?P<under>\d{1,9})")
_COUNTED = re.compile(
    rf"(?P<sign>[-+]?)(?P<before>{_CURRENCY}?)"
    rf"(?P<parts>(?:\d[\d,]*(?:\.\d+)?\s?[{_SINGLE}]+\s?)+)(?P<rest>[\d,]*)"
)
_COUNT = re.compile(rf"([\d,.]+)\s?([{_SINGLE}]+)")
_DATED = re.compile(
    r"['\u2018\u2019](?P<short>\d\d)(?!\d)(?:\s?\.\s?\d{1,2}(?!\d))*"
    r"|\d{1,4}(?:\s?\.\s?\d{1,2}){2}(?!\.?\d)|\d+(?:[:/-]\d+)+"
)
_SHARE = re.compile(r"(\d{1,9})분의\s?(\d{1,9})")
_ARTICLE = re.compile(r"(제\s?\d+)조|(?<!\d)(\d{1,4})조(?=\s?(?:의\s?\d|제?\s?\d+\s?[항호]))")
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
_MEASURED = re.compile(
    rf"(?:{_INSIDE.pattern})(?:\s?(?:[%‰]|(?:{_PERCENT})(?![a-z])))?", re.IGNORECASE
)
_DIGITS = dict(zip("일이삼사오육칠팔구", range(1, 10), strict=True))
_SPELLED = re.compile(
    r"(?<![가-힣])(?:약\s?)?((?:[일이삼사오육칠팔구]?[십백천만억조]\s?)+[일이삼사오육칠팔구]?)"
    r"(?=\s?(?:여\s?)?(?:[명원개건년월일회배번곳대종권편차평톤%]|달러|퍼센트|가구|가지|시간|이상|이하|\W|$))"
)
_UNITS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_SMALL = {word: number for number, word in enumerate(_UNITS.split(), 1)}
_WORD = re.compile(rf"\b({'|'.join(_SMALL)})(?: ({'|'.join(_WORDS)}))?\b", re.IGNORECASE)
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
    text = _NO_NUMBER.sub(lambda found: " " * len(found[0]), _of_articles(_plain(text)))
    readings = (read_number(text[start:end]) for start, end in _spans(_INSIDE, text))
    return [reading.value for reading in readings if reading is not None]


def number_spans(text: str) -> list[tuple[int, int]]:
    """Return where the numbers of a text stand, each with its unit word and percent sign."""
    return list(_spans(_MEASURED, _of_articles(text)))


def _spans(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """Give where numbers stand; what together is none, as 3만 5만, is several."""
    for found in pattern.finditer(text):
        start, whole = found.start(), found[0].rstrip()
        if " " not in whole or read_number(whole) is not None:
            yield start, start + len(whole)
            continue
        for part in re.finditer(r"\S+", whole):
            yield start + part.start(), start + part.end()


def spelled_numbers(text: str) -> list[Number]:
    """Return the numbers that a text may spell in words: 오천만 원, 백만 명, three million, twelve.

    Some are of other words: whoever compares with them says that a number may stand there.
    """
    found: list[Number] = []
    for match in _SPELLED.finditer(folded(text)):
        written = re.sub("[일이삼사오육칠팔구]", lambda m: str(_DIGITS[m[0]]), match[1].strip())
        # Ten is written without a one before it.
        reading = read_number(re.sub(r"(?<!\d)(?<![십백천])(?=[십백천만억조])", "1", written))
        found += [reading.value] if reading is not None else []
    for match in _WORD.finditer(text):
        scale = _WORDS.get((match[2] or "").lower(), 0)
        found.append(Decimal(_SMALL[match[1].lower()]).scaleb(scale))
    return found


def date_numbers(text: str) -> list[Number]:
    """Return the numbers in dates, times and ratios: 2022.1.1, '23.12월, 10:30, 1/3, 3분의 1.

    Of a year that is cut both that it may be.
    """
    text = folded(text)
    found: list[Number] = []
    for match in _DATED.finditer(text):
        found += [Decimal(digits) for digits in re.findall(r"\d+", match[0])]
        if match["short"]:
            found += [Decimal(century + int(match["short"])) for century in (1900, 2000)]
    for match in _SHARE.finditer(text):
        found += [_ratio(int(match[2]), int(match[1]))] if int(match[1]) else []
    return found


def _of_articles(text: str) -> str:
    """Return a text of the same length in which numbers of articles are no trillions."""
    return _ARTICLE.sub(lambda found: f"{found[0][:-1]};", text) if "조" in text else text


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
    after = (found["after"] or "").lower()
    after = "%" if after in ("percent", "퍼센트", "パーセント") else after
    if found["before"] and after:
        return None
    doubtful = re.match(r"0\d", body) or re.fullmatch(r"\d+ \d+", found["body"])
    return Reading(value, found["before"] or after, sure=doubtful is None)


def _counted(found: re.Match[str]) -> Reading | None:
    """Return a number of parts, each of which is smaller than what the one before it counts."""
    total, group = Decimal(0), Decimal(0)
    large, small = Decimal("Infinity"), Decimal("Infinity")
    for digits, scales in [*_COUNT.findall(found["parts"]), (found["rest"] or "0", "")]:
        counts = [Decimal(10) ** _SCALES[scale] for scale in scales]
        inner = math.prod(c for c, s in zip(counts, scales, strict=True) if s not in _LARGE)
        outer = math.prod(c for c, s in zip(counts, scales, strict=True) if s in _LARGE)
        part = Decimal(digits.replace(",", "") or "0") * inner
        if part >= small or (group + part) * outer >= large:
            return None
        group, small = group + part, Decimal(inner)
        if outer > 1:
            total, large = total + group * outer, Decimal(outer)
            group, small = Decimal(0), Decimal("Infinity")
    total += group
    unit = found["before"].lower()
    return Reading(-total if found["sign"] == "-" else total, unit)


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
