"""Grammars of JSON values, for schemas as ``schema`` makes them.

A grammar holds exactly the values of a schema in compact JSON, with one space after separators,
properties in their order. References become rules, so that a type may hold itself. Knows schemas
alone.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pydantic_core

from promptflow import ranges
from promptflow.errors import UnsupportedType
from promptflow.schema import Schema, number_of, text_of

JSON_CHAR = r'([^"\\\x00-\x1f\x7f]|\\["\\nrt])'
_ESCAPES = {"x-guidance": {"json_allowed_escapes": 'nrt"\\'}}
_ONE_SPELLING = r"0|-?(0|[1-9][0-9]*)\.[0-9]*[1-9]|-?[1-9][0-9]*"
_SCALARS = {
    "anyOf": [
        {"type": "string"},
        {"x-written": "number", "x-patterns": [ranges.FLOAT], "x-kind": "number"},
        {"type": "boolean"},
        {"type": "null"},
    ]
}
_ANYTHING = (
    'any: text_any | NUMBER_ANY | "true" | "false" | "null" | list_any | object_any',
    f"text_any: %json {json.dumps({'type': 'string', **_ESCAPES})}",
    f"NUMBER_ANY: /{ranges.FLOAT}/",
    'list_any: "[" (any (", " any)*)? "]"',
    'object_any: "{" (pair_any (", " pair_any)*)? "}"',
    'pair_any: text_any ": " any',
)


def grammar_of(schema: Schema) -> str:
    """Return the Lark grammar of a schema's values. Raises UnsupportedType with the reason."""
    rules = _Rules(schema.get("$defs", {}))
    if not rules.ends(schema):
        raise UnsupportedType("its values contain themselves without end")
    start = rules.value(schema)
    return "\n".join([f"start: {start}", *rules.lines])


def text_grammar(schema: Schema) -> str:
    """Return the Lark grammar of a schema's texts as JSON strings: patterns alone may be empty."""
    rules = _Rules({})
    least = 0 if "x-patterns" in schema else 1
    start = rules.value(schema) if "x-written" in schema else rules.string(schema, least)
    return "\n".join([f"start: {start}", *rules.lines])


def terminal(patterns: Sequence[str], quoted: bool = False) -> str:
    """Return the text of all ``patterns`` at once, as a terminal of a grammar."""
    mark = '"' if quoted else ""
    return " & ".join(f"/{mark}({_slashed(pattern)}){mark}/" for pattern in patterns)


def _slashed(pattern: str) -> str:
    """Escape what would end a terminal: slashes and line breaks."""
    text = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", pattern, flags=re.DOTALL)
    return text.replace("\\\n", r"\n").replace("\n", r"\n")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _literal(value: Any) -> str:
    """Return a JSON value as it is written, as a string of a grammar."""
    return _quoted(json.dumps(value, ensure_ascii=False))


