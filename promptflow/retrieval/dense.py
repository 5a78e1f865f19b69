"""Search by vectors: FAISS, the only import of it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from promptflow.errors import StoreCorrupt, StoreError
from promptflow.retrieval.passages import Ranking

Array = NDArray[np.float32]
HOME = os.getpid()
THREADS = faiss.omp_get_max_threads()
ALONE = 1 << 26
"""Numbers in an index below which one thread searches it.

Two that divide it wait for each other, and where anything else runs, for a turn of the scheduler:
measured 16 ms where one takes 1 ms.
"""
SPARE = 16
"""Rows that are found beyond those asked for, so that ties are seen."""
NOISE = 1e-5
"""How far FAISS's score of a unit vector may be from the one that is given back."""
INNER = (
    faiss.IndexFlat, faiss.IndexScalarQuantizer, faiss.IndexIVF, faiss.IndexHNSW,
    faiss.IndexRefineFlat,
)  # fmt: skip
TABLES = 1 << 28
"""Bytes that FAISS may take for tables that it makes when it reads an index."""
AUTO = "auto"
FEW, MANY = 20_000, 200_000
"""Vectors up to which "auto" compares with each of them, and up to which it walks a graph."""
RECALL = 0.97
"""Of the ten nearest, what an approximate search has to find on average to be chosen."""
QUERIES, NEIGHBOURS = 200, 10
LIKENESS = (0.8, 0.5)
"""Cosines between queries of the measurement, half each, and the vectors that they are made of."""
WIDTHS = (128, 256, 512)
"""Of a walk through a graph."""
PROBES = (8, 16, 32, 64, 128, 256)
"""Lists of vectors that are looked through."""
REFINED = 20
"""Candidates by their codes, for each vector that is asked for, that are compared exactly."""
TRAINED = 50
"""Vectors of each list from which its centre is computed."""


class Built(NamedTuple):
    """A segment as it is written, and what it is: the factory, and its ``recall`` where measured.

    ``facts`` are plain data for the manifest, of what "auto" has chosen.
    """

    data: bytes
    facts: dict[str, Any]


def build_dense(vectors: Array, factory: str) -> bytes:
    """Return the bytes of ``built_dense``."""
    return built_dense(vectors, factory).data


def built_dense(vectors: Array, factory: str) -> Built:
    """Return a FAISS segment over unit ``vectors`` (n, dimension), whose rows are the ids.

    The factory "auto" compares with every vector where they are few, and else takes a graph
    (HNSW), or lists with short codes whose best are compared exactly (IVF, PQ), as wide as it has
    to be to find what is measured as enough; if none is, with every vector after all. Raises
    StoreError for a factory that FAISS cannot build over so many vectors.
    """
    number, dimension = vectors.shape
    faiss.omp_set_num_threads(1 if os.getpid() != HOME else THREADS)
    try:
        index, facts = _chosen(vectors) if factory == AUTO else (_made(vectors, factory), {})
    except RuntimeError as error:
        raise StoreError(
            f"FAISS cannot build the factory {factory!r} over {number} vectors of length "
            f'{dimension} ({str(error).splitlines()[-1]}). Set factory = "Flat" in index.toml.'
        ) from error
    # Never faiss.write_index: it writes in place and says nothing when the disk is full.
    return Built(bytes(faiss.serialize_index(index)), facts)


