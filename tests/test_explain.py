"""Explanations agree with the searches that they explain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from promptflow.errors import PromptflowError
from promptflow.retrieval import HashingEmbedder, Index, Passage, build_index
from promptflow.retrieval.embed import Array
from promptflow.retrieval.explain import written
from promptflow.retrieval.passages import Mode
from promptflow.retrieval.text import query_words

DOCUMENTS = {
    "osmium.txt": "Osmium is the densest metal.",
    "gold.txt": "Gold is a soft yellow metal.",
    "seoul.txt": "본사는 서울에 있다.",
    "votes.txt": "Samples vote, and the most common answer wins.",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    folder = tmp_path_factory.mktemp("explain")
    (folder / "docs").mkdir()
    for name, text in DOCUMENTS.items():
        (folder / "docs" / name).write_text(text, encoding="utf-8")
    recipe = folder / "indexes" / "k" / "index.toml"
    with build_index(recipe, folder / "docs", embedder=HashingEmbedder(64)) as built:
        yield built


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
def test_ranks_are_those_of_the_searches(index: Index, mode: str) -> None:
    query = "What is the densest metal?"
    told = index.explain(query, 3, mode=mode)  # type: ignore[arg-type]
    found = index.search(query, 3, mode=mode)  # type: ignore[arg-type]
    assert [one.passage for one in told.found] == found
    for way, name in (("dense", "dense"), ("sparse", "sparse"), ("hybrid", "fused")):
        order = [p.chunk for p in index.search(query, 100, mode=way)]  # type: ignore[arg-type]
        for one in told.found:
            rank = order.index(one.passage.chunk) + 1 if one.passage.chunk in order else None
            assert one.ranks.get(name) == rank
    assert "reranked" not in told.found[0].ranks


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
def test_a_query_is_embedded_once(
    index: Index, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    encode = HashingEmbedder.encode_query

    def counted(self: HashingEmbedder, text: str) -> Array:
        asked.append(text)
        return encode(self, text)

    monkeypatch.setattr(HashingEmbedder, "encode_query", counted)
    index.explain("which metal is dense?", 2, mode=mode)
    assert asked == ["which metal is dense?"]


def test_words_are_told_as_the_query_writes_them(index: Index) -> None:
    told = index.explain("Which METALS are the densest, and iridium?", 2, mode="sparse")
    assert (told.language, told.mode) == ("en", "sparse")
    assert told.words == ("METALS", "densest", "iridium")
    assert told.missing == ("iridium",)
    assert [(one.passage.document, one.words) for one in told.found] == [
        ("osmium.txt", ("METALS", "densest")),
        ("gold.txt", ("METALS",)),
    ]
    korean = index.explain("서울에 본사가 있나?", 1, mode="sparse")
    assert korean.language == "ko"
    assert korean.words == ("서울에", "본사가", "있나")
    assert korean.missing == ("사가", "있나")
    assert korean.found[0].words == ("서울에", "본사")


def test_a_reranker_has_ranks_of_its_own(index: Index) -> None:
    def longest(query: str, passages: Sequence[Passage]) -> list[float]:
        return [len(passage.text) for passage in passages]

    told = index.explain("metal", 2, rerank=longest)
    assert [one.passage for one in told.found] == index.search("metal", 2, rerank=longest)
    assert [one.ranks["reranked"] for one in told.found] == [1, 2]
    assert told.found[0].passage.document == "votes.txt"


def test_filters_and_refusals_are_those_of_a_search(index: Index) -> None:
    told = index.explain("metal", 5, {"document": "gold.txt"})
    assert [one.passage.document for one in told.found] == ["gold.txt"]
    assert index.explain("metal", 5, {"document": "nothing"}).found == ()
    with pytest.raises(PromptflowError, match="must not be blank"):
        index.explain(" ")


def test_pairs_that_overlap_are_written_as_one() -> None:
    query = "인터넷은행과 은행"
    asked = query_words(query, ["ko"])
    assert written(query, asked) == ("인터넷은행과", "은행")
    assert written(query, [asked[0], asked[1], asked[3]]) == ("인터넷", "은행")
