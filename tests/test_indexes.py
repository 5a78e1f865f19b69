"""The commands over indexes: what they print as JSON is plain data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from promptflow.cli import app


def shown(*arguments: str, code: int = 0) -> Any:
    """What ``promptflow index ... --json`` prints."""
    done = CliRunner().invoke(app, ["index", *arguments, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def listed() -> Any:
    [entry] = [entry for entry in shown("list") if entry["name"] == "k"]
    return entry


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
    assert listed()["state"] == "not built"
    done = shown("build", "k")
    assert (done["name"], done["generation"], done["documents"], done["embedded"]) == ("k", 1, 1, 1)
    assert [entry["path"] for entry in done["rejected"]] == ["bad.txt"]
    assert shown("build", "k")["unchanged"]
    info = shown("info", "k")
    assert info["counts"] == {"documents": 1, "chunks": 1, "rejected": 1, "characters": 32}
    [passage] = shown("search", "k", "which beam", "-k", "3", "--mode", "hybrid")
    assert passage["text"] == "# Beams\n\nA beam keeps the best."
    assert (passage["start"], passage["end"], passage["heading"]) == (0, 31, "Beams")
    checked = shown("verify", "k")
    assert (checked["ok"], checked["problems"]) == (True, [])
    assert [listed()[key] for key in ("state", "generation", "chunks")] == ["built", 1, 1]


def test_changes_are_said_in_words_and_in_json(project: Path) -> None:
    docs = project / "docs"
    shown("build", "k")
    for name in ("b.txt", "c.txt", "d.xyz"):
        (docs / name).write_text(f"words of {name}")
    said = CliRunner().invoke(app, ["index", "add", "k", "docs/b.txt"])
    assert said.exit_code == 0
    assert "1 added; 2 documents, 2 chunks" in said.stdout
    assert shown("remove", "k", "b.txt")["removed"] == 1
    done = shown("update", "k")
    assert (done["added"], done["changed"], done["removed"]) == (2, 0, 0)
    assert done["left_out"] == [
        {"suffix": ".xyz", "count": 1, "example": "d.xyz", "how": done["left_out"][0]["how"]}
    ]
    said = CliRunner().invoke(app, ["index", "update", "k"])
    assert "up to date; 3 documents" in said.stdout
    assert "left out: 1 .xyz, as d.xyz" in said.stderr
    (docs / "b.txt").unlink()
    assert shown("update", "k", "docs/b.txt", "c.txt")["removed"] == 1
    assert not shown("compact", "k")["unchanged"]
    assert shown("compact", "k")["unchanged"]
    refused = CliRunner().invoke(app, ["index", "add", "k", "nowhere.txt"])
    assert refused.exit_code != 0


def test_what_is_read_with_care_is_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from promptflow.retrieval import build, documents

    def with_warning(*given: Any) -> Any:
        for item in documents.load_all(*given):
            if isinstance(item, documents.Document):
                item.metadata["warnings"] = ["two columns may be mixed"]
            yield item

    monkeypatch.setattr(build, "load_all", with_warning)
    said = CliRunner().invoke(app, ["index", "build", "k"])
    assert "read with care: a.md: two columns may be mixed" in said.stderr
    assert shown("build", "k")["warnings"] == [
        {"path": "a.md", "warning": "two columns may be mixed"}
    ]


def test_a_damaged_index_is_shown_as_such(project: Path) -> None:
    shown("build", "k")
    [path] = project.rglob("dense.faiss")
    path.write_bytes(b"")
    checked = shown("verify", "k", code=2)
    assert not checked["ok"]
    assert "dense.faiss" in checked["problems"][0]
    (project / "indexes" / "k" / "built" / "manifest.json").write_text("{}")
    assert listed()["state"] == "damaged"
    assert "promptflow index build k" in listed()["error"]


@pytest.fixture
def people(project: Path) -> Path:
    """An index of two texts whose metadata the recipe gives."""
    docs = project / "docs"
    (docs / "ada.md").write_text("# Ada\n\nAda Lovelace wrote the first program.\n")
    (docs / "alan.md").write_text("# Alan\n\nAlan Turing described a universal machine.\n")
    recipe = project / "indexes" / "k" / "index.toml"
    recipe.write_text(
        'embedder = "hashing-64"\n[[metadata]]\nglob = "ada*"\nyear = 1843\ntags = ["a", "uk"]\n'
    )
    shown("build", "k")
    return project


def test_an_explanation_shows_ranks_scores_and_words(people: Path) -> None:
    explained = shown("explain", "k", "Who wrote the first program in Rust?", "--k", "2")
    [first, second] = explained["found"]
    assert first["passage"]["document"] == "ada.md"
    assert first["ranks"]["sparse"] == first["ranks"]["fused"] == 1
    assert set(first["words"]) == {"wrote", "first", "program"}
    assert second["words"] == []
    assert explained["missing"] == ["Rust"]
    done = CliRunner().invoke(
        app, ["index", "explain", "k", "Who wrote the first program in Rust?"]
    )
    cells = done.stdout.splitlines()[0].split("\t")
    assert cells[0] == "1"
    assert cells[1].startswith("ada.md:")
    assert cells[1].endswith(", Ada")
    assert cells[3].startswith("1 (")
    assert cells[5] == "wrote first program"
    assert done.stdout.splitlines()[-1] == "in no document: Rust"


def test_a_search_is_confined_to_documents(people: Path) -> None:
    for where in ("year=1843", "tags=uk", "document=ada*", "title=Ada"):
        found = shown("search", "k", "machine", "--where", where)
        assert [passage["document"] for passage in found] == ["ada.md"]
        found = shown("explain", "k", "machine", "--where", where)["found"]
        assert [one["passage"]["document"] for one in found] == ["ada.md"]
    done = CliRunner().invoke(app, ["index", "search", "k", "machine", "--where", "year=1844"])
    assert done.exit_code == 2
    assert "it is one of 1843" in done.stderr
