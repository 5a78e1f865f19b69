"""Search by vectors: near what brute force finds, within what is allowed."""

from __future__ import annotations

import numpy as np
import pytest

from promptflow.errors import StoreCorrupt, StoreError
from promptflow.retrieval import dense
from promptflow.retrieval.dense import Dense, build_dense, built_dense


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
    index = Dense(build_dense(vectors, "Flat"), 500, 32)
    for query in unit(rng, 50, 32):
        found = index.search(query, 10)
        assert [at for at, _ in found] == brute_force(vectors, query, 10)
        assert [score for _, score in found] == pytest.approx(
            [float(vectors[at] @ query) for at, _ in found], abs=1e-5
        )
        allowed = sorted(rng.choice(500, 40, replace=False).tolist())
        found = index.search(query, 10, allowed)
        assert [at for at, _ in found] == brute_force(vectors, query, 10, allowed)


@pytest.mark.parametrize("factory", ["SQ8", "HNSW16", "HNSW16,Flat", "IVF8,Flat", "IVF8,SQ8"])
def test_approximate_search_is_near_brute_force(factory: str) -> None:
    rng = np.random.default_rng(1)
    vectors = unit(rng, 600, 32)
    index = Dense(build_dense(vectors, factory), 600, 32)
    allowed = list(range(0, 600, 7))
    hits = filtered = 0
    for query in unit(rng, 40, 32):
        wanted = set(brute_force(vectors, query, 10))
        hits += len(wanted & {at for at, _ in index.search(query, 10)})
        found = [at for at, _ in index.search(query, 10, allowed)]
        assert set(found) <= set(allowed)
        filtered += len(set(found) & set(brute_force(vectors, query, 10, allowed)))
    assert hits >= 0.9 * 400
    assert filtered >= 0.9 * 400


def test_a_search_for_more_than_there_is_gives_what_there_is() -> None:
    vectors = unit(np.random.default_rng(2), 3, 8)
    index = Dense(build_dense(vectors, "Flat"), 3, 8)
    assert len(index.search(vectors[0], 10)) == 3
    assert index.search(vectors[0], 10, []) == []
    assert [at for at, _ in index.search(vectors[1], 5, [1])] == [1]


def test_a_factory_that_needs_more_vectors_is_refused() -> None:
    vectors = unit(np.random.default_rng(3), 5, 8)
    with pytest.raises(StoreError, match="'IVF64,Flat' over 5 vectors"):
        build_dense(vectors, "IVF64,Flat")


@pytest.mark.parametrize("data", [b"", b"IxFI", b"\0" * 4096], ids=["empty", "cut", "zeros"])
def test_bytes_that_are_no_faiss_index_are_refused(data: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        Dense(data, 5, 8)


# factory = "auto"


def clustered(rng: np.random.Generator, number: int, dimension: int) -> np.ndarray:
    centres = np.random.default_rng(0).normal(size=(60, dimension)).astype(np.float32)
    vectors = centres[rng.integers(0, 60, number)]
    vectors += 0.5 * rng.normal(size=vectors.shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("few", "many", "factory"),
    [(5000, 9000, "Flat"), (1000, 9000, "HNSW32"), (1000, 2000, "IVF256,PQ8,RFlat")],
)
def test_auto_goes_by_the_number_of_vectors(
    monkeypatch: pytest.MonkeyPatch, few: int, many: int, factory: str
) -> None:
    monkeypatch.setattr(dense, "FEW", few)
    monkeypatch.setattr(dense, "MANY", many)
    rng = np.random.default_rng(4)
    vectors = clustered(rng, 4000, 32)
    built = built_dense(vectors, "auto")
    assert built.facts["factory"] == factory
    assert built.facts.get("recall", 1.0) >= dense.RECALL
    found = Dense(built.data, 4000, 32)
    hits = 0
    for query in clustered(rng, 50, 32):
        ranking = found.search(query, 10)
        hits += len({at for at, _ in ranking} & set(brute_force(vectors, query, 10)))
        scores = {at: float(vectors[at] @ query) for at, _ in ranking}
        assert [score for _, score in ranking] == pytest.approx(list(scores.values()), abs=1e-5)
        assert ranking == sorted(ranking, key=lambda item: (-item[1], item[0]))
    assert hits >= 0.95 * 500


@pytest.mark.parametrize("many", [9000, 2000])
def test_a_filtered_search_of_auto_is_exact(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    monkeypatch.setattr(dense, "FEW", 1000)
    monkeypatch.setattr(dense, "MANY", many)
    rng = np.random.default_rng(5)
    vectors = clustered(rng, 4000, 32)
    found = Dense(build_dense(vectors, "auto"), 4000, 32)
    for size in (1, 7, 300, 3900):
        allowed = sorted(rng.choice(4000, size, replace=False).tolist())
        for query in clustered(rng, 5, 32):
            ranking = [at for at, _ in found.search(query, 10, allowed)]
            assert ranking == brute_force(vectors, query, 10, allowed)
    assert found.search(vectors[0], 10, []) == []


def test_auto_widens_until_enough_is_found_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "FEW", 1000)
    monkeypatch.setattr(dense, "WIDTHS", (10, 400))
    monkeypatch.setattr(dense, "RECALL", 0.999)
    vectors = unit(np.random.default_rng(6), 3000, 48)  # no clusters: the hardest to search
    built = built_dense(vectors, "auto")
    assert (built.facts["factory"], built.facts["width"]) == ("HNSW32", 400)
    monkeypatch.setattr(dense, "WIDTHS", (10, 12))
    built = built_dense(vectors, "auto")
    assert built.facts["factory"] == "Flat"
    assert set(built.facts["tried"]["HNSW32"]) == {"10", "12"}
    assert max(built.facts["tried"]["HNSW32"].values()) < 0.999


def test_questions_are_near_their_vectors_and_their_neighbours_are_exact() -> None:
    vectors = clustered(np.random.default_rng(7), 2000, 32)
    queries, nearest = dense._questions(vectors)
    assert np.allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)
    best = (queries @ vectors.T).max(axis=1)
    assert best[:100].mean() > 0.8 > best[100:].mean() > 0.5
    for query, ids in zip(queries[:20], nearest[:20], strict=True):
        assert ids.tolist() == brute_force(vectors, query, 10)


@pytest.mark.parametrize("many", [9000, 2000])
def test_damaged_bytes_of_auto_are_refused(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    monkeypatch.setattr(dense, "FEW", 1000)
    monkeypatch.setattr(dense, "MANY", many)
    data = build_dense(clustered(np.random.default_rng(8), 4000, 32), "auto")
    for cut in (0, 8, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(StoreCorrupt):
            Dense(data[:cut], 4000, 32)
