"""Answers from real indexes at the command line: filters, several indexes, places that open."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_cli import call

import promptflow as pf
from promptflow import lm
from promptflow.cli import answers, chat
from promptflow.cli.open_sources import open_sources
from promptflow.cli.opening import Opener
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import StoreError, StoreNotFound
from promptflow.modules import grounded
from promptflow.modules.abstention import Calibration

SHIPS = "# Ships\n\nThe Beagle sailed under Robert FitzRoy.\n\nIt was built in Woolwich.\n"
NOTES = "# Notes\n\nThe Beagle was launched in the year 1820.\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two indexes with a document of the same name, and a model that copies what it reads."""
    monkeypatch.chdir(tmp_path)
    for name, files in {
        "ships": {"a.md": SHIPS, "b.txt": "The Victory sailed under Horatio Nelson.\n"},
        "notes": {"a.md": NOTES},
    }.items():
        docs = tmp_path / f"{name}-docs"
        docs.mkdir()
        for path, text in files.items():
            (docs / path).write_text(text)
        recipe = tmp_path / "indexes" / name / "index.toml"
        recipe.parent.mkdir(parents=True)
        recipe.write_text(f'documents = "{name}-docs"\nembedder = "hashing-64"\n')
        call("index", "build", name)

    def answer(prompt: str, slot: pf.Slot) -> str:
        if slot.name == "standalone":
            return "In which year was the Beagle launched?"
        if slot.name != "answer":
            return "Yes"
        if slot.constraint is None:
            return "It is said."
        [passage] = slot.constraint.texts  # type: ignore[union-attr]
        wanted = [name for name in ("Robert FitzRoy", "Horatio Nelson", "1820") if name in passage]
        return wanted[0] if wanted else passage.split()[-1]

    model = pf.load("scripted", engine=ScriptedEngine(answer))
    monkeypatch.setattr(lm, "configure", lambda *_, **__: model)
    # Nothing is fitted with an embedder that hashes: answers are compared by words, and all given.
    words = Calibration({"words": 8.0}, {"words": 0.5}, 0.0, 0.0, "", "", "by words")
    monkeypatch.setattr(grounded, "calibration_for", lambda index, lm: words)
    return tmp_path


def lines(*arguments: str) -> list[Any]:
    return [json.loads(line) for line in call("ask", *arguments, "--json").stdout.splitlines()]


def test_each_question_is_a_line_with_its_claims_and_its_places(project: Path):
    [one, other] = lines("Who sailed the Beagle?", "Who sailed the Victory?", "--index", "ships")
    assert set(one) == {
        *("question", "answer", "citations", "support", "answerable", "quotes_exact", "verified"),
        *("abstained", "reason", "tokens", "seconds"),
    }
    assert (one["question"], one["answer"]) == ("Who sailed the Beagle?", "Robert FitzRoy")
    assert other["answer"] == "Horatio Nelson"
    assert one["reason"]
    [citation] = one["citations"]
    assert set(citation) == {
        *("index", "document", "page", "heading", "chunk", "start", "end", "quote", "stale"),
        "flagged",
    }
    assert (citation["index"], citation["document"]) == ("ships", "a.md")
    assert (citation["heading"], citation["page"], citation["stale"]) == ("Ships", None, "")
    assert SHIPS[citation["start"] : citation["end"]] == citation["quote"]


def test_several_indexes_answer_together_and_citations_name_theirs(project: Path):
    both = ("--index", "ships", "--index", "notes")
    [one] = lines("In which year was the Beagle launched?", *both)
    [citation] = one["citations"]
    assert (one["answer"], citation["index"], citation["document"]) == ("1820", "notes", "a.md")
    assert NOTES[citation["start"] : citation["end"]] == citation["quote"]
    [other] = lines("Who sailed the Victory?", *both)
    assert other["citations"][0]["index"] == "ships"


