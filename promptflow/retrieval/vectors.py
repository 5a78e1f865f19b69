"""Vectors kept from build to build, so that only new passages are embedded.

A build that is killed loses none that it had computed. A damaged row or file is a miss.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from promptflow.errors import StoreCorrupt
from promptflow.storage import connect, remove_folder, sqlite_errors

Array = NDArray[np.float32]


def key_of(embedder_sha256: str, text: str) -> bytes:
    """Return the key under which the vector of ``text`` is kept."""
    return hashlib.sha256(f"{embedder_sha256}\n{text}".encode()).digest()


def _check(key: bytes, value: bytes) -> bytes:
    return hashlib.sha256(key + value).digest()[:16]


class KeptVectors:
    """The file ``embeddings/vectors.sqlite`` of one index. Its user holds the writer's lock."""

    def __init__(self, path: Path) -> None:
        """Open the file, alone in its folder, or start both anew if it is damaged."""
        self.path = path
        try:
            self._rows = self._open()
        except StoreCorrupt:
            remove_folder(path.parent)
            self._rows = self._open()

    def _open(self) -> sqlite3.Connection:
        rows = connect(self.path, durable=False)
        try:
            with sqlite_errors(self.path):
                rows.execute(
                    "CREATE TABLE IF NOT EXISTS vectors "
                    "(key BLOB PRIMARY KEY, value BLOB, checksum BLOB) WITHOUT ROWID"
                )
                [answer] = rows.execute("PRAGMA quick_check(1)").fetchone()
                if answer != "ok":
                    raise StoreCorrupt(f"{self.path}: {answer}")
        except BaseException:
            rows.close()
            raise
        return rows

    def get(self, keys: Sequence[bytes], dimension: int) -> dict[bytes, Array]:
        """Return the vectors that are kept, by key."""
        found: dict[bytes, Array] = {}
        with sqlite_errors(self.path):
            for key in dict.fromkeys(keys):
                row = self._rows.execute(
                    "SELECT value, checksum FROM vectors WHERE key = ?", (key,)
                ).fetchone()
                if row is None or len(row[0]) != 4 * dimension or _check(key, row[0]) != row[1]:
                    continue
                found[key] = np.frombuffer(row[0], "<f4").astype(np.float32)
        return found

    def put(self, vectors: Mapping[bytes, Array]) -> None:
        """Keep these vectors; they survive the death of the process."""
        rows = [(key, value := vector.astype("<f4").tobytes(), _check(key, value))
                for key, vector in vectors.items()]  # fmt: skip
        with sqlite_errors(self.path):
            self._rows.execute("BEGIN")
            self._rows.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)
            self._rows.commit()

    def keep_only(self, keys: Iterable[bytes]) -> None:
        """Drop the vectors that no passage has any more."""
        with sqlite_errors(self.path):
            self._rows.execute("CREATE TEMP TABLE used (key BLOB PRIMARY KEY) WITHOUT ROWID")
            self._rows.execute("BEGIN")
            self._rows.executemany(
                "INSERT OR IGNORE INTO used VALUES (?)", ((key,) for key in keys)
            )
            self._rows.execute("DELETE FROM vectors WHERE key NOT IN (SELECT key FROM used)")
            self._rows.commit()

    def close(self) -> None:
        """Close the file."""
        self._rows.close()
