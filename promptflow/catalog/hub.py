"""Models by their name on the Hugging Face hub, kept in the cache of the hub's own library.

What is in the cache is used without a network. The sha256 of each file is recorded in the user's
folder when it is first used, and demanded from then on, wherever the file comes from.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptflow import storage
from promptflow.catalog.candidates import (
    Candidate,
    candidates,
    choose,
    is_model_path,
    listed,
    part_files,
)
from promptflow.catalog.encoders import MODULES, encoder_files, encoder_in, missing_of
from promptflow.catalog.hashing import Hash, hashed_file, known_sha256
from promptflow.download import (
    SHA256,
    HubFile,
    Unavailable,
    folder_size,
    hub_bytes,
    hub_cache,
    hub_file,
    hub_files,
    is_offline,
    is_plain_path,
    is_repository,
)
from promptflow.errors import DiskFull, HashMismatch, ModelNotFound, StoreCorrupt, StoreError
from promptflow.progress import bar
from promptflow.terminal import say

PREFIX = "hf:"
MAIN = "main"
FORMS = "hf:org/repo, hf:org/repo:Q4_K_M or hf:org/repo/file.gguf, each with @revision if wanted"
VERSION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""An etag or a commit: both become names of files."""


@dataclass(frozen=True, slots=True)
class HubName:
    """``hf:org/repo``, and which of its models: a file, a quantization, or the only one."""

    repository: str
    file: str = ""
    quant: str = ""
    revision: str = MAIN

    @property
    def place(self) -> str:
        """Return the name of the repository as it is typed."""
        return PREFIX + self.repository

    @property
    def at(self) -> str:
        """Return the revision as it is typed, at the end of a name."""
        return "" if self.revision == MAIN else f"@{self.revision}"

    @property
    def text(self) -> str:
        """Return the name as it is typed."""
        which = f"/{self.file}" if self.file else f":{self.quant}" if self.quant else ""
        return self.place + which + self.at

    @property
    def folder(self) -> Path:
        """Return the repository's folder in the cache, whether it is there or not."""
        return hub_cache() / f"models--{self.repository.replace('/', '--')}"


def hub_name(text: str) -> HubName:
    """Read a name. Raises ModelNotFound for another form, and for what is no plain name."""
    rest, middle, quant = text.removeprefix(PREFIX), "", ""
    pieces = re.fullmatch(r"([^/@:]+/[^/@:]+)(.*)", rest, re.DOTALL)
    if pieces is None:
        raise ModelNotFound(f"{text!r} is no name of a model on the hub; write {FORMS}")
    repository, rest = pieces[1], pieces[2]
    revision = MAIN
    if rest.startswith("@") and rest.lower().endswith(".gguf"):
        # A revision may hold slashes, and nobody can tell them from a folder's but in refs/.
        middle, rest = _split(rest[1:])
    elif rest.startswith("@") and ":" in rest:
        middle, _, quant = rest[1:].partition(":")
        rest = f":{quant}"
    if middle:
        revision = middle
    else:
        rest, at, after = rest.partition("@")
        revision = after if at else MAIN
    name = HubName(
        repository,
        rest[1:] if rest.startswith("/") else "",
        rest[1:] if rest.startswith(":") else "",
        revision,
    )
    fine = (
        is_repository(name.repository)
        and is_plain_path(name.revision)
        and (not rest or bool(name.file or name.quant))
        and (not name.file or is_model_path(name.file))
        and (not name.quant or VERSION.fullmatch(name.quant))
    )
    if not fine:
        raise ModelNotFound(f"{text!r} is no name of a model on the hub; write {FORMS}")
    return name


def _split(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"(refs/[^/]+/[^/]+|[^/]+)(/.*)", text, re.DOTALL)
    return (match[1], match[2]) if match else (text, "")