@pytest.mark.parametrize(
    ("where", "documents"),
    [
        (("--where", "kind=text"), {"b.txt"}),
        (("--where", "document=*.md"), {"a.md"}),
        (("--where", "title=Ships"), {"a.md"}),
        (("--where", "kind=text,markdown", "--where", "document=b*"), {"b.txt"}),
    ],
)
def test_only_documents_that_a_filter_allows_are_read(
    project: Path, where: Sequence[str], documents: set[str]
):
    found = lines("Who sailed?", "--index", "ships", "--k", "9", *where)
    assert {c["document"] for one in found for c in one["citations"]} == documents


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
def test_a_mode_is_how_passages_are_found(project: Path, mode: str):
    [one] = lines("Who sailed the Victory?", "--index", "ships", "--mode", mode)
    assert one["answer"] == "Horatio Nelson"
    sources = open_sources(["ships"], mode=mode)
    scores = {name for p in sources.retriever.search("Victory", 2) for name in p.scores}
    assert {"dense", "sparse"} & scores == ({mode} if mode != "hybrid" else {"dense", "sparse"})


def test_an_index_where_no_document_has_the_field_is_not_searched(project: Path):
    recipe = project / "indexes" / "notes" / "index.toml"
    recipe.write_text(recipe.read_text() + '[[metadata]]\nglob = "*"\nyear = 1820\n')
    call("index", "build", "notes")
    sources = open_sources(["ships", "notes"], where=["year=1820"])
    found = sources.retriever.search("Who sailed?", 9)
    assert {p.document for p in found} == {"notes:a.md"}
    with pytest.raises(StoreError, match="named twice"):
        open_sources(["ships", str(project / "indexes" / "ships")])


def opened(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The commands that places are opened by, from now on."""
    ran: list[Sequence[str]] = []

    def opener() -> Opener:
        return Opener({}, "linux", lambda name: name, lambda command, wait: ran.append(command))

    monkeypatch.setattr(answers, "Opener", opener)
    monkeypatch.setattr(chat, "Opener", opener)
    return ran


def test_the_place_of_a_citation_is_opened_at_its_line(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    ran = opened(monkeypatch)
    asked = ("Who sailed the Victory?", "In which year was the Beagle launched?")
    both = ("--index", "ships", "--index", "notes")
    shown = call("ask", *asked, *both, "--open", "2")
    path = (project / "notes-docs" / "a.md").resolve()
    assert ran == [["less", "+3", str(path)]]
    assert f"opening {path}, line 3" in shown.stderr
    assert "[1] ships: b.txt" in shown.stdout
    assert "[2] notes: a.md, Notes" in shown.stdout
    assert "are 1 to 2" in call("ask", *asked, *both, "--open", "3", code=2).stderr


def test_a_file_that_has_changed_is_told_and_not_opened(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    ran = opened(monkeypatch)
    (project / "ships-docs" / "a.md").write_text("Now for something else.\n")
    shown = call("ask", "Who sailed the Beagle?", "--index", "ships", "--open", "1", code=2)
    assert "CHANGED SINCE THE INDEX WAS BUILT" in shown.stdout
    assert "verified;" not in shown.stdout.replace("NOT VERIFIED", "")
    assert "has changed since ships was built" in shown.stderr
    assert ran == []


def test_places_of_documents_that_there_are_not_are_refused(project: Path):
    both = open_sources(["ships", "notes"])
    for document in ("a.md", "ships:../notes-docs/a.md", "other:a.md", "ships:/etc/passwd"):
        citation = pf.retrieval.Citation(document, 0, 0, 3, "The")
        with pytest.raises(StoreNotFound):
            both.locate(citation)


def test_a_chat_about_documents(project: Path, monkeypatch: pytest.MonkeyPatch):
    ran = opened(monkeypatch)
    typed = "Who sailed the Beagle?\nWhen was it launched?\n/sources\n/open 1\n/quit\n"
    from typer.testing import CliRunner

    from promptflow.cli import app

    options = ["chat", "--index", "ships", "--index", "notes"]
    result = CliRunner().invoke(app, options, input=typed)
    assert result.exit_code == 0, result.output
    assert (
        "> Who sailed the Beagle?\n  Robert FitzRoy\n    [1] ships: a.md, Ships\n" in result.stdout
    )
    assert "  (asked as: In which year was the Beagle launched?)\n  1820\n" in result.stdout
    assert ran == [["less", "+3", str((project / "notes-docs" / "a.md").resolve())]]
    assert "\x1b" not in result.stdout
