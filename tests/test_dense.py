"""Search by vectors: near what brute force finds, within what is allowed."""

from __future__ import annotations

import numpy as np
import pytest

from promptflow.errors import StoreCorrupt, StoreError
from promptflow.retrieval.dense import Dense, build_dense


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def brute_force(
    vectors: np.ndarray, query: np.ndarray, k: int, allowed: list[int] | None = None
) -> list[int]:
    scores = vectors @ query
    ids = list(range(len(vectors))) if allowed is None else allowed
    return sorted(ids, key=lambda at: -scores[at])[:k]


def test_flat_search_is_brute_force() -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng, 500, 32)
    dense = Dense(build_dense(vectors, "Flat"), 500, 32)
    for query in unit(rng, 50, 32):
        found = dense.search(query, 10)
        assert [at for at, _ in found] == brute_force(vectors, query, 10)
        assert [score for _, score in found] == pytest.approx(
            [float(vectors[at] @ query) for at, _ in found], abs=1e-5
        )
        allowed = sorted(rng.choice(500, 40, replace=False).tolist())
        found = dense.search(query, 10, allowed)
        assert [at for at, _ in found] == brute_force(vectors, query, 10, allowed)


@pytest.mark.parametrize("factory", ["SQ8", "HNSW16", "HNSW16,Flat", "IVF8,Flat", "IVF8,SQ8"])
def test_approximate_search_is_near_brute_force(factory: str) -> None:
    rng = np.random.default_rng(1)
    vectors = unit(rng, 600, 32)
    dense = Dense(build_dense(vectors, factory), 600, 32)
    allowed = list(range(0, 600, 7))
    hits = filtered = 0
    for query in unit(rng, 40, 32):
        wanted = set(brute_force(vectors, query, 10))
        hits += len(wanted & {at for at, _ in dense.search(query, 10)})
        found = [at for at, _ in dense.search(query, 10, allowed)]
        assert set(found) <= set(allowed)
        filtered += len(set(found) & set(brute_force(vectors, query, 10, allowed)))
    assert hits >= 0.9 * 400
    assert filtered >= 0.9 * 400


def test_a_search_for_more_than_there_is_gives_what_there_is() -> None:
    vectors = unit(np.random.default_rng(2), 3, 8)
    dense = Dense(build_dense(vectors, "Flat"), 3, 8)
    assert len(dense.search(vectors[0], 10)) == 3
    assert dense.search(vectors[0], 10, []) == []
    assert [at for at, _ in dense.search(vectors[1], 5, [1])] == [1]


def test_a_factory_that_needs_more_vectors_is_refused() -> None:
    vectors = unit(np.random.default_rng(3), 5, 8)
    with pytest.raises(StoreError, match="'IVF64,Flat' over 5 vectors"):
        build_dense(vectors, "IVF64,Flat")


@pytest.mark.parametrize("data", [b"", b"IxFI", b"\0" * 4096], ids=["empty", "cut", "zeros"])
def test_bytes_that_are_no_faiss_index_are_refused(data: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        Dense(data, 5, 8)
