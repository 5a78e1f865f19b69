"""One immutable part of an index: what one commit added, and the files that hold it.

::

    segment-000003/documents.json   texts and the paths they lie at, headings, files not read
    segment-000003/chunks.table     one row a chunk: document, characters, bytes, digest
    segment-000003/texts.utf8       the texts, one after another
    segment-000003/dense.faiss      vectors
    segment-000003/sparse.bm25      words

The manifest has the SHA-256 of each file. ``texts.utf8`` is never read whole by a search, so each
text and each chunk has a digest of its own in the other two, and is checked when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptflow.errors import StoreCorrupt, StoreError
from promptflow.retrieval.chunk import Chunk
from promptflow.retrieval.documents import Document
from promptflow.retrieval.sparse import SparseWriter
from promptflow.retrieval.text import normal
from promptflow.storage import (
    canonical,
    replace_folder,
    sha256_bytes,
    sha256_of,
    write_bytes,
    writing,
)

Array = NDArray[np.float32]
Ids = NDArray[np.int64]
DOCUMENTS, CHUNKS, TEXTS = "documents.json", "chunks.table", "texts.utf8"
DENSE, SPARSE = "dense.faiss", "sparse.bm25"
FILES = (DOCUMENTS, CHUNKS, TEXTS, DENSE, SPARSE)
HEADING_TOKENS = 50
"""Tokens kept free in the embedder for the headings above a passage."""
CUT = 64 << 20
"""Bytes of vectors, and of texts, at which a segment ends and the next begins."""
Built = tuple[bytes, dict[str, Any]]
"""The bytes of a dense file, and what the manifest is to say of it."""
BLOCK = 128
"""Chunks that are embedded at a time."""
DIGEST = 16
ROW = np.dtype(
    [
        ("document", "<u4"),
        ("start", "<u4"),
        ("end", "<u4"),
        ("first", "<u8"),
        ("last", "<u8"),
        ("heading", "<u4"),
        ("digest", f"V{DIGEST}"),
    ]
)


@dataclass(frozen=True, slots=True)
class Content:
    """A text of a segment, once, however many files say it: where it lies and its chunks."""

    key: str
    kind: str
    sha256: str
    metadata: dict[str, Any]
    offset: int
    size: int
    characters: int
    digest: str
    first: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Place:
    """A file: the key of its content, or the reason why it has none."""

    path: str
    sha256: str
    content: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a segment is given: a place, a text with its chunks, or both."""

    place: Place | None
    key: str = ""
    document: Document | None = None
    chunks: Sequence[Chunk] = ()


@dataclass(frozen=True, slots=True)
class Sealed:
    """A segment as the manifest states it; ``removed`` are places that later commits took out."""

    name: str
    chunks: int
    files: dict[str, dict[str, Any]]
    removed: tuple[int, ...] = field(default=())

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Sealed:
        """Return what a manifest says of a segment. Raises KeyError, TypeError or ValueError."""
        name, chunks, removed = table["name"], table["chunks"], tuple(table["removed"])
        files = {str(key): dict(stated) for key, stated in table["files"].items()}
        if PurePosixPath(name).name != name or not set(files) <= set(FILES):
            raise ValueError(f"no segment: {name!r}")
        if not all(type(number) is int for number in (chunks, *removed)):
            raise TypeError("a count that is no whole number")
        return cls(name, chunks, files, removed)

    @property
    def size(self) -> int:
        """The bytes of its files."""
        return sum(int(stated["bytes"]) for stated in self.files.values())


def segment_name(number: int) -> str:
    """Return the folder name of a segment."""
    return f"segment-{number:06d}"


def keyed(document: Document) -> tuple[str, Document]:
    """Return the key under which a document's content is kept once, and what is kept.

    Files of the same bytes, kind and metadata share it. A title that is only the file's own name
    is left out: it is given back as the name of whichever file is cited.
    """
    metadata = dict(document.metadata)
    if metadata.get("title") == PurePosixPath(document.path).stem:
        del metadata["title"]
    metadata = json.loads(json.dumps(metadata, sort_keys=True, default=str))
    stated = canonical([document.sha256, document.kind, metadata])
    return sha256_bytes(stated.encode())[:32], replace(document, metadata=metadata)


def embedded_text(heading: str, text: str) -> str:
    """Return the text that is embedded and searched, in NFC: the passage under its headings."""
    # The end of a long path of headings: the nearest ones say most, and the passage must fit.
    heading = heading[-4 * HEADING_TOKENS :]
    return normal(f"{heading}\n{text}" if heading else text)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST]


def _encoded(text: str) -> bytes:
    # A lone surrogate has no UTF-8 form and must still come back as it was.
    return text.encode("utf-8", "surrogatepass")


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


