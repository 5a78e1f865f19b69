"""The arguments that a tool takes, as types that hold them while they are written.

A type is what the function's own hint says, limits in ``Annotated`` too; where a tool carries a
JSON Schema that its function does not tell, as tools of servers do, it is that schema.
"""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired

import dspy
from pydantic import ConfigDict, TypeAdapter, WithJsonSchema
from typing_extensions import TypedDict

from promptflow.errors import ProgramError, UnsupportedType
from promptflow.fields import TypedField

_TOLD = ("default", "description", "title")  # what a schema says beside what it allows
_COARSE = (Any, str, int, float, bool, list, dict)
"""Types that may stand for a schema which says more."""
_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrt"\\',
}
_REMARKS = {"$comment", "$id", "$schema", "deprecated", "examples", "readOnly", "writeOnly"}
_FORMATS = {
    *("date", "time", "date-time", "duration"),
    *("email", "hostname", "ipv4", "ipv6", "uri", "uuid"),
}
"""Those that are held; any other is a remark, as validators take it."""
_NAMED = ("properties", "patternProperties", "$defs", "definitions")  # schemas by name
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_REQUIRED = " (Required)"  # how DSPy marks what a server's tool needs, in its description


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of a tool: their types by name, and the defaults of those that have one."""

    types: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def kind(self) -> Any:
        """Return them as a ``TypedDict``, whose values are plain dicts."""
        return typed_dict(self.types, self.defaults)


def typed_dict(kinds: Mapping[str, Any], optional: Iterable[str] = ()) -> Any:
    """Return a closed ``TypedDict``; the names in ``optional`` may be left out.

    Equal ones are one, so that their constraint is made once.
    """
    asked = tuple(kinds.items()), frozenset(optional)
    try:
        return _made(*asked)
    except TypeError:  # something that cannot be hashed
        return _made.__wrapped__(*asked)


@functools.lru_cache(maxsize=512)
def _made(kinds: tuple[tuple[str, Any], ...], optional: frozenset[str]) -> Any:
    fields = {n: NotRequired[kind] if n in optional else kind for n, kind in kinds}
    make: Any = TypedDict  # type checkers read no types that are made while a program runs
    made = make("Arguments", fields)
    made.__pydantic_config__ = ConfigDict(extra="forbid")
    return made


@functools.lru_cache(maxsize=256)
def of_function(tool: str, function: Callable[..., Any]) -> Arguments:
    """Return the arguments of a function of the user's. Raises ProgramError."""
    hints, taken = _hints(function), inspect.signature(function).parameters
    types: dict[str, Any] = {}
    for name, parameter in taken.items():
        if parameter.kind not in _BY_NAME:
            raise ProgramError(
                f"the tool {tool} takes {parameter}: a model writes arguments by their names; "
                "write each out with its type"
            )
        if name not in hints:
            raise ProgramError(f"the tool {tool}: {name} has no type; write {name}: str")
        types[name] = hints[name]
    return _checked(tool, Arguments(types, _defaults(taken)))


def of_tool(tool: dspy.Tool) -> Arguments:
    """Return the arguments of a ``dspy.Tool``, as its function, types and schemas say.

    Raises ProgramError for a tool that cannot be called by the names of its arguments, and for
    types that no constraint can hold.
    """
    try:
        told = tuple((n, k) for n, k in (tool.arg_types or {}).items() if n != "return")
        schemas = json.dumps(tool.args or {}, sort_keys=True, default=str)
        needed = tuple((tool.arg_desc or {}).items())
        return _kept(tool.name, tool.func, schemas, told, needed)
    except TypeError:  # something that cannot be hashed
        return _read(tool.name, tool.func, tool.args or {}, tool.arg_types or {}, tool.arg_desc)


@functools.lru_cache(maxsize=256)
def _kept(name: str, function: Any, schemas: str, told: Any, needed: Any) -> Arguments:
    return _read(name, function, json.loads(schemas), dict(told), dict(needed))