def cached(name: HubName) -> tuple[Path, tuple[str, ...]] | None:
    """Return the snapshot of the cache that holds the model whole, and its files there.

    That is the revision's snapshot, else any in which all files are those recorded. None if there
    is none. Raises ModelNotFound where a snapshot holds several of what was named.
    """
    current = _current(name)
    if current is not None and (files := _files_in(name, current)):
        return current, files
    for snapshot in _snapshots(name):
        files = _files_in(name, snapshot)
        if files and all(_is_recorded(name, snapshot, file) for file in files):
            return snapshot, files
    return None


def _current(name: HubName) -> Path | None:
    commit = name.revision
    with contextlib.suppress(OSError, ValueError):  # a commit has no ref
        commit = storage.read_text(name.folder / "refs" / name.revision, 1000).strip()
    snapshot = name.folder / "snapshots" / commit
    return snapshot if VERSION.fullmatch(commit) and snapshot.is_dir() else None


def _snapshots(name: HubName) -> list[Path]:
    return sorted(path for path in name.folder.glob("snapshots/*") if path.is_dir())


def _files_in(name: HubName, snapshot: Path) -> tuple[str, ...]:
    """Return the files of the named model in a snapshot, none if it is not whole there.

    A GGUF file, or the first of its parts, comes before what else there is; an encoder is taken
    where there is no GGUF file.
    """
    if name.file:
        parts = part_files(name.file)
        return parts if all((snapshot / part).is_file() for part in parts) else ()
    files = {
        path.relative_to(snapshot).as_posix(): path.stat().st_size
        for path in snapshot.rglob("*")
        if path.name.lower().endswith(".gguf") and path.is_file()
    }
    found = [one for one in candidates(files) if not one.missing]
    if not found and not name.quant:
        return encoder_in(snapshot)
    try:
        return choose(found, name.quant, name.place, name.at).parts
    except ModelNotFound:
        if len(found) > 1 and not name.quant:
            raise
        return ()


def _is_recorded(name: HubName, snapshot: Path, file: str) -> bool:
    recorded = _recorded(_pin(name, file))
    return bool(recorded) and storage.sha256_cached(snapshot / file) == recorded


def locate_hub(name: HubName, sha256: Hash | None = None) -> Path:
    """Return a model of the cache, its first part or an encoder's folder, as it was recorded.

    ``sha256`` gives the hash of a file, where it is not the one that is known. Asks no network.
    Raises ModelNotFound with the command that fetches it, and HashMismatch.
    """
    found = cached(name)
    if found is None:
        others = [path.name for path in _snapshots(name) if _files_in(name, path)]
        hint = f" Other revisions of it are: {listed(f'@{one}' for one in others)}." * bool(others)
        raise ModelNotFound(
            f"{name.text} is not on this machine (looked in {name.folder}). "
            f"Run `promptflow models get {name.text}`.{hint}"
        )
    return _checked(name, *found, sha256)


def _checked(
    name: HubName, snapshot: Path, files: Sequence[str], sha256: Hash | None = None
) -> Path:
    """Compare all files with what is recorded; record what is used for the first time."""
    for file in files:
        path = snapshot / file
        found = sha256(path) if sha256 else known_sha256(path, name.text)
        published = _published(path)
        if published and found != published:
            raise HashMismatch(
                f"{name.text}: {path} has sha256 {found}, and the hub published {published}: it is "
                f"damaged. Remove {path.resolve()} and run `promptflow models get {name.text}`."
            )
        recorded = _recorded(_pin(name, file))
        if recorded and found != recorded:
            raise _changed(name, file, found, recorded)
        if not recorded:
            _record(name, file, found, path.stat().st_size)
    return snapshot if files[0] == MODULES else snapshot / files[0]


def _published(path: Path) -> str:
    """Return the hash by which the cache names a file's bytes, where it does."""
    # One step only: the bytes may be shared with other repositories under another kind of name.
    if path.is_symlink() and SHA256.fullmatch(blob := path.readlink().name):
        return blob
    return ""


def _changed(name: HubName, file: str, found: str, recorded: str) -> HashMismatch:
    return HashMismatch(
        f"{name.text}: {file} has sha256 {found}, and {recorded} was recorded when it was first "
        f"used. If the new file is the one you want, run `promptflow models get {name.text} "
        "--accept`; if not, name the earlier one by its commit, as in "
        f"{PREFIX}{name.repository}@COMMIT."
    )


