"""Types as JSON Schemas in which every value that can be written is one that pydantic reads.

Beside JSON Schema's own words these carry ours: ``x-written`` (``text`` within quotes, or
``number`` without) under all of ``x-patterns``, with its name ``x-kind``; ``x-json``, a schema that
the engine reads itself; ``x-keys`` and ``x-values`` of a dictionary. ``grammar`` makes a grammar of
them. Knows types alone: neither fields, nor models, nor prompts.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from decimal import Decimal, localcontext
from math import frexp, inf, nextafter
from typing import Any, NoReturn

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from promptflow import ranges
from promptflow.errors import UnsupportedType
from promptflow.patterns import PatternRefused, translated

Schema = dict[str, Any]

_DAY = (
    r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)-02-29"
DATE = f"({_YEAR}-{_DAY}|{_LEAP})"
_HOUR = "([01][0-9]|2[0-3]):[0-5][0-9]"
_FRACTION = r"(\.[0-9]{1,6})?"
_ZONE = f"(Z|[+-]{_HOUR})"
_CLOCK = f"{_HOUR}(:[0-5][0-9]{_FRACTION})?"
_SECONDS = f"{_HOUR}:[0-5][0-9]{_FRACTION}"
_ODD = (-570, -210, -150, 210, 270, 330, 345, 390, 525, 570, 630, 765, 825)
_OFFSETS = (*range(-720, 841, 60), *_ODD)
"""Offsets of zones in use, in minutes."""
_N = "[0-9]{1,6}"
_TIMES = rf"T({_N}H({_N}M)?({_N}{_FRACTION}S)?|{_N}M({_N}{_FRACTION}S)?|{_N}{_FRACTION}S)"
_DURATION = f"-?P({_N}W|{_N}D({_TIMES})?|{_TIMES})"
_HEX = "[0-9a-fA-F]"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}"
_GROUP = "[0-9a-f]{1,4}"
_IPV6 = (
    f"(({_GROUP}:){{7}}{_GROUP}|({_GROUP}:){{1,7}}:|::|:(:{_GROUP}){{1,7}}"
    + "".join(f"|({_GROUP}:){{{n}}}(:{_GROUP}){{1,{7 - n}}}" for n in range(1, 7))
    + ")"
)
_LABEL = "[a-zA-Z]([a-zA-Z0-9]|-[a-zA-Z0-9]){0,30}"
_HOST = rf"{_LABEL}(\.{_LABEL}){{0,8}}"
_PORT = "(:([1-9][0-9]{0,3}|[1-5][0-9]{4}))?"
_PATH = r"/[^\x00-\x20\x22<>\x5c\^`{|}\x7f?#]*"
_URL = rf"{_HOST}{_PORT}({_PATH})?(\?[^\x00-\x20\x22<>\x7f#\x5c]*)?"
_URL += r"(#[^\x00-\x20\x22<>`\x7f\x5c]*)?"
_BASE64 = "([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})"
_PART = r"(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?"

_FORMATS = {
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipv4interface": f"{_IPV4}(/(3[0-2]|[12]?[0-9]))?",
    "ipvanyaddress": f"({_IPV4}|{_IPV6})",
    "base64": _BASE64,
    "base64url": _BASE64.replace("+/", "_-"),
    "ipv6interface": f"{_IPV6}(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?",
}
_PLAIN_FORMATS = {"path", "password", "binary"}
_BYTE_SIZE = r"^\s*(\d*\.?\d+)\s*(\w+)?"  # as pydantic describes a ByteSize
_UNIT = "([KMGTP]i?)?B"


def schema_of(adapter: TypeAdapter[Any], by_alias: bool = True) -> Schema:
    """Return the schema of a type. Raises UnsupportedType with the reason."""
    return adapter.json_schema(schema_generator=_Types, by_alias=by_alias)


def _refuse(reason: str) -> NoReturn:
    raise UnsupportedType(reason)


def _leaf(kind: str, *patterns: str, written: str = "text", most: int = 64) -> Schema:
    return {"x-written": written, "x-patterns": list(patterns), "x-kind": kind, "x-most": most}


class _Types(GenerateJsonSchema):
    """Describes what core schemas validate, not only what JSON Schema has words for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}

    def int_schema(self, schema: Any) -> Schema:
        """Return an integer between its limits."""
        low, high = schema.get("ge"), schema.get("le")
        if (above := schema.get("gt")) is not None:
            low = above + 1 if low is None else max(low, above + 1)
        if (below := schema.get("lt")) is not None:
            high = below - 1 if high is None else min(high, below - 1)
        self._ordered(low, high)
        step = schema.get("multiple_of")
        limits = {"x-low": low, "x-high": high}
        most = max(len(str(limit)) for limit in (low, high, 10**ranges.DIGITS) if limit is not None)
        if step is None:
            found = [ranges.integers(low, high)]
        elif (patterns := ranges.multiples(abs(step), low, high)) is not None:
            found = patterns
        elif any(abs(limit or 0) >= 2**63 for limit in (low, high, step)):
            _refuse(f"multiples of {step} with limits of more than 18 digits cannot be held")
        else:
            bounds = {"minimum": low, "maximum": high, "multipleOf": abs(step)}
            whole = {k: v for k, v in bounds.items() if v is not None}
            return {"x-json": {"type": "integer", **whole}, "x-kind": "integer"} | limits
        return _leaf("integer", *found, written="number", most=most) | limits

    def float_schema(self, schema: Any) -> Schema:
        """Return a float between its limits."""
        low, high = schema.get("ge"), schema.get("le")
        low = None if low == -inf else low
        high = None if high == inf else high
        if (above := schema.get("gt")) not in (None, -inf):
            low = max(nextafter(above, inf), above if low is None else low)
        if (below := schema.get("lt")) not in (None, inf):
            high = min(nextafter(below, -inf), below if high is None else high)
        self._ordered(low, high)
        limits = {"x-low": schema.get("ge", above), "x-high": schema.get("le", below)}
        step = schema.get("multiple_of")
        if step is None:
            return _leaf("number", ranges.floats(low, high), written="number", most=90) | limits
        places = -int(Decimal(repr(float(step))).normalize().as_tuple().exponent)
        if step == 10.0**-places and places >= 0:
            found = ranges.decimals(_exact(low), _exact(high), places)
            return _leaf("number", found, written="number", most=90) | limits
        exact = all(n is not None and abs(n) <= 10**15 for n in (low, high))
        if frexp(step)[0] != 0.5 and not exact:  # a large float is no multiple of it
            _refuse(f"multiples of {step} need limits of 15 digits at most; give both, or use int")
        bounds = {"minimum": low, "maximum": high, "multipleOf": step}
        whole = {k: v for k, v in bounds.items() if v is not None}
        return {"x-json": {"type": "number", **whole}, "x-kind": "number"} | limits

    def decimal_schema(self, schema: Any) -> Schema:
        """Return a decimal, which is written as text so that no digit is lost."""
        digits, places = schema.get("max_digits"), schema.get("decimal_places")
        if (step := schema.get("multiple_of")) is not None:
            if step != (unit := Decimal(step).normalize()) or unit.as_tuple().digits != (1,):
                _refuse(f"multiples of {step} cannot be held; use a power of ten, or no limit")
            places = min(
                -int(unit.as_tuple().exponent), ranges.DIGITS if places is None else places
            )
        limits = {name: schema.get(name) for name in ("ge", "gt", "le", "lt")}
        given = {n: Decimal(str(v)) for n, v in limits.items() if v is not None}
        low, high = given.get("ge", given.get("gt")), given.get("le", given.get("lt"))
        shown = {
            "x-low": None if low is None else str(low),
            "x-high": None if high is None else str(high),
        }
        if digits is None and places is None and given in ({}, {"ge": 0}):
            return _leaf("decimal", ranges.DECIMAL.removeprefix("-?" if given else ""), most=90)
        if places is not None and places < 0:
            _refuse(f"multiples of {step} cannot be held; use a limit of at most 1")
        kept = ranges.DIGITS if places is None else places
        with localcontext(prec=400):
            unit = Decimal(1).scaleb(-kept)
            lows = [n for n in (given.get("ge"), _plus(given.get("gt"), unit)) if n is not None]
            highs = [n for n in (given.get("le"), _plus(given.get("lt"), -unit)) if n is not None]
        low, high = max(lows, default=None), min(highs, default=None)
        self._ordered(low, high)
        found = [ranges.decimals(low, high, kept)]
        if digits is not None:
            found.append(_digits(digits, places))
        return _leaf("decimal", *found, most=90) | shown

    def str_schema(self, schema: Any) -> Schema:
        """Return text with its lengths and its pattern."""
        if schema.get("pattern") == _BYTE_SIZE:
            return _leaf("size in bytes", rf"[0-9]{{1,12}}(\.[0-9]{{1,3}})? ?{_UNIT}", most=24)
        own = self._config
        lengths = {
            "minLength": schema.get("min_length", own.str_min_length or None),
            "maxLength": schema.get("max_length", own.str_max_length),
        }
        made: Schema = {"type": "string"}
        made |= {name: length for name, length in lengths.items() if length is not None}
        self._ordered(made.get("minLength"), made.get("maxLength"))
        patterns = []
        if (pattern := schema.get("pattern")) is not None:
            try:
                patterns.append(translated(pattern))
            except PatternRefused as error:
                _refuse(f"the pattern {getattr(pattern, 'pattern', pattern)!r} is refused: {error}")
        if schema.get("strip_whitespace") or self._config.str_strip_whitespace:
            patterns.append(r"([^\s\x1c-\x1f]((?s:.)*[^\s\x1c-\x1f])?)?")
        return made | ({"x-patterns": patterns} if patterns else {})

    def bytes_schema(self, schema: Any) -> Schema:
        """Return text for bytes as the type's configuration reads it."""
        if schema.get("min_length") or schema.get("max_length"):
            _refuse("lengths of bytes cannot be held, which count no characters; use str")
        mode = self._config.val_json_bytes
        if mode == "utf8":
            return {"type": "string"}
        return _leaf(mode, "([0-9a-f]{2})*" if mode == "hex" else _BASE64, most=10**6)

    def date_schema(self, schema: Any) -> Schema:
        """Return a day between its limits."""
        day = datetime.timedelta(days=1)
        today = datetime.datetime.now(datetime.UTC).date()
        lows = [schema.get("ge"), _later(schema.get("gt"), day)]
        highs = [schema.get("le"), _later(schema.get("lt"), -day)]
        lows.append(today + day if schema.get("now_op") == "future" else None)
        highs.append(today - day if schema.get("now_op") == "past" else None)
        return _leaf("date", DATE, *self._days(lows, highs), most=10) | _told(schema)

    def _days(self, lows: Sequence[Any], highs: Sequence[Any]) -> list[str]:
        low = max((n for n in lows if n is not None), default=datetime.date.min)
        high = min((n for n in highs if n is not None), default=datetime.date.max)
        self._ordered(low, high)
        if (low, high) == (datetime.date.min, datetime.date.max):
            return []
        return [ranges.between(low.isoformat(), high.isoformat())]

    def time_schema(self, schema: Any) -> Schema:
        """Return a time of day, with a zone where one may stand."""
        if not any(schema.get(name) is not None for name in ("ge", "gt", "le", "lt")):
            return _leaf("time", _CLOCK + self._zone(schema), most=24)
        if schema.get("tz_constraint") == "aware":
            _refuse("limits on a time with a zone cannot be held; leave them out")
        moments = _moments(*self._limits(schema, datetime.time))
        return _leaf("time", _SECONDS, moments, most=16) | _told(schema)

    def datetime_schema(self, schema: Any) -> Schema:
        """Return a moment, with a zone where one may stand."""
        today = datetime.datetime.now(datetime.UTC).date()
        found = [schema.get(name) for name in ("ge", "gt", "le", "lt")]
        plain = f"{DATE}[T ]{_CLOCK}"
        if any(n is not None and n.tzinfo for n in found):
            return _leaf("date-time", plain + _ZONE, self._zoned(schema), most=33) | _told(schema)
        if any(n is not None for n in found):
            if schema.get("tz_constraint") == "aware":
                _refuse("its limits have no zone, and its values have one; give the limits a zone")
            moments = _moments(*self._limits(schema, datetime.datetime))
            return _leaf("date-time", f"{DATE}T{_SECONDS}", moments, most=26) | _told(schema)
        tail = "(?s:.)*"
        past, future = (schema.get("now_op") == op for op in ("past", "future"))
        days = self._days([today if future else None], [today if past else None])
        return _leaf("date-time", plain + self._zone(schema), *(d + tail for d in days), most=33)

    def _zone(self, schema: Any) -> str:
        zone = schema.get("tz_constraint")
        if isinstance(zone, int):
            _refuse(f"a fixed offset of {zone} seconds cannot be held; use AwareDatetime")
        return {"aware": _ZONE, "naive": "", None: f"{_ZONE}?"}[zone]

    def _limits(self, schema: Any, kind: Any) -> tuple[Any, Any]:
        """Return the first and the last whole second between limits."""
        second = datetime.timedelta(seconds=1)
        above, below = _seconds(schema.get("gt"), False), _seconds(schema.get("lt"), True)
        lows = [_seconds(schema.get("ge"), True), _later(above, second)]
        highs = [_seconds(schema.get("le"), False), _later(below, -second)]
        low = max((n for n in lows if n is not None), default=None)
        high = min((n for n in highs if n is not None), default=None)
        self._ordered(low, high)
        if any(n is not None and n.tzinfo for n in (low, high)):
            return low, high
        first, last = _seconds(kind.min, False), _seconds(kind.max, False)
        return first if low is None else low, last if high is None else high

    def _zoned(self, schema: Any) -> str:
        """Return moments between limits that have a zone.

        Two days away from a limit any zone may stand, nearer those that are in use.
        """
        two = datetime.timedelta(days=2)
        low, high = (
            None if n is None else n.astimezone(datetime.UTC).replace(tzinfo=None)
            for n in self._limits(schema, datetime.datetime)
        )
        first = datetime.date.min if low is None else low.date() + two
        last = datetime.date.max if high is None else high.date() - two
        parts = []
        if first <= last:
            days = ranges.between(first.isoformat(), last.isoformat())
            parts.append(f"{days}[T ]{_CLOCK}{_ZONE}")
        midnight = datetime.time()
        for minutes in _OFFSETS:
            by = datetime.timedelta(minutes=minutes)
            sign, (hour, rest) = "-" if minutes < 0 else r"\+", divmod(abs(minutes), 60)
            zone = f"{sign}{hour:02}:{rest:02}" if minutes else r"(Z|[+-]00:00)"
            if first > last:
                parts.append(_moments(_later(low, by), _later(high, by)) + zone)
                continue
            if low is not None:
                end = datetime.datetime.combine(first, midnight) - datetime.timedelta(seconds=1)
                parts.append(_moments(low + by, end) + zone)
            if high is not None:
                begin = datetime.datetime.combine(last, midnight) + two / 2
                parts.append(_moments(begin, high + by) + zone)
        return ranges.either(parts)

    def timedelta_schema(self, schema: Any) -> Schema:
        """Return a duration as ISO 8601 writes it, without years and months."""
        if any(schema.get(name) is not None for name in ("ge", "gt", "le", "lt")):
            _refuse("limits on a duration cannot be held; leave them out, or use seconds as int")
        return _leaf("duration", _DURATION, most=40)

    def uuid_schema(self, schema: Any) -> Schema:
        """Return a UUID of its version."""
        version = schema.get("version")
        third = (
            f"{version}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}" if version else f"{_HEX}{{4}}-{_HEX}{{4}}"
        )
        return _leaf("uuid", f"{_HEX}{{8}}-{_HEX}{{4}}-{third}-{_HEX}{{12}}", most=36)

    def url_schema(self, schema: Any) -> Schema:
        """Return a URL with a host."""
        schemes = schema.get("allowed_schemes") or ["https", "http", "ftp", "ws", "wss"]
        most = schema.get("max_length")
        if schemes == ["file"]:
            return _leaf("url", f"file://{_PATH}", most=10**6)
        found = [f"{ranges.either([re.escape(s) for s in schemes])}://{_URL}"]
        return _leaf("url", *found, *([f"(?s:.){{0,{most}}}"] if most else []), most=most or 10**6)

    def multi_host_url_schema(self, schema: Any) -> Schema:
        """Refuse it."""
        _refuse("a URL of several hosts cannot be held; use str, or AnyUrl")

    def complex_schema(self, schema: Any) -> Schema:
        """Return a complex number as Python writes it."""
        return _leaf("complex number", f"-?{_PART}([+-]{_PART}j)?", most=80)

    def fraction_schema(self, schema: Any) -> Schema:
        """Return a fraction as Python writes it."""
        if any(schema.get(name) is not None for name in ("ge", "gt", "le", "lt", "multiple_of")):
            _refuse("limits on a fraction cannot be held; leave them out")
        whole = ranges.integers()
        return _leaf("fraction", f"{whole}(/[1-9][0-9]{{0,{ranges.DIGITS - 1}}})?", most=84)

    def dict_schema(self, schema: Any) -> Schema:
        """Return a dictionary under its keys' own type."""
        made: Schema = {"type": "object", "x-values": {}, "x-keys": {"type": "string"}}
        for part in ("keys", "values"):
            if f"{part}_schema" in schema:
                made[f"x-{part}"] = self.generate_inner(schema[f"{part}_schema"])
        for theirs, ours in (("minProperties", "min_length"), ("maxProperties", "max_length")):
            if schema.get(ours) is not None:
                made[theirs] = schema[ours]
        self._ordered(made.get("minProperties"), made.get("maxProperties"))
        return made

    counter_schema = ordered_dict_schema = frozendict_schema = dict_schema

    def json_schema(self, schema: Any) -> Schema:
        """Refuse it: only a whole field may hold JSON text."""
        _refuse("text that holds JSON cannot be held within another value; use its own type there")

    def generator_schema(self, schema: Any) -> Schema:
        """Refuse it."""
        _refuse("an Iterable is checked only while it is read; use list[...]")

    def callable_schema(self, schema: Any) -> Schema:
        """Refuse it."""
        _refuse("a Callable cannot be written as text")

    def is_subclass_schema(self, schema: Any) -> Schema:
        """Refuse it."""
        _refuse("a class cannot be written as text; use its name, as a Literal")

    def is_instance_schema(self, schema: Any) -> Schema:
        """Refuse it."""
        _refuse(f"pydantic makes no {schema['cls'].__name__} of text; use a type that it reads")

    def chain_schema(self, schema: Any) -> Schema:
        """Return the first step's, and refuse what any step cannot hold."""
        steps = [self.generate_inner(step) for step in schema["steps"]]
        return steps[0]

    def _ordered(self, low: Any, high: Any) -> None:
        if low is not None and high is not None and low > high:
            _refuse(f"no value is at least {low} and at most {high}")


