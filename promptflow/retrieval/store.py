"""The folder of a built index: one manifest, and one folder of immutable files a generation.

::

    manifest.json                     which generation, built how, and the SHA-256 of each file
    generation-000003/chunks.sqlite   documents, chunks with character offsets, rejected files
    generation-000003/dense.faiss     vectors
    generation-000003/sparse.bm25     words
    embeddings/vectors.sqlite         vectors kept for the next build; may be deleted
    lock                              held by the one writer

Writing the manifest is the commit: one atomic replace. A generation is complete and synced before,
and never changes after, so a reader sees the last committed one and every damage shows as a hash.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from promptflow.errors import StoreCorrupt, StoreError, StoreNotFound
from promptflow.retrieval.chunk import Chunk
from promptflow.retrieval.documents import Document, Rejected
from promptflow.retrieval.sparse import SparseWriter
from promptflow.retrieval.text import normal
from promptflow.storage import (
    canonical,
    connect,
    read_json,
    remove_folder,
    replace_folder,
    sha256_bytes,
    sqlite_errors,
    write_bytes,
    write_json,
)

SCHEMA = 2
CHUNKS, DENSE, SPARSE = "chunks.sqlite", "dense.faiss", "sparse.bm25"
HEADING_TOKENS = 50
"""Tokens kept free in the embedder for the headings above a passage."""
SEGMENTS = (CHUNKS, DENSE, SPARSE)
TABLES = """
CREATE TABLE documents (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
    sha256 TEXT NOT NULL, metadata TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE chunks (id INTEGER PRIMARY KEY, document INTEGER NOT NULL REFERENCES documents,
    first INTEGER NOT NULL, last INTEGER NOT NULL, heading TEXT NOT NULL, text TEXT NOT NULL);
CREATE INDEX by_document ON chunks (document);
CREATE TABLE rejected (path TEXT PRIMARY KEY, reason TEXT NOT NULL, sha256 TEXT NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an index is: the content of ``manifest.json``, beside its own hash."""

    name: str
    generation: int
    documents: str
    embedder: dict[str, Any]
    settings: dict[str, Any]
    counts: dict[str, int]
    segments: dict[str, dict[str, Any]]
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did. ``unchanged`` means that it found the index up to date and wrote nothing.

    ``embedded`` and ``reused`` count different texts: those that went through the embedder and
    those whose vectors an earlier build had kept.
    """

    generation: int
    documents: int
    chunks: int
    rejected: tuple[Rejected, ...]
    embedded: int
    reused: int
    seconds: float
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A chunk as it is stored: ``text`` is characters [start, end) of ``document``."""

    id: int
    document: str
    start: int
    end: int
    heading: str
    text: str
    metadata: dict[str, Any]

    def embedded(self) -> str:
        """Return the text that is embedded and searched: the passage under its headings."""
        return embedded_text(self.heading, self.text)


def embedded_text(heading: str, text: str) -> str:
    """Return the text that is embedded and searched, in NFC: the passage under its headings."""
    # The end of a long path of headings: the nearest ones say most, and the passage must fit.
    heading = heading[-4 * HEADING_TOKENS :]
    return normal(f"{heading}\n{text}" if heading else text)


def folder_of(generation: int) -> str:
    """Return the folder name of a generation."""
    return f"generation-{generation:06d}"


def read_manifest(folder: Path, rebuild: str) -> Manifest:
    """Read and check ``manifest.json``. Raises StoreNotFound, or StoreCorrupt if it was changed."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise StoreNotFound(f"{path}: not there, the index is not built. Build it: {rebuild}")
    try:
        table = read_json(path)
        sealed = table.pop("sha256")
        if sealed != sha256_bytes(canonical(table).encode()):
            raise StoreCorrupt("its content is not what its sha256 says")
        if table["schema"] != SCHEMA:
            raise StoreError(
                f"{path}: written with schema {table['schema']}, this version reads {SCHEMA}. "
                f"Build it again: {rebuild}"
            )
        return Manifest(**table)
    except (StoreCorrupt, AttributeError, KeyError, TypeError) as error:
        raise StoreCorrupt(f"{path}: damaged ({error}). Rebuild it: {rebuild}") from error


class Store:
    """One committed generation, open for reading. Safe to use from several threads."""

    def __init__(self, folder: Path, manifest: Manifest, rebuild: str) -> None:
        """Open the chunks of ``manifest``; ``Store.open`` reads the manifest too."""
        self.folder = folder
        self.manifest = manifest
        self.rebuild = rebuild
        self._lock = threading.Lock()
        # The segments are read, and so checked, before SQLite sees a byte of them.
        self._segments = {name: self._checked(name) for name in SEGMENTS}
        del self._segments[CHUNKS]
        path = self._path(CHUNKS)
        with sqlite_errors(path):
            self._chunks = sqlite3.connect(
                f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1",
                uri=True,
                check_same_thread=False,
            )
        try:
            self._check_counts()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, folder: Path, rebuild: str) -> Store:
        """Open the last committed generation.

        Raises StoreNotFound if nothing is built, StoreCorrupt naming the file that is damaged and
        the command that rebuilds it.
        """
        manifest = read_manifest(folder, rebuild)
        while True:
            try:
                return cls(folder, manifest, rebuild)
            except StoreError:
                # A writer may have removed this generation since the manifest was read.
                latest = read_manifest(folder, rebuild)
                if latest.generation == manifest.generation:
                    raise
                manifest = latest

    def _path(self, name: str) -> Path:
        return self.folder / folder_of(self.manifest.generation) / name

    def _damaged(self, path: Path, what: str) -> StoreCorrupt:
        return StoreCorrupt(f"{path}: {what}. Rebuild it: {self.rebuild}")

    def _checked(self, name: str) -> bytes:
        path = self._path(name)
        stated = self.manifest.segments.get(name, {})
        try:
            data = path.read_bytes()
        except OSError as error:
            raise self._damaged(path, f"cannot be read: {error.strerror}") from error
        if (found := sha256_bytes(data)) != stated.get("sha256"):
            raise self._damaged(
                path,
                f"damaged: its SHA-256 is {found}, the manifest says {stated.get('sha256')} "
                f"({len(data)} bytes, expected {stated.get('bytes')})",
            )
        return data

    def _check_counts(self) -> None:
        for table in ("documents", "chunks", "rejected"):
            [[found]] = self._rows(f"SELECT count(*) FROM {table}")
            if found != self.manifest.counts[table]:
                raise self._damaged(
                    self._path(CHUNKS),
                    f"holds {found} {table}, the manifest says {self.manifest.counts[table]}",
                )

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock, sqlite_errors(self._path(CHUNKS)):
            return self._chunks.execute(query, values).fetchall()

    def take_segment(self, name: str) -> bytes:
        """Return the checked bytes of a segment, once: they are not kept."""
        return self._segments.pop(name)

    def chunk(self, chunk: int) -> Row:
        """Return one chunk by its id. Raises StoreNotFound."""
        for row in self._chunk_rows("WHERE chunks.id = ?", (chunk,)):
            return row
        raise StoreNotFound(f"{self.folder}: no chunk {chunk} of {self.manifest.counts['chunks']}")

    def chunks(self) -> Iterator[Row]:
        """Give every chunk in the order of ids, a thousand at a time."""
        first = 0
        while rows := self._chunk_rows("WHERE chunks.id BETWEEN ? AND ?", (first, first + 999)):
            yield from rows
            first += 1000

    def _chunk_rows(self, where: str, values: Sequence[Any]) -> list[Row]:
        return [
            _row(row) for row in self._rows(SELECT_CHUNKS + where + " ORDER BY chunks.id", values)
        ]

    def text(self, document: str) -> str:
        """Return the whole text of a document. Raises StoreNotFound for an unknown path."""
        for [text] in self._rows("SELECT text FROM documents WHERE path = ?", (document,)):
            return str(text)
        raise StoreNotFound(f"{self.folder}: no document {document!r}. See: promptflow index info")

    def documents(self) -> list[dict[str, Any]]:
        """Return path, kind, sha256, metadata and number of chunks of every document."""
        rows = self._rows(
            "SELECT path, kind, documents.sha256, metadata, count(*) FROM documents "
            "JOIN chunks ON chunks.document = documents.id GROUP BY documents.id ORDER BY path"
        )
        return [
            {"path": path, "kind": kind, "sha256": sha, "metadata": json.loads(meta), "chunks": n}
            for path, kind, sha, meta, n in rows
        ]

    def rejected(self) -> list[Rejected]:
        """Return the files that are not in the index, and why."""
        return [
            Rejected(*row)
            for row in self._rows("SELECT path, reason, sha256 FROM rejected ORDER BY path")
        ]

    def chunk_ids(self, documents: Iterable[str]) -> list[int]:
        """Return the ids of the chunks of these documents."""
        ids: list[int] = []
        for document in documents:
            rows = self._rows(
                "SELECT chunks.id FROM chunks JOIN documents ON documents.id = chunks.document "
                "WHERE documents.path = ?",
                (document,),
            )
            ids += [row[0] for row in rows]
        return sorted(ids)

    def close(self) -> None:
        """Close the files."""
        self._chunks.close()


SELECT_CHUNKS = (
    "SELECT chunks.id, path, first, last, heading, chunks.text, kind, metadata FROM chunks "
    "JOIN documents ON documents.id = chunks.document "
)


def _row(row: tuple[Any, ...]) -> Row:
    chunk, path, start, end, heading, text, kind, metadata = row
    return Row(chunk, path, start, end, heading, text, {"kind": kind, **json.loads(metadata)})


class Draft:
    """A generation while it is written, in a folder that no reader knows."""

    def __init__(self, folder: Path) -> None:
        """Start an empty generation in the empty ``folder``."""
        self.folder = folder
        self.counts = {"documents": 0, "chunks": 0, "rejected": 0, "characters": 0}
        self.words = SparseWriter()
        self._path = folder / CHUNKS
        self._chunks = connect(self._path, durable=False)
        with sqlite_errors(self._path):
            for statement in TABLES.split(";"):
                self._chunks.execute(statement)

    def add(self, document: Document, chunks: Sequence[Chunk]) -> None:
        """Add a document with its chunks, which get the next ids."""
        number, first = self.counts["documents"], self.counts["chunks"]
        metadata = json.dumps(document.metadata, sort_keys=True, default=str)
        values = [
            (first + at, number, chunk.start, chunk.end, chunk.heading,
             document.text[chunk.start : chunk.end])
            for at, chunk in enumerate(chunks)
        ]  # fmt: skip
        with sqlite_errors(self._path):
            self._chunks.execute("BEGIN")
            self._chunks.execute(
                "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?)",
                (number, document.path, document.kind, document.sha256, metadata, document.text),
            )
            self._chunks.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?)", values)
            self._chunks.commit()
        texts = [
            embedded_text(chunk.heading, row[-1]) for chunk, row in zip(chunks, values, strict=True)
        ]
        self.words.add(document.text, texts)
        self.counts["documents"] += 1
        self.counts["chunks"] += len(values)
        self.counts["characters"] += len(document.text)

    def reject(self, rejected: Rejected) -> None:
        """Note a file that is not in the index."""
        with sqlite_errors(self._path):
            self._chunks.execute(
                "INSERT INTO rejected VALUES (?, ?, ?)",
                (rejected.path, rejected.reason, rejected.sha256),
            )
        self.counts["rejected"] += 1

    def embedded_texts(self, first: int, number: int) -> list[str]:
        """Return the texts to embed of ``number`` chunks from id ``first``."""
        with sqlite_errors(self._path):
            rows = self._chunks.execute(
                SELECT_CHUNKS + "WHERE chunks.id >= ? ORDER BY chunks.id LIMIT ?", (first, number)
            ).fetchall()
        return [_row(row).embedded() for row in rows]

    def write(self, name: str, data: bytes) -> None:
        """Write a segment."""
        write_bytes(self.folder / name, data)

    def seal(self) -> dict[str, dict[str, Any]]:
        """Close the chunks and return size and hash of every segment."""
        with sqlite_errors(self._path):
            # Leaves one file without a log beside it, which an immutable reader can open.
            self._chunks.execute("PRAGMA journal_mode=DELETE")
            self.close()
        segments = {}
        for name in SEGMENTS:
            data = (self.folder / name).read_bytes()
            segments[name] = {"bytes": len(data), "sha256": sha256_bytes(data)}
        return segments

    def close(self) -> None:
        """Close the chunks; a draft that is not sealed is thrown away with its folder."""
        self._chunks.close()


