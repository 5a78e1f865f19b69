"""What a program is: one description of everything that decides what it answers, and its hash.

Code counts as Python runs it (instructions, constants, closures, defaults, the globals it reads),
not as its text: comments, file names and line numbers decide nothing. What Python, DSPy, promptflow
and installed packages bring counts by name and version. Equal programs are equal in any process.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import logging
import math
import re
import sys
import threading
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import dspy
import pydantic
from pydantic.fields import FieldInfo

from promptflow.engine.interface import ModelInfo
from promptflow.errors import ProgramError
from promptflow.layout import Decoding, layout_identity
from promptflow.modules import Predict, ZeroShotCoT
from promptflow.program.code import (
    attributes_of,
    globals_of,
    only_written,
    own_class,
    own_file,
    release,
)
from promptflow.signatures import begins_with_default, own_instructions
from promptflow.storage import canonical, sha256_bytes, sha256_of

FORMAT = 2
"""Counts up when equal programs get other hashes: nothing made under another format is reused."""

FRAMES = 8000
"""Python frames that a walk over a program may take: some 1,000 functions in a row."""

_RUNTIME = frozenset({"callbacks", "history", "_compiled", "compiled", "stage", "traces", "train"})
_RUNTIME |= {"seen"}
"""Attributes of modules that record what happened and decide nothing."""

_MADE = frozenset({"__dict__", "__weakref__", "__module__", "__qualname__", "__annotations__"})
_MADE |= {"__annotate__", "__annotate_func__", "__annotations_cache__", "__slotnames__"}
_MADE |= {"__firstlineno__", "__static_attributes__", "__abstractmethods__", "__parameters__"}
_MADE |= {"__orig_bases__", "__dataclass_fields__", "__dataclass_params__", "__signature__"}
_MADE |= {"_abc_impl", "__hash__", "__match_args__", "__private_attributes__", "__class_vars__"}
_MADE |= {"_member_map_", "_member_names_", "_value2member_map_", "_unhashable_values_"}
"""Attributes of classes that Python and pydantic write from the others."""

_WRITTEN = frozenset({"_attributes_set", "_qualifiers", "_complete", "_original_assignment"})
_WRITTEN |= {"_original_annotation"}
"""What pydantic notes of a field beside the field."""


def hash_of(value: Any) -> str:
    """Return the SHA-256 of all that decides ``value``: JSON data, code, modules, types."""
    with _deep(value):
        return sha256_bytes(canonical(_Description().of(value)).encode())


def program_state(program: Any) -> Any:
    """Return what decides the answers of a program, as JSON data.

    Code and settings of every module inside, whether held in attributes, containers, closures or
    globals; of every predictor its instructions, typed fields, demos, decoding, LM, and the text
    of its layout; of an index its content. Raises TemplateError for a layout that is not there.
    """
    with _deep(program):
        return {"format": FORMAT, "program": _Description().of(program)}


def program_identity(program: Any) -> str:
    """Return the SHA-256 of ``program_state``: programs that differ may not share results."""
    with _deep(program):
        return sha256_bytes(canonical(program_state(program)).encode())


def code_hash(modules: Sequence[Any]) -> str:
    """Return a hash of the classes of the user's among modules, empty where there are none.

    Of their code as this version of Python runs it: another minor version has another hash.
    """
    own = [type(module) for module in modules if own_class(type(module))]
    return hash_of(own) if own else ""


def engines_of(*values: Any) -> list[Any]:
    """Return the engines of this process that programs, metrics and LMs ask, each once."""
    description = _Description()
    for value in values:
        with _deep(value):
            description.of(value)
    return list(description.engines.values())


def index_hash(index: Any) -> str:
    """Return a hash of what decides an index's content: documents, chunking and embedder."""
    manifest = index.manifest
    documents = [[entry["path"], entry["sha256"]] for entry in index.store.documents()]
    content = [documents, manifest.settings, manifest.embedder["sha256"]]
    return sha256_bytes(canonical(content).encode())


def adapter_state(adapter: Any = None) -> Any:
    """Return what decides how DSPy words a prompt: of ``adapter``, or of the configured one."""
    return _Description().of(adapter or dspy.settings.adapter or dspy.ChatAdapter())


