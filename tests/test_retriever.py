"""Several retrievers as one: whose passages come first, and whose a document is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from promptflow.errors import StoreError, StoreNotFound
from promptflow.retrieval import (
    HashingEmbedder,
    Index,
    Passage,
    Retriever,
    Together,
    build_index,
)


@dataclass
class Fixed:
    """A retriever of a user's own, with the same passages for every query."""

    texts: Sequence[str] = ("x",)
    scores: Sequence[dict[str, float]] = field(default_factory=lambda: [{}, {}, {}, {}])

    def search(self, query: str, k: int = 5) -> list[Passage]:
        return [
            Passage(f"{text}.md", n, 0, len(text), text, -float(n), scores=scores)
            for n, (text, scores) in enumerate(zip(self.texts, self.scores, strict=False))
        ][:k]

    def text(self, document: str) -> str:
        return document.removesuffix(".md")


def found(together: Together, k: int = 4) -> list[str]:
    return [passage.document for passage in together.search("q", k)]


def test_it_is_a_retriever_of_what_each_finds():
    both = Together({"a": Fixed("xy"), "b": Fixed("xz")})
    assert isinstance(both, Retriever)
    assert found(both) == ["a:x.md", "b:x.md", "a:y.md", "b:z.md"]
    assert found(both, 1) == ["a:x.md"]
    assert both.text("b:z.md") == "z"
    assert both.owner("b:z.md") == ("b", "z.md")
    assert both.owner("b:c:d.md") == ("b", "c:d.md")


@pytest.mark.parametrize("document", ["x.md", "c:x.md", "", ":x.md"])
def test_a_document_of_nobody_is_named(document: str):
    with pytest.raises(StoreNotFound, match="one of the names a, b"):
        Together({"a": Fixed(), "b": Fixed()}).text(document)


def test_names_are_given_or_their_own_and_do_not_repeat():
    @dataclass
    class Named(Fixed):
        name: str = "notes"

    assert list(Together([Fixed(), Named(), Fixed()]).retrievers) == ["1", "notes", "3"]
    with pytest.raises(StoreError, match="the names notes, notes repeat"):
        Together([Named(), Named()])
    for nothing in ([], {}, {"a:b": Fixed()}):
        with pytest.raises(StoreError, match="without a colon"):
            Together(nothing)


def test_what_a_reranker_said_comes_before_ranks():
    low, high = [{"rerank": 0.1}, {"rerank": 0.0}], [{"rerank": 0.9}, {"rerank": 0.05}]
    both = Together({"a": Fixed("xy", low), "b": Fixed("xz", high)})
    assert found(both) == ["b:x.md", "a:x.md", "b:z.md", "a:y.md"]


def test_cosines_of_unknown_embedders_are_not_compared():
    low, high = [{"dense": 0.1}, {"dense": 0.0}], [{"dense": 0.9}, {"dense": 0.8}]
    both = Together({"a": Fixed("xy", low), "b": Fixed("xz", high)})
    assert found(both) == ["a:x.md", "b:x.md", "a:y.md", "b:z.md"]


def built(folder: Path, name: str, texts: dict[str, str]) -> Index:
    docs = folder / f"{name}-docs"
    docs.mkdir()
    for path, text in texts.items():
        (docs / path).write_text(text, encoding="utf-8")
    return build_index(name, docs, embedder=HashingEmbedder(), progress=False)


ORCHARD = """river stone cloud ember lantern orchard violin harbour meadow copper thistle saddle
winter pebble falcon marble candle anchor tunnel garden"""
WORDS = ORCHARD.split()


def test_indexes_together_find_what_one_index_of_all_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Generated: the first passage is that of one index of all texts, and each order stays.

    Nearly always: each index counts how rare a word is in its own texts.
    """
    monkeypatch.chdir(tmp_path)
    chance = random.Random(11)
    texts = {f"{n}.txt": " ".join(chance.choices(WORDS, k=12)) + "." for n in range(60)}
    # The second index is about something else altogether.
    others = {f"o{n}.txt": f"Paragraph {n} of the tax code of {n}." for n in range(30)}
    whole = built(tmp_path, "whole", {**texts, **others})
    left = built(tmp_path, "left", texts)
    right = built(tmp_path, "right", others)
    both = Together([left, right])
    same = 0
    for _ in range(40):
        query = " ".join(chance.choices(WORDS, k=3))
        own = [f"left:{passage.document}" for passage in left.search(query, 5)]
        names = [passage.document for passage in both.search(query, 5)]
        found = [f"left:{passage.document}" for passage in whole.search(query, 2)]
        assert names[0] in found
        same += names[0] == found[0]
        kept = [name for name in names if name.startswith("left:")]
        assert kept == own[: len(kept)]  # in the order of its own search
        assert len(kept) >= 3
    assert same >= 36
    for index in (whole, left, right):
        index.close()


def test_an_index_is_searched_in_the_way_of_its_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    index = built(tmp_path, "k", {"a.txt": "A violin.", "b.txt": "A violin and a harbour."})
    view = index.view(mode="sparse", where={"document": "b.*"})
    assert isinstance(view, Retriever)
    [passage] = view.search("violin", 5)
    assert (passage.document, set(passage.scores)) == ("b.txt", {"sparse"})
    assert view.text("b.txt") == index.text("b.txt")
    assert [p.document for p in Together([view]).search("violin")] == ["k:b.txt"]
    wrong: Any = "fuzzy"
    with pytest.raises(Exception, match="one of dense, sparse, hybrid"):
        index.view(mode=wrong)
    index.close()
