"""A typed field as a value of a JSON object: how it is constrained, written and read.

What others read is the field's plain text, as in a layout that writes no JSON: texts and the names
of options stand as JSON strings, everything else is the same in both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from promptflow.engine.request import Choice, Constraint, Dependent, Lark, Substring
from promptflow.fields import TypedField
from promptflow.grammar import JSON_CHAR, terminal

_TEXT = r'( |\\[nrt])*([^"\\\x00-\x20\x7f]|\\["\\])' + f"{JSON_CHAR}*"
"""The inside of a JSON string that is not blank."""


def json_constraint(
    typed: TypedField, inputs: Mapping[str, Any], stops: Sequence[str] = ()
) -> Constraint:
    """Return the constraint of an output's value in JSON; free text ends after any of ``stops``.

    ``inputs`` are the values that a Quote quotes from. Raises UnsupportedType or UnknownField.
    """
    constraint, shape = typed.constraint(inputs), typed.shape
    if isinstance(constraint, Substring):
        return Lark(_quotation(constraint.texts))
    if isinstance(constraint, Choice):
        return Choice(tuple(as_json(typed, option) for option in constraint.options))
    if isinstance(constraint, Dependent):
        options = ((_quoted(text), held) for text, held in constraint.options)
        return replace(constraint, options=tuple(options))
    if shape.in_json is not None:
        return shape.in_json
    if constraint is not None:
        return constraint  # it is JSON already
    text = terminal([_TEXT], quoted=True)
    if stops:
        ends = "|".join(re.escape(_inside(stop)) for stop in stops)
        text += f" & ~{terminal([f'(?s:.*)({ends})(?s:.+)'], quoted=True)}"
    return Lark(f"start: T\nT: {text}")


def _quotation(texts: Sequence[str]) -> str:
    """Return the grammar of a span of one of ``texts`` as a JSON string, which cuts no escape."""
    lines = [f'start: "\\"" ({" | ".join(f"Q{n}" for n in range(len(texts)))}) "\\""']
    for number, text in enumerate(texts):
        chunks = json.dumps([_inside(char) for char in text], ensure_ascii=False)
        lines.append(f"Q{number}: S{number} & /(?s:.+)/")
        lines.append(f'S{number}: %regex {{"substring_chunks": {chunks}}}')
    return "\n".join(lines)


def _inside(text: str) -> str:
    """Return a text as it stands between the marks of a JSON string."""
    return _quoted(text)[1:-1]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def as_json(typed: TypedField, text: str) -> str:
    """Return the plain text of an output as a JSON value."""
    shape = typed.shape
    if shape.written in ("json", "number"):
        return text
    return _named(typed).get(text) or _quoted(text)


def from_json(typed: TypedField, written: str) -> str:
    """Return the plain text of a JSON value, as far as that is written."""
    if typed.shape.written in ("json", "number"):
        return written
    for text, named in _named(typed).items():
        if written == named:
            return text
    inside = written.lstrip().removeprefix('"')
    closed = re.match(r'(?:[^"\\]|\\.)*', inside, re.DOTALL)
    whole = closed[0] if closed else ""
    try:
        return str(json.loads(f'"{whole}"', strict=False))
    except ValueError:  # cut within an escape, or none of ours
        return whole


def _named(typed: TypedField) -> dict[str, str]:
    """Return the options that JSON writes otherwise than as strings: numbers, true, false, null."""
    found = {}
    for text, value in typed.options.items():
        inner = getattr(value, "value", value)
        finite = isinstance(inner, float) and math.isfinite(inner)
        if inner is None or isinstance(inner, bool | int) or finite:
            found[text] = json.dumps(inner)
    return found