def text_of(schema: Schema) -> Schema:
    """Return a schema of text, with what its ``format`` means. Raises UnsupportedType."""
    form = schema.get("format")
    if form in _FORMATS:
        most = 48 if form.startswith("ip") else 10**6
        return _leaf(form, _FORMATS[form], most=most)
    if form is not None and form not in _PLAIN_FORMATS:
        _refuse(f"text of the format {form!r} cannot be held; use str, or str(pattern=...)")
    if "pattern" in schema:
        try:
            return schema | {"x-patterns": [translated(schema["pattern"])]}
        except PatternRefused as error:
            _refuse(f"the pattern {schema['pattern']!r} is refused: {error}")
    return schema


def _moments(low: Any, high: Any) -> str:
    """Return the times from ``low`` to ``high``, which are whole seconds without a zone."""
    last = _later(high, -datetime.timedelta(seconds=1)) if high > low else None
    within = [ranges.between(low.isoformat(), last.isoformat()) + _FRACTION] if last else []
    return ranges.either([*within, re.escape(high.isoformat())])


def number_of(schema: Schema) -> Schema:
    """Return a schema of numbers that a type wrote itself, as ours are. Raises UnsupportedType."""
    words = {
        "minimum": "ge",
        "exclusiveMinimum": "gt",
        "maximum": "le",
        "exclusiveMaximum": "lt",
        "multipleOf": "multiple_of",
    }
    limits = {ours: schema[theirs] for theirs, ours in words.items() if theirs in schema}
    made = _Types()
    return made.int_schema(limits) if schema["type"] == "integer" else made.float_schema(limits)


