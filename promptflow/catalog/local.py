"""Models on this machine: finding them and telling whether they are the ones named."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from promptflow import storage
from promptflow.catalog.candidates import kind_problem
from promptflow.catalog.entries import Model, models
from promptflow.catalog.found import OLLAMA, locate_found, scheme_of
from promptflow.catalog.hashing import hashed, hashed_file, model_sha256
from promptflow.catalog.hub import PREFIX
from promptflow.errors import HashMismatch, ModelInvalid, ModelNotFound
from promptflow.gguf import check_gguf, parts_of, read_gguf, stem_of

HUB_LIKE = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w-]+|/.+\.gguf)?")


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of ``promptflow models list``; ``verified`` is None where no hash is known yet."""

    name: str
    kind: str
    file: str
    size: int
    present: bool
    verified: bool | None
    licence: str
    sources: tuple[str, ...]
    path: str


def named(name: str, *, trust: bool = False) -> Model:
    """Return the entry of that name. Raises ModelNotFound with the closest names."""
    known = models(trust=trust)
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(known)}."
    raise ModelNotFound(f"no model named {name!r} and no file there. {hint}")


def locate(name_or_path: str | Path, *, trust: bool = False) -> Path:
    """Return the verified file of a named model (an embedder's folder), or the path given.

    Of a model in parts, any of them may be named, and the first is returned. Names with a scheme
    (``hf:``, ``ollama:``, ``lmstudio:``, ``llama.cpp:``) lead to what is on this machine. A file is
    hashed once and then known by size and time. ``trust`` as for ``models``. Raises ModelNotFound,
    with the command that fetches it, HashMismatch, and ModelInvalid for a path that leads to no
    whole GGUF of a model.
    """
    if scheme_of(name_or_path):
        return model_file(locate_found(str(name_or_path)))
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    is_path = isinstance(name_or_path, Path) or "/" in name or name.endswith(".gguf")
    if not is_path and (name in models(trust=trust) or not path.exists()):
        return _checked(named(name, trust=trust))
    if not any(part.exists() for part in parts_of(path)):
        known = ", ".join(models(trust=trust))
        hint = f" On the Hugging Face hub it is hf:{name}." if HUB_LIKE.fullmatch(name) else ""
        raise ModelNotFound(f"{path}: no such file.{hint} Models by name: {known}.")
    return model_file(path)


def model_file(path: Path) -> Path:
    """Return the first part of the model at ``path``, or the folder of an encoder.

    Raises ModelInvalid for what is none.
    """
    if (path / "config.json").is_file():
        return path
    header = read_gguf(path)
    if other := kind_problem(header):
        raise ModelInvalid(f"{path}: {other}")
    return header.path


def title(name_or_path: str | Path, path: Path, *, trust: bool = False) -> str:
    """Return what a model at ``path`` is called where it was named so."""
    name = str(name_or_path)
    if scheme_of(name_or_path) == OLLAMA:  # the file is called by its hash
        return name.removeprefix(OLLAMA)
    return name if name in models(trust=trust) else stem_of(path)


def is_present(model: Model) -> bool:
    """Whether the model's files are there, whatever they hold."""
    if model.kind == "gguf":
        return all(part.is_file() for part in parts_of(model.place))
    return all((model.place / file).is_file() for file in (model.file, *model.hub_files))


def _checked(model: Model) -> Path:
    if not is_present(model):
        raise ModelNotFound(
            f"{model.name} is not on this machine ({model.place}). "
            f"Run `promptflow models get {model.name}` ({model.size / 1e6:,.0f} MB)."
        )
    _compare(model, model_sha256(model.hashed) if model.sha256 else "")
    return parts_of(model.place)[0]


def _compare(model: Model, found: str) -> None:
    if model.sha256 and found != model.sha256:
        advice = f"Run `promptflow models get {model.name}` to fetch it again."
        if model.is_local:
            advice = "Correct its path or sha256 in your models.toml."
        if model.made_from:
            form = model.name.rpartition("-")[2]
            advice = f"Run `promptflow models requantize {model.made_from} --type {form}` again."
        raise HashMismatch(
            f"{model.name}: {model.hashed} has sha256 {found}, the catalogue says {model.sha256}. "
            + advice
        )
    if not model.sha256 and model.kind == "gguf":
        check_gguf(model.place)


def listing(*, trust: bool = False) -> list[Listed]:
    """Return what is known of every model without reading one: see Listed."""
    lines = []
    for model in models(trust=trust).values():
        present = is_present(model)
        found = storage.recall_sha256(model.hashed) if present and model.sha256 else None
        lines.append(
            Listed(
                name=model.name,
                kind=model.kind,
                file=model.file,
                size=model.size,
                present=present,
                verified=None if found is None else found == model.sha256,
                licence=model.licence,
                sources=model.sources,
                path=str(model.place),
            )
        )
    return lines


def verify(name: str, *, progress: bool = True, trust: bool = False) -> bool:
    """Hash the model's file again and return True. Raises HashMismatch and ModelNotFound."""
    if scheme_of(name) in (PREFIX, OLLAMA):
        locate_found(name, lambda path: hashed_file(path, name, progress))
        return True
    if scheme_of(name):
        raise ModelNotFound(f"{name}: no sha256 of it is known, so that nothing can be compared")
    model = named(name, trust=trust)
    if not is_present(model):
        _checked(model)
    _compare(model, hashed(model.hashed, model.name, progress) if model.sha256 else "")
    return True
