"""BM25 over segments against BM25 by its formula, one chunk at a time."""

from __future__ import annotations

import io
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from promptflow.errors import StoreCorrupt
from promptflow.retrieval.sparse import PART, Segment, Sparse, SparseWriter, Weights, ranked
from promptflow.retrieval.text import query_words, words

Documents = list[list[str]]

WORDS = ["gold", "metal", "beam", "vote", "서울", "본사는", "東京", "x1"]
CHUNKS = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
DOCUMENTS = st.lists(st.lists(CHUNKS, min_size=1, max_size=4), min_size=1, max_size=6)
QUERIES = st.lists(st.sampled_from([*WORDS, "absent"]), min_size=1, max_size=5).map(" ".join)


def segment(documents: Documents, live: list[bool] | None = None) -> Segment:
    writer = SparseWriter()
    for chunks in documents:
        writer.add("\n".join(chunks), chunks)
    return Segment(writer.finish(), None if live is None else np.array(live, bool))


def formula(documents: Documents, query: str, weights: Weights) -> list[float]:
    """Return the score of each chunk, term by term."""
    chunks = [chunk for document in documents for chunk in document]
    whole = ["\n".join(document) for document in documents]
    place = [number for number, document in enumerate(documents) for _ in document]
    asked = [term for word in query_words(query, ["en"]) for term in word.terms]

    def score(texts: list[str], text: str) -> float:
        held = [words(other) for other in texts if words(other)]
        mean = sum(map(len, held)) / max(1, len(held))
        own = Counter(words(text))
        total = 0.0
        for term in asked:
            frequency = sum(term in other for other in held)
            rarity = math.log(1 + (len(held) - frequency + 0.5) / (frequency + 0.5))
            norm = weights.k1 * (1 - weights.b + weights.b * own.total() / max(mean, 1e-9))
            total += rarity * own[term] * (weights.k1 + 1) / (own[term] + norm or 1)
        return total

    within = [score(chunks, chunk) for chunk in chunks]
    above = [score(whole, whole[at]) for at in place]
    share = weights.whole
    return [
        share * a + (1 - share) * w if w > 0 else 0.0 for a, w in zip(above, within, strict=True)
    ]


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, QUERIES, st.sampled_from([Weights(), Weights(0.9, 0.4, 0.8), Weights(2, 1, 0)]))
def test_scores_are_those_of_the_formula(documents: Documents, query: str, w: Weights) -> None:
    found = Sparse([segment(documents)], w).scores(query)
    np.testing.assert_allclose(found, formula(documents, query, w), rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(DOCUMENTS, max_size=4), QUERIES)
def test_segments_score_as_one(parts: list[Documents], query: str) -> None:
    several = Sparse([segment(part) for part in parts])
    one = Sparse([segment([document for part in parts for document in part])])
    assert several.number == one.number
    np.testing.assert_allclose(several.scores(query), one.scores(query), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, st.data(), QUERIES)
def test_what_was_removed_counts_for_nothing(
    documents: Documents, data: st.DataObject, query: str
) -> None:
    alive = [data.draw(st.booleans()) for _ in documents]
    live = [kept for kept, chunks in zip(alive, documents, strict=True) for _ in chunks]
    found = Sparse([segment(documents, live)]).scores(query)
    left = [chunks for kept, chunks in zip(alive, documents, strict=True) if kept]
    np.testing.assert_allclose(found[live], Sparse([segment(left)]).scores(query), rtol=1e-6)
    assert not found[np.logical_not(live)].any()


def test_rarity_is_that_of_the_rarest_term_in_all_segments() -> None:
    sparse = Sparse([segment([["gold metal", "gold"]]), segment([["gold beam", "vote"]])])
    asked = query_words("gold beams absent", ["en"])
    rare = [math.log(1 + (4 - n + 0.5) / (n + 0.5)) for n in (3, 1)]
    assert sparse.rarity(asked) == pytest.approx([*rare, 0.0])


def test_a_long_document_is_scored_in_parts() -> None:
    filler = " ".join(f"word{n}" for n in range(PART // 2))
    long = [f"gold {filler}", *[filler] * 4, f"silver {filler}"]
    made = segment([long, ["gold silver"]])
    assert made.parts.tolist() == [0, 1, 1, 2, 2, 3, 4]
    assert segment([["a b", "c d"], ["e f"]]).parts.tolist() == [0, 0, 1]


def test_the_best_come_first_and_ties_by_id() -> None:
    scores = np.array([0, 2, 1, 2, 0, 1], np.float32)
    assert ranked(scores, 3) == [(1, 2.0), (3, 2.0), (2, 1.0)]
    assert ranked(scores, 10, [5, 4, 3]) == [(3, 2.0), (5, 1.0)]
    assert ranked(scores, 10, []) == []


def test_the_same_text_gives_the_same_bytes() -> None:
    def made() -> bytes:
        writer = SparseWriter()
        writer.add("b a", ["b", "a 서울"])
        return writer.finish()

    assert made() == made()
    assert Segment(made()).languages == ["en"]


def test_the_language_of_a_chunk_is_that_of_its_document() -> None:
    first = segment([["one of the two", "gold"], ["본사는 서울에 있다", "x1"]])
    second = segment([["본사는 서울에 있다"], ["where is it"]])
    made = Sparse([first, segment([]), second])
    spoken = ["en", "en", "ko", "ko", "ko", "en"]
    assert [made.language(chunk) for chunk in range(6)] == spoken


def test_an_index_without_words_finds_nothing() -> None:
    for made in (Sparse([]), Sparse([segment([])]), Sparse([segment([["..."]])])):
        assert made.search("gold", 5) == []


def test_a_damaged_segment_is_named() -> None:
    with pytest.raises(StoreCorrupt, match="not a BM25 segment"):
        Segment(b"PK\x03\x04 damaged")
    writer = SparseWriter()
    writer.add("gold", ["gold metal"])
    data = writer.finish()
    for cut in range(0, len(data), 97):
        with pytest.raises(StoreCorrupt):
            Segment(data[:cut])
    with np.load(io.BytesIO(data)) as arrays:
        tables = dict(arrays)
    for name, value in [
        ("chunks", np.array([9, 9])),
        ("counts", np.zeros(1)),
        ("parts", np.zeros(3)),
        ("first", np.zeros(0)),
        ("spoken", np.full_like(tables["spoken"], 7)),
    ]:
        buffer = io.BytesIO()
        np.savez(buffer, **{**tables, name: value})
        with pytest.raises(StoreCorrupt, match="not a BM25 segment"):
            Segment(buffer.getvalue())
