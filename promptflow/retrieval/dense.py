"""Search by vectors: FAISS, the only import of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from promptflow.errors import StoreCorrupt, StoreError
from promptflow.retrieval.passages import Ranking

Array = NDArray[np.float32]
HOME = os.getpid()
THREADS = faiss.omp_get_max_threads()
ALONE = 1 << 22
"""Numbers in an index below which one thread searches it."""
SPARE = 16
"""Rows that are found beyond those asked for, so that ties are seen."""
NOISE = 1e-5
"""How far FAISS's score of a unit vector may be from the one that is given back."""
INNER = (faiss.IndexFlat, faiss.IndexScalarQuantizer, faiss.IndexIVF, faiss.IndexHNSW)


def build_dense(vectors: Array, factory: str) -> bytes:
    """Return a FAISS segment over unit ``vectors`` (n, dimension), whose rows are the ids.

    Raises StoreError for a factory that FAISS cannot build over so many vectors.
    """
    number, dimension = vectors.shape
    try:
        inner = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexIDMap(inner)
        if not inner.is_trained:
            inner.train(vectors)
        index.add_with_ids(vectors, np.arange(number, dtype=np.int64))
    except RuntimeError as error:
        raise StoreError(
            f"FAISS cannot build the factory {factory!r} over {number} vectors of length "
            f'{dimension} ({str(error).splitlines()[-1]}). Set factory = "Flat" in index.toml.'
        ) from error
    # Never faiss.write_index: it writes in place and says nothing when the disk is full.
    return bytes(faiss.serialize_index(index))


class Dense:
    """A FAISS segment in memory."""

    def __init__(self, data: bytes, number: int, dimension: int) -> None:
        """Read what ``build_dense`` wrote for so many vectors. Raises StoreCorrupt."""
        loops, size = (
            faiss.get_deserialization_loop_limit(),
            faiss.get_deserialization_vector_byte_limit(),
        )
        faiss.set_deserialization_loop_limit(10_000_000)
        faiss.set_deserialization_vector_byte_limit(max(len(data), 1 << 20))
        try:
            index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        except (RuntimeError, MemoryError) as error:
            raise StoreCorrupt(f"not a FAISS segment: {str(error).splitlines()[-1]}") from error
        finally:
            faiss.set_deserialization_loop_limit(loops)
            faiss.set_deserialization_vector_byte_limit(size)
        if not isinstance(index, faiss.IndexIDMap):
            raise StoreCorrupt(f"holds a {type(index).__name__}, expected an IndexIDMap")
        self._index = index
        self._inner = faiss.downcast_index(index.index)
        if not isinstance(self._inner, INNER):
            raise StoreCorrupt(
                f"holds a {type(self._inner).__name__}, which promptflow never writes"
            )
        if (index.ntotal, index.d) != (number, dimension):
            raise StoreCorrupt(
                f"holds {index.ntotal} vectors of length {index.d}, "
                f"the manifest says {number} of length {dimension}"
            )
        if not np.array_equal(faiss.vector_to_array(index.id_map), np.arange(number)):
            raise StoreCorrupt("its ids are not those of the chunks")

    def search(self, vector: Array, k: int, allowed: Sequence[int] | None = None) -> Ranking:
        """Return at most ``k`` (id, cosine), best first, ties by id, of the ``allowed`` ids."""
        return self.nearest(vector, k, allowed)[:k]

    def nearest(self, vector: Array, k: int, allowed: Sequence[int] | None = None) -> Ranking:
        """Return what ``search`` does, and after it all that tie with the last."""
        most = self._index.ntotal if allowed is None else len(allowed)
        if min(k, most) < 1:
            return []
        # Few rows cost less than waking threads. In a forked child there are none to wake: those of
        # OpenMP stay behind in the parent, and a search would wait for them for ever.
        alone = os.getpid() != HOME or self._index.ntotal * self._index.d < ALONE
        faiss.omp_set_num_threads(1 if alone else THREADS)
        exact = isinstance(self._inner, faiss.IndexFlat)
        wanted = min(most, k + SPARE) if exact else min(most, k)
        while True:
            found = self._found(vector, wanted, allowed)
            if not exact or len(found) < wanted or wanted == most:
                break
            if found[-1][1] < found[k - 1][1] - NOISE:
                break
            wanted = min(most, 4 * wanted)
        if not exact:
            return sorted(found, key=lambda item: (-item[1], item[0]))
        found = self._scored(vector, [row for row, _ in found])
        least = found[min(k, len(found)) - 1][1] if found else 0.0
        return [(row, score) for row, score in found if score >= least]

    def _found(self, vector: Array, k: int, allowed: Sequence[int] | None) -> Ranking:
        selector = None if allowed is None else faiss.IDSelectorBatch(np.array(allowed, np.int64))
        scores, ids = self._index.search(vector[None, :], k, params=self._parameters(selector, k))
        return [(int(i), float(s)) for i, s in zip(ids[0], scores[0], strict=True) if i >= 0]

    def _scored(self, vector: Array, rows: Sequence[int]) -> Ranking:
        """Return rows with scores that do not depend on where a row stands, best first.

        FAISS adds up four rows at a time and the rest one by one: the last bit of a score changes
        with the number of the row, and with it the order of passages that say the same.
        """
        inner: Any = self._inner
        flat = faiss.rev_swig_ptr(inner.get_xb(), inner.ntotal * inner.d)
        vectors = flat.reshape(-1, inner.d)[list(rows)].astype(np.float64)
        scores = (vectors * vector.astype(np.float64)).sum(axis=1).astype(np.float32)
        return sorted(zip(rows, scores.tolist(), strict=True), key=lambda item: (-item[1], item[0]))

    def _parameters(self, selector: Any, k: int) -> Any:
        """Return search parameters; a filtered search of an approximate index looks at more."""
        if isinstance(self._inner, faiss.IndexIVF):
            lists = self._inner.nlist
            parameters: Any = faiss.SearchParametersIVF()
            parameters.nprobe = lists if selector is not None else min(lists, max(8, lists // 8))
        elif isinstance(self._inner, faiss.IndexHNSW):
            parameters = faiss.SearchParametersHNSW()  # type: ignore[attr-defined]
            parameters.efSearch = self._index.ntotal if selector is not None else max(64, 2 * k)
        else:
            parameters = faiss.SearchParameters()
        if selector is not None:
            parameters.sel = selector
        return parameters
