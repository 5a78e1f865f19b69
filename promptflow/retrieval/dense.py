"""Search by vectors: FAISS, the only import of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from promptflow.errors import StoreCorrupt, StoreError
from promptflow.retrieval.passages import Ranking

Array = NDArray[np.float32]
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
        """Return at most ``k`` (id, cosine), best first, of the ``allowed`` ids."""
        k = min(k, self._index.ntotal if allowed is None else len(allowed))
        if k < 1:
            return []
        selector = None if allowed is None else faiss.IDSelectorBatch(np.array(allowed, np.int64))
        scores, ids = self._index.search(vector[None, :], k, params=self._parameters(selector, k))
        return [(int(i), float(s)) for i, s in zip(ids[0], scores[0], strict=True) if i >= 0]

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
