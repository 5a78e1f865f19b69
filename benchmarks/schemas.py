"""Whether constrained text is valid: outputs under 20 JSON Schemas, and under every other kind.

    python benchmarks/schemas.py [--model M] [--per-schema N] [--json]

Each schema is answered ``N`` times at temperature 1 with as many seeds, all in one batch, and every
text is checked with ``jsonschema``, formats included. Regex, choice, Lark and substring constraints
are checked by Python. ``cut`` counts texts that ``max_tokens`` ended before they were complete; a
text that is cut or invalid makes the exit status 1. The recursive schema is decoded to a depth of
3: under it alone a text may go on for ever.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jsonschema

from promptflow.engine import Engine
from promptflow.engine.request import (
    Choice,
    Completion,
    Constraint,
    Json,
    Lark,
    Regex,
    Request,
    Sampling,
    Slot,
    Substring,
    Text,
)


def record(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    """Return the schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def text(low: int, high: int, **more: Any) -> dict[str, Any]:
    return {"type": "string", "minLength": low, "maxLength": high, **more}


def between(low: float, high: float, kind: str = "integer") -> dict[str, Any]:
    return {"type": kind, "minimum": low, "maximum": high}


def listed(items: Any, low: int, high: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


def optional(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def unrolled(schema: dict[str, Any], depth: int) -> dict[str, Any]:
    """Return a schema of one recursive definition to a depth, with null at its end."""
    [name] = schema["$defs"]
    reference = json.dumps({"$ref": f"#/$defs/{name}"})
    made = json.dumps(schema["$defs"][name])
    for _ in range(depth - 1):
        made = made.replace(reference, json.dumps(schema["$defs"][name]))
    whole: dict[str, Any] = json.loads(made.replace(reference, json.dumps({"type": "null"})))
    return whole


MONEY = {"type": "number", "minimum": 0, "exclusiveMaximum": 1000, "multipleOf": 0.25}
SCHEMAS: dict[str, dict[str, Any]] = {
    "nested objects": record(
        name=text(1, 30),
        age=between(0, 120),
        address=record(street=text(1, 40), city=text(1, 20), geo=record(lat=between(-90, 90))),
    ),
    "optional properties": record(
        ["title"],
        title=text(1, 30),
        year=between(1900, 2100),
        isbn=text(10, 13),
        read=between(0, 1),
    ),
    "array of $ref": {
        "$defs": {
            "line": record(sku={"$ref": "#/$defs/sku"}, quantity=between(1, 9)),
            "sku": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
        },
        **record(lines=listed({"$ref": "#/$defs/line"}, 1, 3), total=MONEY),
    },
    "recursive $ref": {
        "$defs": {
            "node": record(
                value=between(0, 9), next={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
            )
        },
        "$ref": "#/$defs/node",
    },
    "enum of many types": {"enum": ["low", "high", 3, -1.5, None, True, [1, "a"], 'a/b\n"c\\']},
    "const": record(kind={"const": "receipt"}, version={"const": 2}, paid={"type": "boolean"}),
    "anyOf": {"anyOf": [between(0, 99), text(1, 8), {"type": "null"}, listed(between(0, 9), 1, 4)]},
    "oneOf objects by const": {
        "oneOf": [
            record(shape={"const": "circle"}, radius=between(1, 50)),
            record(shape={"const": "box"}, width=between(1, 50), height=between(1, 50)),
        ]
    },
    "allOf": {
        "allOf": [
            record(id=between(1, 999), tag=text(1, 20)),
            {"properties": {"id": {"minimum": 500}, "tag": {"maxLength": 10}}},
        ]
    },
    "integers with limits": record(
        die=between(1, 6),
        below={"type": "integer", "exclusiveMinimum": -10, "exclusiveMaximum": 0},
        even={"type": "integer", "multipleOf": 2, "minimum": 100, "maximum": 998},
    ),
    "numbers with limits": record(
        share={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        celsius={"type": "number", "minimum": -40.5, "maximum": 40.5},
        price=MONEY,
    ),
    "patterns": record(
        code={"type": "string", "pattern": "^[a-z]{3}/[0-9]+$", "maxLength": 9},
        contains={"type": "string", "pattern": "[0-9]{2}", "maxLength": 12},
        word={"type": "string", "pattern": r"^\w+( \w+){0,3}$", "maxLength": 40},
    ),
    "lengths of strings": listed(text(2, 12), 2, 4),
    "unicode": record(
        **{"größe": between(1, 3), "naïve ☃": {"enum": ["été", "日本", "😀😀", "שלום"]}},
        name=text(1, 8, pattern="^[À-ž]+$"),
    ),
    "booleans and nullables": record(
        done={"type": "boolean"},
        note={"type": ["string", "null"], "maxLength": 20},
        count=optional(between(0, 5)),
    ),
    "dates and times": record(
        day={"type": "string", "format": "date"},
        at={"type": "string", "format": "time"},
        made={"type": "string", "format": "date-time"},
    ),
    "formats": record(
        id={"type": "string", "format": "uuid"},
        host={"type": "string", "format": "ipv4"},
        mail={"type": "string", "format": "email", "maxLength": 30},
    ),
    "arrays in arrays": listed(listed(between(0, 9), 2, 2), 1, 3),
    "prefixItems": {
        "type": "array",
        "prefixItems": [{"enum": ["north", "south"]}, between(0, 359), {"type": "boolean"}],
        "items": False,
        "minItems": 2,
    },
    "keys of a pattern": {
        "type": "object",
        "patternProperties": {"^[a-z]{1,8}$": between(0, 100)},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 4,
    },
}
"""By what they are about."""

SOURCE = (
    'Ada wrote: "No 7 is prime." Then she paused — and added, in French, that été is short.\n'
    "Nobody asked why."
)
OTHERS: dict[str, tuple[Constraint, Callable[[str], bool]]] = {
    "regex": (
        Regex(r"[A-Z][a-z]{1,9}, [0-9]{1,3}(\.[0-9])?"),
        lambda t: re.fullmatch(r"[A-Z][a-z]{1,9}, [0-9]{1,3}(\.[0-9])?", t) is not None,
    ),
    "choice": (
        Choice(("no", "not", "not at all", "été")),
        {"no", "not", "not at all", "été"}.__contains__,
    ),
    "lark": (
        Lark('start: " " WORD ("+" WORD){1,3}\nWORD: /[0-9]{1,2}/'),
        lambda t: re.fullmatch(r" \d{1,2}(\+\d{1,2}){1,3}", t, re.ASCII) is not None,
    ),
    "substring": (Substring((SOURCE,)), lambda t: bool(t) and t in SOURCE),
}
ENDLESS = {"recursive $ref"}
"""Schemas under which a text may go on for ever: bounded as the types of fields are."""
MAX_TOKENS = 400


@dataclass(frozen=True)
class Result:
    """What became of one constraint's outputs."""

    name: str
    valid: int = 0
    invalid: int = 0
    cut: int = 0
    distinct: int = 0
    generated: int = 0
    forced: int = 0


COUNTS = ("valid", "invalid", "cut", "distinct", "generated", "forced")


def checker(schema: dict[str, Any]) -> Callable[[str], bool]:
    """Return whether a text is valid JSON under ``schema``, formats included."""
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )

    def is_valid(written: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(written)))
        except ValueError:
            return False

    return is_valid


def measured(name: str, made: list[Completion], is_valid: Callable[[str], bool]) -> Result:
    """Return the counts of one constraint; print what is wrong to stderr."""
    counts = {"valid": 0, "invalid": 0, "cut": 0}
    for completion in made:
        written, finish = completion.text("s"), completion.fills["s"].finish
        kind = "cut" if finish == "length" else "valid" if is_valid(written) else "invalid"
        counts[kind] += 1
        if kind != "valid":
            print(f"{name}: {kind}: {written!r}", file=sys.stderr)
    return Result(
        name,
        **counts,
        distinct=len({completion.text("s") for completion in made}),
        generated=sum(completion.usage.generated for completion in made),
        forced=sum(completion.usage.forced for completion in made),
    )


def run(engine: Any, per_schema: int) -> list[Result]:
    """Answer each constraint ``per_schema`` times; the last result has the sums."""
    constraints: dict[str, tuple[Constraint, Callable[[str], bool]]] = {}
    for name, schema in SCHEMAS.items():
        decoded = unrolled(schema, 3) if name in ENDLESS else schema
        constraints[name] = Json(json.dumps(decoded)), checker(schema)
    constraints |= OTHERS
    requests = []
    for name, (constraint, _) in constraints.items():
        prompt = Text(f"An example of {name}, for the test of a parser:")
        lead = "" if isinstance(constraint, Lark) else " "
        slot = Slot("s", constraint, MAX_TOKENS, lead=lead, sampling=Sampling(1.0))
        requests += [Request((prompt, slot), seed) for seed in range(per_schema)]
    made = iter(engine.generate(requests))
    results = [
        measured(name, list(itertools.islice(made, per_schema)), is_valid)
        for name, (_, is_valid) in constraints.items()
    ]
    sums = {name: sum(getattr(result, name) for result in results) for name in COUNTS}
    return [*results, Result("all", **sums)]


def table(model: str, results: list[Result], seconds: float) -> str:
    """Return the results as Markdown."""
    lines = [
        f"{model}, temperature 1, {seconds:.0f} s",
        "",
        "| constraint | valid | invalid | cut | distinct | generated | forced |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        lines.append(
            f"| {r.name} | {r.valid:,} | {r.invalid} | {r.cut} | {r.distinct:,} "
            f"| {r.generated:,} | {r.forced:,} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--per-schema", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with Engine(options.model) as engine:
        begun = time.perf_counter()
        results = run(engine, options.per_schema)
        seconds = time.perf_counter() - begun
    if options.json:
        rows = [asdict(result) for result in results]
        print(json.dumps({"model": options.model, "seconds": seconds, "rows": rows}, indent=2))
    else:
        print(table(options.model, results, seconds))
    sys.exit(results[-1].valid < options.per_schema * (len(results) - 1))


if __name__ == "__main__":
    main()
