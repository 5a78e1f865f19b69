"""The folder of a built index: one manifest, and one folder of immutable files a segment.

::

    manifest.json            which segments, built how, and the SHA-256 of each of their files
    segment-000003/          what one commit added (see ``segment.py``)
    embeddings/              vectors kept for the next build; may be deleted
    lock                     held by the one writer

Writing the manifest is the commit: one atomic replace. A segment is complete and synced before, and
never changes after; what a commit takes out is a number in the manifest. So a reader sees the last
committed generation, and every damage shows as a hash: when the index is opened if its files have
64 MB or less, else when they are loaded, of each text when it is read, and always by ``check``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from promptflow.errors import StoreCorrupt, StoreError, StoreNotFound
from promptflow.retrieval.documents import LeftOut, Rejected
from promptflow.retrieval.segment import (
    Content,
    Ids,
    Place,
    Sealed,
    Segment,
    embedded_text,
)
from promptflow.storage import canonical, read_json, remove_folder, sha256_bytes, write_json

SCHEMA = 3
HASHED_WHOLE = 64 << 20
"""Bytes up to which all files of an index are hashed when it is opened."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an index is: the content of ``manifest.json``, beside its own hash.

    ``measured`` is what a build of all documents measured of its embedder: the cosines of unrelated
    texts (see ``calibration``) and the precision of the passages' vectors.
    """

    name: str
    generation: int
    documents: str
    embedder: dict[str, Any]
    settings: dict[str, Any]
    counts: dict[str, int]
    segments: tuple[Sealed, ...]
    measured: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a commit did. ``unchanged`` means that there was nothing to do and nothing was written.

    ``added``, ``changed`` and ``removed`` count files; ``documents`` counts texts, of which several
    files may be copies. ``embedded`` and ``reused`` count different passages: those that went
    through the embedder and those whose vectors an earlier build had kept. ``left_out`` counts the
    files of the folder that are of no kind that is read, where the whole folder was looked at.
    """

    generation: int
    documents: int
    chunks: int
    rejected: tuple[Rejected, ...]
    embedded: int
    reused: int
    seconds: float
    unchanged: bool = False
    added: int = 0
    changed: int = 0
    removed: int = 0
    left_out: tuple[LeftOut, ...] = ()


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


