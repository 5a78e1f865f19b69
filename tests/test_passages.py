"""Searching by meaning, by words and by both; filters; reranking; quotes that are checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from promptflow.errors import PromptflowError
from promptflow.retrieval import (
    HashingEmbedder,
    Index,
    Passage,
    build_index,
)
from promptflow.retrieval.index import DENSE_WEIGHT, LEAST_WEIGHT, dense_weight
from promptflow.retrieval.passages import MODES, Hit, fuse, raised

DOCUMENTS = {
    "metals/osmium.md": "# Osmium\n\nOsmium is the densest metal.\n",
    "metals/gold.md": "# Gold\n\nGold is a soft yellow metal.\n",
    "prompts/beam.txt": "A beam keeps the best thoughts at each level of the tree.\n",
    "prompts/votes.txt": "Samples vote, and the most common answer wins.\n",
}
RECIPE = """
documents = "docs"
embedder = "hashing-128"
[[metadata]]
glob = "metals/**"
topic = "chemistry"
year = 2024
[[metadata]]
glob = "**/gold.md"
year = 2026
tags = ["soft", "yellow"]
"""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    monkeypatch.chdir(tmp_path)
    for name, text in DOCUMENTS.items():
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    recipe = tmp_path / "indexes" / "k" / "index.toml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(RECIPE)
    with build_index("k") as built:
        yield built


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_finds_the_passage_with_its_place(index: Index, mode: str) -> None:
    found = index.search("what is the densest metal", 2, mode=mode)  # type: ignore[arg-type]
    first = found[0]
    assert (first.document, first.heading) == ("metals/osmium.md", "Osmium")
    assert DOCUMENTS[first.document][first.start : first.end] == first.text
    assert first.score >= found[1].score
    assert first.metadata == {
        "kind": "markdown",
        "title": "Osmium",
        "topic": "chemistry",
        "year": 2024,
    }


def test_words_that_no_passage_has_find_nothing(index: Index) -> None:
    assert index.search("qwertz", mode="sparse") == []
    assert [p.document for p in index.search("The", mode="sparse")] != []
    assert index.search("the gold", mode="sparse") == index.search("gold", mode="sparse")
    assert len(index.search("qwertz", mode="hybrid")) > 0


@pytest.mark.parametrize(
    ("where", "documents"),
    [
        ({"topic": "chemistry"}, {"metals/osmium.md", "metals/gold.md"}),
        ({"year": 2026}, {"metals/gold.md"}),
        ({"year": [2024, 2026]}, {"metals/osmium.md", "metals/gold.md"}),
        ({"kind": "text"}, {"prompts/beam.txt", "prompts/votes.txt"}),
        ({"document": "prompts/*"}, {"prompts/beam.txt", "prompts/votes.txt"}),
        ({"document": ["**/gold.md", "**/beam.txt"]}, {"metals/gold.md", "prompts/beam.txt"}),
        ({"kind": "text", "year": 2024}, set()),
        (lambda m: m.get("year", 0) < 2025 and "metal" in m["document"], {"metals/osmium.md"}),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_filters_hold_in_every_mode(
    index: Index, where: object, documents: set[str], mode: str
) -> None:
    query = "metal thoughts vote gold densest answer"
    found = index.search(query, 10, where, mode=mode)  # type: ignore[arg-type]
    assert {passage.document for passage in found} == documents


def test_a_filter_on_a_key_that_no_document_has_is_refused(index: Index) -> None:
    with pytest.raises(PromptflowError, match="no document has 'yaer'"):
        index.search("gold", where={"yaer": 2024})


def test_a_reranker_decides_the_order_among_more_candidates(index: Index) -> None:
    seen: list[int] = []

    def shortest(query: str, passages: Sequence[Passage]) -> list[float]:
        assert query == "metal"
        seen.append(len(passages))
        return [-len(passage.text) for passage in passages]

    found = index.search("metal", 1, rerank=shortest)
    assert seen == [4]
    assert found[0].score == max(-len(passage.text) for passage in index.search("metal", 4))
    with pytest.raises(PromptflowError, match="1 scores for 4 passages"):
        index.search("metal", 1, rerank=lambda query, passages: [1.0])


def test_a_passage_of_a_pdf_knows_its_page(index: Index, tmp_path: Path) -> None:
    from office_files import pdf

    (tmp_path / "docs" / "two.pdf").write_bytes(pdf("alpha " * 8, "omega " * 8))
    recipe = tmp_path / "indexes" / "k" / "index.toml"
    recipe.write_text(f"chunk_size = 8\n{RECIPE}")
    with build_index("k") as again:
        pages = {
            word: again.search(word, 1, {"kind": "pdf"})[0].metadata["page"]
            for word in ("alpha", "omega")
        }
        assert pages == {"alpha": 1, "omega": 2}
        assert "pages" not in again.search("alpha", 1)[0].metadata


def test_fusion_weighs_shares_of_the_greatest() -> None:
    fused = fuse({1: 0.9, 2: 0.5, 3: 0.1}, {2: 8.0, 3: 4.0}, 0.25)
    assert [(hit.chunk, hit.score) for hit in fused] == [
        (2, pytest.approx(0.25 * 0.5 + 0.75)),
        (3, pytest.approx(0.75 * 0.5)),
        (1, pytest.approx(0.25)),
    ]
    assert [hit.scores for hit in fused] == [
        {"dense": 0.5, "sparse": 8.0},
        {"dense": 0.1, "sparse": 4.0},
        {"dense": 0.9},
    ]


def test_shares_raise_the_first_and_leave_the_rest_behind() -> None:
    hits = [Hit(1, 0.9, {}), Hit(2, 0.8, {}), Hit(3, 0.8, {})]
    made = raised(hits, [0.2, 1.0], 0.5)
    assert [(hit.chunk, hit.score) for hit in made] == [
        (2, pytest.approx(1.3 / 1.5)),
        (1, pytest.approx(1.0 / 1.5)),
        (3, pytest.approx(0.8 / 1.5)),
    ]


SCORES = st.dictionaries(st.integers(0, 6), st.sampled_from([0.0, 0.25, 0.5, 2.0]), max_size=5)


@given(SCORES, SCORES, st.sampled_from([0.0, 0.3, 1.0]))
def test_fusion_orders_by_score_and_id(
    dense: dict[int, float], sparse: dict[int, float], weight: float
) -> None:
    fused = fuse(dense, sparse, weight)
    assert {hit.chunk for hit in fused} == {*dense, *sparse}
    assert all(0 <= hit.score <= 1 for hit in fused)
    assert fused == sorted(fused, key=lambda hit: (-hit.score, hit.chunk))


def test_passages_of_a_hybrid_search_know_both_scores(index: Index) -> None:
    query = "what is the densest metal"
    scores = {
        mode: {p.chunk: p.score for p in index.search(query, 10, mode=mode)}
        for mode in ("dense", "sparse")
    }
    found = index.search(query, 10, mode="hybrid")
    assert {p.chunk for p in found} == set(scores["dense"])
    for passage in found:
        assert passage.scores["dense"] == pytest.approx(scores["dense"][passage.chunk])
        assert passage.scores.get("sparse") == scores["sparse"].get(passage.chunk)
    [first] = index.search(query, 1, rerank=lambda query, passages: [7.0] * len(passages))
    assert first.score == first.scores["rerank"] == 7.0


def test_words_of_one_sentence_count_more_than_scattered_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {
        "together": "The red mill burned down in 1820. Nobody was hurt by it, and later it rained.",
        "apart": "The red barn was sold. The old mill stood still. Later the forest burned in it.",
    }
    (tmp_path / "docs").mkdir()
    for name, text in texts.items():
        (tmp_path / "docs" / f"{name}.txt").write_text(text)
    with build_index(tmp_path / "k", tmp_path / "docs", embedder=HashingEmbedder(64)) as index:
        monkeypatch.setattr(HashingEmbedder, "encode_query", lambda *_: np.zeros(64, np.float32))
        [one, two] = index.search("when was the red mill burned")
    assert (one.document, two.document) == ("together.txt", "apart.txt")
    assert one.score - two.score > 0.1


@pytest.mark.parametrize(
    ("tokens", "known"),
    [("wie hoch ist der ofen", True), ("본 사 는 어 디", False), ("[UNK]", False), ("", False)],
)
def test_cosines_weigh_little_where_the_embedder_reads_letters(tokens: str, known: bool) -> None:
    class Reads(HashingEmbedder):
        def count(self, text: str) -> int:
            return len(tokens.split())

    query = tokens.replace(" ", "") if tokens != "[UNK]" else "สำนักงานใหญ่"
    assert dense_weight(Reads(8), query) == (DENSE_WEIGHT if known or not query else LEAST_WEIGHT)


def test_a_view_searches_in_its_own_way(index: Index) -> None:
    view = index.view(mode="sparse", where={"topic": "chemistry"})
    assert view.search("metal", 1) == index.search(
        "metal", 1, {"topic": "chemistry"}, mode="sparse"
    )
    assert view.text("metals/gold.md") == DOCUMENTS["metals/gold.md"]
    assert view.name == "k"
    assert index.view().search("metal") == index.search("metal")
    with pytest.raises(PromptflowError, match="dense, sparse, hybrid"):
        index.view(mode="fuzzy")  # type: ignore[arg-type]


def test_one_index_serves_several_threads(index: Index) -> None:
    from concurrent.futures import ThreadPoolExecutor

    queries = ["densest metal", "soft yellow", "beam level tree", "vote common answer"] * 10
    alone = [index.search(query, 3, mode="hybrid") for query in queries]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda query: index.search(query, 3, mode="hybrid"), queries))
    assert together == alone