class _Rules:
    """The rules that a schema needs, each written once."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self.definitions = definitions
        self.lines: list[str] = []
        self._names: dict[str, str] = {}
        self._finite: set[str] = set()

    def named(self, prefix: str, body: str) -> str:
        """Return the name of a rule or terminal with this body."""
        key = f"{prefix}: {body}"
        if key not in self._names:
            self._names[key] = f"{prefix}{len(self._names)}"
            self.lines.append(f"{self._names[key]}: {body}")
        return self._names[key]

    def value(self, schema: Schema) -> str:
        """Return the rule of a schema's values."""
        schema = _plain(schema)
        if "$ref" in schema:
            return self.reference(schema["$ref"])
        if "anyOf" in schema:
            arms = [self.value(arm) for arm in schema["anyOf"] if self.ends(arm)]
            return self.named("r", " | ".join(dict.fromkeys(arms)))
        if "enum" in schema:
            return self.named("r", " | ".join(map(_literal, schema["enum"])))
        if "x-written" in schema:
            return self.named("T", terminal(schema["x-patterns"], schema["x-written"] == "text"))
        if "x-json" in schema:
            return self.named("r", f"%json {json.dumps(schema['x-json'])}")
        return self.of_type(schema)

    def of_type(self, schema: Schema) -> str:
        """Return the rule of what JSON Schema names a type."""
        match schema.get("type"):
            case "string":
                return self.string(schema)
            case "boolean":
                return self.named("r", '"true" | "false"')
            case "null":
                return '"null"'
            case "array":
                return self.array(schema)
            case "object":
                return self.object(schema)
            case None:
                return self.anything()
        shown = {k: v for k, v in schema.items() if k not in ("title", "default")}
        raise UnsupportedType(f"no constraint for a value of {shown}")

    def reference(self, reference: str) -> str:
        """Return the rule of a definition, which may hold itself."""
        key = f"ref: {reference}"
        if key not in self._names:
            self._names[key] = f"d{len(self._names)}"
            self.lines.append(f"{self._names[key]}: {self.value(self.resolved(reference))}")
        return self._names[key]

    def resolved(self, reference: str) -> Schema:
        """Return what a reference stands for."""
        return self.definitions[reference.rsplit("/", 1)[-1]]

    def anything(self) -> str:
        """Return the rule of any JSON value."""
        if "any" not in self._names:
            self._names["any"] = "any"
            self.lines.extend(_ANYTHING)
        return "any"

    def string(self, schema: Schema, least: int = 0) -> str:
        """Return text with its lengths and patterns, of ``least`` characters or more."""
        made: Schema = {"type": "string", **_ESCAPES}
        made |= {k: schema[k] for k in ("minLength", "maxLength") if k in schema}
        if made.get("minLength", 0) < least:
            made["minLength"] = least
        patterns = [{"pattern": f"^({p})$"} for p in schema.get("x-patterns", ())]
        made |= patterns[0] if len(patterns) == 1 else {"allOf": patterns} if patterns else {}
        return self.named("r", f"%json {json.dumps(made)}")

    def array(self, schema: Schema) -> str:
        """Return a list; one without repetitions where the type drops them."""
        first = schema.get("prefixItems", [])
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        items: Any = schema.get("items", {} if high is None or high > len(first) else False)
        if items is False or (not first and not self.ends(items)):
            high = len(first) if high is None else min(high, len(first))
        if schema.get("uniqueItems") and items in ({}, True):
            items = _SCALARS  # a list or an object is no member of a set
        if schema.get("uniqueItems") and high != 0:
            if (options := self.options(items)) is not None:
                wanted = [(_quoted(json.dumps(o, ensure_ascii=False)), False) for o in options]
                return self.sequence("[", "]", wanted, None, low, high)
            if low > 1:
                raise UnsupportedType(
                    f"a set of {low} or more different values cannot be held; use list[...], or "
                    "options to choose from"
                )
        wanted = [(self.value(item), number < low) for number, item in enumerate(first)]
        rest = None if high is not None and high <= len(first) else self.value(items)
        return self.sequence("[", "]", wanted, rest, low, high, skipping=False)

    def object(self, schema: Schema) -> str:
        """Return an object: its properties in their order, then entries under keys of a type."""
        low, high = schema.get("minProperties", 0), schema.get("maxProperties")
        required = schema.get("required", ())
        properties = {n: s for n, s in schema.get("properties", {}).items() if self.ends(s)}
        wanted = [
            (self.named("r", f"{_literal(name)} {_quoted(': ')} {self.value(s)}"), name in required)
            for name, s in properties.items()
        ]
        extra, keys = schema.get("additionalProperties", "x-values" in schema), schema.get("x-keys")
        values: Any = schema.get("x-values", {} if extra is True else extra)
        if values is False or not self.ends(values):
            return self.sequence("{", "}", wanted, None, low, high)
        if keys is not None and (options := self.options(keys)) is not None:
            value = self.value(values)
            wanted += [(f"{_literal(_key(o))} {_quoted(': ')} {value}", False) for o in options]
            return self.sequence("{", "}", wanted, None, low, high)
        key = self.other_key(properties) if properties else self.key(keys or {"type": "string"})
        pair = self.named("r", f"{key} {_quoted(': ')} {self.value(values)}")
        return self.sequence("{", "}", wanted, pair, low, high)

    def other_key(self, properties: Iterable[str]) -> str:
        """Return a key that is none of an object's own properties."""
        own = "|".join(re.escape(json.dumps(name)[1:-1]) for name in properties)
        return self.named("T", f'/"({JSON_CHAR})+"/ & ~/"({_slashed(own)})"/')

    def key(self, schema: Schema) -> str:
        """Return a key of a dictionary, which JSON writes as text."""
        schema = _plain(schema)
        if "$ref" in schema:
            return self.key(self.resolved(schema["$ref"]))
        if "anyOf" in schema:
            return self.named("r", " | ".join(self.key(arm) for arm in schema["anyOf"]))
        if (options := self.options(schema)) is not None:
            return self.named("r", " | ".join(_literal(_key(option)) for option in options))
        if "x-written" in schema:
            # One spelling of each number: two keys are two values.
            once = [_ONE_SPELLING] if schema["x-kind"] in ("number", "decimal") else []
            return self.named("T", terminal([*schema["x-patterns"], *once], quoted=True))
        if schema.get("type") in ("string", None) and "x-json" not in schema:
            return self.string(schema, 1)
        raise UnsupportedType("its keys cannot be held; use text, numbers, dates or options")

    def options(self, schema: Any) -> list[Any] | None:
        """Return the values of a schema of options, or None."""
        schema = _plain(schema)
        if "$ref" in schema:
            return self.options(self.resolved(schema["$ref"]))
        if schema.get("type") == "boolean":
            return [True, False]
        found: list[Any] | None = schema.get("enum")
        return found

    def sequence(
        self,
        opening: str,
        closing: str,
        wanted: Sequence[tuple[str, bool]],
        rest: str | None,
        low: int,
        high: int | None,
        skipping: bool = True,
    ) -> str:
        """Return ``wanted`` in order, each with whether it must be there, then any of ``rest``.

        There are ``low`` to ``high`` of all. Without ``skipping`` what is left out ends it.
        """
        counted = low if high is None else max(low, high)

        @functools.cache
        def tail(place: int, count: int) -> str | None:
            """Return what follows ``count`` of them; None where the rest cannot be right."""
            left = len(wanted) - place
            if rest is None and count + left < low:
                return None
            if place == len(wanted):
                more = None if high is None else high - count
                return self.rest(rest, bool(count), max(0, low - count), more)
            arms: list[str] = []
            body, needed = wanted[place]
            after = tail(place + 1, min(count + 1, max(counted, 1)))
            if (high is None or count < high) and after is not None:
                comma = f"{_quoted(', ')} " if count else ""
                arms.append(f"{comma}{body} {after}")
            if not needed and not skipping and count >= low:
                arms.append('""')
            elif not needed and skipping and (after := tail(place + 1, count)) is not None:
                arms.append(after)
            return self.named("r", " | ".join(arms)) if arms else None

        if high == 0:
            return self.named("r", f"{_quoted(opening + closing)}")
        if (inside := tail(0, 0)) is None:
            raise UnsupportedType(f"it has no value of {low} or more entries")
        return self.named("r", f"{_quoted(opening)} {inside} {_quoted(closing)}")

    def rest(self, entry: str | None, comma: bool, low: int, high: int | None) -> str:
        """Return ``low`` to ``high`` more entries, the first after a comma."""
        if entry is None or high == 0:
            return '""'
        more = f"({_quoted(', ')} {entry})"
        if comma:
            return self.named("r", more + _times(low, high))
        then = more + _times(max(0, low - 1), None if high is None else high - 1)
        some = f"{entry} {then}" if high != 1 else entry
        return self.named("r", some if low else f'{some} | ""')

    def ends(self, schema: Any, seen: tuple[str, ...] = ()) -> bool:
        """Return whether a schema has a finite value."""
        schema = _plain(schema)
        if schema is False:
            return False
        if "$ref" in schema:
            name = schema["$ref"]
            if name in self._finite:
                return True
            if name in seen or not self.ends(self.resolved(name), (*seen, name)):
                return False
            self._finite.add(name)
            return True
        if "anyOf" in schema:
            return any(self.ends(arm, seen) for arm in schema["anyOf"])
        if schema.get("type") == "array" and schema.get("minItems", 0):
            first = schema.get("prefixItems", [])[: schema["minItems"]]
            more = [schema.get("items", {})] if schema["minItems"] > len(first) else []
            return all(self.ends(item, seen) for item in [*first, *more])
        if schema.get("type") == "object":
            properties = schema.get("properties", {})
            needed = [properties[name] for name in schema.get("required", ())]
            needed += [schema["x-values"]] if schema.get("minProperties") else []
            return all(self.ends(part, seen) for part in needed)
        return True


