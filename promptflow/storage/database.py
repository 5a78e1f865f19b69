"""SQLite files: a journal that keeps every entry it accepted, and a cache that may lose any.

Both hold JSON beside a checksum. A damaged journal row is an error; a damaged cache row is a miss.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from promptflow.errors import DiskFull, ForkedUse, StoreBusy, StoreCorrupt, StoreError
from promptflow.storage.files import disk_errors, operation

WAIT = 30.0
KEPT = 0.9


class _Connection(sqlite3.Connection):
    """A connection whose statements are storage operations."""

    def execute(self, *args: Any) -> sqlite3.Cursor:
        _counted()
        return super().execute(*args)

    def executemany(self, *args: Any) -> sqlite3.Cursor:
        _counted()
        return super().executemany(*args)

    def commit(self) -> None:
        _counted()
        super().commit()


def _counted() -> None:
    """Count a storage operation; one that is made to fail fails as SQLite itself would."""
    try:
        operation()
    except OSError as error:
        full = "database or disk is full" if error.errno == errno.ENOSPC else "disk I/O error"
        raise sqlite3.OperationalError(full) from error


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn an error of SQLite on ``path`` into DiskFull, StoreBusy, StoreCorrupt or StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "disk is full" in text or "disk I/O error" in text:
            raise DiskFull(
                f"{path}: {text}. What was written before is kept. Free some space and run the "
                "same command again: it continues."
            ) from error
        if "locked" in text or "busy" in text:
            raise StoreBusy(
                f"{path}: another process has been writing for {WAIT:g} s. "
                "Wait for it to finish, or stop it, and run the same command again."
            ) from error
        if isinstance(error, sqlite3.OperationalError) and "unable to open" in text:
            raise StoreError(
                f"{path}: {text}. Check that its folder is on a writable disk."
            ) from error
        if isinstance(error, sqlite3.DatabaseError):
            raise StoreCorrupt(
                f"{path}: {text}. Move the file away and run the command again to write a new one."
            ) from error
        raise StoreError(f"{path}: {text}") from error


def connect(path: str | Path, *, durable: bool = True) -> sqlite3.Connection:
    """Open a SQLite file in WAL mode, in autocommit, usable from any thread under a lock.

    ``durable`` syncs every commit to the device; without it a power cut may lose the last ones, but
    the death of the process loses none.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite_errors(path):
        connection = sqlite3.connect(
            path,
            timeout=WAIT,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        except BaseException:
            connection.close()
            raise
    return connection


def _checksum(key: str, value: str) -> str:
    return hashlib.sha256(f"{len(key)}:{key}{value}".encode()).hexdigest()[:32]


class Journal:
    """Entries that survive the death of the process from the moment ``append`` returns.

    Raises ForkedUse in a forked child, since SQLite connections must not cross a fork.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the journal at ``path``, or make one."""
        self.path = Path(path)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connection = connect(self.path)
        with self._using() as connection:
            for table in ("entries", "meta"):
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {table} (place INTEGER PRIMARY KEY, "
                    "key TEXT NOT NULL UNIQUE, value TEXT NOT NULL, checksum TEXT NOT NULL)"
                )

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        if os.getpid() != self._pid:
            raise ForkedUse(f"{self.path}: opened in process {self._pid}; open it in this one")
        with self._lock, sqlite_errors(self.path):
            yield self._connection

    def _put(self, table: str, key: str, value: Any) -> None:
        text = json.dumps(value)
        with self._using() as connection:
            connection.execute(
                f"INSERT INTO {table} (key, value, checksum) VALUES (?, ?, ?) ON CONFLICT (key) "
                "DO UPDATE SET value = excluded.value, checksum = excluded.checksum",
                (key, text, _checksum(key, text)),
            )

    def _read(self, key: str, text: str, checksum: str) -> Any:
        if not isinstance(text, str) or _checksum(key, text) != checksum:
            raise StoreCorrupt(
                f"{self.path}: the entry {key!r} does not have its checksum {checksum}. "
                "The disk has changed it: move the journal away and start the run again."
            )
        return json.loads(text)

    def append(self, key: str, value: dict[str, Any]) -> None:
        """Keep ``value`` under ``key``; a key given again keeps its place in the order."""
        self._put("entries", key, value)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the value kept under ``key``, or None. Raises StoreCorrupt for a damaged one."""
        with self._using() as connection:
            row = connection.execute(
                "SELECT value, checksum FROM entries WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else dict(self._read(key, *row))

    def items(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Give every key and value in the order of first append."""
        with self._using() as connection:
            rows = connection.execute(
                "SELECT key, value, checksum FROM entries ORDER BY place"
            ).fetchall()
        for key, text, checksum in rows:
            yield key, self._read(key, text, checksum)

    def __len__(self) -> int:
        """Return the number of entries."""
        with self._using() as connection:
            return int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])

    def meta(self, key: str, value: Any = None) -> Any:
        """Return what is kept about the run under ``key``; set it first if a value is given."""
        if value is not None:
            self._put("meta", key, value)
        with self._using() as connection:
            row = connection.execute(
                "SELECT value, checksum FROM meta WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else self._read(key, *row)

    def close(self) -> None:
        """Close the file; the journal cannot be used after."""
        if os.getpid() == self._pid:
            self._connection.close()

    def __enter__(self) -> Journal:
        """Return the journal, to be closed when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


class Cache:
    """JSON values that may be dropped at any time, the least recently used first.

    A damaged row is a miss and a damaged file is started anew: nothing that was put can come back
    changed. A full disk loses what is put and raises nothing.
    """

    def __init__(self, path: str | Path, max_bytes: int) -> None:
        """Open the cache at ``path``, or make one, for at most ``max_bytes`` of JSON."""
        self.path = Path(path)
        self.max_bytes = max_bytes
        self._pid = os.getpid()
        self._lock = threading.RLock()
        try:
            self._open()
        except StoreCorrupt:
            self._start_anew()

    def _open(self) -> None:
        self._connection = connect(self.path, durable=False)
        try:
            with sqlite_errors(self.path):
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value TEXT, "
                    "checksum TEXT, size INTEGER, used INTEGER) WITHOUT ROWID"
                )
                self._connection.execute("CREATE INDEX IF NOT EXISTS by_use ON entries (used)")
                self._count()
        except BaseException:
            self._connection.close()
            raise

    def _count(self) -> None:
        """Read the bytes held and the clock of last use, which other processes move too."""
        row = self._connection.execute(
            "SELECT total(size), max(CAST(used AS INTEGER)) FROM entries"
        ).fetchone()
        self._bytes = int(row[0])
        self._clock = int(row[1] or 0)

    def _start_anew(self) -> None:
        with suppress(AttributeError):
            self._connection.close()
        for end in ("", "-wal", "-shm"):
            operation()
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)
        self._open()

    def get(self, key: str) -> Any:
        """Return the value put under ``key``, or None for a miss."""
        if os.getpid() != self._pid:
            return None
        with self._lock:
            try:
                row = self._connection.execute(
                    "SELECT value, checksum FROM entries WHERE key = ?", (key,)
                ).fetchone()
                if row is None:
                    return None
                if not isinstance(row[0], str) or _checksum(key, row[0]) != row[1]:
                    self._connection.execute("DELETE FROM entries WHERE key = ?", (key,))
                    return None
                self._clock += 1
                self._connection.execute(
                    "UPDATE entries SET used = ? WHERE key = ?", (self._clock, key)
                )
            except sqlite3.OperationalError:
                return None
            except sqlite3.DatabaseError:
                self._start_anew()
                return None
            return json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        """Keep ``value`` under ``key``, dropping the least recently used values to make room."""
        text = json.dumps(value)
        size = len(key) + len(text)
        if os.getpid() != self._pid or size > self.max_bytes:
            return
        with self._lock:
            try:
                self._clock += 1
                self._connection.execute(
                    "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)",
                    (key, text, _checksum(key, text), size, self._clock),
                )
                self._bytes += size
                if self._bytes > self.max_bytes:
                    self._evict()
            except sqlite3.OperationalError:
                return
            except sqlite3.DatabaseError:
                self._start_anew()

    def _evict(self) -> None:
        self._count()
        surplus = self._bytes - int(self.max_bytes * KEPT)
        if self._bytes <= self.max_bytes:
            return
        rows = self._connection.execute(
            "SELECT key, CAST(size AS INTEGER) FROM entries ORDER BY used"
        )
        dropped: list[tuple[str]] = []
        for key, size in rows:
            if surplus <= 0:
                break
            surplus -= size
            self._bytes -= size
            dropped.append((key,))
        rows.close()
        self._connection.executemany("DELETE FROM entries WHERE key = ?", dropped)

    def close(self) -> None:
        """Close the file; the cache cannot be used after."""
        if os.getpid() == self._pid:
            self._connection.close()
