"""Programs by what a person types: a folder, ``module:attribute``, a signature."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import dspy

from promptflow import modules
from promptflow.engine.request import Beam, Sampling
from promptflow.errors import (
    ProgramError,
    PromptflowError,
    SignatureNotFound,
    UnsupportedOption,
    names_options,
)
from promptflow.layout import find_layout
from promptflow.lm import SlotAdapter, is_local
from promptflow.program.load import load_program
from promptflow.program.walk import predictors_of


@names_options
def resolve_program(spec: Any) -> Any:
    """Return the program that ``spec`` names.

    A module itself; a saved program's folder; ``module:attribute`` or ``file.py:attribute`` (a
    module, or a class or function that makes one); a signature string; a document's name or path.
    """
    if isinstance(spec, dspy.Module):
        return spec
    text = str(spec)
    if is_folder(text):
        return load_program(text)
    if "->" in text:
        return modules.Predict(text)
    if re.fullmatch(r"[\w./\\-]+:[A-Za-z_][\w.]*", text):
        return _imported(text)
    try:
        return modules.Predict(spec)
    except SignatureNotFound as error:
        raise ProgramError(
            f"no program {text[:100]!r}: no folder, and {error} "
            "A program is a saved folder, module:attribute, a signature like "
            "'question -> answer', or the name of a signature document."
        ) from error


def lay_out(program: Any, layout: str | Path, lm: Any) -> None:
    """Have every predictor of a program write its prompts with ``layout``, whatever it chose.

    Those of DSPy's own take it from the adapter, which becomes the default. Raises TemplateError
    for a layout that is not there, and UnsupportedOption where ``lm`` is no local model.
    """
    find_layout(layout)
    _decode(program, lm, layout=str(layout))
    dspy.configure(adapter=SlotAdapter(layout))


def think(program: Any, thinking: bool | Literal["auto"], lm: Any) -> None:
    """Have every predictor of a program think, or not, as ``layout.Decoding`` says of it.

    Those of DSPy's own take it from the LM. Raises UnsupportedOption where ``lm`` is no local
    model.
    """
    _decode(program, lm, thinking=thinking)


def decode(
    program: Any,
    *,
    sampling: Mapping[str, Any] | None = None,
    beam: int | None = None,
    max_tokens: int | None = None,
) -> None:
    """Have every predictor of a program decode so, whatever it chose; a weighed choice stays one.

    ``sampling`` names a part of a ``Sampling``; ``beam`` is the width of a search in its place.
    ``max_tokens`` bounds each text, reasoning too. Raises UnsupportedOption for values outside
    their ranges, and where a predictor of DSPy's is to search.
    """
    chosen = {name: value for name, value in (sampling or {}).items() if value is not None}
    for name, predictor in predictors_of(program):
        if isinstance(predictor, modules.Predict):
            own = predictor.decoding
            try:
                if max_tokens is not None:
                    own = replace(own, max_tokens=max_tokens, reasoning_tokens=max_tokens)
                if beam is not None:
                    own = replace(own, sampling=Sampling(), beam=Beam(beam))
                elif chosen:
                    own = replace(own, sampling=replace(own.sampling or Sampling(), **chosen))
                    own = replace(own, beam=None)
            except ValueError as error:
                raise UnsupportedOption(str(error)) from error
            predictor.decoding = own
            continue
        if beam is not None:
            raise UnsupportedOption(
                f"beam: {name} is a dspy.Predict, whose calls know no search; leave it out, or "
                "write promptflow.Predict"
            )
        limit = {} if max_tokens is None else {"max_tokens": max_tokens}
        predictor.config = {**predictor.config, **chosen, **limit}


def several(program: Any, n: int) -> None:
    """Have a program give ``n`` answers. Raises UnsupportedOption where it gives one alone."""
    lone = getattr(program, "predict", None) if not isinstance(program, dspy.Predict) else program
    if not isinstance(program, dspy.Predict | modules.ChainOfThought) or lone is None:
        raise UnsupportedOption(
            f"n={n}: a {type(program).__name__} gives one answer; vote among several with the "
            "technique sc, or leave it out"
        )
    lone.config = {**lone.config, "n": n}


def _decode(program: Any, lm: Any, **chosen: Any) -> None:
    """Choose a part of the decoding of every predictor, whatever it chose itself."""
    if not is_local(lm):
        [(name, value)] = chosen.items()
        raise UnsupportedOption(
            f"{name} {value!r}: a remote model's prompts are laid out by DSPy's adapter; leave it "
            "out, or use a local model"
        )
    for _, predictor in predictors_of(program):
        if isinstance(predictor, modules.Predict):
            predictor.decoding = replace(predictor.decoding, **chosen)


def is_folder(spec: str) -> bool:
    """Tell whether ``spec`` is the path of a folder; a long signature is no path at all."""
    try:
        return Path(spec).is_dir()
    except OSError:
        return False


def find_code(spec: str) -> Any:
    """Return what ``module:attribute`` or ``file.py:attribute`` names, from the working folder too.

    Raises ProgramError where it cannot be imported.
    """
    place, _, attribute = spec.rpartition(":")
    try:
        found: Any = _module(place)
        for name in attribute.split("."):
            found = getattr(found, name)
    except Exception as error:  # a user's file may raise anything
        raise ProgramError(
            f"{spec}: cannot be imported ({type(error).__name__}: {error}); give "
            "module:attribute as in 'examples.qa:program', or file.py:attribute"
        ) from error
    return found


def _imported(spec: str) -> Any:
    """Import ``module:attribute``, from the working folder too, and make a program of it."""
    found = find_code(spec)
    if not isinstance(found, dspy.Module) and callable(found):
        try:
            found = found()
        except PromptflowError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise ProgramError(
                f"{spec}: cannot be made ({type(error).__name__}: {error}); a program is a module, "
                "or a class or function without arguments that makes one"
            ) from error
    if not isinstance(found, dspy.Module):
        raise ProgramError(
            f"{spec}: is a {type(found).__name__}; a program is a module, or a class or function "
            "without arguments that makes one"
        )
    return found


def import_code(place: str) -> Any:
    """Import a module by its name, from the working folder too, or a file.py; only on demand.

    Raises ProgramError where it cannot be imported.
    """
    try:
        return _module(place)
    except Exception as error:  # a user's file may raise anything
        raise ProgramError(
            f"{place}: cannot be imported ({type(error).__name__}: {error}); give a module as in "
            "'examples.qa', or a file.py"
        ) from error


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        folder = str(Path.cwd())
        if folder not in sys.path:
            sys.path.insert(0, folder)
        return importlib.import_module(place)
    path = Path(place).resolve()
    changed = path.stat().st_mtime_ns
    if path not in _FILES or _FILES[path][0] != changed:
        _FILES[path] = (changed, _executed(path))
    return _FILES[path][1]


_FILES: dict[Path, tuple[int, ModuleType]] = {}
"""Files that were run, so that a program and a metric of one file share its classes."""


def _executed(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no Python file {path}")
    made = importlib.util.module_from_spec(spec)
    # Dataclasses and models look their module up by its name.
    known = sys.modules.get(path.stem)
    if known is None or getattr(known, "__file__", None) == str(path):
        sys.modules[path.stem] = made
    spec.loader.exec_module(made)
    return made
