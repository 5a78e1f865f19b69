"""Dates, times and durations of texts, read as the type that a value has.

ISO 8601, what spreadsheets write, and names of months. 5/1/2024 may be two days: it is refused.
"""

from __future__ import annotations

import datetime
import re

from pydantic import TypeAdapter, ValidationError

from promptflow.errors import DataError
from promptflow.normal import folded

Moment = datetime.date | datetime.time | datetime.timedelta

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NAME = rf"(?P<month>{'|'.join(_MONTHS)})[a-z]*\.?"
_YEAR_FIRST = re.compile(r"(\d{4})\s?[-/.年년]\s?(\d{1,2})\s?[-/.月월]\s?(\d{1,2})\s?[.日일]?")
_YEAR_LAST = re.compile(r"(\d{1,2})\s?([-/.])\s?(\d{1,2})\s?\2\s?(\d{4})\.?")
_WEEKDAY, _TH, _YEAR = r"(?:[a-z]+,? )?", "(?:st|nd|rd|th)?", r"(?P<year>\d{4})"
_NAMED = (
    re.compile(rf"{_WEEKDAY}{_NAME} (?P<day>\d{{1,2}}){_TH},? {_YEAR}"),
    re.compile(rf"{_WEEKDAY}(?P<day>\d{{1,2}}){_TH}[ -]{_NAME},?[ -]{_YEAR}"),
)
_CLOCK = re.compile(r"(\d{1,2})(?::(\d\d))?(?::(\d\d(?:\.\d{1,6})?))?\s?([ap])\.?m\.?")
_BEFORE_CLOCK = re.compile(r"(?:,? |(?<=\d)T)(\d{1,2}:.*|\d{1,2} ?[ap]\.?m\.?)", re.IGNORECASE)
_DURATION: TypeAdapter[datetime.timedelta] = TypeAdapter(datetime.timedelta)


def read_moment(text: str, like: Moment) -> Moment | None:
    """Return ``text`` as the type of ``like``, or None.

    Raises DataError where it may be two days.
    """
    text = re.sub(r"(?<=\d) ?(?:UTC|GMT)$", "+00:00", folded(text).strip())
    try:
        if isinstance(like, datetime.datetime):
            return _datetime(text)
        if isinstance(like, datetime.date):
            moment = _datetime(text)
            if moment is None or moment.time() != datetime.time():
                return None
            return moment.date()
        if isinstance(like, datetime.time):
            return _time(text)
        return None if re.fullmatch(r"[-+]?[\d.]+", text) else _DURATION.validate_python(text)
    except (ValueError, ValidationError):
        return None


def same_moment(a: Moment, b: Moment) -> bool:
    """Compare two values; a datetime at midnight without a zone is its date."""
    for one, other in ((a, b), (b, a)):
        if isinstance(one, datetime.datetime) and not isinstance(other, datetime.datetime):
            midnight = one.time() == datetime.time() and one.tzinfo is None
            return midnight and one.date() == other
    return a == b


def _datetime(text: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        pass
    parts = [(text, "")]
    parts += [(text[: found.start()], found[1]) for found in _BEFORE_CLOCK.finditer(text)]
    for day, clock in parts:
        if (date := _date(day.lower())) is not None:
            time = _time(clock.strip()) if clock else datetime.time()
            return None if time is None else datetime.datetime.combine(date, time)
    return None


def _date(text: str) -> datetime.date | None:
    text = text.strip()
    if (found := _YEAR_FIRST.fullmatch(text)) is not None:
        return datetime.date(*map(int, found.groups()))
    for pattern in _NAMED:
        if (found := pattern.fullmatch(text)) is not None:
            month = _MONTHS.index(found["month"]) + 1
            return datetime.date(int(found["year"]), month, int(found["day"]))
    if (found := _YEAR_LAST.fullmatch(text)) is not None:
        first, _, second, year = found.groups()
        a, b, year = int(first), int(second), int(year)
        if a <= 12 and b <= 12 and a != b:
            raise DataError(
                f"the date {text!r} may be the day {a} of month {b} or the day {b} of month {a}; "
                f"write it as {year:04}-MM-DD"
            )
        return datetime.date(year, b, a) if b <= 12 else datetime.date(year, a, b)
    return None


def _time(text: str) -> datetime.time | None:
    if (found := _CLOCK.fullmatch(text.lower())) is not None:
        hour, half = int(found[1]), found[4]
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half == "p" else 0)
        return datetime.time.fromisoformat(f"{hour:02}:{found[2] or '00'}:{found[3] or '00'}")
    if re.match(r"\d:", text):
        text = f"0{text}"
    return datetime.time.fromisoformat(text) if ":" in text else None