def _exact(number: float | None) -> Decimal | None:
    return None if number is None else Decimal(repr(float(number)))


def _told(schema: Any) -> Schema:
    """Return the limits that a prompt tells of days and times."""
    low, high = schema.get("ge", schema.get("gt")), schema.get("le", schema.get("lt"))
    return {
        "x-low": None if low is None else low.isoformat(),
        "x-high": None if high is None else high.isoformat(),
    }


def _plus(number: Decimal | None, more: Decimal) -> Decimal | None:
    return None if number is None else number + more


def _digits(most: int, places: int | None) -> str:
    """Return decimals with at most so many digits, zeros before the point not counted."""
    before = most if places is None else most - places
    kept = [most if places is None else min(places, most)]
    kept += [most - n if places is None else min(places, most - n) for n in range(1, before + 1)]
    parts = ["0" if not n else f"[1-9][0-9]{{{n - 1}}}" for n in range(before + 1)]
    return "-?" + ranges.either(
        [f"{p}(\\.[0-9]{{1,{k}}})?" if k else p for p, k in zip(parts, kept, strict=True)]
    )


def _later(moment: Any, by: datetime.timedelta) -> Any:
    """Return a day, time or moment moved; where that is none, as far as it goes."""
    if moment is None:
        return None
    if isinstance(moment, datetime.time):
        moved = datetime.datetime.combine(datetime.date(2000, 1, 2), moment) + by
        return moved.time() if moved.day == 2 else moment
    try:
        return moment + by
    except OverflowError:
        return moment


def _seconds(moment: Any, up: bool) -> Any:
    """Return a moment in whole seconds."""
    if moment is None or not moment.microsecond:
        return moment
    whole = moment.replace(microsecond=0)
    return _later(whole, datetime.timedelta(seconds=1)) if up else whole
