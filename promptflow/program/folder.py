"""The folder of a saved program: what is written, what is read, and what a program depends on."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy

from promptflow import storage
from promptflow.errors import ProgramError, StoreCorrupt, StoreNotFound
from promptflow.program.identity import index_hash
from promptflow.program.walk import modules_of, predictors_of
from promptflow.signatures import Document, write_document

FORMAT = 1
FILE = "program.toml"


def save_program(module: Any, folder: str | Path, *, lock: Mapping[str, Any] | None = None) -> Path:
    """Write a program to ``folder``, atomically: a killed save leaves what was there before.

    The lock holds what ``lock_of`` finds, and ``lock`` (of an optimizer: hashes of its data).
    Returns the folder. Raises ProgramError where the folder holds something else, and
    SignatureError for types that cannot be written in a document.
    """
    folder = Path(folder)
    if (
        folder.exists()
        and not (folder / FILE).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise ProgramError(f"{folder}: holds something that is no program; save to another folder")
    predictors = dict(predictors_of(module))
    files = _file_names(predictors)
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
        "lock": {**lock_of(module), **(lock or {})},
    }
    with storage.replace_folder(folder) as made:
        for name, predictor in predictors.items():
            write_document(made / files[name], _document(predictor))
        storage.write_text(made / FILE, storage.toml_dumps(tables))
    return folder


@dataclass(frozen=True, slots=True)
class Saved:
    """The content of ``program.toml``; ``parts`` and ``predictors`` by their path."""

    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    predictors: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: dict[str, Any] = field(default_factory=dict)


def read_folder(folder: Path) -> Saved:
    """Read ``program.toml``. Raises StoreNotFound, StoreCorrupt; ProgramError for its format."""
    path = folder / FILE
    if not path.is_file():
        raise StoreNotFound(f"{path}: no such file; {folder} is no saved program")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        if tables["format"] != FORMAT:
            raise ProgramError(
                f"{path}: written in format {tables['format']}, this version reads {FORMAT}; "
                "save the program again with this version"
            )
        predictors = {name: dict(entry) for name, entry in tables["predictors"].items()}
        if outside := [e["file"] for e in predictors.values() if Path(e["file"]).name != e["file"]]:
            raise ValueError(f"documents outside the folder: {outside}")
        return Saved(
            str(tables["module"]),
            dict(tables.get("settings", {})),
            {part["name"]: part for part in tables.get("parts", [])},
            predictors,
            dict(tables.get("lock", {})),
        )
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
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
    """Return what a program depends on: model, chat template and indexes, each with its hash.

    Of ``lm`` or the configured LM; without one the model is left out.
    """
    lock = {}
    engine = getattr(lm or dspy.settings.lm, "text_engine", None)
    if engine is not None:
        info = engine.info
        lock["model"] = f"{info.name}@{info.sha256}"
        lock["template"] = storage.sha256_bytes(info.template.encode())
    for name, part in [("", program), *modules_of(program)]:
        index = getattr(part, "index", None)
        if index is not None and hasattr(index, "manifest"):
            lock[f"{name}.index".lstrip(".")] = f"{index.name}@{index_hash(index)}"
    return lock
