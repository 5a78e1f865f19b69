"""Signatures from strings, documents and classes, and signature documents as TOML.

How fields and types are written is in ``notation``. Knows nothing of prompts or of decoding.
"""

from __future__ import annotations

import difflib
import enum
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import dspy
from dspy.predict.predict import serialize_object
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, SchemaError

from promptflow import storage
from promptflow.errors import SignatureError, UnsupportedType
from promptflow.fields import TypedField
from promptflow.notation import (
    FIELDS,
    Data,
    Quote,
    brief,
    field_name,
    first_line,
    read_signature,
    read_type,
    type_text,
)

TABLES = ("instructions", "layout", "inputs", "outputs", "labels", "demos", "compiled", "extra")

SIZE = 1_000_000
"""Bytes of the longest document that is read."""


@dataclass(frozen=True, slots=True)
class Document:
    """A signature with what is kept beside it: demos, layout, and what an optimizer wrote.

    An empty ``layout`` leaves the choice to the model; ``extra`` holds what promptflow gives no
    meaning to.
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
    if not isinstance(instructions, str | None):
        raise SignatureError(f"instructions={brief(instructions)}: expected text")
    return made if instructions is None else made.with_instructions(instructions)


def check_types(made: Any) -> None:
    """Refuse outputs that no constraint can hold. Raises UnsupportedType."""
    for name, info in made.output_fields.items():
        _ = TypedField.of(name, info).shape


def document_of(spec: str | Path | type[Any], types: Mapping[str, Any] | None = None) -> Document:
    """Return the document of that name or path, or one made around a string or a class."""
    if isinstance(spec, type):
        if not issubclass(spec, dspy.Signature):
            raise SignatureError(f"{spec.__name__} is not a dspy.Signature; subclass it")
        check_types(spec)
        return Document(spec)
    if isinstance(spec, str) and "->" in spec:
        inputs, outputs = read_signature(spec, types or {})
        try:
            return Document(_made(inputs, outputs, None, {}))
        except SignatureError as error:
            raise type(error)(f"the signature {brief(spec)}: {error}") from error
    if isinstance(spec, str) and re.search(r"[\s,:]", spec.strip()) and "/" not in spec:
        raise SignatureError(
            f"the signature {brief(spec)} has no '->'; write 'inputs -> outputs', as in "
            "'question -> answer', or the name of a document"
        )
    if isinstance(spec, str | Path):
        return read_document(spec, types=types)
    raise SignatureError(
        f"{brief(spec)} is no signature; give 'inputs -> outputs', the name or path of a document, "
        "or a dspy.Signature class"
    )


def read_document(
    name: str | Path, *, bundled_only: bool = False, types: Mapping[str, Any] | None = None
) -> Document:
    """Read a signature document by name or path. Raises SignatureNotFound or SignatureError."""
    path = storage.find_document("signatures", name, bundled_only=bundled_only)
    text = document_text(path)
    try:
        document = _document(storage.toml_loads(text), types or {})
    except SignatureError as error:
        raise type(error)(f"{path}: {error}") from error
    except ValueError as error:
        raise SignatureError(f"{path}: {error}") from error
    made = document.signature
    made.__name__ = "".join(part.title() for part in path.stem.split("_"))
    return replace(document, path=path, sha256=storage.sha256_bytes(text.encode()))


def document_text(path: Path) -> str:
    """Return the text of a document's file. Raises SignatureError naming it."""
    try:
        return storage.read_text(path, SIZE)
    except OSError as error:
        raise SignatureError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SignatureError(f"{path}: no signature document: {error}") from error


def write_document(
    path: str | Path, document: Document, types: Mapping[str, Any] | None = None
) -> None:
    """Write a document as TOML, atomically."""
    storage.write_text(Path(path), dump_document(document, types))


def dump_document(document: Document, types: Mapping[str, Any] | None = None) -> str:
    """Return a document as TOML that ``read_document`` reads back, given the same ``types``.

    Raises SignatureError for types that have no name in the grammar or in ``types``, and for demos
    that do not fit theirs.
    """
    made = document.signature
    tables: dict[str, Any] = {}
    if own_instructions(made):
        tables["instructions"] = made.instructions.strip() + "\n"
    if document.layout:
        tables["layout"] = document.layout
    for side, fields in (("inputs", made.input_fields), ("outputs", made.output_fields)):
        tables[side] = {name: _field_text(name, f, types or {}) for name, f in fields.items()}
    labels = {n: label_of(f) for n, f in made.fields.items() if label_of(f) != plain_label(n)}
    if labels:
        tables["labels"] = labels
    if document.extra:
        tables["extra"] = dict(document.extra)
    if document.compiled:
        tables["compiled"] = dict(document.compiled)
    if document.demos:
        tables["demos"] = _written_demos(document.demos, made)
    text: str = storage.toml_dumps(tables)
    if len(text.encode()) > SIZE:
        raise SignatureError(f"the document has more than {SIZE:,} bytes; keep fewer demos in it")
    return text


