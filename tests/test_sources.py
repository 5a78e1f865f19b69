from __future__ import annotations

from pathlib import Path

import pytest

from promptflow.errors import StoreNotFound
from promptflow.modules.sources import index_name, opened
from promptflow.retrieval import HashingEmbedder, Passage, build_index


class Shelf:
    def search(self, query: str, k: int = 5) -> list[Passage]:
        return []

    def text(self, document: str) -> str:
        return ""


def test_a_retriever_of_ones_own_is_taken_as_it_is():
    shelf = Shelf()
    assert opened("Agent", shelf) is shelf
    assert index_name(shelf) == {"code": f"{__name__}:Shelf"}


@pytest.mark.parametrize("wrong", [Shelf, 3, None, object(), ["guide"]])
def test_what_is_no_retriever_is_refused(wrong: object):
    with pytest.raises(TypeError, match=r"Agent: .* is no retriever"):
        opened("Agent", wrong)


def test_an_index_is_opened_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("Ardel lies by the sea.")
    monkeypatch.chdir(tmp_path)
    build_index("towns", tmp_path / "docs", embedder=HashingEmbedder(), progress=False).close()
    index = opened("Agent", "towns")
    assert index_name(index) == "towns"
    with pytest.raises(StoreNotFound):
        opened("Agent", "nowhere")
