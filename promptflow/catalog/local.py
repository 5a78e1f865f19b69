"""Models on this machine: finding them and telling whether they are the ones named."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from promptflow import storage
from promptflow.catalog.entries import Model, models
from promptflow.errors import HashMismatch, ModelNotFound
from promptflow.gguf import check_gguf
from promptflow.progress import bar
from promptflow.storage import sha256_cached

Seen = Callable[[int], object]


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

    A file is hashed once and then known by size and time. ``trust`` as for ``models``. Raises
    ModelNotFound, with the command that fetches it, HashMismatch, and ModelInvalid for a path that
    leads to no whole GGUF.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    is_path = isinstance(name_or_path, Path) or "/" in name or name.endswith(".gguf")
    if not is_path and (name in models(trust=trust) or not path.exists()):
        return _checked(named(name, trust=trust))
    if not path.exists():
        known = ", ".join(models(trust=trust))
        raise ModelNotFound(f"{path}: no such file. Models by name: {known}.")
    if not (path / "config.json").is_file():
        check_gguf(path)
    return path


def is_present(model: Model) -> bool:
    """Whether the model's files are there, whatever they hold."""
    if model.kind == "gguf":
        return model.place.is_file()
    return all((model.place / file).is_file() for file in (model.file, *model.hub_files))


def _checked(model: Model) -> Path:
    if not is_present(model):
        raise ModelNotFound(
            f"{model.name} is not on this machine ({model.place}). "
            f"Run `promptflow models get {model.name}` ({model.size / 1e6:,.0f} MB)."
        )
    _compare(model, sha256_cached(model.hashed) if model.sha256 else "")
    return model.place


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
    model = named(name, trust=trust)
    if not is_present(model):
        _checked(model)
    found = ""
    if model.sha256:
        found = hashed(model.hashed, model.name, progress)
        storage.remember_sha256(model.hashed, found)
    _compare(model, found)
    return True


def hashed(path: Path, name: str, progress: bool) -> str:
    """Return the sha256 of a file of the model ``name``, read in full, with a progress bar."""
    done = 0
    with bar(f"checking {name}", path.stat().st_size, progress, in_bytes=True) as seen:

        def block(size: int) -> None:
            nonlocal done
            done += size
            seen(done)

        return storage.sha256_of(path, block)