def label_of(info: Any) -> str:
    """Return the text that stands before a field's value in a prompt, such as ``Answer:``."""
    return str(info.json_schema_extra["prefix"])


def description_of(name: str, info: Any) -> str:
    """Return a field's description, empty where nobody wrote one."""
    text = str(info.json_schema_extra.get("desc") or "")
    return "" if text == f"${{{name}}}" else text.strip()


# What DSPy writes for a signature without instructions; others may write on after it.
_DEFAULT_SENTENCE = re.compile(
    r"Given the fields (`\w+`(, `\w+`)*)?, produce the fields (`\w+`(, `\w+`)*)?\.(?=\s|$)"
)


def own_instructions(made: Any) -> str:
    """Return what somebody wrote: all of the instructions, without DSPy's default sentence."""
    text = made.instructions or ""
    found = _DEFAULT_SENTENCE.match(text)
    return text[found.end() if found else 0 :].strip()


def begins_with_default(made: Any) -> bool:
    """Tell whether DSPy's default sentence, or nothing, stands where instructions begin."""
    return not made.instructions or bool(_DEFAULT_SENTENCE.match(made.instructions))


def plain_label(name: str) -> str:
    """Return the label that a field has where nobody wrote one: ``Answer:``."""
    from dspy.signatures.signature import infer_prefix

    return f"{infer_prefix(name)}:"


def _document(tables: Mapping[str, Any], types: Mapping[str, Any]) -> Document:
    for name in tables:
        if name not in TABLES:
            close = difflib.get_close_matches(name.casefold(), TABLES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(TABLES)};"
            raise SignatureError(
                f"{brief(name)} means nothing in a signature document; {hint} what is your own "
                "goes into the table [extra]"
            )
    inputs, outputs = (_side(tables, side, types) for side in ("inputs", "outputs"))
    instructions, layout = (
        _as(str, tables.get(name, ""), f"{name} = 'text'") for name in ("instructions", "layout")
    )
    labels, compiled, extra = (
        _as(dict, tables.get(name, {}), f"a table [{name}]")
        for name in ("labels", "compiled", "extra")
    )
    made = _made(inputs, outputs, instructions.strip() or None, _named(labels, "labels"))
    demos = _as(list, tables.get("demos", []), "tables [[demos]]")
    shown = {name: _Shown.of(name, info) for name, info in made.fields.items()}
    read = tuple(_demo(demo, shown, f"demos, number {n}") for n, demo in enumerate(demos, 1))
    return Document(made, read, layout, compiled, extra)


T = TypeVar("T")


def _as(kind: type[T], value: Any, expected: str) -> T:
    if not isinstance(value, kind):
        raise SignatureError(f"expected {expected}, got {brief(value)}")
    return value


