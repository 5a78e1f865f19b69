"""What differs between a folder of documents and an index of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from promptflow.errors import StoreError
from promptflow.retrieval.documents import Rejected, sha256_inside
from promptflow.retrieval.segment import Place
from promptflow.storage import read_json, write_json

Paths = str | Path | Iterable[str | Path]
GRAIN = 2_000_000_000
"""Nanoseconds within which two changes of a file may have the same time."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a commit has to do: files to read, and places that it takes out."""

    read: tuple[str | Rejected, ...] = ()
    out: tuple[str, ...] = ()
    added: int = 0
    changed: int = 0
    gone: int = 0

    def __bool__(self) -> bool:
        """Return whether there is anything to do."""
        return bool(self.read or self.out)


@dataclass(frozen=True, slots=True)
class Scope:
    """The documents that a command was given: ids, each a file or a folder of them."""

    ids: tuple[str, ...]

    def __contains__(self, path: object) -> bool:
        """Return whether a document's path is one of the ids or lies below one."""
        name = str(path)
        return any(not at or name == at or name.startswith(f"{at}/") for at in self.ids)


class Hashes:
    """The SHA-256 of the files of a folder, each read again only when something about it changed.

    What is remembered of a file is its size, its times and its number on the disk. A change sets
    the time of change, whoever sets the other times back; of a file that was changed less than
    ``GRAIN`` ago nothing is remembered, since the next change may have the same time.
    """

    def __init__(self, folder: Path, path: Path, names: Iterable[str]) -> None:
        """Look at ``names`` now; ``path`` is where an earlier writer has left what it knew."""
        self._folder = folder
        self._path = path
        self._until = time.time_ns() - GRAIN
        self._states = {name: state for name in names if (state := _state(folder / name))}
        self._read: dict[str, str] = {}
        self._known: dict[str, list[object]] = {}
        with suppress(StoreError, AttributeError, TypeError):
            self._known = dict(read_json(path).items())

    def of(self, name: str) -> str:
        """Return the hash of a file, or nothing if it cannot be read."""
        if name not in self._read:
            state = self._states.get(name)
            known = self._known.get(name)
            if state and isinstance(known, list) and known[:-1] == state:
                return str(known[-1])
            self.learn(name, sha256_inside(self._folder, name))
        return self._read[name]

    def learn(self, name: str, sha256: str) -> None:
        """Take in a hash that was computed after this was made."""
        self._read[name] = sha256

    def save(self) -> None:
        """Leave what is known to the next writer; if that cannot be, it reads the files again."""
        learned = {
            name: [*state, sha256]
            for name, sha256 in self._read.items()
            if (state := self._states.get(name)) and max(state[1:3]) < self._until
        }
        if learned:
            with suppress(StoreError):
                write_json(self._path, {**self._known, **learned})


def _state(path: Path) -> list[int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def scope_of(folder: Path, paths: Paths, known: Iterable[str]) -> Scope:
    """Return the ids of paths: of files and folders on disk, or of documents in the index.

    A path counts from the current folder where that lies among the documents, else from their
    folder. Raises StoreError for one that is neither on disk nor among the ``known`` documents.
    """
    root, known = folder.resolve(), tuple(known)
    found = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        for candidate in (Path(path).expanduser().absolute(), root / path):
            # The folders of a path are resolved, its last name is not: it may be a link inside.
            whole = Path(os.path.realpath(candidate.parent)) / candidate.name
            if candidate.name in ("", ".", ".."):
                whole = Path(os.path.realpath(candidate))
            if not whole.is_relative_to(root):
                continue
            at = "" if whole == root else PurePosixPath(whole.relative_to(root)).as_posix()
            if os.path.lexists(whole) or any(name in Scope((at,)) for name in known):
                found.append(at)
                break
        else:
            raise StoreError(
                f"{path}: no document of this index: neither a file or folder in {folder} nor "
                "indexed before. Put it there, or give a path inside that folder."
            )
    return Scope(tuple(dict.fromkeys(found)))


def compare(
    places: Mapping[str, Place],
    names: Sequence[str | Rejected],
    sha256: Callable[[str], str],
    within: Scope | None = None,
) -> Changes:
    """Return what makes ``places`` those of ``names``, which lie ``within`` a scope."""
    here = {name.path if isinstance(name, Rejected) else name: name for name in names}
    read: list[str | Rejected] = []
    out: list[str] = []
    added = 0
    for path, name in here.items():
        place = places.get(path)
        if place is None:
            added += 1
        elif _same(place, name, sha256):
            continue
        else:
            out.append(path)
        read.append(name)
    changed = len(out)
    out += [p for p in places if p not in here and (within is None or p in within)]
    return Changes(tuple(read), tuple(out), added, changed, len(out) - changed)


def _same(place: Place, name: str | Rejected, sha256: Callable[[str], str]) -> bool:
    if isinstance(name, Rejected):
        return not place.content and place.reason == name.reason
    return place.sha256 == sha256(name)
