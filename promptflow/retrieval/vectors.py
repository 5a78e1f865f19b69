"""Vectors kept from build to build, so that only new passages are embedded.

A build that is killed loses none that it had computed. A damaged row or file is a miss.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from promptflow.errors import ModelInvalid, StoreCorrupt
from promptflow.retrieval.calibration import PASSAGES, unrelated
from promptflow.storage import connect, remove_folder, sqlite_errors

if TYPE_CHECKING:
    from promptflow.retrieval.embed import TextEmbedder

Array = NDArray[np.float32]


def key_of(embedder_sha256: str, text: str) -> bytes:
    """Return the key under which the vector of ``text`` is kept."""
    return hashlib.sha256(f"{embedder_sha256}\n{text}".encode()).digest()


def _check(key: bytes, value: bytes) -> bytes:
    return hashlib.sha256(key + value).digest()[:16]


class KeptVectors:
    """The file ``embeddings/vectors.sqlite`` of one index. Its user holds the writer's lock.

    A damaged row is a miss. A file that is no database is started anew, and so is its folder.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, alone in its folder, or start both anew if it is damaged."""
        self.path = path
        try:
            self._rows = self._open()
        except StoreCorrupt:
            self._start_anew()

    def _open(self) -> sqlite3.Connection:
        rows = connect(self.path, durable=False)
        try:
            with sqlite_errors(self.path):
                rows.execute(
                    "CREATE TABLE IF NOT EXISTS vectors "
                    "(key BLOB PRIMARY KEY, value BLOB, checksum BLOB) WITHOUT ROWID"
                )
        except BaseException:
            rows.close()
            raise
        return rows

    def _start_anew(self) -> None:
        with suppress(AttributeError):
            self._rows.close()
        remove_folder(self.path.parent)
        self._rows = self._open()

    def get(self, keys: Sequence[bytes], dimension: int) -> dict[bytes, Array]:
        """Return the vectors that are kept, by key."""
        found: dict[bytes, Array] = {}
        try:
            with sqlite_errors(self.path):
                for key in dict.fromkeys(keys):
                    row = self._rows.execute(
                        "SELECT value, checksum FROM vectors WHERE key = ?", (key,)
                    ).fetchone()
                    if row is None or not isinstance(row[0], bytes):
                        continue
                    if len(row[0]) != 4 * dimension or _check(key, row[0]) != row[1]:
                        continue
                    found[key] = np.frombuffer(row[0], "<f4").astype(np.float32)
        except StoreCorrupt:
            self._start_anew()
        return found

    def put(self, vectors: Mapping[bytes, Array]) -> None:
        """Keep these vectors; they survive the death of the process."""
        rows = [(key, value := vector.astype("<f4").tobytes(), _check(key, value))
                for key, vector in vectors.items()]  # fmt: skip
        try:
            self._change("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)
        except StoreCorrupt:
            self._start_anew()
            self._change("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)

    def _change(self, statement: str, rows: Iterable[tuple[bytes, ...]]) -> None:
        with sqlite_errors(self.path):
            self._rows.execute("BEGIN")
            try:
                self._rows.executemany(statement, rows)
                self._rows.commit()
            except BaseException:
                with suppress(sqlite3.Error):
                    self._rows.rollback()
                raise

    def keep_only(self, keys: Iterable[bytes]) -> None:
        """Drop the vectors that no passage has any more."""
        try:
            with sqlite_errors(self.path):
                self._rows.execute(
                    "CREATE TEMP TABLE IF NOT EXISTS used (key BLOB PRIMARY KEY) WITHOUT ROWID"
                )
                self._rows.execute("DELETE FROM used")
            self._change("INSERT OR IGNORE INTO used VALUES (?)", ((key,) for key in keys))
            with sqlite_errors(self.path):
                self._rows.execute("DELETE FROM vectors WHERE key NOT IN (SELECT key FROM used)")
        except StoreCorrupt:
            self._start_anew()

    def close(self) -> None:
        """Close the file."""
        self._rows.close()


class Vectors:
    """The vectors of texts, each embedded once: kept ones, else new ones, which are kept."""

    def __init__(self, kept: KeptVectors, embedder: Callable[[], TextEmbedder]) -> None:
        """Take the file of kept vectors and what opens the embedder."""
        self._kept = kept
        self._embedder = embedder
        self.used: set[bytes] = set()
        self._drawn: dict[bytes, tuple[str, Array]] = {}
        self.embedded = 0
        self.reused = 0

    def of(self, texts: Sequence[str]) -> Array:
        """Return unit vectors (len(texts), dimension). Raises ModelInvalid for no numbers."""
        embedder = self._embedder()
        keys = [key_of(embedder.sha256, text) for text in texts]
        known = self._kept.get(keys, embedder.dimension)
        self.reused += len(known.keys() - self.used)
        missing = {k: text for k, text in zip(keys, texts, strict=True) if k not in known}
        if missing:
            new = embedder.encode(list(missing.values()))
            if not np.isfinite(new).all():
                raise ModelInvalid(f"{embedder.name} gave vectors that are not numbers")
            self._kept.put(fresh := dict(zip(missing, new, strict=True)))
            known |= fresh
            self.embedded += len(missing)
        self.used.update(keys)
        self._draw(keys, texts, known)
        return np.array([known[key] for key in keys], np.float32)

    def _draw(self, keys: Sequence[bytes], texts: Sequence[str], known: dict[bytes, Array]) -> None:
        self._drawn |= {k: (text, known[k]) for k, text in zip(keys, texts, strict=True)}
        for key in sorted(self._drawn)[PASSAGES:]:
            del self._drawn[key]

    def measured(self) -> dict[str, Any]:
        """Return what an index says of its embedder's cosines and precision.

        The passages are drawn by their keys, which are hashes: at random, and the same each time.
        """
        texts = [text for text, _ in self._drawn.values()]
        vectors = np.array([vector for _, vector in self._drawn.values()], np.float32)
        embedder = self._embedder()
        return {
            "unrelated": unrelated(embedder, texts, vectors),
            "precision": getattr(embedder, "precision", "float32"),
            **getattr(embedder, "measured", {}),
        }

    def keep_only_used(self) -> None:
        """Drop the kept vectors that were not asked for."""
        self._kept.keep_only(self.used)
