"""What `factory = "auto"` finds and costs over many vectors, against comparing with every vector.

    python benchmarks/dense.py [--vectors N] [--dimension D] [--clusters C] [--spread S] [--json]

The vectors lie around C centres, each as far from its own as ``spread`` says (the length of the
noise in one dimension, where a centre's is 1), and so do the queries, which are none of them.
``recall`` is the share of the ten nearest that a search finds, of 200 queries; ``ms`` and
``flat_ms`` are the median and the best of one search through ``Dense`` and through faiss's own
IndexFlatIP on all threads; ``build`` counts seconds of the clock and of all cores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import faiss
import numpy as np

from promptflow.retrieval.dense import AUTO, NEIGHBOURS, Dense, built_dense

Array = np.ndarray[Any, np.dtype[np.float32]]
QUERIES = 200
BLOCK = 100_000
LEAST = 0.95


def around(centres: Array, number: int, spread: float, seed: int) -> Array:
    """Return unit vectors around the centres."""
    random = np.random.default_rng(seed)
    vectors = np.empty((number, centres.shape[1]), np.float32)
    for first in range(0, number, BLOCK):
        part = vectors[first : first + BLOCK]
        part[:] = centres[random.integers(0, len(centres), len(part))]
        part += np.float32(spread) * random.standard_normal(part.shape, np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def times(search: Callable[[Array], object], queries: Array) -> dict[str, float]:
    """Return milliseconds of one search: the median, and the best, which no neighbour disturbed."""
    seconds = []
    for query in queries:
        begun = time.perf_counter()
        search(query)
        seconds.append(time.perf_counter() - begun)
    return {"median": round(1e3 * median(seconds), 3), "best": round(1e3 * min(seconds), 3)}


def flat_times(vectors: Array, queries: Array) -> dict[str, float]:
    """Return the times of faiss's own search through every vector."""
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    return times(lambda query: flat.search(query[None], NEIGHBOURS), queries)


def measure(number: int, dimension: int, clusters: int, spread: float) -> dict[str, Any]:
    """Build, search, and compare."""
    random = np.random.default_rng(1)
    centres = random.standard_normal((clusters, dimension), np.float32)
    vectors = around(centres, number, spread, 2)
    queries = around(centres, QUERIES, spread, 3)
    begun, used = time.perf_counter(), time.process_time()
    built = built_dense(vectors, AUTO)
    build = {
        "seconds": round(time.perf_counter() - begun, 1),
        "core_seconds": round(time.process_time() - used, 1),
    }
    metric = faiss.METRIC_INNER_PRODUCT
    _, nearest = faiss.knn(queries, vectors, NEIGHBOURS, metric=metric)
    flat_ms = flat_times(vectors, queries)
    del vectors
    dense = Dense(built.data, number, dimension)
    found = [dense.search(query, NEIGHBOURS) for query in queries]
    hits = sum(
        len({at for at, _ in one} & {*true.tolist()})
        for one, true in zip(found, nearest, strict=True)
    )
    return {
        "vectors": number,
        "dimension": dimension,
        **built.facts,
        "recall_at_build": built.facts.get("recall", 1.0),
        "recall": round(hits / nearest.size, 4),
        "ms": times(lambda query: dense.search(query, NEIGHBOURS), queries),
        "flat_ms": flat_ms,
        "megabytes": round(len(built.data) / 1e6),
        "build": build,
    }


def main() -> None:
    """Measure and print; the exit status is 1 where less than 0.95 is found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--clusters", type=int, default=5_000)
    parser.add_argument("--spread", type=float, default=0.7)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure(asked.vectors, asked.dimension, asked.clusters, asked.spread)
    if asked.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:>16}  {value}")
    raise SystemExit(found["recall"] < LEAST)


if __name__ == "__main__":
    main()
