"""A local model as a reranker."""

from __future__ import annotations

import copy

import pytest

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import EngineLost, PromptflowError
from promptflow.modules.relevance import Relevance
from promptflow.retrieval import HashingEmbedder, Passage, build_index


def passage(text: str, score: float = 0.0, heading: str = "") -> Passage:
    return Passage("a.md", 0, 0, len(text), text, score, heading)


def says_yes_to(word: str) -> pf.LocalLM:
    def answer(text: str, slot: pf.Slot) -> str:
        assert slot.is_weighed
        return "Yes" if word in text.rsplit("densest", 1)[1] else "No"

    return pf.load("scripted", engine=ScriptedEngine(answer))


def test_passages_are_ordered_by_what_the_model_calls_an_answer(tmp_path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, text in {"a": "Osmium is dense.", "b": "Gold is yellow.", "c": "densest"}.items():
        (docs / f"{name}.txt").write_text(text)
    with build_index(tmp_path / "k", docs, embedder=HashingEmbedder(64)) as index:
        rerank = Relevance(lm=says_yes_to("Osmium"))
        found = index.search("the densest metal", 2, rerank=rerank)
        assert found[0].document == "a.txt"
        assert [p.scores["rerank"] for p in found] == [1.0, 0.0]
        told = index.explain("the densest metal", 3, rerank=rerank)
        assert told.found[0].ranks["reranked"] == 1


def test_the_question_stands_before_the_passage_and_its_heading() -> None:
    seen: list[str] = []

    def answer(text: str, slot: pf.Slot) -> str:
        seen.append(text)
        return "No"

    lm = pf.load("scripted", engine=ScriptedEngine(answer))
    passages = [passage("first text", heading="Metals"), passage("second text")]
    assert Relevance(lm=lm)("what is dense?", passages) == [0.0, 0.0]
    for text, words in zip(seen, ["Metals\nfirst text", "second text"], strict=True):
        assert text.index("what is dense?") < text.index(words)
    shared = seen[0][: seen[0].index("Metals")]
    assert seen[1].startswith(shared.rstrip())


def test_a_weight_leaves_a_share_to_the_search() -> None:
    lm = says_yes_to("gold")
    passages = [passage("gold", 0.2), passage("iron", 0.9)]
    assert Relevance(0.25, lm=lm)("densest", passages) == pytest.approx([0.4, 0.675])
    with pytest.raises(PromptflowError, match=r"weight=1\.5"):
        Relevance(1.5)


def test_what_the_model_raises_is_raised() -> None:
    def lost(text: str, slot: pf.Slot) -> str:
        raise EngineLost("the engine died")

    lm = pf.load("scripted", engine=ScriptedEngine(lost))
    with pytest.raises(EngineLost, match="died"):
        Relevance(lm=lm)("densest", [passage("gold")])
    assert Relevance(lm=lm)("densest", []) == []


def test_a_copy_asks_the_same() -> None:
    rerank = copy.deepcopy(Relevance(0.5))
    assert rerank.weight == 0.5