def _named(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a table by field name."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        try:
            name = field_name(key)
        except SignatureError as error:
            raise SignatureError(f"[{where}]: {error}") from error
        if name in found:
            raise SignatureError(f"[{where}] has the field {name!r} twice")
        found[name] = value
    return found


def _side(
    tables: Mapping[str, Any], side: str, types: Mapping[str, Any]
) -> dict[str, tuple[Any, str]]:
    table = tables.get(side)
    if not table:
        raise SignatureError(f"the table [{side}] is missing; write [{side}] and its fields")
    fields = _named(_as(dict, table, f"a table [{side}]"), side)
    if len(fields) > FIELDS:
        raise SignatureError(f"[{side}] has {len(fields)} fields; at most {FIELDS} are read")
    found = {}
    for name, text in fields.items():
        expected = f"text for the field {name!r}, as in {name} = 'str: what it is'"
        found[name] = read_type(_as(str, text, expected), types, f"field {name!r}")
    return found


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
    _check_quotes(inputs, outputs)
    _check_labels({name: plain_label(name) for name in (*inputs, *outputs)} | dict(labels))
    fields: dict[str, Any] = {}
    for side, make in ((inputs, dspy.InputField), (outputs, dspy.OutputField)):
        for name, (annotation, description) in side.items():
            info = make(desc=description) if description else make()
            if name in labels:
                info.json_schema_extra["prefix"] = labels[name]
            fields[name] = (annotation, info)
    try:
        made = dspy.Signature(fields, instructions)
    except (TypeError, ValueError, SchemaError, PydanticUserError) as error:
        reason = str(error).splitlines()[0]
        raise UnsupportedType(
            f"pydantic refuses a type of the fields {', '.join(fields)}: {reason}"
        ) from error
    check_types(made)
    return made


def _check_quotes(
    inputs: Mapping[str, tuple[Any, str]], outputs: Mapping[str, tuple[Any, str]]
) -> None:
    for name, (annotation, _) in {**inputs, **outputs}.items():
        for marker in getattr(annotation, "__metadata__", ()):
            if isinstance(marker, Data) and name in outputs:
                raise SignatureError(
                    f"field {name!r}: Data[...] is an input: an output is written by the model"
                )
            if isinstance(marker, Quote) and (name in inputs or marker.field not in inputs):
                fault = f"{marker.field!r} is no input"
                if name in inputs:
                    fault = "a Quote is an output"
                raise SignatureError(
                    f"field {name!r}: Quote[{marker.field}]: {fault}; the inputs are "
                    f"{', '.join(inputs)}"
                )


def _check_labels(labels: Mapping[str, Any]) -> None:
    owners: dict[str, str] = {}
    for name, label in labels.items():
        text = _as(str, label, f"text for the label of {name!r}, as in {name} = 'The answer is'")
        if text != text.strip() or not text.isprintable():
            raise SignatureError(
                f"the label {brief(text)} of the field {name!r} has spaces around it, line ends or "
                "control characters; write it on one line, as in 'The answer is'"
            )
        if text and owners.setdefault(text, name) != name:
            raise SignatureError(
                f"the fields {owners[text]!r} and {name!r} have the same label {brief(text)}; "
                "rename one, or give it a label of its own in [labels]"
            )


def _field_text(name: str, info: Any, named: Mapping[str, Any]) -> str:
    text = type_text(info.annotation, info.metadata, named)
    description = description_of(name, info)
    return f"{text}: {description}" if description else text


def _demo(demo: Any, shown: Mapping[str, _Shown], where: str) -> dict[str, Any]:
    """Return a demo of a document with the values that its fields' types give."""
    values = _named(_as(dict, demo, "tables [[demos]]"), where)
    if unknown := sorted(set(values) - set(shown)):
        raise SignatureError(
            f"{where} has fields that the signature lacks: {unknown}; it has {list(shown)}"
        )
    return {name: shown[name].read(value, where) for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class _Shown:
    """A field of demos. ``free`` ones show whatever they are given: plain text, and any input."""

    name: str
    type: str
    free: bool
    adapter: TypeAdapter[Any]

    @classmethod
    def of(cls, name: str, info: Any) -> _Shown:
        whole = info.annotation
        if info.metadata:
            whole = Annotated[(info.annotation, *info.metadata)]
        text = info.annotation is str and not info.metadata
        given = info.json_schema_extra["__dspy_field_type"] == "input"
        return cls(name, brief(whole), text or given, TypeAdapter(whole))

    def read(self, value: Any, where: str) -> Any:
        """Return the value that a document's stands for: typed where it shows the same."""
        try:
            typed = self._typed(value)
        except ValidationError as error:
            if self.free:
                return value
            raise SignatureError(
                f"{where}: {self.name} = {brief(value)} is no {self.type}: {first_line(error)}"
            ) from error
        with suppress(PydanticSerializationError):
            shown = json.dumps(self.adapter.dump_python(typed, mode="json"))
            # Text in brackets holds JSON that TOML cannot, such as None inside a list.
            same = shown == _json(value) or (shown[0] in "[{" and shown == value)
            return typed if same or isinstance(typed, set | frozenset) else value
        return value

    def _typed(self, value: Any) -> Any:
        try:
            return self.adapter.validate_python(value)
        except ValidationError:
            if not isinstance(value, str):
                raise
        return self.adapter.validate_json(value)

    def written(self, value: Any, where: str) -> Any:
        """Return what TOML holds of a value, so that it reads back as that value."""
        try:
            typed = self._typed(value)
            plain = self.adapter.dump_python(typed, mode="json")
        except (ValueError, PydanticSerializationError) as error:
            if self.free:
                return serialize_object(_texts(value))
            raise SignatureError(
                f"{where}: {self.name} = {brief(value)} is no {self.type} ({first_line(error)}); "
                "mend it, or leave the demo out"
            ) from error
        for wanted in (value, typed):
            for form in (value, plain, json.dumps(plain)):
                if _is_toml(form) and _is_same(self.read(form, where), wanted):
                    return form
        if self.free:
            return serialize_object(_texts(value))
        raise SignatureError(
            f"{where}: {self.name} = {brief(value)} does not read back from TOML as it is; "
            "leave the demo out"
        )


def _written_demos(demos: Sequence[Mapping[str, Any]], made: Any) -> list[dict[str, Any]]:
    shown = {name: _Shown.of(name, info) for name, info in made.fields.items()}
    return [
        {
            name: field.written(demo[name], f"demos, number {number}")
            for name, field in shown.items()
            if demo.get(name) is not None
        }
        for number, demo in enumerate(demos, 1)
    ]


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _is_toml(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_toml(v) for k, v in value.items())
    if isinstance(value, list):
        return all(_is_toml(item) for item in value)
    return isinstance(value, str | bool | int | float) and not isinstance(value, enum.Enum)


def _texts(value: Any) -> Any:
    """Return a value with passages as their text, which is what a prompt shows of them."""
    if isinstance(value, list | tuple):
        return [_texts(item) for item in value]
    return value.prompt_text() if callable(getattr(type(value), "prompt_text", None)) else value
