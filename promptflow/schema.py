"""JSON Schemas that a small model can finish: limits for what has none, and what they cost.

``bounded`` inlines references, gives every string, number and array a limit, and drops keywords
that the constraint engine lacks where the parser checks nothing more. ``tokens`` is how many tokens
a value can take. Knows schemas alone: neither fields, nor models, nor prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pydantic_core

from promptflow.errors import UnsupportedType

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """Default limits: characters of a string, items of an array, levels of recursion.

    Integers have at most 15 digits and numbers 4 decimals. A limit that the type states wins.
    """

    string: int = 200
    items: int = 16
    depth: int = 3


TIGHTER = (
    Limits(),
    Limits(120, 12),
    Limits(120, 8, 2),
    Limits(80, 6, 2),
    Limits(60, 4, 2),
)
"""Tried in this order until a value fits its budget of tokens."""

KEY = 40  # characters of a key that the model chooses
ENTRIES = 8  # entries of such an object that are counted; the engine cannot limit them
MAX_INTEGER = 10**15 - 1
STEP = 0.0001

_DIGITS = r"-?(0|[1-9][0-9]{0,14})"
_DAY = (
    r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_LEAP = r"([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29"
_DATE = rf"([1-9][0-9]{{3}}-{_DAY}|{_LEAP})"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"

# llguidance's own date formats admit 2023-02-29 and the year 0, which Python's dates refuse.
FORMATS = {
    "integer": _DIGITS,
    "number": _DIGITS + r"(\.[0-9]{1,6})?",
    "decimal": _DIGITS + r"(\.[0-9]{1,12})?",
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": r"P([0-9]{1,4}D|T[0-9]{1,4}[HMS])",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": rf"{_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}",
}
"""Text that Python's parser of the format always accepts, as patterns over the whole text."""

_FORMAT_OF = {f"^({pattern})$": name for name, pattern in FORMATS.items()}
_PLAIN_FORMATS = {"path", "file-path", "directory-path", "password", "json-string"}
_DROPPED = {"title", "default", "examples", "description", "discriminator", "uniqueItems", "$defs"}
_SCALAR = [{"type": "string"}, {"type": "number"}, {"type": "boolean"}, {"type": "null"}]
_ANYTHING: Schema = {"anyOf": [*_SCALAR, {"type": "array", "items": {"anyOf": _SCALAR}}]}


def bounded(schema: Mapping[str, Any], where: str, budget: int) -> tuple[Schema, int]:
    """Return the schema under the widest limits that fit ``budget`` tokens, and its tokens.

    Limits are chosen at one token a character; of what the budget then leaves, text has up to four
    a character, which some scripts need in a small vocabulary. Where even the tightest limits do
    not fit, the type's own are larger, and they win. Raises UnsupportedType naming ``where``.
    """
    made: Schema | None = None
    cost = 0
    for limits in TIGHTER:
        made = _Bounding(schema.get("$defs", {}), where, limits).visit(schema, ())
        if made is None:
            raise UnsupportedType(f"{where}: its values contain themselves without end")
        if (cost := tokens(made)) <= budget:
            break
    assert made is not None
    return made, max(cost, min(tokens(made, each=4), budget))


