"""Search by words: the scores are BM25's."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, strategies as st

from promptflow.errors import StoreCorrupt
from promptflow.retrieval.sparse import Sparse, build_sparse, words


def bm25(texts: list[str], query: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Return Lucene's BM25 score of every text, word by word."""
    counts = [Counter(found) for found in words(texts)]
    mean = sum(c.total() for c in counts) / len(counts)
    scores = [0.0] * len(texts)
    for word in words([query])[0]:
        having = sum(word in c for c in counts)
        idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        for at, c in enumerate(counts):
            scores[at] += idf * c[word] / (c[word] + k1 * (1 - b + b * c.total() / mean))
    return scores


WORDS = st.lists(st.sampled_from(["tree", "beam", "vote", "gold", "metal"]), max_size=8)


TEXTS = st.lists(WORDS.map(" ".join), min_size=1, max_size=8)


@given(TEXTS, WORDS.map(" ".join), st.sets(st.integers(0, 7)))
def test_scores_by_words_are_bm25(texts: list[str], query: str, allowed: set[int]) -> None:
    sparse = Sparse(build_sparse(texts))
    assert sparse.number == len(texts)
    if not any(texts):
        assert sparse.search(query, 10) == []
        return
    expected = bm25(texts, query)
    found = sparse.search(query, 10)
    assert [at for at, _ in found] == sorted(
        (at for at, score in enumerate(expected) if score > 0),
        key=lambda at: (-dict(found)[at], at),
    )
    assert [score for _, score in found] == pytest.approx(
        [expected[at] for at, _ in found], rel=1e-4
    )
    some = sorted(at for at in allowed if at < len(texts))
    assert {at for at, _ in sparse.search(query, 10, some)} == {at for at, _ in found} & set(some)


def test_a_segment_of_words_is_the_same_bytes_every_time() -> None:
    texts = ["Osmium is dense.", "Gold is soft and yellow.", "", "A beam keeps the best."]
    assert build_sparse(texts) == build_sparse(texts)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\0" * 100])
def test_bytes_that_are_no_segment_of_words_are_refused(data: bytes) -> None:
    with pytest.raises(StoreCorrupt, match="not a BM25 segment"):
        Sparse(data)