@contextmanager
def _deep(value: Any) -> Iterator[None]:
    """Let a walk over ``value`` go deep: functions that call functions make long ways."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, FRAMES))
    try:
        yield
    except RecursionError as error:
        raise ProgramError(
            f"{type(value).__name__}: holds values that are nested too deeply to be identified"
        ) from error
    finally:
        sys.setrecursionlimit(limit)


@dataclass(slots=True)
class _Description:
    """One walk over a value. ``known`` keeps what is described, ``path`` what is being described.

    Equal values are described equally whether they are one object or two; a value inside itself is
    described by how far up it stands. ``engines`` are those met on the way.
    """

    known: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    path: list[int] = field(default_factory=list)
    engines: dict[int, Any] = field(default_factory=dict)

    def of(self, value: Any) -> Any:
        """Return the description of a value as JSON data."""
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, float) and not isinstance(value, enum.Enum):
            return float(value) if math.isfinite(value) else {"<float>": repr(float(value))}
        if id(value) in self.path:
            return {"<above>": len(self.path) - self.path.index(id(value))}
        if id(value) not in self.known:
            self.path.append(id(value))
            try:
                self.known[id(value)] = (value, self._described(value))
            finally:
                self.path.pop()
        return self.known[id(value)][1]

    def _described(self, value: Any) -> Any:
        if type(value) in (list, tuple):
            return [self.of(item) for item in value]
        if type(value) in (dict, types.MappingProxyType):
            return self._mapping(value)
        if type(value) in (set, frozenset):
            return {"<set>": sorted((self.of(item) for item in value), key=canonical)}
        for kinds, describe in _DESCRIBED:
            if isinstance(value, kinds):
                return describe(self, value)
        if typing.get_origin(value) is not None:
            return self._generic(value)
        return self._instance(value)

    def _mapping(self, value: Mapping[Any, Any]) -> Any:
        if all(type(key) is str for key in value):
            return {key: self.of(item) for key, item in value.items()}
        pairs = [[self.of(key), self.of(item)] for key, item in value.items()]
        return {"<mapping>": sorted(pairs, key=canonical)}

    def bytes(self, value: bytes | bytearray) -> Any:
        """Describe bytes by their hash."""
        return {"<bytes>": sha256_bytes(bytes(value))}

    def member(self, value: enum.Enum) -> Any:
        """Describe a member of an Enum by its class and its value."""
        return {"<member>": [self.of(type(value)), value.name, self.of(value.value)]}

    def file(self, value: Path) -> Any:
        """Describe a path by the content of its file, which may stand anywhere."""
        return {"<file>": sha256_of(value)} if value.is_file() else {"<path>": str(value)}

    def pattern(self, value: re.Pattern[Any]) -> Any:
        """Describe a compiled regex by what it was compiled from."""
        return {"<pattern>": [self.of(value.pattern), value.flags]}

    def code(self, code: types.CodeType) -> Any:
        """Describe what a code object does; its name, its file and its lines do not matter."""
        content = [
            code.co_code.hex(),
            code.co_exceptiontable.hex(),
            [self._constant(constant) for constant in code.co_consts],
            [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars],
            [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags],
        ]
        return {"<code>": sha256_bytes(canonical(content).encode())}

    def _constant(self, constant: Any) -> Any:
        # A type beside the value: True, 1 and 1.0 are equal constants of other programs.
        return [type(constant).__name__, self.of(constant)]

    def function(self, value: types.FunctionType) -> Any:
        """Describe a function by its code, closure, defaults, and the globals that it reads."""
        code = value.__code__
        names = zip(code.co_freevars, value.__closure__ or (), strict=True)
        described = {
            "closure": {name: self._cell(cell) for name, cell in names},
            "defaults": self.of([value.__defaults__, value.__kwdefaults__]),
        }
        module = value.__globals__.get("__name__") or ""
        if not own_file(code.co_filename, module):
            return {"<function>": [f"{module}:{value.__qualname__}", release(module), described]}
        described["code"] = self.of(code)
        kept = {key: item for key, item in vars(value).items() if not key.startswith("__")}
        described["attributes"] = self._mapping(kept)
        logs = only_written(code)  # what a function only writes decides nothing
        read = {name: item for name, item in globals_of(value) if name not in logs}
        described["globals"] = {name: self.of(item) for name, item in read.items()}
        for name in logs & described["closure"].keys():
            described["closure"][name] = {"<written>": None}
        return {"<function>": described}

    def _cell(self, cell: types.CellType) -> Any:
        try:
            return self.of(cell.cell_contents)
        except ValueError:
            return {"<unset>": None}

    def method(self, value: Any) -> Any:
        """Describe a bound method by its function and what it is bound to."""
        return {"<method>": [self.of(value.__func__), self.of(value.__self__)]}

    def builtin(self, value: Any) -> Any:
        """Describe a function that is not written in Python by its name and its owner."""
        owner = getattr(value, "__self__", None)
        bound = None if isinstance(owner, types.ModuleType) else self.of(owner)
        return {"<builtin>": [value.__module__, value.__qualname__, bound]}

    def wrapped(self, value: Any) -> Any:
        """Describe a staticmethod, a classmethod or a cache by the function inside."""
        return {f"<{type(value).__name__}>": self.of(value.__wrapped__)}

    def property(self, value: property) -> Any:
        """Describe a property by its functions."""
        return {"<property>": self.of([value.fget, value.fset, value.fdel])}

    def partial(self, value: Any) -> Any:
        """Describe a partial by its function and the arguments that it holds."""
        return {"<partial>": self.of([value.func, value.args, value.keywords])}

    def module(self, value: types.ModuleType) -> Any:
        """Describe a Python module by its name: what is read from it is described there."""
        return {"<import>": [value.__name__, release(value.__name__)]}

    def cls(self, value: type[Any]) -> Any:
        """Describe a class: its own code, or the name of one that a package brings."""
        if issubclass(value, dspy.Signature):
            return self.signature(value)
        own = [base for base in value.__mro__ if own_class(base)]
        if value not in own:
            return {"<class>": [_name(value), release(value.__module__)]}
        described: dict[str, Any] = {"name": value.__name__}
        described["bases"] = [_name(base) for base in value.__mro__ if base not in own][:-1]
        described["own"] = [self._body(base) for base in own]
        if issubclass(value, enum.Enum):
            described["members"] = self.of([[n, m.value] for n, m in value.__members__.items()])
        elif issubclass(value, pydantic.BaseModel):
            fields = value.model_fields.items()
            described["fields"] = [[name, self.of(info)] for name, info in fields]
        else:
            described["fields"] = self._annotations(value)
        if decorators := vars(value).get("__pydantic_decorators__"):
            described["decorators"] = [
                {name: self.of(one.info) for name, one in getattr(decorators, kind.name).items()}
                for kind in dataclasses.fields(decorators)
            ]
        return {"<class>": described}

    def _body(self, cls: type[Any]) -> Any:
        """Describe what a class statement wrote: methods, constants, nested classes."""
        members = set(getattr(cls, "__members__", ()))
        return {
            name: self.of(item)
            for name, item in sorted(vars(cls).items())
            if name not in _MADE and name not in members and not name.startswith("__pydantic")
            if not isinstance(item, types.GetSetDescriptorType | types.MemberDescriptorType)
        }

    def _annotations(self, cls: type[Any]) -> Any:
        """Describe the annotated names of a class in order, with what dataclasses add to them."""
        try:
            hints = typing.get_type_hints(cls, include_extras=True)
        except Exception:  # a name that is not there yet stays text
            hints = dict(inspect.get_annotations(cls))
        added = {
            name: [f.default, f.default_factory, f.init, f.kw_only, dict(f.metadata)]
            for name, f in getattr(cls, "__dataclass_fields__", {}).items()
        }
        required = sorted(getattr(cls, "__required_keys__", ()))
        fields = [[n, self.of(hint), self.of(added.get(n))] for n, hint in hints.items()]
        return [fields, required] if fields else []

    def _generic(self, value: Any) -> Any:
        """Describe ``list[int]``, ``Literal["a"]``, ``Annotated[int, Ge(1)]``, ``A | B``."""
        origin, arms = typing.get_origin(value), list(typing.get_args(value))
        arms += getattr(value, "__metadata__", ())
        if origin is typing.Literal:
            return {"<literal>": [self._constant(arm) for arm in arms]}
        return {"<type>": [self.of(origin), [self.of(arm) for arm in arms]]}

    def alias(self, value: Any) -> Any:
        """Describe a NewType or a type alias by what it stands for."""
        meant = getattr(value, "__supertype__", None) or getattr(value, "__value__", None)
        return {"<alias>": [value.__name__, self.of(meant)]}

    def field_info(self, value: FieldInfo) -> Any:
        """Describe a field: type, limits, default, label, description."""
        return {
            name: self.of(item)
            for name in sorted(FieldInfo.__slots__)
            if name not in _WRITTEN and (item := getattr(value, name, None)) is not None
        }

    def signature(self, value: type[dspy.Signature], said: Sequence[Any] = ()) -> Any:
        """Describe a signature: instructions, and its fields in order."""
        fields = [[name, self.field_info(info)] for name, info in value.fields.items()]
        return {"<signature>": [said or value.instructions, fields]}

    def predictor(self, value: dspy.Predict) -> Any:
        """Describe a predictor; DSPy's own are worded by an adapter."""
        held = {name: item for name, item in vars(value).items() if name not in _RUNTIME}
        names = value.signature.fields
        held["demos"] = [{n: demo[n] for n in names if n in demo} for demo in value.demos]
        described = {"class": self.of(type(value)), "attributes": self._attributes(value, held)}
        if not isinstance(value, Predict) or _foreign(value.lm):
            described["adapter"] = adapter_state()
        else:  # our layouts show no sentence of DSPy's
            made = value.signature
            said = [own_instructions(made), begins_with_default(made)]
            described["attributes"]["signature"] = self.signature(made, said)
        return {"<predictor>": described}

    def program(self, value: dspy.Module) -> Any:
        """Describe a module by its class and its attributes, but those that it only writes."""
        logs = _logs(type(value))
        apart = _RUNTIME | logs
        held = {name: item for name, item in vars(value).items() if name not in apart}
        if isinstance(value, ZeroShotCoT):
            del held["triggers"]  # a document's name; its labels are in the predictors' signatures
        described = {"class": self.of(type(value)), "attributes": self._attributes(value, held)}
        return {"<module>": described}

    def _attributes(self, owner: Any, held: Mapping[str, Any]) -> Any:
        described = {str(name): self.of(item) for name, item in held.items()}
        layout = held.get("layout")
        if layout and isinstance(owner, Decoding):
            described["layout"] = {"<layout>": layout_identity(layout)}
        return described

    def retrieve(self, value: dspy.Retrieve) -> Any:
        """Describe DSPy's retriever with the configured one, which it asks."""
        held = {name: item for name, item in vars(value).items() if name not in _RUNTIME}
        described = [self.of(type(value)), self._attributes(value, held)]
        return {"<retrieve>": [*described, self.of(dspy.settings.rm)]}

    def example(self, value: dspy.Example) -> Any:
        """Describe an example by its values."""
        return {"<example>": self._mapping(dict(value))}

    def lm(self, value: dspy.BaseLM) -> Any:
        """Describe an LM by its model and the settings of its calls; keys are nobody's answer."""
        engine = getattr(value, "text_engine", None)
        kwargs = {k: v for k, v in value.kwargs.items() if v is not None and "key" not in k}
        if engine is not None:
            self.engines[id(engine)] = engine
            return {"<lm>": [engine.info.identity, engine.info.context, self.of(kwargs)]}
        described = [self.of(type(value)), value.model, self.of(kwargs)]
        if not type(value).__module__.startswith("dspy.clients."):
            apart = {*_RUNTIME, "kwargs", "engine", "async_engine", "cache", "num_retries"}
            held = {name: item for name, item in vars(value).items() if name not in apart}
            described.append(self._attributes(value, held))
        return {"<lm>": [*described, self.of(type(getattr(value, "engine", None)))]}

    def _instance(self, value: Any) -> Any:
        """Describe any other object by its class and what it holds."""
        if hasattr(value, "manifest") and hasattr(value, "store"):
            return {"<index>": index_hash(value)}
        if isinstance(info := getattr(value, "info", None), ModelInfo):
            self.engines[id(value)] = value
            return {"<engine>": [info.identity, info.context]}
        described: dict[str, Any] = {"class": self.of(type(value))}
        if isinstance(value, threading.Thread | Executor | logging.Logger):
            return {"<object>": described}
        held = dict(vars(value)) if hasattr(value, "__dict__") else {}
        for base in type(value).__mro__:
            slots = vars(base).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if not name.startswith("__") and hasattr(value, name):
                    held[name] = getattr(value, name)
        if isinstance(value, pydantic.BaseModel):
            held |= {**(value.__pydantic_extra__ or {}), **(value.__pydantic_private__ or {})}
            held = {k: v for k, v in held.items() if not k.startswith("__pydantic")}
        for name in held.keys() & _logs(type(value)):
            del held[name]
        described["attributes"] = self._attributes(value, held)
        described["content"] = self._content(value)
        return {"<object>": described}

    def _content(self, value: Any) -> Any:
        """Describe what a value holds beside attributes: as a container, or as it is copied."""
        kinds: tuple[Any, ...] = (str, int, list, tuple, set, frozenset, dict)
        for kind in kinds:
            if isinstance(value, kind):
                return self.of(kind(value))
        if hasattr(value, "tobytes") and hasattr(value, "dtype"):
            held = self.of(value.tolist()) if value.dtype.hasobject else None  # else addresses
            data = held or sha256_bytes(value.tobytes())
            return [str(value.dtype), list(value.shape), data]
        if is_dataclass(value) or isinstance(value, pydantic.BaseModel):
            return None
        try:
            made = value.__reduce_ex__(2)
        except Exception:  # a lock, a file, a connection: it is what its class is
            return None
        if isinstance(made, str):
            return made
        items = [list(part) for part in made[3:] if isinstance(part, Iterator)]
        return self.of(items if own_class(type(value)) else [*made[:3], items])