def _made(vectors: Array, factory: str) -> Any:
    inner = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index = faiss.IndexIDMap(inner)
    if not inner.is_trained:
        lists = faiss.try_extract_index_ivf(inner)
        most = len(vectors) if lists is None else max(TRAINED * lists.nlist, 1 << 16)
        step = max(1, len(vectors) // most)
        inner.train(np.ascontiguousarray(vectors[::step]))
    index.add_with_ids(vectors, np.arange(len(vectors), dtype=np.int64))
    return index


def _chosen(vectors: Array) -> tuple[Any, dict[str, Any]]:
    """Return the index that "auto" stands for over these vectors."""
    number, dimension = vectors.shape
    if number <= FEW:
        return _made(vectors, "Flat"), {"factory": "Flat"}
    tried: dict[str, float] = {}
    queries, nearest = _questions(vectors)
    walks = number <= MANY
    factory = "HNSW32" if walks else _listed(number, dimension)
    index = _made(vectors, factory)
    inner = faiss.downcast_index(index.index)
    for width in WIDTHS if walks else PROBES:
        _widen(inner, width)
        _, found = inner.search(queries, NEIGHBOURS)
        recall = sum(len({*a} & {*b}) for a, b in zip(found, nearest, strict=True)) / nearest.size
        tried[str(width)] = round(recall, 4)
        if recall >= RECALL:
            return index, {"factory": factory, "width": width, "recall": tried[str(width)]}
    return _made(vectors, "Flat"), {"factory": "Flat", "tried": {factory: tried}}


def _listed(number: int, dimension: int) -> str:
    """Return the factory of about 4 sqrt(n) lists, with codes of a byte for four numbers."""
    lists = 1 << round(math.log2(4 * math.sqrt(number)))
    codes = next(size for size in (4, 3, 2, 1) if dimension % size == 0)
    return f"IVF{lists},PQ{dimension // codes},RFlat"


def _widen(inner: Any, width: int) -> None:
    """Let an index look at more; FAISS writes it down with the index."""
    if isinstance(inner, faiss.IndexHNSW):
        inner.hnsw.efSearch = width
        return
    faiss.extract_index_ivf(inner).nprobe = width
    inner.k_factor = REFINED


def _questions(vectors: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return queries as near to some vectors as questions are, and the ids nearest to each."""
    random = np.random.default_rng(0)
    rows = random.choice(len(vectors), QUERIES, replace=False)
    noise = random.standard_normal((QUERIES, vectors.shape[1]), np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    likeness = np.repeat(np.array(LIKENESS, np.float32), QUERIES // 2)[:, None]
    queries = vectors[rows] + noise * np.sqrt(1 / likeness**2 - 1)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    _, nearest = faiss.knn(queries, vectors, NEIGHBOURS, metric=faiss.METRIC_INNER_PRODUCT)
    return queries, nearest


class Dense:
    """A FAISS segment in memory."""

    def __init__(self, data: bytes, number: int, dimension: int) -> None:
        """Read what ``build_dense`` wrote for so many vectors. Raises StoreCorrupt."""
        loops, size = (
            faiss.get_deserialization_loop_limit(),
            faiss.get_deserialization_vector_byte_limit(),
        )
        faiss.set_deserialization_loop_limit(10_000_000)
        faiss.set_deserialization_vector_byte_limit(max(len(data), TABLES))
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
        self._flat = _whole(self._inner)

    def search(self, vector: Array, k: int, allowed: Sequence[int] | None = None) -> Ranking:
        """Return at most ``k`` (id, cosine), best first, ties by id, of the ``allowed`` ids."""
        return self.nearest(vector, k, allowed)[:k]

    def nearest(self, vector: Array, k: int, allowed: Sequence[int] | None = None) -> Ranking:
        """Return what ``search`` does, and after it all that tie with the last."""
        most = self._index.ntotal if allowed is None else len(allowed)
        if min(k, most) < 1:
            return []
        # In a forked child there are no threads to wake: those of OpenMP stay behind in the parent,
        # and a search would wait for them for ever.
        reads_all = isinstance(self._inner, (faiss.IndexFlat, faiss.IndexScalarQuantizer))
        few = self._index.ntotal * self._index.d < ALONE
        alone = os.getpid() != HOME or few or not reads_all
        faiss.omp_set_num_threads(1 if alone else THREADS)
        if self._flat is not None and self._flat is not self._inner:
            return self._near(vector, k, allowed)
        exact = self._flat is not None
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

    def _near(self, vector: Array, k: int, allowed: Sequence[int] | None) -> Ranking:
        """Return what an approximate index finds with its exact scores; all if it is told where."""
        if allowed is None:
            return self._scored(vector, [row for row, _ in self._found(vector, k, None)])
        rows = np.asarray(allowed, np.int64)
        scores = self._vectors()[rows] @ vector
        if k < len(rows):
            least = np.partition(scores, -k)[-k]
            rows = rows[scores >= least - NOISE]
        found = self._scored(vector, rows.tolist())
        least = found[min(k, len(found)) - 1][1]
        return [(row, score) for row, score in found if score >= least]

    def _vectors(self) -> Array:
        """Return a view of the vectors of an index that holds them whole."""
        flat: Any = self._flat
        view: Array = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)
        return view.reshape(-1, flat.d)

    def _found(self, vector: Array, k: int, allowed: Sequence[int] | None) -> Ranking:
        selector = None if allowed is None else faiss.IDSelectorBatch(np.array(allowed, np.int64))
        scores, ids = self._index.search(vector[None, :], k, params=self._parameters(selector, k))
        return [(int(i), float(s)) for i, s in zip(ids[0], scores[0], strict=True) if i >= 0]

    def _scored(self, vector: Array, rows: Sequence[int]) -> Ranking:
        """Return rows with scores that do not depend on where a row stands, best first.

        FAISS adds up four rows at a time and the rest one by one: the last bit of a score changes
        with the number of the row, and with it the order of passages that say the same.
        """
        vectors = self._vectors()[list(rows)].astype(np.float64)
        scores = (vectors * vector.astype(np.float64)).sum(axis=1).astype(np.float32)
        return sorted(zip(rows, scores.tolist(), strict=True), key=lambda item: (-item[1], item[0]))

    def _parameters(self, selector: Any, k: int) -> Any:
        """Return search parameters; a filtered search of an approximate index looks at more."""
        if isinstance(self._inner, faiss.IndexRefineFlat):
            return None  # the index holds how far it has to look
        if isinstance(self._inner, faiss.IndexIVF):
            lists = self._inner.nlist
            parameters: Any = faiss.SearchParametersIVF()
            parameters.nprobe = lists if selector is not None else min(lists, max(8, lists // 8))
        elif isinstance(self._inner, faiss.IndexHNSW):
            parameters = faiss.SearchParametersHNSW()  # type: ignore[attr-defined]
            parameters.efSearch = max(64, 2 * k, self._inner.hnsw.efSearch)
        else:
            parameters = faiss.SearchParameters()
        if selector is not None:
            parameters.sel = selector
        return parameters


def _whole(inner: Any) -> Any:
    """Return the part of an index that holds its vectors as they are; None if there is none."""
    if isinstance(inner, faiss.IndexRefineFlat):
        inner = faiss.downcast_index(inner.refine_index)
    elif isinstance(inner, faiss.IndexHNSW):
        inner = faiss.downcast_index(inner.storage)
    return inner if isinstance(inner, faiss.IndexFlat) else None
