"""Hashes of large files, remembered by path, size and time, so that each is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptflow.errors import StoreError
from promptflow.storage.database import Cache
from promptflow.storage.files import cache_dir, canonical, sha256_of

MAX_BYTES = 1_000_000


@contextmanager
def _remembered() -> Iterator[Cache | None]:
    try:
        cache = Cache(cache_dir() / "hashes.db", MAX_BYTES)
    except StoreError:
        # A cache folder that cannot be written costs time, not the answer.
        yield None
        return
    try:
        yield cache
    finally:
        cache.close()


def _identity(path: Path) -> str:
    status = path.stat()
    return canonical([str(path.resolve()), status.st_size, status.st_mtime_ns])


def remember_sha256(path: str | Path, sha256: str) -> None:
    """Remember the hash of a file until its size or time changes."""
    with _remembered() as cache:
        if cache is not None:
            cache.put(_identity(Path(path)), sha256)


def recall_sha256(path: str | Path) -> str | None:
    """Return the remembered hash of a file, or None if it has to be computed."""
    with _remembered() as cache:
        found = None if cache is None else cache.get(_identity(Path(path)))
    return found if isinstance(found, str) else None


def sha256_cached(path: str | Path) -> str:
    """Return the SHA-256 of a file, computed again only if its size or time has changed.

    A change that keeps both is not seen: ``promptflow models verify`` reads the file again.
    """
    path = Path(path)
    if found := recall_sha256(path):
        return found
    before = _identity(path)
    sha256 = sha256_of(path)
    if _identity(path) == before:
        remember_sha256(path, sha256)
    return sha256