def _pin(name: HubName, file: str) -> Path:
    key = storage.canonical([name.repository.lower(), name.revision, file])
    return storage.config_dir() / "hub" / f"{storage.sha256_bytes(key.encode())[:32]}.json"


def _recorded(pin: Path) -> str:
    if not pin.exists():
        return ""
    try:
        found = storage.read_json(pin)
    except StoreCorrupt:
        found = None
    sha256 = found.get("sha256") if isinstance(found, dict) else None
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise HashMismatch(f"{pin}: holds no sha256; remove it to record the model's anew")
    return sha256


def _record(name: HubName, file: str, sha256: str, size: int) -> None:
    about = {"repository": name.repository, "revision": name.revision, "file": file}
    try:
        storage.write_json(_pin(name, file), {**about, "sha256": sha256, "size": size})
    except StoreError as error:
        say(f"warning: the sha256 of {name.text} is not recorded: {error}", error=True)


def fetch_hub(name: HubName, *, accept: bool = False, progress: bool = True) -> Path:
    """Return the model, downloaded into the hub's cache if it is not there.

    ``accept`` asks the hub even so, and records the bytes that it has now in the place of others.
    An interrupted download goes on where it was. Raises ModelNotFound with what to do next,
    HashMismatch, DiskFull, and StoreBusy while another process fetches from the same repository.
    """
    if not accept and cached(name) is not None:
        return locate_hub(name)
    if is_offline():
        raise ModelNotFound(
            f"{name.text} is not in {hub_cache()}, and HF_HUB_OFFLINE forbids to ask for it. "
            "Unset it; or copy that folder from a machine that has the model; or give the path of "
            "a GGUF file."
        )
    lock = storage.sha256_bytes(name.repository.lower().encode())[:16]
    with storage.lock(storage.cache_dir() / "staging" / f"hub-{lock}.lock"):
        try:
            found = list(_wanted(name))
            _compare_announced(name, found, accept)
            snapshot = _downloaded(name, found, progress)
        except Unavailable as error:
            raise _not_found(name, error) from error
        for one in found if accept else ():
            path = snapshot / one.file
            _record(name, one.file, storage.sha256_cached(path), path.stat().st_size)
    return _checked(name, snapshot, [one.file for one in found])


def _wanted(name: HubName) -> Iterator[HubFile]:
    """Yield what the hub says of each part of the model that is named, all of one commit."""
    revision, files = name.revision, part_files(name.file)
    if not name.file:
        revision, every = hub_files(name.repository, name.revision)
        models = candidates(every)
        files = () if models or name.quant else encoder_files(every)
        if not models and not name.quant and not files and MODULES in every:
            raise ModelNotFound(
                f"{name.place}{name.at} is an encoder without "
                f"{listed(missing_of(every))}, which is needed to read it. Ask its publisher, or "
                "take another, such as multilingual-e5-small."
            )
        if not files:
            chosen = choose(models, name.quant, name.place, name.at)
            _need_parts(name, chosen)
            files = chosen.parts
    for file in files:
        found = hub_file(name.repository, file, revision)
        if not (VERSION.fullmatch(found.etag) and VERSION.fullmatch(found.commit)):
            raise Unavailable(
                f"what answers names no version of {file} (etag {found.etag!r}, commit "
                f"{found.commit!r}): HF_ENDPOINT, or a proxy, leads to something else than the hub"
            )
        yield found
        revision = found.commit


def _need_parts(name: HubName, chosen: Candidate) -> None:
    if chosen.missing:
        raise ModelNotFound(
            f"{name.place}{name.at}: {chosen.file} has {len(chosen.parts)} parts, and there is no "
            f"{listed(chosen.missing)}. Choose another file, or ask its publisher."
        )


def _compare_announced(name: HubName, found: Sequence[HubFile], accept: bool) -> None:
    for one in found:
        recorded = _recorded(_pin(name, one.file))
        if recorded and one.sha256 and one.sha256 != recorded and not accept:
            raise _changed(name, one.file, one.sha256, recorded)


