"""Examples of a file as a program takes them: which columns are its inputs, read by their types."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from dspy.adapters.utils import annotation_allows_none
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from promptflow.errors import DataError
from promptflow.evaluation.data import GOLD, load_data, load_rows, made_example
from promptflow.modules import ChainOfThought, ZeroShotCoT


@dataclass(frozen=True, slots=True)
class Input:
    """An input of a program: its type, and whether an example may leave it out."""

    annotation: Any = str
    optional: bool = False


def read_examples(
    path: str | Path,
    program: Any,
    *,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    key: str | None = None,
) -> list[dspy.Example]:
    """Read the examples of a file with the inputs that ``program`` takes.

    The keywords are those of ``load_data``. A column is found in spite of case, blanks and hyphens:
    ``Question Text`` is ``question_text``. Text is read as the type of its input where it can be,
    so that a table gives what JSON gives; an optional input may be missing in any row, and an empty
    cell is a missing one where the type allows None. Raises DataError for a row without an input
    that the program needs.
    """
    path = Path(path)
    inputs, sure = _inputs(program)
    if not inputs:
        return load_data(path, columns=columns, encoding=encoding, key=key)
    rows = load_rows(path, columns=columns, encoding=encoding, key=key)
    names = _spelled(path, rows, [*inputs, *(output_types(program) or {})])
    fitted = []
    for number, found in enumerate(rows, 1):
        row = {names.get(name, name): value for name, value in found.items()}
        given = {name: _typed(row[name], inputs[name]) for name in inputs if name in row}
        given = {name: value for name, value in given.items() if value is not PydanticUndefined}
        missing = [name for name in inputs if name not in row and not inputs[name].optional]
        if missing and sure:
            raise DataError(
                f"{path}, example {number}: no field {missing[0]!r}, which the program needs; it "
                f"has {', '.join(map(repr, row))}. Name the column that holds it: --column "
                f"'COLUMN={missing[0]}', or columns={{'COLUMN': {missing[0]!r}}}"
            )
        rest = {name: value for name, value in row.items() if name not in inputs}
        chosen = given or [name for name in row if name not in GOLD]
        fitted.append(made_example(path, {**rest, **given}, chosen))
    return fitted


def input_fields(program: Any) -> list[str] | None:
    """Return the fields that a program takes from outside, or None if it has no predictor.

    They are the arguments that its ``flow`` or ``forward`` names, else the inputs of its predictors
    that none of them puts out.
    """
    return list(_inputs(program)[0]) or None


def output_types(program: Any) -> dict[str, Any] | None:
    """Return the types of the fields that a program puts out, None where only running it tells."""
    if not _is_plain(program):
        return None
    signatures = [predictor.signature for _, predictor in program.named_predictors()]
    return {n: f.annotation for s in signatures for n, f in s.output_fields.items()} or None


def _is_plain(program: Any) -> bool:
    """Say whether a program takes and puts out what its predictors do."""
    return isinstance(
        _sampled(program), dspy.Predict | dspy.ChainOfThought | ChainOfThought | ZeroShotCoT
    )


def _sampled(program: Any) -> Any:
    """Return the module that SelfConsistency, BestOf and their like run several times."""
    while isinstance(inner := getattr(program, "module", None), dspy.Module):
        program = inner
    return program


def _inputs(program: Any) -> tuple[dict[str, Input], bool]:
    """Return the inputs of a program, and whether it is sure that it takes these."""
    signatures = [predictor.signature for _, predictor in program.named_predictors()]
    made = {name for signature in signatures for name in signature.output_fields}
    asked = {
        name: Input(
            field.annotation,
            field.default is not PydanticUndefined or annotation_allows_none(field.annotation),
        )
        for signature in signatures
        for name, field in signature.input_fields.items()
        if name not in made
    }
    program = _sampled(program)
    code = getattr(program, "flow", None) or getattr(program, "forward", None)
    parameters = inspect.signature(code).parameters.values() if callable(code) else ()
    named = {
        p.name: Input(
            asked[p.name].annotation if p.name in asked else Any,
            p.default is not p.empty,
        )
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    if named and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        return named, True
    return asked, _is_plain(program)


def _spelled(
    path: Path, rows: Sequence[Mapping[str, Any]], wanted: Sequence[str]
) -> dict[str, str]:
    """Return the fields of a program by columns that are spelled like them, and no better."""
    there = dict.fromkeys(name for row in rows for name in row)
    found: dict[str, str] = {}
    for field in wanted:
        alike = [name for name in there if _folded(name) == _folded(field) and name not in wanted]
        if field in there or not alike:
            continue
        if len(alike) > 1:
            raise DataError(
                f"{path}: both {alike[0]!r} and {alike[1]!r} may be {field!r}; name one: --column "
                f"'{alike[0]}={field}'"
            )
        found[alike[0]] = field
    return found


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip()).casefold()


def _typed(value: Any, asked: Input) -> Any:
    """Return what a file holds as its input's type, where it can be read.

    Undefined where it is missing.
    """
    annotation = asked.annotation
    if not isinstance(value, str | list | dict) or annotation is str or annotation is Any:
        return value
    if isinstance(value, str) and not value.strip() and annotation_allows_none(annotation):
        return PydanticUndefined
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    except (PydanticUserError, TypeError):
        return value
    for read in (adapter.validate_python, adapter.validate_json):
        try:
            return read(value)  # type: ignore[arg-type]
        except ValidationError:
            pass
    return value