class Draft:
    """A segment while it is written, in a folder that no reader knows.

    ``embed`` turns texts into unit vectors, a block at a time, while the documents come.
    """

    def __init__(
        self, folder: Path, texts: Any, embed: Callable[[list[str]], Array], cut: bool
    ) -> None:
        """Start an empty segment in the empty ``folder``; ``texts`` is the open texts file."""
        self.folder = folder
        self.sealed = Sealed("", 0, {})
        self._texts = texts
        self._embed = embed
        self._cut = cut
        self._contents: list[Content] = []
        self._places: list[Place] = []
        self._headings: dict[str, int] = {"": 0}
        self._rows: list[NDArray[Any]] = []
        self._waiting: list[str] = []
        self._vectors: list[Array] = []
        self._words = SparseWriter()
        self._chunks = 0
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether the segment should end here, so that its memory stays bounded."""
        return self._cut and (
            self._bytes >= CUT or sum(block.nbytes for block in self._vectors) >= CUT
        )

    def add(self, entry: Entry) -> None:
        """Take in a place, a text, or both."""
        if entry.document is not None:
            self._add_text(entry.key, entry.document, entry.chunks)
        if entry.place is not None:
            self._places.append(entry.place)

    def _add_text(self, key: str, document: Document, chunks: Sequence[Chunk]) -> None:
        data = _encoded(document.text)
        rows = np.zeros(len(chunks), ROW)
        places = _bytes_at(document.text, chunks)
        texts = []
        for row, chunk in zip(rows, chunks, strict=True):
            first, last = places[chunk.start], places[chunk.end]
            heading = self._headings.setdefault(chunk.heading, len(self._headings))
            row["document"], row["heading"] = len(self._contents), heading
            row["start"], row["end"] = chunk.start, chunk.end
            row["first"], row["last"] = self._bytes + first, self._bytes + last
            row["digest"] = np.void(_digest(data[first:last]))
            texts.append(embedded_text(chunk.heading, document.text[chunk.start : chunk.end]))
        self._contents.append(
            Content(
                key, document.kind, document.sha256, document.metadata, self._bytes, len(data),
                len(document.text), _digest(data).hex(), self._chunks, len(chunks),
            )
        )  # fmt: skip
        self._texts.write(data)
        self._rows.append(rows)
        self._words.add(document.text, texts)
        self._waiting += texts
        self._chunks += len(chunks)
        self._bytes += len(data)
        self._embed_waiting(BLOCK)

    def _embed_waiting(self, least: int) -> None:
        while len(self._waiting) >= least and self._waiting:
            self._vectors.append(self._embed(self._waiting[:BLOCK]))
            del self._waiting[:BLOCK]

    def seal(self, name: str, dense: Callable[[Array], Built]) -> None:
        """Write what is left to write; ``dense`` makes a segment of all its vectors."""
        self._embed_waiting(1)
        table = {
            "contents": [asdict(content) for content in self._contents],
            "places": [asdict(place) for place in self._places],
            "headings": list(self._headings),
        }
        self._write(DOCUMENTS, canonical(table).encode())
        facts: dict[str, Any] = {}
        if self._chunks:
            self._write(CHUNKS, np.concatenate(self._rows).tobytes())
            vectors = np.concatenate(self._vectors)
            self._vectors.clear()
            data, facts = dense(vectors)
            self._write(DENSE, data)
            del vectors, data
            self._write(SPARSE, self._words.finish())
        files = {
            file: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for file in FILES
            if (path := self.folder / file).exists()
        }
        if facts:
            files[DENSE] |= facts
        self.sealed = Sealed(name, self._chunks, files)

    def _write(self, name: str, data: bytes) -> None:
        write_bytes(self.folder / name, data)


def _bytes_at(text: str, chunks: Sequence[Chunk]) -> dict[int, int]:
    """Return the place in bytes of each character at which a chunk starts or ends."""
    places, at, size = {}, 0, 0
    for place in sorted({edge for chunk in chunks for edge in (chunk.start, chunk.end)}):
        size += len(_encoded(text[at:place]))
        at = place
        places[place] = size
    return places


@contextmanager
def drafting(
    folder: Path,
    number: int,
    embed: Callable[[list[str]], Array],
    dense: Callable[[Array], Built],
    *,
    cut: bool,
) -> Iterator[Draft]:
    """Give a draft that becomes the segment of that number in ``folder`` if the block succeeds."""
    name = segment_name(number)
    with replace_folder(folder / name) as part:
        with ExitStack() as open_files:
            draft = Draft(part, open_files.enter_context(writing(part / TEXTS)), embed, cut)
            yield draft
        draft.seal(name, dense)


class Segment:
    """A sealed segment, open for reading from any thread and after a fork.

    Its files stay open, so they can be read until it is closed though a writer removes them.
    """

    def __init__(self, folder: Path, stated: Sealed, rebuild: str) -> None:
        """Open the segment of the index in ``folder``. Raises StoreCorrupt naming a file."""
        self.path = folder / stated.name
        self.stated = stated
        self._rebuild = rebuild
        self._files: dict[str, int] = {}
        self._close = weakref.finalize(self, _close_all, self._files)
        try:
            for name in stated.files:
                self._open(name)
            self._read_tables()
        except BaseException:
            self.close()
            raise

    def _open(self, name: str) -> None:
        try:
            self._files[name] = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC)
            size = os.fstat(self._files[name]).st_size
        except OSError as error:
            raise self.damaged(name, f"cannot be read: {error.strerror}") from error
        if size != (expected := self.stated.files[name].get("bytes")):
            raise self.damaged(name, f"damaged: {size} bytes, the manifest says {expected}")

    def _read_tables(self) -> None:
        try:
            table = json.loads(self.read(DOCUMENTS))
            self.contents = [Content(**content) for content in table["contents"]]
            self.places = [Place(**place) for place in table["places"]]
            self._headings: list[str] = table["headings"]
            data = self.read(CHUNKS) if self.stated.chunks else b""
            self.rows = np.frombuffer(data, ROW)
        except (KeyError, TypeError, ValueError) as error:
            raise self.damaged(DOCUMENTS, f"not the tables of a segment ({error})") from error
        if len(self.rows) != self.stated.chunks:
            raise self.damaged(
                CHUNKS, f"holds {len(self.rows)} chunks, the manifest says {self.stated.chunks}"
            )

    def damaged(self, name: str, what: str) -> StoreCorrupt:
        """Return the error that names a file of the segment and the command that rebuilds."""
        return StoreCorrupt(f"{self.path / name}: {what}. Rebuild it: {self._rebuild}")

    def read(self, name: str) -> bytes:
        """Return all bytes of a file, checked. Raises StoreCorrupt."""
        data = self._piece(name, 0, int(self.stated.files[name]["bytes"]))
        self._compare(name, sha256_bytes(data))
        return data

    def check(self) -> None:
        """Read every file to its end and compare its hash. Raises StoreCorrupt."""
        for name, stated in self.stated.files.items():
            digest, size = hashlib.sha256(), int(stated["bytes"])
            for first in range(0, size, 1 << 20):
                digest.update(self._piece(name, first, min(1 << 20, size - first)))
            self._compare(name, digest.hexdigest())

    def _compare(self, name: str, found: str) -> None:
        if found != (expected := self.stated.files[name].get("sha256")):
            raise self.damaged(
                name, f"damaged: its SHA-256 is {found}, the manifest says {expected}"
            )

    def _piece(self, name: str, first: int, size: int) -> bytes:
        data = bytearray()
        if name not in self._files:
            raise StoreError(f"{self.path / name}: the index was closed. Open it again.")
        try:
            while len(data) < size:
                at = first + len(data)
                block = os.pread(self._files[name], min(size - len(data), 1 << 24), at)
                if not block:
                    raise self.damaged(name, f"damaged: it ends at byte {at}")
                data += block
        except OSError as error:
            raise self.damaged(name, f"cannot be read: {error.strerror}") from error
        return bytes(data)

    def text(self, content: Content) -> str:
        """Return a whole text, checked. Raises StoreCorrupt."""
        data = self._piece(TEXTS, content.offset, content.size)
        if _digest(data).hex() != content.digest:
            raise self.damaged(TEXTS, f"damaged: the text at byte {content.offset} was changed")
        return _decoded(data)

    def chunk(self, number: int) -> tuple[Chunk, str]:
        """Return a chunk and its text, checked. Raises StoreCorrupt."""
        row = self.rows[number]
        first, last = int(row["first"]), int(row["last"])
        data = self._piece(TEXTS, first, last - first)
        if _digest(data) != row["digest"].tobytes():
            raise self.damaged(TEXTS, f"damaged: the passage at byte {first} was changed")
        heading = self._headings[int(row["heading"])]
        return Chunk(int(row["start"]), int(row["end"]), heading), _decoded(data)

    def chunks(self, content: Content) -> list[Chunk]:
        """Return the chunks of a text."""
        rows = self.rows[content.first : content.first + content.chunks]
        return [
            Chunk(int(row["start"]), int(row["end"]), self._headings[int(row["heading"])])
            for row in rows
        ]

    def close(self) -> None:
        """Close the files."""
        self._close()


def _close_all(files: dict[str, int]) -> None:
    while files:
        os.close(files.popitem()[1])
