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