class Stored(NamedTuple):
    """A live document: its content, the segment that has it, and its paths in order."""

    segment: int
    content: Content
    paths: tuple[str, ...]

    def metadata(self) -> dict[str, Any]:
        """Return its metadata as its first path shows it, with the other paths as ``also``."""
        path, *also = self.paths
        title = self.content.metadata.get("title") or PurePosixPath(path).stem
        named = {"kind": self.content.kind, **self.content.metadata, "title": title}
        return {**named, "also": also} if also else named


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
        segments = tuple(Sealed.of(stated) for stated in table.pop("segments"))
        return Manifest(**table, segments=segments)
    except (StoreCorrupt, AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(f"{path}: damaged ({error}). Rebuild it: {rebuild}") from error


class Live:
    """What the segments say together: which files are indexed, and which text each has.

    Documents are in the order of their first paths, as one build of all of them would have them.
    """

    def __init__(self, segments: Sequence[Segment], removed: Sequence[Iterable[int]]) -> None:
        """Take open segments and the places that are removed from each. Raises StoreCorrupt."""
        self.places: dict[str, tuple[int, int]] = {}
        self.documents: list[Stored] = []
        self.rejected: list[Rejected] = []
        known: dict[str, tuple[int, Content]] = {}
        paths: dict[str, list[str]] = {}
        for number, segment in enumerate(segments):
            for content in segment.contents:
                known.setdefault(content.key, (number, content))
            gone = frozenset(removed[number])
            for at, place in enumerate(segment.places):
                if at in gone:
                    continue
                if place.path in self.places:
                    raise segment.damaged("documents.json", f"has {place.path!r} once more")
                self.places[place.path] = (number, at)
                if place.content:
                    paths.setdefault(place.content, []).append(place.path)
                else:
                    self.rejected.append(Rejected(place.path, place.reason, place.sha256))
        for key, at_paths in paths.items():
            if key not in known:
                number, _ = self.places[at_paths[0]]
                raise segments[number].damaged("documents.json", f"has no text {key}")
            self.documents.append(Stored(*known[key], tuple(sorted(at_paths))))
        self.documents.sort(key=lambda stored: stored.paths[0])
        self.rejected.sort(key=lambda entry: entry.path)

    def counts(self) -> dict[str, int]:
        """Return the counts that the manifest states."""
        contents = [stored.content for stored in self.documents]
        return {
            "documents": len(contents),
            "chunks": sum(content.chunks for content in contents),
            "rejected": len(self.rejected),
            "characters": sum(content.characters for content in contents),
        }


class Store:
    """One committed generation, open for reading, from any thread and after a fork.

    Chunks have the ids 0, 1, 2... that one build of all documents would give them, whatever the
    segments are.
    """

    def __init__(self, folder: Path, manifest: Manifest, rebuild: str) -> None:
        """Open the segments of ``manifest``; ``Store.open`` reads the manifest too."""
        self.folder = folder
        self.manifest = manifest
        self.rebuild = rebuild
        self.segments: list[Segment] = []
        self._checked = False
        try:
            for stated in manifest.segments:
                self.segments.append(Segment(folder, stated, rebuild))
            if sum(stated.size for stated in manifest.segments) <= HASHED_WHOLE:
                self.check()
            self.live = Live(self.segments, [stated.removed for stated in manifest.segments])
            self._check_counts()
        except BaseException:
            self.close()
            raise
        self._number_chunks()
        self._document_of = {
            path: at for at, stored in enumerate(self.live.documents) for path in stored.paths
        }

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
                # A writer may have removed these segments since the manifest was read.
                latest = read_manifest(folder, rebuild)
                if latest.generation == manifest.generation:
                    raise
                manifest = latest

    def _check_counts(self) -> None:
        found = self.live.counts()
        for name, number in found.items():
            if number != self.manifest.counts.get(name):
                raise StoreCorrupt(
                    f"{self.folder}: holds {number} {name}, the manifest says "
                    f"{self.manifest.counts.get(name)}. Rebuild it: {self.rebuild}"
                )

    def _number_chunks(self) -> None:
        """Number the live chunks by document and place in it."""
        documents = self.live.documents
        sizes = np.array([stored.content.chunks for stored in documents], np.int64)
        firsts = np.array([stored.content.first for stored in documents], np.int64)
        homes = np.array([stored.segment for stored in documents], np.int64)
        self._first_ids = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        ids = np.arange(int(self._first_ids[-1]), dtype=np.int64)
        self._document_at = np.repeat(np.arange(len(documents)), sizes)
        self._local = ids + np.repeat(firsts - self._first_ids[:-1], sizes)
        self._home = np.repeat(homes, sizes)

    def ids(self, segment: int) -> Ids:
        """Return the id of each chunk of a segment, -1 for one whose document is removed."""
        ids = np.full(self.segments[segment].stated.chunks, -1, np.int64)
        mine = np.flatnonzero(self._home == segment)
        ids[self._local[mine]] = mine
        return ids

    def check(self) -> None:
        """Read every file and compare its hash. Raises StoreCorrupt naming the damaged one."""
        if not self._checked:
            for segment in self.segments:
                segment.check()
            self._checked = True

    def chunk(self, chunk: int) -> Row:
        """Return one chunk by its id. Raises StoreNotFound."""
        if not 0 <= chunk < len(self._home):
            raise StoreNotFound(f"{self.folder}: no chunk {chunk} of {len(self._home)}")
        place, text = self.segments[self._home[chunk]].chunk(int(self._local[chunk]))
        stored = self.live.documents[self._document_at[chunk]]
        return Row(
            chunk, stored.paths[0], place.start, place.end, place.heading, text, stored.metadata()
        )

    def chunks(self) -> Iterator[Row]:
        """Give every chunk in the order of ids."""
        return map(self.chunk, range(len(self._home)))

    def text(self, document: str) -> str:
        """Return the whole text of a document. Raises StoreNotFound for an unknown path."""
        stored = self._stored(document)
        return self.segments[stored.segment].text(stored.content)

    def _stored(self, document: str) -> Stored:
        if document not in self._document_of:
            raise StoreNotFound(
                f"{self.folder}: no document {document!r}. See: promptflow index info"
            )
        return self.live.documents[self._document_of[document]]

    def sha256(self, document: str) -> str:
        """Return the SHA-256 of the file that was indexed. Raises StoreNotFound."""
        return self._stored(document).content.sha256

    def kind(self, document: str) -> str:
        """Return the kind of a document. Raises StoreNotFound."""
        return self._stored(document).content.kind

    def documents(self) -> list[dict[str, Any]]:
        """Return path, other paths, kind, sha256, metadata and number of chunks of every text."""
        return [_listed(stored) for stored in self.live.documents]

    def rejected(self) -> list[Rejected]:
        """Return the files that are not in the index, and why."""
        return self.live.rejected

    def places(self) -> dict[str, Place]:
        """Return every file that was read or rejected, by its path."""
        return {
            path: self.segments[segment].places[at]
            for path, (segment, at) in self.live.places.items()
        }

    def chunk_ids(self, documents: Iterable[str]) -> list[int]:
        """Return the ids of the chunks of these documents."""
        known = {self._document_of[path] for path in documents if path in self._document_of}
        return [
            chunk
            for at in sorted(known)
            for chunk in range(int(self._first_ids[at]), int(self._first_ids[at + 1]))
        ]

    def close(self) -> None:
        """Close the files."""
        for segment in self.segments:
            segment.close()


def _listed(stored: Stored) -> dict[str, Any]:
    metadata = stored.metadata()
    kind, also = metadata.pop("kind"), metadata.pop("also", [])
    content = stored.content
    return {
        "path": stored.paths[0],
        "also": also,
        "kind": kind,
        "sha256": content.sha256,
        "metadata": metadata,
        "chunks": content.chunks,
    }


def next_segment(folder: Path) -> int:
    """Return a number above that of every segment in ``folder``, committed or not."""
    taken = [int(path.name[8:]) for path in folder.glob("segment-*") if path.name[8:].isdigit()]
    return max(taken, default=0) + 1


def counted(
    folder: Path, segments: Sequence[Sealed], rebuild: str, store: Store | None = None
) -> dict[str, int]:
    """Return the counts that a manifest with these segments states; ``store`` has some open."""
    ready = {} if store is None else {one.stated.name: one for one in store.segments}
    fresh = {s.name: Segment(folder, s, rebuild) for s in segments if s.name not in ready}
    try:
        opened = [{**ready, **fresh}[stated.name] for stated in segments]
        return Live(opened, [stated.removed for stated in segments]).counts()
    finally:
        for segment in fresh.values():
            segment.close()


def commit(folder: Path, manifest: Manifest) -> None:
    """Make ``manifest`` the index, then remove the segments that it does not name."""
    table: Mapping[str, Any] = asdict(manifest)
    write_json(
        folder / "manifest.json", {**table, "sha256": sha256_bytes(canonical(table).encode())}
    )
    remove_leftovers(folder, manifest.segments)


def discard(folder: Path) -> None:
    """Remove what was written and not committed. Needs the lock."""
    try:
        segments = read_manifest(folder, "").segments
    except StoreNotFound:
        segments = ()
    except StoreError:
        # Nobody can say what is committed: the next build removes what it does not need.
        return
    remove_leftovers(folder, segments)


def remove_leftovers(folder: Path, segments: Iterable[Sealed]) -> None:
    """Remove every segment that is not named, and what killed builds left. Needs the lock.

    A reader that has one open reads on: its files go when it closes them.
    """
    named = {stated.name for stated in segments}
    for pattern in ("segment-*", ".segment-*.part", "generation-*", ".generation-*.part"):
        for path in folder.glob(pattern):
            if path.name not in named:
                # The commit is done: what cannot be removed now is removed by the next one.
                with suppress(StoreError):
                    remove_folder(path)