_DESCRIBED: Sequence[tuple[Any, Any]] = (
    ((bytes, bytearray), _Description.bytes),
    (enum.Enum, _Description.member),
    (Path, _Description.file),
    (re.Pattern, _Description.pattern),
    (types.CodeType, _Description.code),
    (dspy.Retrieve, _Description.retrieve),
    (dspy.Predict, _Description.predictor),
    (dspy.Module, _Description.program),
    (dspy.BaseLM, _Description.lm),
    (dspy.Example, _Description.example),
    (FieldInfo, _Description.field_info),
    (types.FunctionType, _Description.function),
    (types.MethodType, _Description.method),
    (types.BuiltinFunctionType, _Description.builtin),
    (functools.partial, _Description.partial),
    ((staticmethod, classmethod, functools._lru_cache_wrapper), _Description.wrapped),
    (property, _Description.property),
    (types.ModuleType, _Description.module),
    (typing.NewType, _Description.alias),
    (type, _Description.cls),
)
"""How values of a kind are described: the first that fits."""


def _logs(cls: type[Any]) -> frozenset[str]:
    """Return the attributes that no method of the user's reads, and one writes while it runs."""
    written: set[str] = set()
    read: set[str] = set()
    for base in cls.__mro__:
        for name, item in vars(base).items() if own_class(base) else ():
            if isinstance(item, types.FunctionType) and name != "__init__":
                logs = only_written(item.__code__)
                written |= {log[1:] for log in logs if log.startswith(".")}
                read |= {a for a in attributes_of(item.__code__) if f".{a}" not in logs}
    return frozenset(written - read)


def _foreign(lm: Any) -> bool:
    """Say whether this is an LM that DSPy's adapter asks."""
    lm = lm or dspy.settings.lm
    return lm is not None and getattr(lm, "text_engine", None) is None


def _name(cls: type[Any]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"
