"""Signatures from strings, documents and classes, and signature documents as TOML.

One grammar of types serves the inline form and the documents: names of types, subscripts, unions,
and calls that add limits, as in ``list[str](max_length=3)`` or ``int(ge=1, le=5)``. Names resolve
to a fixed vocabulary, never to the caller's variables. Knows nothing of prompts or of decoding.
"""

from __future__ import annotations

import ast
import datetime
import decimal
import re
import tomllib
import types
import typing
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import dspy
from pydantic import Field

from promptflow import storage
from promptflow.errors import SignatureError

TABLES = frozenset({"instructions", "layout", "inputs", "outputs", "labels", "demos", "compiled"})


@dataclass(frozen=True, slots=True)
class Quote:
    """The marker of an output that is a verbatim span of an input: ``Quote["passages"]``."""

    field: str

    def __class_getitem__(cls, name: str) -> Any:
        """Return ``str`` marked as a quotation from the input field ``name``."""
        return Annotated[str, cls(name)]


@dataclass(frozen=True, slots=True)
class Document:
    """A signature with what is kept beside it: demos, layout, and what an optimizer wrote.

    An empty ``layout`` leaves the choice to the model; ``extra`` holds the tables that promptflow
    gives no meaning to.
    """

    signature: Any
    demos: tuple[dict[str, Any], ...] = ()
    layout: str = ""
    compiled: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    sha256: str = ""


def signature(
    spec: str | Path | type[Any],
    instructions: str | None = None,
    types: Mapping[str, Any] | None = None,
) -> Any:
    """Return a ``dspy.Signature`` class for a string, a document's name or path, or a class.

    ``types`` names further types that a string may use. Raises SignatureError.

    >>> signature("passage, question -> answer, page: int(ge=1)").signature
    'passage, question -> answer, page'
    """
    made = document_of(spec, types).signature
    return made if instructions is None else made.with_instructions(instructions)


def document_of(spec: str | Path | type[Any], types: Mapping[str, Any] | None = None) -> Document:
    """Return the document of that name or path, or one made around a string or a class."""
    if isinstance(spec, type):
        if not issubclass(spec, dspy.Signature):
            raise SignatureError(f"{spec.__name__} is not a dspy.Signature; subclass it")
        return Document(spec)
    if isinstance(spec, Path) or "->" not in spec:
        return read_document(spec, types=types)
    return Document(_inline(spec, types or {}))


