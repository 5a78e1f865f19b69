"""A writer of the TOML that this project saves; ``tomllib`` reads it back unchanged."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

from promptflow.errors import StoreError

WIDTH = 100
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TO_ESCAPE = re.compile(r'[\\\x00-\x08\x0b-\x1f\x7f]|"""|"\Z')


def toml_dumps(tables: Mapping[str, Any]) -> str:
    """Return ``tables`` as TOML: plain values first, then one section a table.

    A list of tables becomes ``[[name]]`` sections; tables inside a section are written inline.
    Raises StoreError for what TOML cannot hold: None, other types, lone surrogates.
    """
    plain: list[str] = []
    sections: list[str] = []
    for key, value in tables.items():
        if isinstance(value, Mapping):
            sections.append(_section(f"[{_key(key)}]", value))
        elif isinstance(value, list | tuple) and value and _all_tables(value):
            sections += [_section(f"[[{_key(key)}]]", table) for table in value]
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


def _section(header: str, table: Mapping[str, Any]) -> str:
    return f"{header}\n" + "".join(_assignment(key, value) for key, value in table.items())


def _assignment(key: str, value: Any) -> str:
    if isinstance(value, str) and "\n" in value:
        return f"{_key(key)} = {_multi_line(value)}\n"
    line = f"{_key(key)} = {_value(key, value)}\n"
    if len(line) > WIDTH and isinstance(value, list | tuple):
        items = "".join(f"    {_value(key, item)},\n" for item in value)
        return f"{_key(key)} = [\n{items}]\n"
    return line


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    # JSON leaves DEL as it is; TOML wants it escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _multi_line(text: str) -> str:
    return '"""\n' + _TO_ESCAPE.sub(_escape, text) + '"""'


def _escape(match: re.Match[str]) -> str:
    found = match[0]
    if found[0] == '"':
        return found[:-1] + '\\"'
    return "\\\\" if found == "\\" else f"\\u{ord(found):04x}"


def _value(key: str, value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(key, item) for item in value) + "]"
    if isinstance(value, Mapping):
        pairs = (f"{_key(name)} = {_value(name, item)}" for name, item in value.items())
        return "{ " + ", ".join(pairs) + " }" if value else "{}"
    raise StoreError(
        f"{key!r} is {value!r} ({type(value).__name__}), which TOML cannot hold: "
        "give text, a number, true or false, a date, a list or a table, or leave the key out"
    )