@dataclass(frozen=True, slots=True)
class _Bounding:
    definitions: Mapping[str, Any]
    where: str
    limits: Limits

    def visit(self, schema: Any, seen: tuple[str, ...]) -> Schema | None:
        """Return the bounded schema, or None where it has no finite value."""
        if schema is True or schema == {}:
            schema = _ANYTHING
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[-1]
            if seen.count(name) >= self.limits.depth:
                return None
            return self.visit(self.definitions[name], (*seen, name))
        for arms in ("anyOf", "oneOf"):
            if arms in schema:
                return self._any_of(schema[arms], seen)
        if "allOf" in schema and len(schema["allOf"]) == 1:
            return self.visit(schema["allOf"][0], seen)
        if "enum" in schema or "const" in schema:
            return {k: schema[k] for k in ("enum", "const") if k in schema}
        kind = schema.get("type")
        visitor = getattr(self, f"_{kind}", None)
        if visitor is None:
            shown = {k: v for k, v in schema.items() if k not in _DROPPED} or "anything at all"
            raise UnsupportedType(f"{self.where}: no constraint for a value of {shown}")
        made: Schema | None = visitor(schema, seen)
        return made

    def _any_of(self, arms: list[Any], seen: tuple[str, ...]) -> Schema | None:
        if any(arm.get("type") in ("number", "integer") for arm in arms):
            # Decimal: a number, or a string under a pattern that no engine can follow.
            arms = [arm for arm in arms if "(?" not in arm.get("pattern", "")]
        made = [arm for arm in (self.visit(arm, seen) for arm in arms) if arm is not None]
        return {"anyOf": made} if made else None

    def _string(self, schema: Mapping[str, Any], _: tuple[str, ...]) -> Schema:
        form = schema.get("format")
        if form in FORMATS:
            return {"type": "string", "pattern": f"^({FORMATS[form]})$"}
        if form is not None and form not in _PLAIN_FORMATS:
            raise UnsupportedType(
                f"{self.where}: text of the format {form!r} cannot be constrained; "
                "use str, or str(pattern=...)"
            )
        low = schema.get("minLength", 0)
        made: Schema = {"type": "string", "maxLength": max(self.limits.string, low)}
        made |= {k: schema[k] for k in ("minLength", "maxLength", "pattern") if k in schema}
        if "(?" in made.get("pattern", "").replace("(?:", ""):
            raise UnsupportedType(
                f"{self.where}: the pattern {made['pattern']!r} looks around or behind; "
                "write it without (?=...), (?!...), (?<...)"
            )
        return made

    def _integer(self, schema: Mapping[str, Any], _: tuple[str, ...]) -> Schema:
        return {**_limits(schema), "type": "integer"}

    def _number(self, schema: Mapping[str, Any], _: tuple[str, ...]) -> Schema:
        return {"multipleOf": STEP, **_limits(schema), "type": "number"}

    def _boolean(self, *_: Any) -> Schema:
        return {"type": "boolean"}

    def _null(self, *_: Any) -> Schema:
        return {"type": "null"}

    def _array(self, schema: Mapping[str, Any], seen: tuple[str, ...]) -> Schema | None:
        first = [self.visit(item, seen) for item in schema.get("prefixItems", [])]
        if None in first:
            return None
        low = schema.get("minItems", 0)
        high = schema.get("maxItems", max(self.limits.items, low))
        rest = self.visit(schema.get("items", {}), seen) if high > len(first) else None
        if rest is None:
            high = len(first)
        if low > high:
            return None
        made: Schema = {"type": "array", "minItems": low, "maxItems": high}
        if first:
            made["prefixItems"] = first
        return made | {"items": rest if rest is not None else False}

    def _object(self, schema: Mapping[str, Any], seen: tuple[str, ...]) -> Schema | None:
        required = list(schema.get("required", ()))
        fields = {n: self.visit(s, seen) for n, s in schema.get("properties", {}).items()}
        if any(fields[name] is None for name in required):
            return None
        extra = schema.get("additionalProperties", not fields)
        patterns = schema.get("patternProperties") or {f"^.{{1,{KEY}}}$": extra}
        keys = schema.get("propertyNames", {}).get("enum")
        made: Schema = {"type": "object", "required": required, "additionalProperties": False}
        made["properties"] = {n: s for n, s in fields.items() if s is not None}
        if extra is False and not schema.get("patternProperties"):
            return made
        if keys:
            value = self.visit(extra, seen)
            made["properties"] |= {} if value is None else {str(key): value for key in keys}
            return made
        open_ = {p: self.visit(value, seen) for p, value in patterns.items()}
        made["patternProperties"] = {p: value for p, value in open_.items() if value is not None}
        return made


def _limits(schema: Mapping[str, Any]) -> Schema:
    names = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
    made = {name: schema[name] for name in names if name in schema}
    if "exclusiveMinimum" not in made:
        made.setdefault("minimum", -MAX_INTEGER)
    if "exclusiveMaximum" not in made:
        made.setdefault("maximum", MAX_INTEGER)
    return made


def tokens(schema: Schema | Literal[False], each: int = 1) -> int:
    """Return how many tokens a value can take, at ``each`` a character of text."""
    if schema is False:
        return 0
    if "anyOf" in schema:
        return max(tokens(arm, each) for arm in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return max(len(str(v)) for v in schema.get("enum", [schema.get("const")])) + 2
    match schema["type"]:
        case "string":
            return each * int(schema.get("maxLength", 36)) + 3
        case "integer" | "number":
            return 22
        case "array":
            first = schema.get("prefixItems", [])
            rest = schema["maxItems"] - len(first)
            item = tokens(schema["items"], each) + 1
            return 2 + sum(tokens(s, each) + 1 for s in first) + int(rest) * item
        case "object":
            fixed = sum(len(n) // 2 + 4 + tokens(s, each) for n, s in schema["properties"].items())
            others = schema.get("patternProperties", {}).values()
            free = max((tokens(s, each) for s in others), default=0)
            return 2 + fixed + (ENTRIES * (KEY // 2 + free) if free else 0)
    return 5


def sketch(schema: Any) -> str:
    """Return a short picture of the values for a prompt, such as ``{"name": text}``."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(sketch(arm) for arm in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(pydantic_core.to_json(value).decode() for value in values)
    match schema["type"]:
        case "string":
            return _FORMAT_OF.get(schema.get("pattern", ""), "text")
        case "array":
            items = [sketch(item) for item in schema.get("prefixItems", [])]
            if schema["items"]:
                items.append(f"{sketch(schema['items'])}, ...")
            return f"[{', '.join(items)}]"
        case "object":
            fields = [f'"{name}": {sketch(s)}' for name, s in schema["properties"].items()]
            fields += [f"text: {sketch(s)}" for s in schema.get("patternProperties", {}).values()]
            return f"{{{', '.join(fields)}}}"
    return str(schema["type"])


def closed(text: str) -> Any:
    """Return the value of JSON text that was cut off, without a number at its end.

    A string at its end stays as far as it goes. Raises ValueError where nothing can be read.
    """
    inside = text[:1] in ("[", "{")  # a cut number may be another number
    text = text.rstrip("0123456789.eE+-" if inside else ".eE+-").rstrip(", :")
    return pydantic_core.from_json(text, allow_partial="trailing-strings")
