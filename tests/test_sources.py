from __future__ import annotations

from pathlib import Path

import pytest

from promptflow.errors import ProgramError, StoreNotFound
from promptflow.modules.grounded import GroundedQA
from promptflow.modules.sources import index_name, opened
from promptflow.program import load_program, save_program
from promptflow.retrieval import HashingEmbedder, Passage, Together, build_index


class Shelf:
    def search(self, query: str, k: int = 5) -> list[Passage]:
        return []

    def text(self, document: str) -> str:
        return ""


def test_a_retriever_of_ones_own_is_taken_as_it_is():
    shelf = Shelf()
    assert opened("Agent", shelf) is shelf
    assert index_name(shelf) == {"code": f"{__name__}:Shelf"}


@pytest.mark.parametrize("wrong", [Shelf, 3, None, object(), [], [3], {"guide"}])
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


def test_several_indexes_are_opened_and_saved_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("towns", "rivers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.md").write_text(f"Of {name}.")
        build_index(name, tmp_path / name, embedder=HashingEmbedder(), progress=False).close()
    both = opened("GroundedQA", ["towns", "rivers"])
    assert index_name(both) == ["towns", "rivers"]
    assert both.text("rivers:a.md") == "Of rivers."
    save_program(GroundedQA(both), tmp_path / "program")
    again = load_program(tmp_path / "program")
    assert index_name(again.index) == ["towns", "rivers"]
    (tmp_path / "rivers" / "a.md").write_text("Of other rivers.")
    build_index("rivers", embedder=HashingEmbedder(), progress=False).close()
    with pytest.raises(ProgramError, match="index rivers"):
        load_program(tmp_path / "program")
    # Under names of one's own they are found by nobody but their maker.
    assert "code" in index_name(Together({"x": both}))