def _read(
    tool: str,
    function: Any,
    schemas: Mapping[str, Any],
    told: Mapping[str, Any],
    described: Mapping[str, str] | None,
) -> Arguments:
    taken = inspect.signature(function).parameters
    hints, bare = _hints(function), _hints(function, extras=False)
    free = [n for n, p in taken.items() if p.kind is p.VAR_KEYWORD]
    plain = dspy.Tool(function).args or {}
    types: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for name, schema in schemas.items():
        parameter = taken.get(name)
        if name in free and schema == plain.get(name):
            continue  # any others: those that are named are those that it wants
        _check_taken(tool, name, parameter, bool(free))
        kind = told.get(name, Any)
        inferred = _allowed(schema) == _allowed(plain.get(name))
        if inferred and bare.get(name, Any) == kind:
            types[name] = hints.get(name, Any)
        else:
            types[name] = _by_schema(schema) if _says_more(schema, kind) else kind
        if parameter is not None and parameter.default is not parameter.empty:
            defaults[name] = parameter.default
        elif _may_be_left_out(name, schema, parameter, described or {}):
            defaults[name] = schema.get("default")
    for name, parameter in taken.items():
        needs = parameter.default is parameter.empty and parameter.kind in _BY_NAME
        if needs and name not in schemas:
            raise ProgramError(f"the tool {tool} needs {name!r}, which its args do not name")
    return _checked(tool, Arguments(types, defaults))


def _check_taken(tool: str, name: str, parameter: Any, free: bool) -> None:
    by_name = parameter is not None and parameter.kind in _BY_NAME
    if not by_name and not (free and parameter is None):
        raise ProgramError(
            f"the tool {tool} cannot be given {name!r} by its name: its function takes "
            f"{parameter or 'no such argument'}; write each argument out with its type"
        )


def _may_be_left_out(
    name: str, schema: Mapping[str, Any], parameter: Any, described: Mapping[str, str]
) -> bool:
    if parameter is not None:
        return False
    needed = any(text.endswith(_REQUIRED) for text in described.values())
    return "default" in schema or (needed and not described.get(name, "").endswith(_REQUIRED))


def _allowed(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    return json.loads(json.dumps({n: v for n, v in schema.items() if n not in _TOLD}, default=str))


def _says_more(schema: Any, kind: Any) -> bool:
    return kind in _COARSE and _allowed(schema) != _allowed(TypeAdapter(kind).json_schema())


def _by_schema(schema: Mapping[str, Any]) -> Any:
    allowed = _held(_allowed(schema))
    if not allowed:
        return Any
    return Annotated[Any, WithJsonSchema({"x-json": {**allowed, "x-guidance": _STYLE}})]


def _held(schema: Any) -> Any:
    """Return a schema without remarks, and without what is made so after a call was written."""
    if isinstance(schema, list):
        return [_held(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {}
    for word, value in schema.items():
        one_of_each = word == "uniqueItems" and schema.get("minItems", 0) <= 1
        odd_format = word == "format" and value not in _FORMATS
        if word in _REMARKS or one_of_each or odd_format:
            continue
        if word in _NAMED and isinstance(value, dict):
            made[word] = {name: _held(part) for name, part in value.items()}
        else:
            made[word] = value if word in ("const", "enum", "default") else _held(value)
    return made


def _hints(function: Any, extras: bool = True) -> dict[str, Any]:
    plain = inspect.isfunction(function) or inspect.ismethod(function)
    said: Any = function if plain else type(function).__call__
    return typing.get_type_hints(said, include_extras=extras)


def _defaults(taken: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    return {n: p.default for n, p in taken.items() if p.default is not p.empty}


def _checked(tool: str, made: Arguments) -> Arguments:
    for name, kind in made.types.items():
        try:
            # By itself too: of a picture the model would write the path, and we would open it.
            _ = TypedField(name, kind).shape, TypedField(name, typed_dict({name: kind})).shape
        except UnsupportedType as error:
            said = str(error)
            if any(isinstance(m, WithJsonSchema) for m in getattr(kind, "__metadata__", ())):
                reason = said.splitlines()[0].rpartition("failed to compile JSON schema: ")[2]
                said = f"the JSON Schema of its argument {name!r} cannot be held: {reason}"
            raise ProgramError(f"the tool {tool}: {said}") from error
    return made
