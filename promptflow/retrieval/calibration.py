"""How near texts are that have nothing to do with each other: a measure of an embedder's cosines.

A cosine of 0.8 is a match to one embedder and nothing to another. What a threshold may be is told
by the passages of the index themselves: the beginning of one stands for a query, and a passage
drawn at random is hardly ever what it asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from promptflow.retrieval.embed import TextEmbedder

Array = NDArray[np.float32]
PASSAGES = 256
"""Passages of an index that are drawn."""
QUERIES = 32
LEAST = 8
"""Passages below which there is nothing to be measured."""
WORDS = 12
CHARACTERS = 80
"""What is taken of a passage for a query, of a language without spaces too."""


def unrelated(embedder: TextEmbedder, texts: Sequence[str], vectors: Array) -> dict[str, Any]:
    """Return what is known of cosines between queries and passages that were drawn at random.

    ``texts`` are the passages of ``vectors`` (n, dimension). Keys: ``pairs``, ``mean``, ``std`` and
    the quantiles ``p50``, ``p95`` and ``p99`` of unrelated pairs, and ``own``, the median cosine
    of a query and the passage that it is the beginning of. Empty for fewer than 8 passages.
    """
    if len(texts) < LEAST:
        return {}
    chosen = np.linspace(0, len(texts) - 1, min(QUERIES, len(texts))).astype(int)
    queries = np.stack([embedder.encode_query(_beginning(texts[at])) for at in chosen])
    cosines = queries @ vectors.T
    own = cosines[np.arange(len(chosen)), chosen].copy()
    alike = np.array([[texts[row] == texts[at] for row in range(len(texts))] for at in chosen])
    apart = cosines[~alike].astype(np.float64)
    if not apart.size:
        return {}
    p50, p95, p99 = np.quantile(apart, (0.5, 0.95, 0.99))
    found = {
        "mean": apart.mean(), "std": apart.std(), "p50": p50, "p95": p95, "p99": p99,
        "own": np.median(own),
    }  # fmt: skip
    return {"pairs": int(apart.size), **{key: round(float(v), 4) for key, v in found.items()}}


def _beginning(text: str) -> str:
    """Return the first words of the passage in ``text``, which has its headings above it."""
    passage = text.partition("\n")[2].strip() or text
    return " ".join(passage[: 4 * CHARACTERS].split()[:WORDS])[:CHARACTERS]
