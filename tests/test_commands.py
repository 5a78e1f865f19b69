"""What the command line shows of indexes is plain data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from promptflow.retrieval import (
    index_build,
    index_info,
    index_list,
    index_search,
    index_verify,
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# Beams\n\nA beam keeps the best.\n")
    (tmp_path / "docs" / "bad.txt").write_bytes(b"\xff")
    recipe = tmp_path / "indexes" / "k" / "index.toml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text('embedder = "hashing-64"\n')
    return tmp_path


def test_every_answer_is_json(project: Path) -> None:
    assert [entry["state"] for entry in index_list() if entry["name"] == "k"] == ["not built"]
    done = index_build("k", progress=False)
    assert (done["name"], done["generation"], done["documents"], done["embedded"]) == ("k", 1, 1, 1)
    assert [entry["path"] for entry in done["rejected"]] == ["bad.txt"]
    assert index_build("k")["unchanged"]
    info = index_info("k")
    assert info["counts"] == {"documents": 1, "chunks": 1, "rejected": 1, "characters": 32}
    [passage] = index_search("k", "which beam", 3, mode="hybrid")
    assert passage["text"] == "# Beams\n\nA beam keeps the best."
    assert (passage["start"], passage["end"], passage["heading"]) == (0, 31, "Beams")
    checked = index_verify("k")
    assert (checked["ok"], checked["problems"]) == (True, ())
    [listed] = [entry for entry in index_list() if entry["name"] == "k"]
    assert (listed["state"], listed["generation"], listed["chunks"]) == ("built", 1, 1)
    for answer in (done, info, passage, checked, listed):
        json.dumps(answer)


def test_a_damaged_index_is_shown_as_such(project: Path) -> None:
    index_build("k")
    [path] = project.rglob("dense.faiss")
    path.write_bytes(b"")
    checked = index_verify("k")
    assert not checked["ok"]
    assert "dense.faiss" in checked["problems"][0]
    (project / "indexes" / "k" / "built" / "manifest.json").write_text("{}")
    [listed] = [entry for entry in index_list() if entry["name"] == "k"]
    assert listed["state"] == "damaged"
    assert "promptflow index build k" in listed["error"]
