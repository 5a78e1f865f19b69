"""Segments to fewer segments: which to write again together, and what is left of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from promptflow.retrieval.documents import Document
from promptflow.retrieval.segment import CUT, Entry, Place
from promptflow.retrieval.store import Store, Stored

MOST = 8
"""Small segments that an index may have before some are merged."""


def crowded(store: Store) -> set[int]:
    """Return the segments that should be merged now, so that a commit costs what it adds.

    Those that are mostly removed, and of more than ``MOST`` small ones the smallest of a like size:
    over many commits each chunk is written again a logarithmic number of times.
    """
    live = [int((store.ids(at) >= 0).sum()) for at in range(len(store.segments))]
    sizes = [segment.stated.size for segment in store.segments]
    chosen = {
        at for at, segment in enumerate(store.segments) if 2 * live[at] < segment.stated.chunks
    }
    small = sorted((at for at, size in enumerate(sizes) if size < CUT), key=lambda at: live[at])
    if len(small) > MOST:
        chosen |= set(_alike([live[at] for at in small], small))
    return chosen


def _alike(sizes: Sequence[int], segments: Sequence[int]) -> list[int]:
    """Return the first segments, as many as must go and as many more as are not far larger."""
    total = 0
    for at, size in enumerate(sizes):
        if at > len(sizes) - MOST and size > 2 * total:
            return list(segments[:at])
        total += size
    return list(segments)


def entries_of(store: Store, segments: set[int]) -> Iterator[Entry]:
    """Give what is live in some segments, in the order in which one build would write it.

    A text that only files of other segments name is kept, and a place whose text lies elsewhere.
    """
    texts = {path: stored for stored in store.live.documents for path in stored.paths}
    written: set[str] = set()
    for path in sorted(store.live.places):
        home, at = store.live.places[path]
        place = store.segments[home].places[at] if home in segments else None
        stored = texts.get(path)
        if stored is None or stored.segment not in segments or stored.content.key in written:
            if place is not None:
                yield Entry(place)
            continue
        written.add(stored.content.key)
        yield _entry(store, stored, place)


def _entry(store: Store, stored: Stored, place: Place | None) -> Entry:
    segment, content = store.segments[stored.segment], stored.content
    document = Document(
        stored.paths[0], content.kind, segment.text(content), content.sha256, content.metadata
    )
    return Entry(place, content.key, document, segment.chunks(content))
