"""Several segments searched as one: what comes out is what one build of all of them would find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from promptflow.errors import StoreCorrupt
from promptflow.retrieval.dense import Dense
from promptflow.retrieval.passages import Ranking
from promptflow.retrieval.segment import DENSE, SPARSE, Array, Ids, Segment as Files
from promptflow.retrieval.sparse import Floats, Segment, Sparse, ranked
from promptflow.retrieval.store import Store

T = TypeVar("T")
SKIPPED = 200
"""Removed chunks of a segment up to which a search looks past them; of more it asks for the rest
by name."""


@dataclass(frozen=True, slots=True)
class _Part:
    dense: Dense
    ids: Ids
    removed: int


class DenseAcross:
    """The vectors of an index: the dense segments, and the id of each of their rows."""

    def __init__(self, store: Store) -> None:
        """Load the dense segments of ``store``. Raises StoreCorrupt naming a file."""
        dimension = int(store.manifest.embedder["dimension"])
        self._number = store.manifest.counts["chunks"]
        self._parts: list[_Part] = []
        for at, files in enumerate(store.segments):
            if not files.stated.chunks:
                continue
            ids = store.ids(at)
            dense = loaded(files, DENSE, partial(Dense, number=len(ids), dimension=dimension))
            self._parts.append(_Part(dense, ids, int((ids < 0).sum())))

    def search(self, vector: Array, k: int, allowed: Sequence[int] | None = None) -> Ranking:
        """Return at most ``k`` (id, cosine), best first, ties by id, of the ``allowed`` ids."""
        inside = None
        if allowed is not None:
            # One place more: a removed chunk has the id -1, and is never inside.
            inside = np.zeros(self._number + 1, bool)
            inside[list(allowed)] = True
        found: Ranking = []
        for part in self._parts:
            rows, wanted = None, k
            if inside is not None or part.removed > SKIPPED:
                keep = part.ids >= 0 if inside is None else inside[part.ids]
                rows = np.flatnonzero(keep).tolist()
            else:
                wanted += part.removed
            hits = part.dense.nearest(vector, wanted, rows)
            found += [(int(part.ids[row]), score) for row, score in hits if part.ids[row] >= 0]
        return sorted(found, key=lambda item: (-item[1], item[0]))[:k]


class SparseAcross:
    """The words of an index: the sparse segments, and the id of each of their chunks."""

    def __init__(self, store: Store) -> None:
        """Load the sparse segments of ``store``. Raises StoreCorrupt naming a file."""
        segments: list[Segment] = []
        ids: list[Ids] = [np.zeros(0, np.int64)]
        for at, files in enumerate(store.segments):
            if not files.stated.chunks:
                continue
            ids.append(store.ids(at))
            live: NDArray[np.bool_] = ids[-1] >= 0
            segment = loaded(files, SPARSE, partial(Segment, live=live))
            segments.append(segment)
        self._words = Sparse(segments)
        self.languages = self._words.languages
        self.rarity = self._words.rarity
        places = np.concatenate(ids)
        self._place = np.empty(store.manifest.counts["chunks"], np.int64)
        self._place[places[places >= 0]] = np.flatnonzero(places >= 0)

    def scores(self, query: str) -> Floats:
        """Return the BM25 score of every chunk by its id, 0 for those that share no word."""
        return self._words.scores(query)[self._place]

    def language(self, chunk: int) -> str:
        """Return the language of a chunk's document, by its id."""
        return self._words.language(int(self._place[chunk]))

    def search(self, query: str, k: int, allowed: Sequence[int] | None = None) -> Ranking:
        """Return at most ``k`` (id, BM25 score), best first, of texts that share a word."""
        return ranked(self.scores(query), k, allowed)


def loaded(files: Files, name: str, load: Callable[[bytes], T]) -> T:
    """Return what ``load`` makes of a file of a segment. Raises StoreCorrupt naming it."""
    data = files.read(name)
    try:
        return load(data)
    except StoreCorrupt as error:
        raise files.damaged(name, str(error)) from error
