"""TOML as this project saves it (tomli-w writes its values), and as anybody does.

Sections are one deep and keep the order of their keys: a value of a demo comes back as it went.
"""

from __future__ import annotations

import datetime
import enum
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import tomli_w

from promptflow.errors import StoreError

LEAVES = (str, int, float, datetime.date, datetime.time)
BEGIN, END = " = [\n    [\n        ", ",\n    ],\n]\n"


# A key of many parts takes memory by their square. Text is split as TOML splits it, so that dots
# in values do not count.
_PART = r"""(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"?+|'[^'\n]*+'?+)"""
_KEY = rf"{_PART}(?:[ \t]*+\.[ \t]*+{_PART})"  # and how often its last part repeats
_KEYS = re.compile(
    "|".join(
        (
            r""""{3}(?:[^"\\]|\\[\s\S]|"{1,2}(?!"))*+(?:"{3,5})?+""",
            r"""'{3}(?:[^']|'{1,2}(?!'))*+(?:'{3,5})?+""",
            r"#[^\n]*+",
            rf"(?P<long>{_KEY}{{32}})",
            rf"{_KEY}*+",
            r"""[^\w"'#-]++""",
        )
    ),
    re.ASCII,
)


def toml_loads(text: str) -> dict[str, Any]:
    """Return the tables of TOML of any origin, in time and memory that follow its length.

    Raises TOMLDecodeError, and ValueError for numbers, depths and keys beyond what Python reads.
    """
    for token in _KEYS.finditer(text):
        if token.lastgroup == "long":
            line = text.count("\n", 0, token.start()) + 1
            raise ValueError(f"a key of more than 32 parts (at line {line})")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("lists or tables too deep to be read") from None


def toml_dumps(tables: Mapping[str, Any]) -> str:
    """Return ``tables`` as TOML: plain values first, then one section a table.

    A list of tables becomes ``[[name]]`` sections; tables inside a section are written inline.
    Raises StoreError for what TOML cannot hold: None, other types, lone surrogates.
    """
    _check("the document", tables)
    plain: list[str] = []
    sections: list[str] = []
    for key, value in tables.items():
        if isinstance(value, Mapping):
            sections.append(_section(_header(key), value))
        elif isinstance(value, list | tuple) and value and _all_tables(value):
            sections += [_section(f"[{_header(key)}]", table) for table in value]
        else:
            plain.append(_assignment(key, value))
    text = "\n".join(["".join(plain), *sections] if plain else sections)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise StoreError(
            f"text with a lone surrogate {error.object[error.start]!r} cannot be written as TOML; "
            "decode the text it came from as UTF-8 first"
        ) from error
    return text


def _all_tables(values: list[Any] | tuple[Any, ...]) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def _header(key: str) -> str:
    return tomli_w.dumps({key: {}}).removesuffix("\n")


def _section(header: str, table: Mapping[str, Any]) -> str:
    return f"{header}\n" + "".join(_assignment(key, value) for key, value in table.items())


def _assignment(key: str, value: Any) -> str:
    if isinstance(value, str):
        # tomli-w writes \r\n as \n where it spreads a text over lines.
        return tomli_w.dumps({key: value}, multiline_strings="\r\n" not in value)
    if not isinstance(value, Mapping | list | tuple) or not _holds_table(value):
        return tomli_w.dumps({key: value})
    # In an array of arrays tomli-w writes a table inline, whatever its length.
    name, _, rest = tomli_w.dumps({key: [[value]]}).partition(BEGIN)
    return f"{name} = {rest.removesuffix(END)}\n"


def _holds_table(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_table(item) for item in value)
    return isinstance(value, Mapping)


def _check(key: str, value: Any) -> None:
    """Raise StoreError for the first value that would not come back, with its key."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise StoreError(f"{key!r} has the key {name!r}, and the keys of TOML are text")
            _check(name, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(key, item)
    elif not _is_leaf(value):
        raise StoreError(
            f"{key!r} is {value!r} ({type(value).__name__}), which TOML cannot hold: "
            "give text, a number, true or false, a date, a list or a table, or leave the key out"
        )


def _is_leaf(value: Any) -> bool:
    if isinstance(value, datetime.time) and value.tzinfo is not None:
        return False
    return isinstance(value, LEAVES) and not isinstance(value, enum.Enum)