def _plain(schema: Any) -> Any:
    """Return a schema with one word for one thing."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        return schema
    if "oneOf" in schema:
        schema = {**schema, "anyOf": schema["oneOf"]}
    if len(schema.get("allOf", ())) == 1:
        return _plain(schema["allOf"][0])
    if "const" in schema:
        return {**schema, "enum": [schema["const"]]}
    kind = schema.get("type")
    if isinstance(kind, list):
        return {"anyOf": [{**schema, "type": one} for one in kind]}
    if {"x-written", "x-json", "enum"} & set(schema):
        return schema
    if kind in ("integer", "number"):
        return number_of(schema)
    return text_of(schema) if kind == "string" else schema


def _key(option: Any) -> str:
    return option if isinstance(option, str) else json.dumps(option)


def _times(low: int, high: int | None) -> str:
    return "*" if (low, high) == (0, None) else f"{{{low},{'' if high is None else high}}}"


def longest(schema: Schema, definitions: Mapping[str, Schema]) -> int | None:
    """Return how many bytes a value can take, None where nothing limits it."""
    schema = _plain(schema)
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        others = {n: s for n, s in definitions.items() if n != name}
        return longest(definitions[name], others) if name in definitions else None
    if "anyOf" in schema:
        return _most([longest(arm, definitions) for arm in schema["anyOf"]], max)
    if "enum" in schema:
        return max(len(json.dumps(value)) for value in schema["enum"])
    if "x-most" in schema:
        return int(schema["x-most"]) + 2
    match schema.get("type"):
        case "string" if "maxLength" in schema:
            return 4 * int(schema["maxLength"]) + 2
        case "boolean" | "null":
            return 5
        case "array" if "maxItems" in schema or schema.get("items") is False:
            first = schema.get("prefixItems", [])
            rest = schema.get("maxItems", len(first)) - len(first)
            found = [longest(item, definitions) for item in first]
            if rest > 0:
                item = longest(schema.get("items", {}), definitions)
                found.append(None if item is None else rest * (item + 2))
            return _most([2, 2 * len(first), *found], sum)
        case "object" if "x-keys" not in schema and not schema.get("additionalProperties"):
            properties = schema.get("properties", {})
            names = sum(len(json.dumps(name)) + 4 for name in properties)
            return _most([2 + names, *(longest(s, definitions) for s in properties.values())], sum)
    return None


def _most(found: list[int | None], how: Any) -> int | None:
    return None if None in found else how(found)


def sketch(schema: Schema, definitions: Mapping[str, Schema], seen: tuple[str, ...] = ()) -> str:
    """Return a short picture of the values for a prompt, such as ``{"name": text}``."""
    schema = _plain(schema)
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return "..." if name in seen else sketch(definitions[name], definitions, (*seen, name))
    if "anyOf" in schema:
        arms = (sketch(arm, definitions, seen) for arm in schema["anyOf"])
        return " or ".join(dict.fromkeys(arms))
    if "enum" in schema:
        return " or ".join(pydantic_core.to_json(value).decode() for value in schema["enum"])
    if "x-kind" in schema:
        return str(schema["x-kind"])
    match schema.get("type"):
        case "string":
            return "text"
        case "array":
            items = [sketch(item, definitions, seen) for item in schema.get("prefixItems", [])]
            if schema.get("items", not items) is not False:
                items.append(f"{sketch(schema.get('items', {}), definitions, seen)}, ...")
            return f"[{', '.join(items)}]"
        case "object":
            shown = schema.get("properties", {})
            fields = [f'"{n}": {sketch(s, definitions, seen)}' for n, s in shown.items()]
            values: Any = schema.get("x-values", schema.get("additionalProperties", not shown))
            if values is not False:
                key = sketch(schema.get("x-keys") or {"type": "string"}, definitions, seen)
                values = {} if values is True else values
                fields.append(f"{key}: {sketch(values, definitions, seen)}")
            return f"{{{', '.join(fields)}}}"
    return str(schema.get("type", "any value"))
