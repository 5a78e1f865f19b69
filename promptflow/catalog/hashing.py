"""The sha256 of a model, whatever number of files it lies in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from promptflow import storage
from promptflow.gguf import parts_of
from promptflow.progress import bar

Hash = Callable[[Path], str]


def model_sha256(path: str | Path) -> str:
    """Return the hash of a model's file; of several parts, the hash of all their hashes.

    Each file is hashed once, and then known by size and time.
    """
    return joined([storage.sha256_cached(part) for part in parts_of(path)])


def hashed(path: Path, name: str, progress: bool) -> str:
    """Return what ``model_sha256`` does, read in full; see ``hashed_file``."""
    return joined([hashed_file(part, name, progress) for part in parts_of(path)])


def hashed_file(path: Path, name: str, progress: bool) -> str:
    """Return the sha256 of a file of the model ``name``, read in full, with a progress bar.

    What was found is remembered.
    """
    done = 0
    with bar(f"checking {name}", path.stat().st_size, progress, in_bytes=True) as seen:

        def block(size: int) -> None:
            nonlocal done
            done += size
            seen(done)

        found = storage.sha256_of(path, block)
    storage.remember_sha256(path, found)
    return found


def known_sha256(path: Path, name: str) -> str:
    """Return the sha256 of a file of the model ``name``, read only if it is not known."""
    return storage.recall_sha256(path) or hashed_file(path, name, True)


def joined(hashes: list[str]) -> str:
    """Return the hash of a model from those of its parts, in their order."""
    return hashes[0] if len(hashes) == 1 else storage.sha256_bytes("\n".join(hashes).encode())
