"""The folder of a saved program: what is written, what is read, and what a program depends on."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy

from promptflow import storage
from promptflow.errors import ProgramError, StoreCorrupt, StoreError, StoreNotFound, names_options
from promptflow.layout import layout_identity
from promptflow.lm import is_local, lm_of
from promptflow.program.classes import named_classes, table_of
from promptflow.program.identity import code_hash, index_hash
from promptflow.program.walk import modules_of, predictors_of
from promptflow.signatures import Document, dump_document

FORMAT = 1
FILE = "program.toml"


@names_options
def save_program(module: Any, folder: str | Path, *, lock: Mapping[str, Any] | None = None) -> Path:
    """Write a program to ``folder``, atomically: a killed save leaves what was there before.

    The lock holds what ``lock_of`` finds, and ``lock`` (of an optimizer: hashes of its data).
    Types that are classes of the user's are written by their path, which names no class of a
    function or of the program that was started. Returns the folder. Raises ProgramError where the
    folder holds something else and for what cannot be written, SignatureError for types.
    """
    folder = Path(folder)
    _check_folder(folder)
    texts = _texts(module, lock or {})
    with storage.replace_folder(folder) as made:
        for name, text in texts.items():
            storage.write_text(made / name, text)
    return folder


def check_savable(module: Any, folder: str | Path | None = None) -> None:
    """Raise what ``save_program`` would, naming what cannot be written: ask before a long run."""
    if folder is not None:
        _check_folder(Path(folder))
    _texts(module, {})


def _check_folder(folder: Path) -> None:
    if (
        folder.exists()
        and not (folder / FILE).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise ProgramError(f"{folder}: holds something that is no program; save to another folder")


def _texts(module: Any, lock: Mapping[str, Any]) -> dict[str, str]:
    """Return what a program's files hold, by their names; ``program.toml`` is the last."""
    predictors = dict(predictors_of(module))
    files = _file_names(predictors)
    named = named_classes(module)
    tables: dict[str, Any] = {
        "format": FORMAT,
        "module": type(module).__name__,
        "settings": own_settings(module),
        "parts": [
            {"name": name, "module": type(part).__name__, "settings": own_settings(part)}
            for name, part in modules_of(module)
        ],
        "predictors": {
            name: {"file": files[name], "settings": _predictor_settings(predictor)}
            for name, predictor in predictors.items()
        },
        **({"types": table_of(named)} if named else {}),
        "lock": {**lock_of(module), **lock},
    }
    try:
        texts = {
            files[name]: dump_document(_document(predictor), named)
            for name, predictor in predictors.items()
        }
        return {**texts, FILE: storage.toml_dumps(tables)}
    except StoreError as error:
        raise ProgramError(f"{type(module).__name__} cannot be saved: {error}") from error


@dataclass(frozen=True, slots=True)
class Saved:
    """The content of ``program.toml``; ``parts`` and ``predictors`` by their path."""

    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    predictors: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: dict[str, Any] = field(default_factory=dict)
    types: dict[str, dict[str, str]] = field(default_factory=dict)


def read_folder(folder: Path) -> Saved:
    """Read ``program.toml``. Raises StoreNotFound, StoreCorrupt; ProgramError for its format."""
    path = folder / FILE
    if not path.is_file():
        raise StoreNotFound(f"{path}: no such file; {folder} is no saved program")
    try:
        tables = storage.toml_loads(storage.read_text(path))
        if tables["format"] != FORMAT:
            raise ProgramError(
                f"{path}: written in format {tables['format']}, this version reads {FORMAT}; "
                "save the program again with this version"
            )
        predictors = {name: dict(entry) for name, entry in tables["predictors"].items()}
        if outside := [e["file"] for e in predictors.values() if Path(e["file"]).name != e["file"]]:
            raise ValueError(f"documents outside the folder: {outside}")
        for name, entry in predictors.items():
            settings = entry.get("settings", {})
            if not isinstance(settings, dict) or not isinstance(settings.get("config", {}), dict):
                raise ValueError(f"the settings of {name} are {settings!r}, expected a table")
        return Saved(
            str(tables["module"]),
            dict(tables.get("settings", {})),
            {part["name"]: part for part in tables.get("parts", [])},
            predictors,
            dict(tables.get("lock", {})),
            {
                n: {k: str(e[k]) for k in ("path", "shape")}
                for n, e in tables.get("types", {}).items()
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreCorrupt(
            f"{path}: damaged ({type(error).__name__}: {error}); save the program again"
        ) from error


def _file_names(predictors: Mapping[str, Any]) -> dict[str, str]:
    """Return a file name for each predictor, from its path."""
    files: dict[str, str] = {}
    for name in predictors:
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "predictor"
        stem = stem if f"{stem}.toml" != FILE else f"{stem}-1"
        while f"{stem}.toml" in files.values():
            stem += "-1"
        files[name] = f"{stem}.toml"
    return files


def _document(predictor: Any) -> Document:
    demos = tuple(dict(demo.items()) for demo in predictor.demos)
    layout = settings_of(predictor).get("layout", "")
    compiled = getattr(predictor, "compiled", None) or {}
    return Document(predictor.signature, demos, layout, compiled)


def own_settings(module: Any) -> dict[str, Any]:
    """Return a module's settings; a predictor's are with its document."""
    if isinstance(module, dspy.Predict) or not hasattr(module, "settings"):
        return {}
    settings: dict[str, Any] = module.settings()
    return {key: value for key, value in settings.items() if value is not None}


def settings_of(predictor: Any) -> dict[str, Any]:
    """Return how a predictor decodes as JSON data; one of DSPy's own says nothing of it."""
    settings: dict[str, Any] = predictor.settings() if hasattr(predictor, "settings") else {}
    return settings


def _predictor_settings(predictor: Any) -> dict[str, Any]:
    settings = settings_of(predictor)
    if predictor.config:
        settings["config"] = {k: v for k, v in predictor.config.items() if v is not None}
    return {key: value for key, value in settings.items() if key != "layout"}


def lock_of(program: Any, lm: Any = None) -> dict[str, str]:
    """Return what a program depends on, each with its hash.

    That is model, chat template, indexes, the code of the user's own modules, layouts of files.

    Of ``lm`` or the configured LM; without one the model is left out.
    """
    lock = {}
    lm = lm or dspy.settings.lm
    lm = lm and lm_of(lm)
    if is_local(lm):
        info = lm.text_engine.info
        lock["model"] = f"{info.name}@{info.sha256}"
        lock["template"] = storage.sha256_bytes(info.template.encode())
    elif lm is not None:
        lock["model"] = str(lm.model)
    parts = [("", program), *modules_of(program)]
    if code := code_hash([part for _, part in parts]):
        lock[f"code {sys.implementation.cache_tag}"] = code
    for name, part in predictors_of(program):
        layout = settings_of(part).get("layout", "")
        if layout.endswith(".jinja"):
            lock[f"{name}.layout"] = layout_identity(layout)
    for name, part in parts:
        index = getattr(part, "index", None)
        at = f"{name}.index".lstrip(".")
        if index is not None and hasattr(index, "manifest"):
            lock[at] = f"{index.name}@{index_hash(index)}"
        for own, one in getattr(index, "retrievers", {}).items():  # several together
            if hasattr(one, "manifest"):
                lock[f"{at} {own}"] = f"{one.name}@{index_hash(one)}"
    return lock