@contextmanager
def drafting(folder: Path, generation: int) -> Iterator[Draft]:
    """Give a draft that becomes the folder of ``generation`` when the block succeeds."""
    with replace_folder(folder / folder_of(generation)) as part:
        draft = Draft(part)
        try:
            yield draft
        finally:
            draft.close()


def next_generation(folder: Path) -> int:
    """Return a number above that of every generation in ``folder``, committed or not."""
    taken = [
        int(path.name[11:]) for path in folder.glob("generation-*") if path.name[11:].isdigit()
    ]
    return max(taken, default=0) + 1


def commit(folder: Path, manifest: Manifest) -> None:
    """Make ``manifest`` the index, then remove the generations that it replaces."""
    table = asdict(manifest)
    write_json(
        folder / "manifest.json", {**table, "sha256": sha256_bytes(canonical(table).encode())}
    )
    remove_leftovers(folder, manifest.generation)


def discard(folder: Path, generation: int) -> None:
    """Remove a generation that was not committed."""
    with suppress(StoreError):
        if read_manifest(folder, "").generation == generation:
            return
    with suppress(StoreError):
        remove_folder(folder / folder_of(generation))


def remove_leftovers(folder: Path, generation: int) -> None:
    """Remove every generation but one, and what builds that were killed left. Needs the lock."""
    for path in [*folder.glob("generation-*"), *folder.glob(".generation-*.part")]:
        if path.name != folder_of(generation):
            remove_folder(path)
