"""Whose code it is, and what it reads: a function's globals, and what it imports when it runs."""

from __future__ import annotations

import dis
import functools
import importlib.util
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dspy

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, though it may say "builtins"


def own_class(cls: type[Any]) -> bool:
    """Say whether a class is the user's: its code decides, and no version stands for it."""
    if cls.__module__ in ("builtins", None):
        return bool(cls.__flags__ & _HEAP_TYPE)
    top = cls.__module__.partition(".")[0]
    if issubclass(cls, dspy.Module) and top not in ("dspy", "promptflow"):
        return True
    return not is_installed(top)


def own_file(path: str, module: str) -> bool:
    """Say whether a function of this file is the user's."""
    if path.startswith("<frozen") or {"site-packages", "dist-packages"} & set(Path(path).parts):
        return False
    return not is_installed(module.partition(".")[0])


@functools.cache
def is_installed(top: str) -> bool:
    """Say whether a package is Python's, promptflow's, DSPy's or an installed one."""
    if top in ("promptflow", "dspy") or top in sys.stdlib_module_names:
        return top != "__main__"
    module = sys.modules.get(top)
    try:
        spec = getattr(module, "__spec__", None) or importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    places = [spec.origin or "", *(spec.submodule_search_locations or ())] if spec else []
    parts = {part for place in places for part in Path(place).parts}
    return bool(parts & {"site-packages", "dist-packages"}) or "built-in" in places


@functools.cache
def release(module: str | None) -> str:
    """Return the version of an installed package; Python's and promptflow's are told elsewhere."""
    top = (module or "").partition(".")[0]
    if top in ("", "promptflow") or top in sys.stdlib_module_names:
        return ""
    try:
        return version(top)
    except (PackageNotFoundError, ValueError):
        return str(getattr(sys.modules.get(top), "__version__", ""))


def globals_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Give the globals that a function's code reads, the code inside it included, by name.

    Of a module of the user's, what is read from it; of one that is imported inside, its file.
    """
    for chain in sorted(_chains(function.__code__)):
        name, *rest = chain
        if name.startswith("import "):
            if path := _imported_file(name[len("import ") :], function.__globals__):
                yield name, path
            continue
        if name not in function.__globals__ or name.startswith("__"):
            continue
        value = function.__globals__[name]
        while isinstance(value, types.ModuleType) and rest:
            if is_installed(value.__name__.partition(".")[0]) or not hasattr(value, rest[0]):
                break
            name = f"{name}.{rest[0]}"
            value = getattr(value, rest.pop(0))
        yield name, _from_here(value, function.__globals__.get("__file__"))


def _from_here(value: Any, file: str | None) -> Any:
    """Return a folder that holds the code's own file as its way from there: it may be moved."""
    if file is None or not isinstance(value, str | Path) or not str(value):
        return value
    here = Path(os.path.abspath(file)).parent
    place = Path(os.path.normpath(value))
    if place not in (here, *here.parents):
        return value
    return ["here", len(here.relative_to(place).parts)]


def _chains(code: types.CodeType) -> set[tuple[str, ...]]:
    """Return the global names that code loads, each with the attributes read from it at once."""
    found: set[tuple[str, ...]] = set()
    chain: tuple[str, ...] = ()
    level = 0
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            chain = (step.argval,)
        elif chain and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain = (*chain, step.argval)
        elif step.opname == "IMPORT_NAME":
            chain = ("import " + "." * level + step.argval,)
        else:
            chain = ()
        if step.opname in ("LOAD_CONST", "LOAD_SMALL_INT") and isinstance(step.argval, int):
            level = step.argval
        if chain:
            found.add(chain)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _chains(constant)
    return found


def _imported_file(name: str, names: Mapping[str, Any]) -> Path | None:
    """Return the file of a user's module that a function imports; nothing is imported here."""
    try:
        name = importlib.util.resolve_name(name, names.get("__package__"))
        if is_installed(name.partition(".")[0]):
            return None
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


_ADDING = frozenset({"append", "appendleft", "add", "extend", "update", "insert", "clear"})
"""Methods of containers that a log is written with: they give nothing back."""


def only_written(code: types.CodeType) -> set[str]:
    """Return the names that code adds to and reads nothing of, such as a log's or a counter's.

    Of closures and globals by their names, of attributes with a dot before theirs. Where the code
    is not plain the name is left out: it counts as read.
    """
    written: dict[str, bool] = {}
    for one in _nested(code):
        steps = list(dis.get_instructions(one))
        for place, step in enumerate(steps):
            if step.opname in ("LOAD_DEREF", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_CLASSDEREF"):
                name = str(step.argval)
            elif step.opname == "LOAD_ATTR":
                name = f".{step.argval}"
            else:
                continue
            written[name] = written.get(name, True) and _is_added_to(steps, place)
    return {name for name, only in written.items() if only}


def attributes_of(code: types.CodeType) -> set[str]:
    """Return the names of the attributes and methods that code loads."""
    return {
        str(step.argval)
        for one in _nested(code)
        for step in dis.get_instructions(one)
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD")
    }


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _is_added_to(steps: Sequence[dis.Instruction], place: int) -> bool:
    """Say whether what is loaded at ``place`` is added to at once, and what that gives is dropped.

    That is ``x.append(...)``, ``x += ...`` and ``x[...] = ...`` as statements.
    """
    depth = 1
    called = False
    for number in range(place + 1, min(place + 60, len(steps) - 2)):
        step, following = steps[number], steps[number + 1 : number + 3]
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            return False
        if step.opname == "STORE_SUBSCR" and depth == 2:
            return True
        if number == place + 1 and step.opname in ("LOAD_METHOD", "LOAD_ATTR"):
            called = step.argval in _ADDING
            if not called:
                return False
        depth += dis.stack_effect(step.opcode, step.arg, jump=False)
        if depth < 1:
            return False
        if depth == 1 and step.opname.startswith("CALL"):
            return called and following[0].opname == "POP_TOP"
        if depth == 1 and step.opname == "BINARY_OP" and not called:
            inplace = step.arg is not None and step.arg >= _INPLACE
            stored = [s.argval for s in following if s.opname.startswith("STORE_")][:1]
            return inplace and stored == [steps[place].argval]
    return False


_INPLACE = 13  # of BINARY_OP: its argument from here on is += and the like