def read_document(
    name: str | Path, *, bundled_only: bool = False, types: Mapping[str, Any] | None = None
) -> Document:
    """Read a signature document by name or path. Raises SignatureNotFound or SignatureError."""
    path = storage.find_document("signatures", name, bundled_only=bundled_only)
    text = path.read_bytes()
    try:
        tables = tomllib.loads(text.decode())
        document = _document(tables, types or {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, SignatureError) as error:
        raise SignatureError(f"{path}: {error}") from error
    made = document.signature
    made.__name__ = "".join(part.title() for part in path.stem.split("_"))
    return Document(
        made,
        document.demos,
        document.layout,
        document.compiled,
        document.extra,
        path,
        storage.sha256_bytes(text),
    )


def write_document(path: str | Path, document: Document) -> None:
    """Write a document as TOML, atomically."""
    storage.write_text(Path(path), dump_document(document))


def dump_document(document: Document) -> str:
    """Return a document as TOML that ``read_document`` reads back.

    Raises SignatureError for types that have no name in the grammar.
    """
    made = document.signature
    tables: dict[str, Any] = {}
    if own_instructions(made):
        tables["instructions"] = made.instructions + "\n"
    if document.layout:
        tables["layout"] = document.layout
    tables["inputs"] = {name: _field_text(name, f) for name, f in made.input_fields.items()}
    tables["outputs"] = {name: _field_text(name, f) for name, f in made.output_fields.items()}
    labels = {n: label_of(f) for n, f in made.fields.items() if label_of(f) != plain_label(n)}
    if labels:
        tables["labels"] = labels
    tables |= document.extra
    if document.compiled:
        tables["compiled"] = dict(document.compiled)
    if document.demos:
        tables["demos"] = [_demo(demo, made) for demo in document.demos]
    return storage.toml_dumps(tables)


def label_of(info: Any) -> str:
    """Return the text that stands before a field's value in a prompt, such as ``Answer:``."""
    return str(info.json_schema_extra["prefix"])


def description_of(name: str, info: Any) -> str:
    """Return a field's description, empty where nobody wrote one."""
    text = str(info.json_schema_extra.get("desc") or "")
    return "" if text == f"${{{name}}}" else text


# What DSPy writes for a signature without instructions; others may write on after it.
_DEFAULT_SENTENCE = re.compile(
    r"Given the fields (`\w+`(, `\w+`)*)?, produce the fields (`\w+`(, `\w+`)*)?\.(?=\s|$)"
)


def own_instructions(made: Any) -> str:
    """Return what somebody wrote: all of the instructions, without DSPy's default sentence."""
    text = made.instructions or ""
    found = _DEFAULT_SENTENCE.match(text)
    return text[found.end() :].strip() if found else text


def begins_with_default(made: Any) -> bool:
    """Tell whether DSPy's default sentence, or nothing, stands where instructions begin."""
    return not made.instructions or bool(_DEFAULT_SENTENCE.match(made.instructions))


def plain_label(name: str) -> str:
    """Return the label that a field has where nobody wrote one: ``Answer:``."""
    from dspy.signatures.signature import infer_prefix

    return f"{infer_prefix(name)}:"


def _inline(spec: str, types: Mapping[str, Any]) -> Any:
    if spec.count("->") != 1:
        raise SignatureError(f"{spec!r} has more than one '->'; write 'inputs -> outputs'")
    sides = [_inline_side(side.strip(), spec, types) for side in spec.split("->")]
    return _made(sides[0], sides[1], None, {})


def _inline_side(side: str, spec: str, types: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    try:
        tree = ast.parse(f"def f({side}): pass").body[0]
        assert isinstance(tree, ast.FunctionDef)
        arguments = tree.args.args
    except (SyntaxError, AssertionError) as error:
        raise SignatureError(
            f"cannot read {side!r} in the signature {spec!r}; write 'name, name: type'"
        ) from error
    if not arguments:
        raise SignatureError(f"the signature {spec!r} has no field on one side of '->'")
    return {a.arg: (_type(a.annotation, types) if a.annotation else str, "") for a in arguments}


def _document(tables: Mapping[str, Any], types: Mapping[str, Any]) -> Document:
    sides = []
    for side in ("inputs", "outputs"):
        table = tables.get(side)
        if not isinstance(table, dict) or not table:
            raise SignatureError(f"the table [{side}] is missing; write [{side}] and its fields")
        sides.append({name: _described(name, text, types) for name, text in table.items()})
    instructions = tables.get("instructions")
    made = _made(sides[0], sides[1], instructions, tables.get("labels", {}))
    demos = tables.get("demos", [])
    for demo in demos:
        if unknown := sorted(set(demo) - set(made.fields)):
            raise SignatureError(f"a demo has fields that the signature lacks: {unknown}")
    return Document(
        made,
        tuple(demos),
        tables.get("layout", ""),
        tables.get("compiled", {}),
        {name: value for name, value in tables.items() if name not in TABLES},
    )


def _described(name: str, text: Any, types: Mapping[str, Any]) -> tuple[Any, str]:
    """Split ``type: description`` at the first colon outside brackets and quotes."""
    if not isinstance(text, str):
        raise SignatureError(f"field {name!r}: expected text as in 'str: what it is', got {text!r}")
    end = _top_level_colon(text)
    source, description = text[:end].strip(), text[end + 1 :].strip()
    try:
        tree = ast.parse(source or "str", mode="eval").body
    except SyntaxError as error:
        raise SignatureError(f"field {name!r}: cannot read the type {source!r}") from error
    return _type(tree, types), description


def _top_level_colon(text: str) -> int:
    depth, quote = 0, ""
    for position, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[(":
            depth += 1
        elif char in "])":
            depth -= 1
        elif char == ":" and not depth:
            return position
    return len(text)


def _made(
    inputs: Mapping[str, tuple[Any, str]],
    outputs: Mapping[str, tuple[Any, str]],
    instructions: str | None,
    labels: Mapping[str, str],
) -> Any:
    if both := sorted(set(inputs) & set(outputs)):
        raise SignatureError(f"the fields {both} are inputs and outputs; rename one of each")
    if unknown := sorted(set(labels) - set(inputs) - set(outputs)):
        raise SignatureError(f"[labels] names fields that the signature lacks: {unknown}")
    fields: dict[str, Any] = {}
    for side, make in ((inputs, dspy.InputField), (outputs, dspy.OutputField)):
        for name, (annotation, description) in side.items():
            if not name.isidentifier():
                raise SignatureError(f"{name!r} is no field name; use letters, digits and _")
            info = make(desc=description) if description else make()
            if name in labels:
                info.json_schema_extra["prefix"] = labels[name]
            fields[name] = (annotation, info)
    if instructions is not None:
        instructions = instructions.strip()
    return dspy.Signature(fields, instructions)


def _any_of(*arms: Any) -> Any:
    return reduce(or_, arms)


_TYPES: dict[str, Any] = {
    "Annotated": Annotated,
    "Any": Any,
    "Decimal": decimal.Decimal,
    "Dict": dict,
    "List": list,
    "Literal": Literal,
    "None": None,
    "Optional": Optional,
    "Quote": Quote,
    "Set": set,
    "Tuple": tuple,
    "UUID": uuid.UUID,
    "Union": Union,
    "bool": bool,
    "date": datetime.date,
    "datetime": datetime.datetime,
    "dict": dict,
    "float": float,
    "frozenset": frozenset,
    "int": int,
    "list": list,
    "object": object,
    "set": set,
    "str": str,
    "time": datetime.time,
    "timedelta": datetime.timedelta,
    "tuple": tuple,
}


def _type(node: ast.expr, named: Mapping[str, Any]) -> Any:
    """Return the type that an expression names."""
    match node:
        case ast.Name(id=name) if name in named:
            return named[name]
        case ast.Name(id=name) if name in _TYPES:
            return _TYPES[name]
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _any_of(_type(left, named), _type(right, named))
        case ast.Subscript(value=value, slice=inside):
            return _subscript(_type(value, named), inside, named)
        case ast.Call(func=func, args=[], keywords=limits):
            given = {limit.arg or "": ast.literal_eval(limit.value) for limit in limits}
            return _limited(_type(func, named), given, ast.unparse(node))
    shown = ast.unparse(node)
    known = ", ".join(sorted({*_TYPES, *named}))
    raise SignatureError(
        f"unknown type {shown!r}; use a dspy.Signature class, pass types={{{shown!r}: ...}}, "
        f"or one of {known}"
    )


def _subscript(outer: Any, inside: ast.expr, named: Mapping[str, Any]) -> Any:
    nodes = inside.elts if isinstance(inside, ast.Tuple) else [inside]
    if outer is Literal:
        return Literal[tuple(ast.literal_eval(node) for node in nodes)]
    if outer is Quote:
        named_field = nodes[0].id if isinstance(nodes[0], ast.Name) else ast.literal_eval(nodes[0])
        return Annotated[str, Quote(named_field)]
    arms = tuple(
        ... if isinstance(n, ast.Constant) and n.value is ... else _type(n, named) for n in nodes
    )
    if outer is Union:
        return _any_of(*arms)
    return outer[arms if len(arms) > 1 else arms[0]]


def _limited(inner: Any, limits: Mapping[str, Any], shown: str) -> Any:
    known = {"ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern"}
    if wrong := sorted(set(limits) - known):
        raise SignatureError(f"{shown}: no limit {wrong}; the limits are {sorted(known)}")
    return Annotated[inner, Field(**limits)]


def type_text(annotation: Any, limits: Sequence[Any] = ()) -> str:
    """Return the grammar's text for a type. Raises SignatureError where it has none."""
    origin, arms = typing.get_origin(annotation), typing.get_args(annotation)
    for limit in limits:
        if isinstance(limit, Quote):
            return f"Quote[{limit.field}]"
    if limits:
        given = ", ".join(f"{name}={value!r}" for name, value in limits_of(limits).items())
        return f"{type_text(annotation)}({given})" if given else type_text(annotation)
    if origin is Annotated:
        return type_text(arms[0], arms[1:])
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arms))}]"
    if origin in (Union, types.UnionType):
        return " | ".join("None" if arm is type(None) else type_text(arm) for arm in arms)
    if arms:
        inside = ", ".join("..." if arm is ... else type_text(arm) for arm in arms)
        return f"{type_text(origin)}[{inside}]"
    for name in sorted(_TYPES, key=str.swapcase):  # list before List
        if annotation is _TYPES[name]:
            return name
    shown = getattr(annotation, "__qualname__", str(annotation))
    raise SignatureError(f"the type {shown} has no name in a document; keep its signature in code")


def limits_of(metadata: Sequence[Any]) -> dict[str, Any]:
    """Return the limits in a field's metadata, such as ``{"ge": 1}``."""
    names = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern")
    found: dict[str, Any] = {}
    for item in metadata:
        found |= limits_of(item.metadata) if hasattr(item, "metadata") else {}
        found |= {n: v for n in names if (v := getattr(item, n, None)) is not None}
    return found


def _field_text(name: str, info: Any) -> str:
    text = type_text(info.annotation, info.metadata)
    description = description_of(name, info)
    return f"{text}: {description}" if description else text


def _demo(demo: Mapping[str, Any], made: Any) -> dict[str, Any]:
    from dspy.predict.predict import serialize_object

    return {n: serialize_object(demo[n]) for n in made.fields if demo.get(n) is not None}