def _downloaded(name: HubName, found: Sequence[HubFile], progress: bool) -> Path:
    """Put what is missing into the cache, as the hub's library lays it out; return where."""
    folder, commit = name.folder, found[0].commit
    snapshot = folder / "snapshots" / commit
    blobs = [folder / "blobs" / one.etag for one in found]
    parts = [blob.with_name(f"{blob.name}.promptflow.incomplete") for blob in blobs]
    total = sum(one.size or 0 for one in found)
    here = sum(map(folder_size, blobs)) + sum(map(folder_size, parts))
    _need_room(name, total - here)
    with bar(f"fetching {name.text}", total, progress, in_bytes=True) as seen:
        done = 0
        for one, blob, part in zip(found, blobs, parts, strict=True):
            if not blob.exists():
                hub_bytes(one, part, lambda size, done=done: seen(done + size))  # type: ignore[misc]
                sha256 = _check_part(name, one, part, progress)
                storage.move(part, blob)
                storage.remember_sha256(blob, sha256)
            storage.link(blob, snapshot / one.file)
            done += one.size or 0
    if name.revision != commit:
        storage.write_text(folder / "refs" / name.revision, commit)
    return snapshot


def _check_part(name: HubName, one: HubFile, part: Path, progress: bool) -> str:
    """Return the hash of what came; refuse what is not what was announced."""
    found = hashed_file(part, name.text, progress)
    if one.sha256 and found != one.sha256:
        storage.remove_file(part)
        raise HashMismatch(
            f"{name.text}: what came has sha256 {found}, and the hub announced {one.sha256}. It "
            f"was damaged on the way and not kept: run `promptflow models get {name.text}` again."
        )
    return found


def _need_room(name: HubName, needed: int) -> None:
    free = storage.free_bytes(hub_cache())
    if free < needed:
        raise DiskFull(
            f"{name.text} needs {needed / 1e6:,.0f} MB more in {hub_cache()}, and "
            f"{free / 1e6:,.0f} MB are free. Free some space, or set HF_HUB_CACHE to a folder on "
            "another disk, and run the same command again."
        )


def _not_found(name: HubName, error: Unavailable) -> ModelNotFound:
    """Return the error for what the hub lacks, with what to do next."""
    again = f"run `promptflow models get {name.text}` again"
    if error.lacks == "file" and name.file and (offered := _offered(name)) is not None:
        return ModelNotFound(f"{name.text}: there is no such file. {offered}")
    if error.lacks == "login":  # which the hub also answers of what is not there
        return ModelNotFound(
            f"{name.text}: the hub does not give it to everybody: it is private, its terms have to "
            f"be accepted on its page, or there is no {name.repository}. Check how it is written, "
            f"log in with `hf auth login`, or set HF_TOKEN, and {again}."
        )
    if error.lacks in ("repository", "file"):
        return ModelNotFound(
            f"{name.text}: the hub has no repository {name.repository}, or it is private. Check "
            "how it is written (repositories of GGUF files often end in -GGUF); if it "
            f"is private, log in with `hf auth login`, or set HF_TOKEN, and {again}."
        )
    if error.lacks == "revision":
        return ModelNotFound(
            f"{name.text}: {name.repository} has no revision {name.revision!r}; leave out "
            f"@{name.revision}, or name a branch, a tag or a commit of it."
        )
    return ModelNotFound(
        f"{name.text}: the hub could not be reached ({error}). What was downloaded is kept. "
        f"Connect this machine, or set HF_ENDPOINT to a mirror, and {again}; or give the path of a "
        "GGUF file."
    )


def _offered(name: HubName) -> str | None:
    """Say which models the repository has; None if it is not there."""
    try:
        _, files = hub_files(name.repository, name.revision)
    except Unavailable as error:
        return "Check how it is written." if error.lacks == "server" else None
    where = name.place + name.at
    if offered := [f"{name.place}/{one.file}{name.at}" for one in candidates(files)]:
        return f"{where} has {listed(offered)}."
    return f"{where} has no GGUF file of a model."
